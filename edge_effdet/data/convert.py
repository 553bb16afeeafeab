"""Writes a data set in another format, with its pictures.

Boxes are those of the upright picture, so the size that is written for a picture is that of the upright one too, also where the file itself stores it
turned.
"""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import json_text, refuse_overwrite
from edge_effdet.artifacts.files import atomic_folder
from edge_effdet.artifacts.temporary import remove_leftovers
from edge_effdet.cli import progress
from edge_effdet.data.base import Dataset, Sample
from edge_effdet.data.registry import get_reader
from edge_effdet.errors import DataError, InputError, UsageError

_YOLO_SPLITS = ("train", "val", "test")

Splits = Mapping[str, Sequence[Sample]]
Names = Mapping[Path, str]
"""The name that each picture gets, by its file."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written.

    Attributes:
        output, kind: the folder, and its format as in ``Dataset``.
        images, boxes: how many of each split, by its name.
        notes: what the format cannot hold, and what was done about it.
    """

    output: Path
    kind: str
    images: Mapping[str, int]
    boxes: Mapping[str, int]
    notes: tuple[str, ...]

    def text(self) -> str:
        """The conversion as text for a person."""
        splits = [f"{name}: {count} images, {self.boxes[name]} boxes" for name, count in self.images.items()]
        title = get_reader(self.kind).TITLE
        return "\n".join([f"{self.output}: {title}", *splits, *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """The conversion as an object for JSON."""
        splits = {name: {"images": count, "boxes": self.boxes[name]} for name, count in self.images.items()}
        return {"output": str(self.output), "format": self.kind, "splits": splits, "notes": list(self.notes)}


def convert_dataset(dataset: Dataset, to: str, output: Path, link: bool = False) -> Conversion:
    """Write a data set in another format. A picture that is in several splits is written once where the format can say so.

    Args:
        dataset: the data set, as ``read_dataset`` returns it.
        to: a key of ``FORMATS``.
        output: the folder to write. It appears when all is written.
        link: make hard links to the pictures and no copies.

    Raises:
        UsageError: ``to`` is no format that is written, or ``output`` is there and not empty, or lies in the data set.
        DataError: a picture is gone, or the name of a split is no plain file name, as that of a foreign data set may be.
        InputError: the folder cannot be written, or pictures on another disk cannot be linked.
    """
    if to not in FORMATS:
        raise UsageError(f"There is no format {to!r} to write; give `to` as one of {', '.join(FORMATS)}.")
    output = Path(output)
    refuse_overwrite([output], [dataset.root])
    # Where it is refused nothing is made there, which would remove them.
    remove_leftovers(output.parent)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UsageError(f"{output} is there already; give `output` a folder that does not exist or is empty.")
    if dataset.held_out and to != "yolo":
        # Both formats can say that there are no splits, and what is held out is for training to choose.
        dataset = replace(dataset, splits={"default": dataset.all_samples()}, held_out=False)
    unusable = next((name for name in dataset.splits if Path(name).name != name or not name.isprintable()), None)
    if unusable is not None:
        raise DataError(
            f"The split {unusable!r} of {dataset.root} has no plain name, and files are named by it; rename it in the data."
        )
    names = _unique_names(sample.path for samples in dataset.splits.values() for sample in samples)
    renamed = sum(path.name != name for path, name in names.items())
    with atomic_folder(output) as folder:
        splits, places, notes = FORMATS[to](dataset, names, folder)
        for place, path in progress(places.items(), len(places), "writing pictures"):
            _place_picture(path, place, link)
    if renamed:
        notes.append(f"{renamed} pictures have other names there, because theirs were not unique or no plain text.")
    return Conversion(
        output=output,
        kind=to,
        images={name: len(samples) for name, samples in splits.items()},
        boxes={name: sum(len(sample.boxes) for sample in samples) for name, samples in splits.items()},
        notes=tuple(notes),
    )


def _place_picture(path: Path, place: Path, link: bool) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        raise DataError(f"There is no image at {path} any more; read the data set again.")
    if not link:
        shutil.copyfile(path, place)
        return
    try:
        os.link(path.resolve(), place)
    except OSError as error:
        raise InputError(
            f"{path} cannot be linked ({error.strerror or error}); leave `link` out, which copies it."
        ) from error


def _unique_names(paths: Iterable[Path]) -> dict[Path, str]:
    """A name for each picture that is plain text and whose stem no other has, in any case: labels and pictures go by stems."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path in sorted(set(paths)):
        plain = "".join(letter if letter.isprintable() else "_" for letter in path.stem).strip() or "_"
        stem, number = plain, 1
        while (folded := unicodedata.normalize("NFC", stem).casefold()) in taken:
            number += 1
            stem = f"{plain}_{number}"
        taken.add(folded)
        names[path] = stem + path.suffix
    return names


def _number(value: float) -> float | int:
    """A coordinate in pixels to three digits: float32 has no more in a large picture."""
    rounded = round(float(value), 3)
    return int(rounded) if rounded.is_integer() else rounded


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


_Written = tuple[Splits, dict[Path, Path], list[str]]
"""What a writer gives back: the splits as they were written, the file of each picture that is still to be copied, by its place, and notes."""


def _rows(sample: Sample) -> Iterator[tuple[list[float], int, bool]]:
    """Corners, class id and ignore of each box."""
    yield from zip(sample.boxes.tolist(), sample.class_ids.tolist(), sample.ignore.tolist(), strict=True)


def _write_coco(dataset: Dataset, names: Names, folder: Path) -> _Written:
    numbers = {path: number for number, path in enumerate(names, 1)}
    ids = dataset.category_ids
    categories = [{"id": number, "name": name} for number, name in zip(ids, dataset.class_names, strict=True)]
    for split, samples in dataset.splits.items():
        images = [
            {"id": numbers[each.path], "file_name": names[each.path], "width": each.width, "height": each.height}
            for each in samples
        ]
        annotations = [
            {
                "image_id": numbers[sample.path],
                "category_id": ids[class_id],
                "bbox": [_number(value) for value in (x_min, y_min, x_max - x_min, y_max - y_min)],
                "area": _number((x_max - x_min) * (y_max - y_min)),
                "iscrowd": int(ignore),
            }
            for sample in samples
            for (x_min, y_min, x_max, y_max), class_id, ignore in _rows(sample)
        ]
        annotations = [{"id": number, **each} for number, each in enumerate(annotations, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        _write(folder / "annotations" / f"instances_{split}.json", json_text(content))
    return dataset.splits, {folder / "images" / name: path for path, name in names.items()}, []


def _write_voc(dataset: Dataset, names: Names, folder: Path) -> _Written:
    written = {sample.path: sample for samples in dataset.splits.values() for sample in samples}
    for path, sample in written.items():
        root = ElementTree.Element("annotation")
        _add(root, folder="JPEGImages", filename=names[path])
        _add(ElementTree.SubElement(root, "size"), width=sample.width, height=sample.height, depth=3)
        for corners, class_id, ignore in _rows(sample):
            item = ElementTree.SubElement(root, "object")
            _add(item, name=dataset.class_names[class_id], difficult=int(ignore))
            _add(
                ElementTree.SubElement(item, "bndbox"),
                **dict(zip(("xmin", "ymin", "xmax", "ymax"), map(_number, corners), strict=True)),
            )
        ElementTree.indent(root)
        stem = Path(names[path]).stem
        _write(folder / "Annotations" / f"{stem}.xml", ElementTree.tostring(root, encoding="unicode") + "\n")
    for split, samples in dataset.splits.items():
        lines = "".join(f"{Path(names[sample.path]).stem}\n" for sample in samples)
        _write(folder / "ImageSets" / "Main" / f"{split}.txt", lines)
    used = {class_id for sample in written.values() for class_id in sample.class_ids.tolist()}
    unused = [name for class_id, name in enumerate(dataset.class_names) if class_id not in used]
    notes = [f"Pascal VOC has no list of classes: {', '.join(unused)} without a box is lost."] if unused else []
    return dataset.splits, {folder / "JPEGImages" / name: path for path, name in names.items()}, notes


def _add(parent: ElementTree.Element, **texts: Any) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(parent, tag).text = str(text)


def _write_yolo(dataset: Dataset, names: Names, folder: Path) -> _Written:
    splits, notes = _yolo_splits(dataset)
    ignored = sum(int(sample.ignore.sum()) for samples in splits.values() for sample in samples)
    if ignored:
        notes.append(f"YOLO has no crowds and no difficult boxes: {ignored} are left out, as Ultralytics does it.")
        splits = {split: [_without_ignored(sample) for sample in samples] for split, samples in splits.items()}
    places: dict[Path, Path] = {}
    for split, samples in splits.items():
        for sample in samples:
            rows = []
            for (x_min, y_min, x_max, y_max), class_id, _ in _rows(sample):
                x, y = (x_min + x_max) / 2 / sample.width, (y_min + y_max) / 2 / sample.height
                width, height = (x_max - x_min) / sample.width, (y_max - y_min) / sample.height
                rows.append(f"{class_id} {x:.7f} {y:.7f} {width:.7f} {height:.7f}\n")
            name = names[sample.path]
            _write(folder / "labels" / split / f"{Path(name).stem}.txt", "".join(rows))
            places[folder / "images" / split / name] = sample.path
    # JSON's strings are YAML's too, whatever letters a name has.
    classes = [f"  {number}: {json.dumps(name)}\n" for number, name in enumerate(dataset.class_names)]
    keys = [f"{split}: images/{split}\n" for split in splits]
    _write(folder / "data.yaml", "".join(["path: .\n", *keys, "names:\n", *classes]))
    return splits, places, notes


def _without_ignored(sample: Sample) -> Sample:
    kept = ~sample.ignore
    return replace(sample, boxes=sample.boxes[kept], class_ids=sample.class_ids[kept], ignore=sample.ignore[kept])


def _yolo_splits(dataset: Dataset) -> tuple[Splits, list[str]]:
    """The splits that YOLO has, and notes on the others. Without a split train, all that is in no other one is train."""
    splits = {name: list(dataset.splits[name]) for name in _YOLO_SPLITS if name in dataset.splits}
    others = [name for name in dataset.splits if name not in _YOLO_SPLITS]
    known = {sample.path for samples in splits.values() for sample in samples}
    rest = {sample.path: sample for name in others for sample in dataset.splits[name] if sample.path not in known}
    if not rest:
        return splits, []
    names = ", ".join(others)
    if "train" in splits:
        return splits, [
            f"YOLO has the splits train, val and test: {len(rest)} pictures that are only in {names} are left out."
        ]
    return {"train": list(rest.values()), **splits}, [f"YOLO has no splits {names}: their pictures are train."]


FORMATS: Mapping[str, Callable[[Dataset, Names, Path], _Written]] = {
    "coco": _write_coco,
    "yolo": _write_yolo,
    "voc": _write_voc,
}
"""What writes each format."""
