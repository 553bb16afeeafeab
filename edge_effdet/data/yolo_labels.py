"""YOLO's label files: a text file for each picture, with rows of class, centre, width and height in fractions of the picture.

A row with more numbers is an outline (6, 8, … numbers behind the class), whose bounding box is taken, or a box with a track id or a
confidence behind it (5 numbers).
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from edge_effdet.data.base import Problem
from edge_effdet.data.finder import LIKELIEST_SUFFIXES, PictureFinder, is_picture, match_path, name_key, walk_files
from edge_effdet.data.raw import RawBox, RawDataset, RawPicture
from edge_effdet.data.text import read_text
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import describe_unreadable

CLASS_LISTS = ("classes.txt", "predefined_classes.txt")
"""Text files that lie among labels and hold the names of the classes."""

_USUAL_ORDER = ("train", "val", "test")
_IMAGE_FOLDERS = frozenset({"images", "jpegimages"})
_LARGEST_FRACTION = 2.0
"""A larger coordinate is taken for pixels. Slightly more than 1 is a box that reaches beyond the picture."""

_SEPARATORS = re.compile(r"[,;\s]+")
_NUMBER_WITH_COMMA = re.compile(r"[-+]?\d*(,\d+)?")
_MOST = 0.5
"""From this share of the rows on, a mistake is told once for the whole data set and not for each row."""

_HEAD = 4096
_TRIED_FILES = 100
"""So many text files are opened to see whether YOLO's rows are in them: files of background are empty."""


def read_labels(
    raw: RawDataset, splits: Iterable[tuple[str | None, Sequence[Path]]], keypoints: bool = False
) -> set[Path]:
    """Read the labels of pictures into ``raw.parts``, and what there is to say of them into its notes and problems.

    The labels of ``…/images/a.jpg`` are in ``…/labels/a.txt``, or in ``a.txt`` beside the picture. A picture without a label file is
    background, as for Ultralytics, but a split in which no picture has one is left out.

    Args:
        raw: gets the parts; ``raw.root`` is searched for label files in other folders where there are none.
        splits: the pictures of each split.
        keypoints: whether keypoints follow the box in each row.

    Returns:
        The label files that belong to pictures.

    Raises:
        DataError: no picture has a label file.
    """
    reader = _Reader(keypoints)
    parts = [(split, [reader.read(path) for path in dict.fromkeys(paths)]) for split, paths in splits]
    parts.sort(key=lambda part: _USUAL_ORDER.index(part[0]) if part[0] in _USUAL_ORDER else len(_USUAL_ORDER))
    labelled = [(split, part) for split, part in parts if any(picture.where for picture in part)]
    pictures = [picture for _, part in parts for picture in part]
    if pictures and not labelled:
        raise DataError(f"{raw.root}: {_no_labels(raw.root, pictures)}.")
    for split, part in parts:
        if part and not any(picture.where for picture in part):
            text = f"left out the split {split or 'without a name'}: {_no_labels(raw.root, part)}"
            raw.problems.append(Problem("no_labels", str(part[0].path), text))
    raw.parts = labelled
    reader.report(raw, [picture for _, part in labelled for picture in part])
    return reader.used


def read_class_list(file: Path) -> dict[int, str]:
    """The names of the classes by number, from a file with one name a line. A blank line takes a number, too.

    Raises:
        DataError: the file holds no name, or is no text.
    """
    names = {number: line.strip() for number, line in enumerate(read_text(file).splitlines()) if line.strip()}
    if not names:
        raise DataError(f"{file} holds no name of a class; write one name a line, in the order of their numbers.")
    return names


def read_one_class_list(files: Sequence[Path]) -> dict[int, str]:
    """The names that several lists agree on. Raises DataError where they differ: a number would mean several classes."""
    lists = {file: read_class_list(file) for file in files}
    first = files[0]
    other = next((file for file in files if lists[file] != lists[first]), None)
    if other is not None:
        raise DataError(
            f"{first} and {other} give the classes other names or another order, so their numbers mean different classes; read the "
            "folders one by one, or number the classes alike."
        )
    return lists[first]


def looks_like_rows(file: Path) -> bool:
    """Whether a text file begins with a row of YOLO's numbers."""
    if not file.is_file():
        return False
    try:
        with open(file, "rb") as stream:
            head = stream.read(_HEAD).replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe")
        line = next((line for line in head.decode("latin-1").splitlines() if line.strip()), "")
        number, *values = _numbers(line)[0]
    except (OSError, ValueError):
        return False
    return number.is_integer() and len(values) >= 4


def holds_rows(folder: Path) -> bool:
    """Whether one of the first text files below a folder begins with a row of YOLO's numbers."""
    texts = (
        file for file in walk_files(folder) if file.suffix.lower() == ".txt" and file.name.lower() not in CLASS_LISTS
    )
    return any(map(looks_like_rows, islice(texts, _TRIED_FILES)))


def labels_without_picture(folder: Path, used: set[Path], rows_only: bool) -> list[Problem]:
    """A problem for each label file below a folder that belongs to no picture.

    Args:
        folder: the folder.
        used: the label files that belong to one.
        rows_only: whether other text files may lie there, so that only files with rows count.
    """
    return [
        Problem("missing_image", f"{label}:1", f"skipped {label.name}: it has no picture")
        for label in walk_files(folder)
        if label.suffix.lower() == ".txt"
        and label not in used
        and label.name.lower() not in CLASS_LISTS
        and not (rows_only and not looks_like_rows(label))
    ]


def pictures_below(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures below a folder; of those that differ in their suffixes alone the likeliest photo, since a label file means one picture.

    Returns:
        The pictures, and notes on those that are left out.
    """
    files = list(walk_files(folder))
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in files:
        if is_picture(path):
            groups[path.parent, path.stem].append(path)
    for group in groups.values():
        group.sort(key=lambda path: LIKELIEST_SUFFIXES.index(path.suffix.lower()))
    passed = [path for group in groups.values() for path in group[1:]]
    notes = []
    if passed:
        notes.append(
            f"{_counted(len(passed), 'picture is', 'pictures are')} not read, because another one has the same name and another suffix, "
            f"and a label file means one picture (first: {passed[0]})."
        )
    if unreadable := describe_unreadable(files):
        notes.append(f"{folder}: left out {unreadable}.")
    return [group[0] for group in groups.values()], notes


def label_folder(folder: Path) -> Path | None:
    """The folder with ``labels`` in place of the last ``images`` (or ``JPEGImages``); None where there is no such part."""
    parts = folder.parts
    for last in reversed(range(len(parts))):
        if parts[last].casefold() in _IMAGE_FOLDERS:
            wanted = ("labels", *parts[last + 1 :])
            parent = Path(*parts[:last])
            return match_path(parent, wanted) or parent.joinpath(*wanted)
    return None


class _Folder(NamedTuple):
    """Where the labels of one folder's pictures may lie, the likeliest first."""

    places: list[Path]
    finders: list[PictureFinder]


class _Row(NamedTuple):
    where: str
    text: str


class _Reader:
    """Reads the label files of pictures and gathers what there is to say of them all.

    Attributes:
        used: the label files that were read.
    """

    def __init__(self, keypoints: bool) -> None:
        self.used: set[Path] = set()
        self._keypoints = keypoints
        self._pictures: dict[Path, RawPicture] = {}
        self._folders: dict[Path, _Folder] = {}
        self._problems: list[Problem] = []
        self._rows = 0
        self._separated: list[Path] = []
        self._with_extra: list[_Row] = []
        self._large: list[_Row] = []

    def read(self, path: Path) -> RawPicture:
        """A picture with its boxes; ``where`` is empty if it has no label file. A picture of several splits is read once."""
        if path not in self._pictures:
            picture = self._pictures[path] = RawPicture(path.stem, path)
            label = self._label(path)
            if label is not None:
                self.used.add(label)
                picture.where = f"{label}:1"
                try:
                    self._read_rows(picture, label, read_text(label))
                except DataError as error:
                    self._problems.append(Problem("encoding", picture.where, f"skipped, because {error}"))
                    picture.rejected += 1
        return self._pictures[path]

    def report(self, raw: RawDataset, pictures: Sequence[RawPicture]) -> None:
        """Add what was found to the notes and problems. ``pictures`` are those that stay in the data set."""
        raw.problems += self._problems
        if len(self._large) > _MOST * self._rows:
            where, row = self._large[0]
            text = (
                f"skipped {len(self._large)} of {self._rows} rows, whose numbers are most likely pixels and not fractions of the picture; "
                f"divide x and width by the picture's width, y and height by its height (first: {row!r})"
            )
            raw.problems.append(Problem("bad_row", where, text))
        else:
            reason = "its numbers are not fractions of the picture; divide pixels by its width and height"
            raw.problems += [_bad_row("bad_row", row, reason) for row in self._large]
        background = list(dict.fromkeys(picture.path for picture in pictures if not picture.where))
        if background:
            raw.notes.append(
                f"{_counted(len(background), 'picture without a label file counts', 'pictures without a label file count')} as background, "
                f"as for Ultralytics (first: {background[0]})."
            )
        if self._separated:
            raw.notes.append(
                f"{_counted(len(self._separated), 'label file separates', 'label files separate')} numbers by commas or semicolons and "
                f"not by blanks; the numbers are read all the same (first: {self._separated[0]})."
            )
        if self._with_extra:
            raw.notes.append(
                f"{_counted(len(self._with_extra), 'row has', 'rows have')} a number behind the box, most likely a track id or a "
                f"confidence, which is not read (first: {self._with_extra[0].where}, {self._with_extra[0].text!r})."
            )

    def _label(self, picture: Path) -> Path | None:
        folder = self._folders.get(picture.parent)
        if folder is None:
            places = _label_places(picture.parent)
            folder = self._folders[picture.parent] = _Folder(places, [PictureFinder([place]) for place in places])
        name = f"{picture.stem}.txt"
        for place in folder.places:
            if (place / name).is_file():
                return place / name
        # Some programs keep the picture's suffix.
        found = (finder.find(each) for each in (name, f"{picture.name}.txt") for finder in folder.finders)
        return next((label for label in found if label is not None), None)

    def _read_rows(self, picture: RawPicture, label: Path, text: str) -> None:
        separated = False
        for line, content in enumerate(text.splitlines(), start=1):
            if not content.strip():
                continue
            self._rows += 1
            row = _Row(f"{label}:{line}", content.strip()[:60])
            try:
                (number, *values), unusual = _numbers(content)
            except ValueError:
                self._reject(picture, "bad_row", row, "it is not all numbers")
                continue
            separated |= unusual
            if self._keypoints:
                values = values[:4]
            elif len(values) == 5:
                self._with_extra.append(row)
                values = values[:4]
            fault = _row_fault(number, values)
            if fault is not None:
                self._reject(picture, fault[0], row, fault[1])
            elif max(map(abs, values)) > _LARGEST_FRACTION:
                self._large.append(row)
                picture.rejected += 1
            else:
                picture.boxes.append(RawBox(_corners(values), int(number), where=row.where))
        if separated:
            self._separated.append(label)

    def _reject(self, picture: RawPicture, kind: str, row: _Row, reason: str) -> None:
        self._problems.append(_bad_row(kind, row, reason))
        picture.rejected += 1


def _numbers(row: str) -> tuple[list[float], bool]:
    """The numbers of a row, and whether something else than blanks separates them. Raises ValueError where they are no numbers."""
    words = row.split()
    if "," not in row and ";" not in row:
        return [float(word) for word in words], False
    if ";" in row:
        words = [word.replace(",", ".") for word in re.split(r"[;\s]+", row)]
    elif len(words) > 4 and all(map(_NUMBER_WITH_COMMA.fullmatch, words)):
        words = [word.replace(",", ".") for word in words]
    else:
        words = _SEPARATORS.split(row)
    return [float(word) for word in words if word], True


def _row_fault(number: float, values: Sequence[float]) -> tuple[str, str] | None:
    """The kind of a row's problem and what is wrong; None if nothing is wrong."""
    if not number.is_integer():
        return "bad_row", "its first number is not the number of a class"
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        return "bad_row", f"{len(values)} numbers after the class are neither a box (4) nor an outline (6, 8, …)"
    if not all(map(math.isfinite, values)):
        return "not_finite", "its numbers are not all finite"
    if len(values) == 4 and min(values[2:]) < 0:
        return "bad_row", "its width or height is negative"
    return None


def _corners(values: Sequence[float]) -> tuple[float, float, float, float]:
    if len(values) == 4:
        x, y, width, height = values
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    return min(values[0::2]), min(values[1::2]), max(values[0::2]), max(values[1::2])


def _bad_row(kind: str, row: _Row, reason: str) -> Problem:
    return Problem(kind, row.where, f"skipped the row {row.text!r}: {reason}")


def _label_places(folder: Path) -> list[Path]:
    """Where the labels of a folder's pictures may lie, the likeliest first."""
    return [place for place in (label_folder(folder), folder) if place is not None]


def _no_labels(root: Path, pictures: Sequence[RawPicture]) -> str:
    """That no picture has a label file, where was looked, and where such files lie in place of that."""
    folders = dict.fromkeys(picture.path.parent for picture in pictures)
    searched = list(dict.fromkeys(place for folder in folders for place in _label_places(folder)))
    stems = {name_key(picture.path.stem) for picture in pictures}
    elsewhere = Counter(
        file.parent
        for file in walk_files(root if root.is_dir() else root.parent)
        if file.suffix.lower() == ".txt" and file.parent not in searched and name_key(file.stem) in stems
    )
    lies = ", ".join(f"{folder} ({count} files)" for folder, count in list(elsewhere.items())[:3])
    cure = f"files of the pictures' names are in {lies}: move them to the first place" if lies else "put them there"
    return (
        f"none of {len(pictures)} pictures has a label file; label files were looked for in {', '.join(map(str, searched[:4]))}"
        f"{' and more' if len(searched) > 4 else ''}; {cure}"
    )


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
