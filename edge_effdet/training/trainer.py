"""One update of the weights: forward, effdet's loss, backward, clipping, AdamW, EMA. Its state can be stored and resumed from.

The state is a function of the number of batches seen: learning rate, order, augmentation and drop-path masks follow from the
seed and that position, so what is saved is weights, averages and moments.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from effdet import DetBenchTrain
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from edge_effdet.artifacts import ModelSpec
from edge_effdet.errors import CheckpointError, EdgeEffDetError, UsageError
from edge_effdet.models.detector import DetectionModule
from edge_effdet.training.distributed import share_over_processes
from edge_effdet.training.options import OptimizerOptions, TrainConfig

if TYPE_CHECKING:
    from edge_effdet.training.loader import Batch

logger = logging.getLogger("edge_effdet.train")


AVERAGED_SHARE, STATISTICS_SHARE = 10, 30
"""The average of the weights covers the last tenth of the updates so far, and batch norm's statistics the last thirtieth, until these
windows are as long as the usual ones. With the usual ones from the start, a run of a hundred updates would be judged by averages that
still hold much of the network's start."""


class Losses(NamedTuple):
    """The loss of one batch over all processes: the total, and its two parts before effdet multiplies the box part by 50."""

    total: float
    class_loss: float
    box_loss: float


class Trainer:
    """A network in training, with its optimizer, schedule and average.

    Args:
        network: effdet's, with its starting weights; it is moved to the device and changed.
        spec: the network's.
        config: how it is trained.
        steps_per_epoch: batches that one process sees in an epoch.
        accelerator: knows device, precision and processes.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        config: TrainConfig,
        steps_per_epoch: int,
        accelerator: Accelerator,
    ) -> None:
        self.config, self.accelerator, self.steps_per_epoch = config, accelerator, steps_per_epoch
        self.image_size = spec.image_size
        self.device: torch.device = accelerator.device
        # Convolutions of oneDNN and cuDNN are fastest in channels last, which gives most of the speed on a CPU.
        network = network.to(device=self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        # The average is made before the network is shared, because it must not synchronise with other processes.
        self.ema = ModelEmaV3(
            network,
            decay=config.ema_decay,
            use_warmup=True,
            # After t updates the decay is t / (t + 10), so that the window is a tenth of the updates so far.
            warmup_gamma=AVERAGED_SHARE,
            warmup_power=1,
        )
        self.network = share_over_processes(network, accelerator.process_index, accelerator.num_processes)
        bench: Any = DetBenchTrain(self.network, create_labeler=True).to(self.device)
        self.labeler, self.loss_fn = bench.anchor_labeler, bench.loss_fn
        self.detector = DetectionModule(self.ema.module, spec).to(self.device).eval()
        # A fused update passes over the weights once, and gives the same numbers as plain AdamW but for rounding.
        self.optimizer = torch.optim.AdamW(parameter_groups(self.network, config), lr=config.learning_rate, fused=True)
        updates = math.ceil(steps_per_epoch / config.accumulate)
        self.scheduler = CosineLRScheduler(
            self.optimizer,
            t_initial=max(2, config.epochs * updates),
            warmup_t=round(config.warmup_epochs * updates),
            warmup_lr_init=config.learning_rate / 100,
            t_in_epochs=False,
        )
        norms = [module for module in self.network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
        # torch.compile takes a momentum for a constant, and would compile the network again for each new value.
        self.norms = [] if config.compile else [(module, module.momentum or 0.0) for module in norms]
        self.updates = 0
        self.forward: Callable[..., Any] | None = None
        self.frozen = False

    @property
    def learning_rate(self) -> float:
        """The largest learning rate among the optimizer's groups at this moment."""
        return max(float(group["lr"]) for group in self.optimizer.param_groups)

    def start_epoch(self, epoch: int) -> None:
        """Freeze or unfreeze the backbone as ``config.freeze_epochs`` says. Call it before the first step of each epoch and after ``restore``."""
        freeze = self.config.freeze_epochs
        frozen = freeze < 0 or epoch < freeze
        if self.forward is not None and frozen == self.frozen:
            return
        if self.frozen and not frozen:
            logger.info("epoch %d: the backbone is trained from here on", epoch + 1)
        self.frozen = frozen
        self.network.train()
        backbone: Any = self.network.backbone
        backbone.requires_grad_(not frozen)
        # A frozen backbone keeps the statistics of its batch norms too.
        backbone.train(not frozen)
        # DistributedDataParallel decides when it is made which parameters will have gradients, so it is made anew.
        module: Any = self.accelerator.unwrap_model(self.network, keep_fp32_wrapper=False)
        self.accelerator.free_memory()
        self.forward = self.accelerator.prepare_model(module)
        if self.config.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]

    def step(self, batch: Batch, epoch: int, step: int) -> Losses:
        """Train on one batch, the ``step``-th of the epoch, both from 0.

        Raises:
            EdgeEffDetError: the loss is not finite.
            torch.OutOfMemoryError, RuntimeError: the batch does not fit.
        """
        accumulate, steps = self.config.accumulate, self.steps_per_epoch
        position = epoch * steps + step
        group_start = step - step % accumulate
        group = min(accumulate, steps - group_start)
        last_of_group = step + 1 == group_start + group
        # Drop-path masks follow from the position alone, on every process, so that a resumed run draws those that the first one drew.
        torch.manual_seed((self.config.seed * 1_000_003 + position) % 2**63)
        self.scheduler.step_update(self.updates)
        for norm, momentum in self.norms:
            norm.momentum = max(momentum, STATISTICS_SHARE / (self.updates + STATISTICS_SHARE))
        pixels = self.pixels_of(batch)
        assert self.forward is not None, "call start_epoch first"
        synced = contextlib.nullcontext() if last_of_group else self.accelerator.no_sync(self.forward)  # type: ignore[arg-type]
        with synced:
            class_levels, box_levels = self.forward(pixels)
            loss, class_loss, box_loss = self._loss(class_levels, box_levels, batch)
            losses = self._reduced(loss, class_loss, box_loss)
            if not math.isfinite(losses.total):
                raise EdgeEffDetError(
                    f"The loss is not finite in epoch {epoch + 1}, so training stopped; try `learning_rate` "
                    f"{self.config.learning_rate / 4:g}."
                )
            self._backward(loss / group)
        if last_of_group:
            self._update()
        return losses

    def pixels_of(self, batch: Batch) -> torch.Tensor:
        """The network's input: float32 [B, 3, H, W], normalised, channels last, on the device."""
        images = batch.images.to(self.device, non_blocking=True)
        return self.detector.normalise(images).contiguous(memory_format=torch.channels_last)

    def _loss(self, class_levels: Any, box_levels: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
        class_targets, box_targets, positives = self._label_anchors(batch)
        processes = self.accelerator.num_processes
        if processes > 1:
            # effdet divides the loss by the number of positive anchors in its batch plus 1. The mean of the processes' gradients is the
            # gradient of the whole batch if each process divides by the number in the whole batch over the number of processes.
            whole: Any = self.accelerator.reduce(positives.sum(), "sum")
            positives = (whole + 1) / processes - 1
        return self.loss_fn(class_levels, box_levels, class_targets, box_targets, positives)

    def _reduced(self, *losses: torch.Tensor) -> Losses:
        together = torch.stack([loss.detach() for loss in losses])
        if self.accelerator.num_processes > 1:
            together = self.accelerator.reduce(together, "mean")
        total, class_loss, box_loss = together.tolist()  # type: ignore[union-attr]
        return Losses(total, class_loss, box_loss)

    def _backward(self, loss: torch.Tensor) -> None:
        scaler = self.accelerator.scaler
        (scaler.scale(loss) if scaler is not None else loss).backward()

    def _update(self) -> None:
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_norm)
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.network, step=self.updates)
        self.updates += 1

    def try_batch(self, images: int) -> None:
        """Run forward and backward on a batch of ``images`` black pictures, to see whether it fits; the weights do not change."""
        assert self.forward is not None, "call start_epoch first"
        height, width = self.image_size
        self.optimizer.zero_grad(set_to_none=True)
        pixels = torch.zeros(images, 3, height, width, device=self.device).contiguous(memory_format=torch.channels_last)
        class_levels, box_levels = self.forward(pixels)
        torch.stack([level.float().sum() for level in (*class_levels, *box_levels)]).sum().backward()
        self.optimizer.zero_grad(set_to_none=True)

    def validation_losses(self, class_levels: Any, box_levels: Any, batch: Batch) -> np.ndarray:
        """effdet's losses of head tensors that were computed elsewhere, float64 [3]; see ``Losses``."""
        return np.array([float(loss) for loss in self.loss_fn(class_levels, box_levels, *self._label_anchors(batch))])

    def _label_anchors(self, batch: Batch) -> Any:
        return self.labeler.batch_label_anchors(
            [boxes.to(self.device) for boxes in batch.boxes], [classes.to(self.device) for classes in batch.classes]
        )

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """All that a run resumes from: tensors by name, and numbers that JSON can hold."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        tensors |= {f"ema.{name}": tensor for name, tensor in self.ema.module.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        scaler = self.accelerator.scaler
        return tensors, {"updates": self.updates, "scaler": scaler.state_dict() if scaler is not None else None}

    def restore(self, tensors: dict[str, torch.Tensor], numbers: dict[str, Any]) -> None:
        """Take over a state that ``state`` returned.

        Raises:
            CheckpointError: the state belongs to another network.
        """
        parts: dict[str, dict[str, torch.Tensor]] = {"network": {}, "ema": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, rest = name.split(".", 1)
            parts[part][rest] = tensor
        try:
            self.network.load_state_dict(parts["network"])
            self.ema.module.load_state_dict(parts["ema"])
        except RuntimeError as error:
            raise CheckpointError(
                "The checkpoint to resume from belongs to another network; give the options that the run was started with."
            ) from error
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            index, key = name.split(".")
            if tensor.ndim:
                # The fused update walks through memory in order, so moments need the memory layout of their weights.
                tensor = torch.empty_like(parameters[int(index)], dtype=tensor.dtype).copy_(tensor)
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.updates = int(numbers["updates"])
        if self.accelerator.scaler is not None and numbers["scaler"]:
            self.accelerator.scaler.load_state_dict(numbers["scaler"])


def make_accelerator(config: TrainConfig) -> Accelerator:
    """Device, precision and processes, as the options and the environment that torchrun or accelerate set up say.

    Raises:
        UsageError: this machine does not have the device, or the device cannot train in the precision.
    """
    cuda = torch.cuda.is_available()
    if config.device == "cuda" and not cuda:
        raise UsageError("`device` cuda was asked for and torch sees no GPU; install its driver, or give `device` cpu.")
    on_cpu = config.device == "cpu" or not cuda
    if on_cpu and config.precision == "fp16":
        raise UsageError("`precision` fp16 trains on a GPU only, and this run is on the CPU; give bf16 or fp32.")
    # Accelerate keeps device and precision of the first Accelerator for the whole process and refuses others: its message says to
    # "restart your runtime completely". A notebook that trains again with another precision needs that state cleared, and no
    # public call of Accelerate does so (``free_memory``, ``end_training`` and ``destroy_process_group`` keep it, as of 1.15), so
    # the private one is called, which Accelerate's own tests use too. The processes of torch.distributed stay.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    return Accelerator(
        cpu=on_cpu, mixed_precision="no" if config.precision == "fp32" else config.precision, dynamo_backend="no"
    )


def parameter_groups(network: nn.Module, options: OptimizerOptions) -> list[dict[str, Any]]:
    """Parameter groups for AdamW. Biases, norms and fusion weights do not decay, and deeper stages learn more slowly.

    BiFPN and heads have the full learning rate, and each stage of the backbone ``layer_decay`` times that of the stage above it, down
    to the stem (ELECTRA, arXiv 2003.10555, appendix A). timm's schedulers multiply the rate of a group by its ``lr_scale``.
    """
    depths = {name: backbone_depth(name) for name, _ in network.named_parameters()}
    top = max(depths.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        decays = parameter.ndim > 1
        depth = depths[name] if depths[name] >= 0 else top + 1
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "lr_scale": options.layer_decay ** (top + 1 - depth),
                "weight_decay": options.weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def backbone_depth(name: str) -> int:
    """The depth of the parameter with this name: 0 in the stem, from 1 in the backbone's stages, -1 in BiFPN and heads."""
    if not name.startswith("backbone."):
        return -1
    stage = re.match(r"backbone\.blocks\.(\d+)\.", name)
    return int(stage.group(1)) + 1 if stage else 0


def make_step(
    spec: ModelSpec, config: TrainConfig
) -> Callable[[torch.Tensor, Sequence[torch.Tensor], Sequence[torch.Tensor]], Losses]:
    """A function that trains on one batch, for benchmarks; it takes images, boxes and classes as ``Batch`` has them."""
    from edge_effdet.training.loader import Batch
    from edge_effdet.training.start import starting_network

    trainer = Trainer(starting_network(spec, config), spec, config, 1000, make_accelerator(config))
    trainer.start_epoch(0)

    def step(images: torch.Tensor, boxes: Sequence[torch.Tensor], classes: Sequence[torch.Tensor]) -> Losses:
        batch = Batch(images, list(boxes), list(classes), tuple(range(len(images))), ())
        return trainer.step(batch, 0, trainer.updates % 1000)

    return step
