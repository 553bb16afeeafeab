"""Which convolutions become INT8."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from edge_effdet.errors import UsageError

FINAL_CONVOLUTIONS = ("class_net.predict.*", "box_net.predict.*")
"""They stay high in every graph: INT8 flattens the confidences. They are listed, and left out of the share."""


def is_final(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in FINAL_CONVOLUTIONS)


def choose_convolutions(names: Iterable[str], keep_high: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split convolutions into (INT8, kept high), in their order.

    Args:
        names: node names, as ``graph.optimize`` gives them.
        keep_high: shell patterns of those that stay high, besides the final ones.

    Raises:
        UsageError: a pattern matches nothing, or nothing is left for INT8.
    """
    every = list(names)
    if not every:
        raise UsageError(
            "The graph holds no convolution, so there is nothing to quantize; give a graph that export wrote."
        )
    for pattern in keep_high:
        if not any(fnmatchcase(name, pattern) for name in every):
            raise UsageError(
                f"--keep-high {pattern!r} matches no convolution; names look like {every[0]} and {every[-1]}, see --explain."
            )
    high = [name for name in every if is_final(name) or any(fnmatchcase(name, pattern) for pattern in keep_high)]
    quantized = [name for name in every if name not in set(high)]
    if not quantized:
        raise UsageError(
            "Every convolution is kept in high precision, so nothing is left for INT8; use --fp16 instead."
        )
    return quantized, high
