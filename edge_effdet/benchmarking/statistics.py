"""Percentiles and their confidence: how many samples a percentile needs, and intervals from the spread between rounds.

The runs of one round share the state of the machine, so they are not independent and a thousand of them do not make an interval a
thousandth as wide. What is independent is the round. So the rounds are drawn anew, with replacement, and each draw gives the figure again
(a cluster bootstrap). With few rounds such an interval is too narrow; its tails are widened as T. Hesterberg says in "What Teachers
Should Know About the Bootstrap" (The American Statistician 69, 2015, the *expanded percentile interval*): with n rounds, ``alpha / 2`` becomes
``Phi(-sqrt(n / (n - 1)) * t)`` with Student's t of n - 1 degrees of freedom.

A machine has slow phases too, of a minute and more, which several rounds in a row share. So n is not the number of the rounds but that of as
many independent ones: ``n (1 - r) / (1 + r)``, where r is the correlation of a round with the next one (G. V. Bayley and J. M. Hammersley, "The
'effective' number of independent observations in an autocorrelated time series", Supplement to the Journal of the Royal Statistical Society 8,
1946), and the interval is wider by the root of the ratio. An estimate of r from few values is too low by about ``(1 + 3 r) / n`` (M. G. Kendall,
"Note on bias in the estimation of autocorrelation", Biometrika 41, 1954), which is added. Rounds of engines in turns share their phases, and
their ratios do not have them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from edge_effdet.benchmarking.record import Estimate

ENOUGH = {90: 64, 99: 662}
"""How many queries LoadGen wants before it tells an upper bound of a percentile with a confidence of 99 % (its *early stopping*)."""

RESAMPLES = 2000
"""How many draws an interval is computed from."""

MOST_VALUES = 2000
"""Values of one round that a draw takes at most; more, evenly spaced by rank, would change a percentile by nothing that can be seen."""

LEAST_INDEPENDENT = 3
"""Independent rounds that are reckoned with at least."""

_STUDENT = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
"""The 97.5 % quantile of Student's t distribution for 1 to 30 degrees of freedom."""

Statistic = Callable[[np.ndarray], np.ndarray]
"""From an array [draws, n] to one value for each draw, [draws]."""


def percentile_estimate(rounds: Sequence[np.ndarray], percentile: float, seed: int = 0) -> Estimate:
    """A percentile over all values of all rounds, with its interval.

    Args:
        rounds: the values of each round, in any unit.
        percentile: 0 to 100.
        seed: seeds the draws.
    """
    value = float(np.percentile(np.concatenate(rounds), percentile))
    thinned = [_thin(each) for each in rounds]
    draws = _draw(len(rounds), seed)
    found = [float(np.percentile(np.concatenate([thinned[index] for index in own]), percentile)) for own in draws[:500]]
    return _interval(value, np.array(found), [float(np.percentile(each, percentile)) for each in rounds])


def rate_estimate(images: Sequence[int], seconds: Sequence[float], seed: int = 0) -> Estimate:
    """Images a second over all rounds, with its interval: all images over all seconds."""
    counts, times = np.array(images, float), np.array(seconds, float)
    draws = _draw(len(counts), seed)
    found = counts[draws].sum(axis=1) / times[draws].sum(axis=1)
    return _interval(float(counts.sum() / times.sum()), found, counts / times)


def change_estimate(
    before: Sequence[float], now: Sequence[float], paired: bool, quantile: float = 0.5, seed: int = 0
) -> Estimate:
    """By how many per cent a time has grown: what it takes now against what it took before.

    Args:
        before: the time of each round before.
        now: the time of each round now, in the same unit.
        paired: whether round i of both was measured in one turn, so that the state of the machine falls on both. The ratios of the
            rounds are then summed up by their median.
        quantile: by which quantile the rounds of each side are summed up where they are not paired.
        seed: seeds the draws.

    Returns:
        The change in per cent, positive for slower.
    """
    first, second = np.log(np.array(before, float)), np.log(np.array(now, float))
    if paired:
        ratios = second - first
        draws = _draw(len(ratios), seed)
        found = np.median(ratios[draws], axis=1)
        return _as_percent(_widen(float(np.median(ratios)), found, len(ratios)))
    draws = second[_draw(len(second), seed)], first[_draw(len(first), seed + 1)]
    sides = []
    for own, drawn in zip((second, first), draws, strict=True):
        value = float(np.quantile(own, quantile))
        sides.append((value, *_spread(value, np.quantile(drawn, quantile, axis=1), own)))
    (now_value, now_spread, now_rounds), (old_value, old_spread, old_rounds) = sides
    value = now_value - old_value
    return _as_percent(_widen(value, value + now_spread - old_spread, min(now_rounds, old_rounds)))


def independent_rounds(values: Sequence[float] | np.ndarray) -> float:
    """As how many independent rounds so many are worth that share the slow phases of a machine.

    Args:
        values: a figure of each round, in the order of time.

    Returns:
        At most their number; at least three, or their number where that is smaller, since fewer allow no interval.
    """
    own, count = np.asarray(values, float), len(values)
    least = min(count, LEAST_INDEPENDENT)
    # One disturbed round would hide what the others share.
    ranks = own.argsort().argsort() - (count - 1) / 2
    if count <= LEAST_INDEPENDENT or np.ptp(own) == 0:
        return count
    correlation = float((ranks[1:] * ranks[:-1]).sum() / (ranks**2).sum())
    correlation = min(max(correlation + (1 + 3 * correlation) / count, 0), 0.99)
    return max(count * (1 - correlation) / (1 + correlation), least)


def enough_text(queries: int) -> str:
    """For which percentiles so many queries are enough, as a sentence."""
    known = [percentile for percentile, least in ENOUGH.items() if queries >= least]
    if len(known) == len(ENOUGH):
        return f"{queries} queries: P90 needs {ENOUGH[90]} and P99 needs {ENOUGH[99]} for an upper bound with 99 % confidence (LoadGen's rule)"
    if known:
        return f"{queries} queries are enough for P90 ({ENOUGH[90]}) and too few for P99 ({ENOUGH[99]}, LoadGen's rule at 99 % confidence)"
    return f"{queries} queries are too few for P90 ({ENOUGH[90]}) and P99 ({ENOUGH[99]}, LoadGen's rule at 99 % confidence)"


def _draw(rounds: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, rounds, (RESAMPLES, rounds))


def _thin(values: np.ndarray) -> np.ndarray:
    if len(values) <= MOST_VALUES:
        return values
    return np.sort(values)[np.linspace(0, len(values) - 1, MOST_VALUES).round().astype(int)]


def _spread(value: float, found: np.ndarray, rounds: Sequence[float] | np.ndarray) -> tuple[np.ndarray, float]:
    """How far the draws, in which each round counted as independent, lie from the value, and as how many independent rounds they are worth. Rounds are
    given by a figure of each, in the order of time."""
    independent = independent_rounds(rounds)
    return (found - value) * math.sqrt(len(rounds) / independent), independent


def _interval(value: float, found: np.ndarray, rounds: Sequence[float] | np.ndarray) -> Estimate:
    """The interval of such draws."""
    spread, independent = _spread(value, found, rounds)
    return _widen(value, value + spread, independent)


def _widen(value: float, found: np.ndarray, rounds: float) -> Estimate:
    if rounds < 2:
        return Estimate(value, value, value)
    student = _STUDENT[min(int(rounds) - 1, len(_STUDENT)) - 1]
    tail = statistics.NormalDist().cdf(-math.sqrt(rounds / (rounds - 1)) * student)
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(value, min(float(low), value), max(float(high), value))


def _as_percent(logarithm: Estimate) -> Estimate:
    low, value, high = (100 * math.expm1(each) for each in (logarithm.low, logarithm.value, logarithm.high))
    return Estimate(value, low, high)
