"""How sure a difference of two APs is: a bootstrap over the images.

Test sets are small, and AP moves by a point when a few images are others. So the images are drawn again and again, with
replacement, and each resample gives the AP of both detectors on the same images (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13). Boxes are matched to the truth once, as COCO does; a resample only counts them anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_effdet.artifacts import Detections
from edge_effdet.data.base import Sample
from edge_effdet.runtime.nms import box_areas, iou_matrix

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
LIMIT = 100
"""Detections of an image and class that count, as COCO's."""

BOOTSTRAP_RESAMPLES = 300
"""Resamples of a data set, each of as many images, that an interval is worked out from."""

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """All detections of one class, by descending score.

    Attributes:
        images: int64 [D], the position of each one's image.
        hits: bool [10, D], matched with a box of the truth at each IoU.
        ignored: bool [10, D], matched with one that does not count.
        boxes: int64 [images], boxes of the truth that count.
    """

    images: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    boxes: np.ndarray


def drop_interval(
    samples: Sequence[Sample],
    before: Sequence[Detections],
    after: Sequence[Detections],
    num_classes: int,
    resamples: int = BOOTSTRAP_RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The points of AP that are lost with a confidence of 95 %, from and to; a gain is negative.

    Args:
        samples: the images, with class ids below ``num_classes``.
        before, after: of each, what the two detectors found.
        num_classes: of both.
        resamples: how many times the images are drawn anew.
        seed: of the random numbers that draw them.
    """
    counts = np.random.default_rng(seed).multinomial(len(samples), [1 / len(samples)] * len(samples), resamples)
    first, second = (match_detections(samples, found, num_classes) for found in (before, after))
    drops = [100 * (average_precision(first, drawn) - average_precision(second, drawn)) for drawn in counts]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(drops, [100 * tail, 100 * (1 - tail)])
    return float(low), float(high)


def match_detections(
    samples: Sequence[Sample], detections: Sequence[Detections], num_classes: int
) -> list[ClassMatches]:
    """Match greedily by score, within each image and class, at ten IoUs: COCO's rules."""
    matches: list[ClassMatches] = []
    for class_id in range(num_classes):
        images, scores, hits, ignored, boxes = [], [], [], [], []
        for position, (sample, found) in enumerate(zip(samples, detections, strict=True)):
            own = np.flatnonzero(found.class_ids == class_id)
            own = own[np.argsort(-found.scores[own], kind="stable")][:LIMIT]
            truth = sample.class_ids == class_id
            counted = truth & ~sample.ignore
            hit, ignore = _match(found.boxes[own], sample.boxes[counted], sample.boxes[truth & sample.ignore])
            images.append(np.full(len(own), position))
            scores.append(found.scores[own])
            hits.append(hit)
            ignored.append(ignore)
            boxes.append(int(counted.sum()))
        order = np.argsort(-np.concatenate(scores), kind="mergesort")
        matches.append(
            ClassMatches(
                np.concatenate(images)[order],
                np.concatenate(hits, axis=1)[:, order],
                np.concatenate(ignored, axis=1)[:, order],
                np.array(boxes),
            )
        )
    return matches


def average_precision(matches: Sequence[ClassMatches], drawn: np.ndarray) -> float:
    """COCO's AP, 0 to 1, with each image counted as often as ``drawn``, int [images], says; nan without a box."""
    values = [_class_precision(own, drawn) for own in matches if own.boxes @ drawn > 0]
    return float(np.mean(values)) if values else float("nan")


def _class_precision(own: ClassMatches, drawn: np.ndarray) -> float:
    weights = drawn[own.images] * ~own.ignored
    true = np.cumsum(weights * own.hits, axis=1, dtype=np.float64)
    every = np.cumsum(weights, axis=1, dtype=np.float64)
    recall = true / float(own.boxes @ drawn)
    precision = np.divide(true, every, out=np.zeros_like(true), where=every > 0)
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.pad(precision, ((0, 0), (0, 1)))
    return float(np.mean([row[np.searchsorted(reached, RECALLS)] for row, reached in zip(padded, recall, strict=True)]))


def _match(found: np.ndarray, counted: np.ndarray, crowds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of boxes by descending score, which hit one that counts and which one that does not: bool [10, D] each."""
    hits = np.zeros((len(THRESHOLDS), len(found)), bool)
    ignored = np.zeros_like(hits)
    overlaps = iou_matrix(found, counted)
    inside = _share_inside(found, crowds)
    free = np.ones((len(THRESHOLDS), len(counted)), bool)
    rows = np.arange(len(THRESHOLDS))
    # COCO takes an IoU that is equal to a threshold but for rounding.
    limits = np.minimum(THRESHOLDS, 1 - 1e-10)
    for position in range(len(found)):
        if len(counted):
            # The last of several equal ones, as COCO's loop leaves it.
            open_ = np.where(free, overlaps[position], -1.0)
            best = len(counted) - 1 - np.argmax(open_[:, ::-1], axis=1)
            hits[:, position] = open_[rows, best] >= limits
            free[rows[hits[:, position]], best[hits[:, position]]] = False
        if len(crowds):
            ignored[:, position] = ~hits[:, position] & (inside[position].max() >= limits)
    return hits, ignored


def _share_inside(found: np.ndarray, crowds: np.ndarray) -> np.ndarray:
    """Share of each found box's area that lies in each crowd box, [D, C]."""
    corners = np.maximum(found[:, None, :2], crowds[None, :, :2]), np.minimum(found[:, None, 2:], crowds[None, :, 2:])
    sides = np.clip(corners[1] - corners[0], 0, None)
    areas = box_areas(found)[:, None]
    return np.divide(sides[..., 0] * sides[..., 1], areas, out=np.zeros(sides.shape[:2]), where=areas > 0)
