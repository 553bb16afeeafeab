"""The tables that ``benchmarks.graph`` prints, from the numbers that it saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_effdet.cli import table

SHOWN_OPERATORS = 8


def describe_model(result: Mapping[str, Any]) -> list[str]:
    """The tables of one model, each below a line that says what it shows."""
    height, width = result["image_size"]
    parts = [
        (f"{result['model']}, {height}x{width} px: nodes, ending at the head tensors", describe_nodes(result)),
        ("Layers in TensorRT-RTX", _describe(describe_layers, result.get("layers"))),
        (
            "Head tensors of one picture; ratios are medians of paired rounds",
            _describe(describe_latency, result.get("latency")),
        ),
        ("Milliseconds of a run by onnxruntime's operators", _describe(describe_profiles, result.get("profile"))),
        ("Letterboxed picture to detections after NMS", _describe(describe_end_to_end, result.get("end_to_end"))),
    ]
    return [f"{title}\n\n{text}" for title, text in parts if text]


def describe_nodes(result: Mapping[str, Any]) -> str:
    rows = [("graph", "SiLU as one", "nodes", "of one runtime only", "to make")]
    rows += [
        (row["graph"], *(str(row[key]) for key in ("counted", "nodes", "foreign")), f"{row['seconds_to_make']:.1f} s")
        for row in result["nodes"]
    ]
    rows += [(name, "-", "-", "-", "-") for name in result["skipped"]]
    return "\n".join([table(rows), *(f"{name} was left out: {reason}" for name, reason in result["skipped"].items())])


def describe_layers(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = [("graph", "parser's network", "without constants", "built engine")]
    notes = []
    for row in rows:
        if "skipped" in row:
            notes.append(f"{row['graph']} was left out: {row['skipped']}")
            continue
        network = row["network_layers"]
        engine = "not readable without a GPU" if row["engine_layers"] is None else str(row["engine_layers"])
        shown.append((row["graph"], str(network), str(network - row["network_kinds"].get("constant", 0)), engine))
    return "\n".join([table(shown), *notes])


def describe_latency(rows: Sequence[Mapping[str, Any]]) -> str:
    timed = [row for row in rows if "skipped" not in row]
    ratios = [key for key in timed[0] if key.endswith("_over_this")]
    shown = [("head tensors by", "median", "P90", *(key.replace("_over_", "/") for key in ratios), "largest error")]
    shown += [
        (*_times(row), *(f"{row[key]:.2f}" for key in ratios), f"{row['largest_relative_error']:.1e}") for row in timed
    ]
    return "\n".join(
        [table(shown), *(f"{row['way']} was left out: {row['skipped']}" for row in rows if "skipped" in row)]
    )


def describe_profiles(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of milliseconds with a row for each operator, the largest first, and a column for each graph; then, for each graph,
    the time that its multiply-accumulates alone would take."""
    largest: dict[str, float] = {}
    for row in rows:
        for operator, milliseconds in row["operators_ms"].items():
            largest[operator] = max(milliseconds, largest.get(operator, 0))
    operators = sorted(largest, key=lambda operator: -largest[operator])
    named, others = operators[:SHOWN_OPERATORS], operators[SHOWN_OPERATORS:]
    lines = [("operator", *(row["graph"] for row in rows))]
    lines += [(name, *(f"{row['operators_ms'].get(name, 0):.2f}" for row in rows)) for name in named]
    rest = (sum(row["operators_ms"].get(operator, 0) for operator in others) for row in rows)
    lines.append((f"{len(others)} others", *(f"{value:.2f}" for value in rest)))
    lines.append(("all", *(f"{sum(row['operators_ms'].values()):.2f}" for row in rows)))
    floors = [
        f"{row['graph']}: {row['macs'] / 1e9:.2f} billion multiply-accumulates at {row['matrix_gflops']:.0f} GFLOP/s, so the "
        f"network needs at least {row['floor_ms']:.1f} ms"
        for row in rows
    ]
    return "\n".join([table(lines), *floors])


def describe_end_to_end(result: Mapping[str, Any]) -> str:
    shown = [("detections by", "median", "P90", "ours/this")]
    shown += [(*_times(row), f"{row['ours_over_this']:.2f}") for row in result["rows"]]
    agreement = f"{result['agreeing']} of effdet's {result['expected']} detections are among our {result['found']}"
    return f"{table(shown)}\n{agreement}"


def _describe(describe: Any, part: Any) -> str:
    return describe(part) if part else ""


def _times(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["way"], f"{row['median_ms']:.1f} ms", f"{row['p90_ms']:.1f} ms"
