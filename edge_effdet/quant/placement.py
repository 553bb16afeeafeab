"""Which convolutions become INT8."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from edge_effdet.errors import UsageError

FINAL_CONVOLUTIONS = ("class_net.predict.*", "box_net.predict.*")
"""Patterns of the convolutions that stay in high precision in every graph, because INT8 flattens the confidences. They are listed,
and are not part of the share of INT8."""


def is_final(name: str) -> bool:
    """Whether a convolution is one of ``FINAL_CONVOLUTIONS``."""
    return any(fnmatchcase(name, pattern) for pattern in FINAL_CONVOLUTIONS)


def choose_convolutions(names: Iterable[str], keep_high: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split convolutions into those in INT8 and those kept in high precision, each in the order of ``names``.

    Args:
        names: the names of the nodes, as ``graph.optimize`` gives them.
        keep_high: shell patterns of convolutions that stay high, besides the final ones.

    Raises:
        UsageError: there is no convolution, a pattern matches none, or none is left for INT8.
    """
    every = list(names)
    if not every:
        raise UsageError(
            "The graph holds no convolution, so there is nothing to quantize; give a graph that export wrote."
        )
    for pattern in keep_high:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise UsageError(
                f"`keep_high` {pattern!r} matches no convolution; names look like {every[0]} and {every[-1]}, and python -m "
                "edge_effdet.export --explain lists all of them."
            )
    high = [name for name in every if is_final(name) or any(fnmatchcase(name, pattern) for pattern in keep_high)]
    quantized = [name for name in every if name not in set(high)]
    if not quantized:
        raise UsageError(
            "Every convolution is kept in high precision, so nothing is left for INT8; make an FP16 graph instead."
        )
    return quantized, high
