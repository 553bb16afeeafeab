"""How the threads of a pipeline get their frames: one after the other of a source that waits, the newest of one that does not."""

from __future__ import annotations

import threading
from collections.abc import Callable

from edge_effdet.runtime.sources import Frame, Source


class Feed:
    """Numbered frames of a source that waits, for several threads."""

    def __init__(self, source: Source) -> None:
        self._frames = enumerate(source)
        self._lock = threading.Lock()
        self._over = False

    def next(self) -> tuple[int, Frame] | None:
        """The next frame and its number, or None at the end. Raises what the source raises, to one caller."""
        with self._lock:
            if self._over:
                return None
            try:
                return next(self._frames)
            except StopIteration:
                self._over = True
                return None
            except BaseException:
                # Another thread would find a generator that has ended, and take it for the source's end.
                self._over = True
                raise

    def close(self) -> None:
        """Nothing is held."""


class LiveFeed:
    """The newest frame of a source that does not wait. One thread reads it all, so that what is old is dropped."""

    def __init__(self, source: Source, dropped: Callable[[], None]) -> None:
        """Take a source and what to call for each frame that is lost."""
        self._source, self._dropped = source, dropped
        self._ready = threading.Condition()
        self._frame: Frame | None = None
        self._error: BaseException | None = None
        self._over = False
        self._number = 0
        self._reader: threading.Thread | None = None

    def next(self) -> tuple[int, Frame] | None:
        """The newest frame and its number, once there is one, or None at the end. Raises what the source raised."""
        if self._reader is None:
            # Not waited for in the end: a camera that is silent would hold the program.
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
        """Let go of a thread that waits for a frame."""
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
