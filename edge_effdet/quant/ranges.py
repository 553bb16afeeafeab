"""Choose the range that an INT8 scale covers, from a histogram of a tensor's values.

Ranges are symmetric, as TensorRT's are: the codes -127 to 127 stand for -t to t with one scale ``t / 127``. All four
methods look at absolute values:

- ``max`` takes the largest value seen. Nothing is cut off, and one outlier makes the steps of all other values coarser.
- ``percentile`` takes the value that 99.99 % of the nonzero values do not exceed.
- ``entropy`` takes the t with the least Kullback-Leibler divergence between the distribution of the values and the same distribution
  rounded to 128 levels (Migacz, "8-bit Inference with TensorRT", GTC 2017).
- ``mse`` takes the t with the least expected squared error. A value inside the range is off by up to half a step s, which is
  ``s * s / 12`` on average when squared; a value outside is off by its distance from t. Zeros, of which a ReLU leaves many, are exact
  and do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

BINS = 2048
LEVELS = 128
"""How many absolute values a symmetric INT8 code has: 0 to 127."""
LARGEST_CODE = 127
PERCENTILE = 99.99

_STEP = 16
"""How many bins lie between two candidates for t. A finer grid changes t by less than a hundredth."""


def choose_range(counts: np.ndarray, largest: float, method: str) -> float:
    """Choose the range t of a tensor.

    Args:
        counts: how many absolute values other than 0 lie in each bin from 0 to ``largest``, int64 [BINS].
        largest: the largest absolute value, above 0.
        method: a key of ``RANGE_METHODS``.

    Returns:
        t, above 0 and at most ``largest``.
    """
    # The histogram is made of a sample of the values. Where every sampled value was 0, it is empty, although the largest value
    # of the whole tensor, which is tracked on its own, is above 0; only the whole range is known to be safe then.
    if not counts.any():
        return largest
    return float(largest * RANGE_METHODS[method](counts))


def _max(counts: np.ndarray) -> float:
    return 1.0


def _percentile(counts: np.ndarray) -> float:
    below = np.cumsum(counts) / counts.sum()
    return float(np.searchsorted(below, PERCENTILE / 100) + 1) / len(counts)


def _mse(counts: np.ndarray) -> float:
    centers = (np.arange(len(counts)) + 0.5) / len(counts)
    ends = np.arange(_STEP, len(counts) + 1, _STEP)
    limits = ends / len(counts)
    # The sum of (v - t)^2 over the values v beyond t, for all t at once, from the sums of 1, v and v^2 beyond t.
    beyond = [np.append(np.cumsum((counts * centers**power)[::-1])[::-1], 0.0)[ends] for power in (0, 1, 2)]
    clipped = beyond[2] - 2 * limits * beyond[1] + limits**2 * beyond[0]
    rounded = (counts.sum() - beyond[0]) * (limits / LARGEST_CODE) ** 2 / 12
    return float(limits[np.argmin(clipped + rounded)])


def _entropy(counts: np.ndarray) -> float:
    ends = range(LEVELS, len(counts) + 1, _STEP)
    return min(ends, key=lambda end: (_divergence(counts, end), end)) / len(counts)


def _divergence(counts: np.ndarray, end: int) -> float:
    """KL divergence between the values cut off at bin ``end``, those beyond it counted in the last bin, and the same in 128 levels."""
    kept = counts[:end].astype(np.float64)
    reference = kept.copy()
    reference[-1] += counts[end:].sum()
    edges = np.linspace(0, end, LEVELS + 1).astype(np.int64)
    sums = np.add.reduceat(kept, edges[:-1])
    filled = np.add.reduceat((kept > 0).astype(np.int64), edges[:-1])
    level = np.repeat(np.arange(LEVELS), np.diff(edges))
    spread = np.where(kept > 0, (sums / np.maximum(filled, 1))[level], 0.0)
    seen = reference > 0
    # A bin that the 128 levels leave empty costs as if a ten-thousandth of a value were in it, not infinitely much.
    p, q = reference[seen] / reference.sum(), np.maximum(spread[seen], 1e-4) / max(spread.sum(), 1e-4)
    return float(np.sum(p * np.log(p / q)))


RANGE_METHODS: Mapping[str, Callable[[np.ndarray], float]] = {
    "max": _max,
    "percentile": _percentile,
    "entropy": _entropy,
    "mse": _mse,
}
"""The methods by name. Each takes the counts of the bins and gives t as a share of the largest value."""
