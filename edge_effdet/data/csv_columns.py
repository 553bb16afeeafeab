"""What the columns of a table of boxes are: by the names in its first row, or in keras-retinanet's order where it has no header.

Ours are ``image_id,x_min,y_min,x_max,y_max,label[,fold]``. Read are also those of TFOD and Roboflow, Kaggle's wheat, SIIM-COVID and RSNA, and Open
Images, in any order and case.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

HEADER = "image_id,x_min,y_min,x_max,y_max,label[,fold]"

_SYNONYMS = {
    "image": (
        *("filename", "filepath", "imagepath", "imagefile", "imagename", "imageid", "image", "file", "imgpath"),
        *("imgname", "imgid", "img", "path", "patientid", "id", "name"),
    ),
    "label": (
        *("labelname", "classname", "categoryname", "label", "class", "category", "name"),
        *("labelid", "classid", "categoryid"),
    ),
    "x_min": ("xmin", "x0", "x1", "left", "x"),
    "y_min": ("ymin", "y0", "y1", "top", "y"),
    "x_max": ("xmax", "x2", "x1", "right"),
    "y_max": ("ymax", "y2", "y1", "bottom"),
    "width": ("width", "w"),
    "height": ("height", "h"),
    "image_width": ("imagewidth", "imgwidth"),
    "image_height": ("imageheight", "imgheight"),
    "boxes": ("bbox", "boundingbox", "boxes", "bboxes"),
    "ignore": ("isgroupof", "iscrowd", "difficult", "ignore"),
    "fold": ("fold", "kfold"),
}
"""The names of each column, without case, spaces and punctuation. Of several that are there, the first is taken."""

_OF_FRACTIONS = frozenset({"isgroupof", "labelname"})
"""Columns of Open Images, whose boxes are in fractions of the picture."""

_DELIMITERS = (",", ";", "\t")
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
_FILE_NAME = re.compile(r".*\.\w+")
_HEAD = 65536
"""So many characters of a file tell what its columns are."""


class Columns(NamedTuple):
    """The positions of the columns in a row.

    Attributes:
        image, label, fold, ignore: the columns; None for one that is not there.
        box: the four columns of the box, or the one that holds a list of its numbers.
        has_size: whether the third and fourth number are the box's width and height.
        declared: the columns of the picture's height and width.
        fractions: whether the names are those of Open Images.
        has_header: whether the first row holds names.
    """

    image: int
    box: tuple[int, ...]
    has_size: bool
    label: int | None = None
    fold: int | None = None
    ignore: int | None = None
    declared: tuple[int, ...] | None = None
    fractions: bool = False
    has_header: bool = True


class Form(NamedTuple):
    """How a file is written: the sign between its columns, its first row, and what the columns are; None for no table of boxes."""

    delimiter: str
    first_row: list[str]
    columns: Columns | None


def find_form(text: str) -> Form:
    """How a file is written, by the first row of its text that is not blank."""
    forms: list[Form] = []
    for delimiter in _DELIMITERS:
        try:
            first_row = next(table_rows(text[:_HEAD], delimiter), (1, []))[1]
        except csv.Error:
            continue
        forms.append(Form(delimiter, first_row, _find_columns(first_row)))
    # A cell may hold one of the other signs: the right sign is the one that makes columns.
    return max(forms, key=lambda form: (form.columns is not None, len(form.first_row)), default=Form(",", [], None))


def table_rows(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that are not blank, each with its line number."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    for cells in reader:
        if any(cell and not cell.isspace() for cell in cells):
            yield reader.line_num, [cell.strip() for cell in cells]


def _find_columns(first_row: Sequence[str]) -> Columns | None:
    """The columns by their names; None where no picture or no box is named."""
    # Of two columns with the same name, the first is taken.
    positions = {_plain(name): column for column, name in reversed(list(enumerate(first_row)))}

    def find(column: str, *others: int | None) -> int | None:
        named = (positions[name] for name in _SYNONYMS[column] if name in positions)
        return next((position for position in named if position not in others), None)

    image = find("image")
    x_min, y_min, size, boxes = find("x_min"), find("y_min"), (find("width"), find("height")), find("boxes")
    corners = (x_min, y_min, find("x_max", x_min), find("y_max", y_min))
    rest = {
        "label": find("label", image),
        "fold": find("fold"),
        "ignore": find("ignore"),
        "fractions": not _OF_FRACTIONS.isdisjoint(positions),
    }
    declared = _all_there((find("image_height"), find("image_width")))
    if image is None:
        return _without_header(first_row)
    if (four := _all_there(corners)) is not None:
        return Columns(image, four, False, declared=declared or _all_there(size[::-1]), **rest)
    if boxes is not None:
        return Columns(image, (boxes,), True, declared=declared or _all_there(size[::-1]), **rest)
    if (four := _all_there((x_min, y_min, *size))) is not None:
        return Columns(image, four, True, declared=declared, **rest)
    return _without_header(first_row)


def _all_there(columns: tuple[int | None, ...]) -> tuple[int, ...] | None:
    there = tuple(column for column in columns if column is not None)
    return there if len(there) == len(columns) else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _without_header(first_row: Sequence[str]) -> Columns | None:
    """keras-retinanet's columns, if the row has a file, four numbers or nothing in their place, and a class."""
    numbers = first_row[1:5]
    if len(first_row) != 6 or not _FILE_NAME.fullmatch(first_row[0]):
        return None
    if any(numbers) and not all(NUMBER.fullmatch(number) for number in numbers):
        return None
    return Columns(0, (1, 2, 3, 4), False, label=5, has_header=False)


def is_nearly_table(first_row: Sequence[str]) -> bool:
    """Whether a row names a picture and a class, or a picture and a part of a box."""
    names = {_plain(name) for name in first_row}
    image, *others = (names.intersection(_SYNONYMS[column]) for column in ("image", "label", "x_min", "x_max"))
    return bool(image) and any(other - image for other in others)


def missing_columns(file: Path, first_row: Sequence[str]) -> str:
    """The message of an error: which columns a file lacks to be a table of boxes."""
    names = {_plain(name) for name in first_row}
    wanted = {"image_id": "image", "x_min": "x_min", "y_min": "y_min", "x_max": "x_max", "y_max": "y_max"}
    missing = ", ".join(name for name, column in wanted.items() if names.isdisjoint(_SYNONYMS[column]))
    return (
        f"{file} has no column {missing or 'x_max, y_max'} in its first line ({','.join(first_row)[:80] or 'which is empty'}); write "
        f"the header {HEADER}."
    )
