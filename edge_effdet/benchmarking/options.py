"""The options of ``benchmark``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.data.frames import LabelOptions
from edge_effdet.errors import UsageError
from edge_effdet.options import check_choices, option

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h)")
_SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured.

    Attributes:
        rounds: how many turns each engine has for one image at a time.
        single_s: seconds of one image after the other, in each round.
        network_s: seconds of the network alone, in each round.
        pool_rounds: how many turns each engine has for several images at a time.
        pool_s: seconds of eight images at a time, and of all images at once, in each of these rounds.
        pool_queries: how many times eight images at a time at least, over all rounds.
        probes: how many arrival rates are tried.
        probe_s: seconds of one of them.
        probe_queries: how many images arrive at least at one of them.
        tries: how often a rate is tried that did not hold: what else the machine does may spoil the 99th percentile of a try, and never helps it.
        queries: how many images one after the other at least, over all rounds.
        stages: images whose stages are timed apart.
        profiled: runs with the backend's profiler.
    """

    rounds: int
    single_s: float
    network_s: float
    pool_rounds: int
    pool_s: float
    pool_queries: int
    probes: int
    probe_s: float
    probe_queries: int
    tries: int
    queries: int
    stages: int
    profiled: int


EFFORTS = {
    # About 50 s for a network of 15 ms.
    "quick": Effort(
        rounds=14,
        single_s=0.85,
        network_s=0.25,
        pool_rounds=5,
        pool_s=0.9,
        pool_queries=5,
        probes=5,
        probe_s=2.0,
        probe_queries=10,
        tries=1,
        queries=64,
        stages=60,
        profiled=3,
    ),
    # About 7 minutes for it, and more for a slower one: the 99th percentile needs 662 queries of each kind.
    "full": Effort(
        rounds=20,
        single_s=5.0,
        network_s=1.0,
        pool_rounds=10,
        pool_s=4.0,
        pool_queries=662,
        probes=7,
        probe_s=10.0,
        probe_queries=662,
        tries=2,
        queries=662,
        stages=200,
        profiled=20,
    ),
}


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig(LabelOptions):
    """What is measured and what it is compared with. Every field is a flag of ``python -m edge_effdet.benchmark``.

    Raises:
        UsageError: a number that makes no sense, or a choice that does not exist.
    """

    output: Path | str = option(help="write report.html, report.md and report.json into this folder")
    data: Path | str | None = option(
        None,
        help="labelled images: AP is measured on them, and they are what the timed runs decode (default: the engine's golden pictures)",
    )
    split: str | None = option(None, help="the split (default: test, else val, else everything)")
    # The flags are --quick and --full.
    mode: str = "quick"
    sustain: str | None = option(
        None,
        help="run each engine for so long without a pause, as in 90s, 30m or 2h, and see whether it keeps its speed",
    )
    score_threshold: float = option(
        0.3, help="the threshold of the timed runs, as deployed; AP is measured down to 0.001"
    )
    latency_bound: float = option(100.0, help="milliseconds that 99 of 100 images may take in the scenario Server")
    threads: int = option(0, help="threads of a run on a CPU; 0 for the physical cores that this process may use")
    baseline: Path | str | None = option(
        None, help="the report.json of an earlier benchmark: say what changed, and end with exit code 4 on a regression"
    )
    max_slowdown: float = option(5.0, help="per cent by which an engine may be slower than in the baseline")
    max_ap_drop: float = option(
        1.0, help="points of AP that an engine may have less than in the baseline, or than the best FP32 engine here"
    )
    any_machine: bool = option(False, help="compare with a baseline of another kind of machine")
    pictures: int = option(6, help="show at most so many pictures in which two engines differ")
    self_check: bool = option(
        True, help="on a machine of another kind than the engine was proven on, see first that it finds the same there"
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.mode not in EFFORTS:
            raise UsageError(f"There is no `mode` {self.mode!r}; the modes are {', '.join(EFFORTS)}.")
        for name, least in (("threads", 0), ("pictures", 0), ("max_slowdown", 0), ("max_ap_drop", 0)):
            if not getattr(self, name) >= least:
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give {least} or more.")
        if not 0 <= self.score_threshold <= 1:
            raise UsageError(f"`score_threshold` {self.score_threshold} is not between 0 and 1; 0.3 is usual.")
        if not 0 < self.latency_bound < float("inf"):
            raise UsageError(f"`latency_bound` {self.latency_bound} makes no sense; give milliseconds above 0.")
        if self.sustain is not None:
            parse_duration(self.sustain)

    @property
    def effort(self) -> Effort:
        """How much ``mode`` measures."""
        return EFFORTS[self.mode]

    @property
    def sustain_seconds(self) -> float:
        """Seconds of the sustained run; 0 for none."""
        return 0.0 if self.sustain is None else parse_duration(self.sustain)


def parse_duration(text: str) -> float:
    """Seconds of ``90s``, ``30m`` or ``2h``. Raises UsageError for anything else, and for less than 10 seconds."""
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if seconds < 10:
        raise UsageError(f"`sustain` {text} is no duration of 10 seconds or more; write 90s, 30m or 2h.")
    return seconds
