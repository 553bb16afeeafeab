"""OpenVINO on the CPU. It compiles when it loads, so its engine is the graph itself, byte for byte.

A graph in FP16, or whose INT8 convolutions stand in FP16, is computed in the half precision that the processor has: FP16, or BF16,
which has FP32's range and 8 significant bits where FP16 has 11; without either in FP32. Which it was stands beside the latency in
the engine's JSON, as ``arithmetic``.

What it compiles is kept in ``<engine>.runtime_cache`` for the next start (``openvino_cache``).
"""

from __future__ import annotations

import functools
import importlib
import io
import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Engine, Graph, has_sha256
from edge_effdet.backends.base import (
    Available,
    Compiled,
    CompileOptions,
    LayerRun,
    LoadOptions,
    ProfiledRuns,
    Runner,
    TensorSpec,
    Traits,
    Unavailable,
    refuse_target,
)
from edge_effdet.backends.cores import usable_cores
from edge_effdet.backends.engine_account import EngineAccount, widest
from edge_effdet.backends.onnx_file import require_own_content
from edge_effdet.backends.openvino_cache import PRECISION, identity, read_compiled, save_compiled
from edge_effdet.backends.runtime_cache import runtime_cache_path
from edge_effdet.errors import EngineError, GraphError

logger = logging.getLogger("edge_effdet.backends.openvino")

TRAITS = Traits(on_cpu=True, saturates=True, uses_halves=True)
SUFFIX = ".onnx"

_DEVICE = "CPU"
_HALVES = {"FP16": "f16", "BF16": "bf16"}
"""What a processor is capable of, the better first, and OpenVINO's name of the type."""

_WARM_UP, _COUNTED = 2, 3
"""Of the runs that one time of a layer is worked out from: those that do not count, and those that do."""

_TOLD = ("layerType", "originalLayersNames", "runtimePrecision", "execOrder")
_PRECISIONS = {"i8": "int8", "u8": "int8", "f16": "fp16", "bf16": "bf16", "f32": "fp32"}
"""Of the tensor that a layer of the execution graph takes."""


def import_openvino() -> Any:
    """The package ``openvino``, without its telemetry: when it is imported it writes an id into the home folder and sends an event to Google Analytics.

    It does neither where its package ``openvino_telemetry`` cannot be imported, and while it is imported here that is so.

    Raises:
        ImportError: it is missing, or cannot be imported.
    """
    name = "openvino_telemetry"
    # None in its place makes an import of it fail, by the reference of Python's import system. Whoever imported it before wants it.
    hidden = sys.modules.setdefault(name, None) is None  # type: ignore[arg-type]
    try:
        return importlib.import_module("openvino")
    finally:
        if hidden:
            sys.modules.pop(name, None)


def probe() -> Available | Unavailable:
    try:
        openvino = import_openvino()
    except ImportError as error:
        return Unavailable(
            f"the Python package openvino cannot be imported ({error})", "run pip install 'edge-effdet[openvino]'"
        )
    name = _device_name()
    if name is None:
        return Unavailable("OpenVINO finds no CPU that it supports", "use the backend onnxruntime")
    return Available(openvino.__version__, name)


@functools.cache
def _device_name() -> str | None:
    """What OpenVINO calls this CPU; None where it supports none. Asking takes 10 ms, and the answer stays."""
    openvino = import_openvino()

    core = openvino.Core()
    return str(core.get_property(_DEVICE, "FULL_DEVICE_NAME")) if _DEVICE in core.available_devices else None


def compile(graph: Graph, options: CompileOptions) -> Compiled:  # noqa: A001 - the protocol's name
    """The graph's bytes, once OpenVINO has compiled them, and the account of what it compiled.

    Raises:
        UsageError: a target was given; this backend has none.
        GraphError: OpenVINO refuses the graph.
    """
    openvino = import_openvino()

    refuse_target("openvino", options)
    content = graph.path.read_bytes()
    try:
        model, _ = _compiled(graph.path, LoadOptions())
    except RuntimeError as error:
        raise GraphError(f"OpenVINO refuses {graph.path} ({_last_line(error)}); export it again.") from error
    # The version goes on with the build's number and branch.
    version = openvino.__version__.partition("-")[0]
    try:
        precisions = layer_precisions(model)
    except (RuntimeError, KeyError) as error:
        # The engine is built, and worth more than what is told of it.
        logger.warning("OpenVINO does not tell what it built: %s", error)
        precisions = {}
    return Compiled(content, EngineAccount(f"OpenVINO's execution graph {version}", precisions))


def load(engine: Engine, options: LoadOptions) -> OpenVinoRunner:
    """Load an engine on the CPU. Raises EngineError where OpenVINO or ``onnx_file.require_own_content`` refuses it."""
    require_own_content(engine)
    cache = runtime_cache_path(engine) if engine.sha256 else None
    return OpenVinoRunner(engine.path, options, engine.sha256, cache)


def profile(engine: Engine, options: LoadOptions, feeds: Mapping[str, np.ndarray], runs: int) -> ProfiledRuns:
    """Time the layers with OpenVINO's performance counters, in models with the options of ``load``.

    A counter is the mean over all runs of a model since it was loaded, the first and slow one among them, in whole microseconds. So one
    compiled model is loaded anew for each of the ``runs`` times, and a time is the mean of 3 runs after 2 that do not count.

    Raises:
        EngineError: OpenVINO refuses the engine, or fails in a run.
    """
    openvino = import_openvino()

    core = openvino.Core()
    try:
        model = core.read_model(str(engine.path))
        hints = {**_hints(options), PRECISION: _arithmetic(core, model)}
        stream = io.BytesIO()
        core.compile_model(model, _DEVICE, hints).export_model(stream)
        # Not the model that is kept for the next start: counting slows a model down.
        counting = {**hints, "PERF_COUNT": True}
        samples: list[dict[str, float]] = []
        told: dict[str, dict[str, str]] = {}
        for _ in range(runs):
            loaded = core.import_model(io.BytesIO(stream.getvalue()), _DEVICE, counting)
            samples.append(_time_layers(loaded, feeds))
            told = told or {layer.get_friendly_name(): _told(layer) for layer in loaded.get_runtime_model().get_ops()}
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO cannot profile {engine.path} ({_last_line(error)}); build the engine again."
        ) from error
    version = openvino.__version__.partition("-")[0]
    names = sorted((name for name in samples[0] if name in told), key=lambda name: int(told[name]["execOrder"]))
    layers = (
        LayerRun(
            name=name,
            kind=told[name]["layerType"],
            precision=_PRECISIONS.get(told[name]["runtimePrecision"], ""),
            milliseconds=tuple(sample.get(name, 0.0) for sample in samples),
            nodes=_convolutions(told[name]),
        )
        for name in names
    )
    return ProfiledRuns(f"OpenVINO's performance counters {version}", tuple(layers))


def _time_layers(model: Any, feeds: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Milliseconds of each layer that runs, by its name, in a model that has not run yet."""
    request = model.create_infer_request()
    sums: list[dict[str, float]] = []
    for count in (_WARM_UP, _COUNTED):
        for _ in range(count):
            request.infer(dict(feeds), share_inputs=True)
        done = _WARM_UP + (_COUNTED if sums else 0)
        sums.append(
            {
                counter.node_name: 1000 * counter.real_time.total_seconds() * done
                for counter in request.get_profiling_info()
                if counter.status.name == "EXECUTED"
            }
        )
    before, after = sums
    # A layer of less than a microsecond has a rounded mean of 0 or 1, and the difference may fall below 0.
    return {name: max(0.0, after[name] - before.get(name, 0.0)) / _COUNTED for name in after}


class OpenVinoRunner(Runner):
    """A compiled model, tuned for latency, and an inference request for each thread that runs it.

    Attributes:
        was_compiled: whether an earlier start compiled the model.
    """

    concurrent = True

    def __init__(self, path: Path, options: LoadOptions, engine_sha256: str = "", cache: Path | None = None) -> None:
        try:
            model, self.was_compiled = _compiled(path, options, engine_sha256, cache)
            self.inputs = tuple(_tensor_spec(port) for port in model.inputs)
            self.outputs = tuple(_tensor_spec(port) for port in model.outputs)
        # Besides its own RuntimeErrors: too little memory, and types and shapes that Python has no words for.
        except Exception as error:
            raise EngineError(f"OpenVINO cannot load {path} ({_last_line(error)}); build the engine again.") from error
        self.arithmetic = str(model.get_property(PRECISION).get_type_name())
        self._model: Any = model
        self._requests = threading.local()
        self._endable = options.run_limit > 0
        self._under_way: dict[int, Any] = {}
        """The request that a thread runs, by the thread."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            request = getattr(self._requests, "request", None)
            if request is None:
                request = self._requests.request = self._model.create_infer_request()
            if self._endable:
                self._under_way[threading.get_ident()] = request
            # Not copied: the array is the caller's until this returns.
            results = request.infer(dict(feeds), share_inputs=True)
            # The request reuses its output memory in the next run; the caller owns what it gets.
            return {spec.name: results[position].copy() for position, spec in enumerate(self.outputs)}
        except Exception as error:
            raise EngineError(f"OpenVINO failed in a run ({_last_line(error)}); build the engine again.") from error
        finally:
            if self._endable:
                self._under_way.pop(threading.get_ident(), None)

    def interrupt(self, thread: int) -> None:
        """Ask for the end of a thread's run, which OpenVINO looks for between two nodes, but not inside loops."""
        request = self._under_way.get(thread)
        if request is not None:
            request.cancel()

    def close(self) -> None:
        self._model = None
        self._requests = threading.local()


def _compiled(path: Path, options: LoadOptions, engine_sha256: str = "", cache: Path | None = None) -> tuple[Any, bool]:
    """The compiled model, and whether it comes from the cache."""
    openvino = import_openvino()

    core = openvino.Core()
    hints = _hints(options)
    belongs_to = identity(core, _DEVICE, engine_sha256)
    known = read_compiled(cache, belongs_to, core, _DEVICE, hints) if cache is not None else None
    if known is not None:
        return known, True
    model = core.read_model(str(path))
    precision = _arithmetic(core, model)
    compiled = core.compile_model(model, _DEVICE, {**hints, PRECISION: precision})
    # A build may have replaced the engine since its hash was taken, and what is kept is taken for the engine of that hash.
    if cache is not None and has_sha256(path, engine_sha256):
        save_compiled(compiled, precision, cache, belongs_to)
    return compiled, False


def _hints(options: LoadOptions) -> dict[str, Any]:
    threads = options.threads_of_a_run() * options.runs_on_cpu()
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": options.runs_on_cpu(),
        # OpenVINO binds threads to cores from the first one on, so two processes with a thread each would share one core.
        "ENABLE_CPU_PINNING": threads >= usable_cores(),
    }


def layer_precisions(model: Any) -> dict[str, str]:
    """In which precision a compiled model's convolutions run, by the ONNX nodes that each of them computes.

    OpenVINO names what computes an output of the graph after that output, so a convolution that does is not among them.
    """
    found: dict[str, str] = {}
    for layer in model.get_runtime_model().get_ops():
        told = _told(layer)
        precision = _PRECISIONS.get(told["runtimePrecision"])
        if precision is None:
            continue
        for node in _convolutions(told):
            found[node] = widest([precision, found.get(node, precision)])
    return found


def _told(layer: Any) -> dict[str, str]:
    """What the execution graph tells of a layer."""
    return {key: layer.get_rt_info()[key].astype(str) for key in _TOLD}


def _convolutions(told: Mapping[str, str]) -> tuple[str, ...]:
    """The ONNX nodes that a convolution computes, its own and those fused into it; none for another kind of layer."""
    if "Convolution" not in told["layerType"]:
        return ()
    # The bias of a convolution is a layer of its own for OpenVINO, which takes over the node's name.
    names = (name.removesuffix("/WithoutBiases") for name in told["originalLayersNames"].split(","))
    return tuple(dict.fromkeys(names))


def _arithmetic(core: Any, model: Any) -> str:
    # On CPUs with BF16 OpenVINO would silently run FP32 graphs in it, too; precision is what the graph says.
    says_half = any(
        port.get_element_type().get_type_name() == "f16" for node in model.get_ops() for port in node.outputs()
    )
    capabilities = core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    return next((_HALVES[name] for name in _HALVES if says_half and name in capabilities), "f32")


def _tensor_spec(port: Any) -> TensorSpec:
    shape = tuple(-1 if size.is_dynamic else size.get_length() for size in port.get_partial_shape())
    return TensorSpec(port.get_any_name(), shape, np.dtype(port.get_element_type().to_dtype()))


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
