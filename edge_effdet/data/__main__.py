"""``python -m edge_effdet.data check D``: look a data set over before hours are spent on it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.artifacts import Size
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.data.check import check_dataset, report_text
from edge_effdet.data.registry import read_dataset
from edge_effdet.options import option


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What is looked at."""

    split: str | None = option(None, help="count this split only (default: all)")
    image_size: Size = option((512, 512), help="the network's input, N or HxW, in whose pixels box sizes are counted")
    decode: bool = option(False, help="decode every image, to find damaged ones")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "data",
        "Look a data set over: what is in it, what is wrong with it and where, and whether the anchors fit.",
        "python -m edge_effdet.data check bccd --image-size 320",
    )
    parser.add_argument("action", choices=("check",), help="what to do")
    parser.add_argument("data", type=Path, metavar="D", help="a data set in COCO, Pascal VOC, YOLO or CSV form")
    add_options(parser, CheckOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    options = options_from(CheckOptions, arguments)
    # The report says everything itself.
    dataset = read_dataset(arguments.data, quiet=True)
    report = check_dataset(dataset, options.image_size, options.split, options.decode)
    return Result(report_text(report), report.to_dict())


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
