"""Judge an engine: ``(Engine, Dataset) -> COCO metrics``, from the very file that is deployed."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts import Detections, Engine, ModelSpec, load_engine
from edge_effdet.backends.base import Runner, get_backend, require
from edge_effdet.cli import Result, make_parser, progress, run_verb, table
from edge_effdet.data.dataset import Sample, match_classes, read_dataset, readable_images, samples_sha256
from edge_effdet.detect import detect_image
from edge_effdet.errors import DataError
from edge_effdet.metrics import CocoMetrics, coco_metrics

logger = logging.getLogger("edge_effdet.evaluate")

SPLIT_ORDER = ("test", "val")
SCORE_FLOOR = 0.001
"""Detections below it are not counted: they cannot change AP by a visible amount and cost most of the suppression."""


def evaluate_engine(engine: Engine, samples: Sequence[Sample]) -> CocoMetrics:
    """Run an engine over samples, whose class ids are those of its spec, and compare with their boxes."""
    require(engine.backend)
    with get_backend(engine.backend).load(engine) as runner:
        readable, detections = run_over_samples(runner, samples, engine.spec)
    return coco_metrics(readable, detections, engine.spec)


def run_over_samples(
    runner: Runner, samples: Sequence[Sample], spec: ModelSpec, label: str = "evaluating"
) -> tuple[list[Sample], list[Detections]]:
    """The samples that could be decoded, and what the runner found in each.

    Raises:
        DataError: none could be decoded.
    """
    readable: list[Sample] = []
    detections: list[Detections] = []
    for sample, image in progress(readable_images(samples), len(samples), label):
        readable.append(sample)
        detections.append(detect_image(runner, image, spec, SCORE_FLOOR))
    if not readable:
        raise DataError("None of the images can be decoded; check the files.")
    return readable, detections


def metrics_table(metrics: CocoMetrics) -> str:
    """For people: points, 100 times the AP."""

    def points(value: float) -> str:
        return "-" if value != value else f"{100 * value:.1f}"

    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    summary = table([("images", *names), (str(metrics.images), *(points(getattr(metrics, name)) for name in names))])
    classes = table([("class", "AP"), *((name, points(value)) for name, value in metrics.per_class.items())])
    return f"{summary}\n\n{classes}"


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "evaluate",
        "COCO metrics of an engine or a checkpoint on labelled images.",
        "python -m edge_effdet.evaluate --engine engines/quickstart.int8.onnx --data bccd",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--engine", type=Path, metavar="F", help="an engine that build_engine wrote")
    source.add_argument("--checkpoint", type=Path, metavar="F", help="a .safetensors, run in torch as the reference")
    parser.add_argument("--data", type=Path, required=True, metavar="D", help="a data set in COCO or Pascal VOC form")
    parser.add_argument("--split", metavar="NAME", help="the split (default: test, else val, else everything)")
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.engine is not None:
        engine = load_engine(arguments.engine)
        require(engine.backend)
        split, samples = _read_samples(arguments, engine.spec)
        metrics, source = evaluate_engine(engine, samples), {"engine_sha256": engine.sha256}
    else:
        from edge_effdet.models.checkpoint import load_network, open_checkpoint
        from edge_effdet.train import validate

        checkpoint = open_checkpoint(arguments.checkpoint)
        network = load_network(checkpoint)
        split, samples = _read_samples(arguments, checkpoint.spec)
        metrics, source = validate(network, samples, checkpoint.spec), {"checkpoint_sha256": checkpoint.sha256}
    data = {**metrics.to_dict(), "split": split, "data_sha256": samples_sha256(samples), **source}
    return Result(metrics_table(metrics), data)


def _read_samples(arguments: argparse.Namespace, spec: ModelSpec) -> tuple[str, tuple[Sample, ...]]:
    dataset = match_classes(read_dataset(arguments.data), spec)
    split, samples = dataset.choose_split(arguments.split, SPLIT_ORDER)
    logger.info("evaluating on %d images of %s (split %s)", len(samples), arguments.data, split)
    return split, samples


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
