"""The report of an evaluation, for people and for other tools: tables, COCO results, and pictures of the worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import json_text, printable, write_json, write_text
from edge_effdet.cli import table
from edge_effdet.data.base import Dataset
from edge_effdet.evaluation.confusion import (
    IOU_THRESHOLD,
    SCORE_THRESHOLD,
    ConfusionView,
    confusion_table,
    most_confused_with,
    save_confusion_picture,
    view_confusion,
)
from edge_effdet.evaluation.run import Evaluation
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.sinks import shortened

FILES = ("metrics.json", "detections.json", "confusion.txt", "confusion.png", "pictures", "worst.png")
"""What ``write_evaluation`` writes into its folder; ``pictures`` is a folder."""

SHEET_PICTURES, SHEET_COLUMNS, SHEET_WIDTH, SHEET_GAP = 6, 2, 900, 16


def evaluation_text(evaluation: Evaluation) -> str:
    """Tables for people: the metrics in points, 100 times the AP, then a row for each class that has boxes, with its mistakes."""
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
    return "\n".join([f"{summary}\n\n{table(rows)}\n{counted}", *(f"\n{remark}" for remark in evaluation.remarks)])


def write_evaluation(evaluation: Evaluation, results: Sequence[Mapping[str, Any]], folder: Path, pictures: int) -> None:
    """Write metrics.json, detections.json, the confusion matrix and pictures, the worst first.

    Args:
        evaluation: the evaluation to report.
        results: its detections as a COCO result list.
        folder: the folder to write into, made where it is missing.
        pictures: how many pictures are written at most.
    """
    matrix, spec = evaluation.confusion, evaluation.spec
    view = view_confusion(matrix, spec.class_names)
    # A line a detection: there are a hundred in each picture.
    write_text(folder / "detections.json", "[\n" + ",\n".join(map(json_text, results)) + "\n]\n")
    write_text(folder / "confusion.txt", confusion_table(view) + "\n")
    save_confusion_picture(folder / "confusion.png", view, _confusion_title(view, evaluation))
    written = _write_pictures(evaluation, folder, pictures)
    confusion = {"classes": [*spec.class_names], "counts": matrix.tolist()}
    write_json(folder / "metrics.json", {**evaluation.to_dict(), "confusion": confusion, "pictures": written})


def rank_worst(evaluation: Evaluation) -> list[int]:
    """Indices of the pictures by their number of mistakes (missed, false, confused), most first; equal ones in their order."""
    return sorted(range(len(evaluation.samples)), key=lambda index: -sum(evaluation.errors[index]))


def coco_result_list(evaluation: Evaluation, own_ids: Mapping[int, int], numbers: bool) -> list[dict[str, Any]]:
    """Detections as COCO's tools take them, with the data set's own ids.

    Args:
        evaluation: its detections are listed.
        own_ids: the data set's category id of each class id; detections of other classes are left out.
        numbers: whether image ids of digits alone become numbers, as they are in a COCO file.
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
    """The data set's own category id of each class id of the model.

    Args:
        original: the data set as it was read.
        matched: the same after ``match_classes``.

    Returns:
        No entry for a class that the data set does not have.
    """
    by_name = {name.casefold(): index for index, name in enumerate(matched.class_names)}
    by_name |= {name: index for index, name in enumerate(matched.class_names)}
    ids: dict[int, int] = {}
    for name, number in zip(original.class_names, original.category_ids, strict=True):
        index = by_name.get(name, by_name.get(name.casefold()))
        if index is not None:
            ids[index] = number
    # Boxes decide before names do, because classes may have been matched by their ids.
    for before, after in zip(original.all_samples(), matched.all_samples(), strict=True):
        for own, index in zip(before.class_ids.tolist(), after.class_ids.tolist(), strict=True):
            ids[index] = original.category_ids[own]
    return ids


def _write_pictures(evaluation: Evaluation, folder: Path, limit: int) -> list[dict[str, Any]]:
    """Draw the worst pictures with labelled and detected boxes, and the first of them on a sheet; gives the entries of ``metrics.json``."""
    from edge_effdet.runtime.drawing import contact_sheet, draw_comparison, save_picture

    written: list[dict[str, Any]] = []
    sheet: list[np.ndarray] = []
    for rank, index in enumerate(rank_worst(evaluation)[:limit], start=1):
        sample = evaluation.samples[index]
        found = evaluation.detections[index].above(SCORE_THRESHOLD)
        missed, false, confused = evaluation.errors[index]
        caption = f"{printable(sample.path.name)}: {missed} missed, {false} false, {confused} confused, at a score of {SCORE_THRESHOLD:g}"
        labels = [
            evaluation.spec.class_names[class_id] + (" (ignored)" if ignored else "")
            for class_id, ignored in zip(sample.class_ids.tolist(), sample.ignore, strict=True)
        ]
        picture = draw_comparison(read_image(sample.path), sample.boxes, labels, found, evaluation.spec, caption)
        file = f"pictures/{rank:03}_{shortened(printable(sample.path.stem))}.jpg"
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
