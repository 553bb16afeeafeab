"""What a reader takes from annotation files, before any picture is opened: ``assemble`` makes the ``Dataset`` of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from edge_effdet.artifacts import Size
from edge_effdet.data.base import Problem


class Certainty(IntEnum):
    """How sure a reader is that a data set is of its format. The surest reader reads it."""

    NO = 0
    MAYBE = 1
    """Files of the right kind lie there, as a stray JSON of COCO's form may lie in any folder."""
    LIKELY = 2
    """The layout is the format's own."""
    SURE = 3
    """A file or a folder is there that only this format has, as ``data.yaml`` or ``Annotations``."""


@dataclass(frozen=True, slots=True)
class RawBox:
    """A box as it is written.

    Attributes:
        corners: x_min, y_min, x_max, y_max, in pixels of the frame that was annotated, or in fractions of it.
        label: the class: its name, or its number where the format has numbers.
        ignore: whether training leaves it out and evaluation does not count it: a crowd, a difficult box.
        where: the place, as ``Problem.where``; a function where to find it takes time.
    """

    corners: tuple[float, float, float, float]
    label: str | int
    ignore: bool = False
    where: str | Callable[[], str] = ""

    def place(self) -> str:
        """The place as text."""
        return self.where if isinstance(self.where, str) else self.where()


@dataclass(slots=True)
class RawPicture:
    """A picture as the annotations have it.

    Attributes:
        image_id: the picture's identifier in its file.
        path: the picture's file.
        where: the place of its entry, as ``Problem.where``.
        boxes: its boxes.
        rejected: how many of its rows could not be understood; their problems are recorded. A picture that has lost all of its rows is
            left out, because training would take its objects for background.
        declared: height and width that the annotation gives for the picture; None where it gives none.
    """

    image_id: str
    path: Path
    where: str = ""
    boxes: list[RawBox] = field(default_factory=list)
    rejected: int = 0
    declared: Size | None = None


@dataclass(slots=True)
class RawDataset:
    """All that a reader found.

    Attributes:
        root: the folder or file that was given.
        kind: the format: ``coco``, ``voc``, ``yolo``, ``csv`` and so on, as ``Dataset.kind``.
        parts: the pictures with the name of their split, or None where nothing names one. One name may come several times.
        classes: the name of each class by its number, in order; None where boxes carry names, and then the classes are ordered by name.
        fractions: whether boxes are in fractions of the picture (YOLO, Open Images) and not in pixels.
        exporter: the program whose export it looks like, as ``Roboflow``; empty where nothing tells.
        notes: sentences for the user about how it was read.
        problems: what is wrong in the files.
        searched: the folders in which pictures were looked for, for messages.
    """

    root: Path
    kind: str
    parts: Sequence[tuple[str | None, list[RawPicture]]]
    classes: Mapping[int, str] | None = None
    fractions: bool = False
    exporter: str = ""
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    searched: str = ""
