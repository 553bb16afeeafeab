"""Calibration images: named by hash, and decoded one by one through the letterbox of the device."""

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
    """The images that INT8 ranges are measured on. An iteration decodes one image at a time, so that their number costs no memory.

    Attributes:
        samples: the chosen images, all of which could be decoded, in the order of their ids.
        spec: the model's; it has the size and the colour of the letterbox.
        manifest: image id to SHA-256 of the file.
        seed: the seed that they were chosen with.
        split: the split of the data set that they were chosen from; empty where none was named.
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
        """Yield each image letterboxed, uint8 [1, 3, H, W]."""
        for _, image in readable_images(self.samples):
            yield letterboxed(image, self.spec)

    def first(self, count: int) -> CalibrationImages:
        """``count`` of the images, evenly spread over their ids; all where there are no more."""
        if count >= len(self.samples):
            return self
        return replace(self, samples=tuple(self.samples[len(self.samples) * k // count] for k in range(count)))

    def record(self, method: str) -> dict[str, object]:
        """What the graph's metadata and the engine's JSON say of them, with the method that ranges were chosen by."""
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
    """An image, uint8 [height, width, 3], as input of the graph, uint8 [1, 3, H, W]."""
    canvas, _ = letterbox(image, spec.image_size, spec.preprocess)
    return images_to_batch([canvas])


def refuse_overlap(calibration: Mapping[str, str], evaluation: Mapping[str, str]) -> None:
    """Raises DataError where a calibration image is an evaluation image too, by the hashes of their files."""
    shared = set(calibration.values()) & set(evaluation.values())
    if shared:
        name = next(image_id for image_id, digest in calibration.items() if digest in shared)
        raise DataError(
            f"{len(shared)} calibration images are also evaluation images (first: {name}), so the measured AP would flatter; "
            "choose other splits with `calibration_split` and `split`."
        )


def manifest_record(images: CalibrationImages, data: str) -> dict[str, Any]:
    """The manifest of a calibration set, as the folder ``calibration/`` keeps it: how images were chosen, and each file's SHA-256."""
    return {
        "data": data,
        "split": images.split,
        "choice": images.choice,
        "seed": images.seed,
        "count": len(images),
        "manifest_sha256": manifest_sha256(images.manifest),
        "images": dict(images.manifest),
    }
