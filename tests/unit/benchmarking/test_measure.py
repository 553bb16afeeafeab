"""Engines in turns, each in a process of its own: what is measured, and that one that fails takes no other along."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.benchmarking.host.sensors import Sensors
from edge_effdet.benchmarking.load import Driven
from edge_effdet.benchmarking.measure import (
    _is_due,
    _search_rate,
    _server,
    look_into_lanes,
    open_lanes,
    row_of,
    sum_up_sustained,
    sustain_lanes,
    time_lanes,
)
from edge_effdet.benchmarking.options import EFFORTS, BenchmarkConfig
from edge_effdet.benchmarking.record import Row
from edge_effdet.runtime.golden import draw_pictures, encode_picture
from tests.bench_backends import MILLISECONDS, make_engine

PREPARE = "tests.bench_backends:prepare"
pytestmark = pytest.mark.usefixtures("standing_in")


def measure(folder: Path, *backends: str, sustain: float = 0.0) -> dict[str, Row]:
    pictures = [encode_picture(picture) for picture in draw_pictures((64, 64), 3)]
    config = BenchmarkConfig(output=folder / "report", latency_bound=50.0)
    engines = [(backend, make_engine(folder, backend)) for backend in backends]
    with open_lanes(engines, pictures, config, PREPARE) as lanes, Sensors() as sensors:
        time_lanes(lanes, config.effort, config.latency_bound)
        look_into_lanes(lanes, config.effort)
        if sustain:
            sustain_lanes(lanes, sustain, sensors)
        return {lane.name: row_of(lane, sensors, None) for lane in lanes}


def test_all_four_kinds_of_load_are_measured(tmp_path: Path):
    row = measure(tmp_path, "even")["even"]
    assert row.skipped is None
    single, multi, offline, server = (
        row.scenario(name) for name in ("SingleStream", "MultiStream", "Offline", "Server")
    )
    assert single.p50_ms.value >= MILLISECONDS and single.p50_ms.low <= single.p50_ms.value <= single.p50_ms.high
    assert len(single.round_p50_ms) == len(row.network_round_ms) == 5 and len(single.quantiles_ms) == 101
    assert single.queries >= 8 and single.images == single.queries
    # 8 queries and some more are too few for the 99th percentile.
    assert single.p99_ms is None and "too few" in single.enough
    assert row.network.value >= MILLISECONDS
    assert multi.images == 8 * multi.queries and multi.p50_ms.value > single.p50_ms.value
    assert offline.p50_ms is None and len(offline.round_rate) == 2
    assert (
        server.bound_ms == 50.0
        and server.probes
        and server.rate is not None
        and server.rate.value < 1.2 * offline.rate.value
    )
    assert {stage.name for stage in row.stages} == {"decode", "letterbox", "network", "suppression"}
    assert sum(stage.share for stage in row.stages) == pytest.approx(1)
    assert single.driven_by.startswith("LoadGen") and single.referee is not None


def test_each_kind_of_load_is_spread_over_all_of_the_time():
    assert [[_is_due(number, 14, wanted) for number in range(14)].count(True) for wanted in (14, 5, 0)] == [14, 5, 0]
    assert [number for number in range(20) if _is_due(number, 20, 10)] == list(range(1, 20, 2))


def test_engines_take_turns_and_keep_their_order(tmp_path: Path):
    rows = measure(tmp_path, "slower", "even")
    assert list(rows) == ["slower", "even"]
    assert rows["slower"].scenario("SingleStream").p50_ms.low > rows["even"].scenario("SingleStream").p50_ms.high


@pytest.mark.parametrize(
    ("backend", "reason"),
    [
        ("crashing", r"crashed \(SIGABRT\)"),
        ("failing", "the accelerator is gone"),
        ("absent", "there is no such accelerator here; buy one"),
    ],
)
def test_one_of_several_that_fails_keeps_its_row_with_the_reason(tmp_path: Path, backend: str, reason: str):
    rows = measure(tmp_path, "even", backend, "slower")
    assert re.search(reason, rows[backend].skipped)
    for name in ("even", "slower"):
        assert rows[name].skipped is None and len(rows[name].scenarios) == 4


def test_a_sustained_run_has_windows_and_a_drift(tmp_path: Path):
    sustained = measure(tmp_path, "even", sustain=3.0)["even"].sustained
    assert len(sustained.windows) == 60 and sustained.seconds >= 3
    assert sustained.images == sum(window.images for window in sustained.windows)
    assert sustained.energy_j is None or sustained.energy_of


def make_windows(*levels: float) -> list[tuple[np.ndarray, float, float]]:
    return [(np.full(100, level / 1000), float(number), number + 1.0) for number, level in enumerate(levels)]


def test_a_machine_that_throttles_is_told_by_its_drift():
    with Sensors() as sensors:
        steady = sum_up_sustained(make_windows(*[10.0, 10.1] * 15), sensors)
        slower = sum_up_sustained(make_windows(*[10.0, 10.1] * 10, *[12.5, 12.4] * 5), sensors)
    assert steady.drift_percent.low <= 0 <= steady.drift_percent.high and "as long as at the start" in steady.text
    assert slower.drift_percent.value == pytest.approx(24, abs=2) and slower.drift_percent.low > 10
    assert "longer than at the start" in slower.text


class Spoiled:
    """A lane whose rates hold up to a limit, but for the tries at some places in their order, in which the machine does something else."""

    def __init__(self, limit, spoiled):
        self.limit, self.spoiled, self.probes, self.bound_ms = limit, spoiled, [], 0.0
        self.pooled = {"Offline": [Driven(np.zeros(1), 100, 0.0, 1.0, "own loop")]}

    def ask(self, what, loads, seconds):
        (load,) = loads
        late = load.rate > self.limit or len(self.probes) in self.spoiled
        return [Driven(np.full(load.queries, 0.5 if late else 0.05), load.queries, 0.0, 1.0, "own loop")]


def test_one_spoiled_try_does_not_lower_the_rate_that_holds():
    full = EFFORTS["full"]
    undisturbed, disturbed = Spoiled(60, ()), Spoiled(60, (2,))
    for lane in (undisturbed, disturbed):
        _search_rate(lane, full, 0.1)

    def best(lane):
        return max(probe.rate for probe, _ in lane.probes if probe.held)

    # The bracket is halved once for each rate, from 0 to 110 a second.
    assert 60 - 110 / 2 ** (full.probes - 1) < best(undisturbed) <= 60
    assert best(disturbed) == best(undisturbed)
    # A try that does not count is there to be seen, and the rate up to which all held is lower.
    assert len(disturbed.probes) == len(undisturbed.probes) + 1
    with Sensors() as sensors:
        rates = [_server(lane, [sensors.reading(0, 1)]).rate for lane in (undisturbed, disturbed)]
    assert rates[0].low == rates[0].value and rates[0].high > 60
    assert rates[1].low < rates[1].value == rates[0].value and rates[1].high == rates[0].high
