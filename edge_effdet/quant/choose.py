"""The choice of calibration images: at random with a seed, by a manifest, or so that no image is far from all chosen ones."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import Graph, ModelSpec, file_sha256, printable
from edge_effdet.data.base import Sample, readable_images, samples_manifest
from edge_effdet.data.text import read_text
from edge_effdet.errors import DataError, UsageError
from edge_effdet.quant.calibration import ENOUGH_IMAGES, FEWEST_IMAGES, CalibrationImages

logger = logging.getLogger("edge_effdet.quantize")


POOL = 8
"""The choice ``k-center`` looks at up to this many times as many images as it chooses, and not at all images of a large data set."""


def choose_samples(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """Choose ``count`` samples at random with a seed, or all where there are fewer, in the order of their ids."""
    ordered = sorted(samples, key=lambda sample: sample.image_id)
    if len(ordered) <= count:
        return ordered
    return sorted(random.Random(seed).sample(ordered, count), key=lambda sample: sample.image_id)


def choose_representative(samples: Sequence[Sample], count: int, seed: int, graph: Graph) -> list[Sample]:
    """Choose ``count`` samples so that no other sample is far from all of them: greedy k-centre on features of the backbone.

    Each next sample is the one farthest from those chosen so far (Gonzalez, 1985; its distances are at most twice the least possible).
    The features of a sample are the backbone's last tensor, averaged over its positions and scaled to unit variance a channel. Of more
    than ``POOL * count`` samples a seeded choice is looked at.
    """
    from edge_effdet.quant.statistics import backbone_features

    pool = choose_samples(samples, POOL * count, seed)
    kept, features = backbone_features(graph, pool)
    if len(kept) <= count:
        return kept
    scaled = (features - features.mean(axis=0)) / np.maximum(features.std(axis=0), 1e-12)
    return sorted((kept[index] for index in choose_k_centers(scaled, count, seed)), key=lambda sample: sample.image_id)


def choose_k_centers(points: np.ndarray, count: int, seed: int) -> list[int]:
    """Choose ``count`` of the points, float [N, D], by greedy k-centre from a seeded first one. Returns their indices; ties by position."""
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
        samples: the images to choose from.
        spec: the model's.
        count: how many images are chosen.
        seed: seeds the choice.
        choice: one of ``CHOICES``.
        graph: ``k-center`` computes features by its backbone.
        few: allow fewer than ``FEWEST_IMAGES``.

    Raises:
        UsageError: ``count`` is too small.
        DataError: fewer than ``FEWEST_IMAGES`` of the chosen ones can be decoded.
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
    """The images that a manifest names (see ``manifest_record``), each of which must be unchanged.

    Raises:
        DataError: the manifest is damaged, or names an image that is missing or changed.
    """
    try:
        raw = json.loads(read_text(path))
        wanted: dict[str, str] = dict(raw["images"])
        seed, split = int(raw.get("seed", 0)), str(raw.get("split", ""))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(
            f"{path} is no calibration manifest ({type(error).__name__}: {error}); write one with "
            "python calibration/make_manifest.py."
        ) from error
    by_id = {printable(sample.image_id): sample for sample in samples}
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
            "made up, so give more real images as `calibration_data`, or `few_images` to go on with these."
        )
    if len(readable) < ENOUGH_IMAGES:
        logger.warning(
            "%d calibration images are few: ranges measured on less than %d may miss what the camera sees later",
            len(readable), ENOUGH_IMAGES,
        )  # fmt: skip
    return CalibrationImages(readable, spec, samples_manifest(readable), seed)
