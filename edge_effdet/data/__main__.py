"""``python -m edge_effdet.data check D``: report what a data set holds and what is wrong in it."""

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
    """What the check looks at."""

    split: str | None = option(None, help="count this split only (default: all)")
    image_size: Size = option(
        (512, 512), help="size of the network's input, N or HxW; box sizes are given in its pixels"
    )
    decode: bool = option(False, help="decode every image, to find damaged ones")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "data",
        "Report what a data set holds, what is wrong in it and where, and whether the anchors fit its boxes.",
        "python -m edge_effdet.data check bccd --image-size 320",
    )
    parser.add_argument("action", choices=("check",), help="the only action")
    parser.add_argument("data", type=Path, metavar="D", help="a data set in COCO, Pascal VOC, YOLO or CSV form")
    add_options(parser, CheckOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    options = options_from(CheckOptions, arguments)
    # The report lists notes and problems, so they are not logged as well.
    dataset = read_dataset(arguments.data, quiet=True)
    report = check_dataset(dataset, options.image_size, options.split, options.decode)
    return Result(report_text(report), report.to_dict())


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
