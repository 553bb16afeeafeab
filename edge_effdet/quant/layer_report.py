"""A comparison of layers for people: sentences, a table of the worst layers, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_effdet.artifacts import atomic_output
from edge_effdet.backends.arithmetic import int8_arithmetic
from edge_effdet.cli import table
from edge_effdet.errors import MissingDependency
from edge_effdet.graph.names import without_number
from edge_effdet.quant.layers import HIDDEN_DB, BackendErrors, LayerComparison
from edge_effdet.quant.probe import DENSE, DEPTHWISE, ComparedLayer
from edge_effdet.quant.tensor_errors import TensorError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_HIGHEST_DB = 150.0
"""The top of the picture: FP32's own rounding is at about 140 dB, and no error at all has no logarithm."""

_COLORS = ("#d62728", "#1f77b4")
"""The colours of the engine's backend and of the other one."""

_WRITTEN_COLOR = "#4d4d4d"


def layer_table(comparison: LayerComparison, rows: int = 12) -> str:
    """The ``verdict``, and a table of the worst layers with ``rows`` rows at the most."""
    subjects = comparison.subjects
    worst = _worst_first(comparison, rows)
    header = ["layer", "kind", "weight codes"]
    header += [f"{subject.backend} alone" for subject in subjects] + ["largest error", "mean error"]
    if comparison.quantization:
        header += [f"{subject.backend} to FP32" for subject in subjects] + ["graph to FP32"]
    lines = [header]
    for layer in worst:
        error = comparison.subject.alone[layer.tensor]
        line = [layer.name, layer.kind, "" if layer.largest_code is None else str(layer.largest_code)]
        line += [_decibels(subject.alone[layer.tensor]) for subject in subjects]
        line += [_number(error.largest), _number(error.mean)]
        if comparison.quantization:
            to_fp32 = (*(subject.whole for subject in subjects), comparison.quantization)
            line += [_decibels(errors[layer.tensor]) if layer.tensor in errors else "" for errors in to_fp32]
        lines.append(line)
    images = f"{comparison.images} image{'s' if comparison.images > 1 else ''}"
    legend = (
        f"The worst {len(worst)} of {len(comparison.layers)} tensors, SQNR over {images}. alone: the layer was given exact "
        f"inputs. The largest and the mean error are those of {comparison.subject.backend} alone."
    )
    if comparison.quantization:
        legend += " to FP32: in a whole run, with the errors of all layers before."
    return f"{verdict(comparison)}\n\n{legend}\n\n{table(lines)}"


def verdict(comparison: LayerComparison) -> str:
    """Sentences that say where each backend parts from the graph, where two backends part, and what quantization loses."""
    subjects = comparison.subjects
    sentences = [_parting(comparison, subject) for subject in subjects]
    if comparison.against is not None:
        names = " and ".join(subject.backend for subject in subjects)
        first = comparison.parted_between[:1]
        if first:
            level = _decibels(comparison.between[first[0].tensor])
            sentences.append(f"Given the same inputs, {names} part first at {first[0].name} ({level}).")
        else:
            sentences.append(f"Given the same inputs, {names} agree in every layer.")
    sentences.extend(_against_fp32(comparison))
    return "\n".join(sentences)


def draw_layers(comparison: LayerComparison, path: Path, title: str = "") -> None:
    """Draw a PNG: the SQNR of each layer alone and of whole runs against FP32, along the graph, with the first layer that parts.

    Args:
        comparison: what is drawn.
        path: the PNG file.
        title: what the heading begins with.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependency("matplotlib", "export", "to draw a comparison of layers") from error

    has_reference = bool(comparison.quantization)
    figure = Figure(figsize=(14, 8.5 if has_reference else 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2 if has_reference else 1, sharex=True, squeeze=False)
    head = _headline(comparison)
    figure.suptitle(f"{title}: {head}" if title else head, fontsize=12, parse_math=False)
    _draw_alone(grid[0, 0], comparison)
    if has_reference:
        _draw_against_fp32(grid[1, 0], comparison)
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _worst_first(comparison: LayerComparison, rows: int) -> list[ComparedLayer]:
    """The worst layers. Where a backend parts from the graph, the first such layer leads and the others are sorted by their own errors;
    else all are sorted by their error against FP32."""
    subjects = comparison.subjects
    first = [layer for subject in subjects for layer in comparison.parted(subject)[:1]]

    def badness(layer: ComparedLayer) -> tuple[float, float]:
        alone = min(subject.alone[layer.tensor].sqnr_db for subject in subjects)
        if first or not comparison.quantization:
            return alone, 0.0
        known = comparison.subject.whole.get(layer.tensor)
        return (np.inf if known is None else known.sqnr_db), alone

    return list(dict.fromkeys((*first, *sorted(comparison.layers, key=badness))))[:rows]


def _parting(comparison: LayerComparison, subject: BackendErrors) -> str:
    parted = comparison.parted(subject)
    if not parted:
        worst = min(comparison.layers, key=lambda layer: subject.alone[layer.tensor].sqnr_db)
        return (
            f"{subject.backend} computes every layer as the graph says: the worst layer, {worst.name}, has "
            f"{_decibels(subject.alone[worst.tensor])}, and less than {subject.limit_db:g} dB would be an error."
        )
    first = parted[0]
    level = _decibels(subject.alone[first.tensor]).replace("not finite", "values that are not finite")
    kinds = [
        f"{sum(layer.kind == kind for layer in parted)} of {total} {kind} convolutions"
        for kind in (DENSE, DEPTHWISE)
        if (total := sum(layer.kind == kind for layer in comparison.layers))
    ]
    return (
        f"{subject.backend} parts from the graph first at {first.name}: given exact inputs it has {level}, where a right layer has "
        f"{subject.limit_db:g} dB or more. {len(parted)} of {len(comparison.layers)} tensors part, among them "
        f"{', '.join(kinds)}.{_cause(subject, parted)}"
    )


def _cause(subject: BackendErrors, parted: Sequence[ComparedLayer]) -> str:
    """A sentence on the processor's arithmetic where that explains every layer that parts; else nothing."""
    arithmetic = int8_arithmetic(subject.backend)
    exact = arithmetic.exact_weight_codes
    if not arithmetic.saturates or any((layer.largest_code or 0) <= exact for layer in parted):
        return ""
    largest = max(layer.largest_code or 0 for layer in parted)
    return (
        f" This processor adds pairs of INT8 products in {arithmetic.accumulator_bits} bits, which saturate for weight codes "
        f"beyond {exact}, and each of these layers has larger ones, up to {largest}: build the engine with `weight_codes` {exact}."
    )


def _against_fp32(comparison: LayerComparison) -> Iterator[str]:
    built, written, backend = comparison.subject.heads_db, comparison.heads_db, comparison.subject.backend
    if built is None or written is None:
        yield "Without the FP32 graph nothing is known about what quantization itself loses."
        return
    if comparison.hidden_db is not None:
        yield (
            f"No layer alone is at fault, and yet the engine as it is built is {comparison.hidden_db:.1f} dB worse at the heads than "
            "rounding explains: the fault lies in what the compiler fuses only where no inner tensor is shown."
        )
    if comparison.precision == "fp32":
        yield f"Against the FP32 graph computed as it is written, the engine has {_level(built)} at the heads."
        return
    whose = f"the difference is {backend}'s doing" if built < written - HIDDEN_DB else "the loss is the graph's own"
    yield (
        f"Against the FP32 graph, the engine has {_level(built)} at the heads, and the same {comparison.precision.upper()} "
        f"graph computed as it is written has {_level(written)}: {whose}."
    )
    layer = comparison.noisiest
    if layer is not None and comparison.quantization[layer.tensor].sqnr_db < _HIGHEST_DB:
        level = _decibels(comparison.quantization[layer.tensor])
        yield (
            f"The graph itself loses most at {layer.name}, which adds the most noise to that of its inputs and is left with {level}."
        )


def _headline(comparison: LayerComparison) -> str:
    parts = []
    for subject in comparison.subjects:
        parted = comparison.parted(subject)
        if parted:
            parts.append(
                f"{subject.backend} parts from the graph first at {parted[0].name} and at {len(parted)} tensors in all"
            )
        else:
            parts.append(f"{subject.backend} computes every layer as the graph says")
    # Two sentences side by side would be wider than the picture.
    return "\n".join(parts)


def _draw_alone(axes: Axes, comparison: LayerComparison) -> None:
    for subject, color in zip(comparison.subjects, _COLORS, strict=False):
        values = _clipped([subject.alone[layer.tensor] for layer in comparison.layers])
        axes.plot(values, color=color, linewidth=0.4, alpha=0.5)
        axes.plot(
            values, "o", color=color, markersize=3.5, label=f"{subject.backend} against the graph as it is written"
        )
    for subject, color, height in zip(comparison.subjects, _COLORS, (100.0, 115.0), strict=False):
        if comparison.parted(subject):
            _mark_first(axes, comparison, subject, color, height)
    limit = comparison.subject.limit_db
    axes.axhline(limit, color="black", linestyle="--", linewidth=0.8, label=f"less than {limit:g} dB parts")
    axes.set_ylim(min(-10.0, *axes.get_ylim()), _HIGHEST_DB + 8)
    axes.set_ylabel(f"SQNR, dB ({_HIGHEST_DB:g}: no error)")
    _finish(axes, comparison.layers, "each layer alone, given exact inputs")


def _mark_first(axes: Axes, comparison: LayerComparison, subject: BackendErrors, color: str, height: float) -> None:
    first = comparison.parted(subject)[0]
    place = list(comparison.layers).index(first)
    value = _clipped([subject.alone[first.tensor]])[0]
    axes.plot([place], [value], "o", markersize=12, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.6)
    is_left = place < len(comparison.layers) / 2
    # There are no points between the limit and the SQNR of exact layers, so the label covers none there.
    axes.annotate(
        f"first: {first.name}, {_decibels(subject.alone[first.tensor])}",
        (place, value),
        (place + (0.02 if is_left else -0.02) * len(comparison.layers), height),
        ha="left" if is_left else "right",
        va="center",
        fontsize=10,
        color=color,
        parse_math=False,
        arrowprops={"arrowstyle": "-", "color": color, "shrinkB": 6, "relpos": (0.03 if is_left else 0.97, 0)},
        bbox={"facecolor": "white", "edgecolor": color, "linewidth": 0.6, "pad": 2.5},
        zorder=5,
    )


def _draw_against_fp32(axes: Axes, comparison: LayerComparison) -> None:
    places = [place for place, layer in enumerate(comparison.layers) if layer.tensor in comparison.quantization]
    tensors = [comparison.layers[place].tensor for place in places]
    lines = [
        (f"{subject.backend}", subject.whole, color, 1.2, "-")
        for subject, color in zip(comparison.subjects, _COLORS, strict=False)
    ]
    # Drawn last and dashed: an exact backend lies under it.
    lines.append(("the graph as it is written", comparison.quantization, _WRITTEN_COLOR, 1.2, "--"))
    for label, errors, color, width, style in lines:
        values = _clipped([errors[tensor] for tensor in tensors])
        axes.plot(places, values, style, color=color, linewidth=width, label=label)
    axes.set_ylabel("SQNR against the FP32 graph, dB")
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), axes.get_ylim()[1])
    _finish(axes, comparison.layers, "whole runs, where errors are carried from layer to layer")


def _finish(axes: Axes, layers: Sequence[ComparedLayer], title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.legend(fontsize=9, loc="lower right", bbox_to_anchor=(1.0, 0.99), ncols=4, frameon=False, borderaxespad=0.2)
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_xlim(-1, len(layers))
    ticks, labels = [], []
    for position, (start, end, name) in enumerate(_groups(layers)):
        if position % 2:
            axes.axvspan(start - 0.5, end - 0.5, color="black", alpha=0.05, linewidth=0)
        # The labels of narrow groups would lie on each other.
        if end - start >= len(layers) / 50:
            ticks.append((start + end - 1) / 2)
            labels.append(name)
    axes.set_xticks(ticks, labels, rotation=35, ha="right", rotation_mode="anchor")
    axes.tick_params(axis="x", length=0, labelsize=9)


def _groups(layers: Sequence[ComparedLayer]) -> list[tuple[int, int, str]]:
    """Start, end and name of each part of the network. A layer whose name tells no part belongs to the part of the layer before it."""
    names: list[str] = []
    for layer in layers:
        names.append(_group(layer.name) or (names[-1] if names else ""))
    starts = [place for place in range(len(names)) if place == 0 or names[place] != names[place - 1]]
    return [(start, end, names[start]) for start, end in zip(starts, [*starts[1:], len(names)], strict=True)]


def _group(name: str) -> str:
    """The part of the network that a node's name tells; empty where it tells none."""
    parts = without_number(name).split(".")
    if parts[0] == "backbone" and len(parts) > 2 and parts[1] == "blocks":
        return f"stage {parts[2]}"
    if parts[0] == "fpn" and len(parts) > 2:
        return f"BiFPN {parts[2]}" if parts[1] == "cell" else "BiFPN inputs"
    return {"backbone": "stem", "class_net": "class head", "box_net": "box head"}.get(parts[0], "")


def _clipped(errors: Sequence[TensorError]) -> np.ndarray:
    return np.clip([error.sqnr_db for error in errors], -20.0, _HIGHEST_DB)


def _decibels(error: TensorError) -> str:
    return "not finite" if error.mean is None else _level(error.sqnr_db)


def _level(sqnr_db: float) -> str:
    return "no error" if sqnr_db >= 200 else f"{sqnr_db:.1f} dB"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
