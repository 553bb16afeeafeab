"""Annotations in JSON files: where such files and their pictures lie, and what is in a file without building what it holds."""

from __future__ import annotations

import bisect
import json
import mmap
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import Size
from edge_effdet.data.base import split_in_name
from edge_effdet.data.finder import PictureFinder
from edge_effdet.data.raw import Certainty
from edge_effdet.data.text import read_text
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import IMAGE_SUFFIXES

_PICTURE_FOLDERS = frozenset({"images", "image", "imgs", "img", "data", "jpegimages"})
_ANNOTATION_FOLDERS = frozenset({"annotations", "annotation", "labels", "json"})
_OWN_FOLDERS = _PICTURE_FOLDERS | _ANNOTATION_FOLDERS
_MARK = b"\xef\xbb\xbf"
_SPACE = b" \t\r\n"
_OPENS_LIST = re.compile(rb"\s*:\s*\[")
_BETWEEN = re.compile(r"[\s,:]*")

Content = bytes | mmap.mmap


def unwrap(path: Path) -> Path:
    """The only folder in ``path``, where neither pictures nor JSON files lie beside it, as archives unpack; else ``path``.

    A folder whose name is a split's, or is usual for pictures or annotations, is a part of the data set and not its folder.
    """
    inner = subfolders(path) if path.is_dir() else []
    if len(inner) != 1 or inner[0].name.lower() in _OWN_FOLDERS or split_in_name(inner[0].name) is not None:
        return path
    beside = {Path(name).suffix.lower() for name in _file_names(path)}
    return path if beside & {".json", *IMAGE_SUFFIXES} else inner[0]


def json_candidates(folder: Path, certainty: Callable[[Path], Certainty]) -> dict[Path, Certainty]:
    """The JSON files that may hold annotations of many pictures: in the folder or its ``annotations``, and so in each split's folder.

    Args:
        folder: where to look.
        certainty: how sure the place and the name of a file make that it is of a format.
    """
    inner = subfolders(folder)
    places = [folder]
    for each in inner:
        if each.name.lower() in _ANNOTATION_FOLDERS:
            places.append(each)
        elif split_in_name(each.name) is not None:
            places += [each, each / "annotations"]
    found = {file: certainty(file) for place in places for file in _json_files(place)}
    # In folders of other names only what no other program writes.
    others = [file for each in inner if each not in places for file in _json_files(each)]
    return found | {file: Certainty.SURE for file in others if certainty(file) == Certainty.SURE}


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without hidden ones and what macOS puts into archives."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def _json_files(folder: Path) -> list[Path]:
    return [folder / name for name in _file_names(folder) if name.lower().endswith(".json")]


def _file_names(folder: Path) -> list[str]:
    """The names of the files in a folder, sorted, without hidden ones: macOS puts a file ``._x`` beside each ``x`` into archives."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_file() and not entry.name.startswith("."))
    except OSError:
        return []


def picture_root(path: Path) -> Path:
    """The folder below which the pictures of a data set lie, given its folder, a file of it, or the folder of its annotations."""
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name.lower() in _ANNOTATION_FOLDERS else folder


def split_of(file: Path, root: Path) -> str | None:
    """The split of a file, by its name or its folders below ``root``: ``train``, ``val``, ``test`` or what follows ``instances_``."""
    inner = file.relative_to(root) if root in file.parents else Path(file.name)
    split = split_in_name(inner.stem, *reversed(inner.parent.parts))
    if split is not None:
        return split
    name = inner.stem.removeprefix("instances_")
    return name if name != inner.stem and name.isidentifier() and name != "default" else None


def picture_folders(place: Path, root: Path, split: str | None, stem: str = "") -> list[Path]:
    """The folders that may hold the pictures of annotations, the likeliest first.

    They are those with the name of the annotation file or of its split, then ``images`` and the like, then the place itself; beside the
    annotations, beside their folder, and in the root.

    Args:
        place: the folder with the annotations.
        root: the folder of the data set.
        split: the split of the annotations.
        stem: the name of the annotation file without its suffix.
    """
    name = stem.removeprefix("instances_").casefold()
    bases = [place] if place == root else [place, place.parent, root]
    folders = [folder for base in dict.fromkeys(bases) for folder in _folders_of(base, name, split)]
    if folders == [root]:
        # Annotations in a folder of their own, beside the folder with pictures.
        folders += _folders_of(root.parent, name, split)
    return list(dict.fromkeys(folders))


def searched_places(finders: Iterable[PictureFinder], root: Path) -> str:
    """Where pictures were looked for, for ``RawDataset.searched``."""
    folders = dict.fromkeys(str(folder) for finder in finders for folder in finder.folders)
    return f"{', '.join(folders)} and, by file name alone, everywhere below {root}"


def _folders_of(base: Path, stem: str, split: str | None) -> list[Path]:
    def own(inside: Path) -> list[Path]:
        inner = subfolders(inside)
        named = [each for each in inner if each.name.casefold() == stem]
        return named + [each for each in inner if split is not None and split_in_name(each.name) == split]

    general = [each for each in subfolders(base) if each.name.casefold() in _PICTURE_FOLDERS]
    of_split = own(base)
    return [
        *of_split,
        *(each / "images" for each in of_split),
        *(each for one in general for each in own(one)),
        *general,
        base,
    ]


def declared_size(height: Any, width: Any) -> Size | None:
    """Height and width as written; None where they are no numbers or 0, as for a picture that an exporter could not open."""
    try:
        size = int(float(height)), int(float(width))
    except (TypeError, ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None


def open_json(file: Path) -> Content:
    """The content of a file for ``first_character`` and ``has_list``, mapped and not read, so that large files cost little.

    Text in UTF-16 is read and given as UTF-8. The content is empty where the file is, or cannot be read.
    """
    try:
        with open(file, "rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        return b""
    if content[:2] not in (b"\xff\xfe", b"\xfe\xff") and 0 not in content[:4]:
        return content
    try:
        return read_text(file).encode()
    except DataError:
        return b""


def first_character(content: Content) -> str:
    """``{`` for an object, ``[`` for a list, empty for nothing."""
    return content[:256].removeprefix(_MARK).lstrip(_SPACE)[:1].decode("latin-1")


def has_list(content: Content, key: str) -> bool:
    """Whether a key with a list as its value stands anywhere in the file."""
    quoted = f'"{key}"'.encode()
    at = content.find(quoted)
    while at >= 0:
        at += len(quoted)
        if _OPENS_LIST.match(content, at):
            return True
        at = content.find(quoted, at)
    return False


class EntryLines:
    """Tells the line of each entry of the lists in a JSON file. The text is read when the first line is asked for."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._starts: dict[str, list[int]] | None = None
        self._line_ends: list[int] = []

    def of(self, key: str, position: int) -> int:
        """The line, from 1, of an entry of the top-level list ``key``; where ``key`` is empty, of the list that the file is."""
        if self._starts is None:
            text = read_text(self.file)
            self._starts = _entry_starts(text)
            self._line_ends = [found.start() for found in re.finditer("\n", text)]
        return bisect.bisect_left(self._line_ends, self._starts[key][position]) + 1


def _entry_starts(text: str) -> dict[str, list[int]]:
    """The offset of each entry of each list in a JSON object, by key; of a list, by an empty key. The text must be valid JSON."""
    decoder = json.JSONDecoder()
    starts: dict[str, list[int]] = {}

    def skip(position: int) -> int:
        found = _BETWEEN.match(text, position)
        assert found is not None
        return found.end()

    def walk_list(key: str, at: int) -> int:
        starts[key] = []
        at = skip(at + 1)
        while text[at] != "]":
            starts[key].append(at)
            _, at = decoder.raw_decode(text, at)
            at = skip(at)
        return at + 1

    at = skip(0)
    if text[at] == "[":
        walk_list("", at)
        return starts
    at = skip(at + 1)
    while text[at] != "}":
        key, at = decoder.raw_decode(text, at)
        at = skip(at)
        if text[at] == "[":
            at = walk_list(key, at)
        else:
            _, at = decoder.raw_decode(text, at)
        at = skip(at)
    return starts
