"""Calls take turns, and only their timed runs count."""

from __future__ import annotations

import time

import pytest

from edge_effdet.runtime.latency import Turns, time_in_turns


def test_every_other_round_goes_through_the_calls_in_the_opposite_order():
    calls: list[str] = []
    ways = [lambda: calls.append("a"), lambda: calls.append("b")]
    times = time_in_turns(ways, Turns(rounds=2, runs=3, warm_up=2, pause=0))
    assert "".join(calls) == "a" * 5 + "b" * 5 + "b" * 5 + "a" * 5
    assert [[own.shape for own in each] for each in times] == [[(3,), (3,)]] * 2


def test_the_warm_up_is_not_timed():
    waits = iter([0.2, 0.0, 0.0])
    ((seconds,),) = time_in_turns([lambda: time.sleep(next(waits))], Turns(rounds=1, runs=2, warm_up=1, pause=0))
    assert seconds.max() < 0.2


@pytest.mark.parametrize(("least", "runs"), [(0.0, 1), (0.05, 5)])
def test_a_quick_call_runs_more_often(least, runs):
    turns = Turns(rounds=1, runs=1, warm_up=0, pause=0, least_seconds=least)
    ((seconds,),) = time_in_turns([lambda: time.sleep(0.01)], turns)
    assert len(seconds) <= runs and seconds.sum() >= least


def test_without_calls_there_are_no_times():
    assert time_in_turns([], Turns(rounds=1)) == []
