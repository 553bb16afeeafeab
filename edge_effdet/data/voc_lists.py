"""The lists of ``ImageSets``, which tell the splits of a Pascal VOC folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from edge_effdet.data.base import Problem
from edge_effdet.data.finder import LIKELIEST_SUFFIXES, match_path, name_key
from edge_effdet.data.raw import RawDataset, RawPicture
from edge_effdet.data.text import read_text

_FLAG = re.compile(r"\s+[-+]?[01]$")
"""What stands behind each name in the challenge's lists of a class: whether the class is in the picture."""

_USUAL_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
    "trainval": "trainval",
    "default": None,
}
"""Names of lists, in lower case, and the split that they mean; CVAT's ``default`` lists all pictures of a task."""


def read_lists(
    folder: Path, pictures: Mapping[str, RawPicture | None], raw: RawDataset
) -> list[tuple[str | None, list[RawPicture]]]:
    """The pictures of each split by the lists in ``ImageSets/Main``, in ``ImageSets`` or beside the folder of annotations.

    A list is any text file there whose lines name pictures. A line is a name as a whole, with or without folders and suffix.

    Args:
        folder: the folder that holds ``ImageSets``.
        pictures: the picture of each XML file by the file's path without suffix; None for one that cannot be used, which is recorded.
        raw: gets the problems and notes.

    Returns:
        The splits, None for the pictures of no split; nothing where there is no list.

    Raises:
        DataError: a list is no text.
    """
    names = _Names(pictures)
    splits: dict[str | None, dict[int, RawPicture]] = {}
    for file, split in _split_lists(folder, pictures, names, raw):
        members = splits.setdefault(split, {})
        for line, text in _lines_of(file):
            image_id = names.find(text)
            if image_id is None:
                text = f"skipped {text}, which has no XML file"
                raw.problems.append(Problem("missing_image", f"{file}:{line}", text))
            elif (picture := pictures[image_id]) is not None:
                members[id(picture)] = picture
    listed = {key for members in splits.values() for key in members}
    left = [picture for picture in pictures.values() if picture is not None and id(picture) not in listed]
    if splits and left:
        raw.notes.append(
            f"{len(left)} picture{'s are' if len(left) > 1 else ' is'} in no list of a split and left out (first: {left[0].path})."
        )
    return [(split, list(members.values())) for split, members in splits.items()]


def _split_lists(
    folder: Path, pictures: Mapping[str, RawPicture | None], names: _Names, raw: RawDataset
) -> list[tuple[Path, str | None]]:
    """The files that list the pictures of a split, each with the split's name."""
    sets = match_path(folder, ("ImageSets", "Main")) or match_path(folder, ("ImageSets",))
    files = sorted(file for file in (sets or folder).iterdir() if file.suffix.lower() == ".txt" and file.is_file())
    classes = {str(box.label) for picture in pictures.values() if picture is not None for box in picture.boxes}
    stems = {file.stem.casefold() for file in files} | _USUAL_NAMES.keys()
    found: list[tuple[Path, str | None]] = []
    for file in files:
        usual = file.stem.casefold() in _USUAL_NAMES
        if sets is None and not usual:
            continue
        lines = [text for _, text in _lines_of(file)]
        if _is_of_a_class(file, lines, classes, stems):
            continue
        if any(map(names.find, lines)) or (usual and lines and sets is not None):
            found.append((file, _USUAL_NAMES[file.stem.casefold()] if usual else file.stem))
        else:
            raw.notes.append(f"{file} lists none of the pictures and is not read.")
    return found


def _is_of_a_class(file: Path, lines: Iterable[str], classes: Collection[str], stems: Collection[str]) -> bool:
    """Whether a file is one of the challenge's lists of a class and a split, as ``bird_train.txt``."""
    name, _, split = file.stem.rpartition("_")
    return bool(name) and split.casefold() in stems and (name in classes or all(map(_FLAG.search, lines)))


def _lines_of(file: Path) -> list[tuple[int, str]]:
    """The lines of a list that are not blank, with their numbers."""
    lines = enumerate(read_text(file).splitlines(), start=1)
    return [(line, text.strip()) for line, text in lines if text.strip()]


class _Names:
    """Finds an XML file by a line of a list: its path below the folder of annotations, in part, or with a suffix."""

    def __init__(self, image_ids: Iterable[str]) -> None:
        self._ids = dict.fromkeys(image_ids)
        self._by_key: dict[str, list[str]] = defaultdict(list)
        for image_id in self._ids:
            parts = image_id.split("/")
            for start in range(len(parts)):
                self._by_key[name_key("/".join(parts[start:]))].append(image_id)

    def find(self, text: str) -> str | None:
        """The path that a line means; None where it means none, or several. The whole line is the name, unless only a part of it is."""
        if text in self._ids:
            return text
        for name in dict.fromkeys((text, _FLAG.sub("", text))):
            parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
            for start in range(len(parts)):
                tail = "/".join(parts[start:])
                stem, dot, suffix = tail.rpartition(".")
                known = dot and f".{suffix.lower()}" in (*LIKELIEST_SUFFIXES, ".xml")
                for candidate in (tail, stem) if known else (tail,):
                    fitting = self._by_key.get(name_key(candidate), ())
                    if candidate in fitting:
                        return candidate
                    if len(fitting) == 1:
                        return fitting[0]
        return None
