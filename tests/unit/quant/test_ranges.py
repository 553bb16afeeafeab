"""The range that each method chooses from a histogram."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.quant.ranges import BINS, RANGE_METHODS, choose_range


def histogram(values: np.ndarray) -> tuple[np.ndarray, float]:
    largest = float(np.abs(values).max())
    bins = np.minimum(np.abs(values) * (BINS / largest), BINS - 1).astype(np.int64)
    return np.bincount(bins, minlength=BINS), largest


def squared_error(values: np.ndarray, t: float) -> float:
    scale = t / 127
    return float(np.square(values - np.clip(np.rint(values / scale), -127, 127) * scale).mean())


@given(seed=st.integers(0, 2**32 - 1), method=st.sampled_from(sorted(RANGE_METHODS)), spread=st.floats(0, 2))
@settings(max_examples=40, deadline=None)
def test_a_range_is_above_0_and_reaches_no_farther_than_what_was_seen(seed, method, spread):
    rng = np.random.default_rng(seed)
    counts, largest = histogram(rng.normal(size=2000) * np.exp(spread * rng.normal(size=2000)))
    assert 0 < choose_range(counts, largest, method) <= largest * (1 + 1e-12)


def test_max_cuts_nothing_off_and_the_others_cut_outliers():
    rng = np.random.default_rng(0)
    values = np.append(rng.normal(size=200_000), [200.0])
    counts, largest = histogram(values)
    assert choose_range(counts, largest, "max") == largest == 200
    for method in ("percentile", "entropy"):
        assert choose_range(counts, largest, method) < 20, method
    # One value of 200 that is cut to 20 is as large an error as 200,000 roundings.
    assert 20 < choose_range(counts, largest, "mse") < 150


def test_percentile_is_the_value_that_so_many_do_not_exceed():
    values = np.linspace(0.001, 1, 100_000)
    counts, largest = histogram(values)
    assert choose_range(counts, largest, "percentile") == pytest.approx(0.9999, abs=1 / BINS)


@pytest.mark.parametrize("shape", ["normal", "laplace", "uniform"])
def test_mse_is_about_as_good_as_the_best_range_that_a_search_finds(shape):
    values = getattr(np.random.default_rng(1), shape)(size=100_000)
    counts, largest = histogram(values)
    chosen = squared_error(values, choose_range(counts, largest, "mse"))
    best = min(squared_error(values, largest * share) for share in np.linspace(0.05, 1, 96))
    assert chosen <= 1.05 * best
    assert shape == "uniform" or chosen < 0.9 * squared_error(values, largest)


def test_a_relu6_that_is_often_full_keeps_its_6():
    rng = np.random.default_rng(2)
    values = np.minimum(np.maximum(rng.normal(3, 3, 50_000), 0), 6)
    counts, largest = histogram(values[values > 0])
    for method in RANGE_METHODS:
        assert choose_range(counts, largest, method) == pytest.approx(6, rel=0.01), method


def test_where_only_zeros_were_looked_at_the_largest_value_decides():
    assert choose_range(np.zeros(BINS, np.int64), 3.0, "mse") == 3.0
