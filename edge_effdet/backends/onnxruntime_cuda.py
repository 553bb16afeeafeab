"""ONNX Runtime on an NVIDIA GPU. Its engine is the graph itself, byte for byte; ``pip install onnxruntime-gpu``.

Inputs and outputs are bound to device memory that is allocated once, and where the graph's batch is fixed, a run is one CUDA
graph: the kernels of the first run are recorded and launched together from then on.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.artifacts.files import utf8_path
from edge_effdet.backends.base import (
    Available,
    Compiled,
    CompileOptions,
    LoadOptions,
    Runner,
    TensorSpec,
    Traits,
    Unavailable,
    refuse_target,
)
from edge_effdet.backends.onnx_file import require_own_content
from edge_effdet.backends.onnxruntime import LOG_ERRORS, tensor_spec
from edge_effdet.errors import EngineError, GraphError, first_line

TRAITS = Traits(on_cpu=False)
SUFFIX = ".onnx"

PROVIDER = "CUDAExecutionProvider"

_COMPUTE_CAPABILITY = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of CUDA's driver API."""


def probe() -> Available | Unavailable:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Unavailable(
            f"the Python package onnxruntime cannot be imported ({error})", "run pip install 'edge-effdet[ort-cuda]'"
        )
    if PROVIDER not in ort.get_available_providers():
        return Unavailable(
            "this onnxruntime is the one for CPUs",
            "run pip uninstall onnxruntime and then pip install 'edge-effdet[ort-cuda]'",
        )
    return Available(ort.__version__, _gpu_name() or "CUDA")


def _gpu_name() -> str | None:
    """The name and the compute capability of the first GPU, by the driver; None where it cannot be asked."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    name, device = ctypes.create_string_buffer(256), ctypes.c_int()
    major, minor = ctypes.c_int(), ctypes.c_int()
    answers = (
        driver.cuInit(0),
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY[0], device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY[1], device),
    )
    return None if any(answers) else f"{name.value.decode(errors='replace')} (SM {major.value}{minor.value})"


def compile(graph: Graph, options: CompileOptions) -> Compiled:  # noqa: A001 - the protocol's name
    """The graph's bytes, once a session on the GPU has accepted them.

    Raises:
        UsageError: a target was given; this backend has none.
        GraphError: ONNX Runtime refuses the graph, or does not run it on the GPU.
    """
    refuse_target("onnxruntime-cuda", options)
    content = graph.path.read_bytes()
    try:
        open_session(graph.path, False)
    except Exception as error:  # onnxruntime raises classes of its C++ module, without a common Python base
        raise GraphError(f"onnxruntime does not run {graph.path} on CUDA ({first_line(error)}).") from error
    return Compiled(content)


def load(engine: Engine, options: LoadOptions) -> BoundRunner:
    """A runner on the GPU. Raises EngineError where onnxruntime or ``onnx_file.require_own_content`` refuses the engine, or onnxruntime would run it
    on the CPU."""
    require_own_content(engine)
    try:
        session = open_session(engine.path, False)
        fixed = all(size > 0 for tensor in session.get_inputs() for size in tensor_spec(tensor).shape)
        if options.cuda_graphs and fixed:
            # One that cannot be captured, with a node on the CPU, runs as it is.
            session = _captured(engine.path) or session
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(
            f"onnxruntime cannot load {engine.path} ({first_line(error)}); build the engine again."
        ) from error
    return BoundRunner(session, "cuda")


def profile(engine: Engine, options: LoadOptions, feeds: Mapping[str, np.ndarray], runs: int) -> Unavailable:
    """Why there is no profile: onnxruntime's profiler times a node on the host's clock, and on a GPU a node only puts its work on the stream.

    A build with ``--enable_cuda_profiling`` adds the times of the kernels by CUPTI, and whether a package was built so it does not say.
    """
    return Unavailable(
        "onnxruntime's profiler tells how long the CPU takes to start a layer on the GPU, and not how long the layer runs there",
        "use NVIDIA's Nsight Systems",
    )


def open_session(path: Path, cuda_graph: bool) -> Any:
    """A session that is verified to be on the GPU: onnxruntime itself would fall back to the CPU with a line in its log.

    Raises:
        EngineError: it fell back.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = LOG_ERRORS
    # Precision is what the graph says.
    provider = {"use_tf32": "0", "enable_cuda_graph": "1" if cuda_graph else "0"}
    try:
        session = ort.InferenceSession(utf8_path(path), options, providers=[(PROVIDER, provider)])
    except UserWarning as warning:
        raise EngineError(f"onnxruntime does not run {path} on CUDA ({first_line(warning)}).") from warning
    if session.get_providers()[0] != PROVIDER:
        raise EngineError(
            f"onnxruntime fell back to {session.get_providers()[0]} for {path}, which is an error here: its CUDA provider could "
            "not start; check the driver with nvidia-smi, and that CUDA and cuDNN are of the versions it was built for."
        )
    return session


class BoundRunner(Runner):
    """A session whose inputs and outputs stay in the memory of a device, allocated once for each batch size."""

    def __init__(self, session: Any, device: str) -> None:
        """Take a session and where its memory is: ``cuda``, or ``cpu``, where the same code can be tested."""
        self._session: Any = session
        self._device = device
        self.inputs = tuple(tensor_spec(tensor) for tensor in session.get_inputs())
        self.outputs = tuple(tensor_spec(tensor) for tensor in session.get_outputs())
        self._bound: dict[int, tuple[Any, dict[str, Any], dict[str, Any]]] = {}

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        batch = len(feeds[self.inputs[0].name])
        try:
            if batch not in self._bound:
                self._bound[batch] = self._bind(batch)
            binding, inputs, outputs = self._bound[batch]
            for name, value in inputs.items():
                value.update_inplace(np.ascontiguousarray(feeds[name]))
            self._session.run_with_iobinding(binding)
            # From the GPU this copies; on the CPU it would be the memory of the next run.
            return {name: np.array(value.numpy()) for name, value in outputs.items()}
        except Exception as error:  # onnxruntime raises classes of its C++ module, without a common Python base
            raise EngineError(f"onnxruntime failed in a run ({first_line(error)}); build the engine again.") from error

    def _bind(self, batch: int) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        import onnxruntime as ort

        def allocate(spec: TensorSpec) -> Any:
            shape = [batch if size < 0 else size for size in spec.shape]
            return ort.OrtValue.ortvalue_from_shape_and_type(shape, spec.dtype, self._device, 0)

        binding = self._session.io_binding()
        inputs = {spec.name: allocate(spec) for spec in self.inputs}
        outputs = {spec.name: allocate(spec) for spec in self.outputs}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        return binding, inputs, outputs

    def close(self) -> None:
        self._bound.clear()
        self._session = None


def _captured(path: Path) -> Any:
    """A session that has recorded its CUDA graph, or None where that is not possible."""
    try:
        session = open_session(path, True)
    except EngineError:
        raise
    except Exception:  # of onnxruntime's C++ module: a node on the CPU
        return None
    try:
        runner = BoundRunner(session, "cuda")
        feeds = {spec.name: np.zeros(spec.shape, spec.dtype) for spec in runner.inputs}
        for _ in range(2):
            runner.run(feeds)
    except Exception:  # a kernel that cannot be captured
        return None
    return session
