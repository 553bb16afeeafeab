"""A process that holds one engine, so that engines take turns and one that crashes does not take the others along.

The benchmark starts Python with ``main`` and one end of a pipe, and sends commands; ``Worker`` is the other end. What passes between them is
pickled, so both have to be of one version.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Engine
from edge_effdet.backends.base import LoadOptions, get_backend, load_runner, require
from edge_effdet.backends.cores import usable_cores
from edge_effdet.backends.fingerprint import describe_machine
from edge_effdet.benchmarking.load import Driven, Load, Pool, drive
from edge_effdet.benchmarking.record import Profile
from edge_effdet.data.base import Sample
from edge_effdet.errors import EdgeEffDetError, EngineError, first_line
from edge_effdet.evaluation.run import run_over_samples
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.golden import read_golden, require_same_results
from edge_effdet.runtime.pipeline import loading_for_many

WARM_UP = 3
"""Answers before each turn that are not timed."""

PATIENCE = 300.0
"""Seconds that a worker may take for a command beyond the time that the command asks for, before it counts as hung."""

STDERR = 2
"""The file descriptor that a worker's stdout goes to: what a library prints there must not get between the lines of ``--json``."""

STAGES = ("decode", "letterbox", "copy in", "network", "copy out", "suppression")


@dataclass(frozen=True, slots=True)
class Opened:
    """What a worker says of the engine that it has opened.

    Attributes:
        version: of the backend's runtime.
        arithmetic: see ``Runner.arithmetic``.
        batch: images that one run takes.
        threads: of a run on a CPU; 0 on a GPU.
        runs: how many runs there are at once where several images are answered at a time.
        golden: what the golden check says, as a sentence.
        answer_s: about how long an image takes.
    """

    version: str
    arithmetic: str | None
    batch: int
    threads: int
    runs: int
    golden: str
    answer_s: float


class WorkerDied(EdgeEffDetError):
    """A worker's process ended, or hung and was killed."""


class Worker:
    """The benchmark's end of the pipe; a context manager. ``call`` asks the process for a method of ``Bench``."""

    def __init__(self, prepare: str = "") -> None:
        """Start the process. ``prepare`` names a function, as ``module:function``, that it calls first."""
        self._end, other = multiprocessing.Pipe()
        # Started as a module it would pickle its own types as those of ``__main__``.
        code = f"import sys; from {__name__} import main; main(sys.argv[1:])"
        arguments = [sys.executable, "-c", code, str(other.fileno()), prepare]
        self._process = subprocess.Popen(arguments, pass_fds=[other.fileno()], stdin=subprocess.DEVNULL, stdout=STDERR)
        other.close()

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def call(self, name: str, *arguments: Any, seconds: float = 0.0) -> Any:
        """Ask for a command that takes about so many seconds.

        Raises:
            WorkerDied: the process ended before it answered, or hung.
            EdgeEffDetError: the command raised it.
        """
        try:
            self._end.send((name, arguments))
            if not self._end.poll(5 * seconds + PATIENCE):
                self._process.kill()
                raise WorkerDied(
                    f"the engine's process did not answer for {5 * seconds + PATIENCE:.0f} s and was ended"
                )
            kind, value = self._end.recv()
        except (EOFError, OSError) as error:
            raise WorkerDied(_how_it_ended(self._process.wait())) from error
        if kind == "error":
            raise value
        return value

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._end.send(("close", ()))
        self._end.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            # It may be in the middle of a command whose end nobody waits for.
            self._process.kill()
        self.close()


def _how_it_ended(code: int) -> str:
    if code >= 0:
        return f"the engine's process ended with exit code {code}"
    with contextlib.suppress(ValueError):
        name = signal.Signals(-code).name
        return f"the engine's process crashed ({name}{', perhaps for want of memory' if name == 'SIGKILL' else ''})"
    return f"the engine's process crashed (signal {-code})"


class Bench:
    """One engine with the pictures that it is timed on.

    A detector is loaded for each turn and closed after it, so that the engines do not share the machine and each round sees another
    place in memory.
    """

    def __init__(
        self, engine: Engine, pictures: Sequence[bytes | Path], threads: int, score_threshold: float, self_check: bool
    ) -> None:
        self._engine, self._pictures = engine, list(pictures)
        self._options = DetectOptions(score_threshold=score_threshold)
        self._traits = get_backend(engine.backend).TRAITS
        self._serial = LoadOptions(threads if self._traits.on_cpu else 0)
        self._many = loading_for_many(engine.backend, threads)
        self._self_check = self_check
        self._kept: Detector | None = None

    def open(self) -> Opened:
        """Load the engine, run the golden check and a few images, and say what it is."""
        version = require(self._engine.backend).version
        with self._load(self._serial) as detector:
            runner = detector._runner
            golden = self._golden(detector)
            self._warm_up(detector)
            started = time.perf_counter()
            self._warm_up(detector)
            answer_s = (time.perf_counter() - started) / WARM_UP
            threads = (self._serial.threads or usable_cores()) if self._traits.on_cpu else 0
            return Opened(
                version,
                runner.arithmetic,
                detector.batch_size,
                threads,
                self._many.parallel_runs or 1,
                golden,
                answer_s,
            )

    def load(self, loads: Sequence[Load]) -> list[Driven]:
        """Drive loads of several images at a time, one after the other, on one detector and its threads."""
        runs = self._many.parallel_runs or 1
        with self._load(self._many) as detector:
            answer = partial(self._answer, detector)
            with Pool(answer, runs, detector.batch_size) as pool:
                # By the threads that are timed: some backends prepare the first run of each thread.
                pool.answer_all(range(WARM_UP * runs * detector.batch_size))
                return [drive(load, answer, len(self._pictures), pool) for load in loads]

    def single(self, load: Load, network_s: float) -> tuple[Driven, np.ndarray]:
        """One round of one image after the other, and the seconds of runs of the network alone."""
        with self._load(self._serial) as detector:
            self._warm_up(detector)
            driven = drive(load, partial(self._answer, detector), len(self._pictures), None)
            with detector.input_buffer() as buffer:
                self._fill(detector, buffer)
                runs: list[float] = []
                until = time.perf_counter() + network_s
                while len(runs) < 3 or time.perf_counter() < until:
                    started = time.perf_counter()
                    detector.run(buffer, len(buffer))
                    runs.append(time.perf_counter() - started)
            return driven, np.array(runs)

    def stages(self, count: int) -> dict[str, np.ndarray]:
        """Seconds of each stage of so many images.

        On a GPU the network's time is what the device measured, and what is left of the call is the copying there and back.
        """
        loading = (
            self._serial if self._traits.on_cpu or not self._traits.device_time else replace(self._serial, timed=True)
        )
        times: dict[str, list[float]] = {name: [] for name in STAGES}
        with self._load(loading) as detector, detector.input_buffer() as buffer:
            self._warm_up(detector)
            for index in range(count):
                marks = [time.perf_counter()]
                picture, size = detector.read(self._pictures[index % len(self._pictures)])
                marks.append(time.perf_counter())
                detector.prepare(picture, size, buffer[0])
                marks.append(time.perf_counter())
                outputs = detector.run(buffer, 1)
                marks.append(time.perf_counter())
                detector.finish(outputs, 0, size)
                marks.append(time.perf_counter())
                decode, letterbox, run, finish = np.diff(marks)
                device = detector._runner.last_device_ms
                times["decode"].append(decode)
                times["letterbox"].append(letterbox)
                times["network"].append(run if device is None else min(run, device / 1000))
                if device is not None:
                    # Nobody measures the two ways apart; the bytes that they move are known.
                    there, back = _copied_bytes(detector)
                    copying = max(0.0, run - device / 1000)
                    times["copy in"].append(copying * there / (there + back))
                    times["copy out"].append(copying * back / (there + back))
                times["suppression"].append(finish)
        return {name: np.array(own) for name, own in times.items() if own}

    def profile(self, runs: int, network_ms: float) -> tuple[Profile | None, str]:
        """Where the network's time goes, or why that is not known."""
        from edge_effdet.benchmarking.layers import profile_engine

        with self._load(self._serial) as detector, detector.input_buffer() as buffer:
            self._fill(detector, buffer)
            feeds = {detector._input.name: buffer.astype(detector._input.dtype)}
        try:
            return profile_engine(self._engine, self._serial.threads, feeds, runs, network_ms)
        except Exception as error:
            # A profiler is another path through a runtime; whatever it raises, the engine's other figures stand.
            return None, first_line(error)

    def detect(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Detections]]:
        """The samples that could be decoded and what the engine finds in each, down to the low threshold that AP needs."""
        with self._load(self._serial) as detector:
            return run_over_samples(detector._runner, samples, self._engine.spec, label=self._engine.path.name)

    def sustain(self, seconds: float, start: int) -> tuple[np.ndarray, float, float]:
        """Answer one image after the other for so long, on the detector that the first call loads and that stays.

        Returns:
            The seconds of each image, and when this began and ended by ``time.perf_counter``.
        """
        if self._kept is None:
            self._kept = self._load(self._serial)
            self._warm_up(self._kept)
        times: list[float] = []
        began = last = time.perf_counter()
        while last - began < seconds:
            self._answer(self._kept, [start + len(times)])
            now = time.perf_counter()
            times.append(now - last)
            last = now
        return np.array(times), began, last

    def release(self) -> None:
        """Free the detector of the sustained run."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _load(self, loading: LoadOptions) -> Detector:
        # Not by ``Detector.load``: the golden check has been made when the engine was opened.
        return Detector(load_runner(self._engine, loading), self._engine.spec, self._options)

    def _answer(self, detector: Detector, indices: Sequence[int]) -> None:
        detector([self._pictures[index % len(self._pictures)] for index in indices])

    def _warm_up(self, detector: Detector) -> None:
        for index in range(WARM_UP):
            self._answer(detector, [index])

    def _fill(self, detector: Detector, buffer: np.ndarray) -> None:
        for index, row in enumerate(buffer):
            picture, size = detector.read(self._pictures[index % len(self._pictures)])
            detector.prepare(picture, size, row)

    def _golden(self, detector: Detector) -> str:
        check = require_same_results(detector._runner, self._engine, wanted=self._self_check)
        if check is not None:
            return (
                f"on its golden pictures the engine's scores differ by {100 * check.distance:.1f} % from those where it was proven "
                f"({describe_machine(check.proven_on)}); {100 * check.tolerance:.0f} % are allowed"
            )
        if not self._self_check:
            return "the golden check was left out, as asked"
        if read_golden(self._engine) is None:
            return "the engine carries no golden pictures, so nothing tells whether it finds the same here as where it was proven"
        return "the engine was proven on this kind of machine, with this version of the backend"


def _copied_bytes(detector: Detector) -> tuple[int, int]:
    """The bytes that one run of one batch moves to the device and back."""

    def size(tensors: Any) -> int:
        return sum(int(np.prod([abs(side) for side in each.shape])) * each.dtype.itemsize for each in tensors)

    return size(detector._runner.inputs), size(detector._runner.outputs)


def serve(end: Connection) -> None:
    """Answer commands until the pipe is closed."""
    bench: Bench | None = None
    while True:
        try:
            name, arguments = end.recv()
        except (EOFError, OSError):
            return
        if name == "close":
            break
        try:
            if name == "engine":
                bench = Bench(*arguments)
                value = bench.open()
            else:
                value = getattr(bench, name)(*arguments)
            answer = ("done", value)
        except EdgeEffDetError as error:
            answer = ("error", error)
        except KeyboardInterrupt:
            return
        except Exception as error:
            # Of a library below; another process could perhaps not unpickle it.
            answer = ("error", EngineError(f"the engine failed ({type(error).__name__}: {first_line(error)})"))
        try:
            end.send(answer)
        except (BrokenPipeError, ConnectionResetError):
            return
    if bench is not None:
        bench.release()


def main(arguments: Sequence[str]) -> None:
    """Answer commands on the file descriptor that the first argument names, after calling the function that the second one names."""
    # The other end is told of Ctrl-C too and closes the pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    descriptor, prepare = int(arguments[0]), arguments[1]
    if prepare:
        module, _, function = prepare.partition(":")
        getattr(importlib.import_module(module), function)()
    serve(Connection(os.dup(descriptor)))
