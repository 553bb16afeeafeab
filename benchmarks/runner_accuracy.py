"""What the runner's options do to the AP: decoding at a reduced scale, and each kind of suppression.

python -m benchmarks.runner_accuracy --model tests/assets/bccd_lite0.safetensors --data bccd --name bccd
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.graph_subjects import read_subject
from benchmarks.machine import save_result
from edge_effdet.artifacts import Detections, write_json
from edge_effdet.backends.base import CompileOptions
from edge_effdet.build_engine import compile_engine
from edge_effdet.cli import Result, make_parser, progress, run_verb, table
from edge_effdet.data.dataset import Sample, match_classes, read_dataset, samples_sha256
from edge_effdet.detector import DetectOptions, Detector
from edge_effdet.evaluate import SCORE_FLOOR, SPLIT_ORDER
from edge_effdet.export import ExportOptions, export_network
from edge_effdet.metrics import coco_metrics
from edge_effdet.nms import NMS_KINDS

DEFAULT, REDUCED = "as it is", "reduced decode"


def option_sets() -> dict[str, DetectOptions]:
    """What is compared, by name; the first is the default."""
    kinds = {f"nms {kind}": DetectOptions(SCORE_FLOOR, kind) for kind in NMS_KINDS[1:]}
    return {DEFAULT: DetectOptions(SCORE_FLOOR), REDUCED: DetectOptions(SCORE_FLOOR, reduced_decode=True), **kinds}


def compare_options(engine: Any, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row a set of options: COCO's metrics, and median milliseconds of decoding with the letterbox and of suppression."""
    rows = []
    for name, options in option_sets().items():
        with Detector.load(engine, options=options) as detector, detector.input_buffer() as buffer:
            found: list[Detections] = []
            before: list[float] = []
            after: list[float] = []
            for sample in progress(samples, len(samples), name):
                started = time.perf_counter()
                picture, size = detector.read(sample.path)
                detector.prepare(picture, size, buffer[0])
                before.append(time.perf_counter() - started)
                outputs = detector.run(buffer, 1)
                started = time.perf_counter()
                found.append(detector.finish(outputs, 0, size))
                after.append(time.perf_counter() - started)
            metrics = coco_metrics(samples, found, detector.spec)
        rows.append(
            {
                "options": name,
                "AP": metrics.AP,
                "AP50": metrics.AP50,
                "AP75": metrics.AP75,
                "decode_and_letterbox_ms": 1000 * float(np.median(before)),
                "suppress_ms": 1000 * float(np.median(after)),
            }
        )
    return rows


def _run(arguments: argparse.Namespace) -> Result:
    subject = read_subject(arguments.model)
    split, samples = match_classes(read_dataset(arguments.data), subject.spec).choose_split(
        arguments.split, SPLIT_ORDER
    )
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        graph = export_network(subject.network, subject.spec, {}, Path(folder) / "graph.onnx", ExportOptions()).graph
        engine = compile_engine(graph, "onnxruntime", CompileOptions(), Path(folder) / "engine.onnx")
        write_json(engine.json_path, engine.record)
        rows = compare_options(engine, samples)
    result = {
        "model": arguments.model,
        "split": split,
        "images": len(samples),
        "data_sha256": samples_sha256(samples),
        "rows": rows,
    }
    path = save_result("-".join(filter(None, ("runner-accuracy", arguments.name))), result)
    shown = [("options", "AP", "AP50", "AP75", "decode + letterbox", "suppress")]
    shown += [
        (
            row["options"],
            *(f"{100 * row[key]:.2f}" for key in ("AP", "AP50", "AP75")),
            f"{row['decode_and_letterbox_ms']:.2f} ms",
            f"{row['suppress_ms']:.2f} ms",
        )
        for row in rows
    ]
    return Result(f"{len(samples)} images, split {split}\n\n{table(shown)}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "benchmarks", "AP by the runner's options.", "python -m benchmarks.runner_accuracy --data bccd"
    )
    parser.add_argument(
        "--model", default="tests/assets/bccd_lite0.safetensors", metavar="M", help="a .safetensors (default: BCCD's)"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="D", help="a labelled data set")
    parser.add_argument("--split", metavar="NAME", help="the split (default: test, else val, else everything)")
    parser.add_argument("--name", default="", help="of the result file, after runner-accuracy-")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
