"""The verb ``predict``: objects in pictures by trained checkpoints, by ``evaluation.prediction``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.evaluation.prediction import PredictConfig, predict_files
from edge_effdet.runtime.run import results_table


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "predict",
        "Find objects in images with one checkpoint or several, in torch.",
        "python -m edge_effdet.predict --checkpoint runs/bccd/best.safetensors --source photos --output found",
    )
    parser.add_argument(
        "--checkpoint", type=Path, action="append", required=True, metavar="F",
        help="a .safetensors of train, or with --model another program's; given several times, their predictions are fused",
    )  # fmt: skip
    parser.add_argument("--source", type=Path, required=True, metavar="S", help="an image or a folder of images")
    add_options(parser, PredictConfig)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    predictions = predict_files(arguments.checkpoint, arguments.source, options_from(PredictConfig, arguments))
    data = predictions.to_dict()
    return Result(results_table(data["images"]), data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
