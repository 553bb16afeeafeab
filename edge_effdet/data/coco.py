"""COCO JSON: one file, or a folder as COCO and the usual exporters lay it out.

A file counts if it is an object with the lists ``images``, ``annotations`` and ``categories``. A folder has ``annotations/*.json`` beside
folders with pictures (``train2017``, ``val2017``, ``images``), a folder for each split with ``_annotations.coco.json`` in it (Roboflow),
``labels.json`` beside ``data`` (FiftyOne) or ``result.json`` beside ``images`` (Label Studio). The name of a file or of its folder tells its
split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from edge_effdet.data.base import Problem
from edge_effdet.data.coco_entries import Categories, FileReading, as_key
from edge_effdet.data.json_files import (
    first_character,
    has_list,
    json_candidates,
    open_json,
    picture_root,
    searched_places,
    unwrap,
)
from edge_effdet.data.raw import Certainty, RawDataset
from edge_effdet.data.text import read_json
from edge_effdet.errors import DataError

TITLE = "COCO JSON"

_LISTS = ("images", "annotations", "categories")
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_")
"""Prefixes of COCO's own annotation files that are not for object detection."""

_LEAVE_OUT_ANNOTATIONS = ("voxel51.com", "Label Studio")
"""What ``info`` holds where the exporter writes no list of annotations if nothing was labelled."""

_EXPORTERS = {
    "roboflow": "Roboflow",
    "label studio": "Label Studio",
    "voxel51": "FiftyOne",
    "fiftyone": "FiftyOne",
    "cocodataset.org": "COCO",
}
"""What the values of ``info`` contain, in lower case, and the program that writes it."""

_ROBOFLOW_NAME = "_annotations.coco.json"
_LAYOUTS = {"labels.json": ("data", "FiftyOne"), "result.json": ("images", "Label Studio")}
"""The name of a file, the folder with pictures beside it, and the program that lays them out so."""

_CVAT_LICENSES = [{"name": "", "id": 0, "url": ""}]
_HEAD = 4096
_SHOWN = 3


def recognises(path: Path) -> Certainty:
    """How sure it is that ``path`` is a COCO file or a folder that holds some. Files are searched for their keys and not parsed."""
    if path.is_file():
        if path.suffix.lower() != ".json":
            return Certainty.NO
        if _seems_coco(path):
            return Certainty.SURE
        return Certainty.MAYBE if _is_named_so(path) or _lists_in(path) else Certainty.NO
    candidates = json_candidates(unwrap(path), _certainty)
    # The surest first, so that few files are searched.
    for file in sorted(candidates, key=lambda file: -candidates[file]):
        if not file.name.startswith(_OTHER_TASKS) and (_seems_coco(file) or _is_named_so(file)):
            return candidates[file]
    return Certainty.NO


def read(path: Path) -> RawDataset:
    """Read every annotation file of ``path``. Classes are ordered by category id, over all files.

    Raises:
        DataError: no file is whole and has the three lists, a category has no id or no name, or one id names two categories.
    """
    problems: list[Problem] = []
    notes: list[str] = []
    contents = _load_all(path, problems, notes)
    categories = Categories(path, contents)
    root = picture_root(unwrap(path))
    files = []
    for file, content in contents.items():
        reading = FileReading(file, root, categories, problems)
        # Taken out, so that large lists are let go of as soon as they are read.
        reading.read_pictures(content.pop("images"))
        reading.read_boxes(content.pop("annotations", []))
        notes += reading.notes()
        files.append(reading)
    problems += dict.fromkeys(problem for reading in files for problem in reading.finder.problems())
    _return_borrowed(files, problems, notes)
    exporter = _exporter(root, contents)
    parts = [(reading.split, [picture for picture in reading.pictures.values() if picture]) for reading in files]
    classes = dict(categories.names)
    if exporter == "Roboflow":
        used = {box.label for _, part in parts for picture in part for box in picture.boxes}
        notes += _drop_placeholder(classes, contents, used)
    searched = searched_places([reading.finder for reading in files], root)
    return RawDataset(path, "coco", parts, classes, False, exporter, notes, problems, searched)


def _certainty(file: Path) -> Certainty:
    """How sure the name of a file and what lies beside it make that a folder is of COCO's form, if the file is."""
    folder = file.parent
    if file.name == _ROBOFLOW_NAME:
        return Certainty.SURE
    if folder.name.lower() == "annotations":
        # A Pascal VOC set may have been converted to COCO in its own folder.
        return Certainty.SURE if next(folder.glob("*.xml"), None) is None else Certainty.LIKELY
    return Certainty.LIKELY if _layout(file) else Certainty.MAYBE


def _layout(file: Path) -> str:
    """The program that lays out a file of this name and what is beside it; empty for none."""
    folder, program = _LAYOUTS.get(file.name, ("", ""))
    return program if (file.parent / folder).is_dir() else ""


def _is_named_so(file: Path) -> bool:
    """Whether the name alone tells that a file is COCO's, so that damage in it is reported and not passed over."""
    return file.name.startswith("instances_") or file.name == _ROBOFLOW_NAME


def _seems_coco(file: Path) -> bool:
    """Whether the keys of all three lists are in a file, at whatever depth: to know the depth the file has to be parsed."""
    content = open_json(file)
    head = content[:_HEAD]
    # labelme writes a file for each picture, with the picture in it: many and large.
    if first_character(content) != "{" or ((b'"shapes"' in head or b'"imageData"' in head) and b'"images"' not in head):
        return False
    if not has_list(content, "images") or not has_list(content, "categories"):
        return False
    return has_list(content, "annotations") or any(content.find(sign.encode()) >= 0 for sign in _LEAVE_OUT_ANNOTATIONS)


def _lists_in(file: Path) -> list[str]:
    content = open_json(file)
    return [key for key in _LISTS if has_list(content, key)] if first_character(content) == "{" else []


class _Fault(NamedTuple):
    """Why a file does not count, as what follows its name in a sentence, and whether it is damaged and not of another kind."""

    text: str
    damaged: bool = False


def _load_all(path: Path, problems: list[Problem], notes: list[str]) -> dict[Path, dict[str, Any]]:
    """The content of each file that counts. The others become notes, damaged ones problems.

    Raises:
        DataError: no file counts.
    """
    candidates = {path: Certainty.SURE} if path.is_file() else json_candidates(unwrap(path), _certainty)
    sure = [file for file in candidates if candidates[file] == Certainty.SURE]
    others = [file for file in candidates if candidates[file] != Certainty.SURE]
    loaded = {file: _load(file, path) for file in sure}
    contents = {file: content for file, content in loaded.items() if isinstance(content, dict)}
    if contents:
        beside = _Fault("lies beside the folders with annotation files")
        loaded |= {file: beside if _seems_coco(file) else _Fault("is no COCO file") for file in others}
    else:
        loaded |= {file: _load(file, path) for file in others}
        contents = {file: content for file, content in loaded.items() if isinstance(content, dict)}
    faults = {file: fault for file, fault in loaded.items() if isinstance(fault, _Fault)}
    if not contents:
        worst = sorted(faults.items(), key=lambda item: not item[1].damaged)[:_SHOWN]
        reasons = "; ".join(f"{file} {fault.text}" for file, fault in worst)
        raise DataError(
            f"{reasons}. A COCO file of boxes has lists of images, annotations and categories; give the instances_*.json."
        )
    alike: dict[str, list[str]] = defaultdict(list)
    for file, fault in faults.items():
        if fault.damaged:
            problems.append(Problem("bad_row", str(file), f"skipped, because it {fault.text}"))
        else:
            alike[fault.text].append(str(file.relative_to(path)))
    for text, names in alike.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        are_not_read = "are not read, because each" if len(names) > 1 else "is not read, because it"
        notes.append(f"{path}: {', '.join(names[:_SHOWN])}{more} {are_not_read} {text}.")
    return dict(sorted(contents.items()))


def _load(file: Path, given: Path) -> dict[str, Any] | _Fault:
    """The content of a file, of the data set at ``given``; or why it does not count."""
    if file.name.startswith(_OTHER_TASKS) and file != given:
        return _Fault("is for another task than object detection")
    lists = _lists_in(file)
    if not lists and not _is_named_so(file):
        return _Fault("is no COCO file")
    try:
        content = read_json(file)
    except DataError as error:
        return _Fault(str(error).removeprefix(f"{file} ").removesuffix("."), damaged=True)
    content = content if isinstance(content, dict) else {}
    missing = [key for key in _LISTS if not isinstance(content.get(key), list)]
    if missing == ["annotations"] and any(sign in str(content.get("info")) for sign in _LEAVE_OUT_ANNOTATIONS):
        return content
    if missing:
        return _Fault(f"has no list {missing[0]!r}")
    return content


def _return_borrowed(files: Sequence[FileReading], problems: list[Problem], notes: list[str]) -> None:
    """Leave out pictures in another split's folder that this split names too: they are namesakes of pictures that are missing."""
    owned = {
        picture.path
        for reading in files
        for image_id, picture in reading.pictures.items()
        if picture and image_id not in reading.borrowed
    }
    for reading in files:
        for image_id, position in reading.borrowed.items():
            picture = reading.pictures[image_id]
            if picture is not None and picture.path in owned:
                reading.pictures[image_id] = None
                text = f"skipped the image {picture.path.name}, which is there only for another split ({picture.path})"
                problems.append(Problem("missing_image", reading.image_place(position), text))
        kept = [picture for image_id in reading.borrowed if (picture := reading.pictures[image_id])]
        if kept:
            notes.append(
                f"{reading.file}: {len(kept)} of its {len(reading.pictures)} pictures were found in the folder of another split (first: "
                f"{kept[0].path})."
            )


def _exporter(root: Path, contents: Mapping[Path, Mapping[str, Any]]) -> str:
    for file, content in contents.items():
        info = content.get("info")
        said = " ".join(map(str, info.values() if isinstance(info, dict) else ())).lower()
        for sign, name in _EXPORTERS.items():
            if sign in said:
                return name
        if content.get("licenses") == _CVAT_LICENSES or (file.stem == "instances_default" and not said.strip()):
            return "CVAT"
        if name := "Roboflow" if file.name == _ROBOFLOW_NAME else _layout(file):
            return name
    return "Roboflow" if (root / "README.roboflow.txt").is_file() else ""


def _drop_placeholder(
    classes: dict[int, str], contents: Mapping[Path, Mapping[str, Any]], used: Set[str | int]
) -> list[str]:
    """Remove the category 0 that stands for Roboflow's project, above its classes. Returns a note where there was one."""
    if 0 not in classes or 0 in used:
        return []
    categories = [category for content in contents.values() for category in content["categories"]]
    tops = {str(category.get("supercategory")) for category in categories if as_key(category["id"]) == 0}
    above = {str(category.get("supercategory")) for category in categories if as_key(category["id"]) != 0}
    if tops != {"none"} or classes[0] not in above:
        return []
    return [
        f"The category 0, {classes.pop(0)!r}, is Roboflow's for the project and has no boxes; it is not taken for a class."
    ]
