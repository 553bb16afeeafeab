"""The main job: checkpoint or graph to an engine that is proven: export, optimize, quantize, compile, verify."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts import PRECISIONS
from edge_effdet.building.chain import build
from edge_effdet.building.options import BuildConfig
from edge_effdet.building.summary import build_report
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.errors import UsageError
from edge_effdet.options import as_path
from edge_effdet.quickstart import quickstart_photos
from edge_effdet.runtime.golden import without_pictures


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "build_engine",
        "Build an engine and prove it: export, optimize, quantize, compile, verify.",
        "python -m edge_effdet.build_engine --checkpoint runs/bccd/best.safetensors --int8 \\\n"
        "      --calibration-data bccd --eval-data bccd --output engines",
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="F",
        help="a .safetensors of train, or with --model another program's (default: the shipped model)",
    )
    parser.add_argument("--onnx", type=Path, metavar="F", help="a graph of export or quantize, instead of a checkpoint")
    precision = parser.add_mutually_exclusive_group(required=True)
    for name in PRECISIONS:
        precision.add_argument(
            f"--{name}", dest="precision", action="store_const", const=name, help=f"build in {name.upper()}"
        )
    add_options(parser, BuildConfig)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.onnx is not None and arguments.checkpoint is not None:
        raise UsageError("Both --checkpoint and --onnx were given; give one of them.")
    source = arguments.checkpoint if arguments.onnx is None else arguments.onnx
    config = options_from(BuildConfig, arguments)
    engine = build(source, config)
    photos, data = None, as_path(config.eval_data)
    if source is None:
        photos, data = quickstart_photos() / "JPEGImages", data or quickstart_photos()
    # The record names the file beside it; a script wants to find it.
    return Result(
        build_report(engine, photos, data), {**without_pictures(engine.require_record()), "engine": str(engine.path)}
    )


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
