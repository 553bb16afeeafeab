"""Milliseconds of engines that take turns."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import get_backend
from edge_effdet.runtime.preprocess import feeds_for_image

ROUNDS, TIMED_RUNS, WARM_UP_RUNS = 6, 5, 3


PAUSE_SECONDS = 0.05
"""Before an engine's turn: onnxruntime's threads go on spinning after a run and would slow the next engine down."""


def measure_latency(engines: Sequence[Engine], image: np.ndarray) -> list[dict[str, Any]]:
    """Milliseconds of one run on one letterboxed picture: median and P90, without pre- and post-processing; and ``arithmetic``, in
    which type it was computed, where the runner tells.

    The engines take turns of a few runs, so that what else the machine does falls on all of them alike. Turns of one
    run would not do: the threads of one engine spin into the run of the next and add a third to its time.
    """
    if not engines:
        return []
    with contextlib.ExitStack() as stack:
        runners = [stack.enter_context(get_backend(engine.backend).load(engine)) for engine in engines]
        feeds = [feeds_for_image(runner, image, engine.spec) for runner, engine in zip(runners, engines, strict=True)]
        times: list[list[float]] = [[] for _ in engines]
        for _ in range(ROUNDS):
            for runner, feed, own in zip(runners, feeds, times, strict=True):
                time.sleep(PAUSE_SECONDS)
                for run in range(WARM_UP_RUNS + TIMED_RUNS):
                    started = time.perf_counter()
                    runner.run(feed)
                    if run >= WARM_UP_RUNS:
                        own.append(1000 * (time.perf_counter() - started))
    medians, p90s = np.percentile(times, (50, 90), axis=1)
    return [
        {
            "median_ms": float(median),
            "p90_ms": float(p90),
            "runs": ROUNDS * TIMED_RUNS,
            "batch": len(feed["images"]),
            "arithmetic": getattr(runner, "arithmetic", None),
        }
        for median, p90, feed, runner in zip(medians, p90s, feeds, runners, strict=True)
    ]
