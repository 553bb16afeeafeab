"""Find objects in files of pictures with trained checkpoints, in torch: ``(checkpoints, source, PredictConfig) -> Predictions``.

This is for looking at a model before it is built into an engine, and for what an engine does not do: fusing the detections of several
models (such as the folds of a cross-validation) and of mirrored views.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Checkpoint, Detections, write_json
from edge_effdet.cli import progress
from edge_effdet.errors import DataError, UsageError
from edge_effdet.evaluation.members import (
    InferenceOptions,
    Member,
    chunks,
    describe_checkpoints,
    load_members,
    predict_images,
)
from edge_effdet.models.checkpoint import SourceOptions
from edge_effdet.options import as_path, option
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.run import prepare_output
from edge_effdet.runtime.sinks import detections_to_json, picture_names
from edge_effdet.runtime.sources import ImageFiles, find_images

logger = logging.getLogger("edge_effdet.predict")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(InferenceOptions, SourceOptions):
    """Which detections are kept, and what is written. Every field is a flag of ``python -m edge_effdet.predict``.

    Raises:
        UsageError: a number that makes no sense, or a choice that does not exist.
    """

    score_threshold: float = option(0.3, help="lower scores are dropped, after fusing")
    output: Path | str | None = option(None, help="write annotated pictures and detections.json into this folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.score_threshold <= 1:
            raise UsageError(f"A score threshold of {self.score_threshold} is not between 0 and 1; 0.3 is usual.")


@dataclass(frozen=True, slots=True)
class Predictions:
    """The detections of checkpoints in pictures.

    Attributes:
        detections: by the picture's path, in the order of the files; pictures that could not be decoded are missing.
        checkpoints: those that were run; the first one's spec names the classes.
        tta: which views were fused, a key of ``ensemble.TTA_VIEWS``.
    """

    detections: Mapping[Path, Detections]
    checkpoints: Sequence[Checkpoint]
    tta: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON, in the form of ``detect``'s results."""
        spec = self.checkpoints[0].spec
        return {
            "checkpoints": describe_checkpoints(self.checkpoints),
            "tta": self.tta,
            "images": [detections_to_json(path, found, spec) for path, found in self.detections.items()],
        }


def predict_files(
    checkpoints: str | PathLike[str] | Checkpoint | Sequence[str | PathLike[str] | Checkpoint],
    source: str | PathLike[str],
    config: PredictConfig,
) -> Predictions:
    """Find objects in a picture, or in the pictures of a folder. All that ``predict`` does on the command line.

    >>> from edge_effdet import PredictConfig, predict_files
    >>> found = predict_files("runs/bccd/best.safetensors", "photos", PredictConfig(score_threshold=0.4, output="seen"))
    >>> counts = {path.name: len(detections) for path, detections in found.detections.items()}

    Args:
        checkpoints: one .safetensors of ``train_detector``, or several of the same classes, whose detections are fused. A file of
            another program, such as effdet's .pth, needs ``config.model``, and ``config.classes`` where they are not COCO's.
        source: a picture, or a folder of pictures.
        config: threshold, views, batch size, and the folder to write into.

    Returns:
        The detections in each picture that could be decoded, in pixels of the picture.

    Raises:
        CheckpointError: a checkpoint cannot be used.
        DataError: there is no picture at ``source``, or none that can be decoded.
        UsageError: the checkpoints have different classes, or the outputs would overwrite the pictures, a checkpoint, or results of other
            pictures.
        BackendUnavailable: ``config.device`` is ``cuda``, and torch finds no such device.
        MissingDependency: the packages that run checkpoints, or fuse detections, are not installed.
    """
    paths = find_images(Path(source))
    output = as_path(config.output)
    given = [checkpoints] if isinstance(checkpoints, str | PathLike | Checkpoint) else checkpoints
    names = picture_names(paths)
    if output is not None:
        files = [output / name for name in ("detections.json", *names.values())]
        models = [each.path if isinstance(each, Checkpoint) else Path(each) for each in given]
        prepare_output(output, files, ImageFiles(paths, str(source)), models)
    opened, members = load_members(given, config.device, config)
    detections: dict[Path, Detections] = {}
    predictions = Predictions(detections, opened, config.tta)
    try:
        for path, image, found in _predict(members, paths, config):
            if output is not None:
                from edge_effdet.runtime.drawing import save_annotated

                save_annotated(output / names[path], image, found, opened[0].spec)
            detections[path] = found
    except KeyboardInterrupt:
        # What was done is kept, as by detect.
        if output is not None and detections:
            write_json(output / "detections.json", predictions.to_dict())
        raise
    if output is not None:
        write_json(output / "detections.json", predictions.to_dict())
    return predictions


def _predict(
    members: Sequence[Member], paths: Sequence[Path], config: PredictConfig
) -> Iterator[tuple[Path, np.ndarray, Detections]]:
    """Each picture that can be decoded, and what is found in it."""
    for chunk in chunks(progress(_readable(paths), len(paths), "predicting"), config.batch_size):
        found = predict_images(members, [image for _, image in chunk], config.score_threshold, config)
        for (path, image), own in zip(chunk, found, strict=True):
            yield path, image, own


def _readable(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Each picture that can be decoded, uint8 [height, width, 3]; others are skipped with a warning and counted.

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
