"""Mirrored views of a picture, and weighted boxes fusion of the detections of several views and models.

Fusion averages boxes that overlap, where suppression would drop all but the best: Solovyev, Wang, Gabruseva, Weighted boxes fusion,
arXiv 1910.13302, by the package ensemble-boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edge_effdet.artifacts import Detections, ModelSpec, Size
from edge_effdet.data.transforms import flip_horizontally, flip_vertically
from edge_effdet.errors import MissingDependency, UsageError

Flip = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
_NO_BOXES = np.zeros((0, 4), np.float32)

LOWEST_SCORE = 1e-6
"""Detections with lower scores are not fused: ensemble-boxes sums score times coordinate in float32, where they would lose their box."""


@dataclass(frozen=True, slots=True)
class View:
    """A picture as it is, or mirrored.

    Attributes:
        name: what the view is called in messages.
        flip: maps (picture, boxes) to the mirrored ones and is its own inverse; None changes nothing.
    """

    name: str
    flip: Flip | None = None

    def show(self, image: np.ndarray) -> np.ndarray:
        """The picture, uint8 [height, width, 3], mirrored as this view is."""
        return image if self.flip is None else self.flip(image, _NO_BOXES)[0]

    def undo(self, detections: Detections, image: np.ndarray) -> Detections:
        """Detections in the view as detections in the picture ``image`` as it is, in its pixels."""
        if self.flip is None:
            return detections
        return replace(detections, boxes=self.flip(image, detections.boxes)[1])


_AS_IT_IS = View("as it is")
_LEFT_TO_RIGHT = View("mirrored left to right", flip_horizontally)
_TOP_TO_BOTTOM = View("mirrored top to bottom", flip_vertically)

TTA_VIEWS: Mapping[str, tuple[View, ...]] = {
    "none": (_AS_IT_IS,),
    "horizontal": (_AS_IT_IS, _LEFT_TO_RIGHT),
    "all": (_AS_IT_IS, _LEFT_TO_RIGHT, _TOP_TO_BOTTOM),
}
"""Test-time augmentation: the views of each choice of ``InferenceOptions.tta``."""


def fuse_detections(
    detections: Sequence[Detections],
    image_size: Size,
    iou_threshold: float = 0.55,
    skip_below: float = 0.0,
    weights: Sequence[float] | None = None,
) -> Detections:
    """Fuse the detections of several models or views in one picture: weighted boxes fusion (arXiv 1910.13302, section 3).

    Boxes of one class that overlap become their average, weighted by score. The score is the average too, scaled down by
    the share of the lists that have the box: what one of four lists has with 0.8 counts 0.2. Empty lists are counted too.

    Args:
        detections: one list a model or view, in pixels of the same picture.
        image_size: height and width of the picture; boxes are clipped to it, and boxes without area are dropped.
        iou_threshold: boxes with an IoU above it are fused.
        skip_below: lower scores are left out before fusing; those below ``LOWEST_SCORE`` always are.
        weights: how much each list counts, all above 0; equal where None.

    Returns:
        Detections by descending score; equal scores by class and position, so that the order of the lists does not matter.

    Raises:
        MissingDependency: ensemble-boxes is not installed.
        ValueError: ``weights`` has another length than ``detections``, or a number that is not above 0.
    """
    try:
        from ensemble_boxes import weighted_boxes_fusion
    except ModuleNotFoundError as error:
        raise MissingDependency("ensemble-boxes", "ensemble", "to fuse predictions") from error

    # The package would print a warning for a wrong count and go on with equal weights.
    if weights is not None and (len(weights) != len(detections) or not all(weight > 0 for weight in weights)):
        raise ValueError(f"{len(detections)} lists need as many weights above 0, got {list(weights)}")
    height, width = image_size
    sides = np.array([width, height, width, height], np.float64)
    # It also warns of each box that is outside 0 to 1 or without area.
    usable = [_with_area(found.above(max(skip_below, LOWEST_SCORE)), image_size) for found in detections]
    boxes, scores, class_ids = weighted_boxes_fusion(
        [found.boxes / sides for found in usable],
        [found.scores for found in usable],
        [found.class_ids for found in usable],
        weights=None if weights is None else list(weights),
        iou_thr=iou_threshold,
        skip_box_thr=0.0,
    )
    pixels = np.clip(boxes * sides, 0, sides).astype(np.float32).reshape(-1, 4)
    scores = np.clip(scores, 0, 1).astype(np.float32)
    order = np.lexsort((*pixels.T[::-1], class_ids, -scores))
    return Detections(pixels[order], scores[order], class_ids[order].astype(np.int32))


def check_same_classes(specs: Sequence[ModelSpec], names: Sequence[str]) -> None:
    """See that models which are to be fused have the same classes, in the same order.

    Args:
        specs: one a model.
        names: what a message calls each model, such as its file.

    Raises:
        UsageError: the classes differ; the message names the first difference.
    """
    first = specs[0].class_names
    for spec, name in zip(specs[1:], names[1:], strict=True):
        other = spec.class_names
        if other == first:
            continue
        if len(other) != len(first):
            difference = f"{names[0]} has {len(first)} classes and {name} has {len(other)}"
        else:
            number = next(number for number in range(len(first)) if first[number] != other[number])
            difference = f"class {number} is {first[number]!r} in {names[0]} and {other[number]!r} in {name}"
        raise UsageError(
            f"Only models of the same classes can be fused, and {difference}; give checkpoints that were trained on the "
            "same data set."
        )


def _with_area(detections: Detections, image_size: Size) -> Detections:
    height, width = image_size
    boxes = np.clip(detections.boxes, 0, np.array([width, height, width, height], np.float32))
    keep = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return replace(detections, boxes=boxes).select(keep)
