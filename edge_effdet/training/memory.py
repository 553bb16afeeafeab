"""Batches that do not fit into memory. On a CPU they are foreseen, since the system would kill the run; on a GPU the failure is explained."""

from __future__ import annotations

import contextlib
import copy
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from edge_effdet.errors import UsageError
from edge_effdet.training.trainer import Trainer

OVERHEAD = 1.6
"""Peak memory of a step, as a multiple of the activations that it saves: gradients and the convolutions' buffers need room too. This is an
estimate on the safe side, not a measurement."""

SHARED_MEMORY = Path("/dev/shm")
"""Where Linux has files in memory that processes share."""

_AHEAD = 2
"""Batches that torch lets each process prepare."""

_SEMAPHORES = 1 << 20
"""More bytes than the semaphores of the queues take, a page of memory each."""

_FILES = 24
"""Open files that a run needs besides, for a moment."""

_FILES_OF_A_WORKER = 4
"""Ends of pipes that the main process keeps to one that loads images. Loading alone works from 9 open files on with one of them, and from 14 with two."""

_PROBE_IMAGES = 2
"""Images in the trial pass. Batch norm needs more than one value a channel."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that torch or Python ran out of memory, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


def require_memory(trainer: Trainer, images: int, size: tuple[int, int]) -> None:
    """Refuse, on a CPU, a batch whose activations need more memory than is free, before the system kills the run.

    The processes on one machine are taken to share its free memory evenly.

    Args:
        trainer: ready to step; it is not changed.
        images: how many one process has in a batch.
        size: height and width of the network's input, pixels.

    Raises:
        UsageError: the batch does not fit; the message names one that does.
    """
    free = free_memory()
    if trainer.device.type != "cpu" or free is None:
        return
    # torchrun and accelerate set this variable.
    free //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    per_image = OVERHEAD * _saved_bytes(trainer, size) / _PROBE_IMAGES
    if images * per_image <= free:
        return
    why = f"about {images * per_image / 1e9:.1f} of {free / 1e9:.1f} GB"
    raise _too_large(images, size, int(free // per_image), why, trainer.accelerator.num_processes)


def require_shared_memory(workers: int, images: int, size: tuple[int, int], folder: Path = SHARED_MEMORY) -> None:
    """See that the processes that load images can hand them over, which they do by files in ``/dev/shm``, where the system has such a folder.

    Containers often get 64 MB of it, and some systems none.

    Args:
        workers: how many processes load images.
        images: how many a batch of this process has.
        size: height and width of the network's input, pixels.
        folder: where the files lie.

    Raises:
        UsageError: it is not there, cannot be written, or is too small.
    """
    if not workers or sys.platform != "linux":
        return
    # Each process works ahead by two batches, and one more is in use.
    needed = _SEMAPHORES + (_AHEAD * workers + 1) * images * 3 * size[0] * size[1]
    try:
        found = os.statvfs(folder)
        free, reason = found.f_bavail * found.f_frsize, ""
        if not os.access(folder, os.W_OK):
            reason = "it cannot be written"
        elif free < needed:
            reason = f"they take up to {needed / 1e6:.1f} MB of it, and {free / 1e6:.1f} MB are free"
    except OSError as error:
        reason = error.strerror or str(error)
    if reason:
        raise UsageError(
            f"The processes that load images cannot hand them over by the shared memory in {folder} ({reason}); give `workers` 0, or the "
            "machine more of it, as docker does with --shm-size 1g."
        )


def require_open_files(workers: int) -> None:
    """See that this process may open what it needs to talk to those that load images: some of them fail where they cannot, and end nobody's wait.

    Args:
        workers: how many load images for training, and as many for validation.

    Raises:
        UsageError: the limit of open files is too small.
    """
    if not workers or sys.platform != "linux":
        return
    limit, opened = resource.getrlimit(resource.RLIMIT_NOFILE)[0], len(list(Path("/proc/self/fd").iterdir()))
    needed = _FILES + 2 * _FILES_OF_A_WORKER * workers
    if opened + needed > limit:
        raise UsageError(
            f"{workers} processes that load images need up to {needed} open files, and the system allows this program {max(0, limit - opened)} "
            "more; give `workers` 0, or raise the limit, as ulimit -n does."
        )


def explain_out_of_memory(
    attempt: Callable[[int], None], images: int, size: tuple[int, int], error: BaseException, processes: int = 1
) -> UsageError:
    """The error for a batch that ran out of memory: the batch is halved until ``attempt(images)`` passes, and the message names that size.

    Args:
        attempt: runs forward and backward on as many images as it is given.
        images: how many one process has in a batch.
        size: height and width of the network's input, pixels.
        error: the one that the batch failed with.
        processes: how many share a batch. With several nothing is attempted, because its gradients would wait for the others for ever.
    """
    fits = images // 2
    if processes > 1:
        return _too_large(images, size, fits, type(error).__name__, processes, tried=False)
    while fits > 0:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        with contextlib.suppress(torch.OutOfMemoryError, MemoryError, RuntimeError):
            attempt(fits)
            break
        fits //= 2
    return _too_large(images, size, fits, type(error).__name__)


def _too_large(
    images: int, size: tuple[int, int], fits: int, why: str, processes: int = 1, tried: bool = True
) -> UsageError:
    """``images`` and ``fits`` count the images of one process, and the option ``batch_size`` those of all processes."""
    shared = f" in each of {processes} processes" if processes > 1 else ""
    said = f"A batch of {images}{shared} at {size[0]}x{size[1]} does not fit into memory ({why})"
    if fits < 1:
        return UsageError(f"{said}, and one image does not either; give a smaller `image_size` or model.")
    accumulate = -(-images // fits)
    does = "does" if tried else "may"
    return UsageError(f"{said}; {fits} {does}: give `batch_size` {fits * processes} and `accumulate` {accumulate}.")


def free_memory() -> int | None:
    """Bytes of memory that this process may still take, of the machine and of its control group; None where neither is known."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")))
    with contextlib.suppress(OSError, ValueError):
        found.append(_free_in_group(Path("/sys/fs/cgroup")))
    return min(found) if found else None


def _free_in_group(group: Path) -> int:
    """Bytes that a control group leaves. Raises OSError or ValueError where the group has no limit."""
    limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    # Cached files count as used, though the kernel drops them when memory is wanted: a data set would seem to fill the group.
    lines = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    cached = sum(int(words[1]) for words in lines if words[0] in ("inactive_file", "active_file"))
    return limit - max(0, used - cached)


def _saved_bytes(trainer: Trainer, size: tuple[int, int]) -> int:
    """Bytes that a forward pass of ``_PROBE_IMAGES`` images keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    probe = copy.deepcopy(trainer.ema.module).train().requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = probe(torch.zeros(_PROBE_IMAGES, 3, *size).contiguous(memory_format=torch.channels_last))
    del outputs
    weights = sum(parameter.nbytes for parameter in probe.parameters())
    return max(0, sum(kept.values()) - weights)
