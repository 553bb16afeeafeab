"""From values of other depths to RGB of 8 bits, with a warning where that leaves little of the picture.

The rules do not look at the values, so that all pictures of a set are treated alike: of 16 bits the upper 8 are kept, as they hold the
picture where the whole range is used; 32-bit and floating-point values are cut off at 0 and 255.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

logger = logging.getLogger("edge_effdet.runtime.images")

_GREY_16, _COLOR_16, _INTEGER, _FLOAT = "16-bit grey", "16-bit color", "32-bit", "floating-point"

_STRIP_PIXELS = 2**20
"""So many pixels are looked at together."""

_warned: set[str] = set()
"""The kinds of trouble that were warned of. A set has thousands of pictures of one kind, so the first one is named alone."""


def stored_depth(image: Image.Image) -> str:
    """What a picture that was opened, and not yet decoded, holds beside values of 8 bits: a word for ``to_rgb``, or ""."""
    # Pillow gives 16-bit grey of a PGM file the mode of 32-bit grey, scaled to 0 to 65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _GREY_16
    tiles: Any = getattr(image, "tile", None) or ()
    if image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(arguments) for *_, arguments in tiles):
        return _COLOR_16
    return {"I": _INTEGER, "F": _FLOAT}.get(image.mode, "")


def to_rgb(image: Image.Image, depth: str, name: object) -> Image.Image:
    """Convert a decoded picture to RGB, 8 bits, and warn once for each depth if that leaves it nearly black, or cuts values off.

    Args:
        image: the decoded picture.
        depth: what ``stored_depth`` said of it.
        name: of the picture, for the warning.
    """
    if depth == _GREY_16:
        # Pillow's own conversion cuts 16-bit grey off at 255.
        upper = Image.new("L", image.size)
        least, most = 2**16, 0
        for top, strip in strips_of(image):
            values = strip.astype(np.uint16)
            least, most = min(least, int(values.min())), max(most, int(values.max()))
            upper.paste(Image.fromarray((values >> 8).astype(np.uint8)), (0, top))
        _warn_of_16_bits(depth, name, least, most)
        return upper.convert("RGB")
    if depth in (_INTEGER, _FLOAT):
        _warn_of_range(depth, name, image)
    # convert would copy a picture that is RGB already.
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    if depth == _COLOR_16:
        # Pillow's decoder has kept the upper 8 bits, so the largest value is known to 255 only.
        channels: Any = rgb.getextrema()
        least, most = min(low for low, _ in channels), max(high for _, high in channels)
        _warn_of_16_bits(depth, name, 256 * least, 256 * most + 255 if most else 0)
    return rgb


def strips_of(image: Image.Image) -> Iterator[tuple[int, np.ndarray]]:
    """A picture as arrays of some rows each, and the first row of each: a whole one would be a second copy, and work on it a third."""
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, np.asarray(image.crop((0, top, image.width, min(image.height, top + rows))))


def warn_once(kind: str, text: str) -> None:
    """Log a warning unless one of the same kind was logged in this process. ``text`` names the picture."""
    if kind not in _warned:
        _warned.add(kind)
        logger.warning("%s; this is said of the first such picture only", text)


def _warn_of_16_bits(depth: str, name: object, least: int, most: int) -> None:
    """Warn if values are so small that fewer bits were meant: the upper 8 of 16 bits are nearly black then."""
    bits = next((bits for bits in (8, 10, 12, 14) if 0 < most < 2**bits), None)
    if bits is not None:
        warn_once(
            depth,
            f"{name} has 16-bit values of {least} to {most}, most likely {bits} bits, and is nearly black, since 65535 counts as "
            "white; scale such pictures to 8 bits before",
        )


def _warn_of_range(depth: str, name: object, image: Image.Image) -> None:
    """Warn if values lie where cutting off at 0 and 255 loses the picture."""
    if depth in _warned:
        return
    ends = [(strip.min(), strip.max()) for strip in _finite_values(image) if strip.size]
    if not ends:
        return
    least, most = min(low for low, _ in ends), max(high for _, high in ends)
    if depth == _FLOAT and least >= 0 and 0 < most <= 1:
        lost = "is black, since 255 counts as white"
    elif least < 0 or most > 255:
        lost = "is cut off at 0 and 255"
    else:
        return
    seen = f"{least} to {most}" if depth == _INTEGER else f"{least:g} to {most:g}"
    warn_once(depth, f"{name} has {depth} values of {seen} and {lost}; scale such pictures to 8 bits before")


def _finite_values(image: Image.Image) -> Iterator[np.ndarray]:
    return (strip[np.isfinite(strip)] for _, strip in strips_of(image))
