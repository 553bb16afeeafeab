"""Annotated pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edge_effdet.artifacts import Detections, ModelSpec, atomic_output

_GOLDEN_RATIO = 0.618034


def class_color(class_id: int) -> tuple[int, int, int]:
    """A colour a class, RGB 0 to 255; neighbours differ by the golden ratio of the colour wheel."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN_RATIO % 1, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_detections(image: np.ndarray, detections: Detections, spec: ModelSpec) -> np.ndarray:
    """A copy of a picture, uint8 [height, width, 3], with boxes, class names and scores, the best on top."""
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    height, width = image.shape[:2]
    line = max(1, round(min(height, width) / 240))
    font = ImageFont.load_default(max(10, round(min(height, width) / 32)))
    for index in np.argsort(detections.scores, kind="stable"):
        box = detections.boxes[index].tolist()
        class_id = int(detections.class_ids[index])
        color = class_color(class_id)
        draw.rectangle(box, outline=color, width=line)
        label = f"{spec.class_names[class_id]} {detections.scores[index]:.2f}"
        left, _, right, bottom = draw.textbbox((0, 0), label, font=font)
        x = max(0.0, min(box[0], width - (right - left) - 4))
        # Above the box, or inside it where there is no room above.
        y = box[1] - bottom - 3 if box[1] - bottom - 3 >= 0 else box[1]
        draw.rectangle((x, y, x + right - left + 4, y + bottom + 3), fill=color)
        dark = sum(color) < 3 * 128
        draw.text((x + 2 - left, y + 1), label, fill="white" if dark else "black", font=font)
    return np.asarray(picture)


def save_annotated(path: Path, image: np.ndarray, detections: Detections, spec: ModelSpec) -> None:
    """Write an annotated picture as JPEG, atomically. Raises InputError where the folder cannot be written."""
    save_picture(path, draw_detections(image, detections, spec))


def save_picture(path: Path, image: np.ndarray) -> None:
    """Write uint8 [height, width, 3] as JPEG, atomically."""
    with atomic_output(path) as temporary:
        Image.fromarray(image).save(temporary, format="JPEG", quality=92)


def contact_sheet(pictures: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of any size in rows of ``columns``, each scaled into a cell of the first one's size."""
    height, width = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for position, picture in enumerate(pictures):
        scaled = Image.fromarray(picture)
        scaled.thumbnail((width, height))
        sheet.paste(scaled, (position % columns * width, position // columns * height))
    return np.asarray(sheet)
