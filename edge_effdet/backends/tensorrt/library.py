"""Finding TensorRT or TensorRT-RTX, what the two differ in, their log, and starting their objects."""

from __future__ import annotations

import functools
import importlib
import logging
import types
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from edge_effdet.backends.base import Unavailable
from edge_effdet.errors import BackendUnavailable

logger = logging.getLogger("edge_effdet.backends.tensorrt")


@dataclass(frozen=True, slots=True)
class Flavor:
    """What TensorRT and TensorRT-RTX differ in.

    Attributes:
        title: for people.
        module: the name to import.
        extra: the extra of edge-effdet that installs it.
        install: what to do where it is missing.
        oldest: the first version, major and minor, that works.
        beyond: the first version that is not known to work.
        default_target: SM versions that are built for when none are named; empty where an engine is built on its GPU.
        has_timing_cache: whether measured tactics can be kept in a file.
        has_plugins: whether NVIDIA's plugins (EfficientNMS) come with it.
        compiles_at_load: whether its runtime compiles kernels on the device: then it keeps them in a runtime cache, and
            captures CUDA graphs by itself when the kernels of a shape are ready.
    """

    title: str
    module: str
    extra: str
    install: str
    oldest: tuple[int, int]
    beyond: tuple[int, int]
    default_target: str
    has_timing_cache: bool
    has_plugins: bool
    compiles_at_load: bool


class MessageLog:
    """What TensorRT logged last. ``get_log`` joins this with the ``ILogger`` of the flavor's module."""

    messages: deque[tuple[str, str]]

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT, from any of its threads."""
        self.messages.append((severity.name, message))
        logger.debug("%s: %s", severity.name, message)

    def errors(self) -> list[str]:
        # A copy: another thread may log meanwhile.
        return [message for severity, message in self.messages.copy() if severity in ("ERROR", "INTERNAL_ERROR")]

    def last_error(self) -> str:
        """The last error on one line, or a phrase that says there is none."""
        # Without a driver TensorRT-RTX logs that it found none after each real error.
        errors = [text for text in self.errors() if "catchCudaError" not in text] or self.errors()
        return on_one_line(errors[-1]) if errors else "TensorRT gave no reason"


# TensorRT keeps one logger a process while any of its objects lives and ignores later ones, so there is only one here.
@functools.cache
def get_log(trt: Any) -> Any:
    """The one logger of a flavor's module: a ``MessageLog`` that TensorRT accepts."""
    log_class: Any = types.new_class("TensorRTLog", (MessageLog, trt.ILogger))
    log = log_class.__new__(log_class)
    trt.ILogger.__init__(log)
    log.messages = deque(maxlen=500)
    return log


def find_module(flavor: Flavor) -> Any:
    """The flavor's module, or Unavailable."""
    try:
        trt = importlib.import_module(flavor.module)
        version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    # A compiled module may fail in any way while it is loaded, and a probe answers all of them.
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == flavor.module:
            return Unavailable(f"the Python package {flavor.module} is not installed", flavor.install)
        return Unavailable(
            f"the Python package {flavor.module} is installed but cannot be loaded ({on_one_line(str(error))})",
            f"install it again ({flavor.install}) and let LD_LIBRARY_PATH name the folders of its libraries",
        )
    if not flavor.oldest <= version < flavor.beyond:
        return Unavailable(
            f"{flavor.title} {trt.__version__} is installed, and {'.'.join(map(str, flavor.oldest))} to "
            f"{flavor.beyond[0] - 1}.x is supported",
            # JetPack decides about TensorRT's version alone; TensorRT-RTX is no part of it.
            flavor.install
            if flavor.default_target
            else "install a supported version (JetPack 5 has TensorRT 8.5; JetPack 6 has 10.3)",
        )
    return trt


def require_module(flavor: Flavor) -> Any:
    """The flavor's module. Raises BackendUnavailable with the reason and the fix."""
    trt = find_module(flavor)
    if isinstance(trt, Unavailable):
        raise BackendUnavailable(f"{flavor.title} is not available: {trt.reason}; {trt.fix}.")
    return trt


def start(flavor: Flavor, log: Any, factory: Callable[[Any], Any]) -> Any:
    """Make a Builder or a Runtime. Without a working GPU TensorRT's factory fails, and its bindings raise TypeError."""
    try:
        return factory(log)
    except (TypeError, RuntimeError) as error:
        raise BackendUnavailable(
            f"{flavor.title} does not start ({log.last_error()}); check the GPU and its driver with nvidia-smi."
        ) from error


def load_plugins(flavor: Flavor, trt: Any, log: Any) -> None:
    """Register NVIDIA's plugins, where the flavor has any."""
    if flavor.has_plugins and not trt.init_libnvinfer_plugins(log, ""):
        raise BackendUnavailable(
            f"{flavor.title}'s plugins cannot be loaded ({log.last_error()}); install its library nvinfer_plugin."
        )


def on_one_line(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return "; ".join(line for line in lines if line and "catchCudaError" not in line) or "no reason given"
