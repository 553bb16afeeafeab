"""Which detection has found which labelled box.

Both matchings go by COCO's evaluation (``COCOeval.evaluateImg``): detections choose by descending score, each takes the box that it
overlaps most among those that are still free, and one on an ignored region does not count. ``match_within_classes`` is that evaluation,
for AP. ``match_across_classes`` leaves the class out of account, so that a box found under a wrong name is one confusion and not
one missed box and one false detection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_effdet.artifacts import Detections
from edge_effdet.data.base import Sample
from edge_effdet.runtime.nms import box_areas, iou_matrix

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""The ten IoUs over which COCO averages AP."""

MAX_DETECTIONS = 100
"""COCO counts no more detections of one class in one image."""

FALSE, IGNORED = -1, -2
"""What ``match_across_classes`` gives for a detection without a box: FALSE where it counts as a mistake, IGNORED on an ignored region."""


def match_across_classes(sample: Sample, detections: Detections, iou_threshold: float) -> np.ndarray:
    """Match the detections of one image with its boxes at one IoU, whatever their classes.

    Of boxes that a detection overlaps equally, as two labels of one object do, it takes the one of its own class.

    Args:
        sample: the image and its boxes.
        detections: at most N, in pixels of the image.
        iou_threshold: the least IoU of a match.

    Returns:
        int64 [N]: for each detection the index of its box in ``sample.boxes``, else ``FALSE`` or ``IGNORED``.
    """
    matches = np.full(len(detections), FALSE, np.int64)
    overlaps = iou_matrix(detections.boxes, sample.boxes)
    on_ignored = _covered_share(detections.boxes, sample.boxes[sample.ignore]).max(axis=1, initial=0) >= iou_threshold
    free = ~sample.ignore
    for index in np.argsort(-detections.scores, kind="stable"):
        candidates = np.flatnonzero(free & (overlaps[index] >= iou_threshold))
        if len(candidates):
            same = sample.class_ids[candidates] == detections.class_ids[index]
            best = candidates[np.lexsort((~same, -overlaps[index, candidates]))[0]]
            matches[index] = best
            free[best] = False
        elif on_ignored[index]:
            matches[index] = IGNORED
    return matches


@dataclass(frozen=True, slots=True)
class ClassMatches:
    """All D detections of one class over several images, by descending score.

    Attributes:
        images: int64 [D], the position of each detection's image.
        hits: bool [10, D], whether it has found a box, at each of ``IOU_THRESHOLDS``.
        ignored: bool [10, D], whether it lies on an ignored region and does not count.
        boxes: int64 [images], how many boxes of the class an image has that count.
    """

    images: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray
    boxes: np.ndarray


def match_within_classes(
    samples: Sequence[Sample], detections: Sequence[Detections], num_classes: int
) -> list[ClassMatches]:
    """Match the detections of several images with boxes of their own class, at ``IOU_THRESHOLDS``.

    Args:
        samples: the images and their boxes, with class ids below ``num_classes``.
        detections: one entry an image, in the same order.
        num_classes: how many classes there are.

    Returns:
        One entry a class.
    """
    matches: list[ClassMatches] = []
    for class_id in range(num_classes):
        images, scores, hits, ignored, boxes = [], [], [], [], []
        for position, (sample, found) in enumerate(zip(samples, detections, strict=True)):
            own = np.flatnonzero(found.class_ids == class_id)
            own = own[np.argsort(-found.scores[own], kind="stable")][:MAX_DETECTIONS]
            truth = sample.class_ids == class_id
            counted = truth & ~sample.ignore
            hit, ignore = _match_class(found.boxes[own], sample.boxes[counted], sample.boxes[truth & sample.ignore])
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


def _match_class(found: np.ndarray, counted: np.ndarray, regions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match the boxes ``found``, [D, 4] by descending score, with those that count, at ``IOU_THRESHOLDS``.

    Returns:
        Two arrays, bool [10, D]: which detections have found a box, and which others lie on one of the ignored ``regions``.
    """
    hits = np.zeros((len(IOU_THRESHOLDS), len(found)), bool)
    ignored = np.zeros_like(hits)
    overlaps = iou_matrix(found, counted)
    inside = _covered_share(found, regions)
    free = np.ones((len(IOU_THRESHOLDS), len(counted)), bool)
    rows = np.arange(len(IOU_THRESHOLDS))
    for position in range(len(found)):
        if len(counted):
            # Of several boxes with the same overlap COCO's loop ends at the last one.
            open_ = np.where(free, overlaps[position], -1.0)
            best = len(counted) - 1 - np.argmax(open_[:, ::-1], axis=1)
            hits[:, position] = open_[rows, best] >= IOU_THRESHOLDS
            free[rows[hits[:, position]], best[hits[:, position]]] = False
        if len(regions):
            ignored[:, position] = ~hits[:, position] & (inside[position].max() >= IOU_THRESHOLDS)
    return hits, ignored


def _covered_share(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The share of the area of each of N boxes that each of M regions covers, [N, M]: COCO's overlap with a crowd."""
    top_left = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - top_left, 0, None)
    areas = box_areas(boxes)[:, None]
    return np.divide(sides[..., 0] * sides[..., 1], areas, out=np.zeros(sides.shape[:2], boxes.dtype), where=areas > 0)
