"""How the threads of a pipeline get frames: every frame of files and videos in order, or only the newest frame of a camera."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge_effdet.runtime.sources import Frame, Source


class Feed:
    """Hands each frame of a file or a video, with its number, to one of several threads."""

    def __init__(self, source: Source) -> None:
        self._frames = enumerate(source)
        self._lock = threading.Lock()
        self._over = False

    def next(self) -> tuple[int, Frame] | None:
        """The next frame with its number, or None at the end. An error of the source is raised in one caller."""
        with self._lock:
            if self._over:
                return None
            try:
                return next(self._frames)
            except StopIteration:
                self._over = True
                return None
            except BaseException:
                # A generator that raised looks to other threads like one that has ended.
                self._over = True
                raise

    def close(self) -> None:
        """Do nothing: this feed holds no resource."""


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
