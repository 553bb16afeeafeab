"""ONNX Runtime on the CPU: the embedded default. Its engine is the graph itself, byte for byte."""

from __future__ import annotations

import json
import logging
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_effdet.artifacts import Engine, Graph, temporary_folder
from edge_effdet.artifacts.files import utf8_path
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
from edge_effdet.backends.onnx_file import require_own_content
from edge_effdet.errors import EngineError, GraphError, first_line

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger("edge_effdet.backends.onnxruntime")

TRAITS = Traits(on_cpu=True, automatic=2)
SUFFIX = ".onnx"

UNWANTED_OPTIMIZERS = ["WeightBiasQuantization"]
"""It turns the bias of an INT8 convolution into INT32, and that lets the convolution be fused into a kernel which, without VNNI,
saturates where weights exceed 7 bits: a lite0 with weights within 127 fell from 26.4 to 16.5 AP. Rounding the bias by itself costs next to
nothing. Without it, and with ``session.x64quantprecision``, a graph of any origin is computed as it is written."""

_PROVIDER = "CPUExecutionProvider"
LOG_ERRORS, LOG_FATAL = 3, 4
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(float16)": np.float16,
    "tensor(bool)": np.bool_,
    "tensor(int16)": np.int16,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}
_WARM_UP = 3
"""How many runs come before those that a profile counts."""

_PRECISIONS = {"int8": "int8", "uint8": "int8", "float16": "fp16", "bfloat16": "bf16", "float": "fp32"}
"""Of the first tensor that a node takes, by the name of its type in the profiler's file."""

_NODE_EVENT = "_kernel_time"


def probe() -> Available | Unavailable:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Unavailable(
            f"the Python package onnxruntime cannot be imported ({error})", "run pip install 'edge-effdet[ort]'"
        )
    if _PROVIDER not in ort.get_available_providers():
        return Unavailable("this onnxruntime has no CPU provider", "run pip install --force-reinstall onnxruntime")
    return Available(ort.__version__, "CPU")


def compile(graph: Graph, options: CompileOptions) -> Compiled:  # noqa: A001 - the protocol's name
    """The graph's bytes, once a session has accepted them, and the model that the session made of them.

    Raises:
        UsageError: a target was given; this backend has none.
        GraphError: ONNX Runtime refuses the graph.
    """
    refuse_target("onnxruntime", options)
    content = graph.path.read_bytes()
    with temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        # onnxruntime raises classes of its C++ module, without a common Python base.
        try:
            _session(graph.path, LoadOptions(), optimized)
            return Compiled(content, optimized=optimized.read_bytes())
        except Exception as refused:
            # An engine that runs is worth more than what is told of it.
            try:
                _session(graph.path, LoadOptions())
            except Exception as error:
                raise GraphError(f"onnxruntime refuses {graph.path} ({first_line(error)}); export it again.") from error
            logger.warning("onnxruntime does not tell what it built: %s", first_line(refused))
            return Compiled(content)


def load(engine: Engine, options: LoadOptions) -> OnnxRuntimeRunner:
    """Load an engine on the CPU. Raises EngineError where ONNX Runtime or ``onnx_file.require_own_content`` refuses it."""
    require_own_content(engine)
    return OnnxRuntimeRunner(engine.path, options)


def profile(engine: Engine, options: LoadOptions, feeds: Mapping[str, np.ndarray], runs: int) -> ProfiledRuns:
    """Time the layers with onnxruntime's own profiler, in a session with the options of ``load``. Its times are whole microseconds.

    Raises:
        EngineError: onnxruntime refuses the engine, or fails in a run.
    """
    import onnxruntime as ort

    with temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        try:
            session = _session(engine.path, options, optimized, folder / "profile")
            for _ in range(_WARM_UP + runs):
                session.run(None, dict(feeds))
            # It returns the name in UTF-8, which the locale need not be; the folder holds nothing else of this beginning.
            session.end_profiling()
            (written,) = folder.glob("profile*")
            events = json.loads(written.read_text(encoding="utf-8"))
        except Exception as error:  # onnxruntime raises classes of its C++ module, without a common Python base
            raise EngineError(
                f"onnxruntime cannot profile {engine.path} ({first_line(error)}); build the engine again."
            ) from error
        layers = layers_from_events(events, _WARM_UP)
        return ProfiledRuns(f"onnxruntime's profiler {ort.__version__}", layers, optimized.read_bytes())


def layers_from_events(events: Sequence[Mapping[str, Any]], warm_up: int) -> tuple[LayerRun, ...]:
    """The layers and their times, from the events in the file of onnxruntime's profiler.

    Args:
        events: each has a ``name``, a category ``cat``, a start ``ts`` and a duration ``dur`` in microseconds, and ``args``.
        warm_up: how many runs at the beginning do not count.
    """
    windows = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
    windows = windows[warm_up:]
    times: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0] * len(windows))
    told: dict[tuple[str, str], Mapping[str, Any]] = {}
    nodes = (event for event in events if event["cat"] == "Node" and event["name"].endswith(_NODE_EVENT))
    for event in sorted(nodes, key=lambda event: event["ts"]):
        for number, (start, end) in enumerate(windows):
            if start <= event["ts"] <= end:
                key = (event["name"].removesuffix(_NODE_EVENT), event["args"].get("node_index", ""))
                times[key][number] += event["dur"] / 1000
                told.setdefault(key, event["args"])
    return tuple(
        LayerRun(name=key[0], kind=told[key]["op_name"], precision=_input_precision(told[key]), milliseconds=tuple(own))
        for key, own in times.items()
    )


def _input_precision(arguments: Mapping[str, Any]) -> str:
    # One type and shape for each tensor that the node takes.
    first = next(iter(arguments.get("input_type_shape") or ()), {})
    return next((_PRECISIONS[kind] for kind in first if kind in _PRECISIONS), "")


class OnnxRuntimeRunner(Runner):
    """A session on the CPU, and nothing else: a provider that falls back would be an error.

    It reads an input from the array that it is given, where that is contiguous, and writes outputs to new ones: on the CPU, binding
    them beforehand saves nothing that can be measured.
    """

    concurrent = True
    _endable = False

    def __init__(self, path: Path, options: LoadOptions) -> None:
        try:
            self._session: Any = _session(path, options)
        except Exception as error:
            raise EngineError(
                f"onnxruntime cannot load {path} ({first_line(error)}); build the engine again."
            ) from error
        if self._session.get_providers() != [_PROVIDER]:
            raise EngineError(f"onnxruntime runs {path} on {self._session.get_providers()} and not on the CPU.")
        self.inputs = tuple(tensor_spec(tensor) for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor_spec(tensor) for tensor in self._session.get_outputs())
        self._endable = options.run_limit > 0
        self._under_way: dict[int, Any] = {}
        """What can end the run of a thread, by the thread."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self.outputs]
        # Without a limit nobody ends a run, and what would be needed for it is spared.
        own = self._begin() if self._endable else None
        try:
            return dict(zip(names, self._session.run(names, dict(feeds), own), strict=True))
        except Exception as error:  # onnxruntime raises classes of its C++ module, without a common Python base
            raise EngineError(f"onnxruntime failed in a run ({first_line(error)}); build the engine again.") from error
        finally:
            if own is not None:
                del self._under_way[threading.get_ident()]

    def interrupt(self, thread: int) -> None:
        """Ask for the end of a thread's run, which onnxruntime looks for between two nodes, also in the graphs of loops."""
        own = self._under_way.get(thread)
        if own is not None:
            own.terminate = True

    def _begin(self) -> Any:
        import onnxruntime as ort

        own = self._under_way[threading.get_ident()] = ort.RunOptions()
        # Its answer to being ended is an exception; a line in the log besides would be said twice.
        own.log_severity_level = LOG_FATAL
        return own

    def close(self) -> None:
        self._session = None


def _session(
    path: Path, loading: LoadOptions, optimized: Path | None = None, trace: Path | None = None
) -> onnxruntime.InferenceSession:
    """A session; it writes what it made of the graph to ``optimized``, and times its nodes for a file whose name begins as ``trace``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if optimized is not None:
        options.optimized_model_filepath = utf8_path(optimized)
    if trace is not None:
        options.enable_profiling = True
        options.profile_file_prefix = utf8_path(trace)
    options.log_severity_level = LOG_ERRORS
    options.intra_op_num_threads = loading.threads_of_a_run()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if loading.spinning else "0")
    # Without VNNI it would multiply U8 by S8, whose sums saturate beyond 7 bits of weights; with this it multiplies U8 by U8, which is
    # exact, and as fast as far as 7 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(
        utf8_path(path), options, providers=[_PROVIDER], disabled_optimizers=UNWANTED_OPTIMIZERS
    )


def tensor_spec(tensor: Any) -> TensorSpec:
    """What onnxruntime says of an input or output. Raises EngineError where it holds no numbers, as text or a list."""
    if tensor.type not in _DTYPES:
        raise EngineError(
            f"The engine's {tensor.name} is a {tensor.type}, which no detector takes or gives; build the engine again."
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorSpec(tensor.name, shape, np.dtype(_DTYPES[tensor.type]))
