"""What becomes of boxes that overlap: suppressed, given lower scores, or averaged. NumPy alone.

``suppress_overlaps`` is effdet's own way and the default. The others are for a camera whose operator wants them:

- class-agnostic: a box also suppresses those of other classes;
- soft-NMS, linear and gaussian: Bodla, Singh, Chellappa, Davis, Soft-NMS, arXiv 1704.04503, equations 2 and 3 and
  the rescoring loop of figure 2;
- fusion: weighted boxes fusion on one list, Solovyev, Wang, Gabruseva, arXiv 1910.13302, section 3, with the highest score of
  a cluster as its score. The paper's mean is meant for several models: within one list it punishes an object for the weak
  candidates beside its best one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NMS_KINDS = ("class-aware", "class-agnostic", "soft-linear", "soft-gaussian", "fusion")

SOFT_SIGMA = 0.5
"""Of the gaussian decay, the paper's and effdet's value."""

SOFT_LINEAR_THRESHOLD = 0.3
"""IoU above which the linear decay sets in, the paper's value."""

_BLOCK = 128
"""Candidates compared with each other at once: the comparison of all pairs of a block stays in the cache."""


def select_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    kind: str = "class-aware",
    iou_threshold: float = 0.5,
    limit: int = 100,
    score_threshold: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates to detections, by one of ``NMS_KINDS``.

    Args:
        boxes: float32 [N, 4], xyxy.
        scores: float32 [N].
        class_ids: int32 [N].
        kind: how overlaps are resolved.
        iou_threshold: above it two boxes are one; soft-gaussian has none, and soft-linear has ``SOFT_LINEAR_THRESHOLD``.
        limit: at most so many detections.
        score_threshold: detections that end below it are dropped; only soft-NMS makes scores lower.

    Returns:
        Boxes, scores and class ids by descending score.
    """
    if kind == "fusion":
        return fuse_overlaps(boxes, scores, class_ids, iou_threshold, limit)
    if kind.startswith("soft-"):
        kept, soft = decay_overlaps(boxes, scores, class_ids, kind == "soft-gaussian", limit, score_threshold)
        return boxes[kept], soft, class_ids[kept]
    kept = suppress_overlaps(boxes, scores, class_ids if kind == "class-aware" else None, iou_threshold, limit)
    return boxes[kept], scores[kept], class_ids[kept]


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas of xyxy boxes, [N]; 0 for an inverted one."""
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def iou_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of xyxy boxes [N, 4] and [M, 4] as [N, M]; 0 where the union is empty."""
    return _overlaps(first.T[:, :, None], box_areas(first)[:, None], second.T[:, None, :], box_areas(second)[None, :])


def suppress_overlaps(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray | None,
    iou_threshold: float = 0.5,
    limit: int = 100,
) -> np.ndarray:
    """Greedy non-maximum suppression, within each class unless ``class_ids`` is None.

    Blocks of candidates by descending score: first what an earlier block kept is compared with all of a block, then those that
    remain with each other. It stops when ``limit`` are kept, which of a thousand candidates usually leaves most unread.

    Args:
        boxes: float32 [N, 4], xyxy.
        scores: float32 [N].
        class_ids: int32 [N], or None.
        iou_threshold: a box is dropped when its IoU with a kept one is above this.
        limit: stop after so many kept boxes.

    Returns:
        Indices of the kept boxes, by descending score (ties by position), int64 [<= limit].
    """
    order = np.argsort(-scores, kind="stable")
    # A row a coordinate: the comparisons below run over each.
    sides = np.ascontiguousarray(boxes[order].T)
    areas = box_areas(boxes)[order]
    classes = np.zeros(len(order), np.int32) if class_ids is None else class_ids[order]
    kept = np.zeros(0, np.int64)
    for start in range(0, len(order), _BLOCK):
        block = np.arange(start, min(start + _BLOCK, len(order)))
        if len(kept):
            block = block[~_suppressed(kept, block, sides, areas, classes, iou_threshold).any(axis=0)]
        block = block[_greedy(_suppressed(block, block, sides, areas, classes, iou_threshold))]
        kept = np.concatenate([kept, block])
        if len(kept) >= limit:
            break
    return order[kept[:limit]]


def decay_overlaps(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    gaussian: bool,
    limit: int = 100,
    score_threshold: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Soft-NMS within each class: what overlaps a better box loses score instead of its place.

    Returns:
        Indices by descending decayed score, int64 [<= limit], and these scores, float32; those below ``score_threshold``
        are dropped.
    """
    decay: Callable[[np.ndarray], np.ndarray] = _gaussian_decay if gaussian else _linear_decay
    sides, areas = boxes.T, box_areas(boxes)
    left = scores.astype(np.float32, copy=True)
    kept: list[int] = []
    soft: list[np.float32] = []
    while len(kept) < min(limit, len(scores)):
        best = int(np.argmax(left))
        if left[best] < score_threshold:
            break
        kept.append(best)
        soft.append(left[best])
        overlap = _overlaps(sides[:, best, None], areas[best], sides, areas)
        left *= np.where(class_ids == class_ids[best], decay(overlap), np.float32(1))
        # Below every score, so that it is not taken again.
        left[best] = -1
    return np.array(kept, np.int64), np.array(soft, np.float32)


def fuse_overlaps(
    boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, iou_threshold: float = 0.5, limit: int = 100
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted boxes fusion within each class: boxes that overlap become their average, weighted by score.

    Each candidate, by descending score, joins the cluster of its class whose average it overlaps most, if by more than
    ``iou_threshold``, and founds one otherwise.

    Returns:
        float32 [M, 4], float32 [M] and int32 [M] by descending score; M is at most ``limit``.
    """
    parts = [
        _fuse_one_class(boxes, scores, np.flatnonzero(class_ids == number), iou_threshold)
        for number in set(class_ids.tolist())
    ]
    founders = np.concatenate([np.zeros(0, np.int64), *(own for own, _ in parts)])
    means = np.concatenate([np.zeros((0, 4)), *(own for _, own in parts)])
    # Ties by position, as everywhere.
    order = np.lexsort((founders, -scores[founders]))[:limit]
    best = founders[order]
    return means[order].astype(np.float32), scores[best].astype(np.float32), class_ids[best]


def _fuse_one_class(
    boxes: np.ndarray, scores: np.ndarray, candidates: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of the candidates: the index of the one that founded each, int64 [M], and their averages, float64 [M, 4]."""
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    # A row a coordinate, and the sum of the weights below them; the averages with their areas.
    sums, means = np.zeros((5, len(order))), np.zeros((4, len(order)))
    areas = np.zeros(len(order))
    founders: list[int] = []
    weighted = np.vstack([boxes[order].T, np.ones(len(order))]) * np.maximum(scores[order], np.finfo(np.float32).tiny)
    own_areas = box_areas(boxes[order].astype(np.float64))
    for place, index in enumerate(order.tolist()):
        count = len(founders)
        cluster = count
        if count:
            box = boxes[index].astype(np.float64)[:, None]
            overlap = _overlaps(box, own_areas[place], means[:, :count], areas[:count])
            best = int(overlap.argmax())
            cluster = best if overlap[best] > iou_threshold else count
        if cluster == count:
            founders.append(index)
        sums[:, cluster] += weighted[:, place]
        mean = means[:, cluster] = sums[:4, cluster] / sums[4, cluster]
        areas[cluster] = max(0.0, mean[2] - mean[0]) * max(0.0, mean[3] - mean[1])
    return np.array(founders, np.int64), means[:, : len(founders)].T


def _gaussian_decay(overlap: np.ndarray) -> np.ndarray:
    return np.exp(-(overlap * overlap) / np.float32(SOFT_SIGMA))


def _linear_decay(overlap: np.ndarray) -> np.ndarray:
    return np.where(overlap > SOFT_LINEAR_THRESHOLD, 1 - overlap, np.float32(1))


def _suppressed(
    by: np.ndarray, which: np.ndarray, sides: np.ndarray, areas: np.ndarray, classes: np.ndarray, threshold: float
) -> np.ndarray:
    """Whether each of ``by`` would suppress each of ``which``, bool [len(by), len(which)]."""
    overlap = _overlaps(sides[:, by, None], areas[by, None], sides[:, None, which], areas[None, which])
    return (overlap > threshold) & (classes[by, None] == classes[None, which])


def _greedy(suppresses: np.ndarray) -> list[int]:
    """Indices that greedy suppression keeps of candidates in descending order, from all pairs of them, bool [N, N].

    A row is read as one whole number, a bit a candidate: a step costs one operation on it and not one on arrays.
    """
    rows = np.packbits(suppresses, axis=1, bitorder="little")
    dropped = 0
    kept: list[int] = []
    for index, row in enumerate(rows):
        if not dropped >> index & 1:
            kept.append(index)
            dropped |= int.from_bytes(row.tobytes(), "little")
    return kept


def _overlaps(first: np.ndarray, first_areas: np.ndarray, second: np.ndarray, second_areas: np.ndarray) -> np.ndarray:
    """IoU of boxes given as four arrays of sides that broadcast against each other; 0 where the union is empty."""
    width = np.minimum(first[2], second[2]) - np.maximum(first[0], second[0])
    height = np.minimum(first[3], second[3]) - np.maximum(first[1], second[1])
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    np.multiply(width, height, out=width)
    union = np.add(first_areas, second_areas, out=height)
    union -= width
    # Without an area there is no intersection: 0 / 1.
    union[union <= 0] = 1
    return np.divide(width, union, out=width)
