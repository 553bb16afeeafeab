"""Measure how surely the golden check tells an engine that saturates from an exact one, on photographs and on drawn pictures.

python -m benchmarks.golden --checkpoint tests/assets/bccd_lite0.safetensors --data ../shared/data/bccd --name bccd

On a processor without VNNI, OpenVINO saturates with weight codes up to 127 and is exact with codes up to 63, so both cases are measured.
On any other processor both are exact. A distance is that of three pictures together (``agreement.detection_distance``). The tolerance of
the check has to lie between the largest distance of an exact engine and the smallest one of an engine that saturates.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.accuracy import calibration_images, export_graphs
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.artifacts import Detections, Graph
from edge_effdet.backends.arithmetic import EXACT_EVERYWHERE, FULL_RANGE, int8_arithmetic
from edge_effdet.backends.base import CompileOptions, load_runner
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.building.engine import compile_engine
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.data.base import readable_images
from edge_effdet.evaluation.accuracy import find_in_graph, graph_as_engine
from edge_effdet.quant.stage import QuantizeOptions, quantize_on_images
from edge_effdet.runtime.agreement import TOLERANCES, detection_distance, find_best
from edge_effdet.runtime.golden import PICTURES, draw_pictures, make_golden, require_same_results
from edge_effdet.runtime.preprocess import letterbox

LOADS = 7
GROUPS = 8
"""How many groups of ``PICTURES`` pictures are measured."""


def distances(one: Sequence[Detections], other: Sequence[Detections]) -> list[float]:
    """The distance between two lists of detections for each group of pictures."""
    return [
        detection_distance(one[start : start + PICTURES], other[start : start + PICTURES])
        for start in range(0, len(one) - PICTURES + 1, PICTURES)
    ]


def measure(graph: Graph, quantized: dict[int, Graph], pictures: dict[str, list[np.ndarray]]) -> list[dict[str, Any]]:
    """One row a kind of pictures and a largest weight code: the distances between FP32, exact INT8 and OpenVINO."""
    rows = []
    for kind, images in pictures.items():
        reference = find_in_graph(graph, images)
        for code, each in quantized.items():
            exact = find_in_graph(each, images)
            with load_runner(replace(graph_as_engine(each), backend="openvino")) as runner:
                found = [find_best(runner, graph.spec, image) for image in images]
            saturates = code > int8_arithmetic("openvino").exact_weight_codes
            rows.append(
                {
                    "pictures": kind,
                    "weight_codes": code,
                    "saturates": saturates,
                    "exact_from_fp32": distances(reference, exact),
                    "openvino_from_fp32": distances(reference, found),
                    "openvino_from_exact": distances(exact, found),
                }
            )
    return rows


def time_check(graph: Graph, images: Sequence[np.ndarray], folder: Path) -> dict[str, float]:
    """Milliseconds that the check adds to a load by OpenVINO on another machine: to the first load and to later ones, medians of
    ``LOADS`` loads."""
    engine = compile_engine(graph, "openvino", CompileOptions(), folder / "moved.int8.onnx")
    elsewhere = replace(machine_fingerprint("openvino"), instructions=("avx2", "avx512_vnni"))
    times: dict[str, list[float]] = {"first": [], "later": []}
    with load_runner(engine) as runner, patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache")):
        golden = make_golden(runner, graph.spec, images, "pictures", "int8", elsewhere)
        engine = replace(engine, record=replace(engine.require_record(), golden=golden))
        for _ in range(LOADS):
            shutil.rmtree(folder / "cache", ignore_errors=True)
            for name in times:
                started = time.perf_counter()
                require_same_results(runner, engine)
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: statistics.median(each) for name, each in times.items()}


def _run(arguments: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        work = Path(folder)
        graph = export_graphs(arguments.checkpoint, work)
        images = calibration_images(arguments.data.resolve(), graph, 64)
        quantized = {
            code: quantize_on_images(
                graph, images, QuantizeOptions(weight_codes=code, keep_high=arguments.keep_high), work / f"{code}.onnx"
            )
            for code in (EXACT_EVERYWHERE, FULL_RANGE)
        }
        samples = images.first(GROUPS * PICTURES).samples
        spec = graph.spec
        pictures = {
            "photographs": [
                letterbox(image, spec.image_size, spec.preprocess)[0] for _, image in readable_images(samples)
            ],
            "drawn": draw_pictures(spec.image_size, GROUPS * PICTURES),
        }
        rows = measure(graph, quantized, pictures)
        check_ms = time_check(quantized[EXACT_EVERYWHERE], pictures["photographs"][:PICTURES], work)
    result = {
        "checkpoint_sha256": graph.parents["checkpoint"],
        "tolerance": TOLERANCES["int8"],
        "rows": rows,
        "check_ms": check_ms,
    }
    saved = save_result("golden", result, arguments.name)
    header = ("pictures", "weight codes", "saturates", "exact to FP32", "OpenVINO to FP32", "OpenVINO to exact")
    lines = [header, *(_cells(row) for row in rows)]
    added = f"the check adds {check_ms['first']:.0f} ms to the first load and {check_ms['later']:.1f} ms to later ones"
    return Result(f"{table(lines)}\n\n{added}\n\n{saved}", result)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    spans = (
        f"{min(row[key]):.3f} to {max(row[key]):.3f}"
        for key in ("exact_from_fp32", "openvino_from_fp32", "openvino_from_exact")
    )
    return row["pictures"], str(row["weight_codes"]), "yes" if row["saturates"] else "no", *spans


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "golden",
        "Measure how surely the golden check tells engines that saturate from exact ones.",
        "--checkpoint tests/assets/bccd_lite0.safetensors --data bccd --name bccd",
        checkpoint="the model",
        data="the data set that calibrates and is looked at",
        name="golden",
        required=("checkpoint", "data"),
    )
    parser.add_argument(
        "--keep-high", default="", metavar="P", help="patterns of convolutions that stay in high precision"
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
