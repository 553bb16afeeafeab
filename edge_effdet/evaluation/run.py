"""Run a detector over labelled pictures and compare its detections with their boxes: ``(models, samples) -> Evaluation``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Engine, ModelSpec
from edge_effdet.backends.base import RUN_LIMIT, LoadOptions, Runner, load_runner, require
from edge_effdet.cli import progress
from edge_effdet.data.base import Sample
from edge_effdet.errors import DataError
from edge_effdet.evaluation.confusion import confusion_matrix, count_errors
from edge_effdet.evaluation.members import InferenceOptions, Member, chunks, predict_images
from edge_effdet.evaluation.metrics import CocoMetrics, coco_metrics
from edge_effdet.runtime.images import read_image

logger = logging.getLogger(__name__)

SCORE_FLOOR = 0.001
"""Detections with a lower score are dropped: they cannot change AP by a visible amount, and suppressing them would take most of the time."""

SPLIT_ORDER = ("test", "val")
"""A detector is judged on the first of these splits that the data has, unless another one is named."""

FOLD_SPLIT_ORDER = ("val",)
"""The same where a fold is held out, which is then the split ``val``."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A detector's detections in labelled pictures, and how good they are.

    Attributes:
        samples: the pictures that could be decoded, with their boxes.
        detections: one entry a picture, with scores down to ``SCORE_FLOOR``.
        spec: names the classes.
        metrics: COCO's metrics.
        confusion: int64 [C + 1, C + 1], over all pictures; see ``confusion_matrix``.
        errors: for each picture, how many boxes were missed, how many detections are false, and how many boxes have a wrong name.
        subject: names of the split and the views, and hashes of the data and of the engine or the checkpoints. Empty where only samples
            were given.
        remarks: what has to be known of the figures, a sentence each.
    """

    samples: Sequence[Sample]
    detections: Sequence[Detections]
    spec: ModelSpec
    metrics: CocoMetrics
    confusion: np.ndarray
    errors: Sequence[tuple[int, int, int]]
    subject: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    def to_dict(self) -> dict[str, Any]:
        """Metrics, subject and remarks, for JSON; nan becomes null."""
        return {**self.metrics.to_dict(), **self.subject, "remarks": list(self.remarks)}


def evaluate_engine(engine: Engine, samples: Sequence[Sample]) -> CocoMetrics:
    """Run an engine over samples, whose class ids are those of its spec, and compare the detections with their boxes."""
    readable, detections = detect_samples(engine, samples)
    return coco_metrics(readable, detections, engine.spec)


def detect_samples(engine: Engine, samples: Sequence[Sample]) -> tuple[list[Sample], list[Detections]]:
    """The samples that could be decoded, and an engine's detections in each."""
    require(engine.backend)
    # Nothing is timed here, and the engine may be one that hangs.
    with load_runner(engine, LoadOptions(run_limit=RUN_LIMIT)) as runner:
        return run_over_samples(runner, samples, engine.spec)


def evaluate_members(
    members: Sequence[Member], samples: Sequence[Sample], options: InferenceOptions, label: str = "evaluating"
) -> Evaluation:
    """Run models over samples, whose class ids are those of their spec, and compare the fused detections with their boxes."""
    return judge_detections(*run_members_over_samples(members, samples, options, label), members[0].spec)


def judge_detections(readable: Sequence[Sample], detections: Sequence[Detections], spec: ModelSpec) -> Evaluation:
    """Compare the detections in each sample with its boxes, whose class ids are those of the spec."""
    metrics = coco_metrics(readable, detections, spec)
    confusion = np.zeros((spec.num_classes + 1, spec.num_classes + 1), np.int64)
    errors: list[tuple[int, int, int]] = []
    for sample, found in zip(readable, detections, strict=True):
        matrix = confusion_matrix([sample], [found], spec.num_classes)
        confusion += matrix
        errors.append(count_errors(matrix))
    return Evaluation(readable, detections, spec, metrics, confusion, errors)


def run_over_samples(
    runner: Runner, samples: Sequence[Sample], spec: ModelSpec, label: str = "evaluating", batch_size: int = 1
) -> tuple[list[Sample], list[Detections]]:
    """The samples that could be decoded, and the runner's detections in each.

    Raises:
        DataError: none could be decoded.
    """
    return run_members_over_samples([Member(runner, spec)], samples, InferenceOptions(batch_size=batch_size), label)


def run_members_over_samples(
    members: Sequence[Member], samples: Sequence[Sample], options: InferenceOptions, label: str = "evaluating"
) -> tuple[list[Sample], list[Detections]]:
    """The samples that could be decoded, and in each the detections of all models and views, fused.

    Raises:
        DataError: none could be decoded.
    """
    taken = chunks((sample.path for sample in progress(samples, len(samples), label)), options.batch_size)
    return keep_readable(samples, (answer for paths in taken for answer in detect_batch(members, paths, options)))


def detect_batch(
    members: Sequence[Member],
    paths: Sequence[Path],
    options: InferenceOptions,
    turn: contextlib.AbstractContextManager[object] | None = None,
) -> list[Detections | str]:
    """What all models and views find in each of some pictures, fused; for a picture that cannot be decoded, why.

    Args:
        members: one model or several of the same classes.
        paths: of the pictures, at most ``options.batch_size``.
        options: views and batch size.
        turn: held while the networks run and not while pictures are decoded, by threads whose networks take one run at a time.
    """
    answers: list[Detections | str] = [""] * len(paths)
    images: dict[int, np.ndarray] = {}
    for number, path in enumerate(paths):
        try:
            images[number] = read_image(path)
        except DataError as error:  # noqa: PERF203 - the others are still to be seen
            answers[number] = str(error)
    with turn or contextlib.nullcontext():
        found = predict_images(members, list(images.values()), SCORE_FLOOR, options)
    for number, detections in zip(images, found, strict=True):
        answers[number] = detections
    return answers


def keep_readable(
    samples: Sequence[Sample], answers: Iterable[Detections | str]
) -> tuple[list[Sample], list[Detections]]:
    """Those samples whose pictures could be decoded, and the detections in each; the others are warned of and counted.

    Args:
        samples: the samples.
        answers: for each sample what ``detect_batch`` gives.

    Raises:
        DataError: none could be decoded.
    """
    readable: list[Sample] = []
    detections: list[Detections] = []
    for sample, answer in zip(samples, answers, strict=True):
        if isinstance(answer, str):
            logger.warning("skipped an image: %s", answer)
            continue
        readable.append(sample)
        detections.append(answer)
    if not readable:
        raise DataError("None of the images can be decoded; check the files.")
    skipped = len(samples) - len(readable)
    if skipped:
        logger.warning("%d image%s could not be decoded and were left out", skipped, "" if skipped == 1 else "s")
    return readable, detections
