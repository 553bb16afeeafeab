"""Tables with the boxes of pictures, as CSV files of many programs.

``csv_columns`` finds the columns. ``width`` and ``height`` are the box's, unless its second corner or a list of its numbers is there: then they are
the picture's. A row with an empty box stands for a picture without boxes.

A folder may hold several tables. Names of files, or of their folders, tell the split; a column ``fold`` divides a table into the splits
``fold0``, ``fold1`` and so on, unless it is the split val or test.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import os
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_effdet.data.base import Problem, split_in_name
from edge_effdet.data.csv_columns import NUMBER, Columns, Form, find_form, is_nearly_table, missing_columns, table_rows
from edge_effdet.data.finder import LIKELIEST_SUFFIXES, PictureFinder
from edge_effdet.data.raw import Certainty, RawBox, RawDataset, RawPicture
from edge_effdet.data.text import decode_text, read_text
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import IMAGE_SUFFIXES

TITLE = "CSV"
ONLY_CLASS = "object"
"""The class of all boxes of a table without a column of classes."""

_SUFFIXES = (".csv", ".tsv")
_FOLDERS = frozenset({"annotations", "annotation", "labels", "label", "csv"})
"""Folders with tables, beside those with the name of a split."""

_CLASS_FILE = "class-descriptions"
_HEAD = 65536
"""So many bytes of a file tell whether it is a table of boxes."""

_EMPTY = frozenset({"", "[]", "nan", "na", "none", "null"})
_YES = frozenset({"1", "1.0", "true", "yes"})


@dataclass(slots=True)
class _Table:
    """What was read from a file.

    Attributes:
        file, columns: the file, and what its columns are.
        split: the split that the names of the file and its folder tell; None where they tell none.
        pictures: its pictures by ``_key`` of their names.
        folds: the fold of each of these pictures, or None.
    """

    file: Path
    columns: Columns
    split: str | None
    pictures: dict[str, RawPicture] = field(default_factory=dict)
    folds: dict[str, int | None] = field(default_factory=dict)

    def boxes(self) -> list[RawBox]:
        return [box for picture in self.pictures.values() for box in picture.boxes]


class _BadRow(Exception):
    """Says what is wrong with a row. It is raised and caught in this module only."""


def recognises(path: Path) -> Certainty:
    """How sure it is that ``path`` is a CSV file, or a folder that holds tables of boxes."""
    if path.is_file():
        return Certainty.SURE if path.name.lower().endswith(_SUFFIXES) else Certainty.NO
    surest = Certainty.NO
    for file in _files(path):
        form = _form_of(file)
        if form is not None and form.columns is not None:
            # Roboflow's name for it.
            surest = max(surest, Certainty.SURE if file.stem == "_annotations" else Certainty.LIKELY)
        elif form is not None and is_nearly_table(form.first_row):
            surest = max(surest, Certainty.MAYBE)
    return surest


def read(path: Path) -> RawDataset:
    """Read a CSV file, or all tables of boxes of a folder.

    Raises:
        DataError: a file that was given is no table of boxes or no text, a picture is in two folds, some tables are in pixels and some in
            fractions, or no row has a box.
    """
    raw = RawDataset(path, "csv", [])
    root = _root(path)
    files = _files(root)
    class_files = [file for file in files if _CLASS_FILE in file.name.lower() and file != path]
    chosen = [file for file in files if file not in class_files] if path.is_dir() else [path]
    tables = _read_tables(path, chosen, _class_names(class_files, raw.problems), raw)
    raw.fractions = _in_fractions(tables)
    raw.parts = _place_pictures(tables, root, raw)
    raw.exporter = _exporter(root, tables) or ("Open Images" if raw.fractions else "")
    return raw


def _files(root: Path) -> list[Path]:
    """The CSV files of a folder, and of those below it that usually hold some."""
    files: list[Path] = []
    for folder in (root, *(each for each in _folders_in(root) if each.name.lower() in _FOLDERS or _split_of(each))):
        named = (folder / name for name in _names_in(folder) if name.lower().endswith(_SUFFIXES))
        files += [file for file in named if file.is_file()]
    return files


def _split_of(folder: Path) -> str | None:
    """The split whose name a folder has, as train2017; not one that only contains it, as test-results."""
    return split_in_name("".join(filter(str.isalpha, folder.name)))


def _names_in(folder: Path) -> list[str]:
    """The names of all that is in a folder, sorted, but for hidden ones."""
    try:
        # Paths take long to sort, and a folder may hold all pictures.
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))  # noqa: PTH208
    except OSError:
        return []


def _folders_in(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def _root(path: Path) -> Path:
    """The folder of the data set: that of a file that was given, or the one above where the file lies among annotations."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name.lower() in _FOLDERS else path.parent


def _form_of(file: Path) -> Form | None:
    """The form of a file by its head; None for one that is no text."""
    try:
        with open(file, "rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return None
    # The end of the head may lie within a letter of several bytes.
    for cut in range(4):
        with contextlib.suppress(DataError):
            return find_form(decode_text(head[: len(head) - cut], file)[0])
    return None


def _class_names(files: Sequence[Path], problems: list[Problem]) -> dict[str, str]:
    """The name of each of Open Images' labels, such as /m/015p6."""
    names: dict[str, str] = {}
    for file in files:
        try:
            text = read_text(file)
        except DataError as error:
            problems.append(Problem("encoding", str(file), str(error).removeprefix(f"{file} ")))
            continue
        names.update((cells[0], cells[1]) for _, cells in table_rows(text, find_form(text).delimiter) if len(cells) > 1)
    return names


def _read_tables(path: Path, files: Sequence[Path], names: Mapping[str, str], raw: RawDataset) -> list[_Table]:
    tables: list[_Table] = []
    others: list[tuple[Path, list[str]]] = []
    for file in files:
        try:
            text = read_text(file)
        except DataError as error:
            if file == path:
                raise
            raw.problems.append(Problem("encoding", str(file), str(error).removeprefix(f"{file} ")))
            continue
        form = find_form(text)
        if form.columns is None:
            others.append((file, form.first_row))
            continue
        split = split_in_name(file.stem) or (_split_of(file.parent) if path.is_dir() and file.parent != path else None)
        table = _Table(file, form.columns, split)
        raw.notes += _notes_on(table)
        _read_table(table, text, form.delimiter, names, raw.problems)
        tables.append(table)
    if not tables and others:
        raise DataError(missing_columns(*max(others, key=lambda other: is_nearly_table(other[1]))))
    if others:
        shown = ", ".join(file.name for file, _ in others[:3]) + (" and more" if len(others) > 3 else "")
        raw.notes.append(f"{path}: {shown} {'are no tables' if len(others) > 1 else 'is no table'} of boxes, not read.")
    if not raw.problems and not any(table.boxes() for table in tables):
        raise DataError(f"{path} holds no row with a box; check that it is the right file.")
    return tables


def _notes_on(table: _Table) -> Iterator[str]:
    if not table.columns.has_header:
        yield (
            f"{table.file} has no header; its columns are read as path, x_min, y_min, x_max, y_max and class, as keras-retinanet has them."
        )
    if table.columns.label is None:
        yield f"{table.file} has no column of classes; all of its boxes are of one class, {ONLY_CLASS}."


def _read_table(table: _Table, text: str, delimiter: str, names: Mapping[str, str], problems: list[Problem]) -> None:
    rows = table_rows(text, delimiter)
    if table.columns.has_header:
        next(rows)
    line = 1
    try:
        for line, cells in rows:
            _read_row(table, line, cells, names, problems)
    except csv.Error as error:
        raise DataError(
            f"{table.file} cannot be read after line {line} ({error}); save it as comma-separated text."
        ) from error


def _read_row(table: _Table, line: int, cells: list[str], names: Mapping[str, str], problems: list[Problem]) -> None:
    """Add a row to the table, or record what is wrong with it."""
    columns, where = table.columns, f"{table.file}:{line}"
    name = cells[columns.image] if columns.image < len(cells) else ""
    if not name:
        problems.append(Problem("bad_row", where, "skipped a row: it names no image"))
        return
    key = _key(name)
    picture = table.pictures.get(key)
    if picture is None:
        picture = table.pictures[key] = RawPicture(name, Path(), where, declared=_read_declared(cells, columns))
    try:
        # A table of validation or test has no use for folds.
        fold = None if columns.fold is None or table.split in ("val", "test") else _read_fold(cells[columns.fold])
        boxes = _read_boxes(cells, columns, where, names)
    except (_BadRow, IndexError) as error:
        text = str(error) if isinstance(error, _BadRow) else f"it has {len(cells)} columns, which is too few"
        problems.append(Problem("bad_row", where, f"skipped a row: {text}"))
        picture.rejected += 1
        return
    if table.folds.setdefault(key, fold) != fold:
        raise DataError(
            f"{where} puts the image {name} into fold {fold}, and an earlier row into fold {table.folds[key]}; give all rows of an image "
            "the same fold."
        )
    picture.boxes.extend(boxes)


def _key(name: str) -> str:
    """A picture's name, the same for each way to write it."""
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _read_fold(cell: str) -> int:
    # pandas writes a column of whole numbers that has gaps as 0.0, 1.0.
    whole = cell.removesuffix(".0")
    if not (whole.isascii() and whole.isdecimal()):
        raise _BadRow(f"its fold {cell!r} is not a number from 0")
    return int(whole)


def _read_declared(cells: Sequence[str], columns: Columns) -> tuple[int, int] | None:
    try:
        height, width = (int(float(cells[column])) for column in columns.declared or ())
    except (ValueError, OverflowError, IndexError):
        return None
    return (height, width) if min(height, width) > 0 else None


def _read_boxes(cells: Sequence[str], columns: Columns, where: str, names: Mapping[str, str]) -> list[RawBox]:
    """The boxes of a row. Raises _BadRow, or IndexError where columns are missing."""
    values = [cells[column] for column in columns.box]
    label = ONLY_CLASS if columns.label is None else cells[columns.label]
    if values[0].lower() in _EMPTY and all(value.lower() in _EMPTY for value in values):
        return []
    if not label:
        raise _BadRow("it has a box and no label")
    found = [_numbers(values)] if len(values) == 4 else _listed(values[0])
    ignore = columns.ignore is not None and cells[columns.ignore].lower() in _YES
    return [
        RawBox(
            (x, y, x + third, y + fourth) if columns.has_size else (x, y, third, fourth),
            names.get(each, each),
            ignore,
            where,
        )
        for (x, y, third, fourth), each in zip(found, _labels(label, len(found)), strict=True)
    ]


def _numbers(cells: Sequence[str]) -> list[float]:
    try:
        # A cell can have a comma only where another sign divides the columns, and then it is the decimal sign.
        return [float(cell.replace(",", ".")) for cell in cells]
    except ValueError as error:
        raise _BadRow(f"its box ({', '.join(cells)}) is not four numbers") from error


def _listed(cell: str) -> list[list[float]]:
    """The boxes, x, y, width and height each, of a cell like ``[10, 10, 30, 30]`` or ``[{'x': 10, 'y': 10, 'width': 30, 'height': 30}]``."""
    try:
        if "{" in cell:
            return [[float(row[name]) for name in ("x", "y", "width", "height")] for row in ast.literal_eval(cell)]
        numbers = [float(number) for number in NUMBER.findall(cell)]
    except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError) as error:
        raise _BadRow(f"its boxes ({cell[:80]}) are no list of x, y, width and height") from error
    if not numbers or len(numbers) % 4:
        raise _BadRow(f"its box ({cell[:80]}) is not four numbers")
    return [numbers[start : start + 4] for start in range(0, len(numbers), 4)]


def _labels(label: str, count: int) -> list[str]:
    """The class of each box of a row. SIIM-COVID's cell has six words a box: class, certainty and corners."""
    words = label.split()
    several = len(words) == 6 * count and all(NUMBER.fullmatch(word) for word in words[1:6])
    return words[::6] if several else [label] * count


def _in_fractions(tables: Sequence[_Table]) -> bool:
    """Whether the boxes are fractions of their pictures. Raises DataError where those of some tables are, and of others are not."""
    found: dict[bool, Path] = {}
    for table in tables:
        boxes = table.boxes()
        small = sum(max(map(abs, box.corners)) <= 1 for box in boxes)
        if boxes:
            found.setdefault(table.columns.fractions and 2 * small > len(boxes), table.file)
    if len(found) > 1:
        raise DataError(
            f"The boxes of {found[True]} are fractions of the picture and those of {found[False]} are pixels; read them apart, or write "
            "both in pixels."
        )
    return True in found


def _place_pictures(tables: Sequence[_Table], root: Path, raw: RawDataset) -> list[tuple[str | None, list[RawPicture]]]:
    """Find the pictures of all tables, and sort them into splits."""
    parts: dict[str | None, list[RawPicture]] = defaultdict(list)
    placed: dict[tuple[str | None, Path], tuple[_Table, RawPicture]] = {}
    searched: dict[str, None] = {}
    joined = same = 0
    for table in tables:
        finder = PictureFinder(_picture_folders(table, root), root)
        for key, picture in table.pictures.items():
            name = picture.image_id
            # SIIM-COVID writes the picture a as a_image.
            path = finder.find(name, LIKELIEST_SUFFIXES) or finder.find(name.removesuffix("_image"), LIKELIEST_SUFFIXES)
            if path is None:
                text = f"skipped the image {name}, which is not there"
                raw.problems.append(Problem("missing_image", picture.where, text))
                continue
            picture.path = path
            fold = table.folds.get(key)
            split = table.split if fold is None else f"fold{fold}"
            first, earlier = placed.setdefault((split, path), (table, picture))
            if first is table:
                parts[split].append(picture)
                continue
            known = {(box.corners, box.label) for box in earlier.boxes}
            added = [box for box in picture.boxes if (box.corners, box.label) not in known]
            joined, same = joined + 1, same + len(picture.boxes) - len(added)
            earlier.boxes += added
            earlier.rejected += picture.rejected
        raw.problems += finder.problems()
        searched.update(dict.fromkeys(map(str, finder.folders)))
    if joined:
        raw.notes.append(
            f"{raw.root}: several tables of one split list the same pictures ({joined}); their boxes are joined, and {same} that are the same "
            "are taken once."
        )
    raw.notes += _without_rows(root, [picture.path for part in parts.values() for picture in part])
    raw.searched = ", ".join(searched)
    return list(parts.items())


def _picture_folders(table: _Table, root: Path) -> Iterator[Path]:
    """Where the pictures of a table may lie, the likeliest first."""
    for base in dict.fromkeys((table.file.parent, root)):
        for holder in (base, base / "images", base / "data"):
            yield holder
            yield holder / table.file.stem
            if table.split is not None:
                yield from (each for each in _folders_in(holder) if split_in_name(each.name) == table.split)


def _without_rows(root: Path, used: Sequence[Path]) -> list[str]:
    """A note on pictures that lie beside those of the tables and that no row names."""
    names: dict[Path, set[str]] = defaultdict(set)
    for path in used:
        names[path.parent].add(path.name)
    suffixes = tuple(IMAGE_SUFFIXES)
    others = [
        folder / name
        for folder, known in names.items()
        for name in _names_in(folder)
        if name not in known and name.lower().endswith(suffixes)
    ]
    if not others:
        return []
    many = len(others) > 1
    return [
        f"{root}: {len(others)} picture{'s have' if many else ' has'} no row and {'are' if many else 'is'} not used (first: {others[0]})."
    ]


def _exporter(root: Path, tables: Sequence[_Table]) -> str:
    folders = {root, *(table.file.parent for table in tables)}
    if any((folder / "README.roboflow.txt").is_file() for folder in folders) or any(
        table.file.stem == "_annotations" for table in tables
    ):
        return "Roboflow"
    return "CVAT" if any((folder / "images.meta").is_file() for folder in folders) else ""
