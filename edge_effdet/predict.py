"""Find objects with trained checkpoints, in torch: ``(Checkpoints, images) -> Detections``.

For looking at a model before it is built into an engine, and for what an engine does not do: several models (the folds of a
cross-validation, say) and mirrored views of a picture as one answer.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import write_json
from edge_effdet.cli import Result, add_options, make_parser, options_from, progress, run_verb
from edge_effdet.errors import DataError
from edge_effdet.evaluation.members import (
    InferenceOptions,
    check_options,
    chunks,
    describe_checkpoints,
    load_members,
    predict_images,
)
from edge_effdet.runtime.detector import DetectOptions
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.run import refuse_own_folder, results_table
from edge_effdet.runtime.sinks import detections_to_json, picture_names
from edge_effdet.runtime.sources import find_images

logger = logging.getLogger("edge_effdet.predict")


def readable_sources(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Each picture that can be decoded; others are skipped with a warning and counted.

    Raises:
        DataError: none could be decoded.
    """
    skipped = 0
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            if len(paths) == 1:
                raise
            skipped += 1
            logger.warning("skipped an image: %s", error)
            continue
        yield path, image
    if skipped == len(paths):
        raise DataError("None of the images could be decoded; check the files.")
    if skipped:
        logger.warning("%d of %d images could not be decoded and were left out", skipped, len(paths))


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "predict",
        "Find objects in images with one checkpoint or several, in torch.",
        "python -m edge_effdet.predict --checkpoint runs/bccd/best.safetensors --source photos --output found",
    )
    parser.add_argument(
        "--checkpoint", type=Path, action="append", required=True, metavar="F",
        help="a .safetensors of train; given several times, their predictions are fused",
    )  # fmt: skip
    parser.add_argument("--source", type=Path, required=True, metavar="S", help="an image or a folder of images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write annotated pictures and detections.json here")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="X", help="lower scores are dropped (default: 0.3)"
    )
    add_options(parser, InferenceOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    options = options_from(InferenceOptions, arguments)
    check_options(options)
    sources = find_images(arguments.source)
    DetectOptions(arguments.score_threshold).check()
    refuse_own_folder(arguments.output, sources)
    checkpoints, members = load_members(arguments.checkpoint, options.device)
    spec = checkpoints[0].spec
    names = picture_names(sources)
    results: list[dict[str, Any]] = []
    readable = progress(readable_sources(sources), len(sources), "predicting")
    for chunk in chunks(readable, options.batch_size):
        found = predict_images(members, [image for _, image in chunk], arguments.score_threshold, options)
        for (path, image), detections in zip(chunk, found, strict=True):
            results.append(detections_to_json(path, detections, spec))
            if arguments.output:
                from edge_effdet.runtime.drawing import save_annotated

                save_annotated(arguments.output / names[path], image, detections, spec)
    data = {"checkpoints": describe_checkpoints(checkpoints), "tta": options.tta, "images": results}
    if arguments.output:
        write_json(arguments.output / "detections.json", data)
    return Result(results_table(results), data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
