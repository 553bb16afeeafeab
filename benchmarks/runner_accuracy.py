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
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.graph_subjects import read_subject
from benchmarks.latency import positive
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.run import make_engine
from edge_effdet.artifacts import Engine
from edge_effdet.cli import Result, progress, run_verb, table
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


def compare_options(engine: Engine, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """COCO's metrics, one row a set of options."""
    rows = []
    for name, options in option_sets().items():
        with Detector.load(engine, options=options) as detector:
            found = [detector(sample.path) for sample in progress(samples, len(samples), name)]
            metrics = coco_metrics(samples, found, detector.spec)
        rows.append({"options": name, "AP": metrics.AP, "AP50": metrics.AP50, "AP75": metrics.AP75})
    return rows


def _run(arguments: argparse.Namespace) -> Result:
    subject = read_subject(arguments.model)
    split, samples = match_classes(read_dataset(arguments.data), subject.spec).choose_split(
        arguments.split, SPLIT_ORDER
    )
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        graph = export_network(subject.network, subject.spec, {}, Path(folder) / "graph.onnx", ExportOptions()).graph
        engine = make_engine(graph, "onnxruntime", Path(folder) / "engine.onnx")
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
    path = save_result("runner-accuracy", result, arguments.name)
    shown = [("options", "AP", "AP50", "AP75")]
    shown += [(row["options"], *(f"{100 * row[key]:.2f}" for key in ("AP", "AP50", "AP75"))) for row in rows]
    return Result(f"{len(samples)} images, split {split}\n\n{table(shown)}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "runner_accuracy",
        "Measure the AP with the runner's options.",
        "--data bccd",
        data="a labelled data set",
        name="runner-accuracy",
        required=("data",),
    )
    parser.add_argument(
        "--model", default="tests/assets/bccd_lite0.safetensors", metavar="M", help="a .safetensors (default: BCCD's)"
    )
    parser.add_argument("--split", metavar="NAME", help="the split (default: test, else val, else everything)")
    parser.add_argument(
        "--enlarge",
        type=positive,
        default=1,
        metavar="N",
        help="the factor on the photos' height and width (default: 1)",
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
