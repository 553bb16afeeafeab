"""Reading a source in threads of its own, so that another thread can watch how it goes and need not wait for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from edge_effdet.backends.base import LoadOptions
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.pipeline import FrameResult, Pipeline, PipelineOptions
from edge_effdet.runtime.sources import Frame, Source, open_source


class SourceReading:
    """One reading of the source, from its opening to its end."""

    def __init__(
        self,
        address: str,
        detector: Detector,
        loading: LoadOptions,
        note: Callable[[FrameResult], None],
        opener: Callable[[str], Source] | None = None,
        options: PipelineOptions | None = None,
        keep_images: bool = False,
    ) -> None:
        self._address, self._detector, self._loading, self._note = address, detector, loading, note
        self._opener, self._options, self._keep_images = opener, options, keep_images
        self._source: WatchedSource | None = None
        self._pipeline: Pipeline | None = None
        self._closing = threading.Event()
        self._seen = -1
        self._busy_since = time.monotonic()

    def run(self) -> None:
        """Read to the end. Raises what opening, reading or the engine raises."""
        source = self._source = WatchedSource((self._opener or open_source)(self._address))
        with Pipeline(self._detector, source, self._options, self._loading, self._keep_images) as pipeline:
            self._pipeline = pipeline
            if self._closing.is_set():
                return
            for found in pipeline:
                self._note(found)
                if self._closing.is_set():
                    return

    def close(self) -> None:
        """Ask for the end; returns at once."""
        self._closing.set()
        threading.Thread(target=self._close, name="edge-effdet-close", daemon=True).start()

    def _close(self) -> None:
        while self._pipeline is not None and not _closed(self._pipeline):
            time.sleep(0.01)

    @property
    def done(self) -> int:
        return 0 if self._pipeline is None else self._pipeline.progress.done

    @property
    def failed(self) -> int:
        return 0 if self._pipeline is None else self._pipeline.progress.failed

    @property
    def dropped(self) -> int:
        return 0 if self._pipeline is None else self._pipeline.progress.dropped

    @property
    def live(self) -> bool:
        return self._source is not None and self._source.live

    def busy_for(self, now: float) -> float:
        """Seconds for which frames have been under way without one that came through. Called at short intervals."""
        through = self.done + self.failed
        under_way = 0 if self._source is None else self._source.given - through - self.dropped
        if under_way <= 0 or through != self._seen:
            self._seen, self._busy_since = through, now
        return now - self._busy_since

    def is_silent(self, seconds: float) -> bool:
        """Whether a camera has sent nothing for so long."""
        source = self._source
        return source is not None and source.live and time.monotonic() - source.last > seconds

    def is_held(self) -> bool:
        """Whether a thread is still inside a camera's driver."""
        return self._source is not None and self._source.live and self._source.inside


def _closed(pipeline: Pipeline) -> bool:
    """Close a pipeline. False while it cannot be, as one of its threads is only about to start."""
    try:
        pipeline.close()
    except RuntimeError:
        return False
    return True


class WatchedSource:
    """A source that tells when its last frame came.

    Attributes:
        given: how many frames it gave.
        last: when the last one came, by ``time.monotonic``; before the first, when the source was opened.
        inside: whether somebody waits for a frame.
    """

    def __init__(self, source: Source) -> None:
        self.name, self.live, self.total, self.rate = source.name, source.live, source.total, source.rate
        self.given, self.last, self.inside = 0, time.monotonic(), False
        self._source = source

    def __iter__(self) -> Iterator[Frame]:
        self.inside = True
        try:
            for frame in self._source:
                self.given, self.last = self.given + 1, time.monotonic()
                yield frame
        finally:
            self.inside = False

    def stop(self) -> None:
        self._source.stop()


class Aside:
    """Work in a thread of its own, which ends with the process at the latest.

    Attributes:
        ended: set when it is over.
    """

    def __init__(self, work: Callable[[], Any], name: str) -> None:
        self.ended = threading.Event()
        self._work = work
        self._value: Any = None
        self._error: BaseException | None = None
        threading.Thread(target=self._run, name=f"edge-effdet-{name}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._value = self._work()
        except BaseException as error:  # the thread that watches raises it
            self._error = error
        finally:
            self.ended.set()

    def result(self) -> Any:
        """What the work gave; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._value


class Repeated(logging.Filter):
    """Lets each kind of message through once, until it is told to forget: ``runtime.sources`` logs every attempt to open a camera."""

    def __init__(self) -> None:
        super().__init__()
        self._kinds: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        seen = str(record.msg) in self._kinds
        self._kinds.add(str(record.msg))
        return not seen

    def forget(self) -> None:
        self._kinds.clear()
