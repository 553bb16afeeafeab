"""Drawing of boxes, class names and scores into pictures."""

from __future__ import annotations

import colorsys
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edge_effdet.artifacts import Detections, ModelSpec, Size, atomic_output

_GOLDEN_RATIO = 0.618034

TRUTH_COLOR = (215, 25, 28)
PREDICTION_COLOR = (20, 60, 220)
COMPARISON_SIDE = 1200
"""Comparisons of small pictures are enlarged until the longer side has about this many pixels, so that all names fit."""


def class_color(class_id: int) -> tuple[int, int, int]:
    """The colour of a class, RGB 0 to 255. Hues of successive classes are a golden ratio of the colour wheel apart."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN_RATIO % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: np.ndarray, detections: Detections, spec: ModelSpec) -> np.ndarray:
    """A copy of a picture, uint8 [height, width, 3], with boxes, class names and scores; the best box is drawn last.

    The label of an object that is tracked begins with its number, as in ``#7 cat 0.91``.
    """
    order = np.argsort(detections.scores, kind="stable")
    class_ids = [int(detections.class_ids[index]) for index in order]
    labels = [
        f"{spec.class_names[class_id]} {detections.scores[index]:.2f}"
        for class_id, index in zip(class_ids, order, strict=True)
    ]
    if detections.track_ids is not None:
        numbers = detections.track_ids[order].tolist()
        labels = [f"#{number} {label}" if number >= 0 else label for number, label in zip(numbers, labels, strict=True)]
    return draw_boxes(
        image, detections.boxes[order].tolist(), labels, [class_color(class_id) for class_id in class_ids]
    )


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
) -> np.ndarray:
    """A copy of a picture with boxes, each with a label, in the order given.

    Args:
        image: uint8 [height, width, 3].
        boxes: x_min, y_min, x_max, y_max in pixels; the maximum not below the minimum.
        labels: the text at the upper left corner of each box.
        colors: RGB 0 to 255 of each box and of the ground of its label.
    """
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    line = max(1, round(min(height, width) / 240))
    font = ImageFont.load_default(max(10, round(min(height, width) / 32)))
    for box, label, color in zip(boxes, labels, colors, strict=True):
        draw.rectangle(tuple(box), outline=color, width=line)
        left, _, right, bottom = draw.textbbox((0, 0), label, font=font)
        x = max(0.0, min(box[0], width - (right - left) - 4))
        # Above the box, or inside it where there is no room above.
        y = box[1] - bottom - 3 if box[1] - bottom - 3 >= 0 else box[1]
        draw.rectangle((x, y, x + right - left + 4, y + bottom + 3), fill=color)
        dark = sum(color) < 3 * 128
        draw.text((x + 2 - left, y + 1), label, fill="white" if dark else "black", font=font)
    return np.asarray(picture)


def draw_comparison(
    image: np.ndarray,
    truth: np.ndarray,
    truth_labels: Sequence[str],
    detections: Detections,
    spec: ModelSpec,
    caption: str,
) -> np.ndarray:
    """Draw the true boxes in red and the detections in blue on an enlarged copy of a picture, with a legend above it.

    Args:
        image: uint8 [height, width, 3].
        truth: the true boxes, float32 [N, 4], xyxy in pixels of ``image``.
        truth_labels: the text at the lower left corner of each true box.
        detections: the detections; class name and score are written at the upper left corner of each box.
        spec: gives the class names.
        caption: a text for the legend.

    Returns:
        uint8 [height * factor + legend, width * factor, 3].
    """
    height, width = image.shape[:2]
    factor = max(1, round(COMPARISON_SIDE / max(height, width)))
    picture = Image.fromarray(image).resize((width * factor, height * factor), Image.Resampling.BICUBIC)
    short_side = min(picture.size)
    font = ImageFont.load_default(max(10, round(short_side / 60)))
    # Names have a transparent ground, so that they do not hide the picture.
    draw = ImageDraw.Draw(picture, "RGBA")
    # A wider red line under a thin blue one: both can be seen where the boxes are the same.
    thin = max(1, round(short_side / 500))
    for box in (truth * factor).tolist():
        draw.rectangle(box, outline=TRUTH_COLOR, width=2 * thin)
    order = np.argsort(detections.scores, kind="stable")
    for index in order:
        draw.rectangle((detections.boxes[index] * factor).tolist(), outline=PREDICTION_COLOR, width=thin)
    for (x_min, _, _, y_max), label in zip((truth * factor).tolist(), truth_labels, strict=True):
        _write_label(draw, (x_min + 2 * thin, y_max - 2 * thin), label, TRUTH_COLOR, font, picture.size, above=True)
    for index in order:
        x_min, y_min, *_ = (detections.boxes[index] * factor).tolist()
        label = f"{spec.class_names[int(detections.class_ids[index])]} {detections.scores[index]:.2f}"
        corner = (x_min + 2 * thin, y_min + 2 * thin)
        _write_label(draw, corner, label, PREDICTION_COLOR, font, picture.size, above=False)
    return np.concatenate([_draw_legend(picture.width, caption), np.asarray(picture)])


def _write_label(
    draw: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    label: str,
    color: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
    above: bool,
) -> None:
    """Write coloured text on a light ground at ``corner``, moved as far as it must be to stay inside the picture."""
    left, top, right, bottom = draw.textbbox((0, 0), label, font=font)
    x = max(0.0, min(corner[0], size[0] - (right - left) - 2))
    y = max(0.0, min(corner[1] - (bottom - top) - 2 if above else corner[1], size[1] - (bottom - top) - 2))
    draw.rectangle((x, y, x + right - left + 2, y + bottom - top + 2), fill=(255, 255, 255, 190))
    draw.text((x + 1 - left, y + 1 - top), label, fill=color, font=font)


def _draw_legend(width: int, caption: str) -> np.ndarray:
    size = max(11, min(22, width // 45))
    font = ImageFont.load_default(size)
    strip = Image.new("RGB", (width, 2 * size), "white")
    draw = ImageDraw.Draw(strip)
    x = size // 2
    for color, text in ((TRUTH_COLOR, "truth"), (PREDICTION_COLOR, "prediction"), (None, caption)):
        if color is not None:
            draw.rectangle((x, size // 2, x + size, size // 2 + size), outline=color, width=max(2, size // 6))
            x += size + size // 2
        draw.text((x, size), text, fill=color or "black", font=font, anchor="lm")
        x += round(draw.textlength(text, font=font)) + size
    return np.asarray(strip)


def save_annotated(path: Path, image: np.ndarray, detections: Detections, spec: ModelSpec) -> None:
    """Write an annotated picture as JPEG, atomically. Raises InputError where the folder cannot be written."""
    save_picture(path, draw_detections(image, detections, spec))


def save_picture(path: Path, image: np.ndarray, quality: int = 92) -> None:
    """Write a picture, uint8 [height, width, 3], atomically: as PNG if ``path`` ends in .png, else as JPEG of ``quality``."""
    content = io.BytesIO()
    if path.suffix.lower() == ".png":
        Image.fromarray(image).save(content, format="PNG")
    else:
        Image.fromarray(image).save(content, format="JPEG", quality=quality)
    # Pillow itself would leave half a picture on a full disk, without an error.
    with atomic_output(path) as temporary:
        # A copy: where a view of it is left in the traceback of a full disk, Python 3.13 raises a BufferError in place of that error.
        temporary.write_bytes(content.getvalue())


def contact_sheet(pictures: Sequence[np.ndarray], columns: int, cell: Size | None = None) -> np.ndarray:
    """Arrange pictures of any size in rows of ``columns``. Each is scaled down to fit into a cell.

    Args:
        pictures: uint8 [height, width, 3] each.
        columns: number of pictures in a row.
        cell: height and width of a cell; None for the size of the first picture.

    Returns:
        uint8 [H, W, 3], white where there is no picture.
    """
    height, width = cell or pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for position, picture in enumerate(pictures):
        scaled = Image.fromarray(picture)
        scaled.thumbnail((width, height))
        sheet.paste(scaled, (position % columns * width, position // columns * height))
    return np.asarray(sheet)
