"""Transforms of a training picture, uint8 [H, W, 3], and its xyxy boxes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from edge_effdet.artifacts import PreprocessSpec, Size

MIN_VISIBLE_SIDE = 2.0
"""A box that a crop leaves narrower or lower than this many pixels is dropped."""


def jitter_letterbox(
    image: np.ndarray,
    boxes: np.ndarray,
    target: Size,
    preprocess: PreprocessSpec,
    scale_range: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letterbox at a random scale: a picture larger than the target is cropped at a random place, a smaller one is put into the
    top-left corner.

    Args:
        image: uint8 [height, width, 3].
        boxes: float32 [N, 4], xyxy in pixels of ``image``.
        target: height and width of the result.
        preprocess: gives the fill colour.
        scale_range: least and greatest factor on the scale of the plain letterbox.
        rng: the source of randomness.

    Returns:
        The picture, uint8 [target height, target width, 3]; its boxes, float32 [M, 4]; the indices of the boxes that remain, [M].
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
    moved, kept = _clip_to(moved, out_height, out_width)
    return canvas, moved, kept


def move_affinely(
    image: np.ndarray,
    boxes: np.ndarray,
    angle: float,
    scale: float,
    shift: tuple[float, float],
    fill: tuple[int, int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotate and scale a picture about its centre, then shift it.

    A rotated box becomes the upright box around the ellipse inscribed in it, and not around its corners, which would
    grow a square by up to 1.41 and teach the detector loose boxes (Kalra et al., Towards Rotation Invariance in Object
    Detection, ICCV 2021).

    Args:
        image: uint8 [height, width, 3].
        boxes: float32 [N, 4], xyxy in pixels of ``image``.
        angle: degrees, clockwise in the picture.
        scale: factor on the picture's size.
        shift: shift to the right and down, as shares of width and height.
        fill: RGB colour of the area outside the original picture.

    Returns:
        The picture, uint8 of the same shape; its boxes, float32 [M, 4]; the indices of the boxes that remain, [M].
    """
    height, width = image.shape[:2]
    cosine, sine = scale * np.cos(np.radians(angle)), scale * np.sin(np.radians(angle))
    forward = np.array([[cosine, -sine], [sine, cosine]])
    center = np.array([width / 2, height / 2])
    moved_center = center + np.array(shift) * [width, height]
    # Pillow asks where each pixel of the result comes from.
    inverse = np.linalg.inv(forward)
    offset = center - inverse @ moved_center
    matrix = (*inverse[0], offset[0], *inverse[1], offset[1])
    result = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill
    )
    centers = ((boxes[:, :2] + boxes[:, 2:]) / 2 - center) @ forward.T + moved_center
    half_sides = (boxes[:, 2:] - boxes[:, :2]) / 2
    # The extent of an ellipse with half-axes r under a linear map M along axis i is sqrt(sum_j (M_ij r_j)^2).
    extents = np.sqrt((half_sides**2) @ (forward**2).T)
    moved, kept = _clip_to(np.concatenate([centers - extents, centers + extents], axis=1), height, width)
    return np.asarray(result), moved, kept


def change_colors(image: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """``pixel * (1 + contrast) + 255 * brightness``, clipped, uint8 [height, width, 3]."""
    table = np.clip(np.arange(256) * (1 + contrast) + 255 * brightness, 0, 255).round().astype(np.uint8)
    return table[image]


def _clip_to(boxes: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Clip boxes to a picture. Returns the boxes that are large enough then, float32 [M, 4], and their indices [M]."""
    clipped = np.clip(boxes, 0, np.array([width, height] * 2, np.float32)).astype(np.float32)
    kept = np.flatnonzero((clipped[:, 2:] - clipped[:, :2] >= MIN_VISIBLE_SIDE).all(axis=1))
    return clipped[kept], kept


def flip_horizontally(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror a picture and its xyxy boxes left to right."""
    width = np.float32(image.shape[1])
    return image[:, ::-1], np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)


def flip_vertically(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mirror a picture and its xyxy boxes top to bottom."""
    height = np.float32(image.shape[0])
    return image[::-1], np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
