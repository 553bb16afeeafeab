"""Suppression of overlapping boxes, and its alternatives, in NumPy.

The default, ``suppress_overlaps`` within each class, is effdet's method. The alternatives are:

- class-agnostic: a box also suppresses those of other classes;
- soft-NMS, linear and gaussian: Bodla, Singh, Chellappa, Davis, Soft-NMS, arXiv 1704.04503, equations 2 and 3 and
  the rescoring loop of figure 2;
- fusion: weighted boxes fusion on one list, Solovyev, Wang, Gabruseva, arXiv 1910.13302, section 3, with the highest score of
  a cluster as its score. The paper's mean is meant for several models: within one list it would lower an object's
  score for each weak candidate beside its best one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

NMS_KINDS = ("class-aware", "class-agnostic", "soft-linear", "soft-gaussian", "fusion")

SOFT_SIGMA = 0.5
"""Sigma of the gaussian decay, as in the paper and in effdet."""

SOFT_LINEAR_THRESHOLD = 0.3
"""IoU above which the linear decay lowers scores, as in the paper."""

_BLOCK = 128
"""Number of candidates that are compared with each other at once; the arrays of all their pairs fit into a processor's cache."""


def select_boxes(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    kind: str = "class-aware",
    iou_threshold: float = 0.5,
    limit: int = 100,
    score_threshold: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose or merge candidates so that each object has one box.

    Args:
        boxes: float32 [N, 4], xyxy.
        scores: float32 [N].
        class_ids: int32 [N].
        kind: one of ``NMS_KINDS``.
        iou_threshold: boxes that overlap by more are taken for one object; soft-NMS does not use it.
        limit: largest number of detections.
        score_threshold: soft-NMS drops boxes whose lowered score is below it; the other kinds do not use it.

    Returns:
        Boxes float32 [M, 4], scores float32 [M] and class ids int32 [M], by descending score.
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

    Candidates are taken in blocks by descending score. A block is compared with the boxes kept so far, then the rest of the block
    with each other. It stops when ``limit`` boxes are kept, usually long before the last candidate.

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
    # One contiguous row for each coordinate, because the comparisons below take one coordinate at a time.
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
    """Soft-NMS within each class: a box that overlaps a better one gets a lower score and is not dropped for that.

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

    Each candidate, by descending score, joins the cluster of its class whose average it overlaps most, if their IoU is above
    ``iou_threshold``; otherwise it starts a new cluster.

    Returns:
        Boxes float32 [M, 4], scores float32 [M] and class ids int32 [M] by descending score; M is at most ``limit``.
    """
    parts = [
        _fuse_one_class(boxes, scores, np.flatnonzero(class_ids == number), iou_threshold)
        for number in set(class_ids.tolist())
    ]
    founders = np.concatenate([np.zeros(0, np.int64), *(own for own, _ in parts)])
    means = np.concatenate([np.zeros((0, 4)), *(own for _, own in parts)])
    # Equal scores keep the order of the candidates.
    order = np.lexsort((founders, -scores[founders]))[:limit]
    best = founders[order]
    return means[order].astype(np.float32), scores[best].astype(np.float32), class_ids[best]


def _fuse_one_class(
    boxes: np.ndarray, scores: np.ndarray, candidates: np.ndarray, iou_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Cluster the candidates. Returns the first candidate's index of each cluster, int64 [M], and the average boxes, float64 [M, 4]."""
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    # Four rows of weighted sums of coordinates and one of sums of weights; a column for each cluster.
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
    """The indices that greedy suppression keeps, of candidates in descending order of score.

    A row is packed into one integer with a bit for each candidate, so that a step is one integer operation.

    Args:
        suppresses: bool [N, N], whether the candidate of the row would suppress that of the column.
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
    """IoU of boxes, each given as arrays (x_min, y_min, x_max, y_max) that broadcast to one shape; 0 where the union is empty."""
    width = np.minimum(first[2], second[2]) - np.maximum(first[0], second[0])
    height = np.minimum(first[3], second[3]) - np.maximum(first[1], second[1])
    np.maximum(width, 0, out=width)
    np.maximum(height, 0, out=height)
    np.multiply(width, height, out=width)
    union = np.add(first_areas, second_areas, out=height)
    union -= width
    # Boxes without an area have an intersection of 0: this makes the IoU 0 / 1.
    union[union <= 0] = 1
    return np.divide(width, union, out=width)
