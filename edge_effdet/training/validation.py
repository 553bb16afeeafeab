"""Validation of the averaged network: losses and COCO metrics from one pass over the split, which the processes divide among them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.cli import progress
from edge_effdet.data.base import Sample
from edge_effdet.errors import DataError
from edge_effdet.evaluation.metrics import CocoMetrics, coco_metrics
from edge_effdet.evaluation.run import SCORE_FLOOR
from edge_effdet.runtime.postprocess import detections_from_outputs
from edge_effdet.training.loader import batches_of, validation_loader
from edge_effdet.training.options import TrainConfig
from edge_effdet.training.trainer import Trainer

logger = logging.getLogger("edge_effdet.train")


@dataclass(frozen=True, slots=True)
class Validation:
    """The losses on the validation split (total, class, box, as effdet's bench has them), averaged over its images, and COCO metrics."""

    losses: tuple[float, float, float]
    metrics: CocoMetrics


def validate(trainer: Trainer, samples: Sequence[Sample], spec: ModelSpec, config: TrainConfig) -> Validation:
    """Run the averaged network over ``samples``, without augmentation, and compare its outputs with their boxes.

    Every process takes its share and gets the same result.

    Raises:
        DataError: none of the images can be decoded.
        UsageError: as ``batches_of``.
    """
    accelerator = trainer.accelerator
    mine = range(accelerator.process_index, len(samples), accelerator.num_processes)
    loader = validation_loader(samples, mine, spec, config, accelerator.num_processes)
    found: list[tuple[int, Detections]] = []
    sums = np.zeros(4)
    with torch.inference_mode():
        for batch in progress(batches_of(loader), len(loader), "validating"):
            for message in batch.unreadable:
                logger.warning("skipped an image: %s", message)
            if not batch.indices:
                continue
            class_levels, box_levels = trainer.detector.network(trainer.pixels_of(batch))
            losses = trainer.validation_losses(class_levels, box_levels, batch)
            sums += np.array([*losses, 1.0]) * len(batch.indices)
            outputs = [each.cpu().numpy() for each in trainer.detector.decode(class_levels, box_levels)]
            found += [
                (index, _detections(samples[index], spec, *(output[position] for output in outputs)))
                for position, index in enumerate(batch.indices)
            ]
    everything: list[Any] = [(found, sums)]
    if accelerator.num_processes > 1:
        everything = gather_object(everything)
    merged = sorted((pair for part, _ in everything for pair in part), key=lambda pair: pair[0])
    totals = np.sum([part for _, part in everything], axis=0)
    if not merged:
        raise DataError("None of the validation images can be decoded; check the files.")
    metrics = coco_metrics([samples[index] for index, _ in merged], [each for _, each in merged], spec)
    total, class_loss, box_loss = (totals[:3] / totals[3]).tolist()
    return Validation((total, class_loss, box_loss), metrics)


def _detections(
    sample: Sample, spec: ModelSpec, boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray
) -> Detections:
    return detections_from_outputs(
        boxes, scores, class_ids, (sample.height, sample.width), spec.image_size, SCORE_FLOOR
    )
