"""Percentiles and their intervals: right on data whose truth is known, and as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from edge_effdet.benchmarking.statistics import (
    change_estimate,
    enough_text,
    independent_rounds,
    percentile_estimate,
    rate_estimate,
)


def make_rounds(
    seed: int, rounds: int = 10, level: float = 10.0, drift: float = 0.02, runs: int = 60
) -> list[np.ndarray]:
    """Rounds that each have their own state of the machine, which makes all of their runs slower or faster."""
    random = np.random.default_rng(seed)
    states = level * np.exp(random.normal(0, drift, rounds))
    return [state * np.exp(random.normal(0, 0.01, runs)) for state in states]


def test_a_percentile_is_that_of_all_values():
    rounds = make_rounds(0)
    estimate = percentile_estimate(rounds, 90)
    assert estimate.value == np.percentile(np.concatenate(rounds), 90)
    assert estimate.low < estimate.value < estimate.high


@pytest.mark.parametrize("rounds", [5, 10, 20])
def test_an_interval_holds_the_truth_as_often_as_it_says(rounds: int):
    held = 0
    for seed in range(100):
        estimate = percentile_estimate(make_rounds(seed, rounds, runs=20), 50)
        held += estimate.low <= 10.0 <= estimate.high
    # 95 of them; 86 and fewer come up once in 2000 times.
    assert held > 86


def test_runs_of_a_round_do_not_count_as_independent():
    """An interval over the runs themselves would hold the truth far less often, which is why rounds are drawn."""
    held = 0
    for seed in range(100):
        values = np.concatenate(make_rounds(seed, 5, runs=200))
        draws = np.random.default_rng(0).integers(0, len(values), (200, len(values)))
        low, high = np.quantile(np.median(values[draws], axis=1), [0.025, 0.975])
        held += low <= 10.0 <= high
    assert held < 60


def make_phases(seed: int, rounds: int = 20, drift: float = 0.03, share: float = 0.75) -> list[np.ndarray]:
    """Rounds of a machine with slow phases: the state of a round keeps a share of that of the one before."""
    random = np.random.default_rng(seed)
    state, states = random.normal(0, drift), []
    for _ in range(rounds):
        states.append(state)
        state = share * state + random.normal(0, drift * np.sqrt(1 - share**2))
    return [10 * np.exp(each + random.normal(0, 0.01, 20)) for each in states]


def test_two_runs_agree_as_often_as_they_say_where_the_machine_has_slow_phases():
    agreed = told = 0
    for seed in range(40):
        first, second = (make_phases(2 * seed + k) for k in (0, 1))
        estimates = [percentile_estimate(each, 50) for each in (first, second)]
        agreed += max(each.low for each in estimates) <= min(each.high for each in estimates)
        change = change_estimate(*([float(np.median(each)) for each in own] for own in (first, second)), paired=False)
        told += change.low <= 0 <= change.high
    assert agreed > 36 and told > 33


def test_rounds_that_share_nothing_are_all_independent():
    counted = [independent_rounds(np.random.default_rng(seed).normal(10, 1, 20)) for seed in range(50)]
    assert np.median(counted) > 15
    slow = [independent_rounds([float(np.median(each)) for each in make_phases(seed)]) for seed in range(50)]
    assert np.median(slow) < 8
    assert independent_rounds([1.0, 1.0, 1.0, 1.0, 1.0]) == 5 and independent_rounds([1.0, 2.0]) == 2
    assert independent_rounds(list(range(20))) == 3


def test_one_round_has_no_interval():
    estimate = percentile_estimate([np.array([1.0, 2.0, 3.0])], 50)
    assert (estimate.low, estimate.value, estimate.high) == (2.0, 2.0, 2.0)


def test_a_rate_is_all_images_over_all_seconds():
    estimate = rate_estimate([10, 30], [1.0, 1.0])
    assert estimate.value == 20
    assert 10 <= estimate.low <= 20 <= estimate.high <= 30


@pytest.mark.parametrize("paired", [True, False])
def test_a_change_is_found_and_its_sign_is_that_of_slower(paired: bool):
    before = [float(np.median(each)) for each in make_rounds(1)]
    slower = [1.1 * value for value in (before if paired else [float(np.median(each)) for each in make_rounds(2)])]
    change = change_estimate(before, slower, paired)
    assert change.value == pytest.approx(10, abs=0.01 if paired else 4)
    assert change.low > 0


@pytest.mark.parametrize("paired", [True, False])
def test_no_change_is_seldom_called_one(paired: bool):
    wrong = 0
    for seed in range(100):
        first, second = ([float(np.median(each)) for each in make_rounds(2 * seed + k)] for k in (0, 1))
        change = change_estimate(first, second, paired)
        wrong += not change.low <= 0 <= change.high
    assert wrong <= 12


def test_one_contended_round_hides_no_change():
    before = [float(np.median(each)) for each in make_rounds(3)]
    before[4] *= 1.5
    now = [1.1 * float(np.median(each)) for each in make_rounds(4)]
    assert change_estimate(before, now, paired=False).low > 0


def test_most_rounds_may_be_disturbed_where_the_lower_quartile_is_compared():
    """By the median, six disturbed rounds of ten would be a slowdown."""
    before, now = ([float(np.median(each)) for each in make_rounds(seed, drift=0.005)] for seed in (5, 6))
    disturbed = [value * (1.2 if number < 6 else 1) for number, value in enumerate(now)]
    assert change_estimate(before, disturbed, paired=False).value > 15
    assert change_estimate(before, disturbed, paired=False, quantile=0.25).value < 2
    assert change_estimate(before, [1.1 * value for value in disturbed], paired=False, quantile=0.25).low > 5


def test_enough_says_for_which_percentiles():
    assert "too few for P90" in enough_text(63)
    assert "enough for P90" in enough_text(64) and "too few for P99" in enough_text(661)
    assert "too few" not in enough_text(662)
