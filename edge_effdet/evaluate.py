"""Judge an engine or checkpoints: COCO metrics, what is taken for what, and pictures of where it goes wrong.

An engine is judged by the very file that is deployed; checkpoints run in torch, several of them fused as ``predict`` does.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Engine, ModelSpec, load_engine, require_writable, write_json, write_text
from edge_effdet.backends.base import Runner, get_backend, require
from edge_effdet.cli import Result, add_options, make_parser, options_from, progress, run_verb, table
from edge_effdet.confusion import (
    IOU_THRESHOLD,
    SCORE_THRESHOLD,
    ConfusionView,
    confusion_matrix,
    confusion_table,
    count_errors,
    most_confused_with,
    save_confusion_picture,
    view_confusion,
)
from edge_effdet.data.dataset import (
    Dataset,
    Sample,
    match_classes,
    read_dataset,
    readable_images,
    samples_sha256,
)
from edge_effdet.errors import DataError, UsageError
from edge_effdet.golden import require_same_results
from edge_effdet.images import read_image
from edge_effdet.metrics import CocoMetrics, coco_metrics
from edge_effdet.predict import (
    InferenceOptions,
    Member,
    check_options,
    chunks,
    describe_checkpoints,
    load_members,
    predict_images,
)

logger = logging.getLogger("edge_effdet.evaluate")

SPLIT_ORDER = ("test", "val")
FOLD_SPLIT_ORDER = ("val",)
SCORE_FLOOR = 0.001
"""Detections below it are not counted: they cannot change AP by a visible amount and cost most of the suppression."""

PICTURES = 24
SHEET_PICTURES, SHEET_COLUMNS, SHEET_WIDTH, SHEET_GAP = 6, 2, 900, 16


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a detector found in labelled pictures, and what that is worth.

    Attributes:
        samples: the pictures that could be decoded.
        detections: one entry a picture, down to ``SCORE_FLOOR``.
        spec: names the classes.
        metrics: COCO's.
        confusion: over all pictures, int64 [C + 1, C + 1]; see ``confusion_matrix``.
        errors: boxes missed, made up and misnamed in each picture.
    """

    samples: Sequence[Sample]
    detections: Sequence[Detections]
    spec: ModelSpec
    metrics: CocoMetrics
    confusion: np.ndarray
    errors: Sequence[tuple[int, int, int]]


def evaluate_engine(engine: Engine, samples: Sequence[Sample]) -> CocoMetrics:
    """Run an engine over samples, whose class ids are those of its spec, and compare with their boxes."""
    readable, detections = detect_samples(engine, samples)
    return coco_metrics(readable, detections, engine.spec)


def detect_samples(engine: Engine, samples: Sequence[Sample]) -> tuple[list[Sample], list[Detections]]:
    """The samples that could be decoded, and what an engine found in each."""
    require(engine.backend)
    with get_backend(engine.backend).load(engine) as runner:
        return run_over_samples(runner, samples, engine.spec)


def evaluate_members(
    members: Sequence[Member], samples: Sequence[Sample], options: InferenceOptions, label: str = "evaluating"
) -> Evaluation:
    """Run models over samples, whose class ids are those of their spec, and compare with their boxes."""
    spec = members[0].spec
    readable, detections = run_members_over_samples(members, samples, options, label)
    metrics = coco_metrics(readable, detections, spec)
    confusion = np.zeros((spec.num_classes + 1, spec.num_classes + 1), np.int64)
    errors: list[tuple[int, int, int]] = []
    for sample, found in zip(readable, detections, strict=True):
        matrix = confusion_matrix([sample], [found], spec.num_classes)
        confusion += matrix
        errors.append(count_errors(matrix))
    return Evaluation(readable, detections, spec, metrics, confusion, errors)


def run_over_samples(
    runner: Runner, samples: Sequence[Sample], spec: ModelSpec, label: str = "evaluating", batch_size: int = 1
) -> tuple[list[Sample], list[Detections]]:
    """The samples that could be decoded, and what the runner found in each.

    Raises:
        DataError: none could be decoded.
    """
    return run_members_over_samples([Member(runner, spec)], samples, InferenceOptions(batch_size=batch_size), label)


def run_members_over_samples(
    members: Sequence[Member], samples: Sequence[Sample], options: InferenceOptions, label: str = "evaluating"
) -> tuple[list[Sample], list[Detections]]:
    """As ``run_over_samples``, with models and views fused.

    Raises:
        DataError: none could be decoded.
    """
    readable: list[Sample] = []
    detections: list[Detections] = []
    for chunk in chunks(progress(readable_images(samples), len(samples), label), options.batch_size):
        readable += [sample for sample, _ in chunk]
        detections += predict_images(members, [image for _, image in chunk], SCORE_FLOOR, options)
    if not readable:
        raise DataError("None of the images can be decoded; check the files.")
    return readable, detections


def evaluation_text(evaluation: Evaluation) -> str:
    """For people: points, 100 times the AP; then each class that has boxes, with what goes wrong in it."""
    metrics, matrix, class_names = evaluation.metrics, evaluation.confusion, evaluation.spec.class_names

    def points(value: float) -> str:
        return "-" if value != value else f"{100 * value:.1f}"

    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    summary = table([("images", *names), (str(metrics.images), *(points(getattr(metrics, name)) for name in names))])
    rows = [("class", "boxes", "AP", "AP50", "missed", "false", "most confused with")]
    for class_id, name in enumerate(class_names):
        if name not in metrics.per_class:
            continue
        confused = most_confused_with(matrix, class_id)
        rows.append(
            (
                name,
                str(metrics.boxes_per_class[name]),
                points(metrics.per_class[name]),
                points(metrics.per_class_AP50[name]),
                str(matrix[class_id, -1]),
                str(matrix[-1, class_id]),
                f"{class_names[confused[0]]} ({confused[1]})" if confused else "-",
            )
        )
    counted = f"missed, false, confused: at a score of {SCORE_THRESHOLD:g} and an IoU of {IOU_THRESHOLD:g}"
    return f"{summary}\n\n{table(rows)}\n{counted}"


def write_evaluation(
    evaluation: Evaluation, data: Mapping[str, Any], results: Sequence[Mapping[str, Any]], folder: Path, pictures: int
) -> None:
    """Write metrics.json, detections.json, the confusion matrix and pictures, the worst first.

    Args:
        evaluation: what to write about.
        data: what ``--json`` prints.
        results: a COCO result list.
        folder: made where it is missing.
        pictures: at most so many.
    """
    matrix, spec = evaluation.confusion, evaluation.spec
    view = view_confusion(matrix, spec.class_names)
    # A line a detection: there are a hundred in each picture.
    write_text(folder / "detections.json", "[\n" + ",\n".join(map(json.dumps, results)) + "\n]\n")
    write_text(folder / "confusion.txt", confusion_table(view) + "\n")
    save_confusion_picture(folder / "confusion.png", view, _confusion_title(view, evaluation))
    written = _write_pictures(evaluation, folder, pictures)
    confusion = {"classes": [*spec.class_names], "counts": matrix.tolist()}
    write_json(folder / "metrics.json", {**data, "confusion": confusion, "pictures": written})


def rank_worst(evaluation: Evaluation) -> list[int]:
    """Indices of the pictures by the number of boxes missed, made up or misnamed, most first; ties as they stand."""
    return sorted(range(len(evaluation.samples)), key=lambda index: -sum(evaluation.errors[index]))


def coco_result_list(evaluation: Evaluation, own_ids: Mapping[int, int], numbers: bool) -> list[dict[str, Any]]:
    """Detections as COCO's tools take them, with the data set's own ids.

    Args:
        evaluation: what was found.
        own_ids: the data set's category id of each class id; detections of other classes are left out.
        numbers: whether image ids that are digits are numbers there, as in a COCO file.
    """
    rows: list[dict[str, Any]] = []
    for sample, found in zip(evaluation.samples, evaluation.detections, strict=True):
        image_id = int(sample.image_id) if numbers and sample.image_id.isdecimal() else sample.image_id
        for box, score, class_id in zip(found.boxes.tolist(), found.scores.tolist(), found.class_ids, strict=True):
            if int(class_id) not in own_ids:
                continue
            x_min, y_min, x_max, y_max = box
            bbox = [round(value, 3) for value in (x_min, y_min, x_max - x_min, y_max - y_min)]
            rows.append(
                {
                    "image_id": image_id,
                    "category_id": own_ids[int(class_id)],
                    "bbox": bbox,
                    "score": round(score, 6),
                }
            )
    return rows


def own_category_ids(original: Dataset, matched: Dataset) -> dict[int, int]:
    """The data set's own category id of each of the model's class ids, from the data set before and after ``match_classes``.

    Classes of the model that the data set does not have are missing.
    """
    by_name = {name.casefold(): index for index, name in enumerate(matched.class_names)}
    by_name |= {name: index for index, name in enumerate(matched.class_names)}
    ids: dict[int, int] = {}
    for name, number in zip(original.class_names, original.category_ids, strict=True):
        index = by_name.get(name, by_name.get(name.casefold()))
        if index is not None:
            ids[index] = number
    # What the boxes say goes before names: classes may have been matched by their ids.
    for before, after in zip(original.all_samples(), matched.all_samples(), strict=True):
        for own, index in zip(before.class_ids.tolist(), after.class_ids.tolist(), strict=True):
            ids[index] = original.category_ids[own]
    return ids


def _write_pictures(evaluation: Evaluation, folder: Path, limit: int) -> list[dict[str, Any]]:
    """The worst pictures with truth and predictions, and a sheet of the first of them; what ``metrics.json`` says of each."""
    from edge_effdet.drawing import contact_sheet, draw_comparison, save_picture

    written: list[dict[str, Any]] = []
    sheet: list[np.ndarray] = []
    for rank, index in enumerate(rank_worst(evaluation)[:limit], start=1):
        sample = evaluation.samples[index]
        found = evaluation.detections[index].above(SCORE_THRESHOLD)
        missed, false, confused = evaluation.errors[index]
        caption = f"{sample.path.name}: {missed} missed, {false} false, {confused} confused, at a score of {SCORE_THRESHOLD:g}"
        labels = [
            evaluation.spec.class_names[class_id] + (" (ignored)" if ignored else "")
            for class_id, ignored in zip(sample.class_ids.tolist(), sample.ignore, strict=True)
        ]
        picture = draw_comparison(read_image(sample.path), sample.boxes, labels, found, evaluation.spec, caption)
        file = f"pictures/{rank:03}_{sample.path.stem}.jpg"
        save_picture(folder / file, picture)
        if len(sheet) < SHEET_PICTURES:
            sheet.append(np.pad(picture, ((0, SHEET_GAP), (0, SHEET_GAP), (0, 0)), constant_values=255))
        errors = {"missed": missed, "false": false, "confused": confused}
        written.append({"file": file, "image_id": sample.image_id, **errors})
    if sheet:
        tallest = max(picture.shape[0] / picture.shape[1] for picture in sheet)
        cell = (min(SHEET_WIDTH, round(SHEET_WIDTH * tallest)), SHEET_WIDTH)
        save_picture(folder / "worst.png", contact_sheet(sheet, min(SHEET_COLUMNS, len(sheet)), cell))
    return written


def _confusion_title(view: ConfusionView, evaluation: Evaluation) -> str:
    text = f"{len(evaluation.samples)} images, score ≥ {SCORE_THRESHOLD:g}, IoU ≥ {IOU_THRESHOLD:g}"
    hidden = len(evaluation.metrics.per_class) - view.named
    return f"{text}\nthe most confused classes; {hidden} more are summed up" if hidden > 0 else text


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
    parser.add_argument(
        "--self-check", action=argparse.BooleanOptionalAction, default=True,
        help="on a machine of another kind than the engine was proven on, see first that it finds the same there",
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
        # What batches a dynamic engine takes is its builder's secret; one image always fits.
        options = replace(options, batch_size=1)
        with get_backend(engine.backend).load(engine) as runner:
            if arguments.self_check:
                require_same_results(runner, engine)
            else:
                logger.warning("%s is judged without its golden check, as asked", engine.path.name)
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
