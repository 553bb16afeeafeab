"""The backends of the GPU check as ways from pictures to detections: onnxruntime on CUDA, TensorRT, TensorRT-RTX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graph_subjects import Skipped
from edge_effdet.artifacts import Engine, Graph, file_sha256
from edge_effdet.backends import tensorrt, tensorrt_rtx
from edge_effdet.backends.base import Available, CompileOptions, Unavailable
from edge_effdet.backends.tensorrt_engine import RunnerOptions
from edge_effdet.backends.tensorrt_library import Flavor
from edge_effdet.backends.tensorrt_runner import TensorRTRunner
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.graph.efficient_nms import attach_efficient_nms

FLAVORS: Mapping[str, Flavor] = {"tensorrt": tensorrt.FLAVOR, "tensorrt-rtx": tensorrt_rtx.FLAVOR}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to detect, ready to run.

    Attributes:
        call: from uint8 [B, 3, H, W] to boxes, scores and class_ids, all on the host.
        device_ms: milliseconds of the network on the GPU in the last call, by events; None where it cannot be told.
        close: frees what it holds.
        suppresses: whether overlapping boxes are suppressed in it, and are not still to be on the host.
    """

    call: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    device_ms: Callable[[], float | None]
    close: Callable[[], None]
    suppresses: bool = False


def find_onnxruntime_cuda() -> str | Skipped:
    """onnxruntime's version where it has CUDA, or why there is none."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        return Skipped(f"onnxruntime cannot be imported ({error})")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return Skipped(
            f"this onnxruntime {ort.__version__} is a build without CUDA; in an environment of its own, "
            "pip install onnxruntime-gpu"
        )
    return ort.__version__


def open_onnxruntime_cuda(path: Path, batch: int, cuda_graph: bool) -> Way:
    """A graph in onnxruntime on CUDA, its input and outputs bound to memory of the GPU.

    Raises:
        EdgeEffDetError: the session fell back to the CPU.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    provider = ("CUDAExecutionProvider", {"device_id": 0, "enable_cuda_graph": "1" if cuda_graph else "0"})
    session = ort.InferenceSession(str(path), options, providers=[provider, "CPUExecutionProvider"])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise EdgeEffDetError("onnxruntime fell back to the CPU: its CUDA libraries do not load here.")
    (taken,) = session.get_inputs()
    pixels = ort.OrtValue.ortvalue_from_numpy(np.zeros((batch, *taken.shape[1:]), np.uint8), "cuda", 0)
    dtypes = {"tensor(float)": np.float32, "tensor(int32)": np.int32}
    results = {
        output.name: ort.OrtValue.ortvalue_from_shape_and_type(
            [batch, *output.shape[1:]], dtypes[output.type], "cuda", 0
        )
        for output in session.get_outputs()
    }
    binding = session.io_binding()
    binding.bind_ortvalue_input(taken.name, pixels)
    for name, value in results.items():
        binding.bind_ortvalue_output(name, value)

    def call(images: np.ndarray) -> dict[str, np.ndarray]:
        pixels.update_inplace(images)
        session.run_with_iobinding(binding)
        return {name: value.numpy() for name, value in results.items()}

    return Way(call, lambda: None, lambda: None)


def probe_flavor_here(name: str) -> tuple[Flavor, dict[str, Any]] | Skipped:
    """A flavor set to build for this GPU, and what its probe says; or why it cannot be tried.

    TensorRT-RTX is tried on a GPU that its support matrix lacks, too: it is told no target and builds for the GPU that is there.
    """
    flavor = FLAVORS[name]
    answer = tensorrt.probe_flavor(flavor)
    if isinstance(answer, Unavailable):
        return Skipped(f"{answer.reason}; {answer.fix}")
    assert isinstance(answer, Available)
    said = {"version": answer.version, "device": answer.device, "runs_here": answer.runs_here}
    return dataclasses.replace(flavor, default_target=""), said


def open_tensorrt(
    flavor: Flavor, graph: Graph, name: str, batch: int, cuda_graphs: bool, suppresses: bool = False
) -> Way:
    """An engine of one batch size, built beside the graph unless it is there already; with EfficientNMS in it, or without.

    Raises:
        EdgeEffDetError: the flavor refuses the graph, the GPU or the engine; the message holds what it said.
    """
    if suppresses:
        graph = attach_efficient_nms(graph, graph.path.with_suffix(".efficientnms.onnx"))
    path = graph.path.with_suffix(f".{name}.batch{batch}.engine")
    if not path.is_file():
        path.write_bytes(tensorrt.compile_graph(flavor, graph, CompileOptions(batch_sizes=(batch, batch, batch))))
    engine = Engine(path, graph.spec, name, graph.precision, {"engine_sha256": file_sha256(path)})
    runner = TensorRTRunner(flavor, engine, RunnerOptions(contexts=1, cuda_graphs=cuda_graphs, timed=True))
    return Way(lambda images: runner.run({"images": images}), lambda: runner.last_device_ms, runner.close, suppresses)
