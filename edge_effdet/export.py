"""Checkpoint to graph: ``Checkpoint -> Graph``, traced by torch.export, then optimized by the rules of ``graph``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import require_writable, write_json
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.graph.export import ExportOptions, SourceOptions, export_network, load_source

logger = logging.getLogger("edge_effdet.export")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "export",
        "Write the optimized ONNX graph of a checkpoint.",
        "python -m edge_effdet.export --checkpoint runs/bccd/best.safetensors --output bccd.onnx --explain",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="F", help="a .safetensors of train, or effdet's .pth")
    add_options(parser, SourceOptions, ExportOptions)
    parser.add_argument("--output", type=Path, required=True, metavar="F", help="the ONNX file to write")
    parser.add_argument(
        "--explain",
        action="store_true",
        help="print nodes, rules, MACs and memory traffic by part; write F.report.json and F.report.png",
    )
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    network, spec, parents = load_source(
        arguments.checkpoint, arguments.model, arguments.image_size, arguments.classes, fusion=arguments.fusion
    )
    require_writable(arguments.output.parent)
    export = export_network(network, spec, parents, arguments.output, options_from(ExportOptions, arguments))
    size, nodes = arguments.output.stat().st_size / 1e6, export.report.nodes
    summary = f"{export.graph.path}: {spec.name}, {nodes.total} nodes, {size:.1f} MB"
    before = export.report.nodes_before
    data: dict[str, Any] = {
        "graph": str(export.graph.path),
        "sha256": export.graph.sha256,
        "rewrites": dict(export.graph.rewrites),
        "nodes_before": dict(before.by_kind) if before is not None else {},
        "nodes_after": dict(nodes.by_kind),
        "refused": [[rule.rule, *refusal] for rule in export.report.rules for refusal in rule.refused],
    }
    if not arguments.explain:
        return Result(summary, data)
    from edge_effdet.graph.report_picture import draw_report
    from edge_effdet.graph.report_text import to_text

    beside = {kind: arguments.output.with_name(f"{arguments.output.name}.report.{kind}") for kind in ("json", "png")}
    text = to_text(export.report)
    write_json(beside["json"], export.report.to_dict())
    draw_report(export.report, beside["png"], title=spec.name)
    data |= {"report": str(beside["json"]), "picture": str(beside["png"])}
    summary += f"\n{beside['json']} and {beside['png'].name}: MACs, parameters and memory traffic of each layer"
    return Result(f"{text}\n\n{summary}", data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
