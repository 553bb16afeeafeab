"""What makes one global batch train the same on one process or on several: batch norm over all of them, and drop-path masks
drawn for all of them. Accelerate does the rest.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from timm.layers.drop import DropPath
from timm.layers.norm_act import convert_sync_batchnorm
from torch import distributed, nn
from torch.distributed.nn.functional import all_reduce


def share_over_processes(network: nn.Module, rank: int, processes: int) -> nn.Module:
    """Prepare a network on its device for ``processes`` processes; with one it is returned as it is.

    Raises:
        RuntimeError: torch.distributed is not initialised.
    """
    if processes == 1:
        return network
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                setattr(parent, name, SharedDropPath(child.drop_prob, rank, processes))
    if next(network.parameters()).is_cuda:
        return convert_sync_batchnorm(network)  # type: ignore[no-any-return]
    # torch's SyncBatchNorm is for accelerators only.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The class's method is replaced on this one module, which a type checker cannot allow in general.
            module.forward = _SyncedForward(module)  # pyright: ignore[reportAttributeAccessIssue]
    return network


def end_process_group() -> None:
    """End this process's part in torch.distributed, with its threads, after the last exchange; nothing where there is none.

    gloo's threads hold the tensors of what they last sent. One that is left to the interpreter's end may ask for it to free
    such a tensor when it is no longer there, which aborts the process ("terminate called without an active exception").
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        # The threads end with the group's last owner, which may stand in a cycle: a network divided by DDP knows its group.
        gc.collect()


class SharedDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382) whose masks are drawn for the batches of all processes alike.

    Every process draws all masks from the same seed and takes its own, image ``rank + i * processes`` of the whole batch.
    """

    def __init__(self, drop_prob: float, rank: int, processes: int) -> None:
        super().__init__()
        self.keep_prob, self.rank, self.processes = 1 - drop_prob, rank, processes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.keep_prob == 1:
            return x
        whole = x.new_empty((len(x) * self.processes, 1, 1, 1)).bernoulli_(self.keep_prob)
        return x * (whole[self.rank :: self.processes] / self.keep_prob)


class _SyncedForward:
    """A batch norm's forward with the mean and variance of all processes' batches, which are equally large."""

    def __init__(self, module: nn.BatchNorm2d) -> None:
        self.module = module

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        # Statistics are FP32 whatever the convolutions give, as in torch's own batch norm.
        x = given.float()
        if module.training:
            processes = distributed.get_world_size()
            mean = all_reduce(x.mean((0, 2, 3))) / processes
            # Around the common mean, because E[x²] - E[x]² cancels in FP32.
            variance = all_reduce((x - mean.reshape(1, -1, 1, 1)).square().mean((0, 2, 3))) / processes
            with torch.no_grad():
                count = x.numel() / x.shape[1] * processes
                module.running_mean.lerp_(mean, module.momentum)
                module.running_var.lerp_(variance * (count / (count - 1)), module.momentum)
                module.num_batches_tracked.add_(1)
        else:
            mean, variance = module.running_mean, module.running_var
        scale = module.weight * torch.rsqrt(variance + module.eps)
        y = x * scale.reshape(1, -1, 1, 1) + (module.bias - mean * scale).reshape(1, -1, 1, 1)
        y = y.to(given.dtype)
        # timm's BatchNormAct2d carries its activation.
        return module.act(module.drop(y)) if hasattr(module, "act") else y
