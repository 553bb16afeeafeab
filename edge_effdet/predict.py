"""Find objects with trained checkpoints, in torch: ``(Checkpoints, images) -> Detections``.

For looking at a model before it is built into an engine, and for what an engine does not do: several models (the folds of a
cross-validation, say) and mirrored views of a picture as one answer.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from edge_effdet.artifacts import Checkpoint, Detections, ModelSpec, write_json
from edge_effdet.backends.base import Runner
from edge_effdet.cli import Result, add_options, make_parser, option, options_from, progress, run_verb
from edge_effdet.detect import refuse_own_folder, results_table
from edge_effdet.detector import DetectOptions, Detector
from edge_effdet.ensemble import TTA_VIEWS, check_same_classes, fuse_detections
from edge_effdet.errors import BackendUnavailable, DataError, MissingDependency, UsageError
from edge_effdet.images import read_image
from edge_effdet.sinks import detections_to_json, picture_names
from edge_effdet.sources import find_images

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("edge_effdet.predict")

T = TypeVar("T")

MEMBER_SCORE_FLOOR = 0.001
"""Before fusing, a threshold would drop what several lists agree on weakly; below this a box cannot matter."""

MAX_DETECTIONS = 100
"""In one picture, as ``detections_from_outputs`` keeps of one model."""


@dataclass(frozen=True, slots=True)
class InferenceOptions:
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

        from edge_effdet.backends.torch_eager import TorchRunner
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "torch", "train", "to run a checkpoint") from error
    place = _choose_device(device)
    return checkpoints, [
        Member(TorchRunner(load_network(checkpoint).to(place), checkpoint.spec), checkpoint.spec)
        for checkpoint in checkpoints
    ]


def readable_sources(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Each picture that can be decoded; others are skipped with a warning and counted.

    Raises:
        DataError: none could be decoded.
    """
    skipped = 0
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            if len(paths) == 1:
                raise
            skipped += 1
            logger.warning("skipped an image: %s", error)
            continue
        yield path, image
    if skipped == len(paths):
        raise DataError("None of the images could be decoded; check the files.")
    if skipped:
        logger.warning("%d of %d images could not be decoded and were left out", skipped, len(paths))


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


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "predict",
        "Find objects in images with one checkpoint or several, in torch.",
        "python -m edge_effdet.predict --checkpoint runs/bccd/best.safetensors --source photos --output found",
    )
    parser.add_argument(
        "--checkpoint", type=Path, action="append", required=True, metavar="F",
        help="a .safetensors of train; given several times, their predictions are fused",
    )  # fmt: skip
    parser.add_argument("--source", type=Path, required=True, metavar="S", help="an image or a folder of images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write annotated pictures and detections.json here")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="X", help="lower scores are dropped (default: 0.3)"
    )
    add_options(parser, InferenceOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    options = options_from(InferenceOptions, arguments)
    check_options(options)
    sources = find_images(arguments.source)
    DetectOptions(arguments.score_threshold).check()
    refuse_own_folder(arguments.output, sources)
    checkpoints, members = load_members(arguments.checkpoint, options.device)
    spec = checkpoints[0].spec
    names = picture_names(sources)
    results: list[dict[str, Any]] = []
    readable = progress(readable_sources(sources), len(sources), "predicting")
    for chunk in chunks(readable, options.batch_size):
        found = predict_images(members, [image for _, image in chunk], arguments.score_threshold, options)
        for (path, image), detections in zip(chunk, found, strict=True):
            results.append(detections_to_json(path, detections, spec))
            if arguments.output:
                from edge_effdet.drawing import save_annotated

                save_annotated(arguments.output / names[path], image, detections, spec)
    data = {"checkpoints": describe_checkpoints(checkpoints), "tta": options.tta, "images": results}
    if arguments.output:
        write_json(arguments.output / "detections.json", data)
    return Result(results_table(results), data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
