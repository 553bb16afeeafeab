"""Calibration images: chosen with a seed, named by hash, read one by one through the device's own letterbox."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Graph, ModelSpec, file_sha256
from edge_effdet.data.dataset import Sample, manifest_sha256, readable_images, samples_manifest
from edge_effdet.errors import DataError, UsageError
from edge_effdet.preprocess import images_to_batch, letterbox

logger = logging.getLogger("edge_effdet.quantize")

FEWEST_IMAGES = 8
ENOUGH_IMAGES = 64
POOL = 8
"""``k-center`` looks at this many times as many images as it chooses, and not at all of a large data set."""

CHOICES = ("random", "k-center")


@dataclass(frozen=True, slots=True)
class CalibrationImages:
    """What the ranges are measured on. Iterating decodes one image at a time, so memory does not grow with their number.

    Attributes:
        samples: the chosen ones, all of which could be decoded, by id.
        spec: gives the letterbox.
        manifest: image id to SHA-256 of the file.
        seed: that chose them.
        split: of the data set that they were chosen from; empty where nothing named one.
        choice: how they were chosen, one of ``CHOICES`` or ``manifest``.
    """

    samples: tuple[Sample, ...]
    spec: ModelSpec
    manifest: Mapping[str, str]
    seed: int
    split: str = ""
    choice: str = "random"

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[np.ndarray]:
        """uint8 [1, 3, H, W] each, letterboxed."""
        for _, image in readable_images(self.samples):
            yield letterboxed(image, self.spec)

    def first(self, count: int) -> CalibrationImages:
        """As many of them, evenly spread over their ids."""
        if count >= len(self.samples):
            return self
        return replace(self, samples=tuple(self.samples[len(self.samples) * k // count] for k in range(count)))

    def record(self, method: str) -> dict[str, object]:
        """For the graph's metadata and the engine's JSON."""
        return {
            "method": method,
            "images": len(self.samples),
            "split": self.split,
            "choice": self.choice,
            "seed": self.seed,
            "manifest_sha256": manifest_sha256(self.manifest),
            "manifest": dict(self.manifest),
        }


def letterboxed(image: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """uint8 [height, width, 3] to the graph's input, uint8 [1, 3, H, W]."""
    canvas, _ = letterbox(image, spec.image_size, spec.preprocess)
    return images_to_batch([canvas])


def choose_samples(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """A seeded choice of ``count`` samples, or all where there are fewer, in the order of their ids."""
    ordered = sorted(samples, key=lambda sample: sample.image_id)
    if len(ordered) <= count:
        return ordered
    return sorted(random.Random(seed).sample(ordered, count), key=lambda sample: sample.image_id)


def choose_representative(samples: Sequence[Sample], count: int, seed: int, graph: Graph) -> list[Sample]:
    """``count`` samples of which no other sample is far: greedy k-centre on what the backbone sees.

    Each next one is the sample farthest from all chosen so far (Gonzalez, 1985; at most twice the least possible distance).
    A sample is the mean over its positions of the backbone's last tensor, scaled to unit variance a channel. Of a data set
    of more than ``POOL * count`` images a seeded part is looked at.
    """
    from edge_effdet.quant.statistics import backbone_features

    pool = choose_samples(samples, POOL * count, seed)
    kept, features = backbone_features(graph, pool)
    if len(kept) <= count:
        return kept
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-12)
    return sorted((kept[index] for index in spread_out(scaled, count, seed)), key=lambda sample: sample.image_id)


def spread_out(points: np.ndarray, count: int, seed: int) -> list[int]:
    """Indices of ``count`` of the points, float [N, D], by greedy k-centre from a seeded first one; ties by position."""
    chosen = [random.Random(seed).randrange(len(points))]
    nearest = np.square(points - points[chosen[0]]).sum(axis=1)
    while len(chosen) < min(count, len(points)):
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.square(points - points[chosen[-1]]).sum(axis=1))
    return chosen


def load_calibration_images(
    samples: Sequence[Sample],
    spec: ModelSpec,
    count: int,
    seed: int,
    choice: str = "random",
    graph: Graph | None = None,
    few: bool = False,
) -> CalibrationImages:
    """Choose calibration images, and see that each can be decoded.

    Args:
        samples: to choose from.
        spec: of the model.
        count: how many.
        seed: of the choice.
        choice: one of ``CHOICES``.
        graph: whose backbone ``k-center`` looks through.
        few: allow fewer than 8.

    Raises:
        UsageError: ``count`` is too small.
        DataError: fewer than 8 of them can be decoded.
    """
    if count < (1 if few else FEWEST_IMAGES):
        raise UsageError(f"{count} calibration images are too few to measure ranges on; give at least {FEWEST_IMAGES}.")
    if choice == "k-center":
        assert graph is not None
        chosen = choose_representative(samples, count, seed, graph)
    else:
        chosen = choose_samples(samples, count, seed)
    return replace(_readable(chosen, spec, seed, few), choice=choice)


def load_manifest_images(
    path: Path, samples: Sequence[Sample], spec: ModelSpec, few: bool = False
) -> CalibrationImages:
    """The images that a manifest of ``calibration/`` names, each of them unchanged.

    Raises:
        DataError: the manifest is damaged, or names an image that is missing or changed.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        wanted: dict[str, str] = dict(raw["images"])
        seed, split = int(raw.get("seed", 0)), str(raw.get("split", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no calibration manifest ({type(error).__name__}: {error}); write one with "
            "python calibration/make_manifest.py."
        ) from error
    by_id = {sample.image_id: sample for sample in samples}
    for image_id, digest in wanted.items():
        if image_id not in by_id or not by_id[image_id].path.is_file():
            raise DataError(
                f"{path} names the image {image_id}, which the data does not have; give the data it was made of."
            )
        if file_sha256(by_id[image_id].path) != digest:
            raise DataError(
                f"{by_id[image_id].path} is not the file that {path} names (its SHA-256 differs), so the calibration would not "
                "be the one that was recorded; restore the file or write the manifest again."
            )
    images = _readable([by_id[image_id] for image_id in sorted(wanted)], spec, seed, few)
    return replace(images, split=split, choice="manifest")


def _readable(chosen: Sequence[Sample], spec: ModelSpec, seed: int, few: bool) -> CalibrationImages:
    readable = tuple(sample for sample, _ in readable_images(chosen))
    if len(readable) < (1 if few else FEWEST_IMAGES):
        raise DataError(
            f"Only {len(readable)} calibration images could be read and {FEWEST_IMAGES} are the least; INT8 ranges are never "
            "made up, so give more real images with --calibration-data, or --few-images to go on with these."
        )
    if len(readable) < ENOUGH_IMAGES:
        logger.warning(
            "%d calibration images are few: ranges measured on less than %d may miss what the camera sees later",
            len(readable), ENOUGH_IMAGES,
        )  # fmt: skip
    return CalibrationImages(readable, spec, samples_manifest(readable), seed)


def refuse_overlap(calibration: Mapping[str, str], evaluation: Mapping[str, str]) -> None:
    """Raises DataError where a calibration image is also an evaluation image, by content."""
    shared = set(calibration.values()) & set(evaluation.values())
    if shared:
        name = next(image_id for image_id, digest in calibration.items() if digest in shared)
        raise DataError(
            f"{len(shared)} calibration images are also evaluation images (first: {name}), so the measured AP would flatter; "
            "choose other splits with --calibration-split and --split."
        )


def manifest_record(images: CalibrationImages, data: str) -> dict[str, Any]:
    """A manifest of ``calibration/``: what was chosen, how, and each file's SHA-256."""
    return {
        "data": data,
        "split": images.split,
        "choice": images.choice,
        "seed": images.seed,
        "count": len(images),
        "manifest_sha256": manifest_sha256(images.manifest),
        "images": dict(images.manifest),
    }
