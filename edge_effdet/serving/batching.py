"""Pictures of many requests to detections: a bounded line, and threads that decode, run the engine and suppress.

The line is short on purpose. A service that takes on more than it can do answers everybody late; one that refuses at once what it cannot do soon
answers those that it takes on within a time that is known: the length of the line times the time of a picture.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Size
from edge_effdet.errors import EdgeEffDetError, EngineError
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.limits import MAX_PIXELS

logger = logging.getLogger("edge_effdet.serve")

STAGES = ("queue", "decode", "infer", "suppress")
"""What a picture's time is made of, in this order."""

_RECENT = 10.0
"""Seconds over which the rate is taken that tells when there should be room again."""


class Overloaded(Exception):
    """The line is full.

    Attributes:
        retry_after: seconds after which there should be room again, at least 1.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The service has as much to do as it takes on; try again in {retry_after} s.")
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one picture.

    Attributes:
        detections: what was found, boxes in pixels of the picture; None for a tensor.
        size: height and width of the picture.
        outputs: for a tensor, the engine's outputs for it, without the batch axis.
        seconds: by stage.
    """

    detections: Detections | None
    size: Size
    outputs: Mapping[str, np.ndarray] | None
    seconds: Mapping[str, float]


@dataclass(slots=True, eq=False)
class _Job:
    """A picture or a tensor on its way through the line."""

    given: bytes | np.ndarray
    options: DetectOptions | None
    answer: asyncio.Future[Answer]
    entered: float
    size: Size = (0, 0)
    seconds: dict[str, float] = field(default_factory=dict)


class Batcher:
    """A detector behind a bounded line. ``detect`` and ``run`` are called in one event loop; the work is done in threads.

    Attributes:
        capacity: pictures that are taken on at most, those that are worked on included.
        inside: pictures that are taken on now.
    """

    def __init__(
        self,
        detector: Detector,
        runs: int,
        waiting: int,
        wait_seconds: float,
        alone: Detector | None = None,
        most_pixels: int = MAX_PIXELS,
        note: Callable[[int, Sequence[Mapping[str, float]]], None] = lambda size, seconds: None,
    ) -> None:
        """Start the threads.

        Args:
            detector: stays open; its batch size is the largest batch.
            runs: threads, each of which runs the engine.
            waiting: pictures that may wait beside those that the threads work on.
            wait_seconds: how long a picture waits for others of its batch.
            alone: the same engine, loaded with all threads of the CPU for one run: it takes a picture that comes while nothing else is there,
                which it finishes sooner than a run that shares the machine with others.
            most_pixels: a picture with more is refused before it is decoded.
            note: called in a thread for each run with the number of pictures and their seconds by stage.
        """
        self._detector, self._alone, self._note = detector, alone, note
        self._wait, self._most_pixels = wait_seconds, most_pixels
        self._line: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self.capacity = runs * detector.batch_size + waiting
        self.inside = 0
        self._recent: deque[float] = deque(maxlen=64)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"edge-effdet-serve-{number}", daemon=True)
            for number in range(runs)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def full(self) -> bool:
        """Whether a further picture would be refused."""
        return self.inside >= self.capacity

    def refusal(self) -> Overloaded:
        """What is answered when the line is full."""
        now = time.perf_counter()
        recent = [each for each in self._recent if now - each < _RECENT]
        rate = len(recent) / max(now - recent[0], 0.1) if recent else 1.0
        return Overloaded(min(60, max(1, math.ceil(self.inside / rate))))

    @property
    def usable(self) -> bool:
        """Whether the engine can still run: False after a run that hangs and could not be ended."""
        return self._detector.usable and (self._alone is None or self._alone.usable)

    async def detect(self, pictures: Sequence[bytes], options: DetectOptions) -> list[Answer | EdgeEffDetError]:
        """Find objects in pictures, all of which are taken on or none.

        Returns:
            One entry a picture: its answer, or why it could not be looked at.

        Raises:
            Overloaded: the line has no room for them.
        """
        return await self._through([(each, options) for each in pictures])

    async def run(self, tensors: np.ndarray) -> list[Answer | EdgeEffDetError]:
        """Run the engine on tensors [B, 3, H, W] of its input's type, as ``detect`` does on pictures; without suppression."""
        return await self._through([(each, None) for each in tensors])

    async def _through(self, given: Sequence[tuple[bytes | np.ndarray, DetectOptions | None]]) -> list[Any]:
        if self.inside + len(given) > self.capacity or self._closed:
            raise self.refusal()
        loop = asyncio.get_running_loop()
        jobs = [_Job(each, options, loop.create_future(), time.perf_counter()) for each, options in given]
        self.inside += len(jobs)
        for job in jobs:
            # Also where the client has gone and nobody waits any more: what is worked on takes room.
            job.answer.add_done_callback(self._leave)
            self._line.put(job)
        return list(await asyncio.gather(*(asyncio.shield(job.answer) for job in jobs), return_exceptions=True))

    def _leave(self, answer: asyncio.Future[Answer]) -> None:
        self.inside -= 1
        self._recent.append(time.perf_counter())
        if not answer.cancelled():
            # Told to whoever waits; else the loop complains of an error that nobody has seen.
            answer.exception()

    def _work(self) -> None:
        while (jobs := self._gather()) is not None:
            self._answer(jobs)

    def _answer(self, jobs: list[_Job]) -> None:
        try:
            self._finish(jobs)
        except BaseException as error:
            if not isinstance(error, EdgeEffDetError):
                logger.exception("a run failed")
                error = EngineError(f"The service failed at this picture ({type(error).__name__}); its log has more.")
            for job in jobs:
                _tell(job, error)

    def _gather(self) -> list[_Job] | None:
        """The next batch, as full as it gets before its first picture has waited long enough; None at the end."""
        first = self._line.get()
        if first is None:
            return None
        jobs = [first]
        until = time.perf_counter() + self._wait
        while len(jobs) < self._detector.batch_size:
            try:
                job = self._line.get(timeout=max(0.0, until - time.perf_counter()))
            except queue.Empty:
                break
            if job is None:
                # It was meant for a thread that ends; the next one is this one.
                self._line.put(None)
                break
            jobs.append(job)
        return jobs

    def _finish(self, jobs: list[_Job]) -> None:
        detector = self._alone if self._alone is not None and self.inside <= 1 else self._detector
        with detector.input_buffer() as buffer:
            ready: list[_Job] = []
            for job in jobs:
                if self._prepare(detector, job, buffer, len(ready)):
                    ready.append(job)
            if not ready:
                return
            begun = time.perf_counter()
            for job in ready:
                job.seconds["queue"] = begun - job.entered - job.seconds["decode"]
            outputs = detector.run(buffer, len(ready))
            inferred = time.perf_counter() - begun
        for row, job in enumerate(ready):
            job.seconds["infer"] = inferred
            begun = time.perf_counter()
            if job.options is None:
                answer = Answer(None, job.size, {name: each[row] for name, each in outputs.items()}, job.seconds)
            else:
                found = detector.finish(outputs, row, job.size, job.options)
                answer = Answer(found, job.size, None, job.seconds)
            job.seconds["suppress"] = time.perf_counter() - begun
            _tell(job, answer)
        self._note(len(ready), [job.seconds for job in ready])

    def _prepare(self, detector: Detector, job: _Job, buffer: np.ndarray, row: int) -> bool:
        """Put a job's pixels into a row of the buffer; False where it could not be, which its waiter is told."""
        begun = time.perf_counter()
        try:
            if isinstance(job.given, np.ndarray):
                buffer[row], job.size = job.given, detector.spec.image_size
            else:
                picture, job.size = detector.read(job.given, whole=False, most_pixels=self._most_pixels)
                detector.prepare(picture, job.size, buffer[row])
        except EdgeEffDetError as error:
            _tell(job, error)
            return False
        job.given = b""
        job.seconds["decode"] = time.perf_counter() - begun
        return True

    def close(self) -> None:
        """End the threads after what they were given before. The detectors stay open."""
        self._closed = True
        for _ in self._threads:
            self._line.put(None)
        for thread in self._threads:
            thread.join()


def _tell(job: _Job, answer: Answer | BaseException) -> None:
    """Answer whoever waits for a job, from another thread."""

    def settle() -> None:
        if not job.answer.done():
            if isinstance(answer, BaseException):
                job.answer.set_exception(answer)
            else:
                job.answer.set_result(answer)

    # The loop is closed where the service ended without waiting.
    with contextlib.suppress(RuntimeError):
        job.answer.get_loop().call_soon_threadsafe(settle)
