"""CSV files with one box in each row: ``image_id,x_min,y_min,x_max,y_max,label[,fold]``.

One file, or a folder of files whose names tell the split (``train.csv``, ``test.csv``). In place of ``x_max,y_max`` a file may
have ``width,height``; other columns are ignored. A row with an empty box stands for an image without boxes. A column ``fold``
divides a file into the splits ``fold0``, ``fold1`` and so on, unless its name says that it is the split val or test.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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
from edge_effdet.runtime.images import IMAGE_SUFFIXES, image_size

HEADER = "image_id,x_min,y_min,x_max,y_max,label[,fold]"

_CORNERS = ("x_min", "y_min", "x_max", "y_max")
_CORNER_AND_SIZE = ("x_min", "y_min", "width", "height")


class _Box(NamedTuple):
    corners: tuple[float, float, float, float]
    label: str
    line: int


@dataclass(slots=True)
class _Picture:
    line: int
    fold: int | None
    boxes: list[_Box] = field(default_factory=list)


class _Columns(NamedTuple):
    """The positions of the columns in a row."""

    image_id: int
    box: tuple[int, ...]
    has_size: bool
    label: int
    fold: int | None


class _BadRow(Exception):
    """Says what is wrong with a row. It is raised and caught in this module only."""


def recognises(path: Path) -> bool:
    """Whether ``path`` is a CSV file, or a folder that holds one with the right header."""
    if path.is_file():
        return path.suffix.lower() == ".csv"
    return path.is_dir() and bool(_files(path))


def read(path: Path) -> Dataset:
    """Read a CSV file or a folder of CSV files. Classes are ordered by name.

    Raises:
        DataError: a file has no header or is not text, an image is in two folds, or no row has a box and a label.
    """
    problems: list[Problem] = []
    tables = {file: _read_table(file, problems) for file in (_files(path) if path.is_dir() else [path])}
    labels = {box.label for table in tables.values() for picture in table.values() for box in picture.boxes}
    if not labels:
        raise DataError(f"{path} holds no row with a box and a label; check that it is the right file.")
    class_names = tuple(sorted(labels))
    number = {name: index for index, name in enumerate(class_names)}
    names: list[str | None] = []
    parts: list[tuple[Sample, ...]] = []
    for file, table in tables.items():
        for name, samples in _read_samples(file, table, number, problems).items():
            names.append(name)
            parts.append(samples)
    parts = with_unique_ids(parts, path if path.is_dir() else path.parent)
    splits, notes = gather_splits(zip(names, parts, strict=True), path)
    return Dataset(
        path, "csv", class_names, tuple(range(1, len(class_names) + 1)), splits, notes, tuple(problems)
    )  # fmt: skip


def _files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.glob("*.csv")) if _has_header(file)]


def _has_header(file: Path) -> bool:
    with open(file, encoding="utf-8-sig", errors="replace") as stream:
        names = {name.strip().strip('"').lower() for name in stream.readline(4096).split(",")}
    return {"image_id", "label"} <= names


def _read_table(file: Path, problems: list[Problem]) -> dict[str, _Picture]:
    """The pictures of a file by their id, in the order of the file."""
    pictures: dict[str, _Picture] = {}
    rows = _rows(file)
    columns = _find_columns(file, next(rows, (1, []))[1])
    for line, cells in rows:
        try:
            image_id, fold, box = _read_row(cells, columns, line)
        except _BadRow as error:
            problems.append(Problem("bad_row", f"{file}:{line}", f"skipped a row: {error}"))
            continue
        picture = pictures.setdefault(image_id, _Picture(line, fold))
        if picture.fold != fold:
            raise DataError(
                f"{file}:{line} puts the image {image_id} into fold {fold}, but line {picture.line} into fold "
                f"{picture.fold}; give all rows of an image the same fold."
            )
        if box is not None:
            picture.boxes.append(box)
    return pictures


def _rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with its line number."""
    with open(file, newline="", encoding="utf-8-sig") as stream:
        reader = csv.reader(stream)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, [cell.strip() for cell in cells]
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(
                f"{file} cannot be read after line {reader.line_num} ({error}); save it as comma-separated text in UTF-8."
            ) from error


def _find_columns(file: Path, header: list[str]) -> _Columns:
    # Of two columns with the same name, the first is taken.
    positions = {name.lower(): column for column, name in reversed(list(enumerate(header)))}
    for box in (_CORNERS, _CORNER_AND_SIZE):
        if all(name in positions for name in ("image_id", "label", *box)):
            return _Columns(
                positions["image_id"],
                tuple(positions[name] for name in box),
                box is _CORNER_AND_SIZE,
                positions["label"],
                None if split_in_name(file.stem) in ("val", "test") else positions.get("fold"),
            )
    missing = ", ".join(name for name in ("image_id", *_CORNERS, "label") if name not in positions)
    raise DataError(
        f"{file} has no column {missing} in its first line ({','.join(header)[:80] or 'which is empty'}); write the header "
        f"{HEADER}."
    )


def _read_row(cells: list[str], columns: _Columns, line: int) -> tuple[str, int | None, _Box | None]:
    """A row as (image id, fold, box or None). Raises _BadRow."""
    wanted = max(columns.image_id, columns.label, columns.fold or 0, *columns.box)
    if len(cells) <= wanted:
        raise _BadRow(f"it has {len(cells)} columns, the header has more")
    image_id, label = cells[columns.image_id], cells[columns.label]
    if not image_id:
        raise _BadRow("it names no image")
    fold = None if columns.fold is None else _read_fold(cells[columns.fold])
    numbers = [cells[column] for column in columns.box]
    if not any(numbers):
        return image_id, fold, None
    try:
        x_min, y_min, third, fourth = (float(number) for number in numbers)
    except ValueError as error:
        raise _BadRow(f"its box ({', '.join(numbers)}) is not four numbers") from error
    if not label:
        raise _BadRow("it has a box and no label")
    corners = (x_min, y_min, x_min + third, y_min + fourth) if columns.has_size else (x_min, y_min, third, fourth)
    return image_id, fold, _Box(corners, label, line)


def _read_fold(cell: str) -> int:
    # pandas writes a column of whole numbers that has gaps as 0.0, 1.0.
    whole = cell.removesuffix(".0")
    if not (whole.isascii() and whole.isdecimal()):
        raise _BadRow(f"its fold {cell!r} is not a number from 0")
    return int(whole)


def _read_samples(
    file: Path, table: dict[str, _Picture], number: dict[str, int], problems: list[Problem]
) -> dict[str | None, tuple[Sample, ...]]:
    """The samples of a file by split; the key is None where neither the file's name nor a fold tells the split."""
    named = split_in_name(file.stem)
    parts: dict[str | None, list[Sample]] = {}
    finder = _ImageFinder(file, named)
    for image_id, picture in table.items():
        path = finder.find(image_id)
        if path is None:
            text = f"skipped the image {image_id}, which is not there"
            problems.append(Problem("missing_image", f"{file}:{picture.line}", text))
            continue
        try:
            height, width = image_size(path)
        except DataError as error:
            problems.append(unreadable_image(path, error))
            continue
        rows = [(box.corners, number[box.label], False) for box in picture.boxes]
        lines = [f"{file}:{box.line}" for box in picture.boxes]
        sample = make_sample(image_id, path, height, width, rows, lines.__getitem__, problems)
        split = named if picture.fold is None else f"fold{picture.fold}"
        parts.setdefault(split, []).append(sample)
    return {split: tuple(samples) for split, samples in parts.items()}


class _ImageFinder:
    """Finds the picture of an image id, which is a path below one of the usual folders, with or without a suffix."""

    def __init__(self, file: Path, split: str | None) -> None:
        names = ["", file.stem, "images", f"images/{file.stem}", *([split, f"images/{split}"] if split else [])]
        self._folders = [file.parent / name for name in dict.fromkeys(names) if (file.parent / name).is_dir()]
        self._by_stem: dict[Path, dict[str, Path]] = {}

    def find(self, image_id: str) -> Path | None:
        candidates = [folder / image_id for folder in self._folders]
        found = first_existing(candidates)
        return found or next((path for bare in candidates if (path := self._with_suffix(bare))), None)

    def _with_suffix(self, bare: Path) -> Path | None:
        folder = bare.parent
        if folder not in self._by_stem:
            files = sorted(folder.iterdir(), reverse=True) if os.path.isdir(folder) else []  # noqa: PTH112
            self._by_stem[folder] = {file.stem: file for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
        return self._by_stem[folder].get(bare.name)
