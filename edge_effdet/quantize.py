"""FP32 graph to FP16 or INT8: ``(Graph, calibration images) -> Graph``. Precision is written into the graph, by casts and Q/DQ."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts import require_writable
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.errors import MissingDependency
from edge_effdet.options import as_path
from edge_effdet.quant.stage import (
    CalibrationOptions,
    QuantizeOptions,
    calibration_dataset,
    calibration_images_from,
    convert_to_fp16,
    quantize_graph,
)

logger = logging.getLogger("edge_effdet.quantize")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "quantize",
        "Turn an FP32 graph into FP16, or into INT8 with calibration images.",
        "python -m edge_effdet.quantize --onnx bccd.onnx --int8 --calibration-data bccd --output bccd.int8.onnx",
    )
    parser.add_argument("--onnx", type=Path, required=True, metavar="F", help="a graph that export wrote")
    precision = parser.add_mutually_exclusive_group(required=True)
    precision.add_argument("--fp16", action="store_true", help="casts to FP16")
    precision.add_argument("--int8", action="store_true", help="explicit Q/DQ")
    add_options(parser, CalibrationOptions, QuantizeOptions)
    parser.add_argument("--output", type=Path, required=True, metavar="F", help="the ONNX file to write")
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    try:
        import onnx_ir as ir
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx-ir", "export", "to rewrite graphs") from error
    from edge_effdet.graph.model import load_graph
    from edge_effdet.quant.proof import prove_precision

    graph = load_graph(arguments.onnx)
    require_writable(arguments.output.parent)
    if arguments.fp16:
        result = convert_to_fp16(graph, arguments.output)
    else:
        calibration = options_from(CalibrationOptions, arguments)
        images = calibration_images_from(calibration_dataset(calibration), calibration, graph)
        options = options_from(QuantizeOptions, arguments)
        result = quantize_graph(graph, images, options, arguments.output, as_path(calibration.calibration_table))
    proof = prove_precision(ir.load(str(result.path)))
    share = ", ".join(
        f"{100 * proof.fraction(kind):.1f} % {kind.upper()}" for kind in ("int8", "fp16", "fp32") if proof.macs[kind]
    )
    data = {
        "graph": str(result.path),
        "sha256": result.sha256,
        "precision": result.precision,
        "proof": proof.to_dict(),
        "calibration": dict(result.calibration),
    }
    return Result(f"{result.path}: convolution MACs {share}, {result.path.stat().st_size / 1e6:.1f} MB", data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
