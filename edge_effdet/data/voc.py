"""Pascal VOC: one XML file for each picture.

The XML files are in ``Annotations``, ``annots``, ``xmls`` or ``labels``, in sub-folders too, and the pictures beside it in ``JPEGImages``,
``images`` or ``data``; or both are in one folder. Such a folder may be a split (``train``, ``valid``), a year of the challenge
(``VOC2007``), or one of several. Else splits come from ``ImageSets/Main/*.txt``.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from edge_effdet.data.base import Problem, split_in_name
from edge_effdet.data.finder import LIKELIEST_SUFFIXES, PictureFinder, is_picture, match_path, name_key, walk_files
from edge_effdet.data.raw import Certainty, RawDataset, RawPicture
from edge_effdet.data.voc_lists import read_lists
from edge_effdet.data.voc_xml import Annotation, first_element, read_annotation
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import IMAGE_SUFFIXES, describe_unreadable

TITLE = "Pascal VOC"

_ANNOTATION_FOLDERS = ("annotations", "annots", "xmls", "xml", "labels")
_SURE_FOLDERS = ("annotations", "annots", "xmls")
_IMAGE_FOLDERS = ("jpegimages", "images", "imgs", "img", "data")
_DEPTH = 3
"""Levels of folders that are searched for XML files."""

_TRIED_FILES = 5
_LABEL_STUDIO_PREFIX = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the names of uploaded files. The pictures may be those from before the upload."""

_SPLIT_ORDER = ("train", "val", "test", "trainval")
_SHOWN = 3


def recognises(path: Path) -> Certainty:
    """How sure it is that ``path`` is a folder with VOC's XML files. Of a few files the first element is read."""
    return (
        max((root.certainty for root in _find_roots(path)[0]), default=Certainty.NO) if path.is_dir() else Certainty.NO
    )


def read(path: Path) -> RawDataset:
    """Read a VOC folder. Classes are ordered by name.

    Raises:
        DataError: no XML file can be read and has an object in it.
    """
    roots, passed = _find_roots(path)
    raw = RawDataset(path, "voc", ())
    readings = [_Reading(root, raw) for root in roots]
    parts = [part for reading in readings for part in reading.read()]
    parts.sort(key=lambda part: _SPLIT_ORDER.index(part[0]) if part[0] in _SPLIT_ORDER else len(_SPLIT_ORDER))
    raw.parts = parts
    raw.searched = ", ".join(dict.fromkeys(str(folder) for reading in readings for folder in reading.finder.folders))
    if passed:
        raw.notes.append(
            f"{path}: the XML files in {', '.join(str(root.annotations) for root in passed[:3])} are not read."
        )
    pictures = [picture for _, part in parts for picture in part]
    if pictures and not any(picture.boxes for picture in pictures):
        reasons = "; ".join(f"{problem.where}: {problem.text}" for problem in raw.problems[:_SHOWN])
        raise DataError(
            f"{path} holds no XML file with an object in it that can be read{f' ({reasons})' if reasons else ''}."
        )
    return raw


@dataclass(frozen=True, slots=True)
class _Root:
    """A folder with annotations and pictures.

    Attributes:
        folder: the folder.
        annotations: the folder of the XML files.
        deep: whether XML files in its sub-folders count.
        split: the split that the folder's name tells.
        certainty: how sure it is that the folder is one of VOC's.
    """

    folder: Path
    annotations: Path
    deep: bool
    split: str | None
    certainty: Certainty

    def xml_files(self) -> list[Path]:
        files = walk_files(self.annotations) if self.deep else self.annotations.iterdir()
        return sorted(file for file in files if _is_xml(file.name))

    def image_folders(self) -> list[Path]:
        """The folders of the pictures: those with a usual name beside the XML files, or beside their folder."""
        places = [self.folder]
        if self.annotations == self.folder and self.folder.name.casefold() in _ANNOTATION_FOLDERS:
            places.append(self.folder.parent)
        found = [match_path(place, (name,)) for place in places for name in _IMAGE_FOLDERS]
        return [folder for folder in found if folder is not None and folder.is_dir() and folder != self.annotations]


def _find_roots(path: Path) -> tuple[list[_Root], list[_Root]]:
    """The folders to read, and those that are passed over, because they most likely hold copies."""
    roots = _roots_below(path, path, _DEPTH, {path.resolve(), *path.resolve().parents})
    named = [root for root in roots if root.folder == path and root.annotations != path]
    splits = [root for root in roots if root.split is not None]
    # Scripts that part a folder into train and test copy its files.
    chosen = named or splits or roots
    return chosen, [root for root in roots if root not in chosen]


def _roots_below(folder: Path, path: Path, depth: int, seen: set[Path]) -> list[_Root]:
    """The roots at a folder and below it."""
    folders: list[Path] = []
    files: list[Path] = []
    try:
        # Not by Path, because a folder may hold a hundred thousand pictures of another format.
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    folders.append(folder / entry.name)
                elif _is_xml(entry.name) and entry.is_file():
                    files.append(folder / entry.name)
    except OSError:
        return []
    roots: list[_Root] = []
    level = len(folder.relative_to(path).parts)
    split = split_in_name(*folder.relative_to(path).parts[::-1])
    near = level == 0 or split is not None or folder.name.casefold().startswith("voc")
    named = next((each for name in _ANNOTATION_FOLDERS for each in folders if _is_annotation_folder(each, name)), None)
    if named is not None:
        certainty = Certainty.SURE if named.name.casefold() in _SURE_FOLDERS and near else Certainty.LIKELY
        roots.append(_Root(folder, named, True, split, certainty))
    elif _are_annotations(sorted(files)):
        roots.append(_Root(folder, folder, False, split, Certainty.LIKELY if near else Certainty.MAYBE))
    for each in sorted(folders):
        place = each.resolve()
        if depth > 1 and each != named and place not in seen:
            seen.add(place)
            roots += _roots_below(each, path, depth - 1, seen)
    return roots


def _is_xml(name: str) -> bool:
    return name[-4:].lower() == ".xml" and not name.startswith("._")


def _is_annotation_folder(folder: Path, name: str) -> bool:
    if folder.name.casefold() != name:
        return False
    files = (file for file in walk_files(folder) if _is_xml(file.name))
    return _are_annotations(files, damaged=name in _SURE_FOLDERS)


def _are_annotations(files: Iterable[Path], damaged: bool = False) -> bool:
    """Whether one of the first XML files has VOC's first element, or, with ``damaged``, none at all."""
    wanted = ("annotation", "") if damaged else ("annotation",)
    return any(first_element(file) in wanted for file in islice(files, _TRIED_FILES))


class _Reading:
    """Reads one root.

    Attributes:
        finder: finds its pictures.
        pictures: the picture of each XML file by the file's path below the folder of annotations, without suffix; None where the file
            or the picture cannot be used.
    """

    def __init__(self, root: _Root, raw: RawDataset) -> None:
        self._root = root
        self._raw = raw
        self._image_folders = root.image_folders()
        self.finder = PictureFinder([*self._image_folders, root.annotations, root.folder])
        # Below the folder of images a picture may lie deeper than its XML file. Elsewhere masks and copies have the names of pictures.
        self._deep_finder = PictureFinder(self.finder.folders, next(iter(self._image_folders), None))
        self.pictures: dict[str, RawPicture | None] = {}
        self._other_names: list[tuple[Path, str, Path]] = []
        self._other_suffixes: list[tuple[str, Path]] = []

    def read(self) -> list[tuple[str | None, list[RawPicture]]]:
        """The pictures of each split."""
        annotations: dict[str, Annotation] = {}
        for xml in self._root.xml_files():
            image_id = xml.relative_to(self._root.annotations).with_suffix("").as_posix()
            self.pictures[image_id] = None
            annotation = read_annotation(xml, self._raw.problems)
            if annotation is not None:
                annotations[image_id] = annotation
        if annotations and not self._raw.exporter:
            first = next(iter(annotations.values()))
            self._raw.exporter = _exporter(first, self._raw.root, self._root, self._image_folders)
        for image_id, annotation in annotations.items():
            path = self._find(image_id, annotation)
            if path is None:
                named = f" and none that is called {annotation.filename}" if annotation.filename else ""
                text = f"skipped {annotation.xml.name}: it has no image {Path(image_id).name}.*{named}"
                self._raw.problems.append(Problem("missing_image", f"{annotation.xml}:1", text))
                continue
            self.pictures[image_id] = RawPicture(
                image_id, path, f"{annotation.xml}:1", annotation.boxes, annotation.rejected, annotation.size
            )
        self._note_other_names()
        self._note_unused()
        self._raw.problems += self.finder.problems()
        return read_lists(self._root.folder, self.pictures, self._raw) or self._by_folders()

    def _find(self, image_id: str, annotation: Annotation) -> Path | None:
        """The picture: by the file name that the annotation gives, which may lack its suffix, else by the XML file's own."""
        folder, _, stem = image_id.rpartition("/")
        within = f"{folder}/" if folder else ""
        named = self._picture(within, annotation.filename) if annotation.filename else None
        if named is not None and name_key(named.stem) == name_key(stem):
            if Path(annotation.filename).suffix.lower() in IMAGE_SUFFIXES - {named.suffix.lower()}:
                self._other_suffixes.append((annotation.filename, named))
            return named
        own = self._picture(within, stem) or self._picture(within, _LABEL_STUDIO_PREFIX.sub("", stem))
        if own is None:
            return named
        if named is not None and f"{within}{named.stem}" not in self.pictures:
            return named
        # A file that was copied or renamed still names the picture that it was made for, or one that is gone.
        if annotation.filename:
            self._other_names.append((annotation.xml, annotation.filename, own))
        return own

    def _picture(self, within: str, name: str) -> Path | None:
        """The picture with a name, which may lack its suffix or have another one, in the folder ``within`` or elsewhere."""
        stem, dot, suffix = name.rpartition(".")
        known = dot and f".{suffix.lower()}" in (*LIKELIEST_SUFFIXES, ".xml")
        finders = [self.finder] if within else [self.finder, self._deep_finder]
        tried = ((name, ()), (stem, LIKELIEST_SUFFIXES)) if known else ((name, LIKELIEST_SUFFIXES),)
        found = (finder.find(within + each, suffixes) for each, suffixes in tried for finder in finders)
        return next((path for path in found if path is not None and path.suffix.lower() in LIKELIEST_SUFFIXES), None)

    def _note_other_names(self) -> None:
        if self._other_names:
            xml, name, picture = self._other_names[0]
            self._note(
                f"{_counted(len(self._other_names), 'XML file names', 'XML files name')} a picture that is not there, or that has an XML "
                f"file of its own; the picture with the XML file's own name is read (first: {xml} names {name}, {picture.name} is read)."
            )
        if self._other_suffixes:
            name, picture = self._other_suffixes[0]
            self._note(
                f"{_counted(len(self._other_suffixes), 'picture is', 'pictures are')} there with another suffix than the XML file says "
                f"(first: {picture} is read for {name})."
            )

    def _note_unused(self) -> None:
        """Notes on the pictures that no XML file has."""
        folders = self._image_folders or [self._root.annotations]
        if self._image_folders or self._root.deep:
            files = [file for each in folders for file in walk_files(each)]
        else:
            files = sorted(self._root.folder.iterdir())
        used = {picture.path for picture in self.pictures.values() if picture is not None}
        unused = [path for path in files if path not in used and is_picture(path)]
        if unused:
            self._note_unused_pictures(unused, used, folders[0])
        if unreadable := describe_unreadable(files):
            self._note(f"{folders[0]}: left out {unreadable}.")

    def _note_unused_pictures(self, unused: Sequence[Path], used: Iterable[Path], folder: Path) -> None:
        of_stem = {(path.parent, name_key(path.stem)): path for path in used}
        stems = {name_key(image_id.rpartition("/")[2]) for image_id in self.pictures} | {stem for _, stem in of_stem}
        beside = [path for path in unused if (path.parent, name_key(path.stem)) in of_stem]
        alone = [path for path in unused if name_key(path.stem) not in stems]
        if beside:
            read = of_stem[beside[0].parent, name_key(beside[0].stem)]
            self._note(
                f"{_counted(len(beside), 'picture has', 'pictures have')} the name of another one but for the suffix, and the XML file is "
                f"the other one's (first: {beside[0]} is not read and {read.name} is)."
            )
        if alone:
            self._note(
                f"{folder}: left out {_counted(len(alone), 'image', 'images')} without an XML file (first: {alone[0].name})."
            )

    def _by_folders(self) -> list[tuple[str | None, list[RawPicture]]]:
        """The pictures by the split that their folders tell."""
        splits: dict[str | None, list[RawPicture]] = defaultdict(list)
        for image_id, picture in self.pictures.items():
            if picture is not None:
                splits[self._root.split or split_in_name(*image_id.split("/")[-2::-1])].append(picture)
        return list(splits.items())

    def _note(self, text: str) -> None:
        self._raw.notes.append(text)


def _exporter(annotation: Annotation, path: Path, root: _Root, images: Sequence[Path]) -> str:
    """The program that wrote a file, by what it leaves in it and beside it."""
    database = annotation.database.lower()
    if "roboflow" in database or (path / "README.roboflow.txt").is_file():
        return "Roboflow"
    if annotation.owner.lower() == "label studio" or database == "mydatabase":
        return "Label Studio"
    if (root.folder / "labelmap.txt").is_file():
        return "CVAT"
    if (root.folder / "class_names.txt").is_file():
        return "labelme"
    if root.annotations.name == "labels" and any(folder.name == "data" for folder in images):
        return "FiftyOne"
    return "labelImg" if database == "unknown" and annotation.path else ""


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
