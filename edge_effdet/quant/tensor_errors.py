"""How far tensors are from their references, over images that pass one at a time: SQNR, the largest and the mean
error.

Channels that a factor was divided out of are compared behind the factor that brings them nearest, in least squares:
with r the reference and g what was got, ``e_c = sum(r g) / sum(g^2)`` over channel c, and what is left is ``sum(r^2)
- e_c sum(r g)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_effdet.quant.search import decibels


@dataclass(frozen=True, slots=True)
class TensorError:
    """Of a tensor against its reference, over all images.

    Attributes:
        sqnr_db: -200 where a value was not finite, 200 where there is no error at all.
        largest: absolute error; None where channels had to be rescaled, which is known only at the end.
        mean: of what was got minus the reference: the bias; None where a value was not finite.
    """

    sqnr_db: float
    largest: float | None
    mean: float | None

    @property
    def noise(self) -> float:
        """Squared error over signal."""
        return 10 ** (-self.sqnr_db / 10)

    def to_dict(self) -> dict[str, float | None]:
        return {"sqnr_db": self.sqnr_db, "largest": self.largest, "mean": self.mean}


Errors = Mapping[str, TensorError]
"""By the tensor's name."""


class ErrorSums:
    """What is kept of tensors and their references while images pass."""

    def __init__(self, tensors: Sequence[str]) -> None:
        self.tensors = tuple(tensors)
        self._kept = {tensor: _ChannelSums() for tensor in tensors}

    def add(self, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
        for tensor, sums in self._kept.items():
            sums.add(expected[tensor], found[tensor])

    def errors(self, rescaled: frozenset[str] = frozenset()) -> dict[str, TensorError]:
        return {tensor: sums.error(tensor in rescaled) for tensor, sums in self._kept.items()}

    def mean_db(self, tensors: Sequence[str]) -> float | None:
        """SQNR of the mean over tensors of noise over signal."""
        shares = [self._kept[tensor].error(False).noise for tensor in tensors if tensor in self._kept]
        return decibels(float(np.mean(shares))) if shares else None


@dataclass(slots=True)
class _ChannelSums:
    """Of one tensor over the images, by channel; a tensor that is no [N, C, H, W] counts as one channel."""

    finite: bool = True
    count: int = 0
    largest: float = 0.0
    noise: Any = 0.0
    expected: Any = 0.0
    found: Any = 0.0
    expected_squared: Any = 0.0
    found_squared: Any = 0.0
    product: Any = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        if not np.isfinite(found).all() or not np.isfinite(expected).all():
            self.finite = False
            return
        shape = (*expected.shape[:2], -1) if expected.ndim == 4 else (1, 1, -1)
        r, g = expected.reshape(shape).astype(np.float64), found.reshape(shape).astype(np.float64)
        error = g - r
        self.count += r.size
        self.largest = max(self.largest, float(np.abs(error).max(initial=0.0)))
        self.noise += np.einsum("ncx,ncx->c", error, error)
        self.expected += r.sum(axis=(0, 2))
        self.found += g.sum(axis=(0, 2))
        self.expected_squared += np.einsum("ncx,ncx->c", r, r)
        self.found_squared += np.einsum("ncx,ncx->c", g, g)
        self.product += np.einsum("ncx,ncx->c", r, g)

    def error(self, rescaled: bool) -> TensorError:
        if not self.finite or not self.count:
            return TensorError(-200.0, None, None)
        factors, noise = np.ones_like(self.noise), self.noise
        if rescaled:
            usable = self.found_squared > 0
            factors[usable] = self.product[usable] / self.found_squared[usable]
            noise = np.maximum(self.expected_squared - factors * self.product, 0.0)
        share = float(noise.sum() / max(float(self.expected_squared.sum()), 1e-30))
        mean = float((factors * self.found - self.expected).sum() / self.count)
        return TensorError(decibels(share), None if rescaled else self.largest, mean)
