"""How the threads of a pipeline get frames: every frame of files and videos in order, or only the newest frame of a camera."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from edge_effdet.runtime.limits import MAX_FRAMES_BYTES
from edge_effdet.runtime.sources import Frame, Source


class Feed:
    """Hands each frame of a file or a video, with its number, to one of several threads.

    A frame of a video is held until it has left the pipeline. The next one is read only when those on their way leave room for it: frames are
    read in order, so that the oldest one never waits for room that later ones have taken.
    """

    def __init__(self, source: Source, most_bytes: int = MAX_FRAMES_BYTES) -> None:
        """``most_bytes`` is what the frames on their way may take together; one alone may take more."""
        self._frames = enumerate(source)
        self._lock = threading.Lock()
        self._over = False
        self._room = threading.Condition()
        self._most, self._held, self._usual = most_bytes, 0, 0
        self._closed = False

    def next(self) -> tuple[int, Frame] | None:
        """The next frame with its number, or None at the end. An error of the source is raised in one caller."""
        with self._lock:
            if self._over or not self._wait_for_room():
                return None
            try:
                number, frame = next(self._frames)
                self._hold(frame)
                return number, frame
            except StopIteration:
                self._over = True
                return None
            except BaseException:
                # A generator that raised looks to other threads like one that has ended.
                self._over = True
                raise

    def done(self, frame: Frame) -> None:
        """Say that a frame has left the pipeline."""
        if isinstance(frame.picture, np.ndarray):
            with self._room:
                self._held -= frame.picture.nbytes
                self._room.notify_all()

    def close(self) -> None:
        """End the wait of a thread in ``next``."""
        with self._room:
            self._closed = True
            self._room.notify_all()

    def _wait_for_room(self) -> bool:
        """Wait until one more frame like the last one fits; False where the feed was closed."""
        with self._room:
            self._room.wait_for(lambda: self._closed or not self._held or self._held + self._usual <= self._most)
            return not self._closed

    def _hold(self, frame: Frame) -> None:
        if isinstance(frame.picture, np.ndarray):
            with self._room:
                self._usual = frame.picture.nbytes
                self._held += self._usual


class LiveFeed:
    """Hands out the newest frame of a live source. One thread reads all frames and drops those that nobody took in time."""

    def __init__(self, source: Source, dropped: Callable[[], None]) -> None:
        """``dropped`` is called for each frame that is dropped."""
        self._source, self._dropped = source, dropped
        self._ready = threading.Condition()
        self._frame: Frame | None = None
        self._error: BaseException | None = None
        self._over = False
        self._number = 0
        self._reader: threading.Thread | None = None

    def next(self) -> tuple[int, Frame] | None:
        """Wait for a new frame and return it with its number; None at the end. An error of the source is raised here."""
        if self._reader is None:
            # A daemon thread, because the program must be able to end while a camera sends nothing.
            self._reader = threading.Thread(target=self._read, name="edge-effdet-camera", daemon=True)
            self._reader.start()
        with self._ready:
            self._ready.wait_for(lambda: self._frame is not None or self._over)
            if self._frame is None:
                if self._error is not None:
                    raise self._error
                return None
            frame, self._frame = self._frame, None
            self._number += 1
            return self._number - 1, frame

    def done(self, frame: Frame) -> None:
        """Do nothing: only the newest frame is held."""

    def close(self) -> None:
        """End the wait of a thread in ``next``."""
        with self._ready:
            self._over = True
            self._ready.notify_all()

    def _read(self) -> None:
        try:
            for frame in self._source:
                with self._ready:
                    if self._frame is not None:
                        self._dropped()
                    self._frame = frame
                    self._ready.notify_all()
        except BaseException as error:  # the pipeline's caller raises it
            self._error = error
        with self._ready:
            self._over = True
            self._ready.notify_all()
