"""A confidence interval for the difference of two APs, by a bootstrap over the images.

Test sets are small, and a few other images would move AP by a point. So the images are drawn again and again, with
replacement, and each resample gives the AP of both detectors on the same images (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13). Detections are matched with boxes once; a resample only counts the matches anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edge_effdet.artifacts import Detections
from edge_effdet.data.base import Sample
from edge_effdet.evaluation.matching import ClassMatches, match_within_classes

RECALLS = np.linspace(0, 1, 101)
"""The recalls at which COCO reads the precision."""

BOOTSTRAP_RESAMPLES = 300
"""How many resamples of the data set, each with as many images, an interval is computed from."""

CONFIDENCE = 0.95


def drop_interval(
    samples: Sequence[Sample],
    before: Sequence[Detections],
    after: Sequence[Detections],
    num_classes: int,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval that holds the loss of AP with a confidence of 95 %: its ends in points; a gain is negative.

    Args:
        samples: the images, with class ids below ``num_classes``.
        before, after: the detections of the two detectors, one entry an image.
        num_classes: how many classes both detectors have.
        resamples: how many times the images are drawn anew.
        seed: seeds the random draws.
    """
    counts = np.random.default_rng(seed).multinomial(len(samples), [1 / len(samples)] * len(samples), resamples)
    first, second = (match_within_classes(samples, found, num_classes) for found in (before, after))
    drops = [100 * (average_precision(first, drawn) - average_precision(second, drawn)) for drawn in counts]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(drops, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def average_precision(matches: Sequence[ClassMatches], drawn: np.ndarray) -> float:
    """COCO's AP, 0 to 1, where each image counts as many times as ``drawn``, int [images], says; nan without a box."""
    values = [_class_precision(own, drawn) for own in matches if own.boxes @ drawn > 0]
    return float(np.mean(values)) if values else float("nan")


def _class_precision(own: ClassMatches, drawn: np.ndarray) -> float:
    return float(np.mean(precision_at_recalls(own, drawn)))


def precision_at_recalls(own: ClassMatches, drawn: np.ndarray) -> np.ndarray:
    """COCO's precision of one class at ``RECALLS``: the best precision at that recall or a higher one.

    Args:
        own: the matches of the class, which has a box in the images that are drawn.
        drawn: how many times each image counts, int [images].

    Returns:
        float64 [10, 101], a row for each of COCO's overlaps.
    """
    weights = drawn[own.images] * ~own.ignored
    true = np.cumsum(weights * own.hits, axis=1, dtype=np.float64)
    every = np.cumsum(weights, axis=1, dtype=np.float64)
    recall = true / float(own.boxes @ drawn)
    precision = np.divide(true, every, out=np.zeros_like(true), where=every > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(precision, ((0, 0), (0, 1)))
    return np.stack([row[np.searchsorted(reached, RECALLS)] for row, reached in zip(padded, recall, strict=True)])
