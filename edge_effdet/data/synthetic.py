"""A seeded data set with exact ground truth: drawn objects over the photographs that the scikit-image wheel carries.

The classes are told apart by shape; colour, pattern, light, turn and proportion are random. Nothing is downloaded.
Validation and test scenes have photographs behind them that training never sees (``PHOTOGRAPHS``); calibration has
training's.

Every visible object has a box: a patch that would hide more than ``1 - MIN_VISIBLE`` of an earlier object, or leave it with a
box outside the allowed sizes, is placed elsewhere or left out.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from edge_effdet.artifacts import Size, write_json
from edge_effdet.cli import Result, add_options, make_parser, options_from, progress, run_verb
from edge_effdet.data.synthetic_shapes import CLASS_NAMES, Patch, clutter_patch, object_patch
from edge_effdet.errors import DataError, MissingDependency, UsageError
from edge_effdet.options import option
from edge_effdet.runtime.drawing import save_picture

MIN_VISIBLE = 0.3
"""The least share of an object's area that stays visible, inside the picture and not hidden by later patches."""

JPEG_QUALITY = 92

_TRAIN_PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "grass.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
)
PHOTOGRAPHS: Mapping[str, tuple[str, ...]] = {
    "train": _TRAIN_PHOTOGRAPHS,
    "calibration": _TRAIN_PHOTOGRAPHS,
    "val": ("ihc.png", "moon.png", "page.png"),
    "test": ("coffee.png", "gravel.png", "rocket.jpg"),
}
"""Files of ``skimage/data`` behind the scenes of each split; a split of another name has those of ``train``.

The photographs of coins, a cell, a clock and a colour wheel are left out, because these could pass for a ball.
"""

_PARTS = {
    # The rest shows cardboard boxes, which would be unlabelled objects of the class box.
    "motorcycle_left.png": (0, 0, 330, 500),
    "motorcycle_right.png": (0, 300, 741, 500),
    # The whole picture is a disc on black, which could pass for a ball.
    "retina.jpg": (330, 330, 1130, 1130),
}

_TRIES = 12
_NOTHING, _OCCLUDER = -1, -2


@dataclass(frozen=True, slots=True)
class SceneOptions:
    """What a scene may hold. ``photographs`` names the files of ``skimage/data`` to choose the background from."""

    image_size: tuple[int, int] = option((480, 640), help="size of the pictures, N or HxW, pixels")
    min_side: int = option(8, help="shortest side of a box, pixels")
    max_side: int = option(300, help="longest side of a box, pixels")
    max_objects: int = option(12, help="most objects in a picture; there is at least one")
    photographs: tuple[str, ...] = _TRAIN_PHOTOGRAPHS

    def __post_init__(self) -> None:
        # The narrowest object, a bottle, is nearly four times as long as it is wide.
        if self.min_side < 4 or 4 * self.min_side > min(self.max_side, *self.image_size):
            raise UsageError(
                f"Boxes of {self.min_side} to {self.max_side} pixels in pictures of "
                f"{self.image_size[0]}x{self.image_size[1]} leave too little choice: `min_side` must be at least 4, and "
                "at most a quarter of `max_side` and of the picture's sides."
            )
        if self.max_objects < 1 or not self.photographs:
            raise UsageError("A scene needs at least one object and one photograph; raise `max_objects`.")


@dataclass(frozen=True, slots=True)
class SplitOptions:
    """How many pictures each split gets."""

    train: int = option(800, help="pictures to train on")
    val: int = option(100, help="pictures to choose the best epoch on, over other photographs")
    calibration: int = option(64, help="pictures to calibrate INT8 on, over the photographs of train")
    test: int = option(100, help="pictures to report accuracy on, over yet other photographs")
    seed: int = option(0, help="seed of all random choices")


@dataclass(frozen=True, slots=True)
class Composition:
    """A scene before ``photograph`` adds the faults of a camera.

    Attributes:
        background: float32 [H, W, 3], 0 to 255: the photograph with the clutter that lies under all objects.
        image: float32 [H, W, 3], 0 to 255: the background, the objects, and the clutter over them.
        owner: int16 [H, W]: the index of the object seen in each pixel, -1 where there is none, -2 where clutter covers all.
        class_ids: int64 [N], the class of each object.
    """

    background: np.ndarray
    image: np.ndarray
    owner: np.ndarray
    class_ids: np.ndarray


def write_scenes(
    folder: Path, splits: Mapping[str, int], seed: int, options: SceneOptions | None = None
) -> dict[str, int]:
    """Write a COCO data set: ``annotations/instances_<split>.json`` and ``<split>/000000.jpg``.

    The backgrounds come from ``PHOTOGRAPHS``; ``options.photographs`` is not used. Category ids count from 1;
    image ids are unique over all splits. Returns the number of boxes of each split.

    Raises:
        UsageError: a split has no pictures.
        InputError: the folder cannot be written.
        MissingDependency: scikit-image is not installed.
    """
    options = options or SceneOptions()
    if not splits or min(splits.values()) < 1:
        raise UsageError("Every split needs at least one picture; leave out the split, or give it a number above 0.")
    categories = [{"id": number, "name": name} for number, name in enumerate(CLASS_NAMES, start=1)]
    counts: dict[str, int] = {}
    first_image_id = 1
    for split, count in splits.items():
        split_options = replace(options, photographs=PHOTOGRAPHS.get(split, _TRAIN_PHOTOGRAPHS))
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in progress(range(count), count, f"{split} scenes"):
            name, image_id = f"{index:06d}.jpg", first_image_id + index
            pixels, boxes, class_ids = render_scene(split_options, scene_seed(seed, split, index))
            save_picture(Path(folder) / split / name, pixels, JPEG_QUALITY)
            images.append({"id": image_id, "file_name": name, "height": pixels.shape[0], "width": pixels.shape[1]})
            for (x_min, y_min, x_max, y_max), class_id in zip(boxes.tolist(), class_ids.tolist(), strict=True):
                width, height = x_max - x_min, y_max - y_min
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": class_id + 1,
                        "bbox": [x_min, y_min, width, height],
                        "area": width * height,
                        "iscrowd": 0,
                    }
                )
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(Path(folder) / "annotations" / f"instances_{split}.json", content)
        counts[split] = len(annotations)
        first_image_id += count
    return counts


def scene_seed(seed: int, split: str, index: int) -> int:
    """The 64-bit seed of one scene: the same in every process, and different for every split and index."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{split}/{index}".encode()).digest()[:8], "big")


def render_scene(options: SceneOptions, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Render a scene.

    Returns:
        The picture, uint8 [H, W, 3]; boxes, float32 [N, 4], xyxy in whole pixels; class ids, int64 [N].

    Raises:
        MissingDependency: scikit-image is not installed.
        DataError: the installed scikit-image lacks a photograph.
    """
    rng = np.random.default_rng(seed)
    scene = compose_scene(options, rng)
    return photograph(scene.image, rng), visible_boxes(scene), scene.class_ids


def compose_scene(options: SceneOptions, rng: np.random.Generator) -> Composition:
    """Draw a background, clutter, objects from back to front, and clutter that hides parts of them.

    The objects' longer sides are log-uniform. About one object in seven may be cut by the picture's edge.
    """
    background = _background(options, rng)
    limit = min(options.max_side, *options.image_size)
    no_owner = np.full(options.image_size, _NOTHING, np.int16)
    for _ in range(rng.integers(0, 4)):
        _paste(
            background, no_owner, clutter_patch(rng, options.image_size), _NOTHING, *_anywhere(rng, options.image_size)
        )
    canvas = _Canvas(options, background.copy(), no_owner, [], [])
    for _ in range(rng.integers(1, options.max_objects + 1)):
        class_id = int(rng.integers(len(CLASS_NAMES)))
        patch = object_patch(class_id, limit, options.min_side, rng)
        for _ in range(_TRIES):
            if canvas.try_place(patch, *_position(rng, patch, options.image_size), class_id):
                break
    for _ in range(rng.integers(0, 5)):
        patch = clutter_patch(rng, options.image_size)
        for _ in range(_TRIES):
            if canvas.try_place(patch, *_anywhere(rng, options.image_size), None):
                break
    return Composition(background, canvas.image, canvas.owner, np.array(canvas.class_ids, np.int64))


def visible_boxes(scene: Composition) -> np.ndarray:
    """float32 [N, 4]: the tight xyxy box around the pixels in which each object is seen."""
    boxes = [_tight_box(scene.owner == index) for index in range(len(scene.class_ids))]
    return np.array(boxes, np.float32).reshape(-1, 4)


def photograph(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Give a scene the faults of a camera: blur, light, colour cast, noise. None of them moves a box.

    Args:
        image: float32 [H, W, 3], 0 to 255.
        rng: the source of randomness.

    Returns:
        uint8 [H, W, 3].
    """
    picture = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    fault = rng.random()
    if fault < 0.3:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.5)))
    elif fault < 0.45:
        picture = blur_motion(picture, rng.uniform(0, math.pi))
    contrast, brightness = rng.uniform(0.7, 1.15), rng.uniform(-25, 25)
    levels = (np.arange(256) - 128) * contrast + 128 + brightness
    curves = np.clip(levels * rng.uniform(0.92, 1.08, (3, 1)) + 0.5, 0, 255).astype(np.uint8)
    picture = picture.point(curves.ravel().tolist())
    if rng.random() > 0.7:
        return np.array(picture)
    noise = rng.standard_normal(image.shape, np.float32)
    noise *= np.float32(min(12.0, rng.exponential(4.0)))
    noise += np.asarray(picture)
    noise += np.float32(0.5)
    return np.clip(noise, 0, 255, out=noise).astype(np.uint8)


def blur_motion(picture: Image.Image, angle: float) -> Image.Image:
    """Blur along a line of five pixels at ``angle`` radians. The line is centred on each pixel, so that nothing moves."""
    kernel = np.zeros((5, 5))
    for step in np.linspace(-2, 2, 9):
        kernel[round(2 + step * math.sin(angle)), round(2 + step * math.cos(angle))] += 1
    weights = kernel + kernel[::-1, ::-1]
    return picture.filter(ImageFilter.Kernel((5, 5), weights.ravel().tolist()))


@dataclass(slots=True)
class _Canvas:
    options: SceneOptions
    image: np.ndarray
    owner: np.ndarray
    class_ids: list[int]
    areas: list[int]

    def try_place(self, patch: Patch, x: int, y: int, class_id: int | None) -> bool:
        """Draw ``patch`` with its corner at (x, y), unless an object would then lack a valid box (``_boxable``). Returns whether it did."""
        owner = self.owner.copy()
        index = _OCCLUDER if class_id is None else len(self.class_ids)
        area = int(patch.solid.sum())
        rows, columns, own = _overlap(patch, x, y, self.options.image_size)
        touched = set(np.unique(owner[rows, columns][patch.solid[own]]).tolist()) - {_NOTHING, _OCCLUDER}
        owner[rows, columns][patch.solid[own]] = index
        areas = self.areas if class_id is None else [*self.areas, area]
        if class_id is not None:
            touched.add(index)
        if not all(self._boxable(owner == number, areas[number]) for number in touched):
            return False
        _paste(self.image, self.owner, patch, index, x, y)
        if class_id is not None:
            self.class_ids.append(class_id)
            self.areas.append(area)
        return True

    def _boxable(self, seen: np.ndarray, area: int) -> bool:
        if np.count_nonzero(seen) < MIN_VISIBLE * area or not seen.any():
            return False
        x_min, y_min, x_max, y_max = _tight_box(seen)
        sides = (x_max - x_min, y_max - y_min)
        return min(sides) >= self.options.min_side and max(sides) <= self.options.max_side


def _tight_box(seen: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(seen.any(axis=0)), np.flatnonzero(seen.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _overlap(patch: Patch, x: int, y: int, size: Size) -> tuple[slice, slice, tuple[slice, slice]]:
    """Rows and columns of the picture under a patch, and the part of the patch that lies inside the picture."""
    height, width = patch.alpha.shape
    top, left = max(y, 0), max(x, 0)
    bottom, right = max(top, min(y + height, size[0])), max(left, min(x + width, size[1]))
    return slice(top, bottom), slice(left, right), (slice(top - y, bottom - y), slice(left - x, right - x))


def _paste(image: np.ndarray, owner: np.ndarray, patch: Patch, index: int, x: int, y: int) -> None:
    rows, columns, own = _overlap(patch, x, y, (image.shape[0], image.shape[1]))
    region, alpha = image[rows, columns], patch.alpha[own][..., None]
    region += alpha * (patch.rgb[own] - region)
    owner[rows, columns][patch.solid[own]] = index


def _position(rng: np.random.Generator, patch: Patch, size: Size) -> tuple[int, int]:
    height, width = patch.alpha.shape
    beyond = 0.4 if rng.random() < 0.15 else 0.0
    x = rng.uniform(-beyond * width, max(1.0, size[1] - width * (1 - beyond)))
    y = rng.uniform(-beyond * height, max(1.0, size[0] - height * (1 - beyond)))
    return round(x), round(y)


def _anywhere(rng: np.random.Generator, size: Size) -> tuple[int, int]:
    return int(rng.integers(-size[1] // 4, size[1])), int(rng.integers(-size[0] // 4, size[0]))


def _background(options: SceneOptions, rng: np.random.Generator) -> np.ndarray:
    """A random crop of a random photograph, perhaps mirrored: float32 [H, W, 3]."""
    picture = _load_photograph(options.photographs[int(rng.integers(len(options.photographs)))])
    height, width = options.image_size
    scale = rng.uniform(0.4, 1.0) * min(picture.width / width, picture.height / height)
    crop_width, crop_height = scale * width, scale * height
    left = rng.uniform(0, picture.width - crop_width)
    top = rng.uniform(0, picture.height - crop_height)
    crop = picture.resize(
        (width, height), Image.Resampling.BICUBIC, box=(left, top, left + crop_width, top + crop_height)
    )
    pixels = np.asarray(crop, np.float32)
    return np.ascontiguousarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)


@functools.cache
def _load_photograph(name: str) -> Image.Image:
    try:
        import skimage
    except ModuleNotFoundError as error:
        raise MissingDependency("scikit-image", "train", "for the photographs behind the synthetic scenes") from error
    path = Path(skimage.__file__).parent / "data" / name
    if not path.is_file():
        raise DataError(
            f"scikit-image {metadata.version('scikit-image')} does not carry the photograph {name}, which the scenes need; "
            "install scikit-image 0.26."
        )
    with Image.open(path) as picture:
        return picture.convert("RGB").crop(_PARTS.get(name, (0, 0, *picture.size)))


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "data.synthetic",
        "Draw a data set with exact boxes.",
        "python -m edge_effdet.data.synthetic --output scenes --seed 0",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for pictures and annotations")
    add_options(parser, SplitOptions, SceneOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    wanted = options_from(SplitOptions, arguments)
    counts = {"train": wanted.train, "val": wanted.val, "calibration": wanted.calibration, "test": wanted.test}
    splits = {split: count for split, count in counts.items() if count}
    boxes = write_scenes(arguments.output, splits, wanted.seed, options_from(SceneOptions, arguments))
    text = "\n".join(f"{split}: {splits[split]} pictures, {boxes[split]} boxes" for split in splits)
    return Result(
        f"{arguments.output}\n{text}",
        {"output": str(arguments.output), "seed": wanted.seed, "pictures": splits, "boxes": boxes},
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
