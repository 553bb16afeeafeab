"""Measure what calibration costs in time and memory: ours by each method, plain FP32 inference of the same images, and ModelOpt.

python -m benchmarks.calibration --checkpoint tests/assets/bccd_lite0.safetensors --data bccd --images 200 --name bccd

Each way runs in a process of its own, since memory that was taken once is not given back. It also measures what looking at a part of
the activations changes: the largest and the median relative change of a range against looking at all of them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy import calibration_images, export_graphs
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.processes import cost_of, run_module
from edge_effdet.artifacts import Graph
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.graph.model import load_graph, load_model
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.int8 import make_recipe
from edge_effdet.quant.options import Int8Options
from edge_effdet.quant.ranges import RANGE_METHODS
from edge_effdet.quant.statistics import as_input, input_tensors, open_session
from edge_effdet.quant.table import measure_table

PLAIN, MODELOPT = "plain FP32 inference", "ModelOpt"


def ranges(graph: Graph, images: CalibrationImages, method: str, sampled: int | None = None) -> dict[str, float]:
    """The ranges of all tensors that convolutions take, by name."""
    import onnx_ir as ir

    model = load_model(graph.path)
    names = [node.name for node in model.graph.node if node.op_type == "Conv"]
    tensors = list(dict.fromkeys(input_tensors(ir.from_proto(model), names).values()))
    extra = {} if sampled is None else {"sampled": sampled}
    return dict(measure_table(graph, model, images, tensors, method, False, **extra).ranges)


def run_one(way: str, graph: Graph, float_graph: Path, images: CalibrationImages) -> dict[str, Any]:
    """The seconds and memory of one way, without loading packages and without reading the first images."""
    ways: dict[str, Callable[[], object]] = {
        **{f"ranges, {method}": lambda method=method: ranges(graph, images, method) for method in RANGE_METHODS},
        "ranges and weights, the default": lambda: make_recipe(graph, images, Int8Options()),
    }
    if way == PLAIN:
        model = load_model(graph.path)
        session = open_session(model)
        ways[PLAIN] = lambda: [session.run(None, {"images": as_input(model, image)}) for image in images]
    if way.startswith(MODELOPT):
        from benchmarks.peers import modelopt_defaults

        def call() -> None:
            pixels = np.concatenate(list(images)).astype(np.float32)
            with tempfile.TemporaryDirectory() as folder:
                modelopt_defaults.quantize(float_graph, pixels, Path(folder) / "x.onnx", way.split(", ")[1])

        ways[way] = call
    list(images.first(2))
    return {"way": way, "images": len(images), **cost_of(ways[way])}


def sampling_effect(graph: Graph, images: CalibrationImages) -> list[dict[str, Any]]:
    """One row a method: how far the ranges from a part of the activations are from the ranges from all of them."""
    rows = []
    for method in ("percentile", "entropy", "mse"):
        part, whole = ranges(graph, images, method), ranges(graph, images, method, 0)
        changes = [abs(part[name] / whole[name] - 1) for name in whole]
        rows.append({"method": method, "median": float(np.median(changes)), "largest": float(np.max(changes))})
    return rows


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.one:
        graph = load_graph(arguments.graph)
        images = calibration_images(arguments.data, graph, arguments.images)
        return Result("", run_one(arguments.one, graph, arguments.graph.with_name("float32.onnx"), images))
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        graph = export_graphs(arguments.checkpoint, Path(folder))
        ours = [PLAIN, *(f"ranges, {method}" for method in RANGE_METHODS), "ranges and weights, the default"]
        counts = [(way, arguments.images) for way in ours]
        counts += [(f"{MODELOPT}, {method}", min(64, arguments.images)) for method in ("max", "entropy")]
        shared = ["--graph", graph.path, "--data", arguments.data.resolve()]
        rows = [
            run_module("benchmarks.calibration", ["--one", way, "--images", count, *shared]) for way, count in counts
        ]
        effect = sampling_effect(graph, calibration_images(arguments.data, graph, 16))
    result = {"rows": rows, "sampling": effect}
    saved = save_result("calibration", result, arguments.name)
    plain = rows[0]["seconds"]
    shown = [
        (
            row["way"],
            str(row["images"]),
            f"{row['seconds']:.1f} s",
            f"{row['seconds'] / plain:.1f}",
            f"{row['peak_mb_over_idle']} MB",
        )
        for row in rows
    ]
    sampling = [(row["method"], f"{100 * row['median']:.2f} %", f"{100 * row['largest']:.2f} %") for row in effect]
    text = table([("way", "images", "time", "of plain", "peak memory over idle"), *shown])
    text += "\n\n" + table([("part against all of the activations", "median change", "largest"), *sampling])
    return Result(f"{text}\n\n{saved}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "calibration",
        "Measure what calibration costs.",
        "--checkpoint tests/assets/bccd_lite0.safetensors --data bccd --images 200 --name bccd",
        checkpoint="the model whose graph is calibrated",
        data="the data set whose split calibration, or train, is used",
        name="calibration",
        required=("data",),
    )
    parser.add_argument(
        "--images",
        type=int,
        default=256,
        metavar="N",
        help="how many images; ModelOpt gets 64 at the most (default: 256)",
    )
    parser.add_argument("--one", metavar="WAY", help=argparse.SUPPRESS)
    parser.add_argument("--graph", type=Path, help=argparse.SUPPRESS)
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
