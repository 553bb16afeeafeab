"""Run a detector over labelled pictures and compare: ``(engine or models, samples) -> Evaluation``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_effdet.artifacts import Detections, Engine, ModelSpec
from edge_effdet.backends.base import Runner, get_backend, require
from edge_effdet.cli import progress
from edge_effdet.data.base import (
    Sample,
    readable_images,
)
from edge_effdet.errors import DataError
from edge_effdet.evaluation.confusion import (
    confusion_matrix,
    count_errors,
)
from edge_effdet.evaluation.members import (
    InferenceOptions,
    Member,
    chunks,
    predict_images,
)
from edge_effdet.evaluation.metrics import CocoMetrics, coco_metrics

SCORE_FLOOR = 0.001
"""Detections below it are not counted: they cannot change AP by a visible amount and cost most of the suppression."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a detector found in labelled pictures, and what that is worth.

    Attributes:
        samples: the pictures that could be decoded.
        detections: one entry a picture, down to ``SCORE_FLOOR``.
        spec: names the classes.
        metrics: COCO's.
        confusion: over all pictures, int64 [C + 1, C + 1]; see ``confusion_matrix``.
        errors: boxes missed, made up and misnamed in each picture.
    """

    samples: Sequence[Sample]
    detections: Sequence[Detections]
    spec: ModelSpec
    metrics: CocoMetrics
    confusion: np.ndarray
    errors: Sequence[tuple[int, int, int]]


def evaluate_engine(engine: Engine, samples: Sequence[Sample]) -> CocoMetrics:
    """Run an engine over samples, whose class ids are those of its spec, and compare with their boxes."""
    readable, detections = detect_samples(engine, samples)
    return coco_metrics(readable, detections, engine.spec)


def detect_samples(engine: Engine, samples: Sequence[Sample]) -> tuple[list[Sample], list[Detections]]:
    """The samples that could be decoded, and what an engine found in each."""
    require(engine.backend)
    with get_backend(engine.backend).load(engine) as runner:
        return run_over_samples(runner, samples, engine.spec)


def evaluate_members(
    members: Sequence[Member], samples: Sequence[Sample], options: InferenceOptions, label: str = "evaluating"
) -> Evaluation:
    """Run models over samples, whose class ids are those of their spec, and compare with their boxes."""
    spec = members[0].spec
    readable, detections = run_members_over_samples(members, samples, options, label)
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
    """The samples that could be decoded, and what the runner found in each.

    Raises:
        DataError: none could be decoded.
    """
    return run_members_over_samples([Member(runner, spec)], samples, InferenceOptions(batch_size=batch_size), label)


def run_members_over_samples(
    members: Sequence[Member], samples: Sequence[Sample], options: InferenceOptions, label: str = "evaluating"
) -> tuple[list[Sample], list[Detections]]:
    """As ``run_over_samples``, with models and views fused.

    Raises:
        DataError: none could be decoded.
    """
    readable: list[Sample] = []
    detections: list[Detections] = []
    for chunk in chunks(progress(readable_images(samples), len(samples), label), options.batch_size):
        readable += [sample for sample, _ in chunk]
        detections += predict_images(members, [image for _, image in chunk], SCORE_FLOOR, options)
    if not readable:
        raise DataError("None of the images can be decoded; check the files.")
    return readable, detections


SPLIT_ORDER = ("test", "val")


FOLD_SPLIT_ORDER = ("val",)
