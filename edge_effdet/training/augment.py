"""One training sample: a picture and its boxes through scale jitter, crop, affine, colour, flips or a mosaic.

Everything random comes from one NumPy generator, so a sample depends on its seed alone, and each step moves the boxes
with the pixels. Boxes are xyxy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from edge_effdet.artifacts import PreprocessSpec, Size
from edge_effdet.data.transforms import (
    change_colors,
    flip_horizontally,
    flip_vertically,
    jitter_letterbox,
    move_affinely,
)
from edge_effdet.training.options import AugmentOptions

ATTEMPTS = 5
"""How many times a sample is augmented while none of its boxes stays visible, before it is letterboxed plainly."""

Labelled = tuple[np.ndarray, np.ndarray, np.ndarray]
"""uint8 [H, W, 3], float32 [N, 4] xyxy in its pixels, int64 [N] class ids."""


def augment_sample(
    labelled: Labelled,
    more: Callable[[], Labelled],
    target: Size,
    preprocess: PreprocessSpec,
    options: AugmentOptions,
    rng: np.random.Generator,
) -> Labelled:
    """Augment a picture to the network's input size.

    Args:
        labelled: the picture, its boxes and classes.
        more: gives another labelled picture at random, for a mosaic.
        target: height and width of the result.
        preprocess: gives the fill colour.
        options: what is done, and how far.
        rng: the only source of randomness.

    Returns:
        uint8 [*target, 3] with the boxes and classes that are still visible.
    """
    for _ in range(ATTEMPTS):
        drawn = _draw(labelled, more, target, preprocess, options, rng)
        if len(drawn[1]) or not len(labelled[1]):
            return drawn
    image, boxes, class_ids = labelled
    canvas, boxes, kept = jitter_letterbox(image, boxes, target, preprocess, (1.0, 1.0), rng)
    return canvas, boxes, class_ids[kept]


def _draw(
    labelled: Labelled,
    more: Callable[[], Labelled],
    target: Size,
    preprocess: PreprocessSpec,
    options: AugmentOptions,
    rng: np.random.Generator,
) -> Labelled:
    if rng.random() < options.mosaic:
        canvas, boxes, class_ids = make_mosaic([labelled, more(), more(), more()], target, preprocess, rng)
    else:
        image, boxes, class_ids = labelled
        scales = (options.scale_min, options.scale_max)
        canvas, boxes, kept = jitter_letterbox(image, boxes, target, preprocess, scales, rng)
        class_ids = class_ids[kept]
    if rng.random() < options.affine_share:
        canvas, boxes, kept = move_affinely(
            canvas,
            boxes,
            angle=rng.uniform(-options.rotate, options.rotate),
            scale=1 + rng.uniform(-options.zoom, options.zoom),
            shift=(rng.uniform(-options.shift, options.shift), rng.uniform(-options.shift, options.shift)),
            fill=preprocess.fill_color,
        )
        class_ids = class_ids[kept]
    canvas = change_colors(
        canvas,
        brightness=rng.uniform(-options.brightness, options.brightness),
        contrast=rng.uniform(-options.contrast, options.contrast),
    )
    if options.flip != "none" and rng.random() < 0.5:
        canvas, boxes = flip_horizontally(canvas, boxes)
    if options.flip == "both" and rng.random() < 0.5:
        canvas, boxes = flip_vertically(canvas, boxes)
    return canvas, boxes, class_ids


def make_mosaic(parts: list[Labelled], target: Size, preprocess: PreprocessSpec, rng: np.random.Generator) -> Labelled:
    """Put four pictures around a random centre (YOLOv4, arXiv 2004.10934, section 3.3), each cropped into its quarter.

    A part is scaled to between its whole picture and twice that, so that objects keep something of their size.
    """
    height, width = target
    row, column = round(height * rng.uniform(0.3, 0.7)), round(width * rng.uniform(0.3, 0.7))
    canvas = np.empty((*target, 3), np.uint8)
    boxes: list[np.ndarray] = []
    class_ids: list[np.ndarray] = []
    corners = ((0, 0, row, column), (0, column, row, width), (row, 0, height, column), (row, column, height, width))
    for (image, own_boxes, own_classes), (top, left, bottom, right) in zip(parts, corners, strict=True):
        tile, moved, kept = jitter_letterbox(
            image, own_boxes, (bottom - top, right - left), preprocess, (1.0, 2.0), rng
        )
        canvas[top:bottom, left:right] = tile
        boxes.append(moved + np.array([left, top, left, top], np.float32))
        class_ids.append(own_classes[kept])
    return canvas, np.concatenate(boxes), np.concatenate(class_ids)
