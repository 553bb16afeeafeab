"""From a picture to the network's input: the one letterbox that training, calibration, evaluation and the device share.

Normalisation is not here: it is inside the exported graph, which takes raw pixels. ``fill_input`` gives
the same pixels as ``letterbox``, but writes them straight into the engine's input, which spares copies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edge_effdet.artifacts import ModelSpec, PreprocessSpec, Size

if TYPE_CHECKING:
    from edge_effdet.backends.base import Runner


def letterbox_size(height: int, width: int, target: Size) -> tuple[int, int, float]:
    """Height and width of the scaled picture inside ``target``, and the scale (target pixels per original pixel).

    Sides are rounded down as in effdet's ``ResizePad``, but never to zero.
    """
    scale = min(target[0] / height, target[1] / width)
    return max(1, int(height * scale)), max(1, int(width * scale)), scale


def letterbox(image: np.ndarray, target: Size, preprocess: PreprocessSpec) -> tuple[np.ndarray, float]:
    """Scale a picture into the top-left corner of the network's input.

    Args:
        image: uint8 [height, width, 3], RGB.
        target: height and width of the result.
        preprocess: gives the fill colour.

    Returns:
        uint8 [target height, target width, 3] and the scale, with ``target = original * scale`` for coordinates.
    """
    height, width, scale = letterbox_size(image.shape[0], image.shape[1], target)
    canvas = np.empty((*target, 3), np.uint8)
    canvas[:] = preprocess.fill_color
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    canvas[:height, :width] = np.asarray(resized)
    return canvas, scale


def images_to_batch(images: list[np.ndarray]) -> np.ndarray:
    """Stack letterboxed pictures, uint8 [H, W, 3] each, to the graph's input, uint8 [B, 3, H, W]."""
    return np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2))


def fill_input(
    picture: Image.Image | np.ndarray, row: np.ndarray, preprocess: PreprocessSpec, size: Size | None = None
) -> Size:
    """Letterbox a picture straight into one image of the engine's input.

    Args:
        picture: RGB; an array is uint8 [height, width, 3].
        row: one image of the input, uint8 [3, H, W]; every pixel is written.
        preprocess: gives the fill colour.
        size: height and width of the original if ``picture`` was decoded at a reduced scale (``images.open_picture``).

    Returns:
        The original's height and width.
    """
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    size = size or (picture.height, picture.width)
    height, width, _ = letterbox_size(*size, (row.shape[1], row.shape[2]))
    if (picture.height, picture.width) != (height, width):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    np.copyto(row[:, :height, :width], np.asarray(picture).transpose(2, 0, 1))
    color = np.array(preprocess.fill_color, np.uint8)[:, None, None]
    row[:, height:] = color
    row[:, :height, width:] = color
    return size


def feeds_for_image(runner: Runner, image: np.ndarray, spec: ModelSpec) -> dict[str, np.ndarray]:
    """The engine's input for one picture: letterboxed, in the input's dtype, and repeated to fill a fixed batch."""
    batch = np.empty((max(1, runner.inputs[0].shape[0]), 3, *spec.image_size), np.uint8)
    for row in batch:
        fill_input(image, row, spec.preprocess)
    return {"images": batch.astype(runner.inputs[0].dtype, copy=False)}
