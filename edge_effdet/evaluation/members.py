"""Prediction by one model or several together, and on mirrored views of a picture: ``(models, pictures) -> Detections``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edge_effdet.artifacts import Checkpoint, Detections, ModelSpec
from edge_effdet.backends.base import Runner
from edge_effdet.errors import BackendUnavailable, MissingDependency, UsageError
from edge_effdet.evaluation.ensemble import TTA_VIEWS, check_same_classes, fuse_detections
from edge_effdet.models.checkpoint import SourceOptions
from edge_effdet.options import check_choices, option
from edge_effdet.runtime.detector import DetectOptions, Detector

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

MEMBER_SCORE_FLOOR = 0.001
"""Detections with a higher score are fused, whatever the threshold: several lists may hold the same box with low scores."""

MAX_DETECTIONS = 100
"""How many detections are kept in one picture, of one model and after fusing."""


@dataclass(frozen=True, kw_only=True)
class InferenceOptions:
    """How the pictures run through the network."""

    tta: str = option(
        "none",
        help="test-time augmentation: the mirrored views of each image whose detections are fused with its own",
        choices=tuple(TTA_VIEWS),
    )
    batch_size: int = option(4, help="images a run of the network")
    device: str = option("auto", help="where checkpoints run; auto takes a GPU", choices=("auto", "cpu", "cuda"))

    def __post_init__(self) -> None:
        check_choices(self)
        if self.batch_size < 1:
            raise UsageError(f"`batch_size` {self.batch_size} makes no sense; give at least 1.")


@dataclass(frozen=True, slots=True)
class Member:
    """A loaded model and its spec. Members that predict together have the same classes and may differ in image size."""

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
    """Find objects in pictures. The detections of several models or views in one picture are fused (``ensemble.fuse_detections``).

    Args:
        members: one model or several of the same classes.
        images: uint8 [height, width, 3] each, RGB, of any sizes.
        score_threshold: lower scores are dropped, after fusing.
        options: views and batch size; None for the defaults.

    Returns:
        One entry a picture, in pixels of the picture.

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


def load_members(
    checkpoints: Sequence[str | PathLike[str] | Checkpoint],
    device: str = "auto",
    told: SourceOptions | None = None,
) -> tuple[list[Checkpoint], list[Member]]:
    """Open checkpoints and put their networks on a device.

    Args:
        checkpoints: .safetensors of ``train``, or files of another program with ``told``.
        device: ``auto``, ``cpu`` or ``cuda``.
        told: which model files of another program hold.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        UsageError: there is no checkpoint, they have different classes, or nobody says which model one of them is.
        BackendUnavailable: ``cuda`` is asked for, and torch finds no such device.
        MissingDependency: torch or effdet is not installed.
    """
    from edge_effdet.models.checkpoint import load_network

    # A wrong file is found out before torch is imported, which takes seconds.
    opened = open_checkpoints(checkpoints, told)
    try:
        import effdet  # noqa: F401

        from edge_effdet.models.runner import TorchRunner
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "torch", "train", "to run a checkpoint") from error
    place = _choose_device(device)
    return opened, [Member(TorchRunner(load_network(each).to(place), each.spec), each.spec) for each in opened]


def open_checkpoints(
    checkpoints: Sequence[str | PathLike[str] | Checkpoint], told: SourceOptions | None = None
) -> list[Checkpoint]:
    """Read what checkpoints say of themselves, and see that they have the same classes. Arguments and errors as in ``load_members``."""
    from edge_effdet.models.checkpoint import open_checkpoint

    if not checkpoints:
        raise UsageError("There is no checkpoint to run; give one or more.")
    try:
        opened = [each if isinstance(each, Checkpoint) else open_checkpoint(Path(each), told) for each in checkpoints]
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "torch", "train", "to run a checkpoint") from error
    check_same_classes([each.spec for each in opened], [str(each.path) for each in opened])
    return opened


def describe_checkpoints(checkpoints: Sequence[Checkpoint]) -> list[dict[str, str]]:
    """Path and hash of each checkpoint, for JSON."""
    return [{"path": str(checkpoint.path), "sha256": checkpoint.sha256} for checkpoint in checkpoints]


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of ``size`` items; the last may be shorter."""
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _detect(
    member: Member, images: Sequence[np.ndarray], score_threshold: float, options: InferenceOptions
) -> list[Detections]:
    fixed = member.runner.inputs[0].shape[0] > 0
    found = DetectOptions(score_threshold=score_threshold, max_detections=MAX_DETECTIONS)
    return Detector(member.runner, member.spec, found, None if fixed else options.batch_size)(images)


def _best(detections: Detections) -> Detections:
    return detections.select(slice(MAX_DETECTIONS))


def _choose_device(name: str) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise BackendUnavailable(
            "torch finds no CUDA device on this machine, so `device` cuda cannot be used; check the driver with "
            "nvidia-smi, or give `device` cpu."
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
