"""The report of a graph as text for people, within 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from edge_effdet.cli import table
from edge_effdet.graph.report import CountedLayer, GraphReport, Total
from edge_effdet.graph.rule import RuleReport

COLUMNS = 120
HEAVIEST = 12
"""How many of the heaviest layers the text lists; the JSON has all layers."""


def to_text(report: GraphReport, heaviest: int = HEAVIEST) -> str:
    """The report for people: nodes, rules and refusals, parts of the network, kinds of work, and the heaviest layers.

    Args:
        report: the report.
        heaviest: how many layers with the most MACs, and with the most traffic, are listed.
    """
    blocks = [_nodes_text(report)]
    if report.rules:
        blocks.append(_rules_text(report.rules))
    blocks += [
        "For one image. MB are in the graph's own types, then as if all numbers were FP16 or INT8. Traffic is the least that\n"
        "crosses memory without fusion: each layer reads its activations and weights once and writes its outputs once.",
        _totals_text("part", report.parts, report.total),
        _totals_text("work", report.groups, report.total),
    ]
    by_macs = sorted((layer for layer in report.layers if layer.cost.macs), key=lambda layer: -layer.cost.macs)
    by_traffic = sorted(report.layers, key=lambda layer: -layer.cost.traffic.graph_bytes)
    for title, layers in (("most MACs", by_macs), ("most traffic", by_traffic)):
        if layers:
            blocks.append(_layers_text(title, layers[:heaviest], report.total))
    return "\n\n".join(blocks)


def _nodes_text(report: GraphReport) -> str:
    after, before = report.nodes, report.nodes_before
    counts = [before, after] if before else [after]
    kinds = {kind for count in counts for kind in count.by_kind}
    ranked = sorted(kinds, key=lambda kind: (-counts[0].by_kind.get(kind, 0), kind))
    rows = [
        ("nodes", "traced", "optimized") if before else ("nodes", "number"),
        ("all", *(str(count.total) for count in counts)),
        ("all, SiLU as one", *(str(count.silu_as_one) for count in counts)),
        *((kind, *(str(count.by_kind.get(kind, 0)) for count in counts)) for kind in ranked),
    ]
    return table(rows)


def _rules_text(rules: Sequence[RuleReport]) -> str:
    """One line a rule, and every refusal; nodes that were refused for the same reason stand together."""
    lines = [table([("rule", "fired", "refused"), *((r.rule, str(r.fired), str(len(r.refused))) for r in rules)])]
    for rule in rules:
        nodes: dict[str, list[str]] = {}
        for name, reason in rule.refused:
            nodes.setdefault(reason, []).append(name)
        for reason, names in nodes.items():
            text = f"refused {rule.rule} at {', '.join(names)}: {reason}"
            lines.append(textwrap.fill(text, COLUMNS, subsequent_indent="  ", break_on_hyphens=False))
    return "\n".join(lines)


def _totals_text(title: str, totals: Sequence[Total], total: Total) -> str:
    header = (title, "layers", "MMACs", "%", "k params", "MB in", "weights", "out", "traffic", "%", "FP16", "INT8")
    rows: list[tuple[str, ...]] = [(*header, "MACs/byte")]
    for entry in (total, *totals):
        cost, size = entry.cost, entry.cost.traffic
        rows.append(
            (
                entry.label,
                str(entry.layers),
                mega(cost.macs),
                _percent(cost.macs, total.cost.macs),
                f"{cost.parameters.numbers / 1e3:.1f}",
                *(mega(volume.graph_bytes) for volume in (cost.inputs, cost.weights, cost.outputs, size)),
                _percent(size.graph_bytes, total.cost.traffic.graph_bytes),
                mega(size.in_bytes("fp16")),
                mega(size.in_bytes("int8")),
                f"{cost.intensity:.1f}",
            )
        )
    return table(rows)


def _layers_text(title: str, layers: Sequence[CountedLayer], total: Total) -> str:
    rows = [(title, "kind", "shape", "MMACs", "%", "k params", "MB", "%", "MACs/byte")]
    for layer in layers:
        cost, size = layer.cost, layer.cost.traffic.graph_bytes
        rows.append(
            (
                _shorten(f"after {layer.after}" if layer.after else layer.name),
                layer.kind,
                "x".join(map(str, layer.shape[1:])) or "1",
                mega(cost.macs),
                _percent(cost.macs, total.cost.macs),
                f"{cost.parameters.numbers / 1e3:.1f}",
                mega(size),
                _percent(size, total.cost.traffic.graph_bytes),
                f"{cost.intensity:.1f}",
            )
        )
    return table(rows)


def _shorten(name: str, length: int = 48) -> str:
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-length // 2 :]}"


def mega(number: int) -> str:
    return f"{number / 1e6:.2f}"


def _percent(number: int, total: int) -> str:
    return f"{100 * number / total:.1f}" if total else "0.0"
