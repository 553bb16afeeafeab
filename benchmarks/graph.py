"""Measure what the graph optimizer gives: nodes, TensorRT-RTX layers, latency, a profile, and detection from end to end.

python -m benchmarks.graph
python -m benchmarks.graph --models tests/assets/bccd_lite0.safetensors --layers --name bccd

All graphs of a model come from one network and end at the head tensors. Only the last comparison has post-processing. A tool's graph
is timed only where its outputs are those of the unoptimized graph.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.graph_subjects import DENSE, KEEP, RAW, Skipped, Subject, attempt, make_graphs, read_subject
from benchmarks.graph_tables import describe_model
from benchmarks.latency import (
    measure_matrix_rate,
    open_onnxruntime,
    open_openvino,
    positive,
    profile_operators,
    summarize_times,
    time_ways,
)
from benchmarks.machine import installed_versions, save_result
from benchmarks.peers.simplifiers import ONNXRUNTIME
from benchmarks.processes import run_module
from edge_effdet.artifacts import Detections
from edge_effdet.cli import Result, make_parser, run_verb
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.graph.counting import convolution_macs
from edge_effdet.graph.export import ExportOptions, export_network
from edge_effdet.graph.report import count_nodes

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger("edge_effdet.benchmarks.graph")

MODELS = ("tf_efficientdet_d0@512", "tf_efficientdet_lite0@320")
OPENVINO = "OpenVINO, unoptimized"
EFFDET, OURS = "effdet, DetBenchPredict in eager torch", "ours"
PEERS = ("onnxslim", "onnxsim", "onnxruntime", "openvino", "tensorrt-rtx")
PARTS = ("latency", "profile", "end-to-end")
PHOTO = (480, 640)
"""Height and width of the picture for detection from end to end."""

LARGEST_ERROR = 1e-3
"""The largest error, relative to a tensor's largest value, with which a graph is timed. Rounding in another order stays well below it,
and a wrong graph is far above it."""

SAME_PIXELS, SAME_SCORE = 0.5, 1e-3
"""How far the corners and the scores of two detections may differ where they are the same."""


def count_tool_nodes(model: onnx.ModelProto) -> dict[str, Any]:
    """Count the nodes of a graph that any tool may have written.

    ``Constant`` nodes are left out: they compute nothing, and tools differ in whether a weight is one.

    Returns:
        ``nodes``; ``silu``, the pairs of nodes that are x * sigmoid(x); ``counted``, the nodes where each such pair counts as one;
        ``foreign``, the nodes outside ONNX's own domain, which only one runtime knows; and ``kinds``, the nodes by operator.
    """
    import onnx_ir as ir

    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    silu = count_nodes(ir.from_proto(model)).silu
    names = Counter(f"{node.domain}.{node.op_type}".lstrip(".").removeprefix("ai.onnx.") for node in nodes)
    return {
        "nodes": len(nodes),
        "silu": silu,
        "counted": len(nodes) - silu,
        "foreign": sum(node.domain not in ("", "ai.onnx") for node in nodes),
        "kinds": dict(names.most_common()),
    }


def compare_counts(files: Mapping[str, Path], seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a graph: what ``count_tool_nodes`` counts, and the seconds that making the graph took."""
    import onnx

    return [
        {"graph": name, **count_tool_nodes(onnx.load_model(str(path))), "seconds_to_make": round(seconds[name], 2)}
        for name, path in files.items()
    ]


def compare_latency(files: Mapping[str, Path], images: np.ndarray, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time the ways to compute the head tensors.

    Args:
        files: what ``make_graphs`` gave. The file of onnxruntime's optimizer is left out, since each session applies that optimizer.
        images: uint8 [1, 3, H, W].
        threads: how many threads each way has.
        rounds: how many turns each way has.

    Returns:
        One row a way: its largest error against the unoptimized graph, its median and P90, and the time of our graphs as a share of
        its time. The row of a way that cannot run here, or has a larger error than ``LARGEST_ERROR``, has no times; its ``skipped``
        gives the reason.

    Raises:
        EdgeEffDetError: onnxruntime cannot run the unoptimized graph.
    """
    chosen = [(name, path, open_onnxruntime) for name, path in files.items() if name != ONNXRUNTIME]
    chosen.append((OPENVINO, files[RAW], open_openvino))
    opened = {name: attempt(lambda path=path, opener=opener: opener(path, threads)) for name, path, opener in chosen}
    skipped = {name: run.reason for name, run in opened.items() if isinstance(run, Skipped)}
    if RAW in skipped:
        raise EdgeEffDetError(
            f"onnxruntime cannot run the unoptimized graph ({skipped[RAW]}), so there is nothing to compare with."
        )
    ways = {name: run for name, run in opened.items() if not isinstance(run, Skipped)}
    expected = ways[RAW](images)
    errors = {name: largest_error(run(images), expected) for name, run in ways.items()}
    for name, error in errors.items():
        # An error that is not a number is neither larger nor smaller than the limit.
        if not error <= LARGEST_ERROR:
            skipped[name] = f"its outputs differ from the unoptimized graph's by {error:.2g}"
    timed = {name: (lambda run=run: run(images)) for name, run in ways.items() if name not in skipped}
    ours = [name for name in (KEEP, DENSE) if name in timed]
    references = {f"{name.removeprefix('ours, ')}_over_this": name for name in ours}
    rows = summarize_times(time_ways(timed, rounds), references)
    # JSON has no infinity.
    known = {name: error for name, error in errors.items() if np.isfinite(error)}
    return [
        *({**row, "largest_relative_error": known[row["way"]]} for row in rows),
        *({"way": way, "skipped": why, "largest_relative_error": known.get(way)} for way, why in skipped.items()),
    ]


def largest_error(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest error of any tensor, relative to the largest value of that tensor; infinite where a tensor is missing."""
    if set(found) != set(expected) or any(found[name].shape != values.shape for name, values in expected.items()):
        return float("inf")
    errors = [
        np.abs(found[name] - values).max() / max(np.abs(values).max(), np.finfo(np.float32).tiny)
        for name, values in expected.items()
    ]
    return float(np.max(errors))


def compare_profiles(
    files: Mapping[str, Path], images: np.ndarray, threads: int, gflops: float, work: Path
) -> list[dict[str, Any]]:
    """Profile the unoptimized graph and ours.

    Args:
        files: what ``make_graphs`` gave.
        images: uint8 [1, 3, H, W].
        threads: how many threads an operator has.
        gflops: the rate of a plain matrix product on this processor.
        work: an existing folder for the profiler's files.

    Returns:
        One row a graph: milliseconds by operator, the MACs, and the milliseconds that these would take at ``gflops``.
    """
    rows = []
    for name in (name for name in (RAW, KEEP, DENSE) if name in files):
        macs = count_macs(files[name])
        rows.append(
            {
                "graph": name,
                "operators_ms": profile_operators(files[name], images, threads, work),
                "macs": macs,
                "matrix_gflops": gflops,
                "floor_ms": 2 * macs / gflops / 1e6,
            }
        )
    return rows


def count_macs(path: Path) -> int:
    """Multiply-accumulates of the convolutions in an ONNX file, for one image, counted as the product counts them."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    model = ir.load(str(path))
    ShapeInferencePass()(model)
    return sum(convolution_macs(node) for node in model.graph if node.op_type == "Conv")


def compare_end_to_end(subject: Subject, threads: int, rounds: int, work: Path) -> dict[str, Any]:
    """Time effdet's predictor and ours, from a letterboxed picture to detections after NMS in pixels of the original.

    Both find up to 100 objects of any score in one random picture. effdet suppresses among 5000 candidates, and ours among the
    default number of the export. ``agreeing`` is the number of effdet's detections that ours finds too.
    """
    import torch

    from benchmarks.peers.effdet_predict import make_predictor
    from edge_effdet.runtime.postprocess import detections_from_outputs
    from edge_effdet.runtime.preprocess import images_to_batch, letterbox

    spec = subject.spec
    graph = export_network(subject.network, spec, {}, work / "detections.onnx", ExportOptions()).graph
    run, predict = open_onnxruntime(graph.path, threads), make_predictor(subject.network, spec)
    photo = np.random.default_rng(0).integers(0, 256, (*PHOTO, 3), np.uint8)
    canvas, scale = letterbox(photo, spec.image_size, spec.preprocess)

    def detect() -> Detections:
        outputs = run(images_to_batch([canvas]))
        boxes, scores, class_ids = (outputs[name][0] for name in ("boxes", "scores", "class_ids"))
        return detections_from_outputs(boxes, scores, class_ids, PHOTO, spec.image_size)

    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        theirs, found = predict(canvas, scale, PHOTO), detect()
        times = time_ways({EFFDET: lambda: predict(canvas, scale, PHOTO), OURS: detect}, rounds)
    finally:
        torch.set_num_threads(threads_before)
    return {
        "expected": len(theirs),
        "found": len(found),
        "agreeing": count_agreeing(theirs, found),
        "rows": summarize_times(times, {"ours_over_this": OURS}),
    }


def count_agreeing(expected: Detections, found: Detections) -> int:
    """How many of the detections ``expected`` are in ``found`` at the same place, with the same class and the same score."""
    # IoU would not do: it is not defined for a box that clipping left without an area.
    same = np.abs(expected.boxes[:, None] - found.boxes[None]).max(axis=2) <= SAME_PIXELS
    same &= expected.class_ids[:, None] == found.class_ids[None]
    same &= np.abs(expected.scores[:, None] - found.scores[None]) <= SAME_SCORE
    return int(same.any(axis=1).sum())


def compare_layers(files: Mapping[str, Path], target: str) -> list[dict[str, Any]]:
    """One row for the unoptimized graph and each of ours: what ``benchmarks.engine_layers`` counts, or why it cannot count."""
    rows = []
    for name in (name for name in (RAW, KEEP, DENSE) if name in files):
        try:
            counted = run_module("benchmarks.engine_layers", [files[name], "--target", target])
        except EdgeEffDetError as error:
            counted = {"skipped": str(error)}
        rows.append({"graph": name, **counted})
    return rows


def measure_subject(subject: Subject, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All comparisons of one model that are not skipped, by the name of the part."""
    logger.info("%s: exporting", subject.title)
    files, seconds, skipped = make_graphs(subject, work)
    result: dict[str, Any] = {
        "model": subject.spec.name,
        "image_size": list(subject.spec.image_size),
        "nodes": compare_counts(files, seconds),
        "skipped": skipped,
    }
    images = np.random.default_rng(0).integers(0, 256, (1, 3, *subject.spec.image_size), np.uint8)
    if arguments.layers:
        logger.info("%s: building engines", subject.title)
        result["layers"] = compare_layers(files, arguments.target)
    if "latency" not in arguments.skip:
        result["latency"] = compare_latency(files, images, arguments.threads, arguments.rounds)
    if "profile" not in arguments.skip:
        gflops = measure_matrix_rate(arguments.threads)
        result["profile"] = compare_profiles(files, images, arguments.threads, gflops, work)
    if "end-to-end" not in arguments.skip:
        result["end_to_end"] = compare_end_to_end(subject, arguments.threads, arguments.rounds, work)
    return result


def _run(arguments: argparse.Namespace) -> Result:
    subjects = [read_subject(text) for text in arguments.models]
    results = []
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
            results.append(measure_subject(subject, arguments, Path(folder)))
    result = {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "weights": "random, seed 0, or the checkpoint that a model names",
        "versions": installed_versions(PEERS),
        "models": results,
    }
    path = save_result("-".join(filter(None, ("graph", arguments.name))), result)
    return Result("\n\n".join([*(text for each in results for text in describe_model(each)), str(path)]), result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("benchmarks", "Measure what the graph optimizer gives.", "python -m benchmarks.graph --layers")
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(MODELS),
        metavar="M",
        help=f"NAME@SIZE with random weights, or a .safetensors (default: {' '.join(MODELS)})",
    )
    parser.add_argument("--rounds", type=positive, default=8, metavar="N", help="turns of each way (default: 8)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=positive, default=cores, metavar="N", help=f"threads of each way (default: {cores})"
    )
    parser.add_argument("--skip", nargs="+", default=[], choices=PARTS, help="parts that are not measured")
    parser.add_argument(
        "--layers", action="store_true", help="count the layers in TensorRT-RTX too, for which engines are built"
    )
    parser.add_argument(
        "--target", default="89", metavar="SM", help="the SM version of the engines (default: 89, an RTX 4090)"
    )
    parser.add_argument("--name", default="", help="the name of the result file, after graph-")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
