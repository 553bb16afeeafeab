"""Judge an engine or checkpoints: COCO metrics, what is taken for what, and pictures of where it goes wrong.

An engine is judged by the very file that is deployed; checkpoints run in torch, several of them fused as ``predict`` does.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import ModelSpec, load_engine, require_writable
from edge_effdet.backends.base import get_backend, require
from edge_effdet.cli import Result, add_options, add_switch, make_parser, options_from, run_verb
from edge_effdet.data.base import Sample, match_classes, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import UsageError
from edge_effdet.evaluation.members import (
    InferenceOptions,
    Member,
    check_options,
    describe_checkpoints,
    load_members,
)
from edge_effdet.evaluation.report import coco_result_list, evaluation_text, own_category_ids, write_evaluation
from edge_effdet.evaluation.run import FOLD_SPLIT_ORDER, SPLIT_ORDER, Evaluation, evaluate_members
from edge_effdet.runtime.golden import require_same_results

logger = logging.getLogger("edge_effdet.evaluate")


PICTURES = 24


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
        help="a .safetensors, run in torch as the reference; given several times, their predictions are fused",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=Path, required=True, metavar="D", help="a labelled data set, of any format known"
    )
    parser.add_argument(
        "--split", metavar="NAME", help="the split (default: test, else val, else everything; with --fold val)"
    )
    parser.add_argument("--fold", type=int, metavar="K", help="judge on the images of this fold")
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="write metrics, detections, the confusion matrix and pictures of the worst images here",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", type=int, default=PICTURES, metavar="N", help=f"at most so many pictures (default: {PICTURES})"
    )
    add_switch(
        parser, "--self-check", True,
        "on a machine of another kind than the engine was proven on, see first that it finds the same there",
    )  # fmt: skip
    add_options(parser, InferenceOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    options = options_from(InferenceOptions, arguments)
    check_options(options)
    if arguments.pictures < 0:
        raise UsageError(f"--pictures {arguments.pictures} makes no sense; give 0 or more.")
    if arguments.engine is not None:
        engine = load_engine(arguments.engine)
        require(engine.backend)
        split, samples, own_ids, kind = _read_samples(arguments, engine.spec)
        # An engine with a dynamic batch takes the batch sizes that it was built for, and its record does not name them; a batch of
        # one image always fits.
        options = replace(options, batch_size=1)
        with get_backend(engine.backend).load(engine) as runner:
            require_same_results(runner, engine, wanted=arguments.self_check)
            evaluation = _evaluate(arguments, [Member(runner, engine.spec)], samples, options)
        source: dict[str, Any] = {"engine_sha256": engine.sha256}
    else:
        checkpoints, members = load_members(arguments.checkpoint, options.device)
        split, samples, own_ids, kind = _read_samples(arguments, members[0].spec)
        evaluation = _evaluate(arguments, members, samples, options)
        source = {"checkpoints": describe_checkpoints(checkpoints)}
        if len(checkpoints) == 1:
            source["checkpoint_sha256"] = checkpoints[0].sha256
    data = {
        **evaluation.metrics.to_dict(),
        "split": split,
        "data_sha256": samples_sha256(samples),
        "tta": options.tta,
        **source,
    }
    text = evaluation_text(evaluation)
    if arguments.output:
        results = coco_result_list(evaluation, own_ids, numbers=kind == "coco")
        left_out = sum(len(found) for found in evaluation.detections) - len(results)
        if left_out:
            logger.warning(
                "%d detections of classes that the data set does not have are not in detections.json", left_out
            )
        write_evaluation(evaluation, data, results, arguments.output, arguments.pictures)
        text += f"\n\nwritten to {arguments.output}: metrics.json, detections.json, confusion.png, confusion.txt"
        text += ", pictures, worst.png" if arguments.pictures else ""
    return Result(text, data)


def _evaluate(
    arguments: argparse.Namespace, members: Sequence[Member], samples: Sequence[Sample], options: InferenceOptions
) -> Evaluation:
    if arguments.output:
        require_writable(arguments.output)
    return evaluate_members(members, samples, options)


def _read_samples(
    arguments: argparse.Namespace, spec: ModelSpec
) -> tuple[str, tuple[Sample, ...], dict[int, int], str]:
    """The split's name, its samples with the model's class ids, the data set's own category ids, and its kind."""
    dataset = read_dataset(arguments.data)
    if arguments.fold is not None:
        dataset = dataset.with_fold(arguments.fold)
        if arguments.checkpoint is not None and len(arguments.checkpoint) > 1:
            logger.warning(
                "fold %d is held out by its own checkpoint only: those of the other folds were trained on these images, "
                "and the numbers below are too good",
                arguments.fold,
            )
    matched = match_classes(dataset, spec)
    order = SPLIT_ORDER if arguments.fold is None else FOLD_SPLIT_ORDER
    split, samples = matched.choose_split(arguments.split, order)
    logger.info("evaluating on %d images of %s (split %s)", len(samples), arguments.data, split)
    return split, samples, own_category_ids(dataset, matched), dataset.kind


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
