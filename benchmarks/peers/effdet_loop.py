"""A plain effdet loop: what a user of effdet 0.4.1 writes, starting from its train.py, to train on a data set of their own.

These parts are effdet's: the COCO parser, the dataset, the transforms (random flip, random scale and crop, mean colour around the
picture), collate, and the loader, whose processes label the anchors, as is the default of train.py; the network, the loss, the benches
and CocoEvaluator; validation after every epoch, where the epoch with the best AP is kept. These parts are timm's, as in train.py: the
optimizer without weight decay on biases and norms, the cosine schedule, gradients clipped at norm 10, no average of the weights, which
is off by default, and FP16 with its loss scaler. Weights stay in torch's default memory format, as train.py leaves them.

These parts differ from train.py, so that trainings are compared and not one badly chosen number:

- The optimizer is AdamW at 1e-3 with weight decay 1e-4 and batches of 8, in place of SGD with momentum at 0.01 and batches of 32.
- The warm-up has one epoch in place of five, and the schedule moves with every update. With the schedule of train.py, a run of four
  epochs would never reach its learning rate.
- The backbone has the ImageNet weights that ``edge_effdet.train`` starts from, and the heads start alike for the same seed.
- Without a split to validate on, the last epoch is kept.
- The prefetcher needs CUDA, so on a CPU the loop itself normalises the pixels.
- The result is stored as a checkpoint of edge_effdet, so that one program evaluates both.

effdet draws scales from 0.1 to 2.0, which suits 300 epochs. In a short run ``--scale-min 0.8 --scale-max 1.25`` makes the loop stronger,
so ``benchmarks.training`` runs both.

python -m benchmarks.peers.effdet_loop --data bccd --split trainval --epochs 4 --output runs/bccd-plain
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.parser import make_parser
from edge_effdet.artifacts import Checkpoint, ModelSpec, write_text
from edge_effdet.cli import Result, add_options, options_from, progress, run_verb, size_argument
from edge_effdet.data.base import Sample, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import UsageError
from edge_effdet.evaluation.metrics import coco_ground_truth
from edge_effdet.models.checkpoint import save_checkpoint
from edge_effdet.models.pretrained import backbone_source, load_imagenet_backbone
from edge_effdet.models.zoo import create_network, effdet_config, model_spec
from edge_effdet.options import option

if TYPE_CHECKING:
    import torch

logger = logging.getLogger("edge_effdet.benchmarks.effdet_loop")

Batch = tuple["torch.Tensor", dict[str, "torch.Tensor"]]
"""What effdet's collate gives: pixels, uint8 [B, 3, H, W], and the targets."""

LEARNING_RATE = 1e-3
WEIGHT_DECAY = 1e-4
WARMUP_EPOCHS = 1
CLIP_NORM = 10.0
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """The training."""

    epochs: int = option(4, help="passes over the training split")
    batch_size: int = option(8, help="images a step")
    seed: int = option(0, help="seed of weights, order and augmentation")
    scale_min: float = option(0.1, help="smallest random scale, as a factor on the letterbox; effdet's default")
    scale_max: float = option(2.0, help="largest random scale; effdet's default")
    workers: int = option(1, help="processes that decode, augment and label")


def train_plainly(
    train: Sequence[Sample],
    val: Sequence[Sample],
    spec: ModelSpec,
    options: LoopOptions,
    output: Path,
) -> Checkpoint:
    """Train and write ``best.safetensors`` and ``metrics.jsonl`` into ``output``.

    Args:
        train: the samples to train on, with class ids of ``spec``.
        val: the samples to choose the epoch on; where there are none, the last epoch is kept.
        spec: the model.
        options: how it is trained.
        output: a folder, which is made if it is missing.

    Returns:
        The checkpoint of the epoch that is kept.
    """
    from effdet import DetBenchTrain
    from timm.scheduler.scheduler_factory import create_scheduler_v2
    from timm.utils import random_seed

    random_seed(options.seed)
    network = starting_network(spec)
    optimizer = _make_optimizer(network)
    step = _make_step(DetBenchTrain(network, create_labeler=False), optimizer, spec, "cpu", "fp32")
    loader = make_training_loader(train, spec, options)
    steps = len(loader)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=options.epochs,
        warmup_epochs=WARMUP_EPOCHS,
        warmup_lr=LEARNING_RATE / 100,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    assert scheduler is not None
    validate = _make_validation(network, val, spec, options) if val else None
    log: list[dict[str, Any]] = []
    best_ap, best = -1.0, None
    for epoch in range(options.epochs):
        network.train()
        started = time.perf_counter()
        total = 0.0
        for number, batch in enumerate(progress(loader, steps, f"epoch {epoch + 1}/{options.epochs}"), start=1):
            total += step(batch)
            scheduler.step_update(epoch * steps + number)
        speed = len(train) / (time.perf_counter() - started)
        row: dict[str, Any] = {"epoch": epoch + 1, "loss": total / steps, "images_per_second": round(speed, 2)}
        if validate is not None:
            row["AP"] = validate()
        log.append(row)
        write_text(output / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in log))
        logger.info("epoch %d/%d  loss %.3f  %.1f images/s", epoch + 1, options.epochs, row["loss"], speed)
        if row.get("AP", 0.0) >= best_ap:
            best_ap = row.get("AP", 0.0)
            record = {"peer": "effdet loop", **asdict(options), **row, "data_sha256": samples_sha256(train)}
            best = save_checkpoint(output / "best.safetensors", network.state_dict(), spec, record)
    assert best is not None
    return best


def make_peer_step(
    spec: ModelSpec, device: str = "cpu", precision: str = "fp32", labels_in_loader: bool = False
) -> Callable[[Batch], float]:
    """Make a training step of the loop: it normalises, runs forward and backward, clips, updates the weights, and returns the loss.

    Args:
        spec: the model, which starts as ``starting_network`` makes it.
        device: ``cpu`` or ``cuda``.
        precision: the type that the network computes in: ``fp32``, ``bf16`` or ``fp16``.
        labels_in_loader: whether the batch brings the anchors' labels (``collate_batch`` with ``labelled``). Otherwise the step
            finds them, as effdet does with its ``bench_labeler``.
    """
    from effdet import DetBenchTrain

    network = starting_network(spec).to(device).train()
    bench = DetBenchTrain(network, create_labeler=not labels_in_loader).to(device)
    return _make_step(bench, _make_optimizer(network), spec, device, precision)


def collate_batch(
    images: torch.Tensor,
    boxes: Sequence[torch.Tensor],
    classes: Sequence[torch.Tensor],
    spec: ModelSpec,
    device: str = "cpu",
    labelled: bool = False,
) -> Batch:
    """Pictures and their ground truth as effdet's own collate gives them, with the targets moved to ``device``.

    Args:
        images: uint8 [B, 3, H, W].
        boxes: for each picture float32 [N, 4], yxyx in pixels.
        classes: for each picture int64 [N], 1-based.
        spec: the model, whose anchors are labelled.
        device: the device on which the step runs.
        labelled: whether the anchors are labelled here and not in the step.
    """
    from effdet.data.loader import DetectionFastCollate

    height, width = spec.image_size
    collate = DetectionFastCollate(anchor_labeler=_make_labeler(create_network(spec)) if labelled else None)
    items = [
        (image, {"bbox": box, "cls": label, "img_scale": 1.0, "img_size": (width, height), "img_idx": index})
        for index, (image, box, label) in enumerate(
            zip(images.numpy(), (b.numpy() for b in boxes), (c.numpy() for c in classes), strict=True)
        )
    ]
    pixels, target = collate(items)
    return pixels, {name: tensor.to(device) for name, tensor in target.items()}


def starting_network(spec: ModelSpec) -> torch.nn.Module:
    """effdet's network with an ImageNet backbone where a package carries one, else with random weights."""
    network = create_network(spec)
    if backbone_source(spec.name) == "imagenet":
        load_imagenet_backbone(network, effdet_config(spec.name).backbone_name)
    return network


def make_training_loader(samples: Sequence[Sample], spec: ModelSpec, options: LoopOptions) -> Any:
    """effdet's loader over shuffled, augmented pictures, with the anchors labelled in its processes."""
    from effdet.data import transforms

    augment = transforms.Compose(
        [
            transforms.RandomFlip(horizontal=True, prob=0.5),
            transforms.RandomResizePad(
                target_size=spec.image_size,  # type: ignore[arg-type]
                scale=(options.scale_min, options.scale_max),
                interpolation="random",
                fill_color=transforms.resolve_fill_color("mean", spec.preprocess.mean),
            ),
            transforms.ImageToNumpy(),
        ]
    )
    labeler = _make_labeler(create_network(spec))
    return _make_loader(
        _make_dataset(samples, spec), spec, options, is_training=True, transform_fn=augment, anchor_labeler=labeler
    )  # fmt: skip


def _make_step(
    bench: torch.nn.Module, optimizer: torch.optim.Optimizer, spec: ModelSpec, device: str, precision: str
) -> Callable[[Batch], float]:
    import torch
    from timm.utils import NativeScaler

    if device == "cuda":
        torch.backends.cudnn.benchmark = True
    mean, std = (
        torch.tensor([255 * value for value in channel], device=device).view(1, 3, 1, 1)
        for channel in (spec.preprocess.mean, spec.preprocess.std)
    )
    autocast = contextlib.nullcontext
    if precision in DTYPES:
        autocast = partial(torch.autocast, device, dtype=getattr(torch, DTYPES[precision]))
    scaler = NativeScaler(device=device) if precision == "fp16" else None

    def step(batch: Batch) -> float:
        images, target = batch
        images = images.to(device).float().sub_(mean).div_(std)
        with autocast():
            loss = bench(images, target)["loss"]
        value = loss.item()
        optimizer.zero_grad()
        if scaler is not None:
            scaler(loss, optimizer, clip_grad=CLIP_NORM, parameters=bench.parameters())
        else:
            loss.backward()
            torch.nn.utils.clip_grad_norm_(bench.parameters(), CLIP_NORM)
            optimizer.step()
        return value

    return step


def _make_optimizer(network: torch.nn.Module) -> torch.optim.Optimizer:
    from timm.optim import create_optimizer_v2

    return create_optimizer_v2(network, opt="adamw", lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)


def _make_labeler(network: torch.nn.Module) -> Any:
    from effdet.anchors import AnchorLabeler, Anchors

    config: Any = network.config
    return AnchorLabeler(Anchors.from_config(config), config.num_classes, match_threshold=0.5)


def _make_loader(dataset: Any, spec: ModelSpec, options: LoopOptions, **chosen: Any) -> Any:
    from effdet.data import create_loader

    # The prefetcher needs CUDA.
    return create_loader(
        dataset,
        input_size=(3, *spec.image_size),
        batch_size=options.batch_size,
        use_prefetcher=False,
        num_workers=options.workers,
        pin_mem=False,
        **chosen,
    )


def _make_dataset(samples: Sequence[Sample], spec: ModelSpec) -> Any:
    """effdet's dataset over its COCO parser. The parser reads a file and prints, which would disturb ``--json``."""
    from effdet.data import DetectionDatset
    from effdet.data.parsers import CocoParserCfg, create_parser

    truth = coco_ground_truth(samples, spec)
    for image, sample in zip(truth["images"], samples, strict=True):
        image["file_name"] = str(sample.path.resolve())
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder, contextlib.redirect_stdout(io.StringIO()):
        file = Path(folder) / "instances.json"
        file.write_text(json.dumps(truth), encoding="utf-8")
        parser = create_parser("coco", cfg=CocoParserCfg(ann_filename=str(file)))
    return DetectionDatset(data_dir=Path("/"), parser=parser)


def _make_validation(
    network: torch.nn.Module, val: Sequence[Sample], spec: ModelSpec, options: LoopOptions
) -> Callable[[], float]:
    """A function that measures AP on ``val`` by effdet's own bench and evaluator, to choose the epoch."""
    import torch
    from effdet import DetBenchPredict
    from effdet.data import transforms
    from effdet.evaluator import CocoEvaluator

    dataset = _make_dataset(val, spec)
    letterbox = transforms.transforms_coco_eval(spec.image_size, use_prefetcher=True, mean=spec.preprocess.mean)  # type: ignore[arg-type]
    loader = _make_loader(dataset, spec, options, transform_fn=letterbox)
    evaluator = CocoEvaluator(dataset, pred_yxyx=False)
    bench = DetBenchPredict(network)
    # effdet's default of 5000 is more than a small picture has.
    anchors: Any = bench.anchors.boxes
    bench.max_detection_points = min(bench.max_detection_points, len(anchors) * spec.num_classes)
    mean, std = (
        255 * torch.tensor(channel).view(1, 3, 1, 1) for channel in (spec.preprocess.mean, spec.preprocess.std)
    )

    def validate() -> float:
        bench.eval()
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            for images, target in loader:
                evaluator.add_predictions(bench(images.float().sub(mean).div(std), img_info=target), target)
            return float(evaluator.evaluate())

    return validate


def _run(arguments: argparse.Namespace) -> Result:
    options = options_from(LoopOptions, arguments)
    dataset = read_dataset(arguments.data)
    spec = model_spec(arguments.model, dataset.class_names, dataset.category_ids, arguments.image_size)
    split, train = dataset.choose_split(arguments.split, ("train",))
    val: tuple[Sample, ...] = ()
    if arguments.val_split is not None or "val" in dataset.splits:
        _, val = dataset.choose_split(arguments.val_split, ("val",))
    if {sample.image_id for sample in train} & {sample.image_id for sample in val}:
        raise UsageError(
            f"The split {split} shares images with the one to validate on; choose another with `val_split`."
        )
    logger.info("plain effdet loop: %s on %d images (split %s), choosing on %d", spec.name, len(train), split, len(val))
    started = time.monotonic()
    best = train_plainly(train, val, spec, options, arguments.output)
    minutes = (time.monotonic() - started) / 60
    result = {"checkpoint": str(best.path), "sha256": best.sha256, "minutes": minutes}
    return Result(f"{best.path}: epoch {best.provenance['epoch']}, {minutes:.1f} minutes", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "peers.effdet_loop",
        "Train as a user of effdet would without edge_effdet.",
        "--data bccd --split trainval --output runs/bccd-plain",
        data="a data set, as edge_effdet.train takes it",
        required=("data",),
    )
    parser.add_argument("--split", default="train", metavar="NAME", help="the split to train on (default: train)")
    parser.add_argument("--val-split", metavar="NAME", help="the split to choose the epoch on (default: val, if any)")
    parser.add_argument("--model", default="tf_efficientdet_lite0", metavar="NAME", help="a model name of effdet")
    parser.add_argument(
        "--image-size", type=size_argument, metavar="N", help="the input size, N or HxW (default: the model's own)"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="the folder for the checkpoint and the log"
    )
    add_options(parser, LoopOptions)
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
