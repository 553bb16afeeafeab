"""YOLO folders as Ultralytics and the exporters that follow it lay them out: a ``data.yaml``, and one text file for each image.

``data.yaml`` names the classes (``names``) and, for ``train``, ``val`` and ``test``, a folder of images, a list of folders, or a
text file that lists images. The labels of ``…/images/a.jpg`` are in ``…/labels/a.txt``, or in ``a.txt`` beside the image: rows of
``class x_center y_center width height`` in fractions of the image. A row with more numbers is a polygon; its bounding box is taken.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_effdet.data.base import (
    Dataset,
    Problem,
    Sample,
    first_existing,
    make_sample,
    unreadable_image,
    with_unique_ids,
)
from edge_effdet.errors import DataError, MissingDependency, first_line
from edge_effdet.runtime.images import IMAGE_SUFFIXES, image_size

FILE_NAMES = ("data.yaml", "dataset.yaml", "data.yml", "dataset.yml")

_SPLITS = ("train", "val", "test")
_LARGEST_FRACTION = 2.0
"""A larger coordinate is taken for pixels. Slightly more than 1 is a box that reaches beyond the image."""


@dataclass(frozen=True, slots=True)
class _Config:
    file: Path
    content: dict[str, Any]
    text: str

    def where(self, key: str) -> str:
        """The place of a key, ``file:line``."""
        found = re.search(rf"^{key}\s*:", self.text, re.MULTILINE)
        return f"{self.file}:{self.text.count(chr(10), 0, found.start()) + 1 if found else 1}"


def recognises(path: Path) -> bool:
    """Whether ``path`` is a YAML file or a folder with a ``data.yaml``."""
    if path.is_file():
        return path.suffix.lower() in (".yaml", ".yml")
    return any((path / name).is_file() for name in FILE_NAMES)


def read(path: Path) -> Dataset:
    """Read the splits that a ``data.yaml`` names. Classes are ordered by their numbers.

    Raises:
        DataError: the file is not YAML, names no classes, or leads to no images.
        MissingDependency: PyYAML is not installed.
    """
    file = path if path.is_file() else next(path / name for name in FILE_NAMES if (path / name).is_file())
    config = _load(file)
    problems: list[Problem] = []
    names = _class_names(config, problems)
    index = {number: position for position, number in enumerate(names)}
    pictures: dict[str, list[Path]] = {}
    for split in _SPLITS:
        entries = config.content.get(split)
        if entries:
            entries = entries if isinstance(entries, list) else [entries]
            found = [image for entry in entries for image in _images(config, split, str(entry), problems)]
            pictures[split] = list(dict.fromkeys(found))
    if not any(pictures.values()):
        reason = problems[-1].text if problems else "it names no train, val or test"
        raise DataError(f"{file} leads to no images: {reason}; correct path, train and val in it.")
    parts = [tuple(_read_samples(images, index, config, problems)) for images in pictures.values()]
    parts = with_unique_ids(parts, file.parent)
    splits = {split: samples for split, samples in zip(pictures, parts, strict=True) if samples}
    return Dataset(path, "yolo", tuple(names.values()), tuple(names), splits, (), tuple(problems))


def _load(file: Path) -> _Config:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingDependency("PyYAML", "train", "to read a YOLO data.yaml") from error
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f"line {line + 1}: " if line is not None else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise DataError(f"{file} is not whole YAML ({place}{reason}); correct it or export it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no keys like names and train, so it is no YOLO data.yaml; give the right file.")
    return _Config(file, content, text)


def _class_names(config: _Config, problems: list[Problem]) -> dict[int, str]:
    """The names of the classes by number, ascending."""
    names, count = config.content.get("names"), config.content.get("nc")
    if names is None and isinstance(count, int) and count > 0:
        return {number: f"class_{number}" for number in range(count)}
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        numbered = {int(key): name for key, name in names.items()} if isinstance(names, dict) else {}
    except (TypeError, ValueError):
        numbered = {}
    if not numbered:
        raise DataError(
            f"{config.file} has no usable names of classes ({names!r:.80}); write names: [cat, dog], or a line 0: cat for each."
        )
    if count is not None and count != len(numbered):
        text = f"nc is {count}, but names has {len(numbered)} classes; names is used"
        problems.append(Problem("bad_row", config.where("nc"), text))
    return {number: str(numbered[number]).strip() for number in sorted(numbered)}


def _images(config: _Config, split: str, entry: str, problems: list[Problem]) -> list[Path]:
    """The images of one folder or list that a split names."""
    here = config.file.parent
    base = here / str(config.content.get("path") or "")
    # Roboflow writes ../train/images for the folder beside its data.yaml.
    places = [base / entry, here / entry, here / entry.removeprefix("../")]
    place = first_existing(places)
    if place is None:
        text = f"{split} names {entry}, which is not there"
        problems.append(Problem("missing_image", config.where(split), text))
        return []
    if place.is_dir():
        images = sorted(path for path in place.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        if not images:
            text = f"{split} names {entry}, which holds no image"
            problems.append(Problem("missing_image", config.where(split), text))
        _report_labels_alone(place, images, problems)
        return images
    images = []
    for line, text in enumerate(place.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        candidates = [place.parent / text.strip(), base / text.strip()]
        image = first_existing(candidates)
        if image is None:
            where = f"{place}:{line}"
            problems.append(Problem("missing_image", where, f"skipped the image {text.strip()}, which is not there"))
        else:
            images.append(image)
    return images


def _report_labels_alone(folder: Path, images: list[Path], problems: list[Problem]) -> None:
    """Record the label files that have no image."""
    labels = _in_labels_folder(folder)
    if labels is None or not labels.is_dir():
        return
    expected = {_in_labels_folder(image.with_suffix(".txt")) for image in images}
    problems.extend(
        Problem("missing_image", f"{label}:1", f"skipped {label.name}: it has no image in {folder}")
        for label in sorted(labels.rglob("*.txt"))
        if label not in expected and label.name != "classes.txt"
    )


def _in_labels_folder(path: Path) -> Path | None:
    """The path with ``labels`` in place of the last ``images``."""
    parts = list(path.parts)
    if "images" not in parts:
        return None
    last = len(parts) - 1 - parts[::-1].index("images")
    return Path(*parts[:last], "labels", *parts[last + 1 :])


def _label_file(image: Path) -> Path | None:
    beside = image.with_suffix(".txt")
    return next((path for path in (_in_labels_folder(beside), beside) if path is not None and path.is_file()), None)


def _read_samples(images: list[Path], index: dict[int, int], config: _Config, problems: list[Problem]) -> list[Sample]:
    samples: list[Sample] = []
    for image in images:
        try:
            height, width = image_size(image)
        except DataError as error:
            problems.append(unreadable_image(image, error))
            continue
        label = _label_file(image)
        rows, lines = _read_labels(label, height, width, index, config, problems) if label else ([], [])
        samples.append(make_sample(image.stem, image, height, width, rows, lines.__getitem__, problems))
    return samples


def _read_labels(
    label: Path, height: int, width: int, index: dict[int, int], config: _Config, problems: list[Problem]
) -> tuple[list[tuple[list[float], int, bool]], list[str]]:
    """The rows of one file as (xyxy box in pixels, class id, False), and the place of each row, ``file:line``."""
    rows: list[tuple[list[float], int, bool]] = []
    lines: list[str] = []
    for line, text in enumerate(label.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        where = f"{label}:{line}"
        try:
            number, *values = (float(word) for word in text.split())
        except ValueError:
            problems.append(Problem("bad_row", where, f"skipped the row {text.strip()[:60]!r}: it is not all numbers"))
            continue
        if "kpt_shape" in config.content:
            # In a row of a pose data set, keypoints follow the box.
            values = values[:4]
        fault = _row_fault(number, values, index)
        if fault is not None:
            problems.append(Problem(fault[0], where, f"skipped the row {text.strip()[:60]!r}: {fault[1]}"))
            continue
        pixels = [value * side for value, side in zip(_bounding_box(values), (width, height) * 2, strict=True)]
        rows.append((pixels, index[int(number)], False))
        lines.append(where)
    return rows, lines


def _row_fault(number: float, values: list[float], index: dict[int, int]) -> tuple[str, str] | None:
    """The kind of a row's problem and what is wrong; None if nothing is wrong."""
    if not number.is_integer():
        return "bad_row", "its first number is not the number of a class"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return "bad_row", f"{len(values)} numbers after the class are neither a box (4) nor a polygon (6, 8, …)"
    if not all(math.isfinite(value) for value in values):
        return "not_finite", "its numbers are not all finite"
    if any(abs(value) > _LARGEST_FRACTION for value in values):
        return "bad_row", "its numbers are not fractions of the image; divide pixels by its width and height"
    if int(number) not in index:
        return "unknown_class", f"class {int(number)} has no name in the YAML file"
    return None


def _bounding_box(values: list[float]) -> list[float]:
    if len(values) == 4:
        x, y, width, height = values
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])]
