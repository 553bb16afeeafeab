"""The section of a report on where the network's time goes: the longest layers, and the roofline that they lie below."""

from __future__ import annotations

from edge_effdet.benchmarking.record import LayerTime, Peaks, Profile, Report, Row
from edge_effdet.benchmarking.report.blocks import DASH, Block, Chart, Grid, Prose, Section, without_empty_columns
from edge_effdet.benchmarking.report.figures import (
    counted,
    digits,
    joined,
    percent,
)
from edge_effdet.benchmarking.report.speed_sections import measured

TOP_LAYERS = 10
"""So many layers of an engine are listed; ``report.json`` has all of them."""

NAMED_LAYERS = 5
"""So many of the listed layers bear their numbers in the picture."""


def layers(report: Report) -> Section:
    """Where the network's time goes: the layers that take most of it, and what they reach of what the machine can."""
    peaks = report.machine.peaks
    if peaks:
        int8 = (
            "an unknown rate" if peaks.int8_gops is None else f"{digits(peaks.int8_gops)} billion operations a second"
        )
        roof = (
            f"With {counted(peaks.threads, 'thread')} this machine reaches {digits(peaks.fp32_gflops)} GFLOP/s in FP32, {int8} in INT8, and "
            f"{digits(peaks.bandwidth_gb_s)} GB/s between memory and processor ({peaks.how}). A layer lies above that roof only where its data "
            f"stay in the caches."
        )
    else:
        roof = "The machine's peaks were not measured, so the pictures have no roof."
    blocks: list[Block] = []
    for row in report.rows:
        if row.profile:
            # The peaks are the processor's, and with no threads an engine runs elsewhere.
            blocks += _profiled(row, row.profile, peaks if row.threads else None)
    if not blocks:
        return Section("layers", "Where the network's time goes", (Prose("No backend told how long its layers take."),))
    untold = [row.name for row in report.rows if measured(row) and not row.profile]
    if untold:
        blocks.append(Prose(f"There is no profile of {joined(untold)}.", quiet=True))
    return Section("layers", "Where the network's time goes", (Prose(roof), *blocks))


def longest(profile: Profile) -> list[LayerTime]:
    """The layers that are listed, the longest first."""
    return sorted(profile.layers, key=lambda layer: -layer.median_ms)[:TOP_LAYERS]


def attained(layer: LayerTime) -> tuple[float, float] | None:
    """Where a layer lies in the roofline picture of Williams, Waterman and Patterson (Communications of the ACM 52, 2009).

    Returns:
        Operations a byte and billions of operations a second, a multiply-accumulate being two operations; None where one is unknown.
    """
    if not (layer.macs and layer.bytes and layer.median_ms > 0):
        return None
    return 2 * layer.macs / layer.bytes, 2 * layer.macs / layer.median_ms / 1e6


def roof_at(intensity: float, precision: str, peaks: Peaks) -> float | None:
    """The most that a layer can reach, in billions of operations a second; None where the peak of its precision was not measured.

    Args:
        intensity: its operations a byte.
        precision: ``int8``, ``fp32`` or another.
        peaks: the machine's peaks.
    """
    peak = {"int8": peaks.int8_gops, "fp32": peaks.fp32_gflops}.get(precision)
    return None if peak is None else min(peak, intensity * peaks.bandwidth_gb_s)


def _called(layer: LayerTime) -> str:
    """The graph's name of what a layer computes, where that is one convolution; the backend's own name for all others."""
    return layer.nodes[0] if len(layer.nodes) == 1 else layer.name


def _profiled(row: Row, profile: Profile, peaks: Peaks | None) -> tuple[Block, ...]:
    total = profile.sum_ms or sum(layer.median_ms for layer in profile.layers)
    rows = []
    for number, layer in enumerate(longest(profile), 1):
        place = attained(layer)
        roof = roof_at(place[0], layer.precision, peaks) if place and peaks else None
        rows.append(
            (
                str(number),
                _called(layer),
                layer.kind,
                layer.precision or DASH,
                digits(layer.median_ms),
                percent(layer.median_ms / total if total else None),
                *((digits(place[1]), digits(place[0])) if place else (DASH, DASH)),
                percent(place[1] / roof) if place and roof else DASH,
            )
        )
    head = (
        "No.",
        "Layer",
        "Kind",
        "Precision",
        "ms",
        "Share",
        "Billion operations a second",
        "Operations a byte",
        "Of the roof",
    )
    grid = Grid(
        caption=f"{row.name}: the layers that take longest",
        head=head,
        rows=tuple(rows),
        numbers=frozenset({0, *range(4, 9)}),
    )
    share = percent(sum(layer.median_ms for layer in longest(profile)) / total if total else None)
    sentence = (
        f"By {profile.source}. The {counted(len(profile.layers), 'layer')} take {digits(profile.sum_ms)} ms in all, and a run "
        f"without the profiler takes {digits(profile.network_ms)} ms. The {len(rows)} longest take {share}. "
        + (
            f"{percent(profile.macs_matched)} of the multiply-accumulates belong to a layer that was found."
            if profile.macs_matched
            else "The graph that it was compiled from could not be read here, so the work of its layers is not known."
        )
    )
    chart = Chart(
        kind="roofline",
        row=row.name,
        label=f"Roofline of {row.name}: billions of operations a second against operations a byte, a marker for each layer with convolutions.",
        caption="A layer with a larger marker takes longer; numbers are those of the table below.",
    )
    placed = any(attained(layer) for layer in profile.layers)
    return (Prose(sentence, title=row.name), *((chart,) if placed else ()), without_empty_columns(grid))
