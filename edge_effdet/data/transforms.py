"""Training transforms: each maps (picture, xyxy boxes) to the network's input size and moves the boxes along."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edge_effdet.artifacts import PreprocessSpec, Size

MIN_VISIBLE_SIDE = 2.0
"""Pixels: a box that a crop leaves thinner than this is dropped."""


def jitter_letterbox(
    image: np.ndarray,
    boxes: np.ndarray,
    target: Size,
    preprocess: PreprocessSpec,
    scale_range: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letterbox at a random scale: larger is cropped at a random place, smaller stands in the top-left corner.

    Args:
        image: uint8 [height, width, 3].
        boxes: float32 [N, 4], xyxy in pixels of ``image``.
        target: height and width of the result.
        preprocess: gives the fill colour.
        scale_range: factors on the scale of the plain letterbox.
        rng: the source of randomness.

    Returns:
        uint8 [target height, target width, 3]; float32 [M, 4] in its pixels; the indices of the boxes that remain, [M].
    """
    height, width = image.shape[:2]
    scale = min(target[0] / height, target[1] / width) * rng.uniform(*scale_range)
    # The visible window, in pixels of the original.
    window_height, window_width = min(height, target[0] / scale), min(width, target[1] / scale)
    top, left = rng.uniform(0, height - window_height), rng.uniform(0, width - window_width)
    out_height = min(target[0], max(1, round(window_height * scale)))
    out_width = min(target[1], max(1, round(window_width * scale)))
    resized = Image.fromarray(image).resize(
        (out_width, out_height),
        Image.Resampling.BILINEAR,
        box=(left, top, left + window_width, top + window_height),
    )
    canvas = np.empty((*target, 3), np.uint8)
    canvas[:] = preprocess.fill_color
    canvas[:out_height, :out_width] = np.asarray(resized)

    moved = (boxes - np.array([left, top, left, top], np.float32)) * np.float32(scale)
    moved = np.clip(moved, 0, np.array([out_width, out_height] * 2, np.float32)).astype(np.float32)
    sides = moved[:, 2:] - moved[:, :2]
    kept = np.flatnonzero((sides >= MIN_VISIBLE_SIDE).all(axis=1))
    return canvas, moved[kept], kept


def flip_horizontally(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror a picture and its xyxy boxes left to right."""
    width = np.float32(image.shape[1])
    return image[:, ::-1], np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def flip_vertically(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror a picture and its xyxy boxes top to bottom."""
    height = np.float32(image.shape[0])
    return image[::-1], np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
