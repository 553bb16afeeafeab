"""The limits for pictures and frames of every source. They are checked before a picture is decoded, and bound what is held at the same time."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edge_effdet.artifacts import Size
from edge_effdet.errors import DataError, NotEnoughMemory

MAX_PIXELS = 89_478_485
"""A picture with more pixels is refused, so that one file cannot fill a device's memory. As RGB, this many pixels take 358 MB in Pillow, which
keeps four bytes for each. Pillow has the same limit, but only warns."""

MAX_SIDE = 65_535
"""A picture with a longer side is refused: Pillow keeps eight bytes for each row, which is more than a picture of one column takes itself. JPEG
has the same limit."""

MAX_DECODE_BYTES = 2**29
"""Pictures that are decoded at the same time take no more than this together, or are one."""

MAX_PICTURE_BYTES = 2**30
"""A picture that takes more memory while it is decoded is refused. One of ``MAX_PIXELS`` pixels takes no more in all kinds but JPEG 2000, which takes
16 bytes for each pixel and is refused from 67 million on."""

LARGE_PIXELS = 2**24
"""A picture with more pixels is not kept while it waits: it is scaled down at once, and decoded a second time where it is drawn on."""

MAX_FRAME_PIXELS = 35_651_584
"""The same for a frame of a video or of a camera: the largest picture of H.265 and AV1 at their highest levels (8192x4352). A decoder holds a
dozen frames at a time."""

MAX_FRAMES_BYTES = 3 * 2**27
"""Frames of a video that are on their way through a pipeline take no more than this together, or are one."""

_UNCOUNTED = 2**24
"""Pictures that take less to decode do not wait for others."""

_SHORTAGES = (errno.EAGAIN, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""What the system says where it has no more memory or may open no more files."""


def refuse_huge(size: Size, name: object, most_pixels: int = MAX_PIXELS) -> None:
    """Refuse a picture by its size alone.

    Args:
        size: height and width.
        name: what the message calls it.
        most_pixels: how many pixels are allowed; a service that takes pictures from anybody sets fewer.

    Raises:
        DataError: it has more pixels, or a side is longer than ``MAX_SIDE``.
    """
    height, width = size
    if width * height > most_pixels:
        allowed = f"{most_pixels // 10**6} million" if most_pixels >= 10**6 else str(most_pixels)
        raise DataError(f"{name} has {width}x{height} pixels, and more than {allowed} are refused; scale it down.")
    if max(size) > MAX_SIDE:
        raise DataError(
            f"{name} has {width}x{height} pixels, and sides of more than {MAX_SIDE} are refused; cut it into parts."
        )


def refuse_heavy(needed: int, size: Size, kind: str, name: object) -> None:
    """Refuse a picture by the memory that it takes to decode.

    Args:
        needed: bytes.
        size: height and width.
        kind: what it is that takes so much, as in ``16-bit grey``.
        name: what the message calls it.

    Raises:
        DataError: it takes more than ``MAX_PICTURE_BYTES``.
    """
    if needed > MAX_PICTURE_BYTES:
        raise DataError(
            f"{name} has {size[1]}x{size[0]} pixels as {kind}, which take {needed >> 20} MiB to decode, and more than "
            f"{MAX_PICTURE_BYTES >> 20} are refused; scale it down."
        )


def refuse_shortage(error: Exception, name: object) -> None:
    """Raise NotEnoughMemory where an error says that the system is short of something, which says nothing of the file that was being read."""
    if isinstance(error, OSError) and error.errno in _SHORTAGES:
        raise NotEnoughMemory(
            f"{name} cannot be read now ({error.strerror}); free what is short, and read it again."
        ) from error


def is_large(size: Size) -> bool:
    """Whether a picture of this height and width has more than ``LARGE_PIXELS``."""
    return size[0] * size[1] > LARGE_PIXELS


class ByteBudget:
    """So many bytes for all threads together. What does not fit waits until others are done; what is larger than all waits until it is alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_use = 0
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int) -> Iterator[None]:
        """Take bytes until the block ends. One block must not stand in another of the same thread."""
        if count < _UNCOUNTED:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: not self._in_use or self._in_use + count <= self._limit)
            self._in_use += count
        try:
            yield
        finally:
            with self._changed:
                self._in_use -= count
                self._changed.notify_all()

    def forget(self) -> None:
        """Begin anew, in a process that was forked while threads of its parent held some."""
        self._in_use = 0
        self._changed = threading.Condition()


DECODING = ByteBudget(MAX_DECODE_BYTES)
"""What pictures take while they are decoded, in this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=DECODING.forget)
