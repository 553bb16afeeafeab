"""What a report is made of when people read it: the page and the Markdown file write the same blocks, each in its own language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Prose:
    """A paragraph.

    Attributes:
        text: one sentence or more.
        quiet: whether it is a remark that one may skip.
        title: what it is about, as a heading above it; empty for none.
    """

    text: str
    quiet: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list.

    Attributes:
        items: a sentence each.
        numbered: whether the text elsewhere refers to the items by their numbers, from 1.
        title: what the list is; empty for none.
    """

    items: tuple[str, ...]
    numbered: bool = False
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A table.

    Attributes:
        caption: what the table shows.
        head: the name of each column.
        rows: the cells of each row, as many as the head has but for those of ``across``.
        numbers: the columns that hold figures, counted from 0.
        groups: names above several columns: the name, empty for none, and over how many columns; empty for no such line.
        across: the indices of the rows whose last cell takes the place of all columns that are left.
        picked: the index of the row that stands out; null for none.
        cards: whether each row becomes a card where the screen is narrow, in place of a table that one has to push sideways.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: frozenset[int] = frozenset()
    groups: tuple[tuple[str, int], ...] = ()
    across: frozenset[int] = frozenset()
    picked: int | None = None
    cards: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """Names and what they are.

    Attributes:
        title: what the facts are about; empty for none.
        items: the name and the value of each fact.
    """

    title: str
    items: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Command:
    """Lines for a terminal.

    Attributes:
        text: the lines.
    """

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart. Markdown has its figures instead.

    Attributes:
        kind: a name of ``charts.DRAWINGS``.
        label: what the chart shows, for those who cannot see it.
        caption: how to read it.
        row: the name of the only row that it shows; null where it shows all.
        legend: ``rows`` (a sample of each row's line and marker), ``stages``, or empty for none.
        figures: the figures that the chart shows; null where another table has them.
    """

    kind: str
    label: str
    caption: str
    row: str | None = None
    legend: str = ""
    figures: Grid | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """A photograph.

    Attributes:
        jpeg: a JPEG file in base64.
        alt: what is to be seen, for those who cannot see it.
        caption: what to look for.
    """

    jpeg: str
    alt: str
    caption: str


Block = Prose | Bullets | Grid | Facts | Command | Chart | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A section of the report.

    Attributes:
        anchor: the name by which a link reaches it.
        title: its heading.
        blocks: what stands in it.
    """

    anchor: str
    title: str
    blocks: tuple[Block, ...]


def without_empty_columns(grid: Grid) -> Grid:
    """The table without the columns that hold nothing but dashes."""
    whole = [row for index, row in enumerate(grid.rows) if index not in grid.across]
    kept = [index for index in range(len(grid.head)) if not whole or any(row[index] != DASH for row in whole)]
    return Grid(
        caption=grid.caption,
        head=_pick(grid.head, kept),
        # A row that ends early has its last cell after the columns that every row fills.
        rows=tuple(row if index in grid.across else _pick(row, kept) for index, row in enumerate(grid.rows)),
        numbers=frozenset(new for new, old in enumerate(kept) if old in grid.numbers),
        groups=_narrowed(grid.groups, kept),
        across=grid.across,
        picked=grid.picked,
        cards=grid.cards,
    )


DASH = "-"
"""What a cell holds where nothing was measured."""


def _pick(cells: Sequence[str], kept: Sequence[int]) -> tuple[str, ...]:
    return tuple(cells[index] for index in kept)


def _narrowed(groups: tuple[tuple[str, int], ...], kept: Sequence[int]) -> tuple[tuple[str, int], ...]:
    """The names above the columns, each over those of its columns that are left."""
    narrowed, start = [], 0
    for name, width in groups:
        left = sum(start <= index < start + width for index in kept)
        narrowed += [(name, left)] if left else []
        start += width
    return tuple(narrowed)
