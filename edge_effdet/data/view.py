"""A sheet of pictures with their boxes as they are annotated, those with problems first: on it a person sees boxes that lie in another frame."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from edge_effdet.artifacts import Size, printable, refuse_overwrite, require_writable_file
from edge_effdet.cli import progress
from edge_effdet.data.assemble import open_headers, upright_box
from edge_effdet.data.base import Problem, make_sample
from edge_effdet.data.frames import check_frames, compare_frame
from edge_effdet.data.patterns import find_patterns
from edge_effdet.data.raw import RawDataset, RawPicture
from edge_effdet.errors import DataError, UsageError
from edge_effdet.runtime.drawing import class_color, contact_sheet, draw_boxes, save_picture
from edge_effdet.runtime.images import PictureFrame, open_picture

MOST_TILES = 400
TILE: Size = (260, 340)
"""Height and width of a picture on the sheet, without its caption."""

_SUFFIXES = (".jpg", ".jpeg", ".png")
_CAPTION_FONT = 12
_LINES = 3
_BORDER = 6
_AROUND = 0.5
"""A box beyond the picture is shown as far as this share of the picture's sides."""

_GROUND = (235, 235, 235)
_BLACK = (0, 0, 0)
_WRONG = (225, 0, 0)
_WORST_FIRST = (
    *("declared_size", "fractions", "corners_as_size", "swapped", "not_finite", "degenerate", "unknown_class"),
    *("bad_row", "outside", "unreadable_image", "duplicate"),
)
"""The kinds of problems that a single picture shows, as ``PROBLEM_KINDS`` names them."""


@dataclass(frozen=True, slots=True)
class _Annotated:
    """The data set that is drawn.

    Attributes:
        raw, boxes_in: as ``draw_sheet`` gets them.
        frames: the frame of each picture that can be opened.
        names: the name of each class by its label.
        patterns: the kinds of mistakes that the whole data set shows.
    """

    raw: RawDataset
    boxes_in: str
    frames: Mapping[Path, PictureFrame]
    names: Mapping[str | int, str]
    patterns: Set[str]

    def boxes(self, picture: RawPicture) -> list[tuple[float, ...]]:
        """The boxes of a picture that can be opened, in pixels of the upright picture."""
        frame = self.frames[picture.path]
        return [upright_box(self.raw, picture, box, frame, self.boxes_in) for box in picture.boxes]


@dataclass(slots=True)
class _Findings:
    """What is wrong with a picture.

    Attributes:
        kinds: how often it shows each kind of problem.
        size: the declared and the real size, where they differ.
        boxes: the kind of problem of each box that has one, by its position.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    size: str = ""
    boxes: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sheet:
    """What was drawn.

    Attributes:
        output, root: the picture that was written, and the data set.
        pictures: the files on it in order, each with the kinds of its problems.
        of: number of pictures in the data set.
        with_problems: number of pictures that show each kind of problem.
    """

    output: Path
    root: Path
    pictures: Sequence[tuple[Path, tuple[str, ...]]]
    of: int
    with_problems: Mapping[str, int]

    def text(self) -> str:
        """The sheet as text for a person."""
        kinds = ", ".join(f"{count} with {kind}" for kind, count in self.with_problems.items())
        return (
            f"{self.output}: {len(self.pictures)} of the {self.of} pictures of {self.root}; {kinds or 'none shows a problem'}\n"
            f"python -m edge_effdet.data check {self.root} names every problem"
        )

    def to_dict(self) -> dict[str, Any]:
        """The sheet as an object for JSON."""
        return {
            "output": str(self.output),
            "data": str(self.root),
            "pictures": [{"path": str(path), "problems": list(kinds)} for path, kinds in self.pictures],
            "of": self.of,
            "with_problems": dict(self.with_problems),
        }


def draw_sheet(raw: RawDataset, output: Path, count: int = 24, boxes_in: str = "upright") -> Sheet:
    """Draw pictures with their boxes as they are annotated, also those that training leaves out, and write them as one picture.

    Pictures with problems come first, each kind with as many as any other. What room is left goes to the others, evenly over the splits.

    Args:
        raw: what the reader of the data set found (``registry.read_raw``).
        output: the picture to write, .jpg or .png.
        count: number of pictures on it, at most ``MOST_TILES``.
        boxes_in: one of ``frames.BOXES_IN``.

    Raises:
        UsageError: ``count`` or the suffix of ``output`` cannot be, or ``output`` lies in the data set.
        DataError: no picture of the data set is there.
        InputError: ``output`` cannot be written.
    """
    output = Path(output)
    if not 1 <= count <= MOST_TILES:
        raise UsageError(f"`count` {count} is not from 1 to {MOST_TILES}.")
    if output.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"`output` {output} is no .jpg and no .png; give a name that ends so.")
    refuse_overwrite([output], [raw.root])
    require_writable_file(output)
    frames = open_headers(raw, [])
    splits = {id(picture): split or "" for split, part in reversed(list(raw.parts)) for picture in part}
    pictures = list({id(picture): picture for _, part in raw.parts for picture in part}.values())
    if not pictures:
        first = "; ".join(f"{problem.where}: {problem.text}" for problem in raw.problems[:3])
        raise DataError(f"{raw.root} has no picture to draw{f' ({first})' if first else ''}; check the folder.")
    opened = [(picture, frames[picture.path]) for picture in pictures if picture.path in frames]
    check_frames(opened, boxes_in)
    patterns = {problem.kind for problem in find_patterns(raw, opened, boxes_in)}
    data = _Annotated(raw, boxes_in, frames, _class_names(raw, pictures), patterns)
    findings = {id(each): _find(data, each) for each in pictures}
    chosen = _choose(pictures, findings, splits, count)
    tiles = [
        _tile(data, each, findings[id(each)], splits[id(each)]) for each in progress(chosen, len(chosen), "drawing")
    ]
    columns = min(len(tiles), math.ceil(math.sqrt(len(tiles) * 1.4)))
    save_picture(output, contact_sheet(tiles, columns), quality=88)
    counts = Counter(kind for found in findings.values() for kind in found.kinds)
    return Sheet(
        output=output,
        root=raw.root,
        pictures=[(each.path, tuple(findings[id(each)].kinds)) for each in chosen],
        of=len(pictures),
        with_problems={kind: counts[kind] for kind in _WORST_FIRST if counts[kind]},
    )


def _class_names(raw: RawDataset, pictures: Sequence[RawPicture]) -> dict[str | int, str]:
    if raw.classes is not None:
        return {**raw.classes}
    return {name: name for name in sorted({str(box.label) for picture in pictures for box in picture.boxes})}


def _find(data: _Annotated, picture: RawPicture) -> _Findings:
    """What is wrong with a picture and its boxes, by the rules by which they are read."""
    found = _Findings()
    frame = data.frames.get(picture.path)
    if frame is None:
        found.kinds["unreadable_image"] += 1
        return found
    mismatch = compare_frame(picture.declared, frame) if picture.declared is not None else None
    if mismatch is not None and data.boxes_in != "declared" and (data.boxes_in, mismatch.kind) != ("raw", "turned"):
        found.kinds["declared_size"] += 1
        found.size = mismatch.text
    if picture.rejected:
        found.kinds["bad_row"] += picture.rejected
    numbers = {label: number for number, label in enumerate(data.names)}
    rows = [
        (corners, numbers.get(box.label, -1), box.ignore)
        for corners, box in zip(data.boxes(picture), picture.boxes, strict=True)
    ]
    problems: list[Problem] = []
    # The place of a box is its position here.
    make_sample(picture.image_id, picture.path, *frame.upright, rows, str, problems)
    found.boxes = {int(problem.where): problem.kind for problem in problems}
    for position, box in enumerate(picture.boxes):
        if box.label not in data.names:
            found.boxes[position] = "unknown_class"
        elif "fractions" in data.patterns and max(map(abs, box.corners)) <= 1:
            found.boxes[position] = "fractions"
        elif "corners_as_size" in data.patterns and found.boxes.get(position) == "outside":
            found.boxes[position] = "corners_as_size"
    found.kinds.update(found.boxes.values())
    return found


def _choose(
    pictures: Sequence[RawPicture], findings: Mapping[int, _Findings], splits: Mapping[int, str], count: int
) -> list[RawPicture]:
    """The worst pictures first, in which the kinds of problems share the room, and then the others of each split."""
    by_kind: dict[str, list[RawPicture]] = {kind: [] for kind in _WORST_FIRST}
    by_split: dict[str, list[RawPicture]] = defaultdict(list)
    for picture in pictures:
        kinds = findings[id(picture)].kinds
        if kinds:
            by_kind[min(kinds, key=_WORST_FIRST.index)].append(picture)
        else:
            by_split[splits[id(picture)]].append(picture)
    worst = _share([*by_kind.values()], count)
    return worst + _share([*by_split.values()], count - len(worst))


def _share(groups: Sequence[Sequence[RawPicture]], count: int) -> list[RawPicture]:
    """Up to ``count`` pictures, as many of each group as of any other where there are enough, each group's evenly spread."""
    shares = [0] * len(groups)
    for _ in range(count):
        open_ones = [index for index, group in enumerate(groups) if shares[index] < len(group)]
        if not open_ones:
            break
        shares[min(open_ones, key=shares.__getitem__)] += 1
    return [
        group[round(position)]
        for group, share in zip(groups, shares, strict=True)
        for position in np.linspace(0, len(group) - 1, share)
    ]


def _tile(data: _Annotated, picture: RawPicture, findings: _Findings, split: str) -> np.ndarray:
    """A picture with its boxes above its caption, uint8 [H, W, 3]."""
    try:
        drawn = _draw_picture(data, picture, findings.boxes)
    except DataError:
        # The header may be whole where the rest is not.
        findings.kinds["unreadable_image"] = 1
        drawn = np.full((*TILE, 3), _GROUND, np.uint8)
    lines: list[tuple[str, tuple[int, int, int]]] = [
        (f"{picture.path.name} ({split})" if split else picture.path.name, _BLACK)
    ]
    if findings.size:
        lines.append((findings.size, _WRONG))
    others = [kind for kind in _WORST_FIRST if findings.kinds[kind] and kind != "declared_size"]
    if others:
        lines.append((", ".join(f"{findings.kinds[kind]} {kind}" for kind in others), _WRONG))
    return np.concatenate([drawn, _caption(lines)])


def _draw_picture(data: _Annotated, picture: RawPicture, wrong: Mapping[int, str]) -> np.ndarray:
    """A picture scaled into a tile, with room for boxes that reach beyond it, uint8 [H, W, 3].

    Args:
        data: the data set.
        picture: the picture.
        wrong: the kind of problem of each box that has one, by its position.

    Raises:
        DataError: the picture cannot be decoded.
    """
    image, (height, width) = open_picture(picture.path, reduce_to=TILE)
    if picture.path not in data.frames:
        raise DataError(f"{picture.path} cannot be opened.")
    corners = np.array(data.boxes(picture)).reshape(-1, 2, 2)
    drawable = np.flatnonzero(np.isfinite(corners).all(axis=(1, 2)))
    low, high = corners[drawable].min(axis=1), corners[drawable].max(axis=1)
    size = np.array([width, height])
    first = np.maximum(np.vstack([[0, 0], low]).min(axis=0), -_AROUND * size)
    last = np.minimum(np.vstack([size, high]).max(axis=0), (1 + _AROUND) * size)
    room = np.array(TILE[::-1])
    scale = ((room - 2 * _BORDER) / (last - first)).min()
    origin = (room - (first + last) * scale) / 2
    canvas = Image.new("RGB", (TILE[1], TILE[0]), _GROUND)
    columns, rows = np.maximum(1, (size * scale).round()).astype(int).tolist()
    left, top = origin.round().astype(int).tolist()
    canvas.paste(image.resize((columns, rows), Image.Resampling.BICUBIC), (left, top))
    # What lies far beyond ends just outside of the tile.
    boxes = np.hstack([low, high]) * scale + np.tile(origin, 2)
    boxes = np.clip(boxes, -_BORDER, np.tile(room, 2) + _BORDER)
    # Those that are wrong lie above the others.
    order = sorted(range(len(drawable)), key=lambda row: drawable[row] in wrong)
    labels, colors = [], []
    # The first colour of classes is the red of what is wrong.
    for position in drawable[order].tolist():
        label = picture.boxes[position].label
        name = printable(data.names.get(label, str(label)))
        kind = wrong.get(position)
        labels.append(f"{name}: {kind}" if kind else name)
        colors.append(_WRONG if kind else class_color(1 + list(data.names).index(label)))
    return draw_boxes(np.asarray(canvas), boxes[order].tolist(), labels, colors)


def _caption(lines: Sequence[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    """Lines of text on white, each cut to the width of a tile, uint8 [H, W, 3]."""
    font = ImageFont.load_default(_CAPTION_FONT)
    step = _CAPTION_FONT + 4
    strip = Image.new("RGB", (TILE[1], _LINES * step + _BORDER), "white")
    brush = ImageDraw.Draw(strip)
    for number, (text, color) in enumerate(lines[:_LINES]):
        text = printable(text).replace("\n", " ")
        while text and brush.textlength(text, font=font) > TILE[1] - 2 * _BORDER:
            text = f"{text.rstrip('…')[:-1]}…"
        brush.text((_BORDER, number * step + 2), text, fill=color, font=font)
    return np.asarray(strip)
