"""Calibration images: chosen with a seed, read through the device's own letterbox, named by hash."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edge_effdet.artifacts import ModelSpec
from edge_effdet.data.dataset import Sample, manifest_sha256, readable_images, samples_manifest
from edge_effdet.errors import DataError, UsageError
from edge_effdet.preprocess import letterbox

FEWEST_IMAGES = 8


@dataclass(frozen=True, slots=True)
class CalibrationImages:
    """What the ranges are measured on.

    Attributes:
        pixels: uint8 [N, 3, H, W], letterboxed.
        manifest: image id to SHA-256 of the file.
        seed: that chose them.
        split: of the data set that they were chosen from; empty where nothing named one.
    """

    pixels: np.ndarray
    manifest: Mapping[str, str]
    seed: int
    split: str = ""

    def record(self, method: str) -> dict[str, object]:
        """For the graph's metadata and the engine's JSON."""
        return {
            "method": method,
            "images": len(self.pixels),
            "split": self.split,
            "seed": self.seed,
            "manifest_sha256": manifest_sha256(self.manifest),
            "manifest": dict(self.manifest),
        }


def choose_samples(samples: Sequence[Sample], count: int, seed: int) -> list[Sample]:
    """A seeded choice of ``count`` samples, or all where there are fewer, in the order of their ids."""
    ordered = sorted(samples, key=lambda sample: sample.image_id)
    if len(ordered) <= count:
        return ordered
    return sorted(random.Random(seed).sample(ordered, count), key=lambda sample: sample.image_id)


def load_calibration_images(samples: Sequence[Sample], spec: ModelSpec, count: int, seed: int) -> CalibrationImages:
    """Choose, decode and letterbox calibration images.

    Raises:
        UsageError: ``count`` is too small.
        DataError: fewer than 8 of them can be decoded.
    """
    if count < FEWEST_IMAGES:
        raise UsageError(f"{count} calibration images are too few to measure ranges on; give at least {FEWEST_IMAGES}.")
    chosen = choose_samples(samples, count, seed)
    pixels: list[np.ndarray] = []
    readable: list[Sample] = []
    for sample, image in readable_images(chosen):
        canvas, _ = letterbox(image, spec.image_size, spec.preprocess)
        pixels.append(canvas.transpose(2, 0, 1))
        readable.append(sample)
    if len(pixels) < FEWEST_IMAGES:
        raise DataError(
            f"Only {len(pixels)} calibration images could be read and {FEWEST_IMAGES} are the least; INT8 ranges are never "
            "made up, so give more real images with --calibration-data."
        )
    return CalibrationImages(np.stack(pixels), samples_manifest(readable), seed)


def refuse_overlap(calibration: Mapping[str, str], evaluation: Mapping[str, str]) -> None:
    """Raises DataError where a calibration image is also an evaluation image, by content."""
    shared = set(calibration.values()) & set(evaluation.values())
    if shared:
        name = next(image_id for image_id, digest in calibration.items() if digest in shared)
        raise DataError(
            f"{len(shared)} calibration images are also evaluation images (first: {name}), so the measured AP would flatter; "
            "choose other splits with --calibration-split and --split."
        )
