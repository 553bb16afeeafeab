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

_HIGHEST_SCORE = 1.001
"""A sigmoid is at most 1; a runtime may round it up in its last place."""

_UNSIGNED = {4: np.uint32, 8: np.uint64}
_ANY_CLASS = 2**31


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
    num_classes: int | None = None,
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
        num_classes: how many classes there are; None where the caller knows that no class id is beyond them.

    Raises:
        EngineError: a value is not finite, a score is above 1, or a candidate has an inverted box or a class that there is not.
    """
    # A maximum is NaN where a score is, and then no comparison holds. Rows that an engine leaves empty have the score -1.
    if not np.isfinite(boxes).all() or not scores.max(initial=0.0) <= _HIGHEST_SCORE:
        finite = np.isfinite(boxes).all() and np.isfinite(scores).all()
        what = f"a score of {scores.max():g}" if finite else "numbers that are not finite"
        raise EngineError(f"The engine returned {what}, so it is broken on this machine; build it again.")
    *_, scale = letterbox_size(*original, target)
    candidates = np.flatnonzero(scores >= score_threshold)
    boxes, scores, class_ids = boxes[candidates], scores[candidates], class_ids[candidates]
    if len(candidates):
        _require_boxes(boxes, class_ids, num_classes)
    bounds = np.array([original[1], original[0]] * 2, np.float32) * np.float32(scale)
    boxes = np.clip(boxes, 0, bounds)
    boxes, scores, class_ids = select_boxes(boxes, scores, class_ids, nms_kind, iou_threshold, limit, score_threshold)
    return Detections(
        (boxes / np.float32(scale)).astype(np.float32, copy=False),
        scores.astype(np.float32, copy=False),
        class_ids.astype(np.int32, copy=False),
    )


def _require_boxes(boxes: np.ndarray, class_ids: np.ndarray, num_classes: int | None) -> None:
    """Raise EngineError where a candidate, of which there is at least one, is no box of a class that there is."""
    # Read as unsigned, a class below 0 is a very large one, so that one comparison finds both.
    if class_ids.view(_UNSIGNED[class_ids.itemsize]).max() >= (num_classes or _ANY_CLASS):
        lowest, highest = int(class_ids.min()), int(class_ids.max())
        raise EngineError(
            f"The engine returned the class {lowest if lowest < 0 else highest}, and its JSON names "
            f"{'none below 0' if lowest < 0 or num_classes is None else f'the classes 0 to {num_classes - 1}'}, so they do not belong together; "
            "copy both files again or rebuild the engine."
        )
    if not (boxes[:, 2:] >= boxes[:, :2]).all():
        raise EngineError(
            "The engine returned a box whose right or lower side lies before its left or upper one, so it is broken on this machine; build "
            "it again."
        )
