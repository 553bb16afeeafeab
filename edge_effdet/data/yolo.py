"""YOLO folders as Ultralytics and the exporters that follow it lay them out.

A YAML file, most often ``data.yaml``, names the classes (``names``) and, for ``train``, ``val`` and ``test``, a folder of pictures, a text
file that lists pictures, or a list of these. Without a YAML file, ``classes.txt`` names the classes and the folders tell the splits (Label
Studio, labelImg). ``yolo_labels`` reads the labels.
"""

from __future__ import annotations

import math
import os
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_effdet.data.base import Problem, first_existing, split_in_name
from edge_effdet.data.finder import PictureFinder, match_path
from edge_effdet.data.raw import Certainty, RawDataset
from edge_effdet.data.text import read_json, read_text
from edge_effdet.data.yolo_labels import (
    CLASS_LISTS,
    holds_rows,
    label_folder,
    labels_without_picture,
    pictures_below,
    read_labels,
    read_one_class_list,
)
from edge_effdet.errors import DataError, MissingDependency, first_line
from edge_effdet.runtime.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES

TITLE = "YOLO"

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "minival": "minival",
    "test": "test",
    "testing": "test",
}
_YAML_SUFFIXES = (".yaml", ".yml")
_USUAL_STEMS = ("data", "dataset")
_KEY = re.compile(r"""(?:^|[{,])[ \t]*["']?([A-Za-z]+)["']?[ \t]*:""", re.MULTILINE)
_NOTHING = ("", "~", "null", "none")
_MOST_BYTES = 1 << 20
"""Size of a larger file than YOLO's: ten thousand names of classes take a fifth of it."""

_MOST_NODES = 100_000
"""Names and places in one file, an alias counted as often as it stands for something: a few lines of aliases may stand for billions."""

_MOST_CLASSES = 100_000
"""Classes without names. More of them are a wrong number, and would fill the memory."""

_DEPTH = 3
"""Levels of folders that are searched for lists of classes and for labels, as for ``train/labels/classes.txt``."""


def recognises(path: Path) -> Certainty:
    """How sure it is that ``path`` is a YAML file, a folder with one of YOLO's, or one with YOLO's labels."""
    if path.is_file():
        return Certainty.SURE if path.suffix.lower() in _YAML_SUFFIXES else Certainty.NO
    if _yaml_files(path):
        return Certainty.SURE
    if _class_lists(path):
        return Certainty.LIKELY if holds_rows(path) else Certainty.NO
    return Certainty.MAYBE if any(map(holds_rows, _below(path, ("labels",)))) else Certainty.NO


def read(path: Path) -> RawDataset:
    """Read the splits that a YAML file names, or those that the folders make. Classes are ordered by their numbers.

    Raises:
        DataError: the file is not whole YAML or names no classes or no pictures, or no picture has a label file.
        MissingDependency: PyYAML is not installed.
    """
    files = [path] if path.is_file() else _yaml_files(path)
    if not files:
        return _read_without_yaml(path)
    raw = _read_yaml(path, files[0])
    if len(files) > 1:
        raw.notes.append(f"{files[0]} is read, and {', '.join(file.name for file in files[1:])} beside it is not.")
    return raw


@dataclass(frozen=True, slots=True)
class _Config:
    file: Path
    content: dict[str, Any]
    text: str

    @property
    def bases(self) -> list[Path]:
        """The folders that paths in the file start from: the one that ``path`` names, and the file's own."""
        base = str(self.content.get("path") or "").strip().replace("\\", "/")
        here = self.file.parent
        return list(dict.fromkeys((here / base, here)))

    def where(self, key: str) -> str:
        """The place of a key, ``file:line``."""
        found = re.search(rf"""^[ \t"'{{]*{re.escape(key)}["']?[ \t]*:""", self.text, re.MULTILINE)
        return f"{self.file}:{self.text.count(chr(10), 0, found.start()) + 1 if found else 1}"

    def splits(self) -> Iterator[tuple[str, str, list[str]]]:
        """The name of each split, its key, and the places that it names. CVAT writes a key for each subset, as it is called there."""
        for key, value in self.content.items():
            split = _SPLITS.get(key.lower())
            if split is None and not (isinstance(value, str) and value.lower().endswith(".txt")):
                continue
            entries = [str(entry).strip() for entry in (value if isinstance(value, list) else [value])]
            entries = [entry for entry in entries if entry.lower() not in _NOTHING]
            if entries:
                yield split or key, key, entries


def _yaml_files(folder: Path) -> list[Path]:
    """YOLO's YAML files in a folder, the likeliest first: data.yaml, then the one that is named like the folder."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.name.lower().endswith(_YAML_SUFFIXES)]
    files = [folder / name for name in names if not name.startswith(".") and (folder / name).is_file()]

    def order(file: Path) -> tuple[bool, bool, str]:
        return file.stem not in _USUAL_STEMS, file.stem.casefold() != folder.resolve().name.casefold(), file.name

    return sorted(filter(_is_config, files), key=order)


def _is_config(file: Path) -> bool:
    """Whether a YAML file has YOLO's keys. PyYAML is not needed to see that."""
    usual = file.stem.lower() in _USUAL_STEMS
    try:
        keys = {key.lower() for key in _KEY.findall(read_text(file, _MOST_BYTES))}
    except DataError:
        return usual
    named, split = bool(keys & {"names", "nc"}), bool(keys & _SPLITS.keys())
    return named or split if usual else named and split


def _read_yaml(path: Path, file: Path) -> RawDataset:
    config = _load(file)
    problems: list[Problem] = []
    raw = RawDataset(path, "yolo", (), _class_names(config, problems), fractions=True, problems=problems)
    raw.exporter = _exporter_of(config)
    splits: dict[str, list[Path]] = {}
    folders: list[Path] = []
    for split, key, entries in config.splits():
        pictures = splits.setdefault(split, [])
        for entry in entries:
            place = _place(config, key, entry, raw)
            if place is not None and place.is_dir():
                refuse_above(place, file, config.where(key), f"{key} names {entry}")
                folders.append(place)
            pictures += _pictures(config, key, entry, place, raw)
    if not splits:
        raise DataError(
            f"{file} leads to no images: it names no train, val or test; correct path, train and val in it."
        )
    raw.searched = ", ".join(map(str, folders or config.bases))
    used = read_labels(raw, splits.items(), "kpt_shape" in config.content)
    for folder in dict.fromkeys(folders):
        labels = label_folder(folder)
        if labels is not None:
            raw.problems += labels_without_picture(labels, used, rows_only=False)
        raw.problems += labels_without_picture(folder, used, rows_only=True)
    raw.notes = list(dict.fromkeys(raw.notes))
    return raw


def _load(file: Path) -> _Config:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingDependency("PyYAML", "train", "to read a YOLO data.yaml") from error
    text = read_text(file, _MOST_BYTES)
    try:
        # All values stay text. Else YAML makes false of a class that is called no, and tags may ask for what takes minutes or is not there.
        loader = yaml.BaseLoader(text)
        root = loader.get_single_node()
        if root is not None and _size_of(root) > _MOST_NODES:
            raise DataError(
                f"{file} stands for more than {_MOST_NODES} names by its aliases, as no data.yaml does; write it without aliases."
            )
        content = None if root is None else loader.construct_document(root)
    except RecursionError as error:
        raise DataError(
            f"{file} holds lists within lists, deeper than any data.yaml does; correct it or export it again."
        ) from error
    # An escape may stand for no letter, as "\UFFFFFFFF" does.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        place = f"line {line + 1}: " if line is not None else ""
        reason = getattr(error, "problem", None) or first_line(error)
        raise DataError(f"{file} is not whole YAML ({place}{reason}); correct it or export it again.") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} holds no keys like names and train, so it is no YOLO data.yaml; give the right file.")
    return _Config(file, content, text)


def _size_of(node: Any, sizes: dict[int, float] | None = None) -> float:
    """How many values a node of YAML stands for with all below it, each alias followed; infinity where it holds itself."""
    sizes = {} if sizes is None else sizes
    if id(node) not in sizes:
        # Whoever comes here again before it is known is inside of it.
        sizes[id(node)] = math.inf
        inner = node.value if isinstance(node.value, list) else []
        children = [each for one in inner for each in (one if isinstance(one, tuple) else (one,))]
        sizes[id(node)] = 1 + sum(_size_of(child, sizes) for child in children)
    return sizes[id(node)]


def _class_names(config: _Config, problems: list[Problem]) -> dict[int, str]:
    """The names of the classes by number, ascending."""
    names, count = config.content.get("names"), _integer(config.content.get("nc"))
    if names is None and count is not None and 0 < count <= _MOST_CLASSES:
        return {number: f"class_{number}" for number in range(count)}
    if isinstance(names, list):
        names = dict(enumerate(names))
    numbers = {_integer(key): name for key, name in names.items()} if isinstance(names, dict) else {}
    numbered = {number: str(name).strip() for number, name in numbers.items() if number is not None}
    if not numbered or None in numbers:
        raise DataError(
            f"{config.file} has no usable names of classes ({names!r:.80}); write names: [cat, dog], or a line 0: cat for each."
        )
    if count is not None and count != len(numbered):
        text = f"nc is {count}, but names has {len(numbered)} classes; names is used"
        problems.append(Problem("bad_row", config.where("nc"), text))
    return dict(sorted(numbered.items()))


def _integer(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _place(config: _Config, key: str, entry: str, raw: RawDataset) -> Path | None:
    """The file or folder that a split names; None where there is none, which is recorded."""
    entry = entry.replace("\\", "/")
    exact = first_existing(base / entry for base in config.bases)
    if exact is not None:
        return exact
    parts = [part for part in entry.split("/") if part not in ("", ".")]
    # Roboflow writes ../train/images for the folder beside its data.yaml.
    while parts and parts[0] == "..":
        parts.pop(0)
    for start in range(len(parts)):
        # The folder images is not the one that train/images means.
        if start and split_in_name(*parts[:start]) and not split_in_name(*parts[start:]):
            break
        place = next((found for base in config.bases if (found := match_path(base, parts[start:]))), None)
        if place is not None:
            if start:
                raw.notes.append(f"{config.file}: {key} names {entry}, which is not there; {place} is read.")
            return place
    raw.problems.append(Problem("missing_image", config.where(key), f"{key} names {entry}, which is not there"))
    return None


def refuse_above(place: Path, file: Path, where: str, named: str) -> None:
    """Refuse a folder of pictures that is the root, or that holds the folder of the file which names it: much else of the disk lies there too.

    Args:
        place: the folder.
        file: what names it.
        where: the place in the file, as in ``Problem.where``.
        named: the key and what stands there, as ``train names ..``.

    Raises:
        DataError: names the folder.
    """
    # The file itself may be a link into a store of a version control.
    found, here = place.resolve(), file.parent.resolve()
    if found in here.parents or found == Path(found.anchor):
        raise DataError(
            f"{where}: {named}, which is {found} with all that lies there beside {here}; name the folder with the images alone."
        )


def _pictures(config: _Config, key: str, entry: str, place: Path | None, raw: RawDataset) -> list[Path]:
    """The pictures of a folder or a list that a split names."""
    if place is None:
        return []
    if place.is_dir():
        pictures, notes = pictures_below(place)
        raw.notes += notes
        if not pictures:
            text = f"{key} names {entry}, which holds no image"
            raw.problems.append(Problem("missing_image", config.where(key), text))
        return pictures
    if place.suffix.lower() in IMAGE_SUFFIXES and place.is_file():
        return [place]
    return read_picture_list(place, [place.parent, *config.bases], config.file.parent, raw)


def read_picture_list(file: Path, folders: list[Path], root: Path, raw: RawDataset) -> list[Path]:
    """The pictures that a text file lists, one a line. Those that are not there are recorded.

    Args:
        file: the list.
        folders: the folders that its paths may start from.
        root: the folder below which a picture is looked for by its name alone.
        raw: gets the problems and notes.

    Raises:
        DataError: the file is no text, or no line is the name of a picture.
    """
    lines = [(line, text.strip()) for line, text in enumerate(read_text(file).splitlines(), start=1) if text.strip()]
    if lines and not any(_is_name(name) for _, name in lines):
        raise DataError(f"{file} is no list of images: no line of it is the name of one; correct what names it.")
    finder = PictureFinder(folders, root)
    pictures = []
    for line, name in lines:
        picture = finder.find(name) if _is_name(name) else None
        if picture is not None and _is_of_its_split(name, picture, root):
            pictures.append(picture)
            continue
        # The file may be anybody's, and what is in it is not for the log.
        text = (
            f"skipped the image {name}, which is not there" if _is_name(name) else "skipped a line that names no image"
        )
        raw.problems.append(Problem("missing_image", f"{file}:{line}", text))
    raw.problems += finder.problems()
    return pictures


def _is_name(text: str) -> bool:
    """Whether a line may be the name of a picture, readable here or not; in an address a query may follow it."""
    known = (*IMAGE_SUFFIXES, *UNREADABLE_SUFFIXES)
    return any(Path(name).suffix.lower() in known for name in (text, text.split("?")[0]))


def _is_of_its_split(name: str, picture: Path, root: Path) -> bool:
    """Whether the split in a listed path, if there is one, is that of the picture: ``val/hen.jpg`` is not ``train/hen.jpg``."""
    listed = split_in_name(*re.split(r"[\\/]", name)[-2::-1])
    found = split_in_name(*picture.relative_to(root).parts[-2::-1]) if picture.is_relative_to(root) else None
    return listed is None or found is None or listed == found


def _read_without_yaml(path: Path) -> RawDataset:
    """Read a folder whose classes are in ``classes.txt``, or nowhere. Its sub-folders tell the splits."""
    lists = _class_lists(path)
    raw = RawDataset(path, "yolo", (), fractions=True, searched=str(path))
    pictures, raw.notes = pictures_below(path)
    splits: dict[str | None, list[Path]] = defaultdict(list)
    for picture in pictures:
        splits[split_in_name(*picture.relative_to(path).parts[-2::-1])].append(picture)
    used = read_labels(raw, splits.items())
    raw.problems += labels_without_picture(path, used, rows_only=True)
    if lists:
        raw.classes = read_one_class_list(lists)
    else:
        numbers = (int(box.label) for _, part in raw.parts for picture in part for box in picture.boxes)
        last = max((number for number in numbers if number < _MOST_CLASSES), default=0)
        raw.classes = {number: f"class_{number}" for number in range(last + 1)}
        raw.notes.append(
            f"{path}: no file names the classes, so they are called by their numbers; write a classes.txt with one name a line."
        )
    raw.exporter = _exporter_without_yaml(path, {file.parent for file in lists} & {label.parent for label in used})
    return raw


def _class_lists(path: Path) -> list[Path]:
    return [file for file in _below(path, CLASS_LISTS) if file.is_file()]


def _below(path: Path, names: Collection[str], depth: int = _DEPTH) -> list[Path]:
    """Files or folders with one of these names in a folder, its sub-folders and theirs, whatever the case of the name."""
    found: list[Path] = []
    try:
        # Not by Path, because a folder may hold a hundred thousand pictures of another format.
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.casefold() in names:
                    found.append(Path(entry.path))
                if depth > 1 and entry.is_dir() and not entry.name.startswith("."):
                    found += _below(Path(entry.path), names, depth - 1)
    except OSError:
        return found
    return sorted(found)


def _exporter_of(config: _Config) -> str:
    here = config.file.parent
    if "roboflow" in config.content or (here / "README.roboflow.txt").is_file():
        return "Roboflow"
    places = [entry for _, _, entries in config.splits() for entry in entries]
    if config.file.name == "dataset.yaml" and all(re.fullmatch(r"\./images/[^/]+/", place) for place in places):
        return "FiftyOne"
    lists = [here / place for place in places if place.endswith(".txt") and os.path.isfile(here / place)]  # noqa: PTH113 - Path.is_file may raise
    # CVAT's pictures are not below data, although it lists them so.
    if not (here / "data").exists() and any(read_text(file).startswith("data/images/") for file in lists):
        return "CVAT"
    return ""


def _exporter_without_yaml(path: Path, folders_with_list: Collection[Path]) -> str:
    try:
        notes = read_json(path / "notes.json")
    except DataError:
        # labelImg writes its list of classes among the labels.
        return "labelImg" if folders_with_list else ""
    return "Label Studio" if isinstance(notes, dict) and notes.keys() >= {"categories", "info"} else ""
