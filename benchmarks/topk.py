"""Compare two ways to choose the best pairs of an anchor and a class, in the whole graph: in two steps, and by one sort of all pairs.

python -m benchmarks.topk
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.graph_subjects import Skipped, Subject, attempt, read_subject
from benchmarks.latency import Run, open_onnxruntime, open_openvino, summarize_times, time_ways
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.graph.export import ExportOptions, export_network
from edge_effdet.models import detector

logger = logging.getLogger("edge_effdet.benchmarks.topk")

MODELS = ("tf_efficientdet_lite0@320", "tf_efficientdet_d0@512", "tests/assets/bccd_lite0.safetensors")
STEPS = {"one step": float("inf"), "two steps": 0.0}
"""The values of ``detector.TWO_STEPS_FROM`` with which the graph never has two steps, and always has two."""

OPENERS: dict[str, Callable[[Path, int], Run]] = {
    "onnxruntime": open_onnxruntime,
    "OpenVINO": open_openvino,
    "OpenVINO, BF16": lambda path, threads: open_openvino(path, threads, "bf16"),
}


def measure_subject(subject: Subject, threads: int, rounds: int, work: Path) -> list[dict[str, Any]]:
    """One row a runtime and number of steps, where ``one_over_this`` above 1 means that the row is faster than one step."""
    images = np.random.default_rng(0).integers(0, 256, (1, 3, *subject.spec.image_size), np.uint8)
    rows, files = [], {}
    for name, factor in STEPS.items():
        files[name] = work / f"{name}.onnx"
        with patch.object(detector, "TWO_STEPS_FROM", factor):
            export_network(subject.network, subject.spec, {}, files[name], ExportOptions())
    for runtime, opener in OPENERS.items():
        runs = attempt(lambda opener=opener: {name: opener(path, threads) for name, path in files.items()})
        if isinstance(runs, Skipped):
            logger.warning("%s was left out: %s", runtime, runs.reason)
            continue
        times = time_ways({name: (lambda run=run: run(images)) for name, run in runs.items()}, rounds)
        own = summarize_times(times, {"one_over_this": "one step"})
        rows += [{"model": subject.title, "runtime": runtime, **row} for row in own]
    return rows


def _run(arguments: argparse.Namespace) -> Result:
    rows: list[dict[str, Any]] = []
    for text in arguments.models:
        with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
            rows += measure_subject(read_subject(text), arguments.threads, arguments.rounds, Path(folder))
    path = save_result("topk", {"threads": arguments.threads, "rounds": arguments.rounds, "rows": rows})
    cells = [
        (row["model"], row["runtime"], row["way"], f"{row['median_ms']:.1f} ms", f"{row['one_over_this']:.2f}")
        for row in rows
    ]
    return Result(
        f"{table([('model', 'runtime', 'top-K', 'median', 'one step / this'), *cells])}\n\n{path}", {"rows": rows}
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("topk", "Compare a top-K in two steps with one sort.", models=MODELS, rounds=10, threads=True)
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
