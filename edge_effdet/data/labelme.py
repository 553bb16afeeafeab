"""labelme JSON, which X-AnyLabeling writes too: a file for each picture, with the outlines of its objects.

The files may lie in any folders, whose names tell the split. Of an outline, its bounding box is taken.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edge_effdet.data.base import Problem, split_in_name
from edge_effdet.data.finder import PictureFinder, walk_files, walk_folders
from edge_effdet.data.json_files import (
    EntryLines,
    declared_size,
    first_character,
    has_list,
    open_json,
    picture_folders,
    picture_root,
    searched_places,
    unwrap,
)
from edge_effdet.data.raw import Certainty, RawBox, RawDataset, RawPicture
from edge_effdet.data.text import read_json
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import IMAGE_SUFFIXES

TITLE = "labelme JSON"

_PROBED = 20
"""So many JSON files tell whether those of a folder are labelme's."""

_LEAST_POINTS = {"rectangle": 2, "polygon": 3, "rotation": 4, "circle": 2}
"""The shapes that have a bounding box, and how many points they need."""

_OF_ANYLABELING = frozenset({"difficult", "kie_linking"})
_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", *sorted(IMAGE_SUFFIXES - {".jpg", ".jpeg", ".png"}))
_SHOWN = 3


def recognises(path: Path) -> Certainty:
    """How sure it is that ``path`` is a labelme file or a folder that holds some. Of a folder's JSON files, the first 20 are searched."""
    if path.is_file():
        return Certainty.SURE if path.suffix.lower() == ".json" and _seems_labelme(path) else Certainty.NO
    files = pictures = own = 0
    for folder, names in walk_folders(path):
        for name in names:
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 - a Path for each picture takes long
            pictures += suffix in IMAGE_SUFFIXES
            if suffix == ".json":
                files += 1
                own += files <= _PROBED and _seems_labelme(folder / name)
    if not own:
        return Certainty.NO
    # A few may have been left in a data set of another format.
    return Certainty.LIKELY if 2 * own >= min(files, _PROBED) and 2 * files >= pictures else Certainty.MAYBE


def read(path: Path) -> RawDataset:
    """Read every labelme file below ``path``. A file that is damaged becomes a problem, and the others are read."""
    root = picture_root(unwrap(path))
    raw = RawDataset(path, "labelme", [])
    finders: dict[Path, PictureFinder] = {}
    anywhere = PictureFinder([], root)
    parts: list[tuple[str | None, list[RawPicture]]] = []
    others = []
    for file in [path] if path.is_file() else _json_files(path):
        if not _has_shapes(file):
            others.append(file)
            continue
        folder = file.parent
        split = split_in_name(*reversed(folder.relative_to(root).parts)) if folder.is_relative_to(root) else None
        if folder not in finders:
            finders[folder] = PictureFinder([folder, *picture_folders(folder, root, split)])
        # In the folder of another split lie namesakes.
        picture = _read_file(file, [finders[folder], *([anywhere] if split is None else [])], raw)
        if picture is not None:
            parts.append((split, [picture]))
    raw.parts = parts
    raw.problems += dict.fromkeys(problem for finder in (*finders.values(), anywhere) for problem in finder.problems())
    if path.is_dir():
        raw.notes += _left_out(path, others, [picture.path for _, part in parts for picture in part])
    raw.searched = searched_places(finders.values(), root)
    return raw


def _json_files(folder: Path) -> Iterator[Path]:
    return (file for file in walk_files(folder) if file.suffix.lower() == ".json" and not file.name.startswith("._"))


def _has_shapes(file: Path) -> bool:
    content = open_json(file)
    return first_character(content) == "{" and has_list(content, "shapes")


def _seems_labelme(file: Path) -> bool:
    return _has_shapes(file) and open_json(file).find(b'"imagePath"') >= 0


def _read_file(file: Path, finders: Sequence[PictureFinder], raw: RawDataset) -> RawPicture | None:
    try:
        content = read_json(file)
    except DataError as error:
        text = str(error).removeprefix(f"{file} ").removesuffix(".")
        raw.problems.append(Problem("bad_row", str(file), f"skipped, because it {text}"))
        return None
    shapes = content.get("shapes")
    if not isinstance(shapes, list):
        raw.problems.append(Problem("bad_row", str(file), "skipped, because it has no list 'shapes'"))
        return None
    name = str(content.get("imagePath") or "")
    path = _find(name, file.stem, finders)
    if path is None:
        text = f"skipped the image {name or file.stem}, which is not there"
        if content.get("imageData"):
            text += "; the JSON holds a copy of it, which labelme_export_json writes to a file"
        raw.problems.append(Problem("missing_image", str(file), text))
        return None
    declared = declared_size(content.get("imageHeight"), content.get("imageWidth"))
    picture = RawPicture(file.stem, path, str(file), declared=declared)
    lines = EntryLines(file)
    for position, shape in enumerate(shapes):
        where = partial(_place, lines, position)
        box = _read_shape(shape, where)
        if isinstance(box, RawBox):
            picture.boxes.append(box)
        else:
            raw.problems.append(Problem("bad_row", where(), f"skipped {box}"))
            picture.rejected += 1
        if not raw.exporter and isinstance(shape, dict):
            raw.exporter = "X-AnyLabeling" if _OF_ANYLABELING & shape.keys() else "labelme"
    return picture


def _find(name: str, stem: str, finders: Sequence[PictureFinder]) -> Path | None:
    """The picture of a file. Where both were renamed, the path that the file holds is the old one, and the file's stem is the new one."""
    for finder in finders:
        path = finder.find(name) or finder.find(stem, _PICTURE_SUFFIXES)
        if path is not None:
            return path
    return None


def _place(lines: EntryLines, position: int) -> str:
    return f"{lines.file}:{lines.of('shapes', position)} shape {position + 1}"


def _read_shape(shape: Any, where: Callable[[], str]) -> RawBox | str:
    """The box around a shape, or what is wrong with it, to follow "skipped"."""
    if not isinstance(shape, dict) or not isinstance(shape.get("label"), str) or not shape["label"]:
        return f"a shape without a label ({str(shape)[:200]})"
    kind = str(shape.get("shape_type") or "polygon")
    if kind not in _LEAST_POINTS:
        return f"a shape of the type {kind} and the class {shape['label']}, which is not a box"
    try:
        points = [(float(x), float(y)) for x, y in shape["points"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return f"a {kind} whose points are not pairs of numbers ({str(shape.get('points'))[:200]})"
    if len(points) < _LEAST_POINTS[kind]:
        return f"a {kind} of {len(points)} points, which needs {_LEAST_POINTS[kind]}"
    if kind == "circle":
        (x, y), rim = points[:2]
        radius = math.dist((x, y), rim)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    x, y = zip(*points, strict=True)
    return RawBox((min(x), min(y), max(x), max(y)), shape["label"], bool(shape.get("difficult")), where)


def _left_out(root: Path, others: list[Path], read_pictures: list[Path]) -> list[str]:
    """Notes on the JSON files without shapes and on the pictures without a file, which beside labelme's files are not labelled yet."""
    used = set(read_pictures)
    unlabelled = [
        path
        for folder in dict.fromkeys(picture.parent for picture in read_pictures)
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in IMAGE_SUFFIXES and path not in used and not path.name.startswith("._")
    ]
    return [
        f"{root}: {', '.join(path.name for path in paths[:_SHOWN])}"
        f"{f' and {len(paths) - _SHOWN} more' if len(paths) > _SHOWN else ''} {'are' if len(paths) > 1 else 'is'} not read: {why}."
        for paths, why in ((others, "JSON without shapes"), (unlabelled, "pictures without a labelme file"))
        if paths
    ]
