"""The data check: what is in a data set, what is wrong with it, and whether the anchors fit its boxes."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import AnchorSpec, Size, file_sha256
from edge_effdet.cli import progress, table
from edge_effdet.data.anchors import AnchorAdvice, anchor_bases, best_levels, suggest_anchors
from edge_effdet.data.base import PROBLEM_KINDS, Dataset, Problem, Sample, unreadable_image
from edge_effdet.data.registry import get_reader
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.preprocess import letterbox_size

SHOWN_A_KIND = 20
SMALL_SHARE = 0.2
"""If a larger share of the boxes is smaller than every anchor, the text advises a larger input."""

_SPLIT_ORDER = ("train", "val", "test")

USUAL_INPUT: Size = (320, 320)
"""The input of ``tf_efficientdet_lite0``, the model that training takes by default."""


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """One split in numbers. ``boxes`` and ``by_class`` leave out ignored boxes (crowd, difficult)."""

    images: int
    images_without_boxes: int
    boxes: int
    ignored: int
    by_class: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LevelCount:
    """How many boxes the anchors of one pyramid level fit best, and the sides of its square anchors in pixels of the input."""

    level: int
    smallest_anchor: float
    largest_anchor: float
    boxes: int


@dataclass(frozen=True, slots=True)
class DataReport:
    """What the check found.

    Attributes:
        root, kind, exporter, class_names: the data set, as in ``Dataset``.
        image_size: height and width of the network's input, in whose pixels boxes are measured.
        images: number of images, each counted once.
        splits: the counts of each split, by name.
        smallest_image, largest_image: (height, width) of the images with the least and the most pixels.
        levels: the boxes of each pyramid level.
        below_smallest: number of boxes whose sqrt(area) is smaller than the smallest anchor.
        duplicates: groups of (split, path) of images with the same bytes in more than one split.
        problems: the data set's problems and, with ``decode``, the images that cannot be decoded.
        notes: the data set's notes.
        decoded: number of images that were decoded; None without ``decode``.
        anchors: the suggested anchors; None for too few boxes.
    """

    root: Path
    kind: str
    exporter: str
    class_names: tuple[str, ...]
    image_size: Size
    images: int
    splits: Mapping[str, SplitCounts]
    smallest_image: Size
    largest_image: Size
    levels: tuple[LevelCount, ...]
    below_smallest: int
    duplicates: tuple[tuple[tuple[str, Path], ...], ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    decoded: int | None
    anchors: AnchorAdvice | None

    def to_dict(self) -> dict[str, Any]:
        """The report as an object for JSON."""
        return {
            "data": str(self.root),
            "format": self.kind,
            "exporter": self.exporter or None,
            "classes": list(self.class_names),
            "image_size": list(self.image_size),
            "images": self.images,
            "splits": {name: asdict(counts) for name, counts in self.splits.items()},
            "smallest_image": list(self.smallest_image),
            "largest_image": list(self.largest_image),
            "levels": [asdict(level) for level in self.levels],
            "boxes_below_smallest_anchor": self.below_smallest,
            "duplicates": [[{"split": name, "path": str(path)} for name, path in group] for group in self.duplicates],
            "problems": [asdict(problem) for problem in self.problems],
            "notes": list(self.notes),
            "decoded": self.decoded,
            "anchors": self.anchors.to_dict() if self.anchors else None,
        }


def check_dataset(
    dataset: Dataset,
    image_size: Size = USUAL_INPUT,
    split: str | None = None,
    decode: bool = False,
    anchors: AnchorSpec | None = None,
) -> DataReport:
    """Count what a data set holds, and compare its boxes with anchors.

    Args:
        dataset: the data set, as ``read_dataset`` returns it.
        image_size: height and width of the network's input; by default that of the model that ``train`` takes by default.
        split: count this split only; None for all. Problems are always those of the whole data set.
        decode: decode each image, to find damaged ones whose header is whole.
        anchors: the anchors to compare the boxes with; None for the default ones.

    Raises:
        DataError: there is no such split, or it is empty.
    """
    anchors = anchors or AnchorSpec()
    # Splits with well-known names come first, in their usual order.
    names = sorted(dataset.splits, key=lambda name: (name not in _SPLIT_ORDER, *map(name.__ne__, _SPLIT_ORDER)))
    splits = {name: dataset.splits[name] for name in names}
    samples = dataset.all_samples()
    if split is not None:
        name, samples = dataset.choose_split(split, ())
        splits = {name: samples}
    sides = _input_sides(samples, image_size)
    sizes = np.sqrt(sides.prod(axis=1))
    levels = best_levels(sizes, anchors)
    bases = anchor_bases(anchors)
    image_sizes = sorted(
        {(sample.height, sample.width) for sample in samples}, key=lambda size: (math.prod(size), size)
    )
    broken = _decode(samples) if decode else ()
    return DataReport(
        root=dataset.root,
        kind=dataset.kind,
        exporter=dataset.exporter,
        class_names=dataset.class_names,
        image_size=image_size,
        images=len(samples),
        splits={name: _count(members, dataset.class_names) for name, members in splits.items()},
        smallest_image=image_sizes[0],
        largest_image=image_sizes[-1],
        levels=tuple(
            LevelCount(level, float(row[0]), float(row[-1]), int((levels == level).sum()))
            for level, row in zip(range(anchors.min_level, anchors.max_level + 1), bases, strict=True)
        ),
        below_smallest=int((sizes < bases[0, 0]).sum()),
        duplicates=_duplicates(dataset, split),
        problems=dataset.problems + broken,
        notes=dataset.notes,
        decoded=len(samples) if decode else None,
        anchors=suggest_anchors(sides, anchors),
    )


def report_text(report: DataReport) -> str:
    """The report as text for a person."""
    sections = [
        _heading(report),
        _split_table(report),
        _class_table(report),
        _size_table(report),
        _anchor_text(report),
        _duplicate_text(report),
        _problem_text(report),
    ]
    return "\n\n".join(section for section in sections if section)


def _count(samples: Sequence[Sample], class_names: Sequence[str]) -> SplitCounts:
    counted = Counter(int(class_id) for sample in samples for class_id in sample.class_ids[~sample.ignore])
    return SplitCounts(
        images=len(samples),
        images_without_boxes=sum(len(sample.boxes) == 0 for sample in samples),
        boxes=sum(counted.values()),
        ignored=sum(int(sample.ignore.sum()) for sample in samples),
        by_class={name: counted[index] for index, name in enumerate(class_names)},
    )


def _input_sides(samples: Sequence[Sample], image_size: Size) -> np.ndarray:
    """Width and height of each trainable box in pixels of the network's input, float64 [N, 2]."""
    sides = []
    for sample in samples:
        boxes = sample.boxes[~sample.ignore].astype(np.float64)
        sides.append((boxes[:, 2:] - boxes[:, :2]) * letterbox_size(sample.height, sample.width, image_size)[2])
    return np.concatenate(sides)


def _decode(samples: Sequence[Sample]) -> tuple[Problem, ...]:
    faults = ((sample.path, _decoding_fault(sample)) for sample in progress(samples, len(samples), "decoding"))
    return tuple(unreadable_image(path, fault) for path, fault in faults if fault)


def _decoding_fault(sample: Sample) -> DataError | None:
    try:
        read_image(sample.path)
    except DataError as error:
        return error
    return None


def _duplicates(dataset: Dataset, split: str | None) -> tuple[tuple[tuple[str, Path], ...], ...]:
    """Groups of files with the same bytes in different splits. Only files of equal length are read."""
    # Pascal VOC's split trainval is train and val together.
    hidden = {"trainval"} if {"train", "val"} & dataset.splits.keys() else set()
    by_size: dict[int, set[tuple[str, Path]]] = defaultdict(set)
    for name, samples in dataset.splits.items():
        for sample in samples:
            if name not in hidden and sample.path.is_file():
                by_size[sample.path.stat().st_size].add((name, sample.path))
    groups: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for places in by_size.values():
        if len({name for name, _ in places}) > 1:
            hashes = {path: file_sha256(path) for path in {path for _, path in places}}
            for name, path in sorted(places):
                groups[hashes[path]].append((name, path))
    found = [tuple(group) for group in groups.values() if len({name for name, _ in group}) > 1]
    return tuple(sorted(group for group in found if split in (None, "all") or split in {name for name, _ in group}))


def _heading(report: DataReport) -> str:
    boxes = sum(level.boxes for level in report.levels)
    counts = (
        _counted(len(report.class_names), "class", "classes"),
        _counted(report.images, "image", "images"),
        _counted(boxes, "box", "boxes"),
    )
    least, most = report.smallest_image, report.largest_image
    span = f"all {_size(least)}" if least == most else f"{_size(least)} to {_size(most)}"
    title = get_reader(report.kind).TITLE
    lines = [f"{report.root}: {title}, {', '.join(counts)}", f"image sizes (height x width): {span}"]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def _split_table(report: DataReport) -> str:
    rows: list[Sequence[str]] = [("split", "images", "without boxes", "boxes", "crowd or difficult")]
    for name, counts in report.splits.items():
        numbers = (counts.images, counts.images_without_boxes, counts.boxes, counts.ignored)
        rows.append((name, *map(str, numbers)))
    return table(rows)


def _class_table(report: DataReport) -> str:
    totals = Counter(
        {name: sum(counts.by_class[name] for counts in report.splits.values()) for name in report.class_names}
    )
    rows = [("boxes a class", *report.splits)]
    for name, total in totals.most_common():
        if total:
            rows.append((name, *(str(counts.by_class[name]) for counts in report.splits.values())))
    empty = [name for name in report.class_names if not totals[name]]
    text = table(rows)
    if empty:
        text += f"\n{_counted(len(empty), 'class has', 'classes have')} no box: {', '.join(empty)}"
    return text


def _size_table(report: DataReport) -> str:
    total = sum(level.boxes for level in report.levels)
    if not total:
        return ""
    rows = [(f"level at {_size(report.image_size)}", "anchors (px)", "boxes", "share")]
    for level in report.levels:
        span = f"{level.smallest_anchor:.0f} to {level.largest_anchor:.0f}"
        rows.append((f"P{level.level}", span, str(level.boxes), f"{100 * level.boxes / total:.1f} %"))
    share = report.below_smallest / total
    smaller = _counted(report.below_smallest, "box is", "boxes are") if report.below_smallest else "no box is"
    text = f"{smaller} smaller than the smallest anchor ({report.levels[0].smallest_anchor:.0f} px)"
    if report.below_smallest:
        text += f": {100 * share:.1f} %"
    if share > SMALL_SHARE:
        text += "; a larger `image_size` or smaller anchors would help them"
    return f"{table(rows)}\n{text}"


def _anchor_text(report: DataReport) -> str:
    advice = report.anchors
    if advice is None:
        return "anchors: too few boxes to suggest any"
    lines = [
        f"anchors: {_anchors_shown(advice.default)} (default): mean best IoU with the boxes {advice.default_iou:.3f}",
        f"         {_anchors_shown(advice.suggested)} (suggested): {advice.suggested_iou:.3f}",
    ]
    gain = advice.suggested_iou - advice.default_iou
    if advice.default_is_good_enough:
        lines.append(f"         the default is good enough: the difference is {gain:.3f}")
    else:
        ratios = ",".join(f"{width:g}x{height:g}" for width, height in advice.suggested.aspect_ratios)
        flags = f"--anchor-scale {advice.suggested.anchor_scale:g} --aspect-ratios {ratios}"
        if report.image_size != USUAL_INPUT and all(side % 32 == 0 for side in report.image_size):
            # They suit the boxes in an input of this size alone. No network has one of other sizes.
            flags += f" --image-size {_size(report.image_size)}"
        lines.append(
            f"         the suggested anchors fit better by {gain:.3f}: train with python -m edge_effdet.train {flags}"
        )
    return "\n".join(lines)


def _anchors_shown(spec: AnchorSpec) -> str:
    ratios = ", ".join(f"{width:g}x{height:g}" for width, height in spec.aspect_ratios)
    return f"scale {spec.anchor_scale:g}, ratios {ratios}"


def _duplicate_text(report: DataReport) -> str:
    if not report.duplicates:
        return "no image is in two splits" if len(report.splits) > 1 else ""
    lines = [f"{_counted(len(report.duplicates), 'image is', 'images are')} in two splits, byte for byte:"]
    for group in report.duplicates[:SHOWN_A_KIND]:
        # One of each split: frames of a camera that saw the same for hours would make a line without end.
        firsts = dict(reversed(group))
        others = len(group) - len(firsts)
        shown = " = ".join(f"{firsts[name]} ({name})" for name in sorted(firsts))
        lines += [f"  {shown}" + (f" and {others} more of them" if others else "")]
    return "\n".join(lines + _more(len(report.duplicates)))


def _problem_text(report: DataReport) -> str:
    decoded = "" if report.decoded is None else f" ({_counted(report.decoded, 'image', 'images')} decoded)"
    if not report.problems:
        return f"no problems{decoded}"
    order = list(PROBLEM_KINDS)
    lines = [f"{_counted(len(report.problems), 'problem', 'problems')}{decoded}"]
    ordered = sorted(report.problems, key=lambda problem: order.index(problem.kind))
    for kind, members in groupby(ordered, key=lambda problem: problem.kind):
        found = list(members)
        lines.append(f"{kind}, {len(found)} ({PROBLEM_KINDS[kind]})")
        lines += [f"  {problem.where}: {problem.text}" for problem in found[:SHOWN_A_KIND]]
        lines += _more(len(found))
    return "\n".join(lines)


def _size(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _more(count: int) -> list[str]:
    return [f"  and {count - SHOWN_A_KIND} more; `json` lists all"] if count > SHOWN_A_KIND else []


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
