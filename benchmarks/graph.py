"""What the graph optimizer gives: nodes, TensorRT-RTX layers, latency, where the time goes, and detection from end to end.

python -m benchmarks.graph
python -m benchmarks.graph --models tests/assets/bccd_lite0.safetensors --layers --name bccd

Every graph of a model comes from one network and ends at the head tensors; the last comparison alone has post-processing.
What a tool writes is timed only where its outputs are those of the unoptimized graph.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
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
    time_in_turns,
)
from benchmarks.machine import save_result
from benchmarks.peers.simplifiers import ONNXRUNTIME
from benchmarks.training import run_module
from edge_effdet.artifacts import Detections
from edge_effdet.cli import Result, make_parser, run_verb
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.graph.export import ExportOptions, export_network

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger("edge_effdet.benchmarks.graph")

MODELS = ("tf_efficientdet_d0@512", "tf_efficientdet_lite0@320")
OPENVINO = "OpenVINO, unoptimized"
EFFDET, OURS = "effdet, DetBenchPredict in eager torch", "ours"
PEERS = ("onnxslim", "onnxsim", "onnxruntime", "openvino", "tensorrt-rtx")
PARTS = ("latency", "profile", "end-to-end")
PHOTO = (480, 640)
"""Height and width of the picture that is detected in."""

LARGEST_ERROR = 1e-3
"""Relative to a tensor's largest value. Rounding in another order stays well below; a wrong graph is far above."""

SAME_PIXELS, SAME_SCORE = 0.5, 1e-3


@dataclass(frozen=True, slots=True)
class NodeCount:
    """Nodes of a graph.

    Attributes:
        nodes: all but ``Constant``, which computes nothing; tools differ in whether a weight is one.
        silu: pairs of Sigmoid and Mul that are x * sigmoid(x).
        foreign: those outside ONNX's own domain, which one runtime alone knows.
        kinds: by operator.
    """

    nodes: int
    silu: int
    foreign: int
    kinds: Mapping[str, int]

    @property
    def counted(self) -> int:
        """With a SiLU as one node."""
        return self.nodes - self.silu

    def to_dict(self) -> dict[str, Any]:
        return {
            "nodes": self.nodes,
            "silu": self.silu,
            "counted": self.counted,
            "foreign": self.foreign,
            "kinds": dict(self.kinds),
        }


def count_nodes(model: onnx.ModelProto) -> NodeCount:
    """Count a graph's nodes. A gate, sigmoid(y) * x as in squeeze and excitation, stays two."""
    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    sigmoids = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Sigmoid"}
    uses = Counter(value for node in nodes for value in node.input)
    # A sigmoid that something else reads too stays a node of its own.
    silu = sum(
        any(sigmoids.get(gate) == value and uses[gate] == 1 for gate, value in (node.input, reversed(node.input)))
        for node in nodes
        if node.op_type == "Mul"
    )
    names = Counter(f"{node.domain}.{node.op_type}".lstrip(".").removeprefix("ai.onnx.") for node in nodes)
    foreign = sum(node.domain not in ("", "ai.onnx") for node in nodes)
    return NodeCount(len(nodes), silu, foreign, dict(names.most_common()))


def compare_counts(files: Mapping[str, Path], seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a graph."""
    import onnx

    return [
        {"graph": name, **count_nodes(onnx.load_model(str(path))).to_dict(), "seconds_to_make": round(seconds[name], 2)}
        for name, path in files.items()
    ]


def compare_latency(files: Mapping[str, Path], images: np.ndarray, threads: int, rounds: int) -> list[dict[str, Any]]:
    """One row a way to run the head tensors: error against the unoptimized graph, median, P90, ours as a share of it.

    A way that cannot run here, or gives other numbers, has a ``skipped`` with the reason and no times.

    Args:
        files: of ``make_graphs``; what onnxruntime's optimizer wrote is left out, since each session applies it.
        images: uint8 [1, 3, H, W].
        threads: of each way.
        rounds: turns of each way.
    """
    chosen = [(name, path, open_onnxruntime) for name, path in files.items() if name != ONNXRUNTIME]
    chosen.append((OPENVINO, files[RAW], open_openvino))
    opened = {name: attempt(lambda path=path, opener=opener: opener(path, threads)) for name, path, opener in chosen}
    skipped = {name: run.reason for name, run in opened.items() if isinstance(run, Skipped)}
    if RAW in skipped:
        raise EdgeEffDetError(
            f"onnxruntime cannot run the unoptimized graph ({skipped[RAW]}), so nothing can be compared."
        )
    ways = {name: run for name, run in opened.items() if not isinstance(run, Skipped)}
    expected = ways[RAW](images)
    errors = {name: largest_error(run(images), expected) for name, run in ways.items()}
    for name, error in errors.items():
        # Not a number is neither larger nor smaller than the limit.
        if not error <= LARGEST_ERROR:
            skipped[name] = f"its outputs differ from the unoptimized graph's by {error:.2g}"
    timed = {name: (lambda run=run: run(images)) for name, run in ways.items() if name not in skipped}
    ours = [name for name in (KEEP, DENSE) if name in timed]
    references = {f"{name.removeprefix('ours, ')}_over_this": name for name in ours}
    rows = summarize_times(time_in_turns(timed, rounds), references)
    # JSON has no infinity.
    known = {name: error for name, error in errors.items() if np.isfinite(error)}
    return [
        *({**row, "largest_relative_error": known[row["way"]]} for row in rows),
        *({"way": way, "skipped": why, "largest_relative_error": known.get(way)} for way, why in skipped.items()),
    ]


def largest_error(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest error of any tensor, relative to the largest value of that tensor; infinite where one is missing."""
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
    """One row a graph of unoptimized and ours: milliseconds by operator, MACs, and the time that these take at best.

    At best is at ``gflops``, what a plain matrix product reaches here.
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
    """Multiply-accumulates of a graph's convolutions, for one image."""
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    from edge_effdet.quant.proof import convolution_macs

    model = ir.load(str(path))
    ShapeInferencePass()(model)
    return sum(convolution_macs(node) for node in model.graph if node.op_type == "Conv")


def compare_end_to_end(subject: Subject, threads: int, rounds: int, work: Path) -> dict[str, Any]:
    """From a letterboxed picture to detections after NMS, in pixels of the original: effdet's predictor and ours.

    Both find up to 100 objects of any score in one random picture. effdet suppresses among 5000 candidates and ours among
    the export's default; ``agreeing`` says how many of effdet's are found by ours too.
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
        times = time_in_turns({EFFDET: lambda: predict(canvas, scale, PHOTO), OURS: detect}, rounds)
    finally:
        torch.set_num_threads(threads_before)
    return {
        "expected": len(theirs),
        "found": len(found),
        "agreeing": count_agreeing(theirs, found),
        "rows": summarize_times(times, {"ours_over_this": OURS}),
    }


def count_agreeing(expected: Detections, found: Detections) -> int:
    """How many of ``expected`` are found at the same place, of the same class and with the same score."""
    # Not by IoU: a box that clipping left without an area has none.
    same = np.abs(expected.boxes[:, None] - found.boxes[None]).max(axis=2) <= SAME_PIXELS
    same &= expected.class_ids[:, None] == found.class_ids[None]
    same &= np.abs(expected.scores[:, None] - found.scores[None]) <= SAME_SCORE
    return int(same.any(axis=1).sum())


def compare_layers(files: Mapping[str, Path], target: str) -> list[dict[str, Any]]:
    """One row a graph of unoptimized and ours: what ``benchmarks.engine_layers`` counts, or why it could not."""
    rows = []
    for name in (name for name in (RAW, KEEP, DENSE) if name in files):
        try:
            counted = run_module(["benchmarks.engine_layers", str(files[name]), "--target", target])
        except EdgeEffDetError as error:
            counted = {"skipped": str(error)}
        rows.append({"graph": name, **counted})
    return rows


def measure_subject(subject: Subject, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All comparisons of one model that were not skipped; the keys are those of the parts."""
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
        "versions": {name: found for name in PEERS if (found := _version(name))},
        "models": results,
    }
    path = save_result("-".join(filter(None, ("graph", arguments.name))), result)
    return Result("\n\n".join([*(text for each in results for text in describe_model(each)), str(path)]), result)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("benchmarks", "What the graph optimizer gives.", "python -m benchmarks.graph --layers")
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(MODELS),
        metavar="M",
        help=f"NAME@SIZE with random weights, or a .safetensors (default: {' '.join(MODELS)})",
    )
    parser.add_argument("--rounds", type=positive, default=8, metavar="N", help="turns of each way (default: 8)")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--threads", type=positive, default=cores, metavar="N", help=f"of each way (default: {cores})")
    parser.add_argument("--skip", nargs="+", default=[], choices=PARTS, help="what not to measure")
    parser.add_argument(
        "--layers", action="store_true", help="count the layers in TensorRT-RTX too, which builds engines"
    )
    parser.add_argument("--target", default="89", metavar="SM", help="of the engines (default: 89, an RTX 4090)")
    parser.add_argument("--name", default="", help="of the result file, after graph-")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
