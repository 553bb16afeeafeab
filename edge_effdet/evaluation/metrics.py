"""COCO metrics of detections against a split, by faster-coco-eval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.data.base import Sample
from edge_effdet.errors import DataError, MissingDependency


@dataclass(frozen=True, slots=True)
class CocoMetrics:
    """COCO's numbers, 0 to 1; nan where the data has no box of that kind.

    Attributes:
        AP: mean over IoU 0.50 to 0.95.
        AP50, AP75: at one IoU.
        AP_small, AP_medium, AP_large: boxes below 32², to 96², above, pixels of the original.
        per_class: AP by class name, for the classes that have boxes.
        images: how many images were counted.
        per_class_AP50: AP at IoU 0.50 by class name, for the same classes.
        boxes_per_class: how many boxes count, by class name, for the same classes.
    """

    AP: float
    AP50: float
    AP75: float
    AP_small: float
    AP_medium: float
    AP_large: float
    per_class: Mapping[str, float]
    images: int
    per_class_AP50: Mapping[str, float] = field(default_factory=dict)  # noqa: N815 - as AP50 is written
    boxes_per_class: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        """For JSON: nan becomes null."""
        return {key: None if value != value else value for key, value in asdict(self).items()}


def coco_ground_truth(samples: Sequence[Sample], spec: ModelSpec) -> dict[str, list[dict[str, object]]]:
    """The samples as a COCO dictionary; image ids count from 1 in order, category ids are class ids + 1."""
    images = [
        {"id": number, "file_name": sample.path.name, "width": sample.width, "height": sample.height}
        for number, sample in enumerate(samples, start=1)
    ]
    annotations = []
    for number, sample in enumerate(samples, start=1):
        for box, class_id, ignore in zip(sample.boxes.tolist(), sample.class_ids, sample.ignore, strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": int(class_id) + 1,
                    "bbox": [box[0], box[1], width, height],
                    "area": width * height,
                    "iscrowd": int(ignore),
                }
            )
    categories = [{"id": number, "name": name} for number, name in enumerate(spec.class_names, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(detections: Sequence[Detections]) -> list[dict[str, object]]:
    """Detections as a COCO result list. There is one entry an image, in the order of the samples of ``coco_ground_truth``."""
    rows: list[dict[str, object]] = []
    for number, found in enumerate(detections, start=1):
        for box, score, class_id in zip(found.boxes.tolist(), found.scores.tolist(), found.class_ids, strict=True):
            rows.append(
                {
                    "image_id": number,
                    "category_id": int(class_id) + 1,
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "score": score,
                }
            )
    return rows


def coco_metrics(samples: Sequence[Sample], detections: Sequence[Detections], spec: ModelSpec) -> CocoMetrics:
    """Compare detections with the truth.

    Args:
        samples: the images, with class ids of ``spec``.
        detections: one an image, in the same order, in pixels of the original.
        spec: names the classes.

    Raises:
        DataError: no sample has a box that counts, so that AP is not defined.
        MissingDependency: faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ModuleNotFoundError as error:
        raise MissingDependency("faster-coco-eval", "eval", "to compute COCO metrics") from error

    if len(samples) != len(detections):
        raise ValueError(f"{len(samples)} samples and {len(detections)} detections; give one entry an image")
    if not any((~sample.ignore).any() for sample in samples):
        raise DataError("None of the images has a labelled box, so AP is not defined; evaluate on labelled images.")
    truth = COCO(coco_ground_truth(samples, spec))  # type: ignore[arg-type]
    evaluation = COCOeval_faster(truth, truth.loadRes(coco_results(detections)), iouType="bbox")
    evaluation.run()
    stats = [float(value) if value >= 0 else float("nan") for value in evaluation.stats[:6]]
    # precision: [IoU, recall, class, area, max detections]; -1 where a class has no box.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    counts = np.zeros(spec.num_classes, np.int64)
    for sample in samples:
        np.add.at(counts, sample.class_ids[~sample.ignore], 1)
    with_boxes = [position for position in range(spec.num_classes) if (precision[:, :, position] > -1).any()]
    names = spec.class_names
    return CocoMetrics(
        *stats,
        per_class={names[position]: _mean_precision(precision[:, :, position]) for position in with_boxes},
        images=len(samples),
        per_class_AP50={names[position]: _mean_precision(precision[:1, :, position]) for position in with_boxes},
        boxes_per_class={names[position]: int(counts[position]) for position in with_boxes},
    )


def _mean_precision(values: np.ndarray) -> float:
    return float(values[values > -1].mean())
