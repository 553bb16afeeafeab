"""Measure what DeepStream's letterbox changes in the detections: black in place of the mean colour, and filters that do not average.

python -m benchmarks.deepstream_letterbox --engine engines/bccd.fp32.onnx --data bccd --name bccd

nvinfer is not run. Its letterbox is drawn here as its source says it (NVIDIA/DeepStream 9.1, ``get_converted_buffer`` in ``gstnvinfer.cpp``):
the picture at the top left, and the rest black. The filters are the ones that ``nvbufsurftransform.h`` names for the GPU, with the centres of pixels
on each other; NVIDIA's own may place them otherwise, and those of the VIC are not described. The conversion from YUV is not among the differences.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.artifacts import Detections, ModelSpec, load_engine
from edge_effdet.backends.base import Runner, load_runner
from edge_effdet.cli import Result, progress, run_verb, table
from edge_effdet.data.base import Sample, match_classes, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.evaluation.metrics import coco_metrics
from edge_effdet.evaluation.run import SCORE_FLOOR, SPLIT_ORDER
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.nms import iou_matrix
from edge_effdet.runtime.postprocess import detections_from_outputs
from edge_effdet.runtime.preprocess import images_to_batch, letterbox_size

Resize = Callable[[Image.Image, tuple[int, int]], Image.Image]

THRESHOLD, SAME_OBJECT = 0.3, 0.5
"""Detections are compared from this score on, and two are the same object from this overlap (IoU) on."""

OURS = "edge_effdet"


def _sample(filter_: Image.Resampling) -> Resize:
    """A filter that looks at the pixels around a point alone, however much the picture shrinks."""
    return lambda picture, size: picture.transform(size, Image.Transform.EXTENT, (0, 0, *picture.size), filter_)


def _average(filter_: Image.Resampling) -> Resize:
    """A filter that grows with the factor, so that each pixel of the picture counts."""
    return lambda picture, size: picture.resize(size, filter_)


WAYS: dict[str, tuple[Resize, bool]] = {
    OURS: (_average(Image.Resampling.BILINEAR), False),
    "black": (_average(Image.Resampling.BILINEAR), True),
    "black, scaling-filter 0 or 6: nearest": (_sample(Image.Resampling.NEAREST), True),
    "black, scaling-filter 1: bilinear": (_sample(Image.Resampling.BILINEAR), True),
    "black, scaling-filter 2: cubic": (_sample(Image.Resampling.BICUBIC), True),
    "black, scaling-filter 3: super": (_average(Image.Resampling.BOX), True),
}
"""How a picture is scaled, and whether the rest is black, by name."""


def draw_letterbox(image: np.ndarray, spec: ModelSpec, way: str) -> np.ndarray:
    """A picture in the top-left corner of the network's input.

    Args:
        image: uint8 [height, width, 3], RGB.
        spec: gives size and mean colour.
        way: a key of ``WAYS``.

    Returns:
        uint8 [H, W, 3].
    """
    resize, black = WAYS[way]
    height, width, _ = letterbox_size(image.shape[0], image.shape[1], spec.image_size)
    canvas = np.empty((*spec.image_size, 3), np.uint8)
    canvas[:] = (0, 0, 0) if black else spec.preprocess.fill_color
    canvas[:height, :width] = np.asarray(resize(Image.fromarray(image), (width, height)))
    return canvas


def detect_way(runner: Runner, spec: ModelSpec, samples: Sequence[Sample], way: str) -> list[Detections]:
    """What the engine finds in each picture, with scores down to ``SCORE_FLOOR``."""
    found = []
    for sample in progress(samples, len(samples), way):
        image = read_image(sample.path)
        pixels = images_to_batch([draw_letterbox(image, spec, way)]).astype(runner.inputs[0].dtype, copy=False)
        outputs = runner.run({runner.inputs[0].name: pixels})
        boxes, scores, class_ids = (outputs[name][0] for name in ("boxes", "scores", "class_ids"))
        size = (image.shape[0], image.shape[1])
        found.append(detections_from_outputs(boxes, scores, class_ids, size, spec.image_size, SCORE_FLOOR))
    return found


def compare(usual: Sequence[Detections], found: Sequence[Detections]) -> dict[str, Any]:
    """How the detections above ``THRESHOLD`` differ, over all pictures; shifts are of the side that moved most, in pixels of the picture."""
    scores, shifts, missing, more = [], [], 0, 0
    for first, second in zip(usual, found, strict=True):
        first, second = first.above(THRESHOLD), second.above(THRESHOLD)
        overlap = iou_matrix(first.boxes, second.boxes) * (first.class_ids[:, None] == second.class_ids[None, :])
        matched = 0
        while overlap.size and overlap.max() >= SAME_OBJECT:
            one, other = np.unravel_index(overlap.argmax(), overlap.shape)
            overlap[one], overlap[:, other] = 0, 0
            matched += 1
            scores.append(abs(float(first.scores[one] - second.scores[other])))
            shifts.append(float(np.abs(first.boxes[one] - second.boxes[other]).max()))
        missing, more = missing + len(first) - matched, more + len(second) - matched
    return {
        "objects": len(scores) + missing,
        "missing": missing,
        "more": more,
        "score_median": float(np.median(scores)),
        "score_p95": float(np.percentile(scores, 95)),
        "shift_median_px": float(np.median(shifts)),
        "shift_p95_px": float(np.percentile(shifts, 95)),
    }


def _run(arguments: argparse.Namespace) -> Result:
    engine = load_engine(arguments.engine)
    spec = engine.spec
    split, samples = match_classes(read_dataset(arguments.data), spec).choose_split(arguments.split, SPLIT_ORDER)
    with load_runner(engine) as runner:
        found = {way: detect_way(runner, spec, samples, way) for way in WAYS}
    rows = []
    for way, detections in found.items():
        metrics = coco_metrics(samples, detections, spec)
        rows.append({"way": way, "AP": metrics.AP, "AP50": metrics.AP50, **compare(found[OURS], detections)})
    result = {
        "engine": engine.path.name,
        "engine_sha256": engine.sha256,
        "precision": engine.precision,
        "split": split,
        "images": len(samples),
        "data_sha256": samples_sha256(samples),
        "rows": rows,
    }
    path = save_result("deepstream-letterbox", result, arguments.name)
    cells: list[tuple[str, ...]] = [
        ("way", "AP", "AP50", "objects", "missing", "more", "score", "95 %", "shift px", "95 %")
    ]
    for row in rows:
        numbers = (f"{row[key]:.3f}" for key in ("score_median", "score_p95"))
        shifts = (f"{row[key]:.2f}" for key in ("shift_median_px", "shift_p95_px"))
        counts = (str(row[key]) for key in ("objects", "missing", "more"))
        cells.append((row["way"], f"{100 * row['AP']:.2f}", f"{100 * row['AP50']:.2f}", *counts, *numbers, *shifts))
    return Result(f"{len(samples)} images, split {split}, {engine.path.name}\n\n{table(cells)}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "deepstream_letterbox",
        "Measure what DeepStream's letterbox changes in the detections.",
        "--engine engines/bccd.fp32.onnx --data bccd",
        data="a labelled data set",
        name="deepstream-letterbox",
        required=("data",),
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine that runs on this machine")
    parser.add_argument("--split", metavar="NAME", help="the split (default: test, else val, else everything)")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
