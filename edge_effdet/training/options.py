"""The options of ``train``, as dataclasses that its flags are built from, and the refusal of those that make no sense."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import FUSIONS, ModelSpec, Size
from edge_effdet.errors import UsageError
from edge_effdet.options import option


@dataclass(frozen=True, slots=True)
class DataOptions:
    """Which images the model is trained and validated on."""

    data: Path = option(help="the data set: COCO, Pascal VOC, YOLO data.yaml or CSV; recognised by itself")
    split: str = option("train", help="the split to train on")
    val_split: str | None = option(
        None, help="the split to choose the best epoch on (default: val, where there is one)"
    )
    fold: int | None = option(None, help="with a CSV's fold column: validate on this fold, train on the others")
    workers: int = option(1, help="processes that decode and augment, for each training process")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which network is trained, and from which weights it starts."""

    model: str | None = option(
        None, help="the architecture, a name of effdet (default: tf_efficientdet_lite0, or the checkpoint's)"
    )
    image_size: Size | None = option(None, help="N or HxW, multiples of 32 (default: the model's own)")
    checkpoint: Path | None = option(None, help="start from this .safetensors, or effdet's .pth with --model")
    backbone: str = option("auto", help="weights to start from", choices=("auto", "imagenet", "coco", "random"))
    fusion: str | None = option(
        None,
        help="how the BiFPN sums its inputs (default: the model's own)",
        choices=FUSIONS,
    )
    anchor_scale: float | None = option(
        None, help="size of the smallest anchor, in strides (default: the model's own, 4)"
    )
    aspect_ratios: str | None = option(
        None,
        help="aspect ratios of the anchors, width x height, as data check suggests: 1x1,1.4x0.7,0.7x1.4 (default: the model's own)",
    )
    qat: bool = option(False, help="train with ModelOpt's INT8 fake quantizers in place; wants --checkpoint")


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    """How long and how fast it learns."""

    epochs: int = option(50, help="passes over the training split")
    batch_size: int = option(8, help="images a step, over all processes")
    accumulate: int = option(1, help="steps whose gradients make one update")
    learning_rate: float = option(1e-3, help="peak, reached after the warm-up; falls to 0 along a cosine")
    warmup_epochs: float = option(1.0, help="epochs of linear warm-up")
    patience: int = option(0, help="stop after so many validations without a better AP; 0 never stops")
    seed: int = option(0, help="seed of the initial weights, the order of the images and the augmentation")


@dataclass(frozen=True, slots=True)
class OptimizerOptions:
    """How the weights are updated and averaged."""

    weight_decay: float = option(1e-4, help="AdamW's, on convolution weights only: not on biases and norms")
    layer_decay: float = option(1.0, help="learning rate of a backbone stage, as a factor on that of the next one")
    freeze_epochs: int = option(0, help="epochs that the backbone stays frozen; -1 for all")
    clip_norm: float = option(10.0, help="gradients are scaled down to this norm")
    ema_decay: float = option(0.998, help="decay of the average of the weights, which is what is kept")


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    """How training images are cropped, mirrored, coloured and mixed."""

    scale_min: float = option(0.8, help="scale jitter with crop: the smallest factor on the letterbox")
    scale_max: float = option(
        1.25, help="scale jitter with crop: the largest factor; what does not fit is cropped at a random place"
    )
    flip: str = option("horizontal", help="mirror at random", choices=("none", "horizontal", "both"))
    brightness: float = option(0.15, help="largest change, as a share of white")
    contrast: float = option(0.15, help="largest change, as a share")
    mosaic: float = option(0.0, help="share of samples made of four images")


@dataclass(frozen=True, slots=True)
class AffineOptions:
    """How training images are shifted, zoomed and rotated."""

    shift: float = option(0.1, help="largest shift, as a share of the input's sides")
    zoom: float = option(0.15, help="largest change of scale, as a share")
    rotate: float = option(25.0, help="largest angle, degrees")
    affine_share: float = option(0.5, help="share of samples that are shifted, zoomed and rotated")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the training runs on this machine."""

    precision: str = option(
        "fp32", help="what the network computes in; its weights stay FP32", choices=("fp32", "bf16", "fp16")
    )
    device: str = option("auto", help="auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    compile: bool = option(False, help="torch.compile the network: minutes at the start, faster steps on a GPU")
    validate_every: int = option(1, help="epochs between validations")
    save_minutes: float = option(10.0, help="minutes between checkpoints for --resume inside an epoch")
    resume: bool = option(False, help="go on from the last whole checkpoint in --output")


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """All of them but the data's, as ``train_detector`` takes them."""

    model: ModelOptions = field(default_factory=ModelOptions)
    schedule: ScheduleOptions = field(default_factory=ScheduleOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    augment: AugmentOptions = field(default_factory=AugmentOptions)
    affine: AffineOptions = field(default_factory=AffineOptions)
    run: RunOptions = field(default_factory=RunOptions)
    workers: int = 1

    def record(self) -> dict[str, Any]:
        """What decides the weights, for the provenance and for ``--resume`` to compare."""
        return {
            "schedule": asdict(self.schedule),
            "optimizer": asdict(self.optimizer),
            "augment": {**asdict(self.augment), **asdict(self.affine)},
            "precision": self.run.precision,
            "validate_every": self.run.validate_every,
            "qat": self.model.qat,
        }


def check_options(options: TrainOptions, spec: ModelSpec, images: int, processes: int = 1) -> None:
    """Refuse numbers that make no sense before anything is computed.

    Args:
        options: all of them.
        spec: the model to train.
        images: how many the training split has.
        processes: how many share a batch.

    Raises:
        UsageError: names the option and a value that would do.
    """
    schedule, augment, optimizer = options.schedule, options.augment, options.optimizer
    for flag, value, least in (
        ("--epochs", schedule.epochs, 1),
        ("--batch-size", schedule.batch_size, 1),
        ("--accumulate", schedule.accumulate, 1),
        ("--patience", schedule.patience, 0),
        ("--workers", options.workers, 0),
        ("--seed", schedule.seed, 0),
        ("--warmup-epochs", schedule.warmup_epochs, 0),
        ("--weight-decay", optimizer.weight_decay, 0),
        ("--freeze-epochs", optimizer.freeze_epochs, -1),
        ("--validate-every", options.run.validate_every, 1),
        ("--save-minutes", options.run.save_minutes, 0),
    ):
        if not least <= value < float("inf"):
            raise UsageError(f"{flag} {value} makes no sense; give at least {least}.")
    for flag, value in (("--learning-rate", schedule.learning_rate), ("--clip-norm", optimizer.clip_norm)):
        if not 0 < value < float("inf"):
            raise UsageError(f"{flag} {value:g} makes no sense; give a number above 0.")
    for flag, value in (
        ("--mosaic", augment.mosaic),
        ("--brightness", augment.brightness),
        ("--contrast", augment.contrast),
        ("--affine-share", options.affine.affine_share),
        ("--shift", options.affine.shift),
    ):
        if not 0 <= value <= 1:
            raise UsageError(f"{flag} {value:g} is a share; give a number from 0 to 1.")
    if not 0 <= options.affine.zoom < 1:
        raise UsageError(f"--zoom {options.affine.zoom:g} is not from 0 to below 1; 0.15 is usual.")
    if not 0 <= options.affine.rotate <= 180:
        raise UsageError(f"--rotate {options.affine.rotate:g} is no angle from 0 to 180 degrees; 25 is usual.")
    if not 0 <= optimizer.ema_decay < 1:
        raise UsageError(f"--ema-decay {optimizer.ema_decay:g} is not from 0 to below 1; 0.998 is usual.")
    if not 0 < optimizer.layer_decay <= 1:
        raise UsageError(f"--layer-decay {optimizer.layer_decay:g} is not above 0 and at most 1; 0.8 is usual.")
    if not 0 < augment.scale_min <= augment.scale_max < float("inf"):
        raise UsageError(
            f"--scale-min {augment.scale_min:g} and --scale-max {augment.scale_max:g} are not ascending numbers above 0."
        )
    if options.model.qat and options.model.checkpoint is None:
        raise UsageError("--qat fine-tunes a trained model for INT8; give it with --checkpoint F.")
    if min(schedule.batch_size, images) < processes or schedule.batch_size % processes:
        raise UsageError(
            f"--batch-size {schedule.batch_size} over {images} images does not divide among {processes} processes; give a "
            f"multiple of {processes}."
        )
    # Batch norm needs more than one value a channel, and the coarsest level of a small picture has one an image.
    if min(schedule.batch_size, images) == 1 and max(spec.image_size) <= 2**spec.anchors.max_level:
        raise UsageError(
            f"Batches of 1 at {spec.image_size[0]}x{spec.image_size[1]} leave batch norm one value a channel; give "
            "--batch-size 2 or more, more training images, or a larger --image-size."
        )


def differing_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Flags whose values two records of ``TrainOptions.record`` do not share, as ``--flag old -> new``."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differing_options(before, after)
        elif before != after:
            found.append(f"--{key.replace('_', '-')} {before} -> {after}")
    return found
