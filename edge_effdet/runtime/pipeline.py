"""Decode, infer and suppress at the same time: frames of a source to detections, in order.

    from edge_effdet import Detector, Pipeline, open_source

    with Detector.load("engines/quickstart.fp32.onnx") as detector, Pipeline(detector, open_source("photos")) as found:
        for each in found:
            print(each.frame.name, len(each.detections or ()), each.problem)

Threads and not processes: Pillow, PyAV and every backend let go of Python's lock while they work. What is between the first
stage and the caller is bounded by one count of frames on their way, so that a slow caller or a slow stage holds back
the stages before it and memory does not grow.
"""

from __future__ import annotations

import contextlib
import math
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
from PIL import Image

from edge_effdet.artifacts import Detections, Size
from edge_effdet.backends.base import MOST_CONTEXTS, LoadOptions, get_backend
from edge_effdet.backends.cores import usable_cores
from edge_effdet.errors import DataError, MissingDependency, UsageError
from edge_effdet.options import option
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.feeds import Feed, LiveFeed
from edge_effdet.runtime.images import pixels_of
from edge_effdet.runtime.limits import is_large
from edge_effdet.runtime.sources import Frame, Source

MOST_RUNS = 4
"""At once on a CPU, unless more are asked for: each holds all activations of the network, which a device has to spare."""

LONGEST_WAIT, LONGEST_RUN = 2.0, 15.0
"""Seconds after which a pipeline that is closed waits no longer for the source and for decoding, and for a run of the engine."""

WINDOW_SECONDS = 5.0
"""Of the rate and the latency that are shown."""


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """How many pictures are worked on at the same time.

    Raises:
        UsageError: a number is negative.
    """

    runs: int = option(
        0, help="runs of the engine at once; 0 for one a core of a CPU, up to 4, and one for a camera and on a GPU"
    )
    decoders: int = option(0, help="threads that decode; 0 for as many as the runs, at least 2")
    batch_wait_ms: float = option(20.0, help="how long a picture waits for others of its batch")

    def __post_init__(self) -> None:
        for name in ("runs", "decoders", "batch_wait_ms"):
            if getattr(self, name) < 0:
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give 0 or more.")


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What became of a frame.

    Attributes:
        frame: as the source gave it.
        detections: None where the picture could not be decoded.
        problem: why it could not, in a sentence; empty where it could.
        image: uint8 [height, width, 3], RGB, where the pipeline was told to keep pictures.
        seconds: from its arrival to here.
    """

    frame: Frame
    detections: Detections | None
    problem: str
    image: np.ndarray | None
    seconds: float


@dataclass(slots=True)
class Progress:
    """How it goes, to be read while it does.

    Attributes:
        done: pictures that were looked at.
        failed: pictures that could not be decoded.
        dropped: frames of a camera that were too old when their turn came.
    """

    done: int = 0
    failed: int = 0
    dropped: int = 0
    _recent: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=4096))

    def add(self, seconds: float) -> None:
        """Count a picture that took so long."""
        self.done += 1
        now = time.perf_counter()
        self._recent.append((now, seconds))
        while now - self._recent[0][0] > WINDOW_SECONDS:
            self._recent.popleft()

    def rate(self) -> float:
        """Pictures a second over the last seconds; 0 before the second picture."""
        if len(self._recent) < 2:
            return 0.0
        return (len(self._recent) - 1) / max(1e-9, self._recent[-1][0] - self._recent[0][0])

    def latency_ms(self) -> float:
        """Median milliseconds from arrival to detections over the last seconds."""
        return 1000 * statistics.median([seconds for _, seconds in self._recent] or [0.0])

    def text(self) -> str:
        """One line for people."""
        extra = (f"{self.failed} failed" if self.failed else "", f"{self.dropped} dropped" if self.dropped else "")
        parts = (f"{self.done} images", f"{self.rate():.1f}/s", f"{self.latency_ms():.0f} ms", *extra)
        return "  ".join(filter(None, parts))


@dataclass(slots=True)
class _Item:
    """A frame between two stages."""

    number: int
    frame: Frame
    size: Size = (0, 0)
    row: np.ndarray | None = None
    image: np.ndarray | None = None
    detections: Detections | None = None
    problem: str = ""


def loading_for(backend: str, source: Source, options: PipelineOptions, threads: int = 0) -> LoadOptions:
    """How to load an engine for a pipeline.

    On a CPU several runs of few threads each finish more pictures than one run of many threads, whose parts wait for each
    other; but each picture takes longer, so a camera and a single picture get all threads.
    """
    if options.runs or not get_backend(backend).TRAITS.on_cpu or source.live or source.total == 1:
        return LoadOptions(threads, options.runs or 1, spinning=source.total == 1)
    return loading_for_many(backend, threads)


def loading_for_many(backend: str, threads: int = 0) -> LoadOptions:
    """How to load an engine that is to finish many pictures and not each one soon.

    Args:
        backend: the backend's name.
        threads: threads of a run on a CPU; 0 for what suits.
    """
    if not get_backend(backend).TRAITS.on_cpu:
        return LoadOptions(parallel_runs=MOST_CONTEXTS)
    cores = usable_cores()
    threads = threads or math.ceil(cores / MOST_RUNS)
    return LoadOptions(threads, math.ceil(cores / threads), spinning=False)


class Pipeline:
    """Frames of a source to ``FrameResult``, in the source's order; an iterator and a context manager, used once.

    Leaving the block, or the loop by an exception such as Ctrl-C, stops all stages and waits for them.

    Attributes:
        progress: counts, rate and latency so far.
    """

    def __init__(
        self,
        detector: Detector,
        source: Source,
        options: PipelineOptions | None = None,
        loading: LoadOptions | None = None,
        keep_images: bool = False,
    ) -> None:
        """Start nothing yet: the threads start with the first frame that is asked for.

        Args:
            detector: stays open; its batch size is the pipeline's.
            source: read once.
            options: the defaults where None.
            loading: what the detector was loaded with (``loading_for``); one run at a time where None.
            keep_images: give each decoded picture with its detections, to draw on.
        """
        options = options or PipelineOptions()
        self.progress = Progress()
        self._detector, self._source, self._keep_images = detector, source, keep_images
        self._wait = options.batch_wait_ms / 1000
        self._runs = options.runs or (loading.parallel_runs if loading else 0) or 1
        # Frames of a camera would overtake each other.
        self._decoders = 1 if source.live else options.decoders or max(2, self._runs)
        batch = detector.batch_size
        # What the stages work on, and as much again to catch up on; a camera's frames would only grow old there.
        held = self._runs * batch + self._decoders
        self._room = threading.Semaphore(held if source.live else 2 * held)
        self._stopping = threading.Event()
        self._closed = False
        self._feed: LiveFeed | Feed = LiveFeed(source, self._count_dropped) if source.live else Feed(source)
        self._decoded: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._inferred: queue.SimpleQueue[tuple[_Item, Mapping[str, np.ndarray], int] | None] = queue.SimpleQueue()
        self._finished: queue.SimpleQueue[_Item | BaseException | None] = queue.SimpleQueue()
        self._source_error: BaseException | None = None
        self._spare: list[np.ndarray] = []
        self._threads: list[threading.Thread] = []

    def __iter__(self) -> Iterator[FrameResult]:
        if self._threads:
            raise RuntimeError("A pipeline can be iterated over once; make another.")
        self._start()
        waiting: dict[int, _Item] = {}
        number = 0
        try:
            while (item := self._finished.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                waiting[item.number] = item
                while (ready := waiting.pop(number, None)) is not None:
                    number += 1
                    self._room.release()
                    found = self._found(ready)
                    yield found
                    # Only now has the caller done with its pixels.
                    self._feed.done(ready.frame)
                    del ready, found
            if self._source_error is not None:
                raise self._source_error
        finally:
            self.close()

    def close(self) -> None:
        """Stop all stages and wait for their threads, but not for a source or an engine that hangs. What was on its way is dropped."""
        self._stopping.set()
        if self._closed:
            # What did not end then is not waited for again.
            return
        self._closed = True
        self._source.stop()
        # Whoever waits for room must see that it is over.
        self._room.release(self._decoders)
        self._feed.close()
        begun = time.perf_counter()
        decoding, others = self._threads[: self._decoders], self._threads[self._decoders :]
        # One that waits for a stalled stream cannot be woken: it goes on waiting as a daemon, and the stages after it are told the end here.
        if not _joined(decoding, begun + LONGEST_WAIT):
            _put_ends(self._decoded, self._runs)
        _joined(others, begun + LONGEST_RUN)

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _found(self, item: _Item) -> FrameResult:
        seconds = time.perf_counter() - item.frame.arrived
        if item.problem:
            self.progress.failed += 1
        else:
            self.progress.add(seconds)
        image = item.image
        if self._keep_images and image is None and not item.problem:
            # A large picture was not held meanwhile.
            with contextlib.suppress(DataError):
                image = self._read_again(item)
        return FrameResult(item.frame, item.detections, item.problem, image, seconds)

    def _read_again(self, item: _Item) -> np.ndarray:
        picture, size = self._detector.read(item.frame.picture)
        return _at_size(picture, size)

    def _start(self) -> None:
        stages: tuple[tuple[str, Callable[[], None], int, Callable[[], None]], ...] = (
            ("decode", self._decode, self._decoders, lambda: _put_ends(self._decoded, self._runs)),
            ("infer", self._infer, self._runs, lambda: _put_ends(self._inferred, 1)),
            ("finish", self._finish, 1, lambda: _put_ends(self._finished, 1)),
        )
        for name, work, count, end in stages:
            left = _Countdown(count, end)
            for _ in range(count):
                thread = threading.Thread(
                    target=self._guard, args=(work, left), name=f"edge-effdet-{name}", daemon=True
                )
                self._threads.append(thread)
        for thread in self._threads:
            thread.start()

    def _guard(self, work: Callable[[], None], left: _Countdown) -> None:
        try:
            work()
        except BaseException as error:  # the caller's thread raises it
            self._finished.put(error)
            self._stopping.set()
        finally:
            left.one_less()

    def _decode(self) -> None:
        detector = self._detector
        while True:
            self._room.acquire()
            if self._stopping.is_set() or (numbered := self._next()) is None:
                return
            item = _Item(*numbered)
            try:
                picture, item.size = detector.read(item.frame.picture, whole=False)
            except (DataError, MissingDependency) as error:
                item.problem = str(error)
                self._finished.put(item)
                continue
            item.row = self._take_row()
            detector.prepare(picture, item.size, item.row[0])
            if self._keep_images and not (isinstance(picture, Image.Image) and is_large(item.size)):
                item.image = _at_size(picture, item.size)
            self._decoded.put(item)
            # While the next one is decoded this one would still be held.
            del picture, item

    def _count_dropped(self) -> None:
        self.progress.dropped += 1

    def _next(self) -> tuple[int, Frame] | None:
        try:
            return self._feed.next()
        except BaseException as error:  # raised when what came before it is through
            self._source_error = error
            return None

    def _take_row(self) -> np.ndarray:
        try:
            # One operation, so that no two threads get the same.
            return self._spare.pop()
        except IndexError:
            return np.empty((1, 3, *self._detector.spec.image_size), np.uint8)

    def _infer(self) -> None:
        detector = self._detector
        last = False
        while not last:
            items, last = self._gather()
            if not items or self._stopping.is_set():
                continue
            if detector.batch_size == 1:
                row = items[0].row
                assert row is not None
                outputs = detector.run(row, 1)
            else:
                with detector.input_buffer() as buffer:
                    for place, item in zip(buffer, items, strict=False):
                        place[:] = item.row
                    outputs = detector.run(buffer, len(items))
            for number, item in enumerate(items):
                if item.row is not None:
                    self._spare.append(item.row)
                    item.row = None
                self._inferred.put((item, outputs, number))

    def _gather(self) -> tuple[list[_Item], bool]:
        """The next batch, as full as it gets before its first picture has waited long enough; and whether it is the last."""
        first = self._decoded.get()
        if first is None:
            return [], True
        items = [first]
        until = time.perf_counter() + self._wait
        while len(items) < self._detector.batch_size:
            try:
                item = self._decoded.get(timeout=max(0.0, until - time.perf_counter()))
            except queue.Empty:
                break
            if item is None:
                return items, True
            items.append(item)
        return items, False

    def _finish(self) -> None:
        while (entry := self._inferred.get()) is not None:
            item, outputs, row = entry
            item.detections = self._detector.finish(outputs, row, item.size)
            self._finished.put(item)


def _at_size(picture: np.ndarray | Image.Image, size: Size) -> np.ndarray:
    """Pixels of a picture at its own height and width, which the boxes are in, where it was decoded at a reduced scale."""
    if isinstance(picture, Image.Image) and (picture.height, picture.width) != size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return pixels_of(picture) if isinstance(picture, Image.Image) else picture


class _Countdown:
    """Calls a function when the last thread of a stage has ended."""

    def __init__(self, count: int, end: Callable[[], None]) -> None:
        self._count, self._end = count, end
        self._lock = threading.Lock()

    def one_less(self) -> None:
        with self._lock:
            self._count -= 1
            over = self._count == 0
        if over:
            self._end()


def _joined(threads: Sequence[threading.Thread], until: float) -> bool:
    """Wait for threads up to a time of ``time.perf_counter``; whether all have ended."""
    # Where the system gave no more threads, some were never started.
    started = [thread for thread in threads if thread.ident is not None]
    for thread in started:
        thread.join(max(0.0, until - time.perf_counter()))
    return not any(thread.is_alive() for thread in started)


def _put_ends(stage: queue.SimpleQueue, count: int) -> None:
    for _ in range(count):
        stage.put(None)
