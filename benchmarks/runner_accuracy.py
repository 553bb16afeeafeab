"""Measure how the runner's options change the AP: decoding at a reduced scale, and each kind of suppression.

python -m benchmarks.runner_accuracy --model tests/assets/bccd_lite0.safetensors --data bccd --name bccd
python -m benchmarks.runner_accuracy --data bccd --enlarge 3 --name bccd-enlarged

A camera's photos are several times as large as the engine's input, and those of the data sets at hand are not. ``--enlarge`` enlarges
them, and all options are measured on the same enlarged photos.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.graph_subjects import read_subject
from benchmarks.latency import positive
from benchmarks.machine import save_result
from edge_effdet.artifacts import Detections, write_record
from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from edge_effdet.cli import Result, make_parser, progress, run_verb, table
from edge_effdet.data.base import Sample, match_classes, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.evaluation.metrics import coco_metrics
from edge_effdet.evaluation.run import SCORE_FLOOR, SPLIT_ORDER
from edge_effdet.graph.export import ExportOptions, export_network
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.nms import NMS_KINDS

DEFAULT = "as it is"
JPEG_QUALITY = 95


def option_sets() -> dict[str, DetectOptions]:
    """The options that are compared, by name; the first are the defaults."""
    kinds = {f"nms {kind}": DetectOptions(SCORE_FLOOR, kind) for kind in NMS_KINDS[1:]}
    reduced = {f"decode {kind}": DetectOptions(SCORE_FLOOR, reduced_decode=kind) for kind in ("close", "fast")}
    return {DEFAULT: DetectOptions(SCORE_FLOOR), **reduced, **kinds}


def enlarge_photos(samples: Sequence[Sample], factor: int, folder: Path) -> list[Sample]:
    """Write photos ``factor`` times as high and wide as JPEG files into a folder, and give their samples with enlarged boxes."""
    enlarged = []
    for sample in progress(samples, len(samples), "enlarging"):
        picture = Image.fromarray(read_image(sample.path))
        path = folder / f"{sample.path.stem}.jpg"
        picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.BICUBIC).save(
            path, quality=JPEG_QUALITY
        )
        size = (factor * sample.height, factor * sample.width)
        enlarged.append(replace(sample, path=path, height=size[0], width=size[1], boxes=sample.boxes * factor))
    return enlarged


def compare_options(engine: Any, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row a set of options: COCO's metrics, the median milliseconds of decoding and letterbox, and those of suppression."""
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
        write_record(engine)
        seen = samples if arguments.enlarge == 1 else enlarge_photos(samples, arguments.enlarge, Path(folder))
        rows = compare_options(engine, seen)
    result = {
        "model": arguments.model,
        "split": split,
        "enlarged": arguments.enlarge,
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
        "benchmarks", "Measure the AP with the runner's options.", "python -m benchmarks.runner_accuracy --data bccd"
    )
    parser.add_argument(
        "--model", default="tests/assets/bccd_lite0.safetensors", metavar="M", help="a .safetensors (default: BCCD's)"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="D", help="a labelled data set")
    parser.add_argument("--split", metavar="NAME", help="the split (default: test, else val, else everything)")
    parser.add_argument(
        "--enlarge",
        type=positive,
        default=1,
        metavar="N",
        help="the factor on the photos' height and width (default: 1)",
    )
    parser.add_argument("--name", default="", help="the name of the result file, after runner-accuracy-")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
