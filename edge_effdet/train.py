"""Fine-tune a detector: ``Dataset -> Checkpoint``.

effdet supplies network, anchor labels and loss, timm the schedule and the average, Accelerate devices and processes; the
parts are in ``training``. Boxes are xyxy everywhere; effdet's yxyx appears only where a batch enters its labeler.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts import require_writable
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.data.base import match_classes, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError, MissingDependency, first_line
from edge_effdet.training.options import (
    AffineOptions,
    AugmentOptions,
    DataOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    ScheduleOptions,
    TrainOptions,
)
from edge_effdet.training.stage import (
    _choose_samples,
    _spec_for,
    _warn_of_empty_classes,
    find_dead_loader,
    train_detector,
)

logger = logging.getLogger("edge_effdet.train")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "train", "Fine-tune a detector.", "python -m edge_effdet.train --data bccd --output runs/bccd --epochs 60"
    )
    add_options(parser, DataOptions, ModelOptions, ScheduleOptions, OptimizerOptions)
    add_options(parser, AugmentOptions, AffineOptions, RunOptions)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for checkpoints and logs")
    return parser


def _run(arguments: argparse.Namespace) -> Result | None:
    try:
        import effdet  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency("effdet", "train", "to train") from error
    from edge_effdet.training.distributed import end_process_group
    from edge_effdet.training.start import describe_start

    data = options_from(DataOptions, arguments)
    options = TrainOptions(
        options_from(ModelOptions, arguments),
        options_from(ScheduleOptions, arguments),
        options_from(OptimizerOptions, arguments),
        options_from(AugmentOptions, arguments),
        options_from(AffineOptions, arguments),
        options_from(RunOptions, arguments),
        data.workers,
    )
    first = int(os.environ.get("RANK", "0")) == 0
    if not first:
        # Each process would say the same.
        logging.getLogger("edge_effdet").setLevel(logging.ERROR)
    dataset = read_dataset(data.data)
    if data.fold is not None:
        dataset = dataset.with_fold(data.fold)
    spec = _spec_for(dataset, options.model)
    if options.model.checkpoint is not None:
        dataset = match_classes(dataset, spec)
    (train_name, train), (val_name, val) = _choose_samples(dataset, data)
    _warn_of_empty_classes(train, spec)
    require_writable(arguments.output)
    logger.info(
        "training %s at %dx%d on %d images (split %s), choosing on %d (split %s)",
        spec.name, *spec.image_size, len(train), train_name, len(val), val_name,
    )  # fmt: skip
    provenance = {
        "command": "python -m edge_effdet.train " + " ".join(sys.argv[1:]),
        "data_sha256": samples_sha256(train),
        "val_sha256": samples_sha256(val),
        "splits": {"train": train_name, "val": val_name},
        "fold": data.fold,
        **options.record(),
        "started_from": describe_start(spec.name, options.model),
    }
    started = time.monotonic()
    try:
        best = train_detector(train, val, spec, options, arguments.output, provenance)
    except KeyboardInterrupt:
        logger.info("the same command with --resume goes on from the last checkpoint in %s", arguments.output)
        raise
    except Exception as error:
        death = find_dead_loader(error)
        if death is None:
            raise
        raise DataError(
            f"A process that loads images ended by itself ({first_line(death)}), mostly because memory ran out; give fewer "
            "--workers or a smaller --batch-size, and go on with --resume."
        ) from error
    # Not after an error, because another process may still wait for this one in an exchange that would never end.
    end_process_group()
    if not first:
        return None
    minutes = (time.monotonic() - started) / 60
    ap = (best.provenance["val"] or {}).get("AP", float("nan"))
    judged = f"AP {100 * ap:.1f} on {val_name}, epoch {best.provenance['epoch']}" if val else "the last epoch"
    text = f"{best.path}: {judged}, {minutes:.1f} minutes; see curves.png beside it"
    return Result(text, {"checkpoint": str(best.path), "sha256": best.sha256, **best.provenance, "minutes": minutes})


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
