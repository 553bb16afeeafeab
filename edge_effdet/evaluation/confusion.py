"""Which class is taken for which, what is missed and what is made up: the confusion matrix of a detector.

The matching is that of COCO's evaluation (``COCOeval.evaluateImg``: detections by descending score, each takes the free box
that it overlaps most, and one on an ignored region does not count) but without regard to class, so that a box found under
a wrong name shows as a confusion and not as one missed and one false. At one score and one IoU, unlike AP.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import Detections, atomic_output
from edge_effdet.cli import table
from edge_effdet.data.base import Sample
from edge_effdet.errors import MissingDependency
from edge_effdet.runtime.nms import box_areas, iou_matrix

SCORE_THRESHOLD = 0.3
IOU_THRESHOLD = 0.5
SHOWN_CLASSES = 20
"""More rows than that cannot be read; the most confused are shown and the others summed up."""

FALSE, IGNORED = -1, -2
"""What ``match_detections`` says of a detection that has no box: made up, or on an ignored region."""


def confusion_matrix(
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    num_classes: int,
    score_threshold: float = SCORE_THRESHOLD,
    iou_threshold: float = IOU_THRESHOLD,
) -> np.ndarray:
    """Count true classes (rows) against predicted ones (columns).

    Args:
        samples: the truth; ignored boxes are not counted.
        detections: one entry an image, in the same order.
        num_classes: C.
        score_threshold: lower scores are left out.
        iou_threshold: a detection and a box match from this overlap on.

    Returns:
        int64 [C + 1, C + 1]. The last column holds the boxes that were missed, the last row the detections that match
        no box. Row c sums to the number of boxes of class c.
    """
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    for sample, found in zip(samples, detections, strict=True):
        found = found.above(score_threshold)
        matches = match_detections(sample, found, iou_threshold)
        missed = ~sample.ignore
        for match, class_id in zip(matches, found.class_ids, strict=True):
            if match >= 0:
                matrix[sample.class_ids[match], class_id] += 1
                missed[match] = False
            elif match == FALSE:
                matrix[num_classes, class_id] += 1
        np.add.at(matrix[:, num_classes], sample.class_ids[missed], 1)
    return matrix


def match_detections(sample: Sample, detections: Detections, iou_threshold: float = IOU_THRESHOLD) -> np.ndarray:
    """The index of the box that each detection matches, else ``FALSE`` or ``IGNORED``, int64 [N]."""
    matches = np.full(len(detections), FALSE, np.int64)
    overlaps = iou_matrix(detections.boxes, sample.boxes)
    on_ignored = _covered_share(detections.boxes, sample.boxes[sample.ignore]).max(axis=1, initial=0) >= iou_threshold
    free = ~sample.ignore
    for index in np.argsort(-detections.scores, kind="stable"):
        candidates = np.flatnonzero(free & (overlaps[index] >= iou_threshold))
        if len(candidates):
            # Of boxes that fit equally well, as two labels of one object do, the one of the same class.
            same = sample.class_ids[candidates] == detections.class_ids[index]
            best = candidates[np.lexsort((~same, -overlaps[index, candidates]))[0]]
            matches[index] = best
            free[best] = False
        elif on_ignored[index]:
            matches[index] = IGNORED
    return matches


def count_errors(matrix: np.ndarray) -> tuple[int, int, int]:
    """Boxes missed, detections that match no box, and boxes found under a wrong name."""
    missed, false = int(matrix[:-1, -1].sum()), int(matrix[-1, :-1].sum())
    return missed, false, int(matrix[:-1, :-1].sum() - np.trace(matrix[:-1, :-1]))


def most_confused_with(matrix: np.ndarray, class_id: int) -> tuple[int, int] | None:
    """The class that boxes of ``class_id`` are most often taken for, and how often; None where never."""
    row = matrix[class_id, :-1].copy()
    row[class_id] = 0
    other = int(row.argmax())
    return (other, int(row[other])) if row[other] else None


@dataclass(frozen=True, slots=True)
class ConfusionView:
    """A confusion matrix that a person can read.

    Attributes:
        counts: int64 [rows, columns].
        row_names: true classes, perhaps a sum of others, and the background.
        column_names: predicted classes, perhaps a sum of others, and missed.
        named: how many classes stand by themselves, in the first rows and columns.
    """

    counts: np.ndarray
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    named: int


def view_confusion(matrix: np.ndarray, class_names: Sequence[str], limit: int = SHOWN_CLASSES) -> ConfusionView:
    """Only classes with boxes, and of more than ``limit`` the most confused; what is left over is summed up as others."""
    inner = matrix[:-1, :-1]
    confusions = inner.sum(axis=0) + inner.sum(axis=1) - 2 * np.diag(inner)
    failures = matrix[:-1, -1] + matrix[-1, :-1]
    with_boxes = np.flatnonzero(matrix[:-1].sum(axis=1) > 0)
    ranked = with_boxes[np.lexsort((-failures[with_boxes], -confusions[with_boxes]))]
    shown = np.sort(ranked[:limit])
    others = np.setdiff1d(np.arange(len(inner)), shown)
    groups = [np.array([index]) for index in shown]
    rows = [*groups, *([others] if matrix[others].any() else []), np.array([len(inner)])]
    columns = [*groups, *([others] if matrix[:, others].any() else []), np.array([len(inner)])]
    counts = np.array([[matrix[np.ix_(row, column)].sum() for column in columns] for row in rows], np.int64)
    names = [class_names[int(index)] for index in shown]
    return ConfusionView(
        counts,
        (*names, *(["others"] if len(rows) > len(names) + 1 else []), "background"),
        (*names, *(["others"] if len(columns) > len(names) + 1 else []), "missed"),
        len(names),
    )


def confusion_table(view: ConfusionView) -> str:
    """Truth down, predictions across."""
    rows = [[name, *map(str, counts)] for name, counts in zip(view.row_names, view.counts.tolist(), strict=True)]
    # What is neither there nor found cannot be counted.
    rows[-1][-1] = "-"
    return table([("truth \\ predicted", *view.column_names), *rows])


def save_confusion_picture(path: Path, view: ConfusionView, title: str) -> None:
    """A heat map as PNG: the number of boxes in each cell, the stronger the larger its share of the row; mistakes are red.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "train", "to draw the confusion matrix") from error

    totals = view.counts.sum(axis=1, keepdims=True)
    shares = np.divide(view.counts, totals, out=np.zeros(view.counts.shape), where=totals > 0)
    right = np.zeros(view.counts.shape, bool)
    right[range(view.named), range(view.named)] = True
    # The cell where the row and the column of the summed-up classes ("others") cross counts boxes of the right class together with
    # boxes of a wrong one, so neither colour would be true of it and it stays uncoloured.
    shares[view.named : -1, view.named : -1] = 0
    rows, columns = view.counts.shape
    # Not pyplot, which keeps figures and picks a backend for the whole process.
    figure = Figure(figsize=(3.2 + 0.55 * columns, 2.4 + 0.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(np.where(right, shares, -shares), cmap="RdBu", vmin=-1.3, vmax=1.3)
    # A dollar in a class name is a dollar.
    rotation = 0 if columns <= 6 and max(map(len, view.column_names)) <= 10 else 60
    axes.set_xticks(range(columns), view.column_names, rotation=rotation, ha="right" if rotation else "center")
    axes.set_yticks(range(rows), view.row_names)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        label.set_parse_math(False)
        label.set_rotation_mode("anchor")
    for row, column in np.argwhere(view.counts):
        color = "white" if shares[row, column] > 0.75 else "black"
        size = 9 if view.counts[row, column] < 1000 else 7
        axes.text(column, row, str(view.counts[row, column]), ha="center", va="center", color=color, fontsize=size)
    axes.axhline(rows - 1.5, color="grey", linewidth=0.8)
    axes.axvline(columns - 1.5, color="grey", linewidth=0.8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    axes.set_title(f"{title}\nblue is right, red is wrong; darker is more of its row", fontsize=9)
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _covered_share(boxes: np.ndarray, regions: np.ndarray) -> np.ndarray:
    """The share of each box that each region covers, [N, M]: COCO's overlap with a crowd."""
    top_left = np.maximum(boxes[:, None, :2], regions[None, :, :2])
    sides = np.clip(np.minimum(boxes[:, None, 2:], regions[None, :, 2:]) - top_left, 0, None)
    areas = box_areas(boxes)[:, None]
    return np.divide(sides[..., 0] * sides[..., 1], areas, out=np.zeros(sides.shape[:2], boxes.dtype), where=areas > 0)
