"""The ways from pictures to detections that the GPU check compares: onnxruntime on CUDA, TensorRT and TensorRT-RTX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graph_subjects import Skipped
from edge_effdet.artifacts import Engine, Graph, file_sha256
from edge_effdet.backends import onnxruntime_cuda
from edge_effdet.backends.base import Available, CompileOptions, LoadOptions, Unavailable
from edge_effdet.backends.tensorrt import builder as tensorrt
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.backends.tensorrt.library import Flavor
from edge_effdet.backends.tensorrt.runner import TensorRTRunner
from edge_effdet.graph.rules.efficient_nms import attach_efficient_nms

FLAVORS: Mapping[str, Flavor] = {"tensorrt": tensorrt.FLAVOR, "tensorrt-rtx": tensorrt_rtx.FLAVOR}


@dataclass(frozen=True, slots=True)
class Way:
    """One way to detect, ready to run.

    Attributes:
        call: takes uint8 [B, 3, H, W] and gives boxes, scores and class_ids, all on the host.
        device_ms: gives the milliseconds of the network on the GPU in the last call, by events; None where they are unknown.
        close: frees what the way holds.
        suppresses: whether it suppresses overlapping boxes, which otherwise remains to be done on the host.
    """

    call: Callable[[np.ndarray], Mapping[str, np.ndarray]]
    device_ms: Callable[[], float | None]
    close: Callable[[], None]
    suppresses: bool = False


def find_onnxruntime_cuda() -> str | Skipped:
    """The version of onnxruntime where it can use CUDA, or why it cannot."""
    answer = onnxruntime_cuda.probe()
    return answer.version if isinstance(answer, Available) else Skipped(f"{answer.reason}; {answer.fix}")


def open_onnxruntime_cuda(path: Path, cuda_graph: bool) -> Way:
    """Open a graph in onnxruntime on CUDA, as the backend runs it.

    Raises:
        EngineError: the session fell back to the CPU.
    """
    runner = onnxruntime_cuda.BoundRunner(onnxruntime_cuda.open_session(path, cuda_graph), "cuda")
    return Way(lambda images: runner.run({"images": images}), lambda: None, lambda: runner.close())


def probe_flavor_here(name: str) -> tuple[Flavor, dict[str, Any]] | Skipped:
    """A flavor that builds for this GPU, and what its probe says, or why it cannot be tried.

    TensorRT-RTX is tried on a GPU that its support matrix lacks too: without a target it builds for the GPU that it finds.
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
    """Open an engine of one batch size, which is built beside the graph unless it is there already.

    Raises:
        EdgeEffDetError: the flavor refuses the graph, the GPU or the engine; the message holds what it said.
    """
    if suppresses:
        graph = attach_efficient_nms(graph, graph.path.with_suffix(".efficientnms.onnx"))
    path = graph.path.with_suffix(f".{name}.batch{batch}.engine")
    if not path.is_file():
        path.write_bytes(tensorrt.compile_graph(flavor, graph, CompileOptions(batch_sizes=(batch,))).content)
    engine = Engine(path, graph.spec, name, graph.precision, file_sha256(path))
    runner = TensorRTRunner(flavor, engine, LoadOptions(parallel_runs=1, cuda_graphs=cuda_graphs, timed=True))
    return Way(lambda images: runner.run({"images": images}), lambda: runner.last_device_ms, runner.close, suppresses)
