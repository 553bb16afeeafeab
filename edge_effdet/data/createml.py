"""CreateML JSON: a list with an object for each picture, whose boxes are given by centre, width and height.

Roboflow writes a folder for each split with ``_annotations.createml.json`` in it; others, such as RectLabel, one file of any name.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from edge_effdet.data.base import Problem
from edge_effdet.data.finder import PictureFinder
from edge_effdet.data.json_files import (
    EntryLines,
    first_character,
    json_candidates,
    open_json,
    picture_folders,
    picture_root,
    searched_places,
    split_of,
    unwrap,
)
from edge_effdet.data.raw import Certainty, RawBox, RawDataset, RawPicture
from edge_effdet.data.text import read_json
from edge_effdet.errors import DataError

TITLE = "CreateML JSON"

_OWN_NAME = "_annotations.createml.json"
_IMAGE_KEYS = ("image", "imagefilename")
_ROW_KEYS = ("annotations", "annotation")
_HEAD = 1 << 20


def recognises(path: Path) -> Certainty:
    """How sure it is that ``path`` is a CreateML file or a folder that holds some. Of each file the first entry is read."""
    if path.is_file():
        is_own = path.suffix.lower() == ".json" and (path.name == _OWN_NAME or _seems_createml(path))
        return Certainty.SURE if is_own else Certainty.NO
    return max(_files(path).values(), default=Certainty.NO)


def read(path: Path) -> RawDataset:
    """Read every file of ``path``. A file that is damaged becomes a problem, and the others are read."""
    root = picture_root(unwrap(path))
    raw = RawDataset(path, "createml", [])
    parts: list[tuple[str | None, list[RawPicture]]] = []
    finders: list[PictureFinder] = []
    for file in [path] if path.is_file() else sorted(_files(path)):
        try:
            entries = read_json(file)
        except DataError as error:
            raw.problems.append(Problem("bad_row", str(file), f"skipped: {error}"))
            continue
        if not isinstance(entries, list):
            raw.problems.append(Problem("bad_row", str(file), "skipped, because it is no list of pictures"))
            continue
        split = split_of(file, root)
        # In the folder of another split lie namesakes.
        below = root if split is None else None
        finders.append(PictureFinder(picture_folders(file.parent, root, split, file.stem), below))
        parts.append((split, _read_pictures(file, entries, finders[-1], raw)))
        if file.name == _OWN_NAME:
            raw.exporter = "Roboflow"
    raw.parts = parts
    raw.problems += dict.fromkeys(problem for finder in finders for problem in finder.problems())
    raw.searched = searched_places(finders, root)
    return raw


def _certainty(file: Path) -> Certainty:
    return Certainty.SURE if file.name == _OWN_NAME else Certainty.LIKELY


def _files(folder: Path) -> dict[Path, Certainty]:
    return {
        file: certainty
        for file, certainty in json_candidates(unwrap(folder), _certainty).items()
        if certainty == Certainty.SURE or _seems_createml(file)
    }


def _seems_createml(file: Path) -> bool:
    """Whether the first entry of a list names a picture and has a list of annotations."""
    content = open_json(file)
    if first_character(content) != "[":
        return False
    try:
        # The end of the head may cut a letter of several bytes.
        head = content[:_HEAD].decode("utf-8-sig", errors="replace")
        entry, _ = json.JSONDecoder().raw_decode(head, head.index("{"))
    except (ValueError, RecursionError):
        return False
    return any(isinstance(entry.get(key), str) for key in _IMAGE_KEYS) and any(
        isinstance(entry.get(key), list) for key in _ROW_KEYS
    )


def _read_pictures(file: Path, entries: list[Any], finder: PictureFinder, raw: RawDataset) -> list[RawPicture]:
    lines = EntryLines(file)
    pictures: dict[str, RawPicture | None] = {}
    repeated = 0
    for position, entry in enumerate(entries):
        name = next((entry[key] for key in _IMAGE_KEYS if entry.get(key)), None) if isinstance(entry, dict) else None
        rows = next((entry[key] for key in _ROW_KEYS if isinstance(entry.get(key), list)), None) if name else None
        if not isinstance(name, str) or rows is None:
            text = f"skipped an entry without an image or a list of annotations ({str(entry)[:200]})"
            raw.problems.append(Problem("bad_row", f"{file}:{lines.of('', position)}", text))
            continue
        repeated += name in pictures
        if name not in pictures:
            path = finder.find(name)
            pictures[name] = None if path is None else RawPicture(name, path)
            if path is None:
                text = f"skipped the image {name}, which is not there"
                raw.problems.append(Problem("missing_image", f"{file}:{lines.of('', position)}", text))
        picture = pictures[name]
        if picture is None:
            continue
        for number, row in enumerate(rows, 1):
            where = partial(_place, lines, position, number)
            box = _read_box(row, where)
            if isinstance(box, RawBox):
                picture.boxes.append(box)
            else:
                raw.problems.append(Problem("bad_row", where(), box))
                picture.rejected += 1
    if repeated:
        raw.notes.append(f"{file}: {repeated} of {len(entries)} entries name a picture again; its boxes are joined.")
    return [picture for picture in pictures.values() if picture is not None]


def _place(lines: EntryLines, position: int, number: int) -> str:
    return f"{lines.file}:{lines.of('', position)} annotation {number}"


def _read_box(row: Any, where: Callable[[], str]) -> RawBox | str:
    """The box of an annotation, or what is wrong with it."""
    try:
        x, y, width, height = (float(row["coordinates"][key]) for key in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError, OverflowError):
        return f"skipped an annotation whose coordinates are not the numbers x, y, width and height ({str(row)[:200]})"
    label = row.get("label")
    if not isinstance(label, str) or not label:
        return f"skipped an annotation without a label ({str(row)[:200]})"
    # x and y are the centre.
    return RawBox((x - width / 2, y - height / 2, x + width / 2, y + height / 2), label, where=where)
