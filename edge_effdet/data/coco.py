"""COCO JSON: one file, or a folder as COCO and the usual exporters lay it out.

Recognised: ``annotations/*.json`` beside image folders (``train2017``, ``val2017``, ``images``), and a folder a split with
``_annotations.coco.json`` in it. A file's split is read from its name or its folder's.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_effdet.data.dataset import Dataset, Sample, hold_out, make_sample
from edge_effdet.errors import DataError
from edge_effdet.images import image_size

logger = logging.getLogger(__name__)

_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
_HEAD_BYTES = 1 << 16
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")
"""How the files begin that COCO's own folder holds beside the boxes."""


def recognises(path: Path) -> bool:
    """Whether ``path`` is a COCO file or a folder that holds some."""
    return bool(_annotation_files(path))


def read(path: Path) -> Dataset:
    """Read every annotation file of ``path``. Classes stand in the order of their ids, over all files.

    Raises:
        DataError: a file that is no COCO JSON.
    """
    contents = {file: _load(file) for file in _annotation_files(path)}
    categories: dict[int, str] = {}
    for file, content in contents.items():
        for category in content["categories"]:
            try:
                number, name = int(category["id"]), str(category["name"])
            except (KeyError, TypeError, ValueError) as error:
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

    splits: dict[str, tuple[Sample, ...]] = {}
    unnamed: list[Sample] = []
    by_file = {
        file: _read_samples(file, path if path.is_dir() else file.parent, content, index)
        for file, content in contents.items()
    }
    for file, samples in _with_unique_ids(by_file, path).items():
        split = _split_of(file, path)
        if split is None:
            unnamed.extend(samples)
        else:
            splits[split] = splits.get(split, ()) + samples
    notes: tuple[str, ...] = ()
    if unnamed:
        if splits:
            splits["all"] = tuple(unnamed)
        else:
            splits, note = hold_out(unnamed, path)
            notes = (note,)
    return Dataset(path, "coco", tuple(categories[number] for number in category_ids), category_ids, splits, notes)


def _with_unique_ids(by_file: dict[Path, tuple[Sample, ...]], root: Path) -> dict[Path, tuple[Sample, ...]]:
    """The pictures' paths for ids where one id means two pictures: Roboflow numbers each split from 0."""
    pictures: dict[str, set[Path]] = defaultdict(set)
    for samples in by_file.values():
        for sample in samples:
            pictures[sample.image_id].add(sample.path)
    if all(len(paths) == 1 for paths in pictures.values()):
        return by_file
    base = root if root.is_dir() else root.parent
    return {
        file: tuple(replace(sample, image_id=Path(os.path.relpath(sample.path, base)).as_posix()) for sample in samples)
        for file, samples in by_file.items()
    }


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
    # The keys may stand behind a long list; an empty or truncated file given by name is ours to explain.
    return file.name.startswith(("instances_", "_annotations"))


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not whole JSON ({error}); copy it again.") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{file} has no list {key!r}, so it is not a COCO detection file; give the instances_*.json."
            )
    return content


def _read_samples(file: Path, root: Path, content: dict[str, Any], index: dict[int, int]) -> tuple[Sample, ...]:
    annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        if isinstance(annotation, dict) and "image_id" in annotation:
            annotations[annotation["image_id"]].append(annotation)
    folders = _image_folders(file, root)
    samples: list[Sample] = []
    absent: list[str] = []
    for image in content["images"]:
        try:
            image_id, name = image["id"], str(image["file_name"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{file} has an image without an id or a file name ({image}); export it again.") from error
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            absent.append(name)
            continue
        try:
            height, width = image_size(path)
        except DataError as error:
            logger.warning("skipped an image: %s", error)
            continue
        rows = []
        for annotation in annotations.get(image_id, ()):
            try:
                x, y, box_width, box_height = (float(value) for value in annotation["bbox"])
                position = index[int(annotation["category_id"])]
            except (KeyError, TypeError, ValueError):
                logger.warning("skipped annotation %s in %s: no box or no known category", annotation.get("id"), file)
                continue
            rows.append(((x, y, x + box_width, y + box_height), position, bool(annotation.get("iscrowd", 0))))
        samples.append(make_sample(str(image_id), path, height, width, rows, f"{file} ({name})"))
    if absent:
        logger.warning("%s names %d images that are not there (first: %s)", file, len(absent), absent[0])
    return tuple(samples)


def _image_folders(file: Path, root: Path) -> list[Path]:
    stem = file.stem.removeprefix("instances_")
    split = _split_of(file, root)
    names = [stem, "images", f"images/{stem}", *([split, f"images/{split}"] if split else []), ""]
    bases = [file.parent, file.parent.parent, root]
    folders = [base / name for base in bases for name in names]
    return [folder for position, folder in enumerate(folders) if folder.is_dir() and folder not in folders[:position]]


def _split_of(file: Path, root: Path) -> str | None:
    """The split that a file's name, or its folder's below ``root``, tells: ``train``, ``val``, ``test`` or a name of its own."""
    inner = file.relative_to(root) if root in file.parents else Path(file.name)
    for part in (inner.stem, *reversed(inner.parent.parts)):
        for word in re.findall(r"[a-z]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    name = inner.stem.removeprefix("instances_")
    return name if name != inner.stem and name.isidentifier() and name != "default" else None
