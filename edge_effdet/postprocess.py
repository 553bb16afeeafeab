"""From the graph's outputs to detections in the original image: clipping, class-aware NMS, scaling back.

The order and the numbers are those of effdet's ``generate_detections``: boxes are clipped to the letterboxed picture,
then suppressed greedily within their class above an IoU of 0.5, then scaled.
"""

from __future__ import annotations

import numpy as np

from edge_effdet.artifacts import Detections, Size
from edge_effdet.errors import EngineError
from edge_effdet.preprocess import letterbox_size


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas of xyxy boxes, [N]; 0 for an inverted one."""
    return np.clip(boxes[:, 2] - boxes[:, 0], 0, None) * np.clip(boxes[:, 3] - boxes[:, 1], 0, None)


def iou_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of xyxy boxes [N, 4] and [M, 4] as [N, M]; 0 where the union is empty."""
    top_left = np.maximum(first[:, None, :2], second[None, :, :2])
    bottom_right = np.minimum(first[:, None, 2:], second[None, :, 2:])
    sides = np.clip(bottom_right - top_left, 0, None)
    intersection = sides[..., 0] * sides[..., 1]
    union = box_areas(first)[:, None] + box_areas(second)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def suppress_overlaps(
    boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, iou_threshold: float = 0.5, limit: int = 100
) -> np.ndarray:
    """Greedy non-maximum suppression within each class.

    Args:
        boxes: float32 [N, 4], xyxy.
        scores: float32 [N].
        class_ids: int32 [N].
        iou_threshold: a box is dropped when its IoU with a kept one of its class is above this.
        limit: stop after so many kept boxes.

    Returns:
        Indices of the kept boxes, by descending score (ties by position), int64 [<= limit].
    """
    order = np.argsort(-scores, kind="stable")
    boxes, class_ids = boxes[order], class_ids[order]
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for index in range(len(order)):
        if not alive[index]:
            continue
        kept.append(index)
        if len(kept) == limit:
            break
        rest = slice(index + 1, None)
        overlap = iou_matrix(boxes[index : index + 1], boxes[rest])[0]
        alive[rest] &= (overlap <= iou_threshold) | (class_ids[rest] != class_ids[index])
    return order[kept]


def detections_from_outputs(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    original: Size,
    target: Size,
    score_threshold: float = 0.0,
    iou_threshold: float = 0.5,
    limit: int = 100,
) -> Detections:
    """Turn one image's graph outputs into detections.

    Args:
        boxes: float32 [K, 4], xyxy in pixels of the network's input.
        scores: float32 [K], 0 to 1.
        class_ids: int32 [K].
        original: height and width of the original image.
        target: height and width of the network's input.
        score_threshold: lower scores are dropped before suppression.
        iou_threshold: see ``suppress_overlaps``.
        limit: at most so many detections.

    Raises:
        EngineError: a value is not finite.
    """
    if not np.isfinite(boxes).all() or not np.isfinite(scores).all():
        raise EngineError(
            "The engine returned numbers that are not finite, so it is broken on this machine; build it again."
        )
    *_, scale = letterbox_size(*original, target)
    candidates = np.flatnonzero(scores >= score_threshold)
    boxes, scores, class_ids = boxes[candidates], scores[candidates], class_ids[candidates]
    bounds = np.array([original[1], original[0]] * 2, np.float32) * np.float32(scale)
    boxes = np.clip(boxes, 0, bounds)
    kept = suppress_overlaps(boxes, scores, class_ids, iou_threshold, limit)
    return Detections(
        (boxes[kept] / np.float32(scale)).astype(np.float32),
        scores[kept].astype(np.float32),
        class_ids[kept].astype(np.int32),
    )
