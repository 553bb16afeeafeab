"""The ``Dataset`` that all readers return, and what they share: splits, folds, matching of classes, recorded problems."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import ModelSpec, file_sha256, text_sha256
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import read_image

logger = logging.getLogger(__name__)

HELD_OUT_FRACTION = 0.2

PROBLEM_KINDS = {
    "bad_row": "a row, an object or a file of annotations that cannot be understood: skipped",
    "unknown_class": "a box of a class that is not in the list of classes: skipped",
    "degenerate": "a box without area inside its image: skipped",
    "swapped": "a box whose maximum is below its minimum: skipped",
    "not_finite": "a box with NaN or infinity for a number: skipped",
    "outside": "a box that reaches more than 1 pixel beyond its image: clipped",
    "duplicate": "a second box of the same class at the same place: kept",
    "missing_image": "an image that an annotation names and that is not there: skipped",
    "unreadable_image": "a file that is not an image, or a damaged one: skipped",
    "rows_lost": "a picture all of whose rows were rejected: left out",
    "no_labels": "a split in which no picture has a label file: left out",
    "namesake": "pictures of one name in several folders: that of the likeliest folder is read",
    "named_twice": "a picture that several entries mean: kept for each",
    "duplicate_id": "an identifier that several pictures have: they are left out",
    "declared_size": "pictures of another size than their annotations declare: boxes taken as they are",
    "fractions": "boxes that are most likely fractions of the picture: taken as pixels",
    "corners_as_size": "boxes whose width and height are most likely a second corner: taken as they are",
    "class_numbers": "classes that are most likely counted from 1: taken as they are",
    "encoding": "a file that is no text in a known encoding: skipped",
    "class_names": "classes whose names differ only in case or spaces: kept apart",
}
"""The kinds of problems in a data set, each with what is done about it."""

_OUTSIDE_PIXELS = 1.0
_FOLD = re.compile(r"fold(\d+)")
_SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and its true boxes.

    Attributes:
        image_id: the picture's identifier, unique in the data set.
        path: the picture's file.
        height, width: size of the upright picture, pixels.
        boxes: float32 [N, 4], xyxy in pixels, inside the picture and with an area.
        class_ids: int64 [N], 0-based.
        ignore: bool [N], true for crowds and difficult boxes: training leaves them out, evaluation does not count them.
    """

    image_id: str
    path: Path
    height: int
    width: int
    boxes: np.ndarray
    class_ids: np.ndarray
    ignore: np.ndarray


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong in a data set.

    Attributes:
        kind: a key of ``PROBLEM_KINDS``.
        where: ``file:line`` of the annotation, or the image's path if the image is damaged.
        text: what is wrong, and what was done about it.
    """

    kind: str
    where: str
    text: str


@dataclass(frozen=True, slots=True)
class Dataset:
    """A data set as its reader returns it.

    Attributes:
        root: the folder or file that was given.
        kind: the format, a key of ``registry.READERS``.
        class_names: the name of each class, by 0-based class id.
        category_ids: the data set's own id of each class.
        splits: the samples of each split, by name.
        notes: sentences for the user about how it was read.
        problems: what is wrong in it, in the order of the files.
        exporter: the program whose export it looks like; empty where nothing tells.
        held_out: whether nothing in the data names splits, and ``train`` and ``val`` are those of ``hold_out``.
    """

    root: Path
    kind: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    notes: tuple[str, ...] = field(default=())
    problems: tuple[Problem, ...] = field(default=())
    exporter: str = ""
    held_out: bool = False

    @property
    def folds(self) -> tuple[int, ...]:
        """The numbers of the splits that are folds, ascending."""
        return tuple(sorted(int(found[1]) for name in self.splits if (found := _FOLD.fullmatch(name))))

    def with_fold(self, k: int) -> Dataset:
        """The same data with fold ``k`` as ``val`` and all other folds as ``train``; a split like ``test`` stays.

        Raises:
            DataError: the data set has no fold ``k``, or no other fold.
        """
        folds = self.folds
        if not folds:
            raise DataError(
                f"{self.root} has no folds, so there is no fold {k}: folds come from a CSV file with a column fold (a "
                "number from 0 in each row) or from COCO files named instances_fold0.json and so on; add them or leave "
                "`fold` out."
            )
        if k not in folds:
            raise DataError(f"{self.root} has no fold {k}; it has {', '.join(map(str, folds))}: give one of them.")
        if folds == (k,):
            raise DataError(f"{self.root} has no fold but {k}, so nothing is left to train on; give it a second fold.")
        hidden = [name for name in ("train", "val") if name in self.splits]
        notes = self.notes
        if hidden:
            notes += (f"{self.root}: the folds take the place of the split {' and '.join(hidden)}, which is not used.",)
        splits = {
            "train": tuple(sample for fold in folds if fold != k for sample in self.splits[f"fold{fold}"]),
            "val": self.splits[f"fold{k}"],
        }
        others = {
            name: samples for name, samples in self.splits.items() if name not in splits and not _FOLD.fullmatch(name)
        }
        return replace(self, splits={**splits, **others}, notes=notes)

    def choose_split(self, wanted: str | None, defaults: Sequence[str]) -> tuple[str, tuple[Sample, ...]]:
        """The name and the samples of the split ``wanted``, else of the first of ``defaults`` that exists, else of ``all``.

        ``all`` names the samples of all splits.

        Raises:
            DataError: ``wanted`` does not exist, or the split is empty.
        """
        if wanted in ("train", "val") and wanted not in self.splits and self.folds:
            raise DataError(
                f"{self.root} has no split {wanted!r} but the folds {', '.join(map(str, self.folds))}; give `fold` K to "
                "train on all folds but K and validate on K."
            )
        if wanted not in (None, "all", *self.splits):
            raise DataError(
                f"{self.root} has no split {wanted!r}; it has {', '.join(self.splits)}: give one of them as `split`."
            )
        name = wanted or next((name for name in defaults if name in self.splits), "all")
        samples = self.splits[name] if name in self.splits else self.all_samples()
        if not samples:
            raise DataError(f"The split {name!r} of {self.root} holds no usable image; choose another `split`.")
        return name, samples

    def choose_judged(self, wanted: str | None, defaults: Sequence[str]) -> tuple[str, tuple[Sample, ...]]:
        """What a detector is judged on: as ``choose_split``, but data without splits as a whole. What is held out there is for training.

        Raises:
            DataError: as ``choose_split``.
        """
        return self.choose_split(wanted or ("all" if self.held_out else None), defaults)

    def all_samples(self) -> tuple[Sample, ...]:
        by_id = {sample.image_id: sample for samples in self.splits.values() for sample in samples}
        return tuple(by_id[image_id] for image_id in sorted(by_id))


def make_sample(
    image_id: str,
    path: Path,
    height: int,
    width: int,
    rows: Iterable[tuple[Sequence[float], int, bool]],
    source: str | Callable[[int], str],
    problems: list[Problem] | None = None,
) -> Sample:
    """Build a sample from rows of (xyxy box in pixels, class id, ignore).

    A box is clipped to the picture. A box without area inside the picture, or with a number that is not finite, is skipped.

    Args:
        image_id, path, height, width: the picture, as in ``Sample``.
        rows: the boxes.
        source: the place of all rows, as in ``Problem.where``, or a function from a row's number to its place.
        problems: the list that problems are added to; None logs them as warnings.
    """
    boxes: list[list[float]] = []
    class_ids: list[int] = []
    ignore: list[bool] = []
    found: list[Problem] = []
    seen: set[tuple[float, ...]] = set()
    for position, (box, class_id, ignored) in enumerate(rows):
        corners = [float(value) for value in box]
        inside = (max(corners[0], 0.0), max(corners[1], 0.0), min(corners[2], width), min(corners[3], height))
        # Rounded to float32 as they are stored, because a thin box may lose its area by that.
        clipped = [float(np.float32(value)) for value in inside]
        fault = _box_fault(corners, clipped, height, width)
        if fault is None and (class_id, *corners) in seen:
            fault = ("duplicate", "the box {} is there twice")
        seen.add((class_id, *corners))
        if fault is not None:
            kind, text = fault
            where = source if isinstance(source, str) else source(position)
            found.append(Problem(kind, where, text.format(f"[{' '.join(f'{value:g}' for value in corners)}]")))
            if kind in ("degenerate", "swapped", "not_finite"):
                continue
        boxes.append(clipped)
        class_ids.append(class_id)
        ignore.append(ignored)
    if problems is not None:
        problems.extend(found)
    else:
        for problem in found:
            logger.warning("%s: %s", problem.where, problem.text)
    return Sample(
        image_id,
        path,
        height,
        width,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(class_ids, np.int64),
        np.array(ignore, bool),
    )


def unreadable_image(path: Path, error: DataError) -> Problem:
    """The problem to record for a picture that ``image_size`` or ``read_image`` refused."""
    return Problem("unreadable_image", str(path), f"skipped, because it {str(error).removeprefix(f'{path} ')}")


def _box_fault(corners: Sequence[float], clipped: Sequence[float], height: int, width: int) -> tuple[str, str] | None:
    """What is wrong with a box: the kind, and a text with ``{}`` for the box; None if nothing is wrong."""
    if not all(map(math.isfinite, corners)):
        return "not_finite", "skipped the box {}, whose numbers are not all finite"
    if corners[2] < corners[0] or corners[3] < corners[1]:
        return "swapped", "skipped the box {}, whose maximum is below its minimum"
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return "degenerate", f"skipped a degenerate box {{}} in an image {width} wide and {height} high"
    beyond = max(abs(before - after) for before, after in zip(corners, clipped, strict=True))
    if beyond > _OUTSIDE_PIXELS:
        return (
            "outside",
            f"clipped the box {{}}, which reaches {beyond:g} pixels beyond its image of width {width} and height {height}",
        )
    return None


def split_in_name(*names: str) -> str | None:
    """The split, ``train``, ``val`` or ``test``, that a name contains, as ``instances_val2017`` or ``training-set``; else None."""
    words = (word for name in names for word in re.findall(r"[a-z]+", name.lower()))
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)


def gather_splits(
    parts: Iterable[tuple[str | None, tuple[Sample, ...]]], source: Path
) -> tuple[dict[str, tuple[Sample, ...]], tuple[str, ...]]:
    """Join parts of a data set into splits by their names. Returns the splits and notes.

    Parts without a name become the split ``all`` if other parts have names; if none has, ``hold_out`` splits them.
    """
    splits: dict[str, tuple[Sample, ...]] = {}
    unnamed: tuple[Sample, ...] = ()
    for name, samples in parts:
        if name is None:
            unnamed += samples
        else:
            splits[name] = splits.get(name, ()) + samples
    if not unnamed:
        return splits, ()
    if splits:
        return {**splits, "all": unnamed}, ()
    splits, note = hold_out(unnamed, source)
    return splits, (note,)


def first_existing(paths: Iterable[Path]) -> Path | None:
    """The first path that exists, or None.

    ``Path.exists`` is not used: it raises an error for names that no file can have, as damaged annotations hold them.
    """
    return next((path for path in paths if os.path.exists(path)), None)  # noqa: PTH110


def with_unique_ids(parts: Sequence[tuple[Sample, ...]], base: Path) -> list[tuple[Sample, ...]]:
    """Make image ids unique: if one id means two pictures, all ids become the pictures' paths relative to ``base``."""
    pictures: dict[str, set[Path]] = defaultdict(set)
    for samples in parts:
        for sample in samples:
            pictures[sample.image_id].add(sample.path)
    if all(len(paths) == 1 for paths in pictures.values()):
        return list(parts)
    return [
        tuple(replace(sample, image_id=Path(os.path.relpath(sample.path, base)).as_posix()) for sample in samples)
        for samples in parts
    ]


def hold_out(samples: Sequence[Sample], source: Path) -> tuple[dict[str, tuple[Sample, ...]], str]:
    """Split samples that no file assigns to splits: a fraction becomes ``val``. Returns the splits and a note.

    Those whose names have the lowest hashes are taken, so that where a picture is added, removed or damaged at most one other changes its place.
    """

    def rank(sample: Sample) -> list[str]:
        # COCO's ids are numbers that a new export counts anew, and the names of pictures in several folders may all be the same.
        return [text_sha256(text) for text in (sample.path.name, sample.image_id)]

    ordered = sorted(samples, key=lambda sample: sample.image_id)
    count = max(1, round(len(ordered) * HELD_OUT_FRACTION)) if len(ordered) > 1 else 0
    held = {sample.image_id for sample in sorted(ordered, key=rank)[:count]}
    splits = {
        "train": tuple(sample for sample in ordered if sample.image_id not in held),
        "val": tuple(sample for sample in ordered if sample.image_id in held),
    }
    note = (
        f"{source} names no splits: {count} of {len(ordered)} images, chosen by the hashes of their names, are held out as val from training and "
        "calibration; a detector is judged on all."
    )
    return splits, note


def match_classes(dataset: Dataset, spec: ModelSpec) -> Dataset:
    """Renumber a data set's classes as the model numbers them. Classes are matched by name, then by category id.

    Classes of the data set without a box need no match. The model may know more classes than the data set.

    Raises:
        DataError: the model does not know a class that has boxes.
    """
    # Exact names are matched first: in a data set of letters "a" is not "A".
    by_name = {name: index for index, name in enumerate(spec.class_names)}
    by_folded_name = {name.casefold(): index for index, name in enumerate(spec.class_names)}
    by_id = {number: index for index, number in enumerate(spec.category_ids)}
    table = np.full(len(dataset.class_names), -1, np.int64)
    named = [by_name.get(name, by_folded_name.get(name.casefold(), -1)) for name in dataset.class_names]
    by_number = _ids_mean_the_same(dataset, spec, named)
    for own, index in enumerate(named):
        fallback = by_id.get(dataset.category_ids[own], -1) if by_number else -1
        # A class of the model that was matched by name is not matched again by id.
        table[own] = index if index >= 0 or fallback in named else fallback
        if index < 0 <= table[own]:
            number, name = dataset.category_ids[own], spec.class_names[fallback]
            logger.info(
                "class %r is matched with the model's %r: both have the id %d", dataset.class_names[own], name, number
            )
    used = sorted({int(own) for sample in dataset.all_samples() for own in np.unique(sample.class_ids)})
    unknown = [dataset.class_names[own] for own in used if table[own] < 0]
    if unknown:
        raise DataError(
            f"{dataset.root} has boxes of {', '.join(map(repr, unknown[:5]))}, which the model does not know "
            f"(its {spec.num_classes} classes: {', '.join(spec.class_names[:10])}{'…' if spec.num_classes > 10 else ''}); "
            "use the data set that the model was trained for, or rename the classes."
        )
    splits = {
        name: tuple(replace(sample, class_ids=table[sample.class_ids]) for sample in samples)
        for name, samples in dataset.splits.items()
    }
    return replace(dataset, class_names=spec.class_names, category_ids=spec.category_ids, splits=splits)


def _ids_mean_the_same(dataset: Dataset, spec: ModelSpec, named: Sequence[int]) -> bool:
    """Whether classes whose names do not match may be matched by category id.

    Most data sets number their classes from 1, so equal ids alone prove nothing. They are trusted if some names match and
    each of these classes has the same id on both sides, or if all names are numbers.
    """
    agreeing = [spec.category_ids[index] == dataset.category_ids[own] for own, index in enumerate(named) if index >= 0]
    if agreeing:
        # Only COCO's ids identify a class; in the other formats they are positions in a list.
        return dataset.kind == "coco" and all(agreeing)
    return all(name.strip().isdigit() for name in dataset.class_names)


def readable_images(samples: Iterable[Sample]) -> Iterator[tuple[Sample, np.ndarray]]:
    """Each sample with its picture, uint8 [H, W, 3]. Pictures that cannot be decoded are skipped, with warnings that count them."""
    skipped = 0
    for sample in samples:
        try:
            image = read_image(sample.path)
        except DataError as error:
            skipped += 1
            logger.warning("skipped an image: %s", error)
            continue
        yield sample, image
    if skipped:
        logger.warning("%d image%s could not be decoded and were left out", skipped, "" if skipped == 1 else "s")


def samples_manifest(samples: Sequence[Sample]) -> dict[str, str]:
    """The SHA-256 of each image file by image id, sorted by id; missing files are left out."""
    return {
        sample.image_id: file_sha256(sample.path)
        for sample in sorted(samples, key=lambda sample: sample.image_id)
        if sample.path.is_file()
    }


def manifest_sha256(manifest: Mapping[str, str]) -> str:
    return text_sha256(json.dumps(manifest, sort_keys=True))


def samples_sha256(samples: Sequence[Sample]) -> str:
    """One hash over the images and their boxes, which identifies the data that an AP was measured on."""
    truth = {sample.image_id: [sample.boxes.tolist(), sample.class_ids.tolist()] for sample in samples}
    return text_sha256(json.dumps([samples_manifest(samples), truth], sort_keys=True))
