"""How large a picture may be: the one limit for every kind of file, which is checked before a picture is decoded."""

from __future__ import annotations

from edge_effdet.artifacts import Size
from edge_effdet.errors import DataError

MAX_PIXELS = 89_478_485
"""Of a picture that is decoded, 268 MB as RGB: more is refused, so that one file cannot take a device's memory. Pillow's
own limit, above which it warns and does not refuse."""


def refuse_huge(size: Size, name: object) -> None:
    """Raises DataError where a picture declares more pixels than ``MAX_PIXELS``; ``name`` is what the sentence calls it."""
    height, width = size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} has {width}x{height} pixels, and more than {MAX_PIXELS // 10**6} million are refused; scale it down."
        )
