"""Pascal VOC folders: one XML file for each picture.

The XML files are in ``Annotations``, ``annotations``, ``annots`` or ``xml``, and the pictures beside it in ``JPEGImages``,
``images`` or ``Images``; or all are in one folder. Splits come from ``ImageSets/Main/*.txt``.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat

from edge_effdet.data.base import Dataset, Problem, Sample, hold_out, make_sample, unreadable_image
from edge_effdet.errors import DataError, first_line
from edge_effdet.runtime.images import IMAGE_SUFFIXES, image_size

ANNOTATION_FOLDERS = ("Annotations", "annotations", "annots", "xml", "xmls")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")
SPLIT_NAMES = ("train", "val", "test", "trainval")


class _Object(NamedTuple):
    box: tuple[float, ...]
    name: str
    difficult: bool
    line: int


def recognises(path: Path) -> bool:
    """Whether ``path`` is a VOC folder."""
    folder = _annotation_folder(path) if path.is_dir() else None
    return folder is not None


def read(path: Path) -> Dataset:
    """Read a VOC folder. Classes are ordered by name. Raises DataError if no readable annotation has an object."""
    folder = _annotation_folder(path)
    assert folder is not None, "call recognises first"
    image_folder = next((path / name for name in IMAGE_FOLDERS if (path / name).is_dir()), folder)
    images = {image.stem: image for image in sorted(image_folder.iterdir()) if image.suffix.lower() in IMAGE_SUFFIXES}

    problems: list[Problem] = []
    parsed: dict[str, tuple[Path, list[_Object]]] = {}
    annotations = sorted(folder.glob("*.xml"))
    for xml in annotations:
        if xml.stem not in images:
            text = f"skipped {xml.name}: it has no image {xml.stem}.* in {image_folder}"
            problems.append(Problem("missing_image", f"{xml}:1", text))
            continue
        objects = _read_objects(xml)
        if isinstance(objects, Problem):
            problems.append(objects)
        else:
            parsed[xml.stem] = (xml, objects)
    class_names = tuple(sorted({name for _, objects in parsed.values() for _, name, *_ in objects}))
    if not class_names:
        raise DataError(
            f"{folder} holds no readable annotation with an object in it; check that the XML files are whole."
        )
    number = {name: index for index, name in enumerate(class_names)}

    samples: dict[str, Sample] = {}
    for stem, (xml, objects) in parsed.items():
        try:
            height, width = image_size(images[stem])
        except DataError as error:
            problems.append(unreadable_image(images[stem], error))
            continue
        rows = [(item.box, number[item.name], item.difficult) for item in objects]
        lines = [f"{xml}:{item.line}" for item in objects]
        samples[stem] = make_sample(stem, images[stem], height, width, rows, lines.__getitem__, problems)

    known = {xml.stem for xml in annotations}
    splits, notes = _read_splits(path, samples, known, problems)
    alone = sorted(images.keys() - known)
    if alone:
        notes += (
            f"{image_folder}: {len(alone)} images have no XML file and are left out (first: {images[alone[0]].name}).",
        )
    category_ids = tuple(range(1, len(class_names) + 1))
    return Dataset(path, "voc", class_names, category_ids, splits, notes, tuple(problems))


def _annotation_folder(path: Path) -> Path | None:
    for name in ANNOTATION_FOLDERS:
        if (path / name).is_dir() and next((path / name).glob("*.xml"), None):
            return path / name
    return path if next(path.glob("*.xml"), None) else None


def _read_objects(xml: Path) -> list[_Object] | Problem:
    """The objects of one file, or the problem that makes the file unusable.

    Corners stay as they are written: Pascal VOC's own files count pixels from 1, most others from 0, and no file tells which.
    One object that cannot be understood makes the file unusable, because training would take the object for background.
    """
    try:
        root, lines = _parse_with_lines(xml)
    except expat.ExpatError as error:
        reason = f"skipped {xml.name}: it is not whole XML ({expat.ErrorString(error.code)})"
        return Problem("bad_row", f"{xml}:{error.lineno}", reason)
    except (OSError, LookupError, ValueError) as error:
        return Problem("bad_row", f"{xml}:1", f"skipped {xml.name}: it cannot be read ({first_line(error)})")
    objects: list[_Object] = []
    for position, item in enumerate(root.iter("object"), start=1):
        name, box = item.findtext("name"), item.find("bndbox")
        fault = None
        corners: tuple[float, ...] = ()
        if not name or box is None:
            fault = f"object {position} has no {'box' if name else 'name'}"
        else:
            try:
                corners = tuple(float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax"))
            except ValueError:
                fault = f"object {position} ({name}) has a box that is not four numbers"
        if fault or not name:
            return Problem("bad_row", f"{xml}:{lines[item]}", f"skipped {xml.name}: {fault}")
        objects.append(_Object(corners, name.strip(), item.findtext("difficult") == "1", lines[item]))
    return objects


def _parse_with_lines(xml: Path) -> tuple[ElementTree.Element, dict[ElementTree.Element, int]]:
    """The root element of a file, and the line of each element, which ElementTree's own parser does not tell."""
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate()
    lines: dict[ElementTree.Element, int] = {}

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.buffer_text = True
    with open(xml, "rb") as stream:
        parser.ParseFile(stream)
    return builder.close(), lines


def _read_splits(
    path: Path, samples: dict[str, Sample], known: set[str], problems: list[Problem]
) -> tuple[dict[str, tuple[Sample, ...]], tuple[str, ...]]:
    lists = path / "ImageSets" / "Main"
    splits: dict[str, tuple[Sample, ...]] = {}
    for name in SPLIT_NAMES:
        file = lists / f"{name}.txt"
        if not file.is_file():
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        stems = [(line, text.split()[0]) for line, text in enumerate(lines, start=1) if text.strip()]
        # If the XML file exists but cannot be used, that problem is recorded already.
        problems.extend(
            Problem("missing_image", f"{file}:{line}", f"skipped {stem}, which has no XML file")
            for line, stem in stems
            if stem not in known
        )
        splits[name] = tuple(samples[stem] for _, stem in stems if stem in samples)
    if splits:
        return splits, ()
    held, note = hold_out(list(samples.values()), path)
    return held, (note,)
