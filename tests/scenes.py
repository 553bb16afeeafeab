"""A small data set that is drawn: discs, boxes and crosses on noise, in COCO's form."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("box", "cross", "disc")


def write_scenes(folder: Path, splits: Mapping[str, int], seed: int, side: int = 128) -> None:
    """Write ``<split>/000000.jpg`` and ``annotations/instances_<split>.json``: square pictures of ``side`` pixels, with one to four objects each.

    Ids and file names count on from split to split.
    """
    rng = np.random.default_rng(seed)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    numbers = itertools.count()
    for split, count in splits.items():
        (folder / split).mkdir(exist_ok=True)
        images, annotations = [], []
        for image_id in itertools.islice(numbers, count):
            picture = Image.fromarray(rng.integers(60, 200, (side, side, 3), np.uint8))
            for _ in range(rng.integers(1, 5)):
                size, category = int(rng.integers(side // 8, side // 2)), int(rng.integers(1, len(CLASSES) + 1))
                x, y = (int(place) for place in rng.integers(0, side - size, 2))
                _draw(ImageDraw.Draw(picture), CLASSES[category - 1], (x, y, x + size - 1, y + size - 1), rng)
                entry = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category, "iscrowd": 0}
                annotations.append({**entry, "bbox": [x, y, size, size], "area": size * size})
            name = f"{image_id:06d}.jpg"
            picture.save(folder / split / name, quality=92)
            images.append({"id": image_id, "file_name": name, "height": side, "width": side})
        categories = [{"id": number, "name": name} for number, name in enumerate(CLASSES, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _draw(draw: ImageDraw.ImageDraw, name: str, box: tuple[int, int, int, int], rng: np.random.Generator) -> None:
    color = tuple(int(part) for part in rng.integers(0, 256, 3))
    if name == "box":
        draw.rectangle(box, color)
    elif name == "disc":
        draw.ellipse(box, color)
    else:
        x_min, y_min, x_max, y_max = box
        draw.line((x_min, y_min, x_max, y_max), color, 3)
        draw.line((x_min, y_max, x_max, y_min), color, 3)
