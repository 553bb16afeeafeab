"""Recognises the format of a data set and reads it."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

from edge_effdet.data.base import PROBLEM_KINDS, Dataset, Problem
from edge_effdet.errors import DataError

logger = logging.getLogger(__name__)

_COUNTED_ONLY = frozenset({"outside", "duplicate"})
"""Problems by which no box and no image is lost: reading logs only how many there are, the data check lists them."""

_LOGGED_A_KIND = 10


def read_dataset(path: Path, quiet: bool = False) -> Dataset:
    """Read a data set, recognising its format.

    Args:
        path: a file or a folder.
        quiet: do not log the notes and problems.

    Raises:
        DataError: there is nothing at ``path``, its format is not known, or it has no usable image.
    """
    from edge_effdet.data import coco, csv_file, voc, yolo

    path = Path(path)
    if not path.exists():
        raise DataError(f"There is no data at {path}; check the path given.")
    reader = next((reader for reader in (coco, voc, yolo, csv_file) if reader.recognises(path)), None)
    if reader is None:
        raise DataError(
            f"{path} is no data set of a known format: expected COCO (a JSON file or its folder), Pascal VOC (a folder with "
            "Annotations beside JPEGImages), YOLO (a data.yaml or its folder) or CSV (a file or its folder, with the header "
            "image_id,x_min,y_min,x_max,y_max,label[,fold])."
        )
    dataset = reader.read(path)
    dataset = replace(dataset, problems=dataset.problems + _similar_class_names(dataset))
    if not quiet:
        _log_problems(dataset)
    if not any(dataset.splits.values()):
        raise DataError(f"{path} holds annotations but none of their images; put the images beside them.")
    if not quiet:
        for note in dataset.notes:
            logger.info("%s", note)
    return dataset


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


def _log_problems(dataset: Dataset) -> None:
    """Log the first problems of each kind as warnings, and how many more there are."""
    by_kind: dict[str, list[Problem]] = defaultdict(list)
    for problem in dataset.problems:
        by_kind[problem.kind].append(problem)
    for kind, found in by_kind.items():
        shown = 0 if kind in _COUNTED_ONLY else _LOGGED_A_KIND
        for problem in found[:shown]:
            logger.warning("%s: %s", problem.where, problem.text)
        if len(found) > shown:
            logger.log(
                logging.WARNING if shown else logging.INFO,
                "%d%s of the kind %s (%s); python -m edge_effdet.data check %s lists them",
                len(found) - shown, " more" if shown else "", kind, PROBLEM_KINDS[kind], dataset.root,
            )  # fmt: skip
