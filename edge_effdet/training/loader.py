"""Batches for training and validation. A sample depends on seed, epoch and index alone: not on the worker that makes it, on the
process that trains on it, or on where an interrupted run began again.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_effdet.artifacts import ModelSpec
from edge_effdet.data.base import Sample
from edge_effdet.errors import DataError, EdgeEffDetError, UsageError, first_line
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.preprocess import letterbox
from edge_effdet.signals import kept_from_children
from edge_effdet.training.augment import Labelled, augment_sample
from edge_effdet.training.options import TrainConfig

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """Images with their labelled boxes, as effdet's anchor labeler takes them.

    Attributes:
        images: uint8 [B, 3, H, W].
        boxes: float32 [N, 4] an image, yxyx in pixels of the network's input.
        classes: int64 [N] an image, counted from 1.
        indices: the samples' positions in their split.
        unreadable: error messages of the images that could not be decoded and that others replace.
    """

    images: torch.Tensor
    boxes: list[torch.Tensor]
    classes: list[torch.Tensor]
    indices: tuple[int, ...]
    unreadable: tuple[str, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        # torch hands each tensor over by a file descriptor: two an image are more than the usual limit of 1024 where batches are large.
        labels = ([each.numpy() for each in self.boxes], [each.numpy() for each in self.classes])
        return _handed_over, (self.images, *labels, self.indices, self.unreadable)


def _handed_over(
    images: torch.Tensor,
    boxes: list[NDArray[np.float32]],
    classes: list[NDArray[np.int64]],
    indices: tuple[int, ...],
    unreadable: tuple[str, ...],
) -> Batch:
    import torch

    return Batch(images, list(map(torch.from_numpy, boxes)), list(map(torch.from_numpy, classes)), indices, unreadable)


class EpochBatches:
    """Shuffled batches of (epoch, index) for one of several processes; a short last batch is dropped.

    ``start_at`` sets the epoch and the step that the next iteration begins with.
    """

    def __init__(self, count: int, batch_size: int, seed: int, rank: int = 0, processes: int = 1) -> None:
        self.count, self.seed, self.rank, self.processes = count, seed, rank, processes
        # Each process needs as many images as the others.
        self.batch_size = min(batch_size, count) // processes * processes
        self.epoch = self.step = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def start_at(self, epoch: int, step: int) -> None:
        self.epoch, self.step = epoch, step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.count)
        for step in range(self.step, len(self)):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(self.epoch, int(index)) for index in batch[self.rank :: self.processes]]


def training_loader(samples: Sequence[Sample], batches: EpochBatches, spec: ModelSpec, config: TrainConfig) -> Any:
    """A DataLoader of augmented ``Batch``es in the order of ``batches``."""
    from torch.utils.data import DataLoader

    return DataLoader(
        cast(Any, TrainingImages(samples, spec, config)),
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )


def validation_loader(
    samples: Sequence[Sample], indices: Sequence[int], spec: ModelSpec, config: TrainConfig, processes: int = 1
) -> Any:
    """A DataLoader of letterboxed ``Batch``es of the samples at ``indices``; one that cannot be decoded is left out.

    A batch is as large as one of training is in each of ``processes``.
    """
    from torch.utils.data import DataLoader

    return DataLoader(
        cast(Any, _ValidationImages(samples, spec)),
        batch_size=max(1, config.batch_size // processes),
        sampler=list(indices),
        collate_fn=_collate,
        num_workers=config.workers,
    )


def batches_of(loader: Any) -> Iterator[Batch]:
    """The batches of a ``training_loader`` or a ``validation_loader``. The processes that load images are started here.

    Raises:
        DataError: none of the images can be decoded.
        UsageError: there is not enough shared memory for those processes to hand their batches over, or they need more open files than
            the system allows.
    """
    try:
        with kept_from_children():
            source = iter(loader)
    except OSError as error:
        # Their queues have semaphores, which lie there too.
        explained = _not_handed_over(error)
        _remove_quietly(error)
        raise explained from None
    try:
        yield from source
    except RuntimeError as error:
        if not _says(errno.EMFILE, error):
            raise
        raise _not_handed_over(error) from error
    except EdgeEffDetError as error:
        # From a process that loads images torch brings the error with its traceback as the message.
        *frames, said = str(error).strip().splitlines()
        if not frames:
            raise
        raise type(error)(said.partition(f"{type(error).__name__}: ")[2] or said) from error


_Item = tuple[int, Labelled | None, tuple[str, ...]]


class TrainingImages:
    """Augmented samples by (epoch, index). A picture that cannot be decoded is replaced by the next one that can."""

    def __init__(self, samples: Sequence[Sample], spec: ModelSpec, config: TrainConfig) -> None:
        self.samples, self.spec, self.config = samples, spec, config

    def __getitem__(self, key: tuple[int, int]) -> _Item:
        epoch, index = key
        rng = np.random.default_rng((self.config.seed, epoch, index))
        unreadable: list[str] = []
        labelled = augment_sample(
            self._read(index, unreadable),
            lambda: self._read(int(rng.integers(len(self.samples))), unreadable),
            self.spec.image_size,
            self.spec.preprocess,
            self.config,
            rng,
        )
        return index, labelled, tuple(unreadable)

    def _read(self, index: int, unreadable: list[str]) -> Labelled:
        for offset in range(len(self.samples)):
            sample = self.samples[(index + offset) % len(self.samples)]
            try:
                image = read_image(sample.path)
            except DataError as error:
                # One bad file must not end a run of hours; the main process warns of it once.
                unreadable.append(str(error))
                continue
            trainable = ~sample.ignore
            return image, sample.boxes[trainable], sample.class_ids[trainable]
        raise DataError("None of the training images can be decoded; check the files.")


class _ValidationImages:
    def __init__(self, samples: Sequence[Sample], spec: ModelSpec) -> None:
        self.samples, self.spec = samples, spec

    def __getitem__(self, index: int) -> _Item:
        sample = self.samples[index]
        try:
            canvas, scale = letterbox(read_image(sample.path), self.spec.image_size, self.spec.preprocess)
        except DataError as error:
            return index, None, (str(error),)
        trainable = ~sample.ignore
        return index, (canvas, sample.boxes[trainable] * np.float32(scale), sample.class_ids[trainable]), ()


def _collate(items: list[_Item]) -> Batch:
    import torch
    from torch.utils.data import get_worker_info

    readable = [(index, labelled) for index, labelled, _ in items if labelled is not None]
    images = [image.transpose(2, 0, 1) for _, (image, _, _) in readable]
    batch = Batch(
        torch.from_numpy(np.ascontiguousarray(np.stack(images))) if images else torch.empty(0, 3, 1, 1),
        [torch.from_numpy(np.ascontiguousarray(boxes[:, [1, 0, 3, 2]])) for _, (_, boxes, _) in readable],
        [torch.from_numpy(class_ids + 1) for _, (_, _, class_ids) in readable],
        tuple(index for index, _ in readable),
        tuple(message for _, _, messages in items for message in messages),
    )
    if get_worker_info() is not None:
        _share(batch)
    return batch


def _share(batch: Batch) -> None:
    """Put a batch into shared memory, in which torch hands it to the main process.

    torch would do so in a thread that sends batches. Where it fails there, it prints a traceback and sends nothing, and the main process
    waits for ever.
    """
    try:
        batch.images.share_memory_()
    except (RuntimeError, OSError) as error:
        raise _not_handed_over(error) from error


def _not_handed_over(error: Exception) -> UsageError:
    """The error where the system has no more of what hands images over, though ``memory`` found enough before: other programs use it too."""
    said = "The processes that load images cannot hand them over, for"
    if _says(errno.ENFILE, error):
        return UsageError(f"{said} the system opens no more files; give fewer `workers`, or end other programs.")
    if _says(errno.EMFILE, error):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return UsageError(
            f"{said} they need more open files than the {limit} that the system allows this program; give fewer `workers`, or raise the limit, "
            "as ulimit -n does."
        )
    reason = error.strerror if isinstance(error, OSError) else None
    return UsageError(
        f"{said} no shared memory is left ({reason or first_line(error)}); give `workers` 0, or the machine more of it, as docker does with "
        "--shm-size 1g."
    )


def _says(number: int, error: Exception) -> bool:
    """Whether an error is the system's of this number: torch has RuntimeErrors of its own, with the system's words."""
    return os.strerror(number) in str(error)


def _remove_quietly(error: Exception) -> None:
    """Remove what an error's frames hold. torch's half made loader fails when it goes, of which Python would print a traceback each time."""
    printed, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
    finally:
        sys.unraisablehook = printed


def leave_dead_loaders_to_the_next_batch() -> None:
    """Remove torch's handler for the death of a process that loads images; the next fetch of a batch notices the death too.

    The handler raises in whatever line the main thread stands, inside a library's C++ as well, which may turn the error into another
    or leave the interpreter so that it crashes when it ends.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
