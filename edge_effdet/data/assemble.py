"""From what a reader found to the ``Dataset``: opens the pictures' headers, and treats every format alike."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.cli import progress
from edge_effdet.data.base import (
    Dataset,
    Problem,
    Sample,
    gather_splits,
    make_sample,
    unreadable_image,
    with_unique_ids,
)
from edge_effdet.data.frames import BOXES_IN, check_frames, move_box
from edge_effdet.data.patterns import find_patterns
from edge_effdet.data.raw import RawBox, RawDataset, RawPicture
from edge_effdet.errors import DataError, UsageError
from edge_effdet.runtime.images import PictureFrame, picture_frame

logger = logging.getLogger(__name__)

SHOWN_REASONS = 3
"""Problems that a failure names."""

_AHEAD = 64
"""Pictures whose heads are asked for before they are opened. Those that are not in memory then come twice as fast from a disk. Threads do the same,
but wait for each other where all is in memory."""

_HEAD = 65536
"""Bytes in which the header of most pictures lies."""

PROGRESS_FROM = 2000
"""From so many pictures on, reading their headers takes long enough to show how far it is."""


def assemble(raw: RawDataset, boxes_in: str = "upright") -> Dataset:
    """Make the data set of what a reader found.

    A picture whose rows were all rejected is left out and recorded: as background it would teach that its objects are none. Background is
    a picture that the annotations declare to have no box.

    Args:
        raw: what the reader found.
        boxes_in: one of ``frames.BOXES_IN``.

    Raises:
        UsageError: there is no such ``boxes_in``.
        DataError: nothing usable is left; the message names the first problems and where pictures were looked for.
    """
    if boxes_in not in BOXES_IN:
        raise UsageError(f"There is no `boxes_in` {boxes_in!r}; give one of {', '.join(BOXES_IN)}.")
    problems = raw.problems
    frames = open_headers(raw, problems)
    # A picture that is in two splits, as in train and trainval, is checked and counted once.
    pictures = list({id(picture): picture for _, part in raw.parts for picture in part}.values())
    opened = [(picture, frames[picture.path]) for picture in pictures if picture.path in frames]
    problems += check_frames(opened, boxes_in)
    problems += find_patterns(raw, opened, boxes_in)
    problems += _named_twice(opened)
    numbers, names, category_ids = _classes(raw, [picture for picture, _ in opened])
    samples: dict[int, Sample] = {}
    lost: list[RawPicture] = []
    for picture, frame in opened:
        sample, rejected = _sample(raw, picture, frame, numbers, boxes_in, problems)
        if rejected and not len(sample.boxes):
            lost.append(picture)
        else:
            samples[id(picture)] = sample
    parts = [
        (split, tuple(samples[id(picture)] for picture in part if id(picture) in samples)) for split, part in raw.parts
    ]
    if lost:
        problems.append(
            Problem(
                "rows_lost",
                lost[0].where or str(lost[0].path),
                f"{len(lost)} picture{'s have' if len(lost) > 1 else ' has'} lost all rows by what is named here and "
                f"{'are' if len(lost) > 1 else 'is'} left out (first: {lost[0].path.name})",
            )
        )
    base = raw.root if raw.root.is_dir() else raw.root.parent
    unique = with_unique_ids([part for _, part in parts], base)
    splits, notes = gather_splits(
        ((split, part) for (split, _), part in zip(parts, unique, strict=True) if part), raw.root
    )
    if not any(splits.values()):
        raise DataError(_nothing_left(raw, problems))
    if raw.exporter:
        raw.notes.insert(0, f"{raw.root} looks like an export of {raw.exporter}.")
    return Dataset(
        raw.root,
        raw.kind,
        names,
        category_ids,
        splits,
        (*raw.notes, *notes),
        tuple(problems),
        exporter=raw.exporter,
        held_out=bool(notes),
    )


def open_headers(raw: RawDataset, problems: list[Problem]) -> dict[Path, PictureFrame]:
    """The frame of each picture that can be opened; a problem is added for each other one."""
    paths = list(dict.fromkeys(picture.path for _, part in raw.parts for picture in part))
    frames: dict[Path, PictureFrame] = {}
    shown = progress(paths, len(paths), "reading headers") if len(paths) >= PROGRESS_FROM else paths
    for position, path in enumerate(shown):
        if position % _AHEAD == 0:
            _ask_for(paths[position + _AHEAD : position + 2 * _AHEAD])
        frame = _open(path)
        if isinstance(frame, Problem):
            problems.append(frame)
        else:
            frames[path] = frame
    return frames


def _ask_for(paths: Sequence[Path]) -> None:
    """Let the kernel read the heads of files into memory, without waiting for them; elsewhere than on Linux do nothing."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in paths:
        # To open a pipe is to wait for whoever writes into it.
        if not path.is_file():
            continue
        with contextlib.suppress(OSError):
            handle = os.open(path, os.O_RDONLY)
            try:
                os.posix_fadvise(handle, 0, _HEAD, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(handle)


def _open(path: Path) -> PictureFrame | Problem:
    try:
        return picture_frame(path)
    except DataError as error:
        return unreadable_image(path, error)


def _named_twice(opened: Sequence[tuple[RawPicture, PictureFrame]]) -> list[Problem]:
    """A problem for each file that two entries of one name mean: one of the names was found elsewhere than it says."""
    entries: dict[Path, set[str]] = defaultdict(set)
    for picture, _ in opened:
        entries[picture.path].add(picture.image_id)
    return [
        Problem(
            "named_twice",
            str(path),
            f"{len(ids)} entries of the annotations mean this one picture: {', '.join(sorted(ids)[:3])}",
        )
        for path, ids in entries.items()
        if len(ids) > 1
    ]


def _classes(
    raw: RawDataset, pictures: Sequence[RawPicture]
) -> tuple[dict[str | int, int], tuple[str, ...], tuple[int, ...]]:
    """The class id of each label, the names, and the data set's own numbers."""
    if raw.classes is not None:
        numbers: dict[str | int, int] = {label: position for position, label in enumerate(raw.classes)}
        return numbers, tuple(raw.classes.values()), tuple(raw.classes)
    names = tuple(sorted({str(box.label) for picture in pictures for box in picture.boxes}))
    return {name: position for position, name in enumerate(names)}, names, tuple(range(1, len(names) + 1))


def _sample(
    raw: RawDataset,
    picture: RawPicture,
    frame: PictureFrame,
    numbers: dict[str | int, int],
    boxes_in: str,
    problems: list[Problem],
) -> tuple[Sample, int]:
    """The sample, and how many of the picture's rows were rejected."""
    height, width = frame.upright
    rows, places = [], []
    rejected = picture.rejected
    for box in picture.boxes:
        if box.label not in numbers:
            problems.append(
                Problem("unknown_class", box.place(), f"skipped a box of class {box.label}, which has no name")
            )
            rejected += 1
            continue
        rows.append((upright_box(raw, picture, box, frame, boxes_in), numbers[box.label], box.ignore))
        places.append(box)
    found: list[Problem] = []
    sample = make_sample(picture.image_id, picture.path, height, width, rows, lambda row: places[row].place(), found)
    # Swapped corners are one problem of the whole data set.
    problems += [problem for problem in found if problem.kind != "swapped"]
    return sample, rejected + len(rows) - len(sample.boxes)


def upright_box(
    raw: RawDataset, picture: RawPicture, box: RawBox, frame: PictureFrame, boxes_in: str
) -> tuple[float, ...]:
    """A box, x_min y_min x_max y_max in pixels of the upright picture, from what is written and ``boxes_in`` means."""
    x_min, y_min, x_max, y_max = box.corners
    if boxes_in == "corners" and raw.kind == "coco":
        # The reader has added width and height to the first corner.
        x_max, y_max = x_max - x_min, y_max - y_min
    if raw.fractions or boxes_in == "fractions":
        # The frame that fractions are of is the one that was annotated.
        height, width = frame.raw if boxes_in == "raw" else frame.upright
        x_min, y_min, x_max, y_max = x_min * width, y_min * height, x_max * width, y_max * height
    return move_box((x_min, y_min, x_max, y_max), picture, frame, boxes_in)


def _nothing_left(raw: RawDataset, problems: Sequence[Problem]) -> str:
    """Why nothing is left, in one sentence with the first reasons."""
    counts = Counter(problem.kind for problem in problems)
    first = "; ".join(f"{problem.where}: {problem.text.removesuffix('.')}" for problem in problems[:SHOWN_REASONS])
    more = f" and {len(problems) - SHOWN_REASONS} more" if len(problems) > SHOWN_REASONS else ""
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    searched = f"; pictures were looked for in {raw.searched}" if raw.searched and counts["missing_image"] else ""
    if not problems:
        return f"{raw.root} holds no picture with annotations{f' (looked in {raw.searched})' if raw.searched else ''}; check the folder."
    return f"{raw.root} has no usable picture left ({kinds}): {first}{more}{searched}."
