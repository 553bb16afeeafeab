"""Write the manifest of a calibration set: its images, their hashes, and how they were chosen.

    python calibration/make_manifest.py --data bccd --split train --output calibration/bccd.json

``--check`` writes nothing; it compares a manifest with the data and fails where they differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import ModelSpec, refuse_overwrite, write_json
from edge_effdet.cli import Result, make_parser, run_verb
from edge_effdet.data.pictures import read_images
from edge_effdet.errors import DataError, UsageError
from edge_effdet.graph.model import load_graph
from edge_effdet.quant.calibration import CHOICES, manifest_record
from edge_effdet.quant.choose import load_calibration_images


def make_manifest(
    data: Path, split: str, count: int, seed: int, choice: str = "random", onnx: Path | None = None
) -> dict[str, Any]:
    """The manifest of the images that ``quantize`` would calibrate on, ready for JSON.

    Args:
        data: a data set, or a folder of pictures without labels, whose split is ``all``.
        split: the split to choose from.
        count: how many images.
        seed: the seed of the random choice.
        choice: one of ``CHOICES``.
        onnx: the graph whose backbone ``k-center`` looks at the images with.

    Raises:
        UsageError: ``k-center`` is chosen without a graph, or ``count`` is too small.
        DataError: too few images can be read.
    """
    _, samples = read_images(data).choose_split(split, ())
    graph = load_graph(onnx) if onnx is not None else None
    if choice == "k-center" and graph is None:
        raise UsageError("`choice` k-center looks at images with a backbone; give a graph of export as `onnx`.")
    images = load_calibration_images(samples, graph.spec if graph else _ANY_SPEC, count, seed, choice, graph)
    return manifest_record(replace(images, split=split), data.name)


_ANY_SPEC = ModelSpec("any", (64, 64), ("object",), (1,))
"""A random choice looks at no pixel, so any model will do."""


def _run(arguments: argparse.Namespace) -> Result:
    if not arguments.check:
        refuse_overwrite([arguments.output], [arguments.data, arguments.onnx])
    manifest = make_manifest(
        arguments.data, arguments.split, arguments.images, arguments.seed, arguments.choice, arguments.onnx
    )
    digest = manifest["manifest_sha256"]
    if arguments.check:
        expected = json.loads(arguments.output.read_text(encoding="utf-8"))
        if expected["manifest_sha256"] != digest:
            raise DataError(
                f"{arguments.output} does not describe {arguments.data}, because its images or the choice changed; write it again without `check`."
            )
        return Result(f"{arguments.output} describes {arguments.data}", {"manifest_sha256": digest})
    write_json(arguments.output, manifest)
    return Result(f"{arguments.output}: {manifest['count']} images, manifest {digest}", {"manifest_sha256": digest})


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "calibration",
        "Write or check a calibration manifest.",
        "python calibration/make_manifest.py …",
        prog="python calibration/make_manifest.py",
    )
    parser.add_argument("--data", type=Path, required=True, metavar="D", help="a data set")
    parser.add_argument("--split", default="train", metavar="NAME", help="the split to choose from (default: train)")
    parser.add_argument("--images", type=int, default=128, metavar="N", help="how many images (default: 128)")
    parser.add_argument(
        "--choice",
        choices=CHOICES,
        default="random",
        help="how the images are chosen: at random with the seed, or so that none is far from all of them (default: random)",
    )
    parser.add_argument(
        "--onnx", type=Path, metavar="F", help="for k-center: the graph whose backbone looks at the images"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the random choice of images (default: 0)"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="F", help="the manifest")
    parser.add_argument("--check", action="store_true", help="compare the manifest with the data and write nothing")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
