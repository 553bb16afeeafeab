"""What all charts of a report have in common: their size, how an engine is drawn in each, and how names are set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_effdet.benchmarking.record import Report, Row
from edge_effdet.benchmarking.report.figures import shortened, shown
from edge_effdet.benchmarking.report.svg import INK, MUTED, row_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 880, 358
"""Widths of a chart in pixels, on a desktop and on a telephone."""

XY = tuple[float, float]
"""A place in the units of a chart's axes."""

MOST_NAMED = 8
"""The names of so many engines have room beside their markers; more are in the legend alone."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
DASHES: tuple[Any, ...] = (
    "-",
    (0, (5, 2)),
    (0, (1.5, 1.5)),
    (0, (7, 2, 1.5, 2)),
    (0, (3, 1)),
    (0, (7, 2, 1.5, 2, 1.5, 2)),
)
"""Markers and lines of the engines, which are to be told apart without colours too."""


@dataclass(frozen=True, slots=True)
class Look:
    """How an engine is drawn, the same in all charts.

    Attributes:
        color: the colour of its lines and markers.
        marker: matplotlib's name of its marker.
        dashes: matplotlib's style of its lines.
    """

    color: str
    marker: str
    dashes: Any


@dataclass(frozen=True, slots=True)
class Sketch:
    """What a chart is drawn from and on.

    Attributes:
        report: the report.
        row: the only engine that is shown; null where all are.
        figure: matplotlib's figure.
        width: its width in pixels.
    """

    report: Report
    row: Row | None
    figure: Figure
    width: int

    @property
    def wide(self) -> bool:
        """Whether it is for a desktop."""
        return self.width == WIDE

    def resize(self, height: float) -> None:
        """Give the figure its height in pixels."""
        self.figure.set_size_inches(self.width / 72, height / 72)


def look(report: Report, row: Row) -> Look:
    """How an engine is drawn."""
    index = next(index for index, each in enumerate(report.rows) if each is row)
    return Look(row_color(index), MARKERS[index % len(MARKERS)], DASHES[index % len(DASHES)])


_PLACES = (
    ("left", "center", 10, 0),
    ("right", "center", -10, 0),
    *(
        (ha, va, dx, dy)
        for dy in (8, 22, 36)
        for ha, dx in (("left", 8), ("right", -8))
        for va, dy in (("bottom", dy), ("top", -dy))
    ),
    *(("center", va, 0, dy) for va, dy in (("bottom", 12), ("top", -12))),
)
"""Where a point's name may stand: how it is aligned, and how many pixels from the point."""


def label_points(axes: Axes, places: Sequence[XY], names: Sequence[str], lines: Sequence[tuple[XY, XY]]) -> None:
    """Write a name beside each point, where it covers no other name, no point and no line, as far as there is such a place.

    Args:
        axes: what is drawn on, all but the names.
        places: the points.
        names: their names.
        lines: horizontal and vertical lines, by both ends.
    """
    axes.figure.draw_without_rendering()  # pyright: ignore[reportAttributeAccessIssue]
    area = axes.get_window_extent()
    points_at = [axes.transData.transform(place) for place in places]
    taken = [(x - 7, y - 7, x + 7, y + 7) for x, y in points_at]
    for ends in lines:
        (x0, y0), (x1, y1) = axes.transData.transform(ends)
        taken.append((min(x0, x1) - 1, min(y0, y1) - 1, max(x0, x1) + 1, max(y0, y1) + 1))
    for (x, y), place, name in zip(points_at, places, names, strict=True):
        wide, high = 6.6 * len(name), 14

        def cost(
            choice: tuple[str, str, int, int], x: float = x, y: float = y, wide: float = wide, high: float = high
        ) -> float:
            left, bottom = _corner(choice, x, y, wide, high)
            box = (left, bottom, left + wide, bottom + high)
            outside = (
                max(0.0, area.x0 - box[0])
                + max(0.0, box[2] - area.x1)
                + max(0.0, area.y0 - box[1])
                + max(0.0, box[3] - area.y1)
            )
            return 10 * outside + sum(_overlap(box, other) for other in taken)

        ha, va, dx, dy = best = min(_PLACES, key=cost)
        left, bottom = _corner(best, x, y, wide, high)
        taken.append((left, bottom, left + wide, bottom + high))
        text = axes.annotate(name, place, (dx, dy), textcoords="offset points", ha=ha, va=va)
        # The axes must not shrink for a name that found no room.
        text.set_in_layout(False)


def _corner(choice: tuple[str, str, int, int], x: float, y: float, wide: float, high: float) -> tuple[float, float]:
    ha, va, dx, dy = choice
    left = x + dx - {"left": 0.0, "center": wide / 2, "right": wide}[ha]
    return left, y + dy - {"bottom": 0.0, "center": high / 2, "top": high}[va]


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    return max(0.0, min(one[2], other[2]) - max(one[0], other[0])) * max(
        0.0, min(one[3], other[3]) - max(one[1], other[1])
    )


def named_lines(sketch: Sketch, names: Sequence[str], height: float, gap: float = 11) -> Axes:
    """Axes with a horizontal line for each name, from 0 at the top, and the name above it, where it may be longer than beside it."""
    axes = sketch.figure.add_subplot()
    sketch.resize(height * len(names) + 48)
    axes.set_ylim(len(names) - 0.6, -0.75)
    axes.set_yticks([])
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    for position, name in enumerate(names):
        above_line(axes, position, shortened(shown(name), 60 if sketch.wide else 22), gap=gap)
    return axes


def above_line(axes: Axes, position: float, text: str, right: bool = False, gap: float = 11) -> None:
    place = (1 if right else 0, position)
    # Beside its data, in fractions of the axes' width.
    across = axes.get_yaxis_transform()
    color = MUTED if right else INK
    axes.annotate(
        text, place, (0, gap), xycoords=across, textcoords="offset points", ha="right" if right else "left", color=color
    )


def plain_ticks(axis: Any) -> None:
    """Ticks of a logarithmic axis as plain numbers; matplotlib's own are formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 1000 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
