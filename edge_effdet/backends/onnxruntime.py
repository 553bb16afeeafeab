"""ONNX Runtime on the CPU: the embedded default. Its engine is the graph itself, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.backends.base import Available, CompileOptions, LoadOptions, TensorSpec, Unavailable, refuse_target
from edge_effdet.errors import EngineError, GraphError, first_line

if TYPE_CHECKING:
    import onnxruntime

SUFFIX = ".onnx"

UNWANTED_OPTIMIZERS = ["WeightBiasQuantization"]
"""It turns the bias of an INT8 convolution into INT32, and that lets the convolution be fused into a kernel which, without VNNI,
saturates where weights exceed 7 bits: a lite0 with weights within 127 fell from 26.4 to 16.5 AP. Rounding the bias by itself costs next to
nothing. Without it, and with ``session.x64quantprecision``, a graph of any origin is computed as it is written."""

_PROVIDER = "CPUExecutionProvider"
LOG_ERRORS = 3
_DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
}


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


def compile(graph: Graph, options: CompileOptions) -> bytes:  # noqa: A001 - the protocol's name
    """The graph's bytes, once a session has accepted them.

    Raises:
        UsageError: a target was given; this backend has none.
        GraphError: ONNX Runtime refuses the graph.
    """
    refuse_target("onnxruntime", options)
    content = graph.path.read_bytes()
    try:
        _session(graph.path, LoadOptions())
    except Exception as error:  # onnxruntime raises classes of its C++ module, without a common Python base
        raise GraphError(f"onnxruntime refuses {graph.path} ({first_line(error)}); export it again.") from error
    return content


def write_optimized(graph: Graph, path: Path) -> None:
    """Write the model that a session with the runner's options makes of a graph. ``quant.optimized_model`` reads it."""
    _session(graph.path, LoadOptions(), path)


def load(engine: Engine, options: LoadOptions | None = None) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(engine.path, options or LoadOptions())


class OnnxRuntimeRunner:
    """A session on the CPU, and nothing else: a provider that falls back would be an error.

    It reads an input from the array that it is given, where that is contiguous, and writes outputs to new ones: on the CPU, binding
    them beforehand saves nothing that can be measured.
    """

    concurrent = True

    def __init__(self, path: Path, options: LoadOptions | None = None) -> None:
        try:
            self._session: Any = _session(path, options or LoadOptions())
        except Exception as error:
            raise EngineError(
                f"onnxruntime cannot load {path} ({first_line(error)}); build the engine again."
            ) from error
        if self._session.get_providers() != [_PROVIDER]:
            raise EngineError(f"onnxruntime runs {path} on {self._session.get_providers()} and not on the CPU.")
        self.inputs = tuple(tensor_spec(tensor) for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor_spec(tensor) for tensor in self._session.get_outputs())

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [output.name for output in self.outputs]
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:  # onnxruntime raises classes of its C++ module, without a common Python base
            raise EngineError(f"onnxruntime failed in a run ({first_line(error)}); build the engine again.") from error

    def __enter__(self) -> OnnxRuntimeRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None


def _session(path: Path, loading: LoadOptions, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """A session; it writes what it made of the graph to ``optimized``."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    options.log_severity_level = LOG_ERRORS
    options.intra_op_num_threads = loading.threads_or_share()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if loading.spinning else "0")
    # Without VNNI it would multiply U8 by S8, whose sums saturate beyond 7 bits of weights; with this it multiplies U8 by U8, which is
    # exact, and as fast as far as 7 bits.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return ort.InferenceSession(str(path), options, providers=[_PROVIDER], disabled_optimizers=UNWANTED_OPTIMIZERS)


def tensor_spec(tensor: Any) -> TensorSpec:
    """What onnxruntime says of an input or output."""
    shape = tuple(size if isinstance(size, int) else -1 for size in tensor.shape)
    return TensorSpec(tensor.name, shape, np.dtype(_DTYPES[tensor.type]))
