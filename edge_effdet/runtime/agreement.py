"""How far two runs of a detector on the same pictures lie apart, and how far they may. It needs no labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge_effdet.artifacts import Detections, ModelSpec, Size
from edge_effdet.artifacts.record import Agreement
from edge_effdet.backends.base import Runner
from edge_effdet.runtime.contract import OUTPUTS, require_outputs
from edge_effdet.runtime.nms import iou_matrix
from edge_effdet.runtime.postprocess import detections_from_outputs
from edge_effdet.runtime.preprocess import feeds_for_image

KEPT, BEST = 100, 20
"""Detections of a picture that are kept, and of these the best that are compared, each with all that the other side kept: which one is
the twentieth and which the twenty-first is decided by any rounding. Further ones have scores of a hundredth."""

SCORE_FLOOR, KEPT_FLOOR = 0.01, 0.003
"""Scores from which detections are compared, and from which they are kept: one that is just above the first on one side may be just
below it on the other."""

SAME_BOX = 0.5
"""Two boxes of one class are the same object from this overlap (IoU) on."""

SAME_PLACE = 0.5
"""They are the same too if none of their sides is further apart than so many pixels. A box without an area, as a network finds that has hardly learned anything, has no
overlap with itself either."""

TOLERANCES: Mapping[str, float] = {"fp32": 0.02, "fp16": 0.1, "int8": 0.1}
"""The distance (``detection_distance``) that still counts as the same, by the engine's precision.

FP32 differs by the order of its sums: less than 0.001 between onnxruntime and OpenVINO. FP16 may be computed in BF16, which keeps 8
bits. In INT8 two runtimes that compute exactly round a few activations to neighbouring codes. OpenVINO and onnxruntime are 0.01 to 0.05
apart on three detectors (lite0 and D0 of BCCD, lite0 of drawn scenes; three pictures at a time), and an OpenVINO that saturates
0.17 to 0.60 on photographs and 0.14 to 0.50 on drawn pictures (``benchmarks/golden.py``, AMD EPYC without VNNI)."""

FROM_REFERENCE = 0.3
"""The distance from the FP32 graph, on photographs, above which an engine is wrong whatever its backend does.

INT8 that is computed exactly is 0.03 to 0.10 away on the detectors named above, with the quick ranges of a race's draft up to 0.15, and one
that saturates 0.17 to 0.61. Whether a backend computes its graph is judged by its distance from that graph, which is sharper; this limit
is for a graph that rounding itself has spoilt, where there are no labels to say so. Drawn pictures are not held against it: what a
detector finds in them is mostly noise."""


def find_best(runner: Runner, spec: ModelSpec, image: np.ndarray) -> Detections:
    """The ``KEPT`` best detections of one picture of the size of the network's input, uint8 [H, W, 3]."""
    size: Size = (image.shape[0], image.shape[1])
    outputs = runner.run(feeds_for_image(runner, image, spec))
    require_outputs(outputs, 1)
    boxes, scores, class_ids = (outputs[name][0] for name in OUTPUTS)
    return detections_from_outputs(
        boxes, scores, class_ids, size, spec.image_size, KEPT_FLOOR, limit=KEPT, num_classes=spec.num_classes
    )


def detection_distance(proven: Sequence[Detections], found: Sequence[Detections]) -> float:
    """How far two lists of detections of the same pictures lie apart, 0 for the same and 1 for nothing in common.

    Each of the ``BEST`` detections of one list is looked for in the other: the same class, an overlap of ``SAME_BOX`` or more or the ``SAME_PLACE``, and of those the
    nearest score. What its score differs by is added up, or all of its score where nothing is found. The larger of both directions
    counts, so that objects that are made up count as those that are missed. The result is a share of the scores of the list with more,
    so that a detector with low scores is not judged more mildly.
    """
    total = max(total_score(proven), total_score(found))
    return max(_missing(proven, found), _missing(found, proven)) / total if total else 0.0


def total_score(every: Sequence[Detections]) -> float:
    """The compared scores of all pictures, added up."""
    return sum(float(_compared(each).scores.sum()) for each in every)


def _compared(found: Detections) -> Detections:
    return found.above(SCORE_FLOOR).select(slice(BEST))


def measure_agreement(
    reference: Sequence[Detections],
    exact: Sequence[Detections],
    found: Sequence[Detections],
    title: str,
    precision: str,
    drawn: bool = False,
) -> Agreement:
    """Compare an engine with the graph that it was made from.

    Args:
        reference: what the FP32 graph finds in each picture.
        exact: what the engine's own graph finds where it is computed exactly.
        found: what the engine finds.
        title: of the reference, for people.
        precision: the engine's.
        drawn: whether the pictures are drawn.
    """
    distance, from_exact = detection_distance(reference, found), detection_distance(exact, found)
    allowed, from_exact_allowed = None if drawn else FROM_REFERENCE, TOLERANCES[precision]
    backend_right = from_exact <= from_exact_allowed
    measured, limit, other = from_exact, from_exact_allowed, "its own graph, computed exactly,"
    if backend_right and allowed is not None:
        measured, limit, other = distance, allowed, title
    pictures = f"{len(found)} pictures" if len(found) > 1 else "1 picture"
    return Agreement(
        distance=distance,
        allowed=allowed,
        from_exact=from_exact,
        from_exact_allowed=from_exact_allowed,
        pictures=len(found),
        reference=title,
        backend_right=backend_right,
        right=backend_right and (allowed is None or distance <= allowed),
        text=f"on {pictures} its scores differ from those of {other} by {100 * measured:.0f} %, and {100 * limit:.0f} % are allowed",
    )


def _missing(wanted: Sequence[Detections], found: Sequence[Detections]) -> float:
    """What one list's scores differ by from the other's, added up."""
    missing = 0.0
    for ours, theirs in zip(map(_compared, wanted), found, strict=True):
        if not len(ours):
            continue
        apart = np.abs(ours.boxes[:, None] - theirs.boxes[None]).max(axis=2, initial=0.0)
        same = (iou_matrix(ours.boxes, theirs.boxes) >= SAME_BOX) | (apart <= SAME_PLACE)
        same &= ours.class_ids[:, None] == theirs.class_ids[None]
        differences = np.where(same, np.abs(ours.scores[:, None] - theirs.scores[None]), np.inf)
        missing += float(np.minimum(differences.min(axis=1, initial=np.inf), ours.scores).sum())
    return missing
