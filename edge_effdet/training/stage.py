"""Fine-tune a detector: ``(data, TrainConfig) -> Checkpoint``."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import AnchorSpec, Checkpoint, ModelSpec, refuse_overwrite, require_writable
from edge_effdet.data.base import Dataset, Sample, match_classes, samples_sha256
from edge_effdet.data.patterns import require_trainable
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError, MissingDependency, UsageError, first_line
from edge_effdet.options import as_path
from edge_effdet.runtime.images import read_image
from edge_effdet.training.options import TrainConfig, check_batch, parse_aspect_ratios

logger = logging.getLogger("edge_effdet.train")


DEFAULT_MODEL = "tf_efficientdet_lite0"

_FILES = (
    *(f"{name}.safetensors" for name in ("best", "best_loss", "last", "resume")),
    *("metrics.jsonl", "curves.png", "samples.png", "tensorboard"),
)
"""What a run writes into its folder."""


def train_detector(data: str | PathLike[str], output: str | PathLike[str], config: TrainConfig) -> Checkpoint:
    """Fine-tune a detector on a data set, and keep the weights of its best epoch. All that ``train`` does on the command line.

    >>> from edge_effdet import TrainConfig, train_detector
    >>> config = TrainConfig(epochs=1, batch_size=4, image_size=(64, 64), flip="both")
    >>> best = train_detector("bccd", "runs/bccd", config)
    >>> ap = best.provenance["val"]["AP"]

    Writes into ``output``: ``best.safetensors``, the epoch with the highest AP on the validation split (the last epoch where there is no
    such split), ``best_loss.safetensors``, the one with the lowest loss on it, ``last.safetensors``, ``resume.safetensors``,
    ``metrics.jsonl``, ``curves.png``, ``samples.png`` and TensorBoard events. The weights in the checkpoints are the averaged ones.

    Under torchrun or ``accelerate launch`` each batch is divided among the processes, the first one alone logs, and each returns the same
    checkpoint. The process group is ended before they return.

    Args:
        data: COCO, Pascal VOC, YOLO or CSV; the format is recognised.
        output: a folder, made if it is missing.
        config: model, schedule, augmentation and the rest.

    Returns:
        ``best.safetensors``. Its ``provenance`` holds the data's hashes, the options, the epoch and, under ``val``, the COCO metrics on
        the validation split (None without one).

    Raises:
        DataError: the data cannot be read, or no training image has a box or can be decoded.
        CheckpointError: the starting weights, or the state to resume from, are missing or damaged.
        UsageError: options that contradict each other, the data, the machine's memory, or the run that is to be resumed; or the outputs
            would overwrite the data or the starting weights.
        MissingDependency: the packages of the extra ``train`` are not installed.
    """
    try:
        import effdet  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency("effdet", "train", "to train") from error
    from edge_effdet.training.distributed import end_process_group
    from edge_effdet.training.start import describe_start

    if not is_first_process():
        # Each process would say the same.
        logging.getLogger("edge_effdet").setLevel(logging.ERROR)
    data, output = Path(data), Path(output)
    dataset = read_dataset(data, boxes_in=config.boxes_in)
    if config.fold is not None:
        dataset = dataset.with_fold(config.fold)
    spec = _spec_for(dataset, config)
    if config.checkpoint is not None:
        dataset = match_classes(dataset, spec)
    (train_name, train), (val_name, val) = _choose_samples(dataset, config)
    require_trainable(train)
    _warn_of_empty_classes(train, spec)
    pictures = (sample.path for sample in dataset.all_samples())
    refuse_overwrite([output / name for name in _FILES], [data, as_path(config.checkpoint), *pictures])
    require_writable(output)
    logger.info(
        "training %s at %dx%d on %d images (split %s), choosing on %d (split %s)",
        spec.name, *spec.image_size, len(train), train_name, len(val), val_name,
    )  # fmt: skip
    provenance = {
        "command": _command(data, output, config),
        "data_sha256": samples_sha256(train),
        "val_sha256": samples_sha256(val),
        "splits": {"train": train_name, "val": val_name},
        "fold": config.fold,
        **config.record(),
        "started_from": describe_start(spec.name, config),
    }
    try:
        best = _train_on_samples(train, val, spec, config, output, provenance)
    except KeyboardInterrupt:
        logger.info("the same training with `resume` goes on from the last checkpoint in %s", output)
        raise
    except Exception as error:
        death = find_dead_loader(error)
        if death is None:
            raise
        raise DataError(
            f"A process that loads images ended by itself ({first_line(death)}), mostly because memory ran out; give fewer "
            "`workers`, with 0 none, or a smaller `batch_size`, and go on with `resume`."
        ) from error
    # Not after an error, because another process may still wait for this one in an exchange that would never end.
    end_process_group()
    return best


def is_first_process() -> bool:
    """Whether this process reports: the only one, or the first of those that torchrun or ``accelerate launch`` started."""
    return int(os.environ.get("RANK", "0")) == 0


def find_dead_loader(error: BaseException) -> BaseException | None:
    """The error by which torch told that a process that loads images died, where it is among the causes of ``error``; else None.

    torch raises it in a signal handler, so in whatever line the training stands, and a library whose code stood there may
    have turned it into an error of its own.
    """
    link: BaseException | None = error
    # An error that such a process raised has its number in place of a pid.
    while link is not None and "DataLoader worker (pid" not in str(link):
        link = link.__cause__ or link.__context__
    return link


def _train_on_samples(
    train: Sequence[Sample],
    val: Sequence[Sample],
    spec: ModelSpec,
    config: TrainConfig,
    output: Path,
    provenance: Mapping[str, Any],
) -> Checkpoint:
    """Train on samples whose class ids are those of ``spec``; ``val`` may be empty. See ``train_detector``."""
    import torch

    from edge_effdet.training.loader import EpochBatches
    from edge_effdet.training.loop import Run
    from edge_effdet.training.memory import require_memory, require_open_files, require_shared_memory
    from edge_effdet.training.qat import insert_fake_quantizers
    from edge_effdet.training.report import draw_samples
    from edge_effdet.training.start import starting_network
    from edge_effdet.training.trainer import Trainer, make_accelerator

    accelerator = make_accelerator(config)
    rank, processes = accelerator.process_index, accelerator.num_processes
    check_batch(config, spec, len(train), processes)
    require_open_files(config.workers)
    require_shared_memory(config.workers, max(1, config.batch_size // processes), spec.image_size)
    _check_samples(train, val)
    torch.manual_seed(config.seed)
    network = starting_network(spec, config)
    if config.qat:
        network = insert_fake_quantizers(network, spec, train, config.seed)
    batches = EpochBatches(len(train), config.batch_size, config.seed, rank, processes)
    trainer = Trainer(network, spec, config, len(batches), accelerator)
    require_memory(trainer, batches.batch_size // processes, spec.image_size)
    run = Run(trainer, train, val, batches, spec, config, output, provenance)
    if config.resume:
        run.restore()
    else:
        run.require_unused()
    if accelerator.is_main_process:
        require_writable(output)
        draw_samples(output / "samples.png", train, spec, config)
    return run.run()


def _command(data: Path, output: Path, config: TrainConfig) -> str:
    """The command line that trains the same: every option that is not left at its default."""
    words = ["python", "-m", "edge_effdet.train", "--data", str(data), "--output", str(output)]
    for item in fields(config):
        value, flag = getattr(config, item.name), item.name.replace("_", "-")
        if value == item.default:
            continue
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", "x".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shlex.join(words)


def _check_samples(train: Sequence[Sample], val: Sequence[Sample]) -> None:
    """Raises DataError where a split holds nothing to learn or to be judged by."""
    if not any((~sample.ignore).any() for sample in train):
        raise DataError("No image of the training split has a labelled box; check the annotations.")
    if val and not any((~sample.ignore).any() for sample in val):
        raise DataError(
            "No image of the validation split has a labelled box, so no epoch can be called the best; choose another split "
            "with `val_split`."
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
    dataset: Dataset, config: TrainConfig
) -> tuple[tuple[str, tuple[Sample, ...]], tuple[str, tuple[Sample, ...]]]:
    """Name and samples of the split to train on, and of the one to choose the best epoch on, which may be empty."""
    train_name, train = dataset.choose_split(config.split, ("train",))
    if config.val_split is None and "val" not in dataset.splits:
        logger.warning("%s has no split val: the last epoch is kept as the best", dataset.root)
        return (train_name, train), ("none", ())
    val_name, val = dataset.choose_split(config.val_split, ("val",))
    shared = {sample.image_id for sample in train} & {sample.image_id for sample in val}
    if shared:
        raise UsageError(
            f"{len(shared)} images stand in both {train_name} and {val_name}, so the best epoch would be chosen on training "
            "images; choose other splits with `split` and `val_split`."
        )
    return (train_name, train), (val_name, val)


def _spec_for(dataset: Dataset, config: TrainConfig) -> ModelSpec:
    """The model to train: of a checkpoint its own, so that nothing has to be said twice; else made for the data's classes."""
    from edge_effdet.models.checkpoint import describes_itself, open_checkpoint
    from edge_effdet.models.zoo import model_spec

    checkpoint = as_path(config.checkpoint)
    foreign = checkpoint is not None and not describes_itself(checkpoint)
    if foreign and config.model is None:
        raise UsageError(f"{checkpoint} does not say which model it is; give `model` NAME too.")
    if checkpoint is None or foreign:
        spec = model_spec(
            config.model or DEFAULT_MODEL, dataset.class_names, dataset.category_ids, config.image_size, config.fusion
        )
        return replace(spec, anchors=_anchors_for(spec, config))
    own = open_checkpoint(checkpoint).spec
    for name, value, held in (
        ("model", config.model, own.name),
        ("fusion", config.fusion, own.fusion),
        ("anchor_scale", config.anchor_scale, own.anchors.anchor_scale),
        ("aspect_ratios", config.aspect_ratios, None),
    ):
        if value not in (None, held):
            raise UsageError(
                f"{checkpoint} is a {own.name} with its own {name.replace('_', ' ')}, not {value}; leave `{name}` out."
            )
    # The size of the input is no part of the weights; the model's own is checked again for it.
    size = model_spec(own.name, own.class_names, own.category_ids, config.image_size or own.image_size).image_size
    return replace(own, image_size=size)


def _anchors_for(spec: ModelSpec, config: TrainConfig) -> AnchorSpec:
    anchors = spec.anchors
    if config.anchor_scale is not None:
        anchors = replace(anchors, anchor_scale=config.anchor_scale)
    if config.aspect_ratios is not None:
        anchors = replace(anchors, aspect_ratios=parse_aspect_ratios(config.aspect_ratios))
    return anchors
