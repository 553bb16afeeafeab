"""How long calls and engines take, measured in turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from edge_effdet.artifacts import Engine, ModelSpec
from edge_effdet.artifacts.record import Latency
from edge_effdet.backends.base import Runner, load_runner
from edge_effdet.cli import progress
from edge_effdet.runtime.preprocess import feeds_for_image


@dataclass(frozen=True, slots=True)
class Turns:
    """How calls that are compared take turns.

    Attributes:
        rounds: how many turns each call has.
        runs: how many runs of a turn are timed.
        warm_up: how many runs before them are not timed.
        pause: seconds of rest before a turn: onnxruntime's threads go on spinning after a run and would slow the next call down.
        least_seconds: a turn is timed for at least as long, with more than ``runs`` runs where these are quicker.
    """

    rounds: int = 6
    runs: int = 5
    warm_up: int = 3
    pause: float = 0.05
    least_seconds: float = 0.0


def measure_latency(engines: Sequence[Engine], image: np.ndarray, turns: Turns | None = None) -> list[Latency]:
    """Time engines in turns on one letterboxed picture, without pre- and post-processing.

    Args:
        engines: what is timed.
        image: the picture, uint8 [height, width, 3].
        turns: how they take turns; None for the usual ones.

    Returns:
        One record an engine, in their order.
    """
    if not engines:
        return []
    with contextlib.ExitStack() as stack:
        runners = [stack.enter_context(load_runner(engine)) for engine in engines]
        return time_runners(runners, [engine.spec for engine in engines], image, turns or Turns())


def time_runners(
    runners: Sequence[Runner], specs: Sequence[ModelSpec], image: np.ndarray, turns: Turns
) -> list[Latency]:
    """As ``measure_latency``, for engines that are loaded already, with their specs."""
    feeds = [feeds_for_image(runner, image, spec) for runner, spec in zip(runners, specs, strict=True)]
    calls = [partial(runner.run, feed) for runner, feed in zip(runners, feeds, strict=True)]
    times = [1000 * np.concatenate(own) for own in time_in_turns(calls, turns)]
    return [
        Latency(float(np.median(own)), float(np.percentile(own, 90)), len(own), len(feed["images"]), runner.arithmetic)
        for own, feed, runner in zip(times, feeds, runners, strict=True)
    ]


def time_in_turns(calls: Sequence[Callable[[], object]], turns: Turns, label: str = "") -> list[list[np.ndarray]]:
    """Time calls in turns, so that what else the machine does falls on all of them alike.

    Every other round goes through the calls in the opposite order. A turn is of several runs, because the threads of one engine
    spin into the first run of the next one and add a third to its time.

    Args:
        calls: what is timed.
        turns: how often each of them runs.
        label: the label of a progress bar; without one there is no bar.

    Returns:
        For each call one float64 array a round: the seconds of its timed runs.
    """
    order = [index for number in range(turns.rounds) for index in list(range(len(calls)))[:: -1 if number % 2 else 1]]
    times: list[list[np.ndarray]] = [[] for _ in calls]
    for index in progress(order, len(order), label) if label else order:
        time.sleep(turns.pause)
        for _ in range(turns.warm_up):
            calls[index]()
        seconds: list[float] = []
        while len(seconds) < turns.runs or sum(seconds) < turns.least_seconds:
            started = time.perf_counter()
            calls[index]()
            seconds.append(time.perf_counter() - started)
        times[index].append(np.array(seconds))
    return times
