"""How far tensors are from their references: SQNR, largest and mean error, summed up over images that pass one at a time.

Equalization divides the channels of some tensors by factors. Each of these channels is first multiplied by the factor that brings it
nearest to its reference in least squares. Where r is the reference and g the tensor, that factor of channel c is
``e_c = sum(r g) / sum(g^2)``, and the squared error that is left is ``sum(r^2) - e_c sum(r g)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_effdet.quant.search import decibels


@dataclass(frozen=True, slots=True)
class TensorError:
    """The error of a tensor against its reference, over all images.

    Attributes:
        sqnr_db: the SQNR in decibels; -200 where a value was not finite, 200 where there is no error at all.
        largest: the largest absolute error; None where channels are rescaled, because their factors are known only at the end.
        mean: the mean of the tensor minus the reference, which is its bias; None where a value was not finite.
    """

    sqnr_db: float
    largest: float | None
    mean: float | None

    @property
    def noise(self) -> float:
        """The squared error over the squared reference."""
        return 10 ** (-self.sqnr_db / 10)

    def to_dict(self) -> dict[str, float | None]:
        return {"sqnr_db": self.sqnr_db, "largest": self.largest, "mean": self.mean}


Errors = Mapping[str, TensorError]
"""Errors by the names of the tensors."""


class ErrorSums:
    """Sums over tensors and their references while images pass, from which the errors follow.

    Args:
        tensors: the names of the tensors.
    """

    def __init__(self, tensors: Sequence[str]) -> None:
        self.tensors = tuple(tensors)
        self._kept = {tensor: _ChannelSums() for tensor in tensors}

    def add(self, expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> None:
        """Add the tensors of one image, ``found``, and their references, ``expected``."""
        for tensor, sums in self._kept.items():
            sums.add(expected[tensor], found[tensor])

    def errors(self, rescaled: frozenset[str] = frozenset()) -> dict[str, TensorError]:
        """The error of each tensor; the channels of those in ``rescaled`` are multiplied by their factors first."""
        return {tensor: sums.error(tensor in rescaled) for tensor, sums in self._kept.items()}

    def mean_db(self, tensors: Sequence[str]) -> float | None:
        """The SQNR of the mean noise over signal of some tensors; None where none of them was added."""
        shares = [self._kept[tensor].error(False).noise for tensor in tensors if tensor in self._kept]
        return decibels(float(np.mean(shares))) if shares else None


@dataclass(slots=True)
class _ChannelSums:
    """The sums of one tensor over the images, by channel. A tensor that is not [N, C, H, W] counts as one channel."""

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
