"""Mistakes that a whole data set shows and no single box: fractions read as pixels, corners as sizes, classes counted from 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_effdet.data.base import Problem, Sample
from edge_effdet.data.raw import RawBox, RawDataset, RawPicture
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import PictureFrame

MOST = 0.5
"""From this share of the boxes on, a mistake is taken for the whole data set's."""

_LEAST = 3
"""So many boxes, at least, show a pattern, unless there are fewer in all."""


def find_patterns(raw: RawDataset, pictures: Sequence[tuple[RawPicture, PictureFrame]], boxes_in: str) -> list[Problem]:
    """Problems of the whole data set, each with its count, an example and what to do.

    Args:
        raw: what the reader found.
        pictures: the pictures that are there, with their frames.
        boxes_in: one of ``frames.BOXES_IN``; what it mends is no problem.
    """
    boxes = [(box, picture, frame) for picture, frame in pictures for box in picture.boxes]
    problems: list[Problem] = []
    if boxes:
        corners = np.array([box.corners for box, _, _ in boxes], np.float64)
        sides = np.array([(frame.upright[1], frame.upright[0]) * 2 for _, _, frame in boxes], np.float64)
        with np.errstate(invalid="ignore"):
            fractions = (np.abs(corners) <= 1).all(axis=1) & (sides > 2).all(axis=1)
            swapped = (corners[:, 2:] < corners[:, :2]).any(axis=1)
            # Width and height that are the second corner reach beyond the picture, and as corners they do not.
            sizes = corners[:, 2:] - corners[:, :2]
            beyond = (corners[:, 2:] > sides[:, 2:] + 1).any(axis=1)
            as_corners = beyond & (sizes > corners[:, :2]).all(axis=1) & (sizes <= sides[:, 2:] + 1).all(axis=1)
            fits = (sizes > corners[:, :2]).all(axis=1) & (sizes <= sides[:, 2:] + 1).all(axis=1)
        if not raw.fractions and boxes_in != "fractions" and _is_most(fractions, len(boxes)):
            problems.append(
                _problem(
                    "fractions",
                    boxes,
                    fractions,
                    "have all numbers from 0 to 1: they are most likely fractions of the picture and not pixels; `boxes_in` "
                    "fractions reads them so",
                )
            )
        # Where every box could be meant so and a good part cannot be meant otherwise.
        elif raw.kind == "coco" and boxes_in != "corners" and _is_most(as_corners, len(boxes)) and fits.all():
            problems.append(
                _problem(
                    "corners_as_size",
                    boxes,
                    as_corners,
                    "reach beyond their picture as x, y, width, height and fit it as x_min, y_min, x_max, y_max; `boxes_in` corners "
                    "reads them so",
                )
            )
        if swapped.any():
            problems.append(
                _problem(
                    "swapped",
                    boxes,
                    swapped,
                    "have swapped corners, a maximum below its minimum, and are left out; write the smaller x and y first",
                )
            )
    problems.extend(_numbers_from_one(raw, pictures))
    return problems


def require_trainable(samples: Sequence[Sample]) -> None:
    """Raise DataError for boxes that are nearly all smaller than a pixel: nothing can be learned from them."""
    sides = np.concatenate([sample.boxes[:, 2:] - sample.boxes[:, :2] for sample in samples] or [np.zeros((0, 2))])
    tiny = int((sides.max(axis=1, initial=0) < 1).sum())
    if len(sides) and tiny > MOST * len(sides):
        raise DataError(
            f"{tiny} of {len(sides)} boxes are smaller than a pixel, from which nothing can be learned; if they are fractions of the "
            "picture, give `boxes_in` fractions."
        )


def _numbers_from_one(raw: RawDataset, pictures: Sequence[tuple[RawPicture, PictureFrame]]) -> list[Problem]:
    """YOLO's classes count from 0. Where the first is never used and one behind the last is, somebody counted from 1."""
    if raw.kind not in ("yolo", "darknet") or not raw.classes:
        return []
    used = {box.label for picture, _ in pictures for box in picture.boxes}
    first, last = min(raw.classes), max(raw.classes)
    if first in used or last + 1 not in used or len(used) < 1:
        return []
    picture, box = next((picture, box) for picture, _ in pictures for box in picture.boxes if box.label == last + 1)
    return [
        Problem(
            "class_numbers",
            box.place() or str(picture.path),
            f"the classes are numbered from {first + 1} to {last + 1} in the labels and from {first} to {last} in the list of names, so every "
            f"box gets its neighbour's class; count from {first} in the labels, or put a name for class {first} in front of the list",
        )
    ]


def _is_most(found: Any, total: int) -> bool:
    return bool(found.sum() >= max(MOST * total, min(_LEAST, total)))


def _problem(kind: str, boxes: Sequence[tuple[RawBox, RawPicture, PictureFrame]], found: Any, text: str) -> Problem:
    box, picture, _ = boxes[int(np.argmax(found))]
    example = " ".join(f"{value:g}" for value in box.corners)
    return Problem(
        kind, box.place() or str(picture.path), f"{int(found.sum())} of {len(boxes)} boxes {text} (first: [{example}])"
    )
