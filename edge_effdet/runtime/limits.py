"""The size limit for pictures of every file type, which is checked before a picture is decoded."""

from __future__ import annotations

from edge_effdet.artifacts import Size
from edge_effdet.errors import DataError

MAX_PIXELS = 89_478_485
"""A picture with more pixels is refused, so that one file cannot fill a device's memory. As RGB, this many pixels take 268 MB.
Pillow has the same limit, but only warns."""


def refuse_huge(size: Size, name: object) -> None:
    """Raise DataError if a picture of this height and width has more than ``MAX_PIXELS`` pixels. The message calls it ``name``."""
    height, width = size
    if width * height > MAX_PIXELS:
        raise DataError(
            f"{name} has {width}x{height} pixels, and more than {MAX_PIXELS // 10**6} million are refused; scale it down."
        )
