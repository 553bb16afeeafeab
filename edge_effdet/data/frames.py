"""The frame that boxes were drawn in, against the picture that is there now.

Annotations that say how large the picture is tell when a picture was turned or scaled after it was annotated: its boxes then lie elsewhere, and
nothing else shows it. Only one kind can be mended, and only when the user says so (``boxes_in``).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from edge_effdet.artifacts import Size
from edge_effdet.data.base import Problem
from edge_effdet.data.raw import RawPicture
from edge_effdet.errors import DataError
from edge_effdet.options import option
from edge_effdet.runtime.images import PictureFrame

BOXES_IN = ("upright", "raw", "declared", "fractions", "corners")
"""In what boxes are written: in pixels of the upright picture; of the picture as it is stored, before its EXIF orientation turns it; of the
size that the annotations declare; in fractions of the picture; or with the second corner in place of width and height."""


@dataclass(frozen=True, kw_only=True)
class LabelOptions:
    """How the labels are read."""

    boxes_in: str = option(
        "upright",
        help="what boxes are written in: pixels of the upright picture, of the picture as it is stored (raw), or of the size that the "
        "annotations declare; fractions of the picture; or, in COCO files, x_min, y_min, x_max, y_max (corners)",
        choices=BOXES_IN,
    )


_ROUNDED = 1.5
"""Pixels by which a side that was scaled by one factor may differ from it."""


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A picture whose declared size is not its own.

    Attributes:
        kind: ``turned``, ``scaled`` or ``other``.
        text: both sizes, for people.
    """

    kind: str
    text: str


def compare_frame(declared: Size, frame: PictureFrame) -> Mismatch | None:
    """What the declared height and width of a picture say of its frame; None where they are the upright picture's."""
    if declared == frame.upright:
        return None
    shown = f"declared {declared[1]}x{declared[0]}, in the file {frame.upright[1]}x{frame.upright[0]}"
    if declared == frame.raw:
        return Mismatch("turned", f"{shown} upright")
    if min(declared) < 1:
        return Mismatch("other", shown)
    factor = max(frame.upright) / max(declared)
    if all(
        abs(side * factor - own) <= max(_ROUNDED, _ROUNDED * factor)
        for side, own in zip(declared, frame.upright, strict=True)
    ):
        return Mismatch("scaled", f"{shown}, {factor:.3g} times")
    return Mismatch("other", shown)


def check_frames(pictures: Sequence[tuple[RawPicture, PictureFrame]], boxes_in: str) -> list[Problem]:
    """Compare every declared size with its picture.

    Args:
        pictures: each picture and its frame.
        boxes_in: one of ``BOXES_IN``; a kind that it mends is no problem.

    Returns:
        One problem a kind, with the count, an example, and what to do.

    Raises:
        DataError: ``declared`` is asked for and pictures have sizes that are not theirs by one factor.
    """
    found: dict[str, list[tuple[RawPicture, Mismatch]]] = defaultdict(list)
    declared = 0
    for picture, frame in pictures:
        if picture.declared is None:
            continue
        declared += 1
        mismatch = compare_frame(picture.declared, frame)
        if mismatch is not None:
            found[mismatch.kind].append((picture, mismatch))
    if boxes_in == "declared" and found["other"]:
        picture, mismatch = found["other"][0]
        raise DataError(
            f"`boxes_in` declared scales boxes by one factor, and {len(found['other'])} pictures have another shape than declared "
            f"(first: {picture.path}, {mismatch.text}); correct these sizes or leave the pictures out."
        )
    mended = {"raw": {"turned"}, "declared": {"scaled", "turned"}}.get(boxes_in, set())
    kinds = [kind for kind in ("turned", "scaled", "other") if found[kind] and kind not in mended]
    problems = []
    for kind in kinds:
        picture, mismatch = found[kind][0]
        problems.append(
            Problem(
                "declared_size",
                picture.where or str(picture.path),
                f"{len(found[kind])} of {declared} pictures {_TEXTS[kind]} (first: {picture.path.name}, {mismatch.text})"
                f"{_cure(kind, len(kinds) == 1)}",
            )
        )
    return problems


def move_box(
    corners: tuple[float, float, float, float], picture: RawPicture, frame: PictureFrame, boxes_in: str
) -> tuple[float, ...]:
    """A box, x_min y_min x_max y_max in pixels, moved from the frame that it was drawn in to the upright picture."""
    x_min, y_min, x_max, y_max = corners
    if boxes_in == "declared" and picture.declared is not None and picture.declared != frame.upright:
        if picture.declared == frame.raw:
            return _turn(corners, frame)
        vertical, horizontal = (own / side for own, side in zip(frame.upright, picture.declared, strict=True))
        return x_min * horizontal, y_min * vertical, x_max * horizontal, y_max * vertical
    return _turn(corners, frame) if boxes_in == "raw" else corners


_TEXTS = {
    "turned": "were annotated before their EXIF orientation turned them, so their boxes lie elsewhere",
    "scaled": "have another size than the one that they were annotated in",
    "other": "have another shape than the one that is declared for them",
}


def _cure(kind: str, alone: bool) -> str:
    if not alone or kind == "other":
        return "; export the annotations again for these files, or leave the pictures out"
    flag, then = (
        ("raw", "turns the boxes with the pictures")
        if kind == "turned"
        else ("declared", "scales the boxes to the pictures")
    )
    return f"; `boxes_in` {flag} {then}, or, if the boxes fit the pictures as they are, correct the sizes"


def _turn(corners: tuple[float, float, float, float], frame: PictureFrame) -> tuple[float, ...]:
    """A box of the stored picture in the upright one; the orientations are those of EXIF's tag 274."""
    height, width = frame.raw
    x_min, y_min, x_max, y_max = corners
    points = {
        2: (width - x_max, y_min, width - x_min, y_max),
        3: (width - x_max, height - y_max, width - x_min, height - y_min),
        4: (x_min, height - y_max, x_max, height - y_min),
        5: (y_min, x_min, y_max, x_max),
        6: (height - y_max, x_min, height - y_min, x_max),
        7: (height - y_max, width - x_max, height - y_min, width - x_min),
        8: (y_min, width - x_max, y_max, width - x_min),
    }
    return points.get(frame.orientation, corners)
