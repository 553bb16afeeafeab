"""The live view: a source that is read for as long as the service is on, and the newest of its frames."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections
from edge_effdet.backends.base import LoadOptions
from edge_effdet.device.service.watched import Aside, Repeated, SourceReading
from edge_effdet.errors import (
    BackendUnavailable,
    DataError,
    EdgeEffDetError,
    MissingDependency,
    UsageError,
    first_line,
)
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.pipeline import WINDOW_SECONDS, FrameResult, PipelineOptions, Progress
from edge_effdet.runtime.run import track_frame
from edge_effdet.runtime.sinks import Sink
from edge_effdet.runtime.sources import Frame, ImageFiles, Source, _without_password, open_source
from edge_effdet.runtime.tracking import Tracker

logger = logging.getLogger("edge_effdet.serving.live")

LOWEST_SCORE = 0.05
"""Detections of the live view are kept from this score on, so that each viewer can choose a threshold."""

PICTURES_A_SECOND = 2.0
"""At which the pictures of a folder are shown."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a source is opened again; the wait doubles each time, and begins anew after a frame has come."""

SILENCE = 30.0
"""Seconds after which a camera that sends nothing is closed, to be opened again; ``runtime.sources`` has tried so itself before."""

LAST_RUN = 4.0
"""Seconds that a run of the engine, or a camera, gets to end when the live view is closed."""

_TICK = 0.1
"""Seconds between two looks at how the reading goes."""

_VIDEO_RATE = 25.0
"""Frames a second of a video that does not tell its rate."""

_LONGEST_STEP = 5.0
"""Seconds between two frames of a video from which on its times are taken for wrong."""

_LATE = 0.5
"""Seconds that a video may lag behind its own time before it goes on from where it is."""

_FOR_A_VIEW = PipelineOptions(batch_wait_ms=0)
"""A frame that waited for others of its batch would be shown later."""


@dataclass(frozen=True, slots=True, eq=False)
class LiveFrame:
    """A frame of the live view, and what was found in it.

    Attributes:
        number: counts the frames, from 1.
        name: as the source gave it.
        image: uint8 [height, width, 3], RGB.
        detections: all with a score of at least ``LOWEST_SCORE``, with ``track_ids`` where objects are tracked.
        arrived: when the frame arrived, in seconds of ``time.perf_counter``.
    """

    number: int
    name: str
    image: np.ndarray
    detections: Detections
    arrived: float


class Live:
    """Reads a source in threads of its own, gives each frame to the sinks, and keeps the newest.

    A source that ends, fails or falls silent is opened again after growing waits. A file or a folder is shown as a camera would show it:
    at its own rate, frames left out where the engine is slower, and from the beginning again at its end.

    Attributes:
        source: the name of the source, without a password.
        abandoned: whether a thread was still inside a camera or the engine when ``close`` gave up waiting for it. The detector must not be
            closed then, and the process has to end by ``os._exit``, since such a thread crashes when it comes back to an interpreter that is gone.
    """

    def __init__(
        self,
        detector: Detector,
        source: str,
        loading: LoadOptions,
        sinks: Sequence[Sink] = (),
        tracker: Tracker | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            detector: stays open. Others may use it at the same time.
            source: what ``runtime.sources.open_source`` opens.
            loading: what the detector was loaded with.
            sinks: get each frame with the detections that the detector's own threshold lets through; closed by ``close``.
            tracker: gives the objects of a video or a camera their numbers; None for none.
        """
        self.source = _without_password(source)
        self.abandoned = False
        self._address, self._loading, self._sinks, self._tracker = source, loading, tuple(sinks), tracker
        self._threshold = detector.options.score_threshold
        self._detector = _with_low_scores(detector)
        self._stop = threading.Event()
        self._arrived = threading.Condition()
        self._newest: LiveFrame | None = None
        self._number = self._skipped = self._dropped = self._reopened = 0
        self._state, self._problem = "starting", ""
        self._progress = Progress()
        self._behind: deque[tuple[float, float]] = deque(maxlen=4096)
        self._reading: SourceReading | None = None
        self._watching: Aside | None = None
        self._sending = threading.Lock()
        self._refused: set[int] = set()
        self._paced = False
        self._repeated = Repeated()

    def start(self) -> None:
        """Begin to read; returns at once. What is wrong with the source is told by ``state``."""
        if self._watching is not None:
            raise RuntimeError("A live view can be started once; make another.")
        self._watching = Aside(self._watch, "live")

    def close(self) -> None:
        """End the reading and close the sinks. Returns after ``LAST_RUN`` seconds at the latest, and then sets ``abandoned``.

        Raises:
            EdgeEffDetError: a sink could not complete its results; the others are closed.
        """
        self._stop.set()
        with self._arrived:
            self._arrived.notify_all()
        if self._watching is not None:
            self._watching.ended.wait(LAST_RUN + 1)
            self.abandoned = self.abandoned or not self._watching.ended.is_set()
        with self._arrived:
            self._state = "stopped"
        self._close_sinks()

    def newest(self) -> LiveFrame | None:
        """The newest frame; None before the first."""
        return self._newest

    def wait_newer(self, number: int, seconds: float) -> LiveFrame | None:
        """Wait for a frame that is newer than the one of this number, and return the newest; None where none has come in time.

        Args:
            number: of a ``LiveFrame``; 0 for any.
            seconds: the longest wait. It ends at once when the live view is closed.
        """
        with self._arrived:
            self._arrived.wait_for(lambda: self._is_newer(number) or self._stop.is_set(), seconds)
            return self._newest if self._is_newer(number) else None

    def note_sent(self, frame: LiveFrame) -> None:
        """Note that a frame has gone to a viewer now, for ``behind_ms`` of ``state``."""
        now = time.perf_counter()
        with self._arrived:
            self._behind.append((now, 1000 * (now - frame.arrived)))

    def state(self) -> dict[str, Any]:
        """How it goes, for JSON.

        Returns:
            ``source``; ``state``: ``starting``, ``running``, ``waiting`` (no frame comes, and the source is opened again), ``failed`` (it cannot
            be opened here at all) or ``stopped``; ``problem``: a sentence, empty where there is none; ``rate``: frames a second; ``latency_ms``:
            median from a frame's arrival to its detections; ``behind_ms`` and ``behind_ms_p90``: median and ninetieth percentile from arrival
            until it has gone to a viewer; ``dropped``: frames that were too old when their turn came; ``skipped``: pictures that could not be
            decoded; ``reopened``; ``number`` of the newest frame, 0 before the first; ``age_ms``: since its arrival. All times are of the last
            seconds, and null where there was nothing to measure.
        """
        now = time.perf_counter()
        with self._arrived:
            frame, reading = self._newest, self._reading
            fresh = frame is not None and now - frame.arrived < WINDOW_SECONDS
            behind = sorted(each for at, each in self._behind if now - at < WINDOW_SECONDS)
            state, problem = self._state, self._problem
            if state == "running" and frame is not None and not fresh:
                state, problem = "waiting", f"No frame has come for {now - frame.arrived:.0f} s."
            return {
                "source": self.source,
                "state": state,
                "problem": problem,
                "rate": round(self._progress.rate(), 2) if fresh else 0.0,
                "latency_ms": round(self._progress.latency_ms(), 1) if fresh else None,
                "behind_ms": round(behind[len(behind) // 2], 1) if behind else None,
                "behind_ms_p90": round(behind[9 * len(behind) // 10], 1) if behind else None,
                "dropped": self._dropped + (reading.dropped if reading is not None else 0),
                "skipped": self._skipped,
                "reopened": self._reopened,
                "number": self._number,
                "age_ms": None if frame is None else round(1000 * (now - frame.arrived)),
            }

    def _is_newer(self, number: int) -> bool:
        return self._newest is not None and self._newest.number > number

    def _watch(self) -> None:
        """Read the source again and again, until the end."""
        sources = logging.getLogger(open_source.__module__)
        sources.addFilter(self._repeated)
        wait, said = FIRST_WAIT, ""
        try:
            while not self._stop.is_set():
                frames = self._number
                problem = self._read()
                if self._stop.is_set():
                    return
                if self._number > frames:
                    wait, said = FIRST_WAIT, ""
                self._set("waiting", problem)
                if problem != said:
                    logger.warning(
                        "the source %s is away, and is opened again until it is back: %s", self.source, problem
                    )
                    said = problem
                self._stop.wait(wait)
                wait = min(LONGEST_WAIT, 2 * wait)
                self._reopened += 1
        except EdgeEffDetError as error:
            logger.error("the live view ends: %s", error)
            self._set("failed", str(error))
        except Exception as error:
            logger.exception("the live view ends")
            self._set("failed", f"The live view failed ({first_line(error)}); the log of the service has more.")
        finally:
            sources.removeFilter(self._repeated)

    def _read(self) -> str:
        """Read the source until it ends, fails or falls silent.

        Returns:
            What happened to it, a sentence.

        Raises:
            MissingDependency, BackendUnavailable, UsageError: it cannot be opened on this machine, however often that is tried.
        """
        reading = SourceReading(
            self._address, self._detector, self._loading, self._note, self._open, _FOR_A_VIEW, keep_images=True
        )
        with self._arrived:
            self._reading = reading
        aside = Aside(reading.run, "read")
        problem = ""
        while not aside.ended.wait(_TICK) and not self._stop.is_set():
            if reading.is_silent(SILENCE):
                problem = f"It has sent nothing for {SILENCE:.0f} s."
                break
        self._end(reading, aside, problem)
        with self._arrived:
            self._reading, self._dropped = None, self._dropped + reading.dropped
        if self._stop.is_set() or problem:
            return problem
        try:
            aside.result()
        except (MissingDependency, BackendUnavailable, UsageError):
            raise
        except (EdgeEffDetError, OSError) as error:
            return str(error)
        return "It sends nothing more."

    def _end(self, reading: SourceReading, aside: Aside, problem: str) -> None:
        """End a reading. A camera that does not let go is waited for: it cannot be opened a second time."""
        reading.close()
        stopped = 0.0
        begun = time.monotonic()
        while not aside.ended.is_set() or reading.is_held():
            time.sleep(_TICK / 5)
            now = time.monotonic()
            if self._stop.is_set():
                stopped = stopped or now
                if now - stopped > LAST_RUN:
                    self.abandoned = True
                    return
            elif problem and now - begun > SILENCE and self._state != "waiting":
                text = f"{problem} It does not let go of what reads it; look at its cable, or start the service again."
                self._set("waiting", text)
                logger.warning("the source %s: %s", self.source, text)

    def _note(self, found: FrameResult) -> None:
        """Keep a frame, and give it to the sinks. The thread that reads calls this."""
        if self._stop.is_set():
            return
        if found.detections is None or found.image is None:
            self._skipped += 1
            if self._skipped == 1:
                logger.warning("left out a picture, and later ones are only counted: %s", found.problem)
            self._set(self._state, found.problem)
            if self._sinks:
                self._send(found)
            return
        if self._tracker is not None:
            found = track_frame(found, self._tracker)
        detections, image = found.detections, found.image
        assert detections is not None
        assert image is not None
        with self._arrived:
            self._number += 1
            self._newest = LiveFrame(self._number, found.frame.name, image, detections, found.frame.arrived)
            self._progress.add(time.perf_counter() - found.frame.arrived)
            if self._state == "waiting":
                logger.warning("the source %s is back", self.source)
            self._state, self._problem = "running", ""
            self._arrived.notify_all()
        if not self._paced:
            # A file tells at each pass what is wrong with it.
            self._repeated.forget()
        if self._sinks:
            self._send(replace(found, detections=detections.above(self._threshold)))

    def _send(self, found: FrameResult) -> None:
        with self._sending:
            for number, sink in enumerate(self._sinks):
                if self._stop.is_set():
                    return
                try:
                    sink.write(found)
                except Exception as error:  # neither the view nor the other sinks depend on it
                    if number not in self._refused:
                        logger.exception(
                            "a frame could not be written (%s), and later ones are tried", first_line(error)
                        )
                    self._refused.add(number)
                else:
                    self._refused.discard(number)

    def _close_sinks(self) -> None:
        # A sink that hangs holds the lock, and is left to itself.
        if not self._sending.acquire(timeout=LAST_RUN):
            self.abandoned = True
            return
        sinks, self._sinks = self._sinks, ()
        with contextlib.ExitStack() as closing:
            closing.callback(self._sending.release)
            for sink in sinks:
                closing.callback(sink.close)

    def _open(self, address: str) -> Source:
        source = open_source(address)
        self._paced = not source.live
        return PacedSource(source, lambda: open_source(address)) if self._paced else source

    def _set(self, state: str, problem: str) -> None:
        with self._arrived:
            self._state, self._problem = state, problem


class PacedSource:
    """A file or a folder as a camera would give it: its frames at their own rate, and from the beginning again at its end.

    Attributes:
        name, rate: of what it plays.
        live: always; the pipeline leaves out frames that are too old when their turn comes.
        total: None, for it has no end.
    """

    live = True
    total: int | None = None

    def __init__(self, source: Source, reopen: Callable[[], Source]) -> None:
        """``reopen`` opens it for each further pass, so that a folder shows the pictures that it holds then."""
        self.name = source.name
        self.rate: float | None = source.rate or (PICTURES_A_SECOND if isinstance(source, ImageFiles) else _VIDEO_RATE)
        self._source, self._reopen = source, reopen
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        """Frames, of which ``seconds`` counts on from pass to pass, and ``arrived`` is when its turn came.

        Raises:
            DataError: it holds no frame, or cannot be read any more.
        """
        usual = 1 / (self.rate or _VIDEO_RATE)
        start, at = time.perf_counter(), -usual
        while True:
            before: float | None = None
            empty = True
            for frame in self._source:
                step = frame.seconds - before if frame.seconds is not None and before is not None else usual
                before, empty = frame.seconds, False
                # Some streams have no times, or ones that jump.
                at += step if 0 < step < _LONGEST_STEP else usual
                late = time.perf_counter() - start - at
                if late > _LATE:
                    start += late
                elif self._stopped.wait(max(0.0, -late)):
                    return
                if self._stopped.is_set():
                    return
                yield replace(frame, seconds=at, arrived=time.perf_counter())
            if empty:
                raise DataError(f"{self.name} holds no frame; give another source.")
            self._source = self._reopen()

    def stop(self) -> None:
        self._stopped.set()
        self._source.stop()


def _with_low_scores(detector: Detector) -> Detector:
    """The same detector, its engine and its locks included, that keeps detections from ``LOWEST_SCORE`` on."""
    options = detector.options
    # There a weak box moves the strong one beside it, so that other boxes would be shown than with the threshold that was asked for.
    if options.nms_kind == "fusion" or options.score_threshold <= LOWEST_SCORE:
        return detector
    lower = copy.copy(detector)
    lower.options = replace(options, score_threshold=LOWEST_SCORE)
    return lower
