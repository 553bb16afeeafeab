"""One model or several that predict as one, and mirrored views of a picture: ``(models, pictures) -> Detections``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_effdet.errors import BackendUnavailable
from edge_effdet.runtime.detector import DetectOptions

if TYPE_CHECKING:
    import torch

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from edge_effdet.artifacts import Checkpoint, Detections, ModelSpec
from edge_effdet.backends.base import Runner
from edge_effdet.errors import MissingDependency, UsageError
from edge_effdet.evaluation.ensemble import TTA_VIEWS, check_same_classes, fuse_detections
from edge_effdet.options import option
from edge_effdet.runtime.detector import Detector

T = TypeVar("T")


MEMBER_SCORE_FLOOR = 0.001
"""Before fusing, a threshold would drop what several lists agree on weakly; below this a box cannot matter."""


MAX_DETECTIONS = 100
"""In one picture, as ``detections_from_outputs`` keeps of one model."""


@dataclass(frozen=True, slots=True)
class InferenceOptions:
    """How the pictures run through the network."""

    tta: str = option(
        "none", help="test-time augmentation: fuse mirrored views of each image with it", choices=tuple(TTA_VIEWS)
    )
    batch_size: int = option(4, help="images a run of the network")
    device: str = option("auto", help="where checkpoints run; auto takes a GPU", choices=("auto", "cpu", "cuda"))


@dataclass(frozen=True, slots=True)
class Member:
    """A model that is loaded, and the spec of it; members that predict together may differ in image size."""

    runner: Runner
    spec: ModelSpec


def predict_image(
    members: Sequence[Member], image: np.ndarray, score_threshold: float, options: InferenceOptions | None = None
) -> Detections:
    """Find objects in one picture, uint8 [height, width, 3]. See ``predict_images``."""
    return predict_images(members, [image], score_threshold, options)[0]


def predict_images(
    members: Sequence[Member],
    images: Sequence[np.ndarray],
    score_threshold: float,
    options: InferenceOptions | None = None,
) -> list[Detections]:
    """Find objects in pictures; what several models or views find in one of them is fused (``ensemble.fuse_detections``).

    Args:
        members: one model or several of the same classes.
        images: uint8 [height, width, 3] each, RGB, of any sizes.
        score_threshold: lower scores are dropped, after fusing.
        options: views and batch size; the defaults where None.

    Returns:
        One entry a picture, in pixels of the original.

    Raises:
        MissingDependency: there is something to fuse and ensemble-boxes is not installed.
    """
    options = options or InferenceOptions()
    views = TTA_VIEWS[options.tta]
    single = len(members) * len(views) == 1
    floor = score_threshold if single else min(MEMBER_SCORE_FLOOR, score_threshold)
    found: list[list[Detections]] = [[] for _ in images]
    for member in members:
        for view in views:
            seen = [view.show(image) for image in images]
            for own, image, detections in zip(found, images, _detect(member, seen, floor, options), strict=True):
                own.append(view.undo(detections, image))
    if single:
        return [own[0] for own in found]
    return [
        _best(fuse_detections(own, (image.shape[0], image.shape[1])).above(score_threshold))
        for own, image in zip(found, images, strict=True)
    ]


def load_members(paths: Sequence[Path], device: str = "auto") -> tuple[list[Checkpoint], list[Member]]:
    """Open checkpoints and put their networks on a device.

    Raises:
        CheckpointError: one cannot be used.
        UsageError: they have different classes.
        BackendUnavailable: ``cuda`` where there is none.
        MissingDependency: torch or effdet is not installed.
    """
    from edge_effdet.models.checkpoint import load_network, open_checkpoint

    try:
        # A wrong file is found out before seconds of importing torch.
        checkpoints = [open_checkpoint(path) for path in paths]
        check_same_classes([checkpoint.spec for checkpoint in checkpoints], [str(path) for path in paths])
        import effdet  # noqa: F401

        from edge_effdet.models.runner import TorchRunner
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "torch", "train", "to run a checkpoint") from error
    place = _choose_device(device)
    return checkpoints, [
        Member(TorchRunner(load_network(checkpoint).to(place), checkpoint.spec), checkpoint.spec)
        for checkpoint in checkpoints
    ]


def describe_checkpoints(checkpoints: Sequence[Checkpoint]) -> list[dict[str, str]]:
    """For JSON: which files they were."""
    return [{"path": str(checkpoint.path), "sha256": checkpoint.sha256} for checkpoint in checkpoints]


def check_options(options: InferenceOptions) -> None:
    """Raises UsageError for a batch size that makes no sense."""
    if options.batch_size < 1:
        raise UsageError(f"--batch-size {options.batch_size} makes no sense; give at least 1.")


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _detect(
    member: Member, images: Sequence[np.ndarray], score_threshold: float, options: InferenceOptions
) -> list[Detections]:
    fixed = member.runner.inputs[0].shape[0] > 0
    found = DetectOptions(score_threshold, max_detections=MAX_DETECTIONS)
    return Detector(member.runner, member.spec, found, None if fixed else options.batch_size)(images)


def _best(detections: Detections) -> Detections:
    best = slice(MAX_DETECTIONS)
    return Detections(detections.boxes[best], detections.scores[best], detections.class_ids[best])


def _choose_device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            "torch finds no CUDA device on this machine, so --device cuda cannot be used; check the driver with "
            "nvidia-smi, or give --device cpu."
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
