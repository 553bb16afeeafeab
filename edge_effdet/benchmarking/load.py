"""The four kinds of load, driven by LoadGen, the referee of MLPerf Inference, or by a loop of our own that keeps to the same rules.

The rules are those of V. J. Reddi et al., "MLPerf Inference Benchmark" (ISCA 2020): *SingleStream* sends the next image when the last one
is answered; *MultiStream* sends eight at a time; *Offline* sends all at once and counts images a second; *Server* sends single images at
random times (a Poisson process) and asks whether 99 of 100 are answered within a bound, waiting included. Images are drawn at random.

A query's time is taken here, from the moment at which the driver hands it over until its last image is answered, because LoadGen keeps
only percentiles. Its own figures are read from its summary and stand beside ours.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np

from edge_effdet.artifacts import temporary_folder
from edge_effdet.artifacts.files import utf8_path
from edge_effdet.benchmarking.record import Referee
from edge_effdet.errors import EdgeEffDetError

STREAMS = 8
"""Images in a query of MultiStream, as MLPerf has it."""

Answer = Callable[[Sequence[int]], object]
"""Answers the images with these numbers."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of an engine.

    Attributes:
        scenario: ``SingleStream``, ``MultiStream``, ``Offline`` or ``Server``.
        seconds: how long at least.
        queries: how many queries at least.
        expected_s: about how long a query takes, or an image for Offline; from it LoadGen works out how many queries it prepares.
        rate: images a second, for Server.
        bound_s: the bound on the 99th percentile, for Server.
        seed: seeds which images are drawn and when they arrive.
    """

    scenario: str
    seconds: float
    queries: int
    expected_s: float
    rate: float = 0.0
    bound_s: float = 0.1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Driven:
    """What came out.

    Attributes:
        seconds: of each query, in the order of their ends, float64 [queries].
        images: how many images were answered.
        started, ended: by ``time.perf_counter``.
        driven_by: LoadGen with its version, or ``own loop``.
        referee: what LoadGen says; None where our own loop drove.
    """

    seconds: np.ndarray
    images: int
    started: float
    ended: float
    driven_by: str
    referee: Referee | None = None


@dataclass(slots=True)
class _Tally:
    """Times of queries, from several threads."""

    seconds: list[float] = field(default_factory=list)
    images: int = 0
    last: float = 0.0
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, since: float, images: int) -> None:
        now = time.perf_counter()
        with self.lock:
            self.seconds.append(now - since)
            self.images += images
            self.last = now


def find_loadgen() -> tuple[ModuleType | None, str]:
    """LoadGen, and its name with its version; None and the reason where it cannot be imported."""
    try:
        import mlperf_loadgen
    except ImportError as error:
        return None, f"our own loop by LoadGen's rules, because LoadGen cannot be imported ({error})"
    for name in ("mlcommons-loadgen", "mlperf_loadgen"):
        # What is built from the source may have another name than the wheel.
        with contextlib.suppress(metadata.PackageNotFoundError):
            return mlperf_loadgen, f"LoadGen {metadata.version(name)}"
    return mlperf_loadgen, "LoadGen of an unknown version"


class Pool:
    """Threads that answer images at the same time, up to a batch at a time each; a context manager."""

    def __init__(self, answer: Answer, size: int, batch: int = 1) -> None:
        self._batch = batch
        self._answer, self._waiting = (
            answer,
            queue.SimpleQueue[tuple[int, Callable[[BaseException | None], None]] | None](),
        )
        self._threads = [threading.Thread(target=self._work, name="edge-effdet-load", daemon=True) for _ in range(size)]
        for thread in self._threads:
            thread.start()

    def submit(self, index: int, done: Callable[[BaseException | None], None]) -> None:
        """Answer an image as soon as a thread is free, and call ``done`` from it, with what was raised."""
        self._waiting.put((index, done))

    def answer_all(self, indices: Iterable[int]) -> None:
        """Answer images and wait for the last one. Raises what was raised for one of them."""
        over: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        count = 0
        for index in indices:
            self.submit(index, over.put)
            count += 1
        errors = [error for error in (over.get() for _ in range(count)) if error is not None]
        if errors:
            raise errors[0]

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for _thread in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (entry := self._waiting.get()) is not None:
            taken = [entry]
            # Whatever waits already goes into the same run; nothing is waited for.
            while len(taken) < self._batch and (more := self._next()) is not None:
                taken.append(more)
            failure: BaseException | None = None
            try:
                self._answer([index for index, _ in taken])
            except BaseException as error:  # the driver's thread raises it
                failure = error
            for _, done in taken:
                done(failure)

    def _next(self) -> tuple[int, Callable[[BaseException | None], None]] | None:
        try:
            entry = self._waiting.get_nowait()
        except queue.Empty:
            return None
        if entry is None:
            # It ends another thread, or this one when it looks again.
            self._waiting.put(None)
        return entry


def drive(load: Load, answer: Answer, images: int, pool: Pool | None, own_loop: bool = False) -> Driven:
    """Put an engine under a load.

    Args:
        load: the load.
        answer: from JPEG bytes to boxes, for one image or several.
        images: how many different images there are.
        pool: the threads that answer several images at a time; None to answer them one after the other.
        own_loop: drive by our own loop although LoadGen is there.

    Raises:
        EdgeEffDetError: LoadGen ended without a result.
        Exception: what ``answer`` raised.
    """
    loadgen = None if own_loop else find_loadgen()[0]
    return (
        _drive_own(load, answer, images, pool)
        if loadgen is None
        else _drive_loadgen(loadgen, load, answer, images, pool)
    )


def _drive_loadgen(lg: Any, load: Load, answer: Answer, images: int, pool: Pool | None) -> Driven:
    tally = _Tally()
    settings = _settings(lg, load)

    def complete(query: Any) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(query.id, 0, 0)])

    def issue(queries: list[Any]) -> None:
        # An exception in here would end the process, and a query without an answer would hang it.
        since = time.perf_counter()
        if tally.error is not None:
            for query in queries:
                complete(query)
        elif pool is None:
            try:
                answer([query.index for query in queries])
            except BaseException as error:
                tally.error = error
            tally.add(since, len(queries))
            for query in queries:
                complete(query)
        else:
            one_query = _Query(tally, since, 1 if load.scenario in ("Offline", "Server") else len(queries))
            for query in queries:
                pool.submit(query.index, one_query.ender(lambda query=query: complete(query)))

    sut = lg.ConstructSUT(issue, lambda: None)
    qsl = lg.ConstructQSL(images, images, lambda _: None, lambda _: None)
    try:
        with temporary_folder() as folder:
            logs, output = lg.LogSettings(), lg.LogOutputSettings()
            output.outdir, output.copy_summary_to_stdout = utf8_path(folder), False
            logs.log_output, logs.enable_trace = output, False
            started = time.perf_counter()
            # Without the name it reads a file audit.config of the present folder, which is the user's.
            lg.StartTestWithLogSettings(sut, qsl, settings, logs, utf8_path(folder / "audit.config"))
            ended = tally.last or time.perf_counter()
            summary = (folder / "mlperf_log_summary.txt").read_text(encoding="utf-8")
    finally:
        lg.DestroyQSL(qsl)
        lg.DestroySUT(sut)
    if tally.error is not None:
        raise tally.error
    if not tally.seconds:
        raise EdgeEffDetError(f"LoadGen ended {load.scenario} without a query; run the benchmark again.")
    return Driven(np.array(tally.seconds), tally.images, started, ended, find_loadgen()[1], read_summary(summary))


class _Query:
    """Counts a query when its last image is answered; where each image counts by itself, ``size`` is 1 and each of them does."""

    def __init__(self, tally: _Tally, since: float, size: int) -> None:
        self._tally, self._since, self._size, self._left = tally, since, size, size
        self._lock = threading.Lock()

    def ender(self, then: Callable[[], None]) -> Callable[[BaseException | None], None]:
        def done(error: BaseException | None) -> None:
            if error is not None:
                self._tally.error = error
            with self._lock:
                self._left -= 1
                over = self._left == 0
                if over and self._size == 1:
                    self._left = 1
            if over:
                self._tally.add(self._since, self._size)
            then()

        return done


def _settings(lg: Any, load: Load) -> Any:
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, load.scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = round(1000 * load.seconds)
    settings.min_query_count = max(1, load.queries)
    for name in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        setattr(settings, name, load.seed + 1)
    # With half of the time expected LoadGen prepares twice the queries, so that it does not run out of them.
    expected_ns = max(1, round(0.5e9 * load.expected_s))
    if load.scenario == "SingleStream":
        settings.single_stream_expected_latency_ns = expected_ns
    elif load.scenario == "MultiStream":
        settings.multi_stream_expected_latency_ns = expected_ns
        settings.multi_stream_samples_per_query = STREAMS
    elif load.scenario == "Offline":
        settings.offline_expected_qps = 1 / load.expected_s
    else:
        settings.server_target_qps = load.rate
        settings.server_target_latency_ns = round(1e9 * load.bound_s)
        settings.server_target_latency_percentile = 0.99
    return settings


def read_summary(text: str) -> Referee:
    """What LoadGen says, from its summary: figures in its own units, which their names give."""
    result = re.search(r"^Result is : (\w+)", text, re.MULTILINE)
    figures: dict[str, float] = {}
    head = text.split("Test Parameters Used")[0]
    for name, value in re.findall(r"^([\w .()/]+?) *: (-?\d+(?:\.\d+)?)$", head, re.MULTILINE):
        figures.setdefault(name.strip(), float(value))
    return Referee(result="INVALID" if result is None else result[1], figures=figures)


def _drive_own(load: Load, answer: Answer, images: int, pool: Pool | None) -> Driven:
    random = np.random.default_rng(load.seed)
    tally = _Tally()
    started = time.perf_counter()
    if load.scenario == "Offline":
        count = max(load.queries, round(1.1 * load.seconds / load.expected_s), 1)
        _send(random.integers(0, images, count), tally, answer, pool, started, each=True)
    elif load.scenario == "Server":
        _send_at_random(load, random, tally, answer, images, pool, started)
    else:
        size = STREAMS if load.scenario == "MultiStream" else 1
        while len(tally.seconds) < load.queries or time.perf_counter() - started < load.seconds:
            _send(random.integers(0, images, size), tally, answer, pool, time.perf_counter(), each=False)
    if tally.error is not None:
        raise tally.error
    return Driven(np.array(tally.seconds), tally.images, started, tally.last, "own loop")


def _send(indices: np.ndarray, tally: _Tally, answer: Answer, pool: Pool | None, since: float, each: bool) -> None:
    """Answer images and wait for the last one; they are a query each, or one together."""
    if pool is None:
        answer(indices.tolist())
        tally.add(since, len(indices))
        return
    left = threading.Semaphore(0)
    one_query = _Query(tally, since, 1 if each else len(indices))
    for index in indices.tolist():
        pool.submit(index, one_query.ender(lambda: left.release()))
    for _ in indices:
        left.acquire()
    if tally.error is not None:
        raise tally.error


def _send_at_random(
    load: Load,
    random: np.random.Generator,
    tally: _Tally,
    answer: Answer,
    images: int,
    pool: Pool | None,
    started: float,
) -> None:
    own = pool or Pool(answer, 1)
    count = max(load.queries, round(load.seconds * load.rate), 1)
    arrivals = started + np.cumsum(random.exponential(1 / load.rate, count))
    answered = threading.Semaphore(0)
    try:
        for index, at in zip(random.integers(0, images, count).tolist(), arrivals.tolist(), strict=True):
            time.sleep(max(0.0, at - time.perf_counter()))
            own.submit(index, _Query(tally, at, 1).ender(lambda: answered.release()))
        for _ in range(count):
            answered.acquire()
    finally:
        if pool is None:
            own.__exit__()
