"""Darknet's layout of YOLO: the names of the classes in a file of their own, and the labels beside the pictures.

``obj.data`` names the lists of pictures and the list of classes (CVAT's "YOLO 1.1", Darknet itself); or ``obj.names`` lies beside
``images.txt`` or a list for each split (FiftyOne's "YOLOv4"); or each split is a folder with ``_darknet.labels`` in it (Roboflow).
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from edge_effdet.data.base import Problem, split_in_name
from edge_effdet.data.finder import match_path
from edge_effdet.data.raw import Certainty, RawDataset
from edge_effdet.data.text import read_text
from edge_effdet.data.yolo import read_picture_list, refuse_above
from edge_effdet.data.yolo_labels import (
    holds_rows,
    labels_without_picture,
    looks_like_rows,
    pictures_below,
    read_class_list,
    read_labels,
    read_one_class_list,
)
from edge_effdet.errors import DataError

TITLE = "Darknet"

_Splits = list[tuple[str | None, list[Path]]]
"""The pictures of each split; None for pictures of no split."""

_ROBOFLOW_LIST = "_darknet.labels"
_ENTRY = re.compile(r"^[ \t]*(\w+)[ \t]*=[ \t]*(.*?)[ \t]*$", re.MULTILINE)
_NO_LISTS = ("names", "classes", "backup", "results", "eval", "top", "labels")
"""Keys of ``obj.data`` that name no list of pictures."""

_UNNAMED_LISTS = ("images", "default", "all")


def recognises(path: Path) -> Certainty:
    """How sure it is that ``path`` is Darknet's ``obj.data``, or a folder with one, or with Darknet's lists of classes."""
    if path.is_file():
        return Certainty.SURE if path.suffix.lower() == ".data" and _entries(path) else Certainty.NO
    if _data_files(path) or _roboflow_lists(path):
        return Certainty.SURE
    if not _names_files(path):
        return Certainty.NO
    if (path / "obj.names").is_file():
        return Certainty.SURE
    return Certainty.LIKELY if holds_rows(path) else Certainty.NO


def read(path: Path) -> RawDataset:
    """Read the pictures that the lists name, or those of the folders. Classes are numbered by their lines.

    Raises:
        DataError: a list is missing or is no text, lists of classes contradict each other, or no picture has a label file.
    """
    files = [path] if path.is_file() else _data_files(path)
    root = path if path.is_dir() else path.parent
    raw = RawDataset(path, "darknet", (), fractions=True, searched=str(root))
    if files:
        if len(files) > 1:
            raw.notes.append(f"{files[0]} is read, and {', '.join(file.name for file in files[1:])} beside it is not.")
        names, splits = _read_data_file(files[0], root, raw)
    else:
        names, splits = _read_folder(root, raw)
    raw.classes = read_one_class_list(names)
    used = read_labels(raw, splits)
    if not _lists(root):
        raw.problems += labels_without_picture(root, used, rows_only=True)
    return raw


def _data_files(folder: Path) -> list[Path]:
    """Files like ``obj.data`` in a folder, that one first."""
    files = [file for file in folder.glob("*.[dD][aA][tT][aA]") if file.is_file() and _entries(file)]
    return sorted(files, key=lambda file: (file.name != "obj.data", file.name))


def _entries(file: Path) -> dict[str, tuple[int, str]]:
    """The line and the value of each key of a file like ``obj.data``; none if it is no such file."""
    try:
        text = read_text(file)
    except DataError:
        return {}
    found = {match[1]: (text.count("\n", 0, match.start()) + 1, match[2]) for match in _ENTRY.finditer(text)}
    return found if "names" in found else {}


def _roboflow_lists(path: Path) -> list[Path]:
    """The lists of classes in Roboflow's folders: of the splits, or of one of them."""
    return [file for file in (path / _ROBOFLOW_LIST, *sorted(path.glob(f"*/{_ROBOFLOW_LIST}"))) if file.is_file()]


def _names_files(folder: Path) -> list[Path]:
    """Lists of classes like ``obj.names``, that one first."""
    files = [file for file in folder.glob("*.[nN][aA][mM][eE][sS]") if file.is_file()]
    return sorted(files, key=lambda file: (file.name != "obj.names", file.name))


def _lists(root: Path) -> list[Path]:
    """The text files of a folder that list pictures: by the name of a split or of FiftyOne's list."""
    return [
        file
        for file in sorted(root.glob("*.[tT][xX][tT]"))
        if (split_in_name(file.stem) or file.stem.lower() in _UNNAMED_LISTS) and not looks_like_rows(file)
    ]


def _read_data_file(file: Path, root: Path, raw: RawDataset) -> tuple[list[Path], _Splits]:
    """The lists of classes and the pictures of each split that a file like ``obj.data`` names."""
    entries = _entries(file)
    if not entries:
        raise DataError(f"{file} has no line names = …, so it is no obj.data of Darknet; give the right file.")
    names = _class_list(root, entries["names"][1]) or next(iter(_names_files(root)), None)
    if names is None:
        raise DataError(
            f"{file} names the list of classes {entries['names'][1]}, which is not there; put it beside {file.name}."
        )
    splits: _Splits = []
    for key, (line, value) in entries.items():
        if key.lower() in _NO_LISTS or not value:
            continue
        listed = _find(root, value)
        if listed is None:
            raw.problems.append(Problem("missing_image", f"{file}:{line}", f"{key} names {value}, which is not there"))
        elif listed.is_dir():
            refuse_above(listed, file, f"{file}:{line}", f"{key} names {value}")
            splits.append((_split(key), _of_folder(listed, raw)))
        else:
            splits.append((_split(key), read_picture_list(listed, [listed.parent, root], root, raw)))
    line, count = entries.get("classes", (0, ""))
    written = len(read_class_list(names))
    if count.isdigit() and int(count) != written:
        text = f"classes is {count}, but {names.name} has {written} names; these are used"
        raw.problems.append(Problem("bad_row", f"{file}:{line}", text))
    if any(root.glob("obj_*_data")):
        raw.exporter = "CVAT"
    return [names], splits or _by_folders(root, raw)


def _read_folder(root: Path, raw: RawDataset) -> tuple[list[Path], _Splits]:
    """The lists of classes and the pictures of each split of a folder without ``obj.data``."""
    roboflow = _roboflow_lists(root)
    if roboflow:
        raw.exporter = "Roboflow"
        folders = [file.parent for file in roboflow]
        raw.searched = ", ".join(map(str, folders))
        # The folder that was given may be one split of several, and then its name tells which.
        return roboflow, [
            (split_in_name(folder.name) if folder != root else None, _of_folder(folder, raw)) for folder in folders
        ]
    names, lists = _names_files(root)[:1], _lists(root)
    if [file.name for file in lists] == ["images.txt"]:
        raw.exporter = "FiftyOne"
    splits = [(_split(file.stem), read_picture_list(file, [root], root, raw)) for file in lists]
    return names, splits or _by_folders(root, raw)


def _by_folders(root: Path, raw: RawDataset) -> _Splits:
    """All pictures below a folder, whose sub-folders tell the splits."""
    splits: dict[str | None, list[Path]] = defaultdict(list)
    for picture in _of_folder(root, raw):
        splits[split_in_name(*picture.relative_to(root).parts[-2::-1])].append(picture)
    return list(splits.items())


def _of_folder(folder: Path, raw: RawDataset) -> list[Path]:
    pictures, notes = pictures_below(folder)
    raw.notes += notes
    return pictures


def _split(name: str) -> str | None:
    """The split that a key or a list names: one of the usual ones, or as it is called; None for a list of all pictures."""
    return split_in_name(name) or (None if name.lower() in _UNNAMED_LISTS else name)


def _class_list(root: Path, value: str) -> Path | None:
    """The list of classes that a path means. Elsewhere than in the data set it has to be one by its name: what is in it is shown as classes, and a
    path may name any file."""
    found = _find(root, value)
    if found is None or not found.is_file():
        return None
    inside = found.resolve().is_relative_to(root.resolve())
    return found if inside or found.suffix.lower() == ".names" else None


def _find(root: Path, value: str) -> Path | None:
    """The file or folder that a path means, with or without its first parts: CVAT writes ``data/``, which is not there."""
    if (root / value).exists():
        return root / value
    parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    found = (match_path(root, parts[start:]) for start in range(len(parts)))
    return next((place for place in found if place is not None), None)
