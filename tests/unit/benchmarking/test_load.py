"""The four kinds of load: what is sent, in which order, and what is counted, by LoadGen and by our own loop."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.benchmarking import load as load_module
from edge_effdet.benchmarking.load import STREAMS, Load, Pool, drive, find_loadgen, read_summary
from edge_effdet.errors import EngineError

SECONDS = 0.3
DRIVERS = pytest.mark.parametrize("own_loop", [False, True], ids=["LoadGen", "own loop"])


class Slow:
    """Answers each image after a moment, and remembers what it was asked for."""

    def __init__(self, seconds: float = 0.002, fails_at: int = -1) -> None:
        self.seconds, self.fails_at = seconds, fails_at
        self.calls: list[list[int]] = []
        self.at_once, self.most_at_once = 0, 0
        self.lock = threading.Lock()

    def __call__(self, indices: Sequence[int]) -> None:
        with self.lock:
            self.calls.append(list(indices))
            number = len(self.calls)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        time.sleep(self.seconds * len(indices))
        with self.lock:
            self.at_once -= 1
        if number == self.fails_at:
            raise EngineError("the engine failed")


def test_loadgen_is_here():
    """Where it is not, the report says so; the tests of it must not pass in its absence."""
    module, name = find_loadgen()
    assert module is not None and name.startswith("LoadGen ")


@DRIVERS
def test_single_stream_sends_one_after_the_other(own_loop: bool):
    answer = Slow()
    driven = drive(Load("SingleStream", SECONDS, 5, 0.002), answer, 7, None, own_loop)
    assert answer.most_at_once == 1
    assert all(len(call) == 1 for call in answer.calls)
    assert {index for call in answer.calls for index in call} == set(range(7))
    assert driven.images == len(driven.seconds) == len(answer.calls)
    assert driven.seconds.min() >= 0.002
    assert driven.ended - driven.started >= 0.8 * SECONDS


@DRIVERS
def test_multi_stream_sends_eight_and_waits_for_the_last(own_loop: bool):
    answer = Slow()
    with Pool(answer, 2) as pool:
        driven = drive(Load("MultiStream", SECONDS, 3, 0.008), answer, 7, pool, own_loop)
    assert answer.most_at_once == 2
    assert driven.images == STREAMS * len(driven.seconds) == len(answer.calls)
    # Eight of 2 ms on two threads.
    assert driven.seconds.min() >= 0.008


@DRIVERS
def test_offline_sends_all_at_once(own_loop: bool):
    answer = Slow()
    with Pool(answer, 3) as pool:
        driven = drive(Load("Offline", SECONDS, 1, 0.002), answer, 7, pool, own_loop)
    assert answer.most_at_once == 3
    assert driven.images == len(answer.calls) >= SECONDS / 0.002
    # The last one waited for all others.
    assert driven.seconds.max() == pytest.approx(driven.ended - driven.started, abs=0.05)


@DRIVERS
def test_server_sends_at_random_times_at_the_rate(own_loop: bool):
    answer = Slow(0.0005)
    with Pool(answer, 2) as pool:
        driven = drive(Load("Server", 1.0, 50, 0.01, rate=100.0), answer, 7, pool, own_loop)
    assert 70 <= driven.images / (driven.ended - driven.started) <= 130
    assert driven.images == len(driven.seconds)


@DRIVERS
def test_server_counts_the_wait_of_an_image_that_comes_too_early(own_loop: bool):
    """Twice the rate that can be answered: the later an image comes, the longer it waits."""
    answer = Slow(0.01)
    with Pool(answer, 1) as pool:
        driven = drive(Load("Server", 0.5, 50, 0.005, rate=200.0), answer, 7, pool, own_loop)
    assert np.percentile(driven.seconds, 99) > 0.2


@DRIVERS
def test_an_engine_that_takes_several_images_a_run_gets_them(own_loop: bool):
    answer = Slow(0.001)
    with Pool(answer, 2, 4) as pool:
        driven = drive(Load("Offline", SECONDS, 64, 0.001), answer, 7, pool, own_loop)
    assert max(map(len, answer.calls)) == 4 and sum(map(len, answer.calls)) == driven.images


@DRIVERS
@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream", "Offline", "Server"])
def test_an_error_of_the_engine_is_raised_and_ends_the_run(scenario: str, own_loop: bool):
    answer = Slow(fails_at=3)
    with Pool(answer, 1) as pool, pytest.raises(EngineError, match="the engine failed"):
        drive(
            Load(scenario, SECONDS, 5, 0.002, rate=100.0),
            answer,
            7,
            None if scenario == "SingleStream" else pool,
            own_loop,
        )


def test_both_drivers_agree():
    found = [
        np.median(drive(Load("SingleStream", SECONDS, 5, 0.005), Slow(0.005), 7, None, own_loop).seconds)
        for own_loop in (False, True)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.1)


def test_our_times_are_those_of_the_referee():
    driven = drive(Load("SingleStream", SECONDS, 5, 0.005), Slow(0.005), 7, None)
    assert driven.referee is not None
    own = 1e9 * float(np.median(driven.seconds))
    assert driven.referee.figures["50.00 percentile latency (ns)"] == pytest.approx(own, rel=0.05)


def test_without_loadgen_our_own_loop_drives_and_the_report_says_why(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "mlperf_loadgen", None)
    module, text = find_loadgen()
    assert module is None and "our own loop" in text
    assert drive(Load("SingleStream", 0.05, 5, 0.002), Slow(), 7, None).driven_by == "own loop"


def test_loadgen_leaves_nothing_in_the_folder_and_reads_nothing_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It would read ``audit.config`` of the present folder, and one that was left there would change what is measured."""
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 100000\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    driven = drive(Load("SingleStream", 0.05, 5, 0.002), Slow(), 7, None)
    assert len(driven.seconds) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["audit.config"]


def test_a_summary_without_a_result_is_invalid():
    assert read_summary("nothing").result == "INVALID"
    summary = (
        "Result is : VALID\n50.00 percentile latency (ns)   : 1824\nTest Parameters Used\nmin_duration (ms): 2000\n"
    )
    referee = read_summary(summary)
    assert referee.result == "VALID" and referee.figures == {"50.00 percentile latency (ns)": 1824.0}


def test_a_loadgen_of_another_name_is_used_all_the_same(monkeypatch: pytest.MonkeyPatch):
    def unknown(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    module, name = find_loadgen()
    assert module is not None and name == "LoadGen of an unknown version"


def test_images_are_drawn_anew_with_another_seed():
    drawn = []
    for seed in (0, 0, 1):
        answer = Slow(0)
        drive(Load("SingleStream", 0.02, 30, 0.001, seed=seed), answer, 1000, None, own_loop=True)
        drawn.append(answer.calls[:30])
    assert drawn[0] == drawn[1] != drawn[2]
    assert load_module.STREAMS == 8
