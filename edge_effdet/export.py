"""The verb ``export``: a checkpoint to an optimized ONNX graph, by ``graph.export``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.graph.export import ExportConfig, export_checkpoint


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "export",
        "Write the optimized ONNX graph of a checkpoint.",
        "python -m edge_effdet.export --checkpoint runs/bccd/best.safetensors --output bccd.onnx --explain",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="F",
        help="a .safetensors of train, or with --model another program's (default: random weights)",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="F", help="the ONNX file to write")
    add_options(parser, ExportConfig)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    export = export_checkpoint(arguments.checkpoint, arguments.output, options_from(ExportConfig, arguments))
    graph, report = export.graph, export.report
    before = report.nodes_before
    text = f"{graph.path}: {graph.spec.name}, {report.nodes.total} nodes, {graph.path.stat().st_size / 1e6:.1f} MB"
    data: dict[str, Any] = {
        "graph": str(graph.path),
        "sha256": graph.sha256,
        "rewrites": dict(graph.rewrites),
        "nodes_before": dict(before.by_kind) if before is not None else {},
        "nodes_after": dict(report.nodes.by_kind),
        "refused": [[rule.rule, *refusal] for rule in report.rules for refusal in rule.refused],
    }
    if export.files:
        from edge_effdet.graph.report_text import to_text

        written, picture = export.files
        data |= {"report": str(written), "picture": str(picture)}
        text = f"{to_text(report)}\n\n{text}\n{written} and {picture.name}: MACs, parameters and memory traffic of each layer"
    return Result(text, data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
