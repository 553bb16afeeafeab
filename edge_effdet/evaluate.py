"""The verb ``evaluate``: metrics of an engine or of checkpoints, by ``evaluation.stage``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts import load_engine
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.evaluation.report import evaluation_text
from edge_effdet.evaluation.stage import EvaluateConfig, evaluate_detector


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "evaluate",
        "COCO metrics of an engine or of checkpoints on labelled images, and where they go wrong.",
        "python -m edge_effdet.evaluate --engine engines/quickstart.int8.onnx --data bccd --output judged",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--engine", type=Path, metavar="F", help="an engine that build_engine wrote")
    source.add_argument(
        "--checkpoint", type=Path, action="append", metavar="F",
        help="a .safetensors of train, or with --model another program's, run in torch; given several times, their predictions are fused",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, required=True, metavar="D", help="a labelled data set, of any format known"
    )
    add_options(parser, EvaluateConfig)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    config = options_from(EvaluateConfig, arguments)
    source = arguments.checkpoint if arguments.engine is None else load_engine(arguments.engine)
    evaluation = evaluate_detector(source, arguments.data, config)
    text = evaluation_text(evaluation)
    if config.output is not None:
        text += f"\n\nwritten to {config.output}: metrics.json, detections.json, confusion.png, confusion.txt"
        text += ", pictures, worst.png" if config.pictures else ""
    return Result(text, evaluation.to_dict())


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
