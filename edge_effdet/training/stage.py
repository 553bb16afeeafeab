"""Fine-tune a detector: ``(Dataset, options) -> Checkpoint``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import AnchorSpec, Checkpoint, ModelSpec, require_writable
from edge_effdet.data.base import Dataset, Sample
from edge_effdet.errors import CheckpointError, DataError, UsageError
from edge_effdet.runtime.images import read_image
from edge_effdet.training.options import (
    DataOptions,
    ModelOptions,
    TrainOptions,
    check_options,
)

logger = logging.getLogger("edge_effdet.train")


DEFAULT_MODEL = "tf_efficientdet_lite0"


def train_detector(
    train: Sequence[Sample],
    val: Sequence[Sample],
    spec: ModelSpec,
    options: TrainOptions,
    output: Path,
    provenance: dict[str, Any],
) -> Checkpoint:
    """Train and return the best checkpoint.

    Writes into ``output``: ``best.safetensors`` by AP on ``val`` (without ``val`` the last epoch), ``best_loss.safetensors`` by
    its loss, ``last.safetensors``, ``resume.safetensors``, ``metrics.jsonl``, ``curves.png``, ``samples.png`` and TensorBoard events.
    The weights that are kept are the averaged ones.

    Under torchrun or ``accelerate launch`` each batch is divided among the processes, and every one returns the same.

    Args:
        train, val: samples with class ids of ``spec``.
        spec: the model to train.
        options: see ``training.options``.
        output: a folder, made if it is missing.
        provenance: goes into the metadata, with the metrics.

    Raises:
        DataError: no training image has a box, or none can be decoded.
        CheckpointError, UsageError: the starting weights, the batch, or a run to resume do not fit.
    """
    import torch

    from edge_effdet.training.loader import EpochBatches
    from edge_effdet.training.loop import Run
    from edge_effdet.training.memory import require_memory
    from edge_effdet.training.qat import insert_fake_quantizers
    from edge_effdet.training.report import draw_samples
    from edge_effdet.training.start import starting_network
    from edge_effdet.training.trainer import Trainer, make_accelerator

    accelerator = make_accelerator(options)
    rank, processes = accelerator.process_index, accelerator.num_processes
    check_options(options, spec, len(train), processes)
    _check_samples(train, val)
    seed = options.schedule.seed
    torch.manual_seed(seed)
    network = starting_network(spec, options.model)
    if options.model.qat:
        network = insert_fake_quantizers(network, spec, train, seed)
    batches = EpochBatches(len(train), options.schedule.batch_size, seed, rank, processes)
    trainer = Trainer(network, spec, options, len(batches), accelerator)
    require_memory(trainer, batches.batch_size // processes, spec.image_size)
    run = Run(trainer, train, val, batches, spec, options, output, provenance)
    if options.run.resume:
        run.restore()
    else:
        run.require_unused()
    if accelerator.is_main_process:
        require_writable(output)
        draw_samples(output / "samples.png", train, spec, options)
    return run.run()


def _check_samples(train: Sequence[Sample], val: Sequence[Sample]) -> None:
    if not any((~sample.ignore).any() for sample in train):
        raise DataError("No image of the training split has a labelled box; check the annotations.")
    if val and not any((~sample.ignore).any() for sample in val):
        raise DataError(
            "No image of the validation split has a labelled box, so no epoch can be called the best; choose another with "
            "--val-split."
        )
    # Found out here, because an error inside a worker process arrives as a traceback, and one in validation after an epoch.
    for split, samples in (("training", train), ("validation", val)):
        if samples and not any((~sample.ignore).any() and _can_be_decoded(sample) for sample in samples):
            raise DataError(f"None of the {split} images with a box can be decoded; check the files.")


def _can_be_decoded(sample: Sample) -> bool:
    try:
        read_image(sample.path)
    except DataError:
        return False
    return True


def _warn_of_empty_classes(train: Sequence[Sample], spec: ModelSpec) -> None:
    seen = {int(class_id) for sample in train for class_id in sample.class_ids[~sample.ignore]}
    empty = [name for index, name in enumerate(spec.class_names) if index not in seen]
    if empty:
        logger.warning(
            "%d of %d classes have no box in the training split and cannot be learned (first: %s)",
            len(empty), spec.num_classes, ", ".join(empty[:3]),
        )  # fmt: skip


def _choose_samples(
    dataset: Dataset, data: DataOptions
) -> tuple[tuple[str, tuple[Sample, ...]], tuple[str, tuple[Sample, ...]]]:
    train_name, train = dataset.choose_split(data.split, ("train",))
    if data.val_split is None and "val" not in dataset.splits:
        logger.warning("%s has no split val: the last epoch is kept as the best", data.data)
        return (train_name, train), ("none", ())
    val_name, val = dataset.choose_split(data.val_split, ("val",))
    shared = {sample.image_id for sample in train} & {sample.image_id for sample in val}
    if shared:
        raise UsageError(
            f"{len(shared)} images stand in both {train_name} and {val_name}, so the best epoch would be chosen on training "
            "images; choose other splits with --split and --val-split."
        )
    return (train_name, train), (val_name, val)


def find_dead_loader(error: BaseException) -> BaseException | None:
    """What torch said when a process that loads images died, where that is behind an error.

    torch says it from a signal handler, so in whatever line the training stands, and what a library was doing there may
    have turned it into an error of its own.
    """
    link: BaseException | None = error
    while link is not None and "DataLoader worker" not in str(link):
        link = link.__cause__ or link.__context__
    return link


def _spec_for(dataset: Dataset, options: ModelOptions) -> ModelSpec:
    """The checkpoint's own spec where there is one, so that nothing has to be said twice; else from the data's classes."""
    from edge_effdet.models.checkpoint import is_effdet_file, open_checkpoint
    from edge_effdet.models.zoo import model_spec

    if options.checkpoint is not None and is_effdet_file(options.checkpoint):
        if options.model is None:
            raise UsageError(f"{options.checkpoint} does not say which model it is; give --model NAME too.")
        if not options.checkpoint.is_file():
            raise CheckpointError(
                f"There is no checkpoint at {options.checkpoint}; check the path given to --checkpoint."
            )
    if options.checkpoint is None or is_effdet_file(options.checkpoint):
        spec = model_spec(
            options.model or DEFAULT_MODEL,
            dataset.class_names,
            dataset.category_ids,
            options.image_size,
            options.fusion,
        )
        return replace(spec, anchors=_anchors_for(spec, options))
    own = open_checkpoint(options.checkpoint).spec
    for flag, value, held in (
        ("--model", options.model, own.name),
        ("--fusion", options.fusion, own.fusion),
        ("--anchor-scale", options.anchor_scale, own.anchors.anchor_scale),
        ("--aspect-ratios", options.aspect_ratios, None),
    ):
        if value not in (None, held):
            raise UsageError(
                f"{options.checkpoint} is a {own.name} with its own {flag[2:]}, not {value}; leave {flag} out."
            )
    # The size of the input is no part of the weights; the model's own is checked again for it.
    size = model_spec(own.name, own.class_names, own.category_ids, options.image_size or own.image_size).image_size
    return replace(own, image_size=size)


def _anchors_for(spec: ModelSpec, options: ModelOptions) -> AnchorSpec:
    anchors = spec.anchors
    if options.anchor_scale is not None:
        if not 0 < options.anchor_scale < float("inf"):
            raise UsageError(f"--anchor-scale {options.anchor_scale:g} is no size; give a number above 0, 4 is usual.")
        anchors = replace(anchors, anchor_scale=options.anchor_scale)
    if options.aspect_ratios is not None:
        try:
            pairs = [tuple(float(side) for side in pair.split("x")) for pair in options.aspect_ratios.split(",")]
            ratios = tuple((width, height) for width, height in pairs)
        except ValueError:
            ratios = ()
        if not ratios or not all(0 < side < float("inf") for pair in ratios for side in pair):
            raise UsageError(
                f"--aspect-ratios {options.aspect_ratios!r} is no list of width x height; write 1x1,1.4x0.7,0.7x1.4."
            )
        anchors = replace(anchors, aspect_ratios=ratios)
    return anchors
