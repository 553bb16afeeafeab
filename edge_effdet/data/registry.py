"""Recognises the format of a data set and reads it."""

from __future__ import annotations

import importlib
import logging
import os
import stat
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Protocol, cast

from edge_effdet.data.assemble import assemble
from edge_effdet.data.base import PROBLEM_KINDS, Dataset, Problem
from edge_effdet.data.raw import Certainty, RawDataset
from edge_effdet.errors import DataError

logger = logging.getLogger(__name__)

_COUNTED_ONLY = frozenset({"outside", "duplicate"})
"""Problems by which no box and no image is lost: reading logs only how many there are, the data check lists them."""

_LOGGED_A_KIND = 10


READERS = {
    "coco": "edge_effdet.data.coco",
    "voc": "edge_effdet.data.voc",
    "yolo": "edge_effdet.data.yolo",
    "darknet": "edge_effdet.data.darknet",
    "createml": "edge_effdet.data.createml",
    "labelme": "edge_effdet.data.labelme",
    "csv": "edge_effdet.data.csv_file",
}
"""The module that reads each format. Of several that are equally sure, the first reads."""


class Reader(Protocol):
    """What each module in ``READERS`` offers."""

    TITLE: str
    """The format's name for people."""

    def recognises(self, path: Path) -> Certainty:
        """How sure the reader is that a file or folder is of its format, by its layout and the heads of its files. It never raises."""
        ...

    def read(self, path: Path) -> RawDataset:
        """Read annotations, without opening pictures. Raises DataError where nothing can be read at all."""
        ...


def get_reader(kind: str) -> Reader:
    """The module that reads a format."""
    return cast(Reader, importlib.import_module(READERS[kind]))


def read_dataset(path: str | PathLike[str], quiet: bool = False, boxes_in: str = "upright") -> Dataset:
    """Read a data set, recognising its format.

    >>> from edge_effdet import read_dataset
    >>> dataset = read_dataset("bccd")
    >>> names, images = dataset.class_names, dataset.splits["train"]

    Args:
        path: a file or a folder.
        quiet: do not log the notes and problems.
        boxes_in: in what the boxes are written, one of ``frames.BOXES_IN``.

    Raises:
        DataError: there is nothing at ``path``, its format is not known, or it has no usable image.
    """
    raw = read_raw(Path(path))
    try:
        dataset = assemble(raw, boxes_in)
    except DataError:
        if not quiet:
            _log_problems(raw.root, raw.problems)
        raise
    dataset = replace(dataset, problems=dataset.problems + _similar_class_names(dataset))
    if not quiet:
        _log_problems(dataset.root, dataset.problems)
        for note in dataset.notes:
            logger.info("%s", note)
    return dataset


def read_raw(path: Path) -> RawDataset:
    """What the reader of a data set finds in its annotations, before any picture is opened.

    Raises:
        DataError: there is nothing at ``path``, its format is not known, or nothing can be read at all.
    """
    try:
        kind_of = path.stat().st_mode
        if stat.S_ISDIR(kind_of):
            os.scandir(path).close()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"There is no data at {path}; check the path given.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{path} cannot be read ({reason}); see whether the path is right and who may read it."
        ) from error
    if not stat.S_ISDIR(kind_of) and not stat.S_ISREG(kind_of):
        raise DataError(f"{path} is a pipe or a device; give a file or a folder with the data.")
    certain = {kind: get_reader(kind).recognises(path) for kind in READERS}
    surest = max(certain.values())
    if surest == Certainty.NO:
        raise DataError(_unknown_format(path))
    kind = next(kind for kind, certainty in certain.items() if certainty == surest)
    raw = get_reader(kind).read(path)
    raw.notes += _not_read(path, kind, [other for other in certain if other != kind and certain[other]])
    return raw


def _unknown_format(path: Path) -> str:
    """What was looked for, and what is there."""
    formats = ", ".join(get_reader(kind).TITLE for kind in READERS)
    if path.is_dir():
        suffixes = Counter(file.suffix.lower() or "no suffix" for file in path.iterdir() if file.is_file())
        folders = sorted(each.name for each in path.iterdir() if each.is_dir())
        found = [f"{count} {suffix}" for suffix, count in suffixes.most_common(5)]
        found += [f"the folder{'s' if len(folders) > 1 else ''} {', '.join(folders[:5])}"] if folders else []
        holds = f"holds {', '.join(found)}" if found else "is empty"
    else:
        holds = f"is a {path.suffix or 'nameless'} file"
    return (
        f"{path} is no data set of a known format: it {holds}. The formats that are read are {formats}; docs/data.md shows how each "
        "is laid out."
    )


def _not_read(path: Path, kind: str, others: Sequence[str]) -> list[str]:
    """A note on each other format that is there too, and on JSON files that no format takes."""
    notes = [f"{path} holds files of {get_reader(other).TITLE} too, which are not read." for other in others]
    if path.is_dir() and kind not in ("coco", "createml", "labelme"):
        stray = sorted(file.name for file in path.glob("*.json"))
        if stray and not others:
            notes.append(f"{path}: {', '.join(stray[:3])}{' and more' if len(stray) > 3 else ''} is not read.")
    return notes


def _similar_class_names(dataset: Dataset) -> tuple[Problem, ...]:
    """Problems for classes that are most likely the same: their names differ only in case or spaces."""
    alike: dict[str, list[int]] = defaultdict(list)
    for index, name in enumerate(dataset.class_names):
        alike["".join(name.casefold().split())].append(index)
    groups = [group for group in alike.values() if len(group) > 1]
    if not groups:
        return ()
    samples = dataset.all_samples()
    counts = Counter(int(class_id) for sample in samples for class_id in sample.class_ids)
    problems: list[Problem] = []
    for group in groups:
        usual, *rare = sorted(group, key=lambda index: -counts[index])
        for index in rare:
            example = next((sample.path for sample in samples if index in sample.class_ids), dataset.root)
            text = (
                f"the class {dataset.class_names[index]!r} ({counts[index]} boxes) is not the class "
                f"{dataset.class_names[usual]!r} ({counts[usual]} boxes); rename it if it should be"
            )
            problems.append(Problem("class_names", str(example), text))
    return tuple(problems)


def _log_problems(root: Path, problems: Sequence[Problem]) -> None:
    """Log the first problems of each kind as warnings, and how many more there are."""
    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem)
    for kind, found in by_kind.items():
        shown = 0 if kind in _COUNTED_ONLY else _LOGGED_A_KIND
        for problem in found[:shown]:
            logger.warning("%s: %s", problem.where, problem.text)
        if len(found) > shown:
            logger.log(
                logging.WARNING if shown else logging.INFO,
                "%d%s of the kind %s (%s); python -m edge_effdet.data check %s lists them",
                len(found) - shown, " more" if shown else "", kind, PROBLEM_KINDS[kind], root,
            )  # fmt: skip
