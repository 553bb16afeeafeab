"""The table of a sweep, and its picture of AP over latency, from the numbers that it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import atomic_output
from edge_effdet.cli import table

COLORS = {"fp32": "#4c72b0", "fp16": "#55a868", "int8": "#c44e52"}
DISTURBED = 0.1
"""The share of all processors that other processes may take."""

MARKERS = ("o", "s", "^", "D", "v")


def describe_sweep(result: Mapping[str, Any]) -> str:
    """A row a cell, and below the table why others were not measured, and what the AP is."""
    rows = [("model", "px", "precision", "backend", "median", "P90", "x FP32 onnxruntime", "AP")]
    notes: list[str] = []
    for cell in result["cells"]:
        if "skipped" in cell:
            notes.append(f"{cell['title']} was not measured: {cell['skipped']}")
            continue
        ap = cell["ap"]
        rows.append(
            (
                cell["model"],
                "{}x{}".format(*cell["image_size"]),
                cell["precision"],
                cell["backend"],
                f"{cell['median_ms']:.1f} ms{' *' if is_disturbed(cell) else ''}",
                f"{cell['p90_ms']:.1f} ms",
                f"{cell['times_as_fast']:.2f}",
                "-" if ap is None else f"{ap['points']:.1f}{'' if is_known(cell) else ' in FP32'}",
            )
        )
        if ap is not None and ap["kind"] != "measured":
            notes.append(
                f"AP: {describe_ap(ap)}. The weights that were timed are random, and what INT8 or FP16 costs is not known."
            )
    if any(is_disturbed(cell) for cell in result["cells"] if "skipped" not in cell):
        notes.append(f"*: other processes took more than {100 * DISTURBED:.0f} % of the processors meanwhile.")
    notes.append(
        "x FP32 onnxruntime: how many times as fast as the model's FP32 graph by onnxruntime, in the same rounds."
    )
    return "\n".join([table(rows), *dict.fromkeys(notes)])


def is_known(cell: Mapping[str, Any]) -> bool:
    """Whether the AP of a cell is that of its precision: one that was measured, or one published for FP32 of an FP32 cell."""
    return cell["ap"]["kind"] == "measured" or cell["precision"] == cell["ap"]["of"]


def is_disturbed(cell: Mapping[str, Any]) -> bool:
    """Whether the machine had so much else to do while a cell was measured that its absolute times mean little."""
    return cell["machine"]["others"] > DISTURBED


def describe_ap(ap: Mapping[str, Any]) -> str:
    """On which data, and whether it was measured."""
    if ap["kind"] == "measured":
        return f"measured here on {ap['data']}"
    return f"{ap['data']}, published in the {ap['source']}, not measured here"


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of points (milliseconds, AP) those that no other one beats in both, by ascending milliseconds."""
    front: list[tuple[float, float]] = []
    for milliseconds, ap in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or ap > front[-1][1]:
            front.append((milliseconds, ap))
    return front


def draw_pareto(result: Mapping[str, Any], path: Path) -> None:
    """Draw AP over the median latency into an SVG file, a panel for each kind of AP.

    Where the AP of a precision is not known, the marker is hollow and stands at the AP of FP32. The front goes through filled markers alone.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

    cells = [cell for cell in result["cells"] if "skipped" not in cell and cell["ap"] is not None]
    kinds = list(dict.fromkeys(describe_ap(cell["ap"]) for cell in cells))
    backends = list(dict.fromkeys(cell["backend"] for cell in cells))
    markers = dict(zip(backends, MARKERS, strict=False))
    # The same content gives the same file.
    with mpl.rc_context({"svg.hashsalt": "edge_effdet", "svg.fonttype": "none"}):
        figure = Figure(figsize=(8, 1.2 + 4.6 * max(1, len(kinds))), layout="constrained")
        panels = figure.subplots(max(1, len(kinds)), squeeze=False)[:, 0]
        for panel, kind in zip(panels, kinds, strict=False):
            own = [cell for cell in cells if describe_ap(cell["ap"]) == kind]
            for cell in own:
                color = COLORS.get(cell["precision"], "#555555")
                panel.plot(
                    cell["median_ms"],
                    cell["ap"]["points"],
                    markers[cell["backend"]],
                    color=color,
                    fillstyle="full" if is_known(cell) else "none",
                    markersize=8,
                )
            front = pareto_front([(cell["median_ms"], cell["ap"]["points"]) for cell in own if is_known(cell)])
            panel.plot([each[0] for each in front], [each[1] for each in front], color="#888888", linewidth=1, zorder=0)
            _name_models(panel, own)
            panel.set_xscale("log")
            panel.margins(x=0.06, y=0.1)
            # Room for the names, which stand to the right of their markers.
            panel.set_xlim(right=1.9 * max(cell["median_ms"] for cell in own))
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.xaxis.set_major_formatter(ScalarFormatter())
            panel.xaxis.set_minor_formatter(NullFormatter())
            panel.set_xlabel("median latency of the network alone, ms, batch 1")
            panel.set_ylabel("AP, points")
            panel.set_title(f"AP: {kind}", fontsize=9)
            panel.grid(alpha=0.25)
        figure.suptitle(result["title"])
        precisions = dict.fromkeys(cell["precision"] for cell in cells)
        handles = [
            Line2D([], [], marker="o", linestyle="", color=COLORS[name], label=name.upper()) for name in precisions
        ]
        handles += [
            Line2D([], [], marker=markers[name], linestyle="", color="#555555", label=name) for name in backends
        ]
        if any(not is_known(cell) for cell in cells):
            hollow: dict[str, Any] = {"marker": "o", "linestyle": "", "color": "#555555", "fillstyle": "none"}
            handles.append(Line2D([], [], **hollow, label="hollow: AP of FP32, loss not measured"))
        handles.append(Line2D([], [], color="#888888", linewidth=1, label="Pareto front of filled markers"))
        figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
        with atomic_output(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})


def _name_models(panel: Any, cells: Sequence[Mapping[str, Any]]) -> None:
    """Write the name of each model and size at its slowest marker, where the least others are."""
    slowest: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for cell in cells:
        key = (cell["model"], *cell["image_size"])
        if key not in slowest or cell["median_ms"] > slowest[key]["median_ms"]:
            slowest[key] = cell
    for (model, height, width), cell in slowest.items():
        name = f"{model.removeprefix('tf_efficientdet_')}, {height}x{width}"
        place = (cell["median_ms"], cell["ap"]["points"])
        panel.annotate(name, place, xytext=(8, 0), textcoords="offset points", fontsize=8, va="center")
