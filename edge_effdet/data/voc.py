"""Pascal VOC folders, as they are found: one XML file a picture, in folders of several names.

``Annotations``, ``annotations``, ``annots`` or ``xml`` beside ``JPEGImages``, ``images`` or ``Images``; or XML files and
pictures in one folder. Splits come from ``ImageSets/Main/*.txt``.
"""

from __future__ import annotations

import logging
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from edge_effdet.data.dataset import Dataset, Sample, hold_out, make_sample
from edge_effdet.errors import DataError
from edge_effdet.images import IMAGE_SUFFIXES, image_size

logger = logging.getLogger(__name__)

ANNOTATION_FOLDERS = ("Annotations", "annotations", "annots", "xml", "xmls")
IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs")
SPLIT_NAMES = ("train", "val", "test", "trainval")

_Row = tuple[tuple[float, float, float, float], str, bool]


def recognises(path: Path) -> bool:
    """Whether ``path`` is a VOC folder."""
    folder = _annotation_folder(path) if path.is_dir() else None
    return folder is not None


def read(path: Path) -> Dataset:
    """Read a VOC folder. Classes are numbered by name. Raises DataError where there is nothing to read."""
    folder = _annotation_folder(path)
    assert folder is not None, "call recognises first"
    image_folder = next((path / name for name in IMAGE_FOLDERS if (path / name).is_dir()), folder)
    images = {image.stem: image for image in sorted(image_folder.iterdir()) if image.suffix.lower() in IMAGE_SUFFIXES}

    parsed: dict[str, tuple[Path, list[_Row]]] = {}
    for xml in sorted(folder.glob("*.xml")):
        image = images.get(xml.stem)
        if image is None:
            logger.warning("skipped %s: it has no image %s.* in %s", xml, xml.stem, image_folder)
            continue
        try:
            parsed[xml.stem] = (xml, _read_objects(xml))
        except (ElementTree.ParseError, DataError) as error:
            logger.warning("skipped %s: %s", xml, error)
    class_names = tuple(sorted({name for _, rows in parsed.values() for _, name, _ in rows}))
    if not class_names:
        raise DataError(
            f"{folder} holds no readable annotation with an object in it; check that the XML files are whole."
        )
    number = {name: index for index, name in enumerate(class_names)}

    samples: dict[str, Sample] = {}
    for stem, (xml, rows) in parsed.items():
        try:
            height, width = image_size(images[stem])
        except DataError as error:
            logger.warning("skipped an image: %s", error)
            continue
        numbered = [(box, number[name], ignored) for box, name, ignored in rows]
        samples[stem] = make_sample(stem, images[stem], height, width, numbered, str(xml))

    splits, notes = _read_splits(path, samples)
    return Dataset(path, "voc", class_names, tuple(range(1, len(class_names) + 1)), splits, notes)


def _annotation_folder(path: Path) -> Path | None:
    for name in ANNOTATION_FOLDERS:
        if (path / name).is_dir() and next((path / name).glob("*.xml"), None):
            return path / name
    return path if next(path.glob("*.xml"), None) else None


def _read_objects(xml: Path) -> list[_Row]:
    """The objects of one file as (xyxy box, class name, difficult), the corners as they are written.

    The challenge's own files count pixels from 1, most others from 0, and nothing in a file tells which: so none is moved.

    Raises:
        DataError: an object without a box or with words for numbers; names the object.
    """
    rows: list[_Row] = []
    for position, item in enumerate(ElementTree.parse(xml).getroot().iter("object"), start=1):
        name, box = item.findtext("name"), item.find("bndbox")
        if not name or box is None:
            raise DataError(f"object {position} has no {'box' if name else 'name'}")
        try:
            corners = [float(box.findtext(side, "")) for side in ("xmin", "ymin", "xmax", "ymax")]
        except ValueError as error:
            raise DataError(f"object {position} ({name}) has a box that is not four numbers") from error
        rows.append(((corners[0], corners[1], corners[2], corners[3]), name.strip(), item.findtext("difficult") == "1"))
    return rows


def _read_splits(path: Path, samples: dict[str, Sample]) -> tuple[dict[str, tuple[Sample, ...]], tuple[str, ...]]:
    lists = path / "ImageSets" / "Main"
    splits: dict[str, tuple[Sample, ...]] = {}
    for name in SPLIT_NAMES:
        file = lists / f"{name}.txt"
        if not file.is_file():
            continue
        stems = [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        missing = [stem for stem in stems if stem not in samples]
        if missing:
            logger.warning("%s names %d images that are not usable (first: %s)", file, len(missing), missing[0])
        splits[name] = tuple(samples[stem] for stem in stems if stem in samples)
    if splits:
        return splits, ()
    held, note = hold_out(list(samples.values()), path)
    return held, (note,)
