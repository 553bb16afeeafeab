"""The one Dataset type, and what every reader does: splits, class matching, warnings that are counted."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import ModelSpec, file_sha256, text_sha256
from edge_effdet.errors import DataError
from edge_effdet.images import read_image

logger = logging.getLogger(__name__)

HELD_OUT_FRACTION = 0.2
HELD_OUT_SEED = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """One picture and its truth.

    Attributes:
        image_id: unique in the data set.
        path: the picture.
        height, width: pixels, upright.
        boxes: float32 [N, 4], xyxy in pixels, inside the picture and not degenerate.
        class_ids: int64 [N], 0-based.
        ignore: bool [N]: crowds and difficult boxes, left out of training and not counted in evaluation.
    """

    image_id: str
    path: Path
    height: int
    width: int
    boxes: np.ndarray
    class_ids: np.ndarray
    ignore: np.ndarray


@dataclass(frozen=True, slots=True)
class Dataset:
    """Samples with names for their classes.

    Attributes:
        root: the folder or file that was given.
        kind: the reader: ``coco`` or ``voc``.
        class_names: 0-based.
        category_ids: the data set's own ids.
        splits: the samples of each split, by name.
        notes: what a person should know of how it was read.
    """

    root: Path
    kind: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    notes: tuple[str, ...] = field(default=())

    def choose_split(self, wanted: str | None, defaults: Sequence[str]) -> tuple[str, tuple[Sample, ...]]:
        """The split ``wanted``, or the first of ``defaults`` that exists, or all samples, which may be asked for as ``all``.

        Raises:
            DataError: ``wanted`` does not exist, or the split is empty.
        """
        if wanted not in (None, "all", *self.splits):
            raise DataError(
                f"{self.root} has no split {wanted!r}; it has {', '.join(self.splits)}: name one of them with --split."
            )
        name = wanted or next((name for name in defaults if name in self.splits), "all")
        samples = self.splits[name] if name in self.splits else self.all_samples()
        if not samples:
            raise DataError(f"The split {name!r} of {self.root} holds no usable image; choose another with --split.")
        return name, samples

    def all_samples(self) -> tuple[Sample, ...]:
        by_id = {sample.image_id: sample for samples in self.splits.values() for sample in samples}
        return tuple(by_id[image_id] for image_id in sorted(by_id))


def read_dataset(path: Path) -> Dataset:
    """Read a data set, recognising its format.

    Raises:
        DataError: nothing there, no known format, or no usable image.
    """
    from edge_effdet.data import coco, voc

    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no data at {path}; check the path given.")
    readers = [reader for reader in (coco, voc) if reader.recognises(path)]
    if not readers:
        raise DataError(
            f"{path} is no data set of a known format: expected a COCO JSON file, a folder with COCO annotations, or a "
            "Pascal VOC folder (Annotations beside JPEGImages)."
        )
    dataset = readers[0].read(path)
    if not any(dataset.splits.values()):
        raise DataError(f"{path} holds annotations but none of their images; put the images beside them.")
    for note in dataset.notes:
        logger.info("%s", note)
    return dataset


def make_sample(
    image_id: str, path: Path, height: int, width: int, rows: Iterable[tuple[Sequence[float], int, bool]], source: str
) -> Sample:
    """Build a sample from rows of (xyxy box, class id, ignore), dropping what is no box.

    A box is clipped to the picture; one without area or with a number that is not finite is skipped with a warning
    that names ``source``.
    """
    boxes: list[list[float]] = []
    class_ids: list[int] = []
    ignore: list[bool] = []
    for box, class_id, ignored in rows:
        x_min, y_min, x_max, y_max = (float(value) for value in box)
        clipped = [max(x_min, 0.0), max(y_min, 0.0), min(x_max, float(width)), min(y_max, float(height))]
        if not np.isfinite([x_min, y_min, x_max, y_max]).all() or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
            logger.warning("skipped a degenerate box [%g %g %g %g] in %s", x_min, y_min, x_max, y_max, source)
            continue
        boxes.append(clipped)
        class_ids.append(class_id)
        ignore.append(ignored)
    return Sample(
        image_id,
        path,
        height,
        width,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(class_ids, np.int64),
        np.array(ignore, bool),
    )


def hold_out(samples: Sequence[Sample], source: Path) -> tuple[dict[str, tuple[Sample, ...]], str]:
    """Split samples that come without a split file: a seeded fraction becomes ``val``. Returns the splits and a note."""
    ordered = sorted(samples, key=lambda sample: sample.image_id)
    count = max(1, round(len(ordered) * HELD_OUT_FRACTION)) if len(ordered) > 1 else 0
    chosen = set(random.Random(HELD_OUT_SEED).sample(range(len(ordered)), count))
    splits = {
        "train": tuple(sample for index, sample in enumerate(ordered) if index not in chosen),
        "val": tuple(sample for index, sample in enumerate(ordered) if index in chosen),
    }
    note = f"{source} names no splits: {count} of {len(ordered)} images, chosen with seed {HELD_OUT_SEED}, are held out as val."
    return splits, note


def match_classes(dataset: Dataset, spec: ModelSpec) -> Dataset:
    """Renumber a data set's classes into those of a model: by name, then by id.

    Classes of the data set without a box do not matter. The model may know more classes than the data set.

    Raises:
        DataError: a class with boxes that the model does not know; names it.
    """
    # Exact names go first: in a data set of letters "a" is not "A".
    by_name = {name: index for index, name in enumerate(spec.class_names)}
    by_folded_name = {name.casefold(): index for index, name in enumerate(spec.class_names)}
    by_id = {number: index for index, number in enumerate(spec.category_ids)}
    table = np.full(len(dataset.class_names), -1, np.int64)
    named = [by_name.get(name, by_folded_name.get(name.casefold(), -1)) for name in dataset.class_names]
    by_number = _ids_mean_the_same(dataset, spec, named)
    for own, index in enumerate(named):
        fallback = by_id.get(dataset.category_ids[own], -1) if by_number else -1
        # A class that another one already has by its name is not given out twice.
        table[own] = index if index >= 0 or fallback in named else fallback
        if index < 0 <= table[own]:
            number, name = dataset.category_ids[own], spec.class_names[fallback]
            logger.info("class %r is taken for %r: both have the id %d", dataset.class_names[own], name, number)
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
    """Whether category ids may stand in for names that do not match.

    Ids alone prove nothing: most data sets number their classes from 1, so blood cells would become balls. They are
    trusted where some names match and each of those has the same id on both sides, or where names are only numbers.
    """
    agreeing = [spec.category_ids[index] == dataset.category_ids[own] for own, index in enumerate(named) if index >= 0]
    if agreeing:
        # Only a COCO file has ids of its own; those of the other formats are made up by their reader.
        return dataset.kind == "coco" and all(agreeing)
    return all(name.strip().isdigit() for name in dataset.class_names)


def readable_images(samples: Iterable[Sample]) -> Iterator[tuple[Sample, np.ndarray]]:
    """Decode each sample's picture; one that cannot be decoded is skipped with a warning, and all are counted at the end."""
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
    """Image id to SHA-256 of the image file, sorted by id; missing files are left out."""
    return {
        sample.image_id: file_sha256(sample.path)
        for sample in sorted(samples, key=lambda sample: sample.image_id)
        if sample.path.is_file()
    }


def manifest_sha256(manifest: Mapping[str, str]) -> str:
    return text_sha256(json.dumps(manifest, sort_keys=True))


def samples_sha256(samples: Sequence[Sample]) -> str:
    """One hash over the images and their boxes, so that an AP names the data it was measured on."""
    truth = {sample.image_id: [sample.boxes.tolist(), sample.class_ids.tolist()] for sample in samples}
    return text_sha256(json.dumps([samples_manifest(samples), truth], sort_keys=True))
