"""The confusion matrix of a detector: which class it takes for which, which boxes it misses, and which of its detections are false.

Unlike AP it is counted at one score and one IoU. ``matching.match_across_classes`` says which detection belongs to which box.
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
from edge_effdet.evaluation.matching import FALSE, match_across_classes

SCORE_THRESHOLD = 0.3
IOU_THRESHOLD = 0.5
SHOWN_CLASSES = 20
"""More rows than that cannot be read, so only the most confused classes are shown, and the others are summed up."""


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
        matches = match_across_classes(sample, found, iou_threshold)
        missed = ~sample.ignore
        for match, class_id in zip(matches, found.class_ids, strict=True):
            if match >= 0:
                matrix[sample.class_ids[match], class_id] += 1
                missed[match] = False
            elif match == FALSE:
                matrix[num_classes, class_id] += 1
        np.add.at(matrix[:, num_classes], sample.class_ids[missed], 1)
    return matrix


def count_errors(matrix: np.ndarray) -> tuple[int, int, int]:
    """Count boxes that were missed, detections that match no box, and boxes that were found under a wrong name."""
    missed, false = int(matrix[:-1, -1].sum()), int(matrix[-1, :-1].sum())
    return missed, false, int(matrix[:-1, :-1].sum() - np.trace(matrix[:-1, :-1]))


def most_confused_with(matrix: np.ndarray, class_id: int) -> tuple[int, int] | None:
    """The class that boxes of ``class_id`` are most often taken for, and how often; None where it never happens."""
    row = matrix[class_id, :-1].copy()
    row[class_id] = 0
    other = int(row.argmax())
    return (other, int(row[other])) if row[other] else None


@dataclass(frozen=True, slots=True)
class ConfusionView:
    """A confusion matrix that a person can read.

    Attributes:
        counts: int64 [rows, columns].
        row_names: the true classes, then ``others`` where some are summed up, then ``background`` for what is no object.
        column_names: the predicted classes, then ``others`` where some are summed up, then ``missed``.
        named: how many classes have a row and a column of their own, the first ones.
    """

    counts: np.ndarray
    row_names: tuple[str, ...]
    column_names: tuple[str, ...]
    named: int


def view_confusion(matrix: np.ndarray, class_names: Sequence[str], limit: int = SHOWN_CLASSES) -> ConfusionView:
    """Leave out classes without boxes, and sum up all but the ``limit`` most confused classes as ``others``."""
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
    """The matrix as text, with true classes in rows and predicted ones in columns."""
    rows = [[name, *map(str, counts)] for name, counts in zip(view.row_names, view.counts.tolist(), strict=True)]
    # Background that was rightly left alone cannot be counted.
    rows[-1][-1] = "-"
    return table([("truth \\ predicted", *view.column_names), *rows])


def save_confusion_picture(path: Path, view: ConfusionView, title: str) -> None:
    """Draw a heat map as PNG, with the number of boxes in each cell. Right ones are blue, mistakes red, darker for a larger share of the row.

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
    # pyplot would keep figures and choose a backend for the whole process.
    figure = Figure(figsize=(3.2 + 0.55 * columns, 2.4 + 0.5 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(np.where(right, shares, -shares), cmap="RdBu", vmin=-1.3, vmax=1.3)
    rotation = 0 if columns <= 6 and max(map(len, view.column_names)) <= 10 else 60
    axes.set_xticks(range(columns), view.column_names, rotation=rotation, ha="right" if rotation else "center")
    axes.set_yticks(range(rows), view.row_names)
    for label in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        # A dollar in a class name does not begin a formula.
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
