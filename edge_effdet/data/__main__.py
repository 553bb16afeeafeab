"""``python -m edge_effdet.data check|convert|view D``: look a data set over, write it in another format, or draw its boxes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from edge_effdet.artifacts import Size
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.data.check import USUAL_INPUT, check_dataset, report_text
from edge_effdet.data.convert import FORMATS, convert_dataset
from edge_effdet.data.frames import LabelOptions
from edge_effdet.data.registry import read_dataset, read_raw
from edge_effdet.data.view import draw_sheet
from edge_effdet.options import option


@dataclass(frozen=True, slots=True)
class CheckOptions:
    """What the check looks at."""

    split: str | None = option(None, help="count this split only (default: all)")
    image_size: Size = option(
        USUAL_INPUT,
        help="size of the network's input, N or HxW, in whose pixels box sizes are given; by default that of lite0, which train takes",
    )
    decode: bool = option(False, help="decode every image, to find damaged ones")


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """What is written."""

    to: str = option(help="the format", choices=tuple(FORMATS))
    output: Path = option(help="a folder that does not exist or is empty")
    link: bool = option(False, help="make hard links to the pictures and no copies; both have to be on one disk")


@dataclass(frozen=True, slots=True)
class ViewOptions:
    """What is drawn."""

    output: Path = option(help="the picture to write, .jpg or .png")
    count: int = option(24, help="number of pictures on it")


def make_argument_parser(action: str = "check") -> argparse.ArgumentParser:
    """The parser of ``data check``, ``data convert`` or ``data view``."""
    chosen = _ACTIONS[action]
    parser = make_parser("data", chosen.description, f"python -m edge_effdet.data {action} {chosen.example}")
    parser.add_argument(
        "action", choices=tuple(_ACTIONS), help=f"this is the help of {action}; the others have their own"
    )
    parser.add_argument("data", type=Path, metavar="D", help="a data set, in any format that is read (docs/data.md)")
    add_options(parser, chosen.options, LabelOptions)
    return parser


def _check(arguments: argparse.Namespace) -> Result:
    options = options_from(CheckOptions, arguments)
    # The report lists notes and problems, so they are not logged as well.
    dataset = read_dataset(arguments.data, quiet=True, boxes_in=arguments.boxes_in)
    report = check_dataset(dataset, options.image_size, options.split, options.decode)
    return Result(report_text(report), report.to_dict())


def _convert(arguments: argparse.Namespace) -> Result:
    options = options_from(ConvertOptions, arguments)
    dataset = read_dataset(arguments.data, boxes_in=arguments.boxes_in)
    written = convert_dataset(dataset, options.to, options.output, options.link)
    return Result(written.text(), written.to_dict())


def _view(arguments: argparse.Namespace) -> Result:
    options = options_from(ViewOptions, arguments)
    drawn = draw_sheet(read_raw(arguments.data), options.output, options.count, arguments.boxes_in)
    return Result(drawn.text(), drawn.to_dict())


class _Action(NamedTuple):
    run: Callable[[argparse.Namespace], Result]
    options: type[Any]
    description: str
    example: str


_ACTIONS = {
    "check": _Action(
        _check,
        CheckOptions,
        "Report what a data set holds, what is wrong in it and where, and whether the anchors fit its boxes.",
        "bccd --image-size 320",
    ),
    "convert": _Action(
        _convert,
        ConvertOptions,
        "Write a data set in another format, with its pictures, its splits and its classes.",
        "bccd --to coco --output bccd-coco",
    ),
    "view": _Action(
        _view,
        ViewOptions,
        "Draw pictures of a data set with their boxes on one sheet, those with problems first.",
        "bccd --output sheet.jpg",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    # Each action has flags of its own, so its parser is chosen before the flags are read.
    action = next((word for word in words if word in _ACTIONS), "check")
    return run_verb(make_argument_parser(action), _ACTIONS[action].run, words)


if __name__ == "__main__":
    sys.exit(main())
