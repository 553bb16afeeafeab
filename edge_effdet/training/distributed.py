"""A global batch trains the same on one process or on several, because batch norm covers all of them and drop-path masks are drawn for
all of them. Accelerate does the rest.
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
    """Prepare a network, on its device, for training in ``processes`` processes; for one process it is returned unchanged.

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
    # torch's SyncBatchNorm does not run on a CPU.
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # The method is replaced on this one module only, which a type checker does not allow.
            module.forward = _SyncedForward(module)  # pyright: ignore[reportAttributeAccessIssue]
    return network


def end_process_group() -> None:
    """Leave torch.distributed and end its threads, after the last exchange. Does nothing where no process group was made.

    gloo's threads hold the tensors that they sent last. A thread that is still there when the interpreter ends may ask it to free
    such a tensor when the interpreter is gone, which aborts the process ("terminate called without an active exception").
    """
    if distributed.is_initialized():
        distributed.destroy_process_group()
        # The threads end with the last reference to the group, which may be part of a cycle: a network wrapped by DDP refers to its group.
        gc.collect()


class SharedDropPath(nn.Module):
    """Stochastic depth (arXiv 1603.09382) whose masks do not depend on how a batch is divided among processes.

    Every process draws the masks of the whole batch from the same seed, and takes those of its own images, ``rank + i * processes``.
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
    """The forward pass of a batch norm, with mean and variance over the batches of all processes, which are equally large."""

    def __init__(self, module: nn.BatchNorm2d) -> None:
        self.module = module

    def __call__(self, given: torch.Tensor) -> torch.Tensor:
        module: Any = self.module
        # Statistics are computed in FP32 whatever type the convolutions give, as in torch's own batch norm.
        x = given.float()
        if module.training:
            processes = distributed.get_world_size()
            mean = all_reduce(x.mean((0, 2, 3))) / processes
            # The variance is taken around the common mean, because E[x²] - E[x]² cancels in FP32.
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
        # timm's BatchNormAct2d has its activation inside.
        return module.act(module.drop(y)) if hasattr(module, "act") else y
