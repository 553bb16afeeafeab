"""What a training is told: ``TrainConfig``, in groups that are the command line's too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import FUSIONS, ModelSpec, Size
from edge_effdet.data.frames import LabelOptions
from edge_effdet.errors import UsageError
from edge_effdet.options import check_choices, option


@dataclass(frozen=True, kw_only=True)
class DataOptions(LabelOptions):
    """Which images the model is trained and validated on."""

    split: str = option("train", help="the split to train on")
    val_split: str | None = option(
        None, help="the split to choose the best epoch on (default: val, where there is one)"
    )
    fold: int | None = option(None, help="with a CSV's fold column: validate on this fold, train on the others")
    workers: int = option(1, help="processes that decode and augment, for each training process")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which network is trained, and from which weights it starts."""

    model: str | None = option(
        None, help="the architecture, a name of effdet (default: tf_efficientdet_lite0, or the checkpoint's)"
    )
    image_size: Size | None = option(None, help="N or HxW, multiples of 32 (default: the model's own)")
    checkpoint: Path | str | None = option(
        None, help="start from this .safetensors of train, or with --model from another program's"
    )
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
    qat: bool = option(False, help="train with ModelOpt's INT8 fake quantizers in place; needs --checkpoint")


@dataclass(frozen=True, kw_only=True)
class ScheduleOptions:
    """How long and how fast the model learns."""

    epochs: int = option(50, help="passes over the training split")
    batch_size: int = option(8, help="images a step, over all processes")
    accumulate: int = option(1, help="steps whose gradients make one update")
    learning_rate: float = option(1e-3, help="peak, reached after the warm-up; falls to 0 along a cosine")
    warmup_epochs: float = option(1.0, help="epochs of linear warm-up")
    patience: int = option(0, help="stop after so many validations without a better AP; 0 never stops")
    seed: int = option(0, help="seed of the initial weights, the order of the images and the augmentation")


@dataclass(frozen=True, kw_only=True)
class OptimizerOptions:
    """How the weights are updated and averaged."""

    weight_decay: float = option(1e-4, help="AdamW's, on convolution weights only: not on biases and norms")
    layer_decay: float = option(1.0, help="learning rate of a backbone stage, as a factor on that of the next one")
    freeze_epochs: int = option(0, help="epochs that the backbone stays frozen; -1 for all")
    clip_norm: float = option(10.0, help="gradients with a larger norm are scaled down to this one")
    ema_decay: float = option(0.998, help="decay of the moving average of the weights; the averaged weights are kept")


@dataclass(frozen=True, kw_only=True)
class AffineOptions:
    """How training images are shifted, zoomed and rotated."""

    shift: float = option(0.1, help="largest shift, as a share of the input's sides")
    zoom: float = option(0.15, help="largest change of scale, as a share")
    rotate: float = option(25.0, help="largest angle, degrees")
    affine_share: float = option(0.5, help="share of samples that are shifted, zoomed and rotated")


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(AffineOptions):
    """How training images are cropped, mirrored, coloured and mixed."""

    scale_min: float = option(0.8, help="scale jitter with crop: the smallest factor on the letterbox")
    scale_max: float = option(
        1.25, help="scale jitter with crop: the largest factor; what does not fit is cropped at a random place"
    )
    flip: str = option("horizontal", help="mirror at random", choices=("none", "horizontal", "both"))
    brightness: float = option(0.15, help="largest change, as a share of white")
    contrast: float = option(0.15, help="largest change, as a share")
    mosaic: float = option(0.0, help="share of samples made of four images")


@dataclass(frozen=True, kw_only=True)
class MachineOptions:
    """How the training runs on this machine."""

    precision: str = option(
        "fp32", help="what the network computes in; its weights stay FP32", choices=("fp32", "bf16", "fp16")
    )
    device: str = option("auto", help="auto takes a GPU where there is one", choices=("auto", "cpu", "cuda"))
    compile: bool = option(False, help="torch.compile the network: minutes at the start, faster steps on a GPU")
    validate_every: int = option(1, help="epochs between validations")
    save_minutes: float = option(10.0, help="minutes between checkpoints for --resume inside an epoch")
    resume: bool = option(False, help="go on from the last whole checkpoint in --output")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(DataOptions, ModelOptions, ScheduleOptions, OptimizerOptions, AugmentOptions, MachineOptions):
    """All that a training is told; every field is a flag of ``python -m edge_effdet.train``, which has its help.

    Raises:
        UsageError: a number that makes no sense, or a choice that does not exist; the message names a value that would do.
    """

    def __post_init__(self) -> None:
        check_choices(self)
        for name, least in (
            ("epochs", 1),
            ("batch_size", 1),
            ("accumulate", 1),
            ("patience", 0),
            ("workers", 0),
            ("seed", 0),
            ("warmup_epochs", 0),
            ("weight_decay", 0),
            ("freeze_epochs", -1),
            ("validate_every", 1),
            ("save_minutes", 0),
        ):
            if not least <= getattr(self, name) < float("inf"):
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give at least {least}.")
        if self.seed >= 2**63:
            raise UsageError(f"`seed` {self.seed} is more than torch takes; give less than 2**63.")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"`{name}` {getattr(self, name):g} makes no sense; give a number above 0.")
        for name in ("mosaic", "brightness", "contrast", "affine_share", "shift"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"`{name}` {getattr(self, name):g} is no share; give a number from 0 to 1.")
        if not 0 <= self.zoom < 1:
            raise UsageError(f"`zoom` {self.zoom:g} is not from 0 to below 1; 0.15 is usual.")
        if not 0 <= self.rotate <= 180:
            raise UsageError(f"`rotate` {self.rotate:g} is no angle from 0 to 180 degrees; 25 is usual.")
        if not 0 <= self.ema_decay < 1:
            raise UsageError(f"`ema_decay` {self.ema_decay:g} is not from 0 to below 1; 0.998 is usual.")
        if not 0 < self.layer_decay <= 1:
            raise UsageError(f"`layer_decay` {self.layer_decay:g} is not above 0 and at most 1; 0.8 is usual.")
        if not 0 < self.scale_min <= self.scale_max < float("inf"):
            raise UsageError(
                f"`scale_min` {self.scale_min:g} and `scale_max` {self.scale_max:g} are not ascending numbers above 0."
            )
        if self.anchor_scale is not None and not 0 < self.anchor_scale < float("inf"):
            raise UsageError(f"`anchor_scale` {self.anchor_scale:g} is no size; give a number above 0, 4 is usual.")
        if self.aspect_ratios is not None:
            parse_aspect_ratios(self.aspect_ratios)
        if self.qat and self.checkpoint is None:
            raise UsageError("`qat` fine-tunes a trained model for INT8; name its file with `checkpoint`.")

    def record(self) -> dict[str, Any]:
        """The options that decide the weights, for the checkpoint's provenance and for ``resume`` to compare."""

        def values(group: type) -> dict[str, Any]:
            return {item.name: getattr(self, item.name) for item in fields(group)}

        return {
            "schedule": values(ScheduleOptions),
            "optimizer": values(OptimizerOptions),
            "augment": values(AugmentOptions),
            "precision": self.precision,
            "validate_every": self.validate_every,
            "qat": self.qat,
        }


def parse_aspect_ratios(text: str) -> tuple[tuple[float, float], ...]:
    """``1x1,1.4x0.7`` to ((1.0, 1.0), (1.4, 0.7)), factors on width and height. Raises UsageError for anything else."""
    try:
        pairs = [tuple(float(side) for side in pair.split("x")) for pair in text.split(",")]
        ratios = tuple((width, height) for width, height in pairs)
    except ValueError:
        ratios = ()
    if not ratios or not all(0 < side < float("inf") for pair in ratios for side in pair):
        raise UsageError(f"`aspect_ratios` {text!r} is no list of width x height; write 1x1,1.4x0.7,0.7x1.4.")
    return ratios


def check_batch(config: TrainConfig, spec: ModelSpec, images: int, processes: int = 1) -> None:
    """Refuse a batch that the data, the processes or the input size rule out, before anything is computed.

    Args:
        config: its batch size is checked.
        spec: the model to train.
        images: how many the training split has.
        processes: how many share a batch.

    Raises:
        UsageError: the batch cannot be divided among the processes, or is too small for batch norm.
    """
    if min(config.batch_size, images) < processes or config.batch_size % processes:
        raise UsageError(
            f"`batch_size` {config.batch_size} over {images} images does not divide among {processes} processes; give a "
            f"multiple of {processes}."
        )
    # Batch norm needs more than one value a channel, and the coarsest level of a small picture has one an image.
    if min(config.batch_size, images) == 1 and max(spec.image_size) <= 2**spec.anchors.max_level:
        raise UsageError(
            f"Batches of 1 at {spec.image_size[0]}x{spec.image_size[1]} leave batch norm one value a channel; give "
            "`batch_size` 2 or more, more training images, or a larger `image_size`."
        )


def differing_options(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The options in which two records of ``TrainConfig.record`` differ, each as its field with both values: ``epochs 50 -> 7``."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differing_options(before, after)
        elif before != after:
            found.append(f"`{key}` {before} -> {after}")
    return found
