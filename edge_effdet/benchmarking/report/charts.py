"""The charts of a report, drawn by matplotlib as SVG that takes the colours of the page."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any

from edge_effdet.benchmarking.record import Peaks, Report, Row, Sustained
from edge_effdet.benchmarking.report.blocks import Chart
from edge_effdet.benchmarking.report.evidence_sections import listed_classes
from edge_effdet.benchmarking.report.figures import digits, shortened, shown
from edge_effdet.benchmarking.report.network_section import NAMED_LAYERS, attained, longest
from edge_effdet.benchmarking.report.sketch import (
    MOST_NAMED,
    NARROW,
    WIDE,
    Sketch,
    above_line,
    label_points,
    look,
    named_lines,
    plain_ticks,
)
from edge_effdet.benchmarking.report.speed_sections import contended, front, latency_ms
from edge_effdet.benchmarking.report.svg import (
    INK,
    LINE,
    MUTED,
    SHADE_DARK,
    SHADE_LIGHT,
    SURFACE,
    inline_svg,
    precision_color,
    stage_color,
    stage_ink,
)
from edge_effdet.errors import MissingDependency

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def chart_svg(report: Report, chart: Chart, prefix: str) -> str:
    """A chart as two SVG elements, of which the page shows the one for the width of the screen.

    Args:
        report: the report.
        chart: which chart.
        prefix: what the ids in it begin with, other than those of any other chart on the page.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    row = next((row for row in report.rows if row.name == chart.row), None)
    return "".join(
        _drawn(report, row, chart, f"{prefix}-{name}", width, name)
        for name, width in (("wide", WIDE), ("narrow", NARROW))
    )


def _drawn(report: Report, row: Row | None, chart: Chart, prefix: str, width: int, name: str) -> str:
    with _settings():
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        # Not pyplot, which keeps figures and picks a backend for the whole process. A point is a pixel.
        figure = Figure(dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        DRAWINGS[chart.kind](Sketch(report, row, figure, width))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return inline_svg(file.getvalue(), prefix, shown(chart.label), width, f"chart {name}")


@contextmanager
def _settings() -> Iterator[None]:
    """Matplotlib's settings for these charts, whatever the user's own are, which are put back afterwards."""
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "benchmark", "to draw the charts of a report") from error
    with matplotlib.rc_context(), warnings.catch_warnings():
        # Its font may lack a letter of a name; the browser has others.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "edge-effdet",
    "text.parse_math": False,
    "text.color": INK,
    "font.size": 12,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": MUTED,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "legend.frameon": False,
    "lines.linewidth": 2,
}


def _draw_tradeoff(sketch: Sketch) -> None:
    axes = sketch.figure.add_subplot()
    sketch.resize(400 if sketch.wide else 340)
    known = [
        (row, ms, row.quality) for row in sketch.report.rows if row.quality and (ms := latency_ms(row)) is not None
    ]
    best = [(latency_ms(row) or 0.0, 100 * row.quality.AP) for row in front(sketch.report.rows) if row.quality]
    slowest = max(ms for _, ms, _ in known)
    end = 1.15 * slowest
    steps = [(ms, ap) for ms, ap in best]
    corners = [steps[0]]
    for (_, ap), (ms, higher) in pairwise(steps):
        corners += [(ms, ap), (ms, higher)]
    corners.append((end, steps[-1][1]))
    axes.plot(*zip(*corners, strict=True), color=MUTED, lw=1.2, ls=(0, (4, 3)))
    lines = list(pairwise(corners))
    for row, ms, quality in known:
        own, ap = look(sketch.report, row), 100 * quality.AP
        single = row.scenario("SingleStream")
        p50 = single and single.p50_ms
        bars = [((p50.low, ap), (p50.high, ap))] if p50 else []
        if quality.drop is not None and quality.drop_interval:
            reference = ap + quality.drop
            bars.append(((ms, reference - quality.drop_interval[1]), (ms, reference - quality.drop_interval[0])))
        for bar in bars:
            axes.plot(*zip(*bar, strict=True), color=own.color, lw=1.2)
        axes.plot(ms, ap, own.marker, color=own.color, ms=10, mec=SURFACE, mew=1.5)
        lines += bars
    if slowest > 8 * min(ms for _, ms, _ in known):
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
    else:
        axes.set_xlim(0, end)
    low, high = axes.get_ylim()
    # Two points at least, so that a difference of nothing does not fill the picture.
    room = max(0.0, 2 - (high - low)) / 2
    axes.set_ylim(low - room, high + room)
    axes.set_xlabel("median latency of an image, ms")
    axes.set_title("AP, points")
    if sketch.wide and len(known) <= MOST_NAMED:
        names = [shortened(shown(row.name), 30) for row, _, _ in known]
        label_points(axes, [(ms, 100 * quality.AP) for _, ms, quality in known], names, lines)


def _draw_latency(sketch: Sketch) -> None:
    known = [
        (row, single) for row in sketch.report.rows if (single := row.scenario("SingleStream")) and single.quantiles_ms
    ]
    axes = named_lines(sketch, [row.name for row, _ in known], 56)
    end = 0.0
    for position, (row, single) in enumerate(known):
        own, quantiles = look(sketch.report, row), single.quantiles_ms
        shown = [50, 90, *([99] if single.p99_ms else [])]
        values = [quantiles[each] for each in shown]
        end = max(end, *values)
        axes.plot([quantiles[1], values[-1]], [position] * 2, color=own.color, lw=1.5)
        axes.plot(
            [quantiles[25], quantiles[75]], [position] * 2, color=own.color, lw=9, alpha=0.35, solid_capstyle="butt"
        )
        for value, marker, size in zip(values, (own.marker, "|", "|"), (9, 14, 14), strict=False):
            axes.plot(
                value,
                position,
                marker,
                color=own.color,
                ms=size,
                mew=2.5 if marker == "|" else 1,
                mec=own.color if marker == "|" else SURFACE,
            )
        figures = [
            f"P{each} {digits(value)}" if sketch.wide else digits(value)
            for each, value in zip(shown, values, strict=True)
        ]
        above_line(axes, position, f"{(',  ' if sketch.wide else ' / ').join(figures)} ms", right=True)
    axes.set_xlim(0, 1.05 * end)
    axes.set_xlabel("latency of an image, ms" if sketch.wide else "latency of an image, ms: P50 / P90 / P99")


def _draw_stages(sketch: Sketch) -> None:
    known = [row for row in sketch.report.rows if row.stages]
    order = stage_names(sketch.report)
    axes = named_lines(sketch, [row.name for row in known], 60, gap=15)
    total = max(sum(stage.median_ms for stage in row.stages) for row in known)
    for position, row in enumerate(known):
        start = 0.0
        for stage in row.stages:
            index, width = order.index(stage.name), stage.median_ms
            axes.barh(position, width, 0.4, left=start, color=stage_color(index), edgecolor=SURFACE, linewidth=1)
            if width / total * sketch.width > 40:
                axes.text(
                    start + width / 2,
                    position + 0.01,
                    digits(width),
                    ha="center",
                    va="center",
                    color=stage_ink(index),
                    fontsize=11,
                )
            start += width
        above_line(axes, position, f"{digits(start)} ms", right=True, gap=15)
    axes.set_xlim(0, 1.02 * total)
    axes.set_xlabel("median time, ms")


def stage_names(report: Report) -> list[str]:
    """The stages of all engines, in the order in which they run."""
    return list(dict.fromkeys(stage.name for row in report.rows for stage in row.stages))


def _draw_sustained(sketch: Sketch) -> None:
    row = sketch.row
    assert row and row.sustained
    run = row.sustained
    windows, own = run.windows, look(sketch.report, row)
    unit, name = (60.0, "minutes") if run.seconds >= 180 else (1.0, "seconds")
    times = [(window.start_s + window.seconds / 2) / unit for window in windows]
    panels: list[tuple[str, list[float | None]]] = [("latency, ms", [window.p50_ms for window in windows])]
    panels.append(("images a second", [window.rate for window in windows]))
    for title, field in (
        ("processor clock, MHz", "cpu_mhz"),
        ("processor temperature, °C", "cpu_c"),
        ("GPU clock, MHz", "gpu_mhz"),
        ("GPU temperature, °C", "gpu_c"),
        ("power, W", "power_w"),
    ):
        values = [getattr(window.reading, field) for window in windows]
        panels += [(title, values)] if any(value is not None for value in values) else []
    heights = [1.9, 1.2, *([0.8] * (len(panels) - 2))]
    sketch.resize(100 * sum(heights) + 40)
    grid: Any = sketch.figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)
    for index, (title, values) in enumerate(panels):
        axes = grid[index, 0]
        _shade(axes, run, unit)
        if index == 0:
            axes.fill_between(
                times,
                [window.p50_ms for window in windows],
                [window.p90_ms for window in windows],
                color=own.color,
                alpha=0.22,
                lw=0,
            )
        known = [(time, value) for time, value in zip(times, values, strict=True) if value is not None]
        axes.plot(*zip(*known, strict=True), color=own.color if index < 2 else MUTED, lw=2 if index < 2 else 1.5)
        tops = [*(value for _, value in known), *([window.p90_ms for window in windows] if index == 0 else [])]
        low, high = min(tops), max(tops)
        # So that noise does not fill the picture.
        room = max(0.15 * high - (high - low), 0.1 * (high - low))
        axes.set_ylim(max(0.0, low - room), high + room / 2)
        axes.set_title(title)
        axes.locator_params(axis="y", nbins=4 if index == 0 else 3)
    grid[-1, 0].set_xlim(0, run.seconds / unit)
    grid[-1, 0].set_xlabel(name)


def _shade(axes: Axes, run: Sustained, unit: float) -> None:
    colors = [
        SHADE_DARK if window.reading.throttled else SHADE_LIGHT if contended(window.reading) else ""
        for window in run.windows
    ]
    # One area for a row of such stretches, since between two areas there is a seam.
    for color, own in groupby(zip(colors, run.windows, strict=True), key=lambda each: each[0]):
        stretch = [window for _, window in own]
        if color:
            axes.axvspan(
                stretch[0].start_s / unit, (stretch[-1].start_s + stretch[-1].seconds) / unit, color=color, lw=0
            )


_LAYER_MARKERS = {"fp32": "o", "fp16": "D", "bf16": "v", "int8": "s"}


def _draw_roofline(sketch: Sketch) -> None:
    row = sketch.row
    assert row and row.profile
    axes = sketch.figure.add_subplot()
    sketch.resize(420 if sketch.wide else 360)
    placed = [(layer, place) for layer in row.profile.layers if (place := attained(layer))]
    longest_ms = max(layer.median_ms for layer, _ in placed)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for precision in dict.fromkeys(layer.precision for layer, _ in placed):
        own = [(layer, place) for layer, place in placed if layer.precision == precision]
        axes.scatter(
            [place[0] for _, place in own],
            [place[1] for _, place in own],
            # The area is the time.
            s=[20 + 280 * layer.median_ms / longest_ms for layer, _ in own],
            marker=_LAYER_MARKERS.get(precision, "P"),
            color=precision_color(precision),
            edgecolors=SURFACE,
            linewidths=0.8,
            alpha=0.85,
            label=shown(precision) or "precision not told",
        )
    # The peaks are the processor's.
    if sketch.report.machine.peaks and row.threads:
        _draw_roofs(axes, sketch.report.machine.peaks, [place for _, place in placed])
    ranks = {id(layer): number for number, layer in enumerate(longest(row.profile)[:NAMED_LAYERS], 1)}
    for layer, place in placed:
        if id(layer) in ranks:
            offset = 6 + 8 * math.sqrt(layer.median_ms / longest_ms)
            axes.annotate(
                str(ranks[id(layer)]), place, (offset, 0), textcoords="offset points", va="center", fontweight="bold"
            )
    axes.set_xlabel("operations a byte")
    axes.set_title("billion operations a second")
    plain_ticks(axes.xaxis)
    plain_ticks(axes.yaxis)
    axes.legend(loc="lower right", labelcolor=INK, markerscale=0.8)


def _draw_roofs(axes: Axes, peaks: Peaks, places: Sequence[tuple[float, float]]) -> None:
    """The machine's bandwidth and its peak for each precision; places far below the roof may lie left of where it bends."""
    roofs = [("FP32", peaks.fp32_gflops, "-"), *([("INT8", peaks.int8_gops, (0, (6, 3)))] if peaks.int8_gops else [])]
    bends = [peak / peaks.bandwidth_gb_s for _, peak, _ in roofs]
    left = min([*(place[0] for place in places), *bends]) / 2
    right = max([*(place[0] for place in places), *bends]) * 3
    highest = max(peak for _, peak, _ in roofs)
    for (name, peak, dashes), bend in zip(roofs, bends, strict=True):
        axes.plot([left, bend, right], [left * peaks.bandwidth_gb_s, peak, peak], color=MUTED, lw=1.6, ls=dashes)
        # Two roofs may lie close to each other; the name of the lower one stands below it.
        above = peak == highest
        axes.annotate(
            f"{name} {digits(peak)}",
            (right, peak),
            (0, 4 if above else -4),
            textcoords="offset points",
            ha="right",
            va="bottom" if above else "top",
            color=MUTED,
        )
    axes.set_xlim(left, right)
    ceiling = max([*(place[1] for place in places), *(peak for _, peak, _ in roofs)])
    axes.set_ylim(min([*(place[1] for place in places), left * peaks.bandwidth_gb_s]) / 2, 2 * ceiling)


def _draw_recall(sketch: Sketch) -> None:
    known = [(row, row.quality.curves) for row in sketch.report.rows if row.quality and row.quality.curves]
    overlaps = sorted({curve.iou for _, curves in known for curve in curves})
    columns = min(len(overlaps), 2 if sketch.wide else 1)
    lines = -(-len(overlaps) // columns)
    sketch.resize((340 if sketch.wide else 290) * lines)
    for number, iou in enumerate(overlaps, 1):
        axes = sketch.figure.add_subplot(lines, columns, number)
        for row, curves in known:
            own = look(sketch.report, row)
            for curve in curves:
                if curve.iou == iou:
                    recall = [index / (len(curve.precision) - 1) for index in range(len(curve.precision))]
                    # Markers of several engines stand at different places, so that none covers another.
                    every = (3 * sketch.report.rows.index(row) % 20, 20)
                    axes.plot(
                        recall,
                        curve.precision,
                        color=own.color,
                        ls=own.dashes,
                        marker=own.marker,
                        markevery=every,
                        ms=6,
                        mec=SURFACE,
                    )
        axes.set(xlim=(0, 1.01), ylim=(0, 1.03), xlabel="recall", title=f"precision at an overlap of {iou:.2f}")


def _draw_classes(sketch: Sketch) -> None:
    known = [row for row in sketch.report.rows if row.quality]
    names, _ = listed_classes(known)
    if sketch.wide:
        axes = sketch.figure.add_subplot()
        sketch.resize(28 * len(names) + 60)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_yticks(range(len(names)), [shortened(shown(name), 34) for name in names], color=INK)
        axes.tick_params(axis="y", length=0)
    else:
        axes = named_lines(sketch, names, 40)
        axes.grid(axis="y", visible=True)
    values = [
        row.quality.per_class[name] for row in known for name in names if row.quality and name in row.quality.per_class
    ]
    for place, row in enumerate(known):
        own = look(sketch.report, row)
        # A little apart, so that equal values do not cover each other.
        shift = 0.5 * (place / max(1, len(known) - 1) - 0.5) if sketch.wide else 0.3 * place / max(1, len(known) - 1)
        found = [
            (position + shift, row.quality.per_class[name])
            for position, name in enumerate(names)
            if row.quality and name in row.quality.per_class
        ]
        axes.plot(
            [100 * value for _, value in found],
            [position for position, _ in found],
            own.marker,
            color=own.color,
            ms=7,
            mec=SURFACE,
            mew=0.6,
        )
    low, high = 100 * min(values), 100 * max(values)
    room = max(1.0, 0.06 * (high - low))
    axes.set_xlim(max(0.0, low - room), min(100.5, high + room))
    axes.set_xlabel("AP, points")


DRAWINGS: dict[str, Callable[[Sketch], None]] = {
    "tradeoff": _draw_tradeoff,
    "latency": _draw_latency,
    "sustained": _draw_sustained,
    "stages": _draw_stages,
    "roofline": _draw_roofline,
    "recall": _draw_recall,
    "classes": _draw_classes,
}
"""The charts by their kind."""
