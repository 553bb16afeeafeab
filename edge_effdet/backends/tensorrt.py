"""TensorRT 10.3 to 11.x, and the code that TensorRT-RTX shares: the two differ in a ``Flavor``.

The network is strongly typed and its precision lives in the graph, so no builder flag sets one. Building and its errors
are tried with TensorRT-RTX in every test run. ``TensorRTRunner``, and TensorRT itself, are written against NVIDIA's
documentation and have never run on hardware.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import re
import types
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Engine, Graph, atomic_output
from edge_effdet.backends import cuda
from edge_effdet.backends.base import Available, CompileOptions, TensorSpec, Unavailable
from edge_effdet.errors import BackendUnavailable, EdgeEffDetError, EngineError, GraphError, InputError, UsageError

SUFFIX = ".engine"

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


FLAVOR = Flavor(
    title="TensorRT",
    module="tensorrt",
    extra="tensorrt",
    install=(
        "on a Jetson it comes with JetPack (make the virtual environment with --system-site-packages); "
        "elsewhere run pip install 'edge-effdet[tensorrt]'"
    ),
    oldest=(10, 3),
    beyond=(12, 0),
    default_target="",
    has_timing_cache=True,
    has_plugins=True,
)


def probe() -> Available | Unavailable:
    """Whether TensorRT and a GPU are here. Never raises."""
    return probe_flavor(FLAVOR)


def compile(graph: Graph, options: CompileOptions) -> bytes:  # noqa: A001 - the protocol's name
    """Build an engine for this machine's GPU. See ``compile_graph``."""
    return compile_graph(FLAVOR, graph, options)


def load(engine: Engine) -> TensorRTRunner:
    """Load an engine onto this machine's GPU. See ``TensorRTRunner``."""
    return TensorRTRunner(FLAVOR, engine)


def probe_flavor(flavor: Flavor) -> Available | Unavailable:
    """Whether a flavor works here. One that builds for other machines needs no GPU: then ``runs_here`` is False."""
    trt = _find_module(flavor)
    if isinstance(trt, Unavailable):
        return trt
    gpu = cuda.probe_gpu()
    if not flavor.default_target:
        return gpu if isinstance(gpu, Unavailable) else Available(trt.__version__, str(gpu))
    if isinstance(gpu, Unavailable):
        return Available(trt.__version__, f"builds for other machines; {gpu.reason}", runs_here=False)
    major, minor = gpu.compute_capability
    if f"{major}{minor}" not in _known_targets(trt):
        return Available(
            trt.__version__, f"builds for other machines; {gpu} is not an RTX GPU it knows", runs_here=False
        )
    return Available(trt.__version__, str(gpu))


def compile_graph(flavor: Flavor, graph: Graph, options: CompileOptions) -> bytes:
    """Build a serialized engine, byte for byte as TensorRT made it.

    Raises:
        UsageError: the target, the batch sizes or the timing cache do not fit this flavor.
        GraphError: the ONNX parser refuses the graph; the message names its first error.
        InputError: the timing cache is damaged or belongs to another machine.
        BackendUnavailable: the package or what it needs is missing.
        EdgeEffDetError: the builder gave up; the message holds its last error.
    """
    trt = _require_module(flavor)
    targets = parse_target(flavor, trt, options.target)
    if options.timing_cache and not flavor.has_timing_cache:
        raise UsageError(f"{flavor.title} measures no tactics and keeps no timing cache; leave the timing cache out.")
    if not graph.path.is_file():
        raise GraphError(f"There is no graph at {graph.path}; export one with python -m edge_effdet.export.")
    log = _get_log(trt)
    log.messages.clear()
    builder = _start(flavor, log, trt.Builder)
    _load_plugins(flavor, trt, log)
    network = builder.create_network(_strongly_typed(trt))
    # The parser owns weights that the network refers to, so it lives until the build is done.
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph.path)):
        raise GraphError(_describe_parser_error(flavor, graph.path, parser))
    # Bytes that happen to be a valid protobuf of unknown fields, an empty file among them, parse without an error.
    if network.num_outputs == 0:
        raise GraphError(f"{graph.path} is not an ONNX graph with outputs; export the graph again.")
    config = builder.create_builder_config()
    if options.workspace_mib > 0:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    _set_targets(flavor, trt, config, targets)
    _add_profile(builder, network, config, options.batch_sizes, log)
    cache = _attach_timing_cache(config, options.timing_cache, log) if options.timing_cache else None
    log.messages.clear()
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _explain_failed_build(flavor, graph.path, targets, log.last_error())
    if options.timing_cache and cache is not None:
        with atomic_output(options.timing_cache) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    return bytes(serialized)


def parse_target(flavor: Flavor, trt: Any, target: str) -> tuple[str, ...]:
    """The SM versions that ``--target`` names, ``86+89+120`` as ("86", "89", "120"); empty for an engine of this GPU.

    Raises:
        UsageError: a version that the bindings do not know, or a target where engines are built on their own GPU.
    """
    if not flavor.default_target:
        if target:
            raise UsageError(
                f"{flavor.title} builds for the GPU of this machine only, so the target {target!r} makes no sense; "
                "leave it out and build on the device."
            )
        return ()
    targets = tuple(dict.fromkeys(part.strip() for part in (target or flavor.default_target).split("+")))
    known = _known_targets(trt)
    unknown = [part for part in targets if part not in known]
    if unknown:
        raise UsageError(
            f"{flavor.title} {trt.__version__} does not know the target {'+'.join(unknown)!r}; it knows the SM "
            f"versions {', '.join(known)}, joined as in {flavor.default_target}."
        )
    if "75" in targets and len(targets) > 1:
        logger.warning("SM 75 in one engine with others can slow the others down, as NVIDIA warns; build 75 apart")
    return targets


class TensorRTRunner:
    """An engine on GPU 0, with memory that is allocated once a tensor and grows with the largest batch seen.

    Raises:
        BackendUnavailable: the package, PyCUDA or the GPU is missing.
        EngineError: TensorRT refuses the engine: another version or GPU built it, or it is damaged.
    """

    def __init__(self, flavor: Flavor, engine: Engine) -> None:
        trt = _require_module(flavor)
        self._trt = trt
        self._name = engine.path.name
        self._log = _get_log(trt)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        with contextlib.ExitStack() as stack:
            self._session = stack.enter_context(cuda.CudaSession())
            stack.callback(self._drop)
            with self._session.active():
                self._deserialize(flavor, trt, engine)
                specs = {spec.name: spec for spec in map(self._describe, range(self._engine.num_io_tensors))}
                modes = {name: self._engine.get_tensor_mode(name) for name in specs}
            self.inputs = tuple(spec for name, spec in specs.items() if modes[name] == trt.TensorIOMode.INPUT)
            self.outputs = tuple(spec for name, spec in specs.items() if modes[name] == trt.TensorIOMode.OUTPUT)
            self._buffers = {name: self._session.new_buffer() for name in specs}
            self._resources = stack.pop_all()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Feeds and results by tensor name; the caller owns the results.

        Raises:
            InputError: a feed is missing, unknown, or has another dtype or a shape that the engine was not built for.
            EngineError: TensorRT could not run it.
            BackendUnavailable: CUDA reported an error.
        """
        self._check_feeds(feeds)
        self._log.messages.clear()
        with self._session.active():
            for spec in self.inputs:
                self._send(spec, feeds[spec.name])
            pinned = {spec.name: self._reserve_output(spec) for spec in self.outputs}
            if not self._context.execute_async_v3(self._session.stream.handle):
                raise EngineError(f"{self._name} could not be run ({self._log.last_error()}); build the engine again.")
            for name, host in pinned.items():
                self._buffers[name].download(host, self._session.stream)
            self._session.stream.synchronize()
            return {name: host.copy() for name, host in pinned.items()}

    def close(self) -> None:
        """Free all that the engine holds on the host and the GPU. A second call does nothing."""
        self._resources.close()

    def __enter__(self) -> TensorRTRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def _deserialize(self, flavor: Flavor, trt: Any, engine: Engine) -> None:
        self._log.messages.clear()
        self._runtime = _start(flavor, self._log, trt.Runtime)
        _load_plugins(flavor, trt, self._log)
        self._engine = self._runtime.deserialize_cuda_engine(engine.path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"{flavor.title} {trt.__version__} on {cuda.probe_gpu()} refuses {engine.path.name}, which "
                f"{flavor.title} {engine.record.get('backend_version', 'of an unknown version')} built"
                f"{_on_target(engine)} ({self._log.last_error()}); an engine belongs to the GPU and the version that "
                "built it, so build it again for this machine."
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise EngineError(
                f"{engine.path.name} was read but cannot be prepared to run ({self._log.last_error()}); free memory on "
                "the GPU, or build the engine again here."
            )

    def _describe(self, index: int) -> TensorSpec:
        name = self._engine.get_tensor_name(index)
        kind = self._engine.get_tensor_dtype(name)
        try:
            dtype = np.dtype(self._trt.nptype(kind))
        except TypeError as error:
            raise EngineError(
                f"The tensor {name} of {self._name} has a type that NumPy lacks ({kind}); "
                "export the graph with float32 or integer inputs and outputs."
            ) from error
        return TensorSpec(name, tuple(self._engine.get_tensor_shape(name)), dtype)

    def _check_feeds(self, feeds: Mapping[str, np.ndarray]) -> None:
        expected = {spec.name for spec in self.inputs}
        if set(feeds) != expected:
            raise InputError(f"{self._name} takes {', '.join(sorted(expected))}, not {', '.join(sorted(feeds))}.")
        for spec in self.inputs:
            array = feeds[spec.name]
            fits = len(array.shape) == len(spec.shape) and all(
                wanted in (-1, given) for wanted, given in zip(spec.shape, array.shape, strict=True)
            )
            if not fits or array.dtype != spec.dtype:
                raise InputError(
                    f"{spec.name} of {self._name} takes {spec.dtype} {list(spec.shape)} (-1 for any batch), "
                    f"not {array.dtype} {list(array.shape)}."
                )

    def _send(self, spec: TensorSpec, array: np.ndarray) -> None:
        if -1 in spec.shape and not self._context.set_input_shape(spec.name, array.shape):
            smallest, _, largest = self._engine.get_tensor_profile_shape(spec.name, 0)
            raise InputError(
                f"A batch of {array.shape[0]} does not fit {self._name}, which was built for {smallest[0]} to "
                f"{largest[0]}; send fewer images at a time or build the engine for larger batches."
            )
        host = self._buffers[spec.name].reserve(array.shape, spec.dtype)
        host[...] = array
        self._buffers[spec.name].upload(host, self._session.stream)
        self._bind(spec.name)

    def _reserve_output(self, spec: TensorSpec) -> np.ndarray:
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if -1 in shape:
            raise EngineError(
                f"The size of the output {spec.name} of {self._name} depends on what is in the image, which is not "
                "supported; export the graph with a fixed number of detections."
            )
        host = self._buffers[spec.name].reserve(shape, spec.dtype)
        self._bind(spec.name)
        return host

    def _bind(self, name: str) -> None:
        if not self._context.set_tensor_address(name, self._buffers[name].address):
            raise EngineError(
                f"{self._name} refuses the memory of {name} ({self._log.last_error()}); build the engine again."
            )

    def _drop(self) -> None:
        # TensorRT frees GPU memory when its objects go: in this order, and with the context that they were made in.
        with self._session.active():
            self._context = None
            self._engine = None
            self._runtime = None


class MessageLog:
    """What TensorRT logged last. ``_get_log`` joins this with the ``ILogger`` of the flavor's module."""

    messages: deque[tuple[str, str]]

    def log(self, severity: Any, message: str) -> None:
        """Called by TensorRT, from any of its threads."""
        self.messages.append((severity.name, message))
        logger.debug("%s: %s", severity.name, message)

    def errors(self) -> list[str]:
        return [message for severity, message in self.messages if severity in ("ERROR", "INTERNAL_ERROR")]

    def last_error(self) -> str:
        """The last error on one line, or a phrase that says there is none."""
        # Without a driver TensorRT-RTX logs that it found none after each real error.
        errors = [text for text in self.errors() if "catchCudaError" not in text] or self.errors()
        return _on_one_line(errors[-1]) if errors else "TensorRT gave no reason"


# TensorRT keeps one logger a process while any of its objects lives and ignores later ones, so there is only one here.
@functools.cache
def _get_log(trt: Any) -> Any:
    log_class: Any = types.new_class("TensorRTLog", (MessageLog, trt.ILogger))
    log = log_class.__new__(log_class)
    trt.ILogger.__init__(log)
    log.messages = deque(maxlen=500)
    return log


def _find_module(flavor: Flavor) -> Any:
    """The flavor's module, or Unavailable."""
    try:
        trt = importlib.import_module(flavor.module)
        version = tuple(int(part) for part in trt.__version__.split(".")[:2])
    # A compiled module may fail in any way while it is loaded, and a probe answers all of them.
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name == flavor.module:
            return Unavailable(f"the Python package {flavor.module} is not installed", flavor.install)
        return Unavailable(
            f"the Python package {flavor.module} is installed but cannot be loaded ({_on_one_line(str(error))})",
            f"install it again ({flavor.install}) and let LD_LIBRARY_PATH name the folders of its libraries",
        )
    if not flavor.oldest <= version < flavor.beyond:
        return Unavailable(
            f"{flavor.title} {trt.__version__} is installed, and {'.'.join(map(str, flavor.oldest))} to "
            f"{flavor.beyond[0] - 1}.x is supported",
            "install a supported version (JetPack 5 has TensorRT 8.5; JetPack 6 has 10.3)"
            if flavor is FLAVOR
            else flavor.install,
        )
    return trt


def _require_module(flavor: Flavor) -> Any:
    trt = _find_module(flavor)
    if isinstance(trt, Unavailable):
        raise BackendUnavailable(f"{flavor.title} is not available: {trt.reason}; {trt.fix}.")
    return trt


def _start(flavor: Flavor, log: Any, factory: Any) -> Any:
    """Make a Builder or a Runtime. Without a working GPU TensorRT's factory fails, and its bindings raise TypeError."""
    try:
        return factory(log)
    except (TypeError, RuntimeError) as error:
        raise BackendUnavailable(
            f"{flavor.title} does not start ({log.last_error()}); check the GPU and its driver with nvidia-smi."
        ) from error


def _load_plugins(flavor: Flavor, trt: Any, log: Any) -> None:
    if flavor.has_plugins and not trt.init_libnvinfer_plugins(log, ""):
        raise BackendUnavailable(
            f"{flavor.title}'s plugins cannot be loaded ({log.last_error()}); install its library nvinfer_plugin."
        )


def _strongly_typed(trt: Any) -> int:
    # TensorRT 10 needs the flag; from 11 on there is no other kind of network, and the flag may go.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _known_targets(trt: Any) -> tuple[str, ...]:
    return tuple(name[2:] for name in trt.ComputeCapability.__members__ if name.startswith("SM"))


def _set_targets(flavor: Flavor, trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target}"), index):
            raise UsageError(f"{flavor.title} refuses SM {target} in {'+'.join(targets)}; build it apart.")


def _add_profile(builder: Any, network: Any, config: Any, batch_sizes: tuple[int, int, int], log: Any) -> None:
    """Give the range of a dynamic batch axis; a graph whose inputs are all static needs none."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = {tensor.name: tuple(tensor.shape) for tensor in inputs if -1 in tuple(tensor.shape)}
    if not dynamic:
        return
    smallest, usual, largest = batch_sizes
    if not 1 <= smallest <= usual <= largest:
        raise UsageError(
            f"Batch sizes of {smallest}, {usual} and {largest} do not ascend from 1; 1, 1 and 8 are usual."
        )
    profile = builder.create_optimization_profile()
    for name, shape in dynamic.items():
        if -1 in shape[1:]:
            raise GraphError(
                f"The input {name} is {list(shape)}, and only its first axis, the batch, may be dynamic; "
                "export the graph with a fixed image size."
            )
        profile.set_shape(name, *((batch, *shape[1:]) for batch in batch_sizes))
    if config.add_optimization_profile(profile) < 0:
        raise GraphError(f"The batch sizes {batch_sizes} do not fit the graph ({log.last_error()}); export it again.")


def _attach_timing_cache(config: Any, path: Path, log: Any) -> Any:
    """Read the timing cache, or start an empty one. Raises InputError where TensorRT cannot use the file."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise InputError(f"Cannot read the timing cache {path}: {error.strerror}; choose another file.") from error
    log.messages.clear()
    try:
        cache = config.create_timing_cache(content)
        usable = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    except (TypeError, RuntimeError):
        cache, usable = None, False
    # A damaged file gives an empty cache and a few log lines, and no other sign.
    if not usable or log.errors():
        raise InputError(
            f"The timing cache {path} is damaged or was made by another version or GPU ({log.last_error()}); delete it "
            "and build again."
        )
    return cache


def _describe_parser_error(flavor: Flavor, path: Path, parser: Any) -> str:
    if not parser.num_errors:
        return f"{flavor.title} cannot read {path} and gave no reason; export the graph again."
    error = parser.get_error(0)
    # For an operator that it lacks the parser's description is often just "false"; the code says more.
    reason = f"{error.code().name}: {_on_one_line(error.desc())}"
    if error.node() < 0:
        return f"{flavor.title} cannot read {path} ({reason}); export the graph again."
    return (
        f"{flavor.title} does not take node {error.node()} of {path.name}, {error.node_operator()} "
        f"{error.node_name()!r} ({reason}); export the graph again, or build it for another backend."
    )


def _explain_failed_build(flavor: Flavor, path: Path, targets: tuple[str, ...], reason: str) -> EdgeEffDetError:
    refused = re.search(r"\bsm_?(\d+)", reason, re.IGNORECASE)
    if refused and refused[1] in targets and len(targets) > 1:
        return UsageError(
            f"{flavor.title} cannot build {path.name} for {'+'.join(targets)} in one engine ({reason}); leave SM "
            f"{refused[1]} out, and build {refused[1]} apart."
        )
    return EdgeEffDetError(
        f"{flavor.title} could not build an engine from {path.name} ({reason}); change that part of the graph, or "
        "build it for another backend."
    )


def _on_target(engine: Engine) -> str:
    target = engine.record.get("target")
    return f" for {target}" if target else ""


def _on_one_line(text: str) -> str:
    lines = (line.strip() for line in text.splitlines())
    return "; ".join(line for line in lines if line and "catchCudaError" not in line) or "no reason given"
