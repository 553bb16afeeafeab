"""The report of a graph as a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edge_effdet.artifacts import atomic_output
from edge_effdet.errors import MissingDependency
from edge_effdet.graph.report import (
    DECODING,
    GROUPS,
    ORDER,
    OTHER,
    PIXELS,
    CountedLayer,
    GraphReport,
    family,
    part_order,
)
from edge_effdet.graph.report_text import mega

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_report(report: GraphReport, path: Path, title: str = "") -> None:
    """Draw a PNG: MACs and traffic by part, convolutions by MACs and traffic, and the traffic along the network.

    Args:
        report: the report.
        path: the PNG file.
        title: what the heading begins with, such as the model's name.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "export", "to draw a graph's report") from error

    # Not pyplot, which keeps figures and picks a backend for the whole process.
    figure = Figure(figsize=(16, 7.5 + 0.27 * len(report.parts)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 5, height_ratios=(1.2 + 0.27 * len(report.parts), 5.5))
    cost = report.total.cost
    nodes = f"{report.nodes.silu_as_one} nodes" + (" with SiLU as one" if report.nodes.silu else "")
    if report.nodes_before:
        nodes += f" (from {report.nodes_before.silu_as_one})"
    head = f"{nodes}, {cost.macs / 1e9:.3g} GMACs, {mega(cost.parameters.numbers)} M parameters, "
    head += f"{_three_digits(cost.traffic.graph_bytes / 1e6)} MB of traffic"
    figure.suptitle(f"{title}: {head}" if title else head, fontsize=13, parse_math=False)
    macs = figure.add_subplot(grid[0, :2])
    _draw_macs(macs, report)
    _draw_traffic(figure.add_subplot(grid[0, 2:], sharey=macs), report)
    _draw_convolutions(figure.add_subplot(grid[1, :2]), report)
    _draw_along(figure.add_subplot(grid[1, 2:]), report)
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


_PART_COLORS = {
    PIXELS: "#9e9e9e",
    "stem": "#6baed6",
    "stage": "#2171b5",
    "bifpn inputs": "#74c476",
    "bifpn cell": "#238b45",
    "class head": "#e6550d",
    "box head": "#fdae6b",
    DECODING: "#756bb1",
    OTHER: "#636363",
}
_GROUP_COLORS = dict(
    zip(
        (*GROUPS, OTHER),
        ["#37474f", "#c2185b", "#f8bbd0", "#00897b", "#ffd54f", "#80cbc4", "#8d6e63", "#bcaaa4", "#5c6bc0", "#e0e0e0"],
        strict=True,
    )
)


def _draw_macs(axes: Axes, report: GraphReport) -> None:
    labels = [part.label for part in report.parts]
    sizes = [part.cost.macs / 1e6 for part in report.parts]
    axes.barh(labels, sizes, color=[_PART_COLORS[family(label)] for label in labels])
    _label_bars(axes, sizes)
    axes.invert_yaxis()
    axes.set_title("work: million MACs by part", fontsize=10)


def _draw_traffic(axes: Axes, report: GraphReport) -> None:
    labels = [part.label for part in report.parts]
    ends = [0.0] * len(labels)
    for group in report.groups:
        layers = [layer for layer in report.layers if layer.group == group.label]
        sizes = [_megabytes(layer for layer in layers if layer.part == label) for label in labels]
        axes.barh(labels, sizes, left=ends, color=_GROUP_COLORS[group.label], label=group.label)
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    _label_bars(axes, ends)
    axes.tick_params(axis="y", labelleft=False)
    axes.set_title("memory traffic when nothing is fused: MB by part and kind of work", fontsize=10)
    axes.legend(fontsize=8, loc="lower right")


def _label_bars(axes: Axes, sizes: Sequence[float]) -> None:
    for position, size in enumerate(sizes):
        share = 100 * size / sum(sizes) if size else 0.0
        text = f"{_three_digits(size)}  ({share:.1f} %)"
        axes.annotate(text, (size, position), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_xlim(0, 1.2 * max(sizes) or 1)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def _draw_convolutions(axes: Axes, report: GraphReport) -> None:
    """Draw each convolution by its traffic and its MACs, with lines of equal MACs a byte: one that lies low waits for memory."""
    axes.set_title("convolutions: work against traffic, with lines of equal MACs a byte", fontsize=10)
    axes.set_xlabel("MB of traffic", fontsize=9)
    axes.set_ylabel("million MACs", fontsize=9)
    convolutions = [layer for layer in report.layers if layer.cost.macs]
    if not convolutions:
        axes.text(0.5, 0.5, "no convolution", ha="center", transform=axes.transAxes)
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    for kin in sorted({family(layer.part) for layer in convolutions}, key=lambda kin: ORDER[kin]):
        some = [layer for layer in convolutions if family(layer.part) == kin]
        axes.scatter(
            [_megabytes([layer]) for layer in some],
            [layer.cost.macs / 1e6 for layer in some],
            s=24,
            alpha=0.8,
            color=_PART_COLORS[kin],
            label=kin,
            linewidths=0,
        )
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for intensity in (0.1, 1, 10, 100, 1000):
        end = min(right, top / intensity)
        if end <= max(left, bottom / intensity):
            continue
        axes.plot((left, right), (left * intensity, right * intensity), "--", color="grey", linewidth=0.7, zorder=0)
        look = {"ha": "center", "va": "center", "fontsize": 7, "color": "dimgrey", "zorder": 1}
        blank = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.annotate(
            f"{intensity:g}", (end, end * intensity), (-16, -10), textcoords="offset points", bbox=blank, **look
        )
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    axes.grid(alpha=0.2)
    axes.legend(fontsize=8, loc="lower right")


def _draw_along(axes: Axes, report: GraphReport) -> None:
    """Draw the traffic of each layer, part after part: convolutions upward, all others downward."""
    layers = sorted(report.layers, key=lambda layer: part_order(layer.part))
    signs = [1 if layer.group == "convolution" else -1 for layer in layers]
    heights = [sign * _megabytes([layer]) for sign, layer in zip(signs, layers, strict=True)]
    axes.bar(range(len(layers)), heights, width=1.0, color=[_PART_COLORS[family(layer.part)] for layer in layers])
    axes.axhline(0, color="black", linewidth=0.6)
    axes.margins(x=0.01, y=0.08)
    first, ticks, labels = 0, [], []
    for position, part in enumerate(report.parts):
        if position % 2:
            axes.axvspan(first - 0.5, first + part.layers - 0.5, color="black", alpha=0.05, linewidth=0)
        # The labels of narrow parts would lie on each other.
        if part.layers >= 0.015 * len(layers):
            ticks.append(first + part.layers / 2 - 0.5)
            labels.append(part.label)
        first += part.layers
    axes.set_xticks(ticks, labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0, labelsize=8)
    axes.yaxis.set_major_formatter(lambda size, _: f"{abs(size):g}")
    axes.set_ylabel("MB:  others  |  convolutions", fontsize=9)
    axes.set_title("traffic along the network, one bar a layer: convolutions upward, all others downward", fontsize=10)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)


def _megabytes(layers: Iterable[CountedLayer]) -> float:
    return sum(layer.cost.traffic.graph_bytes for layer in layers) / 1e6


def _three_digits(size: float) -> str:
    return f"{size:.0f}" if size >= 100 else f"{size:.3g}"
