"""Calibration images: chosen with a seed, named by hash, read one by one through the device's own letterbox."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_effdet.artifacts import ModelSpec
from edge_effdet.data.base import Sample, manifest_sha256, readable_images
from edge_effdet.errors import DataError
from edge_effdet.runtime.preprocess import images_to_batch, letterbox

logger = logging.getLogger("edge_effdet.quantize")

FEWEST_IMAGES = 8
ENOUGH_IMAGES = 64

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
