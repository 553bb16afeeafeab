"""Time engines in turns, each in a process of its own: ``(engines, pictures, config) -> rows``.

Every other round goes through the engines in the opposite order, as ``runtime.latency.time_in_turns`` does. An engine that cannot run, or
whose process ends, keeps its row with the reason, and the others go on.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Engine, file_sha256
from edge_effdet.backends.base import get_backend
from edge_effdet.benchmarking.host.sensors import Sensors
from edge_effdet.benchmarking.load import STREAMS, Driven, Load
from edge_effdet.benchmarking.options import BenchmarkConfig, Effort
from edge_effdet.benchmarking.record import (
    Estimate,
    Evidence,
    Probe,
    Profile,
    Reading,
    Row,
    Scenario,
    Stage,
    Sustained,
    Window,
)
from edge_effdet.benchmarking.statistics import (
    ENOUGH,
    change_estimate,
    enough_text,
    percentile_estimate,
    rate_estimate,
)
from edge_effdet.benchmarking.worker import Opened, Worker
from edge_effdet.cli import progress
from edge_effdet.data.base import Sample
from edge_effdet.errors import EdgeEffDetError, EngineError

logger = logging.getLogger("edge_effdet.benchmark")

QUANTILES = np.linspace(0, 100, 101)

LEAST_SHARE = 0.1
"""Arrival rates below this share of what Offline reaches are not tried: they take long, and who misses the bound there misses it always."""

EDGE_WINDOWS = 6
"""Stretches of a sustained run in its first minute, and in its last one; the drift is known from the spread between them."""


@dataclass(slots=True)
class Lane:
    """One engine while it is measured.

    Attributes:
        engine: the engine.
        name: the name of its row.
        engine_bytes: the size of its file.
        worker: its process, which is ended where there is an error.
        opened: what the process says of the engine.
        error: what ended its measurement.
        single, network: what came out of one image at a time and of the network alone, round by round.
        pooled: what came out of several images at a time, round by round, by the kind of load.
        probes: the arrival rates that were tried, and what came out.
        bound_ms: the bound that they were held against.
        stages, profile, no_profile: where the time goes, and why that of the network is not known.
        sustained: the long run.
        samples, detections: the labelled images that could be decoded, and what was found in each.
    """

    engine: Engine
    name: str
    engine_bytes: int = 0
    worker: Worker | None = None
    opened: Opened | None = None
    error: EdgeEffDetError | None = None
    single: list[Driven] = field(default_factory=list)
    network: list[np.ndarray] = field(default_factory=list)
    pooled: dict[str, list[Driven]] = field(default_factory=dict)
    probes: list[tuple[Probe, Driven]] = field(default_factory=list)
    bound_ms: float | None = None
    stages: tuple[Stage, ...] = ()
    profile: Profile | None = None
    no_profile: str = ""
    sustained: Sustained | None = None
    samples: list[Sample] = field(default_factory=list)
    detections: list[Detections] | None = None

    def require_unchanged(self) -> None:
        """See that the file is still the one that was opened: each turn loaded it anew, and AP and time are told of one file."""
        try:
            same = file_sha256(self.engine.path) == self.engine.sha256
        except OSError:
            same = False
        if not same and self.error is None:
            self.error = EngineError(
                f"{self.engine.path} was changed or removed while it was measured, so its figures are not those of one file; measure it again."
            )

    @property
    def alive(self) -> bool:
        """Whether it can be measured further."""
        return self.error is None and self.worker is not None

    def ask(self, name: str, *arguments: Any, seconds: float = 0.0) -> Any:
        """A command's answer; None where it failed, which ends the measurement of this engine and of no other."""
        assert self.worker is not None
        try:
            return self.worker.call(name, *arguments, seconds=seconds)
        except EdgeEffDetError as error:
            self.error = error
            logger.warning("%s is left out from here on: %s", self.name, error)
            self.worker.close()
            return None


@contextlib.contextmanager
def open_lanes(
    engines: Sequence[tuple[str, Engine]], pictures: Sequence[bytes | Path], config: BenchmarkConfig, prepare: str = ""
) -> Iterator[list[Lane]]:
    """Start a process for each engine and open the engine in it. Those that cannot be opened keep their reason.

    Args:
        engines: the name of each row, and its engine.
        pictures: the contents of the files that the timed runs decode, or the files.
        config: threads, threshold and golden check.
        prepare: a function, as ``module:function``, that each process calls first.
    """
    lanes = [Lane(engine, name, engine.path.stat().st_size) for name, engine in engines]
    with contextlib.ExitStack() as stack:
        for lane in lanes:
            lane.worker = stack.enter_context(Worker(prepare))
            lane.opened = lane.ask(
                "engine",
                lane.engine,
                list(pictures),
                config.threads,
                config.score_threshold,
                config.self_check,
                seconds=60,
            )
        yield lanes


def time_lanes(lanes: Sequence[Lane], effort: Effort, bound_ms: float) -> None:
    """Put all engines under all loads, in turns.

    Args:
        lanes: the engines.
        effort: how often and how long; a kind of load with no rounds, or no rate to try, is left out.
        bound_ms: the bound on the 99th percentile, for Server.
    """
    rounds = max(effort.rounds, effort.pool_rounds)
    for number, lane in _turns(lanes, rounds, "one and several images at a time"):
        # Each kind is spread over all of the time, so that no slow phase of the machine falls on one kind alone.
        if _is_due(number, rounds, effort.rounds):
            _time_single(lane, len(lane.single), effort)
        if lane.alive and _is_due(number, rounds, effort.pool_rounds):
            _time_pool(lane, len(lane.pooled.get("Offline", ())), effort)
    if effort.probes and effort.pool_rounds:
        for lane in (lane for lane in progress(lanes, len(lanes), "arrival rates") if lane.alive):
            _search_rate(lane, effort, bound_ms / 1000)


def look_into_lanes(lanes: Sequence[Lane], effort: Effort) -> None:
    """Find out where the time goes, one engine after the other."""
    for lane in (lane for lane in progress(lanes, len(lanes), "where the time goes") if lane.alive):
        _time_stages(lane, effort.stages)
        if lane.alive:
            network_ms = 1000 * float(np.median(np.concatenate(lane.network)))
            assert lane.worker is not None
            try:
                answer = lane.worker.call(
                    "profile", effort.profiled, network_ms, seconds=effort.profiled * network_ms / 100
                )
            except EdgeEffDetError as error:
                # All other figures of the engine are there.
                answer = None, str(error)
            lane.profile, lane.no_profile = answer


def sustain_lanes(lanes: Sequence[Lane], seconds: float, sensors: Sensors) -> None:
    """Run each engine for so long, one after the other, and see whether it keeps its speed."""
    step = _edge(seconds) / EDGE_WINDOWS
    for lane in (lane for lane in lanes if lane.alive):
        seen: list[tuple[np.ndarray, float, float]] = []
        count = max(2, round(seconds / step))
        for _ in progress(range(count), count, f"sustained: {lane.name}"):
            answer = lane.ask("sustain", step, sum(len(times) for times, *_ in seen), seconds=step)
            if answer is None:
                break
            seen.append(answer)
        if len(seen) >= 2 * EDGE_WINDOWS:
            lane.sustained = sum_up_sustained(seen, sensors, get_backend(lane.engine.backend).TRAITS.on_cpu)
        if lane.alive:
            lane.ask("release")


def sum_up_sustained(
    seen: Sequence[tuple[np.ndarray, float, float]], sensors: Sensors, on_cpu: bool = True
) -> Sustained:
    """What came out of a sustained run.

    Args:
        seen: for each stretch the seconds of its images, and when it began and ended by ``time.perf_counter``.
        sensors: what was read meanwhile.
        on_cpu: whether the engine runs on the CPU, so that what a GPU shows says nothing of it.
    """
    start, end = seen[0][1], seen[-1][2]
    windows = tuple(
        Window(
            start_s=began - start,
            seconds=ended - began,
            images=len(times),
            p50_ms=1000 * float(np.median(times)),
            p90_ms=1000 * float(np.percentile(times, 90)),
            rate=len(times) / (ended - began),
            reading=_reading_of(sensors, began, ended, on_cpu),
        )
        for times, began, ended in seen
    )
    edge = _edge(end - start)
    # A stretch ends with its last image, so it is a little longer than planned, and fewer of them fit.
    count = max(1, round(edge * len(windows) / (end - start)))
    first, last = windows[:count], windows[-count:]
    drift = change_estimate([each.p50_ms for each in first], [each.p50_ms for each in last], paired=False)
    energy = sensors.energy(start, end)
    if energy is not None and on_cpu and energy[1] == "GPU":
        energy = None
    images = sum(each.images for each in windows)
    sustained = Sustained(
        seconds=end - start,
        images=images,
        windows=windows,
        first=float(np.median([each.p50_ms for each in first])),
        last=float(np.median([each.p50_ms for each in last])),
        drift_percent=drift,
        energy_j=None if energy is None else energy[0] / images,
        energy_of=None if energy is None else energy[1],
    )
    return replace(sustained, text=_sustained_text(sustained))


def _edge(seconds: float) -> float:
    """The seconds at the start of a sustained run that those at its end are compared with."""
    return min(60.0, seconds / 10)


def row_of(lane: Lane, sensors: Sensors, evidence: Evidence | None) -> Row:
    """The row of an engine, with what was measured of it so far; AP is added by ``quality``."""
    engine, opened = lane.engine, lane.opened
    record = engine.require_record()
    on_cpu = get_backend(engine.backend).TRAITS.on_cpu
    timed = {"SingleStream": lane.single, **lane.pooled, "Server": [driven for _, driven in lane.probes]}
    readings = {
        name: [_reading_of(sensors, run.started, run.ended, on_cpu) for run in runs] for name, runs in timed.items()
    }
    scenarios = [
        _server(lane, readings[name]) if name == "Server" else _scenario(name, runs, readings[name])
        for name, runs in timed.items()
        if runs
    ]
    # A percentile suffers from few disturbed rounds, so each of them counts.
    marks = _counted_marks([sensors.marks(each) for own in readings.values() for each in own], "rounds")
    if lane.sustained is not None:
        windows = [sensors.marks(window.reading) for window in lane.sustained.windows]
        marks += _counted_marks(windows, "stretches of the sustained run")
    rounds = [1000 * float(np.median(each)) for each in lane.network]
    return Row(
        name=lane.name,
        path=str(engine.path),
        engine_sha256=engine.sha256,
        engine_bytes=lane.engine_bytes,
        model=engine.spec.name,
        image_size=engine.spec.image_size,
        backend=engine.backend,
        backend_version=record.backend_version if opened is None else opened.version,
        precision=engine.precision,
        arithmetic=None if opened is None else opened.arithmetic,
        threads=0 if opened is None else opened.threads,
        batch=1 if opened is None else opened.batch,
        skipped=None if lane.error is None else str(lane.error),
        marks=tuple(marks),
        scenarios=tuple(scenarios),
        network=percentile_estimate([1000 * each for each in lane.network], 50) if lane.network else None,
        network_round_ms=tuple(round(each, 5) for each in rounds),
        stages=lane.stages,
        profile=lane.profile,
        sustained=lane.sustained,
        evidence=evidence if opened is None or evidence is None else replace(evidence, golden=opened.golden),
    )


def _counted_marks(noticed: Sequence[Sequence[str]], what: str) -> list[str]:
    counts = Counter(mark for marks in noticed for mark in dict.fromkeys(marks))
    return [f"{mark.rstrip('.')}, in {count} of {len(noticed)} {what}." for mark, count in counts.items()]


def _reading_of(sensors: Sensors, began: float, ended: float, on_cpu: bool) -> Reading:
    """What the sensors showed; for an engine on the CPU without what a GPU shows, which does something else."""
    reading = sensors.reading(began, ended)
    if not on_cpu:
        return reading
    causes = [each for each in (reading.throttled or "").split(", ") if each and "GPU" not in each]
    throttled = None if reading.throttled is None else ", ".join(causes)
    reading = replace(reading, gpu_mhz=None, gpu_c=None, throttled=throttled)
    return replace(reading, power_w=None, power_of=None) if reading.power_of == "GPU" else reading


def _turns(lanes: Sequence[Lane], rounds: int, label: str) -> Iterator[tuple[int, Lane]]:
    order = [(number, lane) for number in range(rounds) for lane in list(lanes)[:: -1 if number % 2 else 1]]
    for number, lane in progress(order, len(order), label):
        if lane.alive:
            yield number, lane


def _is_due(number: int, rounds: int, wanted: int) -> bool:
    """Whether one of so many that are wanted falls on this round, where they are evenly spread."""
    return (number + 1) * wanted // rounds > number * wanted // rounds


def _time_single(lane: Lane, number: int, effort: Effort) -> None:
    assert lane.opened is not None
    queries = -(-effort.queries // effort.rounds)
    load = Load("SingleStream", effort.single_s, queries, lane.opened.answer_s, seed=number)
    seconds = max(effort.single_s, queries * lane.opened.answer_s) + effort.network_s
    answer = lane.ask("single", load, effort.network_s, seconds=seconds)
    if answer is not None:
        lane.single.append(answer[0])
        lane.network.append(answer[1])


def _time_pool(lane: Lane, number: int, effort: Effort) -> None:
    assert lane.opened is not None
    each = lane.opened.answer_s
    queries = -(-effort.pool_queries // effort.pool_rounds)
    loads = [
        Load("MultiStream", effort.pool_s, queries, STREAMS * each / lane.opened.runs, seed=number),
        Load("Offline", effort.pool_s, 1, each / lane.opened.runs, seed=number),
    ]
    # Once the rate is known, LoadGen can prepare as many images as last for so long.
    known = lane.pooled.get("Offline")
    if known:
        loads[1] = replace(loads[1], expected_s=(known[-1].ended - known[-1].started) / known[-1].images)
    answer = lane.ask("load", loads, seconds=4 * effort.pool_s + 10 * queries * each)
    for load, driven in zip(loads, answer or (), strict=False):
        lane.pooled.setdefault(load.scenario, []).append(driven)


def _search_rate(lane: Lane, effort: Effort, bound_s: float) -> None:
    """Find the largest arrival rate that holds the bound, by halving the bracket in which it lies.

    It lies below what Offline reaches, where nobody waits for an image to arrive.
    """
    lane.bound_ms = 1000 * bound_s
    offline = lane.pooled["Offline"]
    most = sum(each.images for each in offline) / sum(each.ended - each.started for each in offline)
    low, high = 0.0, 1.1 * most
    rate = 0.8 * most
    number = 0
    for _ in range(effort.probes):
        if rate < LEAST_SHARE * most:
            return
        held = False
        for _ in range(effort.tries):
            queries = max(effort.probe_queries, round(effort.probe_s * rate))
            load = Load("Server", effort.probe_s, queries, 1 / rate, rate=rate, bound_s=bound_s, seed=number)
            number += 1
            answer = lane.ask("load", [load], seconds=4 * queries / rate + 10)
            if answer is None:
                return
            driven: Driven = answer[0]
            p99 = _p99(driven)
            held = p99 <= bound_s
            probe = Probe(rate=rate, queries=len(driven.seconds), p99_ms=1000 * p99, held=held)
            lane.probes.append((probe, driven))
            if held:
                break
        low, high = (rate, high) if held else (low, rate)
        rate = (low + high) / 2


def _p99(driven: Driven) -> float:
    """LoadGen's own 99th percentile in seconds, which counts from the moment when the image was to arrive; else ours, which does so too."""
    if driven.referee is not None:
        found = driven.referee.figures.get("99.00 percentile latency (ns)")
        if found is not None:
            return found / 1e9
    return float(np.percentile(driven.seconds, 99))


def _time_stages(lane: Lane, count: int) -> None:
    assert lane.opened is not None
    answer = lane.ask("stages", count, seconds=count * lane.opened.answer_s)
    if answer is None:
        return
    whole = sum(float(np.median(own)) for own in answer.values())
    lane.stages = tuple(
        Stage(
            name=name,
            median_ms=1000 * float(np.median(own)),
            p90_ms=1000 * float(np.percentile(own, 90)),
            share=float(np.median(own)) / whole,
        )
        for name, own in answer.items()
    )


def _scenario(name: str, runs: Sequence[Driven], readings: Sequence[Reading]) -> Scenario:
    queries, images = sum(len(each.seconds) for each in runs), sum(each.images for each in runs)
    seconds = [each.ended - each.started for each in runs]
    milliseconds = [1000 * each.seconds for each in runs]
    offline = name == "Offline"
    p50, p90, p99 = (None if offline else percentile_estimate(milliseconds, percentile) for percentile in (50, 90, 99))
    return Scenario(
        name=name,
        driven_by=runs[-1].driven_by,
        queries=queries,
        images=images,
        seconds=sum(seconds),
        enough=f"{images} images in {len(runs)} rounds" if offline else enough_text(queries),
        p50_ms=p50,
        p90_ms=p90,
        p99_ms=p99 if queries >= ENOUGH[99] else None,
        rate=rate_estimate([each.images for each in runs], seconds),
        round_p50_ms=() if offline else tuple(round(float(np.median(each)), 5) for each in milliseconds),
        round_rate=tuple(round(each.images / own, 4) for each, own in zip(runs, seconds, strict=True)),
        quantiles_ms=() if offline else _quantiles(milliseconds),
        referee=runs[-1].referee,
        reading=_sum_up(readings),
    )


def _server(lane: Lane, readings: Sequence[Reading]) -> Scenario:
    probes = [probe for probe, _ in lane.probes]
    held = [(probe, driven) for probe, driven in lane.probes if probe.held]
    rate = None
    chosen = lane.probes[-1][1]
    if held:
        best, chosen = max(held, key=lambda each: each[0].rate)
        missed = [probe.rate for probe in probes if not probe.held]
        above = [each for each in missed if each > best.rate]
        # A rate that held at its second try alone may be beyond what a run in a worse moment holds.
        sure = [probe.rate for probe, _ in held if probe.rate < min(missed, default=math.inf)]
        rate = Estimate(best.rate, max(sure, default=0.0), min(above, default=best.rate))
    most = max(probe.queries for probe in probes)
    return Scenario(
        name="Server",
        driven_by=chosen.driven_by,
        queries=sum(probe.queries for probe in probes),
        images=sum(probe.queries for probe in probes),
        seconds=sum(driven.ended - driven.started for _, driven in lane.probes),
        enough=f"{len(probes)} rates were tried with {most} images at most; {enough_text(most)}",
        rate=rate,
        bound_ms=lane.bound_ms,
        quantiles_ms=_quantiles([1000 * chosen.seconds]),
        probes=tuple(probes),
        referee=chosen.referee,
        reading=_sum_up(readings),
    )


def _quantiles(milliseconds: Sequence[np.ndarray]) -> tuple[float, ...]:
    return tuple(np.percentile(np.concatenate(milliseconds), QUANTILES).round(4).tolist())


def _sum_up(readings: Sequence[Reading]) -> Reading:
    """What the sensors showed in the rounds of one engine: the medians over the rounds, the highest temperatures and what held a clock down."""

    def over(name: str, choose: Callable[[Sequence[float]], float]) -> float | None:
        values = [value for value in (getattr(each, name) for each in readings) if value is not None]
        return float(choose(values)) if values else None

    told = [each.throttled for each in readings if each.throttled is not None]
    return Reading(
        cpu_mhz=over("cpu_mhz", np.median),
        cpu_c=over("cpu_c", max),
        gpu_mhz=over("gpu_mhz", np.median),
        gpu_c=over("gpu_c", max),
        power_w=over("power_w", np.median),
        power_of=next((each.power_of for each in readings if each.power_of), None),
        throttled=next((each for each in told if each), "" if told else None),
        others=over("others", np.median),
        stolen=over("stolen", np.median),
        limited=over("limited", max),
    )


def _sustained_text(sustained: Sustained) -> str:
    drift = sustained.drift_percent
    minutes = f"{sustained.seconds / 60:.0f} minutes" if sustained.seconds >= 90 else f"{sustained.seconds:.0f} seconds"
    if drift.low <= 0 <= drift.high:
        change = f"an image takes as long as at the start ({drift.low:+.1f} to {drift.high:+.1f} %)"
    else:
        way = "longer" if drift.value > 0 else "less"
        low, high = sorted((abs(drift.low), abs(drift.high)))
        change = f"an image takes {abs(drift.value):.1f} % {way} than at the start ({low:.1f} to {high:.1f} %)"
    held = [window.reading.throttled for window in sustained.windows]
    told = (
        "nothing tells whether clocks were held down"
        if all(each is None for each in held)
        else "no clock was held down"
    )
    first = next((window for window in sustained.windows if window.reading.throttled), None)
    if first is not None:
        told = f"clocks were held down from second {first.start_s:.0f} on ({first.reading.throttled})"
    return f"After {minutes} {change}; {told}."
