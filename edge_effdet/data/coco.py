"""COCO JSON: one file, or a folder as COCO and the usual exporters lay it out.

A folder has ``annotations/*.json`` beside image folders (``train2017``, ``val2017``, ``images``), or one folder for each split
with ``_annotations.coco.json`` in it. The name of a file or of its folder tells its split.
"""

from __future__ import annotations

import bisect
import json
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edge_effdet.data.base import (
    Dataset,
    Problem,
    Sample,
    first_existing,
    gather_splits,
    make_sample,
    split_in_name,
    unreadable_image,
    with_unique_ids,
)
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import image_size

_HEAD_BYTES = 1 << 16
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
"""Prefixes of COCO's own annotation files that hold no boxes of objects."""


def recognises(path: Path) -> bool:
    """Whether ``path`` is a COCO file or a folder that holds some."""
    return bool(_annotation_files(path))


def read(path: Path) -> Dataset:
    """Read every annotation file of ``path``. Classes are ordered by category id, over all files.

    Raises:
        DataError: a file is not COCO detection JSON, or two files name a category differently.
    """
    contents = {file: _load(file) for file in _annotation_files(path)}
    categories: dict[int, str] = {}
    for file, content in contents.items():
        for category in content["categories"]:
            try:
                number, name = int(category["id"]), str(category["name"])
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise DataError(
                    f"{file} has a category without a number or a name ({category}); export it again."
                ) from error
            known = categories.setdefault(number, name)
            if known != name:
                raise DataError(
                    f"{file} calls category {number} {name!r}, another file of {path} calls it "
                    f"{known!r}; give them one list of categories."
                )
    category_ids = tuple(sorted(categories))
    index = {number: position for position, number in enumerate(category_ids)}

    root = path if path.is_dir() else path.parent
    problems: list[Problem] = []
    parts = [
        _read_samples(file, path if path.is_dir() else file.parent, content, index, problems)
        for file, content in contents.items()
    ]
    # Roboflow numbers the images of each split from 0, so ids repeat.
    parts = with_unique_ids(parts, root)
    named = [(_split_of(file, path), samples) for file, samples in zip(contents, parts, strict=True)]
    splits, notes = gather_splits(named, path)
    class_names = tuple(categories[number] for number in category_ids)
    return Dataset(path, "coco", class_names, category_ids, splits, notes, tuple(problems))


def _annotation_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == ".json" and _looks_like_coco(path) else []
    candidates = [*path.glob("annotations/*.json"), *path.glob("*/_annotations.coco.json"), *path.glob("*.json")]
    return sorted(file for file in candidates if not file.name.startswith(_OTHER_TASKS) and _looks_like_coco(file))


def _looks_like_coco(file: Path) -> bool:
    with open(file, encoding="utf-8", errors="replace") as stream:
        head = stream.read(_HEAD_BYTES)
    if '"images"' in head or '"annotations"' in head or '"categories"' in head:
        return True
    # The keys may come later or, in a damaged file, be missing; by its name it is taken for COCO, so that reading it tells the fault.
    return file.name.startswith(("instances_", "_annotations"))


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataError(f"{file} is not whole JSON ({error}); copy it again.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{file} has no list {key!r}, so it is not a COCO detection file; give the instances_*.json."
            )
    return content


def _read_samples(
    file: Path, root: Path, content: dict[str, Any], index: dict[int, int], problems: list[Problem]
) -> tuple[Sample, ...]:
    lines = _Lines(file)
    known = {image["id"] for image in content["images"] if isinstance(image, dict) and _is_key(image.get("id"))}
    annotations: dict[Any, list[int]] = defaultdict(list)
    for position, annotation in enumerate(content["annotations"]):
        image_id = annotation.get("image_id") if isinstance(annotation, dict) else None
        if _is_key(image_id) and image_id in known:
            annotations[image_id].append(position)
            continue
        text = f"skipped an annotation of image {image_id}, which is not in the list of images"
        problems.append(Problem("bad_row", _where(lines, content, position), text))
    folders = _image_folders(file, root)
    samples: list[Sample] = []
    for number, image in enumerate(content["images"]):
        try:
            image_id, name = image["id"], str(image["file_name"])
            hash(image_id)
        except (KeyError, TypeError) as error:
            raise DataError(f"{file} has an image without an id or a file name ({image}); export it again.") from error
        path = first_existing(folder / name for folder in folders)
        if path is None:
            where = f"{file}:{lines.of('images', number)}"
            problems.append(Problem("missing_image", where, f"skipped the image {name}, which is not there"))
            continue
        try:
            height, width = image_size(path)
        except DataError as error:
            problems.append(unreadable_image(path, error))
            continue
        rows, positions = [], []
        for position in annotations.get(image_id, ()):
            row = _read_row(content["annotations"][position], index)
            if isinstance(row[0], str):
                problems.append(Problem(row[0], _where(lines, content, position), row[1]))
                continue
            rows.append(row)
            positions.append(position)
        source = _teller(lines, content, positions)
        samples.append(make_sample(str(image_id), path, height, width, rows, source, problems))
    return tuple(samples)


def _read_row(annotation: dict[str, Any], index: dict[int, int]) -> tuple[Any, ...]:
    """An annotation as (xyxy box, class id, crowd), or the kind of its problem and what is wrong."""
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return "bad_row", f"skipped an annotation whose bbox is not four numbers ({annotation.get('bbox')})"
    try:
        category = int(annotation["category_id"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return "bad_row", f"skipped an annotation whose category_id is no number ({annotation.get('category_id')!r})"
    if category not in index:
        return "unknown_class", f"skipped an annotation of category {category}, which is not in the list of categories"
    return (x, y, x + width, y + height), index[category], bool(annotation.get("iscrowd", 0))


def _is_key(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def _where(lines: _Lines, content: dict[str, Any], position: int) -> str:
    annotation = content["annotations"][position]
    number = annotation.get("id") if isinstance(annotation, dict) else None
    return f"{lines.file}:{lines.of('annotations', position)} annotation {number}"


def _teller(lines: _Lines, content: dict[str, Any], positions: list[int]) -> Callable[[int], str]:
    return lambda row: _where(lines, content, positions[row])


class _Lines:
    """Tells the line of each entry in the lists of a COCO file. The text is read when the first line is asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._starts: dict[str, list[int]] | None = None
        self._line_ends: list[int] = []

    def of(self, key: str, position: int) -> int:
        """The line, from 1, of entry ``position`` of the top-level list ``key``."""
        if self._starts is None:
            text = self.file.read_text(encoding="utf-8-sig")
            self._starts = _entry_starts(text)
            self._line_ends = [found.start() for found in re.finditer("\n", text)]
        return bisect.bisect_left(self._line_ends, self._starts[key][position]) + 1


def _entry_starts(text: str) -> dict[str, list[int]]:
    """The offset of each entry of each list in a JSON object, by key. The text must be valid JSON."""
    decoder, space = json.JSONDecoder(), re.compile(r"[\s,:]*")

    def skip(position: int) -> int:
        found = space.match(text, position)
        assert found is not None
        return found.end()

    starts: dict[str, list[int]] = {}
    at = skip(text.index("{") + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        at = skip(at)
        if text[at] != "[":
            _, at = decoder.raw_decode(text, at)
        else:
            starts[key] = []
            at = skip(at + 1)
            while text[at] != "]":
                starts[key].append(at)
                _, at = decoder.raw_decode(text, at)
                at = skip(at)
            at += 1
        at = skip(at)
    return starts


def _image_folders(file: Path, root: Path) -> list[Path]:
    stem = file.stem.removeprefix("instances_")
    split = _split_of(file, root)
    names = [stem, "images", f"images/{stem}", *([split, f"images/{split}"] if split else []), ""]
    bases = [file.parent, file.parent.parent, root]
    folders = [base / name for base in bases for name in names]
    return [folder for position, folder in enumerate(folders) if folder.is_dir() and folder not in folders[:position]]


def _split_of(file: Path, root: Path) -> str | None:
    """The split of a file, by its name or its folders below ``root``: ``train``, ``val``, ``test`` or what follows ``instances_``."""
    inner = file.relative_to(root) if root in file.parents else Path(file.name)
    split = split_in_name(inner.stem, *reversed(inner.parent.parts))
    if split is not None:
        return split
    name = inner.stem.removeprefix("instances_")
    return name if name != inner.stem and name.isidentifier() and name != "default" else None
