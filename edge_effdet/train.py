"""Fine-tune a detector: ``Dataset -> Checkpoint``.

effdet supplies network, anchor labels and loss, timm the optimizer, schedule and EMA. Boxes are xyxy everywhere; effdet's
yxyx appears only where a batch enters its bench.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from edge_effdet.artifacts import Checkpoint, ModelSpec, Size, require_writable, write_text
from edge_effdet.cli import Result, add_options, make_parser, option, options_from, progress, run_verb
from edge_effdet.data.dataset import Dataset, Sample, match_classes, read_dataset, readable_images, samples_sha256
from edge_effdet.data.transforms import flip_horizontally, flip_vertically, jitter_letterbox
from edge_effdet.errors import DataError, EdgeEffDetError, MissingDependency, UsageError
from edge_effdet.images import read_image
from edge_effdet.metrics import CocoMetrics, coco_metrics

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("edge_effdet.train")

EVALUATIONS_A_RUN = 10


@dataclass(frozen=True, slots=True)
class DataOptions:
    data: Path = option(help="the data set: a COCO file or folder, or a Pascal VOC folder")
    split: str = option("train", help="the split to train on")
    val_split: str | None = option(
        None, help="the split to choose the best epoch on (default: val, where there is one)"
    )
    workers: int = option(1, help="processes that decode and augment")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    model: str = option("tf_efficientdet_lite0", help="the architecture, a name of effdet")
    image_size: Size | None = option(None, help="N or HxW, multiples of 32 (default: the model's own)")
    checkpoint: Path | None = option(None, help="start from this .safetensors instead of a backbone")
    backbone: str = option("auto", help="weights to start from", choices=("auto", "imagenet", "coco", "random"))


@dataclass(frozen=True, slots=True)
class ScheduleOptions:
    epochs: int = option(50, help="passes over the training split")
    batch_size: int = option(8, help="images a step")
    learning_rate: float = option(1e-3, help="peak, reached after the warm-up; falls to 0 along a cosine")
    weight_decay: float = option(1e-4, help="AdamW's, on convolution weights only")
    warmup_epochs: float = option(1.0, help="epochs of linear warm-up")
    clip_norm: float = option(10.0, help="gradients are scaled down to this norm")
    ema_decay: float = option(0.998, help="of the averaged weights, which are those that are kept")
    seed: int = option(0, help="of weights, order and augmentation")


@dataclass(frozen=True, slots=True)
class AugmentOptions:
    scale_min: float = option(0.8, help="smallest random scale, as a factor on the letterbox")
    scale_max: float = option(1.25, help="largest random scale; what does not fit is cropped")
    flip: str = option("horizontal", help="mirror at random", choices=("none", "horizontal", "both"))


@dataclass(frozen=True, slots=True)
class TrainOptions:
    model: ModelOptions
    schedule: ScheduleOptions
    augment: AugmentOptions
    workers: int = 1


def train_detector(
    train: Sequence[Sample],
    val: Sequence[Sample],
    spec: ModelSpec,
    options: TrainOptions,
    output: Path,
    provenance: dict[str, Any],
) -> Checkpoint:
    """Train and write ``best.safetensors``, ``last.safetensors`` and ``metrics.jsonl`` into ``output``.

    The weights that are kept are the averaged ones. ``best`` is by AP on ``val``; without ``val`` it is the last epoch.

    Args:
        train, val: samples with class ids of ``spec``.
        spec: the model to train.
        options: see the dataclasses above.
        output: a folder, made if it is missing.
        provenance: goes into the metadata, with the metrics.

    Raises:
        DataError: no training image has a box, or none can be decoded.
        CheckpointError, UsageError: the starting weights do not fit.
    """
    import torch
    from effdet import DetBenchTrain
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler
    from timm.utils import ModelEmaV3

    from edge_effdet.models.checkpoint import save_checkpoint

    schedule = options.schedule
    _check_options(options, spec, len(train))
    if not any((~sample.ignore).any() for sample in train):
        raise DataError("No image of the training split has a labelled box; check the annotations.")
    if val and not any((~sample.ignore).any() for sample in val):
        raise DataError(
            "No image of the validation split has a labelled box, so no epoch can be called the best; choose another with "
            "--val-split."
        )
    # Found out here, because an error inside a worker process arrives as a traceback.
    if next(readable_images(train), None) is None:
        raise DataError("None of the training images can be decoded; check the files.")
    torch.manual_seed(schedule.seed)
    network = _starting_network(spec, options.model)
    network = network.to(memory_format=torch.channels_last).train()
    bench = DetBenchTrain(network, create_labeler=True)
    optimizer = create_optimizer_v2(network, opt="adamw", lr=schedule.learning_rate, weight_decay=schedule.weight_decay)
    loader = make_loader(train, spec, options)
    steps = len(loader)
    scheduler = CosineLRScheduler(
        optimizer,
        t_initial=schedule.epochs * steps,
        warmup_t=round(schedule.warmup_epochs * steps),
        warmup_lr_init=schedule.learning_rate / 100,
        t_in_epochs=False,
    )
    ema = ModelEmaV3(network, decay=schedule.ema_decay, use_warmup=True)
    scale, shift = _normalisation(spec)
    interval = max(1, schedule.epochs // EVALUATIONS_A_RUN)
    log: list[dict[str, Any]] = []
    best_ap, best = -1.0, None
    for epoch in range(schedule.epochs):
        started = time.perf_counter()
        sums = np.zeros(3)
        batches = progress(loader, steps, f"epoch {epoch + 1}/{schedule.epochs}")
        for step, (images, boxes, classes) in enumerate(batches):
            scheduler.step_update(epoch * steps + step)
            pixels = (images.float() * scale + shift).contiguous(memory_format=torch.channels_last)
            losses = bench(pixels, {"bbox": boxes, "cls": classes})
            if not torch.isfinite(losses["loss"]):
                raise EdgeEffDetError(
                    f"The loss is not finite in epoch {epoch + 1}, so training stopped; try --learning-rate "
                    f"{schedule.learning_rate / 4:g}."
                )
            optimizer.zero_grad()
            losses["loss"].backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), schedule.clip_norm)
            optimizer.step()
            ema.update(network, step=epoch * steps + step)
            sums += [float(losses[name].detach()) for name in ("loss", "class_loss", "box_loss")]
        loss, class_loss, box_loss = sums / steps
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": loss, "class_loss": class_loss, "box_loss": box_loss}
        row["images_per_second"] = round(len(train) / (time.perf_counter() - started), 2)
        last = epoch + 1 == schedule.epochs
        note = ""
        if last or (epoch + 1) % interval == 0:
            metrics = validate(ema.module, val, spec) if val else None
            if metrics:
                row |= {"AP": metrics.AP, "AP50": metrics.AP50}
                note = f"  AP {100 * metrics.AP:.1f}  AP50 {100 * metrics.AP50:.1f}"
            record = {**provenance, "epoch": epoch + 1, "val": metrics.to_dict() if metrics else None}
            save_checkpoint(output / "last.safetensors", ema.module.state_dict(), spec, record)
            if best is None or (metrics.AP if metrics else 0.0) >= best_ap:
                best_ap = metrics.AP if metrics else 0.0
                best = save_checkpoint(output / "best.safetensors", ema.module.state_dict(), spec, record)
        log.append(row)
        write_text(output / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in log))
        logger.info(
            "epoch %d/%d  loss %.3f (class %.3f, box %.4f)  %.1f images/s%s",
            epoch + 1, schedule.epochs, loss, class_loss, box_loss, row["images_per_second"], note,
        )  # fmt: skip
    assert best is not None
    return best


def _check_options(options: TrainOptions, spec: ModelSpec, images: int) -> None:
    """Refuse numbers that make no sense before anything is computed. Raises UsageError."""
    schedule, augment = options.schedule, options.augment
    for flag, value, least in (
        ("--epochs", schedule.epochs, 1),
        ("--batch-size", schedule.batch_size, 1),
        ("--workers", options.workers, 0),
        ("--seed", schedule.seed, 0),
        ("--warmup-epochs", schedule.warmup_epochs, 0),
        ("--weight-decay", schedule.weight_decay, 0),
    ):
        if value < least:
            raise UsageError(f"{flag} {value} makes no sense; give at least {least}.")
    for flag, value in (("--learning-rate", schedule.learning_rate), ("--clip-norm", schedule.clip_norm)):
        if not value > 0:
            raise UsageError(f"{flag} {value:g} makes no sense; give a number above 0.")
    if not 0 <= schedule.ema_decay < 1:
        raise UsageError(f"--ema-decay {schedule.ema_decay:g} is not between 0 and 1; 0.998 is usual.")
    if not 0 < augment.scale_min <= augment.scale_max:
        raise UsageError(
            f"--scale-min {augment.scale_min:g} and --scale-max {augment.scale_max:g} are not ascending numbers above 0."
        )
    # Batch norm needs more than one value a channel, and the coarsest level of a small picture has one an image.
    if min(schedule.batch_size, images) == 1 and max(spec.image_size) <= 2**spec.anchors.max_level:
        raise UsageError(
            f"Batches of 1 at {spec.image_size[0]}x{spec.image_size[1]} leave batch norm one value a channel; give "
            "--batch-size 2 or more, more training images, or a larger --image-size."
        )


def make_loader(samples: Sequence[Sample], spec: ModelSpec, options: TrainOptions) -> torch.utils.data.DataLoader:
    """Batches of (uint8 [B, 3, H, W], yxyx boxes a picture, 1-based classes a picture).

    What a sample looks like depends on the seed, the epoch and its index only, not on the number of workers.
    """
    from torch.utils.data import DataLoader

    return DataLoader(
        cast(Any, _TrainingImages(samples, spec, options.augment, options.schedule.seed)),
        batch_sampler=_EpochBatches(len(samples), options.schedule.batch_size, options.schedule.seed),
        collate_fn=_collate,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
    )


class _EpochBatches:
    """Shuffled batches of (epoch, index), another order each time it is iterated; a short last batch is dropped."""

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count, self.batch_size, self.seed = count, min(batch_size, count), seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        epoch, self.epoch = self.epoch, self.epoch + 1
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield [(epoch, int(index)) for index in order[start : start + self.batch_size]]


class _TrainingImages:
    def __init__(self, samples: Sequence[Sample], spec: ModelSpec, augment: AugmentOptions, seed: int) -> None:
        self.samples, self.spec, self.augment, self.seed = samples, spec, augment, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        sample, image = self._readable(index)
        scales = (self.augment.scale_min, self.augment.scale_max)
        trainable = ~sample.ignore
        canvas, boxes, kept = jitter_letterbox(
            image, sample.boxes[trainable], self.spec.image_size, self.spec.preprocess, scales, rng
        )
        if self.augment.flip != "none" and rng.random() < 0.5:
            canvas, boxes = flip_horizontally(canvas, boxes)
        if self.augment.flip == "both" and rng.random() < 0.5:
            canvas, boxes = flip_vertically(canvas, boxes)
        pixels = np.ascontiguousarray(canvas.transpose(2, 0, 1))
        return pixels, boxes[:, [1, 0, 3, 2]], sample.class_ids[trainable][kept] + 1

    def _readable(self, index: int) -> tuple[Sample, np.ndarray]:
        """The sample, or the next one that can be decoded: one bad file must not end a run of hours."""
        for offset in range(len(self.samples)):
            sample = self.samples[(index + offset) % len(self.samples)]
            try:
                return sample, read_image(sample.path)
            except DataError as error:
                logger.warning("skipped an image: %s", error)
        raise DataError("None of the training images can be decoded; check the files.")


def _collate(
    items: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    import torch

    images, boxes, classes = zip(*items, strict=True)
    return (
        torch.from_numpy(np.stack(images)),
        [torch.from_numpy(np.ascontiguousarray(each)) for each in boxes],
        [torch.from_numpy(each) for each in classes],
    )


def validate(network: torch.nn.Module, samples: Sequence[Sample], spec: ModelSpec) -> CocoMetrics:
    """COCO metrics of a network in torch, through the same pre- and post-processing as every engine."""
    from edge_effdet.backends.torch_eager import TorchRunner
    from edge_effdet.evaluate import run_over_samples

    was_training = network.training
    try:
        readable, detections = run_over_samples(TorchRunner(network, spec), samples, spec, label="validating")
    finally:
        network.train(was_training)
    return coco_metrics(readable, detections, spec)


def _normalisation(spec: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    mean, std = torch.tensor(spec.preprocess.mean), torch.tensor(spec.preprocess.std)
    return (1 / (255 * std)).reshape(1, 3, 1, 1), (-mean / std).reshape(1, 3, 1, 1)


def _starting_network(spec: ModelSpec, options: ModelOptions) -> torch.nn.Module:
    from edge_effdet.models import pretrained
    from edge_effdet.models.checkpoint import load_network, open_checkpoint
    from edge_effdet.models.zoo import create_network, effdet_config, model_spec

    if options.checkpoint is not None:
        start = open_checkpoint(options.checkpoint)
        if (start.spec.name, start.spec.class_names) != (spec.name, spec.class_names):
            raise UsageError(
                f"{options.checkpoint} is a {start.spec.name} of {start.spec.num_classes} classes and this run trains a "
                f"{spec.name} of {spec.num_classes}; give --model {start.spec.name} and data with the same classes."
            )
        return load_network(start)
    source = options.backbone if options.backbone != "auto" else pretrained.backbone_source(spec.name)
    if source == "coco":
        network: Any = pretrained.load_coco_detector(model_spec(spec.name, image_size=spec.image_size))
        network.reset_head(num_classes=spec.num_classes)
        return network
    network = create_network(spec)
    if source == "imagenet":
        pretrained.load_imagenet_backbone(network, effdet_config(spec.name).backbone_name)
    else:
        logger.warning("%s starts from random weights: no package carries its backbone", spec.name)
    return network


def _describe_start(options: ModelOptions) -> dict[str, Any]:
    """For the provenance: the checkpoint with its own provenance, or the kind of backbone."""
    from edge_effdet.models import pretrained
    from edge_effdet.models.checkpoint import open_checkpoint

    if options.checkpoint is not None:
        start = open_checkpoint(options.checkpoint)
        return {"checkpoint_sha256": start.sha256, "provenance": dict(start.provenance)}
    return {"backbone": options.backbone if options.backbone != "auto" else pretrained.backbone_source(options.model)}


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


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "train", "Fine-tune a detector.", "python -m edge_effdet.train --data bccd --output runs/bccd --epochs 60"
    )
    add_options(parser, DataOptions, ModelOptions, ScheduleOptions, AugmentOptions)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for checkpoints and logs")
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    try:
        import effdet  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency("effdet", "train", "to train") from error
    from edge_effdet.models.zoo import model_spec

    data = options_from(DataOptions, arguments)
    options = TrainOptions(
        options_from(ModelOptions, arguments),
        options_from(ScheduleOptions, arguments),
        options_from(AugmentOptions, arguments),
        data.workers,
    )
    dataset = read_dataset(data.data)
    spec = model_spec(options.model.model, dataset.class_names, dataset.category_ids, options.model.image_size)
    if options.model.checkpoint is not None:
        dataset = match_classes(dataset, spec)
    (train_name, train), (val_name, val) = _choose_samples(dataset, data)
    require_writable(arguments.output)
    logger.info(
        "training %s at %dx%d on %d images (split %s), choosing on %d (split %s)",
        spec.name, *spec.image_size, len(train), train_name, len(val), val_name,
    )  # fmt: skip
    provenance = {
        "command": "python -m edge_effdet.train " + " ".join(sys.argv[1:]),
        "data_sha256": samples_sha256(train),
        "splits": {"train": train_name, "val": val_name},
        "schedule": asdict(options.schedule),
        "augment": asdict(options.augment),
        "started_from": _describe_start(options.model),
    }
    started = time.monotonic()
    best = train_detector(train, val, spec, options, arguments.output, provenance)
    minutes = (time.monotonic() - started) / 60
    ap = (best.provenance["val"] or {}).get("AP", float("nan"))
    text = f"{best.path}: AP {100 * ap:.1f} on {val_name}, epoch {best.provenance['epoch']}, {minutes:.1f} minutes"
    return Result(text, {"checkpoint": str(best.path), "sha256": best.sha256, **best.provenance, "minutes": minutes})


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
