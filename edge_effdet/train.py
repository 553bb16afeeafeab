"""The verb ``train``: a data set to a fine-tuned checkpoint, by ``training.stage``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.training.options import TrainConfig
from edge_effdet.training.stage import is_first_process, train_detector


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "train", "Fine-tune a detector.", "python -m edge_effdet.train --data bccd --output runs/bccd --epochs 60"
    )
    parser.add_argument(
        "--data", type=Path, required=True, metavar="D",
        help="the data set: COCO, Pascal VOC, YOLO data.yaml or CSV; recognised by itself",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for checkpoints and logs")
    add_options(parser, TrainConfig)
    return parser


def _run(arguments: argparse.Namespace) -> Result | None:
    started = time.monotonic()
    best = train_detector(arguments.data, arguments.output, options_from(TrainConfig, arguments))
    if not is_first_process():
        return None
    minutes = (time.monotonic() - started) / 60
    made, metrics = best.provenance, best.provenance["val"]
    judged = "the last epoch"
    if metrics is not None:
        judged = f"AP {100 * metrics['AP']:.1f} on {made['splits']['val']}, epoch {made['epoch']}"
    text = f"{best.path}: {judged}, {minutes:.1f} minutes; see curves.png beside it"
    return Result(text, {"checkpoint": str(best.path), "sha256": best.sha256, **made, "minutes": minutes})


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
