"""The verb ``quantize``: an FP32 graph to FP16 or INT8, by ``quant.stage``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.quant.stage import QuantizeConfig, quantize_graph


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "quantize",
        "Turn an FP32 graph into FP16, or into INT8 with calibration images.",
        "python -m edge_effdet.quantize --onnx bccd.onnx --int8 --calibration-data bccd --output bccd.int8.onnx",
    )
    parser.add_argument("--onnx", type=Path, required=True, metavar="F", help="a graph that export wrote")
    precision = parser.add_mutually_exclusive_group(required=True)
    for name, text in (("fp16", "casts to FP16"), ("int8", "explicit Q/DQ")):
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=text)
    parser.add_argument("--output", type=Path, required=True, metavar="F", help="the ONNX file to write")
    add_options(parser, QuantizeConfig)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    graph = quantize_graph(arguments.onnx, arguments.output, options_from(QuantizeConfig, arguments))
    import onnx_ir as ir

    from edge_effdet.quant.proof import prove_precision

    proof = prove_precision(ir.load(str(graph.path)))
    share = ", ".join(
        f"{100 * proof.fraction(kind):.1f} % {kind.upper()}" for kind in ("int8", "fp16", "fp32") if proof.macs[kind]
    )
    data = {
        "graph": str(graph.path),
        "sha256": graph.sha256,
        "precision": graph.precision,
        "proof": proof.to_dict(),
        "calibration": dict(graph.calibration),
    }
    return Result(f"{graph.path}: convolution MACs {share}, {graph.path.stat().st_size / 1e6:.1f} MB", data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
