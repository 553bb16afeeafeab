"""A time limit for runs of an engine: an endless loop in a graph must not hold whoever asked for its boxes.

A run is in a thread of its own here, so that its caller can stop waiting. What is over time is asked to end (``Runner.interrupt``):
onnxruntime ends between two nodes, also inside a loop; OpenVINO does between two nodes outside of loops; TensorRT does not. A run that goes
on all the same is left to itself, and the engine is not run again in this process: its threads and its memory are still in use.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import LoadOptions, Runner
from edge_effdet.errors import EngineError

GRACE = 2.0
"""Seconds that a run has to end after it was asked to."""

LOAD_LIMIT = 300.0
"""Seconds that an engine may take to load where its runs are limited: a GPU's runtime compiles for a minute."""


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a run went: its results and its time on the device, or what it raised."""

    results: dict[str, np.ndarray] | None = None
    device_ms: float | None = None
    error: BaseException | None = None


class _Worker:
    """A thread that runs an engine for one caller at a time."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._feeds: queue.SimpleQueue[Mapping[str, np.ndarray] | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        # A daemon, because a program has to be able to end while a run does not.
        self._thread = threading.Thread(target=self._work, name="edge-effdet-run", daemon=True)
        self._thread.start()

    @property
    def thread(self) -> int:
        return self._thread.ident or 0

    def start(self, feeds: Mapping[str, np.ndarray]) -> None:
        self._feeds.put(feeds)

    def wait(self, seconds: float) -> _Outcome | None:
        """How the run went; None where it still goes on after so many seconds."""
        try:
            return self._outcomes.get(timeout=seconds)
        except queue.Empty:
            return None

    def end(self) -> None:
        self._feeds.put(None)

    def _work(self) -> None:
        while (feeds := self._feeds.get()) is not None:
            try:
                results = self._runner.run(feeds)
                outcome = _Outcome(results, self._runner.last_device_ms)
            except BaseException as error:  # raised by the caller's thread
                outcome = _Outcome(error=error)
            # Until the next run it would keep the last one's pictures and results.
            feeds = results = None
            self._outcomes.put(outcome)
            del outcome


def load_limited(load: Callable[[Engine, LoadOptions], Runner], engine: Engine, options: LoadOptions) -> LimitedRunner:
    """Load an engine whose runs, and whose loading, may hang: a runtime computes what is constant in a graph when it loads it.

    Args:
        load: of the engine's backend.
        engine: what is loaded.
        options: with a ``run_limit``.

    Raises:
        EngineError: loading took more than ``LOAD_LIMIT`` seconds; it goes on in a thread that nothing can end. Or what the backend raises.
    """
    outcomes: queue.SimpleQueue[Runner | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcomes.put(load(engine, options))
        except BaseException as error:  # raised by the caller's thread
            outcomes.put(error)

    threading.Thread(target=work, name="edge-effdet-load", daemon=True).start()
    try:
        loaded = outcomes.get(timeout=LOAD_LIMIT)
    except queue.Empty:
        raise EngineError(
            f"Loading {engine.path} took more than {LOAD_LIMIT:g} s and cannot be ended; end this process, and build the engine again."
        ) from None
    if isinstance(loaded, BaseException):
        raise loaded
    return LimitedRunner(loaded, options.run_limit)


class LimitedRunner(Runner):
    """A runner whose runs end, or are given up, after so many seconds."""

    def __init__(self, runner: Runner, seconds: float) -> None:
        """Take a runner that is loaded, and close it in the end. ``seconds`` are those of one picture, and count from the call of ``run``."""
        self.inputs, self.outputs = runner.inputs, runner.outputs
        self.concurrent, self.arithmetic = runner.concurrent, runner.arithmetic
        batch = runner.inputs[0].shape[0] if runner.inputs and runner.inputs[0].shape else 1
        # The limit is of one picture, and a fixed batch is run as a whole.
        self._runner, self._seconds = runner, seconds * max(1, batch)
        self._idle: list[_Worker] = []
        self._told = threading.local()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Feeds and results by tensor name; the caller owns the results.

        Raises:
            EngineError: the run took too long, or an earlier one took too long and could not be ended; or what the runner raises.
        """
        if not self.usable:
            raise EngineError(
                "An earlier run of the engine took too long and could not be ended, so the engine is not run again; end this process, "
                "and build the engine again."
            )
        try:
            # One operation, so that no two callers get the same.
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self._runner)
        worker.start(feeds)
        outcome = worker.wait(self._seconds)
        if outcome is None:
            self._runner.interrupt(worker.thread)
            ended = worker.wait(GRACE)
            if ended is None:
                self.usable = False
                # Should it end some day, its thread does too.
                worker.end()
                raise EngineError(
                    f"A run of the engine took more than {self._seconds:g} s and could not be ended, so the engine is not run again; end this "
                    "process, and build the engine again, or raise `run_limit` where the engine is only slow."
                )
            self._idle.append(worker)
            raise EngineError(
                f"A run of the engine took more than {self._seconds:g} s and was ended; build the engine again, or raise `run_limit` "
                "where it is only slow."
            )
        self._idle.append(worker)
        if outcome.error is not None:
            raise outcome.error
        assert outcome.results is not None
        self._told.device_ms = outcome.device_ms
        return outcome.results

    @property
    def last_device_ms(self) -> float | None:
        return getattr(self._told, "device_ms", None)

    def close(self) -> None:
        """Free what the engine holds; where a run could not be ended, it keeps it until the process ends."""
        while self._idle:
            self._idle.pop().end()
        # TensorRT's pool would wait for the run.
        if self.usable:
            self._runner.close()
