"""From the graph's outputs to detections in the original image: clipping, class-aware NMS, scaling back.

The order and the numbers are those of effdet's ``generate_detections``: boxes are clipped to the letterboxed picture,
then suppressed greedily within their class above an IoU of 0.5, then scaled. ``nms`` has the alternatives to this suppression.
"""

from __future__ import annotations

import numpy as np

from edge_effdet.artifacts import Detections, Size
from edge_effdet.errors import EngineError
from edge_effdet.runtime.nms import select_boxes
from edge_effdet.runtime.preprocess import letterbox_size


def detections_from_outputs(
    boxes: np.ndarray,
    scores: np.ndarray,
    class_ids: np.ndarray,
    original: Size,
    target: Size,
    score_threshold: float = 0.0,
    iou_threshold: float = 0.5,
    limit: int = 100,
    nms_kind: str = "class-aware",
) -> Detections:
    """Turn one image's graph outputs into detections.

    Args:
        boxes: float32 [K, 4], xyxy in pixels of the network's input.
        scores: float32 [K], 0 to 1.
        class_ids: int32 [K].
        original: height and width of the original image.
        target: height and width of the network's input.
        score_threshold: candidates with lower scores are dropped before suppression.
        iou_threshold: see ``nms.select_boxes``.
        limit: largest number of detections.
        nms_kind: one of ``nms.NMS_KINDS``; the default is effdet's.

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
    boxes, scores, class_ids = select_boxes(boxes, scores, class_ids, nms_kind, iou_threshold, limit, score_threshold)
    return Detections(
        (boxes / np.float32(scale)).astype(np.float32, copy=False),
        scores.astype(np.float32, copy=False),
        class_ids.astype(np.int32, copy=False),
    )
