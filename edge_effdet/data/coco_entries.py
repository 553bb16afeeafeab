"""The entries of a COCO file: its categories, images and annotations."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from edge_effdet.data.base import Problem, split_in_name
from edge_effdet.data.finder import PictureFinder
from edge_effdet.data.json_files import EntryLines, declared_size, picture_folders, split_of
from edge_effdet.data.raw import RawBox, RawPicture
from edge_effdet.errors import DataError

_NO_CROWD = (None, 0, "", "0")
_SHOWN = 3
_POLYGON_NUMBERS = 6
_MOST_DIGITS = 20


class Categories:
    """The categories of all files.

    Attributes:
        names: the name of each category by its number, ascending.
    """

    def __init__(self, path: Path, contents: Mapping[Path, Mapping[str, Any]]) -> None:
        """Raises DataError for a category without an id or a name, and for two names of one id."""
        names: dict[int | str, str] = {}
        for file, content in contents.items():
            for category in content["categories"]:
                key = as_key(category.get("id")) if isinstance(category, dict) else None
                if key is None or not isinstance(category.get("name"), (str, int)):
                    raise DataError(f"{file} has a category without an id or a name ({category}); export it again.")
                name = str(category["name"])
                known = names.setdefault(key, name)
                if known != name:
                    raise DataError(
                        f"{file} calls category {key} {name!r}, another file of {path} or another entry calls it {known!r}; give "
                        "them one list of categories."
                    )
        if all(isinstance(key, int) for key in names):
            self._numbers = {key: int(key) for key in sorted(names)}
        else:
            # Some programs identify categories by words.
            self._numbers = {key: number for number, key in enumerate(names, 1)}
        self.names = {number: names[key] for key, number in self._numbers.items()}

    def number(self, category_id: Any) -> int | tuple[str, str]:
        """The number of an annotation's category; or the kind of its problem, and a text to follow "an annotation"."""
        key = as_key(category_id)
        if key in self._numbers:
            return self._numbers[key]
        if not isinstance(key, int):
            return "bad_row", f"whose category_id is no number ({category_id!r})"
        return "unknown_class", f"of category {key}, which is not in the list of categories"


class FileReading:
    """The reading of one file.

    Attributes:
        file, split, finder: the file, the split that it is for, and what finds its pictures.
        pictures: the picture of each image id; None for one that is left out, and whose annotations are left out with it.
        borrowed: the position of each image, by id, whose picture was found only in the folder of another split.
    """

    def __init__(self, file: Path, root: Path, categories: Categories, problems: list[Problem]) -> None:
        self.file = file
        self.split = split_of(file, root)
        self.finder = PictureFinder(picture_folders(file.parent, root, self.split, file.stem), root)
        self.pictures: dict[Any, RawPicture | None] = {}
        self.borrowed: dict[Any, int] = {}
        self._root = root
        self._categories = categories
        self._problems = problems
        self._lines = EntryLines(file)
        self._annotations = self._repeated = self._as_text = self._outlines = 0

    def read_pictures(self, images: Sequence[Any]) -> None:
        """Find the picture of each image."""
        entries: dict[Any, list[int]] = defaultdict(list)
        for position, image in enumerate(images):
            image_id = image.get("id") if isinstance(image, dict) else None
            if not _is_id(image_id) or not _name_of(image):
                shown = f"skipped an image without an id or a file name ({str(image)[:200]})"
                self._problems.append(Problem("bad_row", self.image_place(position), shown))
                continue
            entries[image_id].append(position)
        for image_id, positions in entries.items():
            names = list(dict.fromkeys(_name_of(images[position]) for position in positions))
            self._repeated += len(names) == 1 and len(positions) > 1
            self.pictures[image_id] = None
            if len(names) > 1:
                text = (
                    f"the image id {image_id} means {len(names)} pictures, {', '.join(names[:_SHOWN])}: they are left out, because "
                    "nothing tells whose boxes are whose; give each image an id of its own"
                )
                self._problems.append(Problem("duplicate_id", self.image_place(positions[1]), text))
                continue
            path = self.finder.find(names[0])
            if path is None:
                text = f"skipped the image {names[0]}, which is not there"
                self._problems.append(Problem("missing_image", self.image_place(positions[0]), text))
                continue
            image = images[positions[0]]
            self.pictures[image_id] = RawPicture(
                str(image_id), path, declared=declared_size(image.get("height"), image.get("width"))
            )
            if _is_of_other_split(path.parent, _folder_in(names[0]), self.split, self._root):
                self.borrowed[image_id] = positions[0]

    def read_boxes(self, annotations: list[Any]) -> None:
        """Give each annotation to its picture. What was read is taken out of the list, so that memory is freed."""
        ids_by_text = {as_key(image_id): image_id for image_id in self.pictures}
        self._annotations = len(annotations)
        lost = 0
        for position, annotation in enumerate(annotations):
            annotations[position] = None
            fields = annotation if isinstance(annotation, dict) else {}
            image_id = fields.get("image_id")
            where = partial(self._annotation_place, position, fields.get("id"))
            if not _is_id(image_id) or image_id not in self.pictures:
                written, image_id = image_id, ids_by_text.get(as_key(image_id))
                if image_id is None:
                    text = f"skipped an annotation of image {written}, which is not in the list of images"
                    self._problems.append(Problem("bad_row", where(), text))
                    lost += 1
                    continue
                self._as_text += 1
            picture = self.pictures[image_id]
            if picture is None:
                continue
            box = self._read_box(fields, where)
            if isinstance(box, RawBox):
                picture.boxes.append(box)
            else:
                self._problems.append(Problem(box[0], where(), f"skipped an annotation {box[1]}"))
                picture.rejected += 1
        if annotations and lost == len(annotations):
            # Which pictures have no object is unknown then.
            for picture in filter(None, self.pictures.values()):
                picture.rejected += 1

    def notes(self) -> list[str]:
        """What was read otherwise than it is written."""
        notes = []
        if self._as_text:
            notes.append(
                f"{self.file}: ids were matched as text, because {self._as_text} of {self._annotations} annotations write the id of "
                "their image as another type than the list of images."
            )
        if self._outlines:
            notes.append(
                f"{self.file}: {self._outlines} of {self._annotations} annotations have no bbox; the box around their outline is taken."
            )
        if self._repeated:
            notes.append(
                f"{self.file}: {self._repeated} of {len(self.pictures)} images are listed more than once, and each is read once."
            )
        return notes

    def image_place(self, position: int) -> str:
        """The place of an image's entry, as ``Problem.where``."""
        return f"{self.file}:{self._lines.of('images', position)}"

    def _annotation_place(self, position: int, annotation_id: Any) -> str:
        return f"{self.file}:{self._lines.of('annotations', position)} annotation {annotation_id}"

    def _read_box(self, annotation: Mapping[str, Any], where: Callable[[], str]) -> RawBox | tuple[str, str]:
        """The box of an annotation; or the kind of its problem, and a text to follow "an annotation"."""
        written = annotation.get("bbox")
        try:
            if written is None or written == []:
                corners = _outline(annotation.get("segmentation"))
                if isinstance(corners, str):
                    return "bad_row", corners
                self._outlines += 1
            else:
                x, y, width, height = map(float, written)
                corners = (x, y, x + width, y + height)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return "bad_row", f"whose bbox is not four numbers ({written})"
        number = self._categories.number(annotation.get("category_id"))
        if isinstance(number, tuple):
            return number
        return RawBox(corners, number, annotation.get("iscrowd") not in _NO_CROWD, where)


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, float, str))


def as_key(value: Any) -> int | str | None:
    """An id as it is compared where types differ: a whole number however it is written, else the text; None for no id."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else str(value) if math.isfinite(value) else None
    if not isinstance(value, str) or not value:
        return None
    # Only the usual spelling of a number: "007" may be another picture than "7".
    is_number = value.isascii() and value.isdigit() and len(value) < _MOST_DIGITS and str(int(value)) == value
    return int(value) if is_number else value


def _name_of(image: Mapping[str, Any]) -> str:
    """The name of an image's file; LVIS has an address in its place."""
    return str(image.get("file_name") or image.get("coco_url") or "")


def _outline(segmentation: Any) -> tuple[float, float, float, float] | str:
    """The corners of the box around polygons; or why there is none, to follow "an annotation"."""
    if isinstance(segmentation, dict):
        return "without a bbox, whose mask is run-length encoded; write its bbox"
    points = [float(value) for value in _flatten(segmentation)]
    if len(points) < _POLYGON_NUMBERS or len(points) % 2:
        return "without a bbox and without an outline"
    return min(points[::2]), min(points[1::2]), max(points[::2]), max(points[1::2])


def _flatten(value: Any) -> Iterator[Any]:
    if not isinstance(value, list):
        if value is not None:
            yield value
        return
    for inner in value:
        yield from _flatten(inner)


def _folder_in(name: str) -> str:
    return name.replace("\\", "/").rpartition("/")[0]


@cache
def _is_of_other_split(folder: Path, written: str, split: str | None, root: Path) -> bool:
    """Whether a folder below the root is that of another split than the one of the annotations, or of the folder that they write."""
    wanted = split_in_name(*reversed(written.split("/"))) or split_in_name(split or "")
    inner = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
    return wanted is not None and split_in_name(*reversed(inner)) not in (None, wanted)
