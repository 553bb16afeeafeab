"""How a report writes figures and names for people."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from edge_effdet.artifacts import printable
from edge_effdet.benchmarking.record import Estimate
from edge_effdet.benchmarking.report.blocks import DASH


def shown(text: str) -> str:
    """A text on one line, in which each control character is written as ``\\x1b``, so that it can neither steer a terminal nor hide."""
    line = " ".join(printable(text).split())
    if line.isprintable():
        return line
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in line)


def _escaped(letter: str) -> str:
    number = ord(letter)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def terminal_lines(text: str) -> list[str]:
    """The lines of a command, as ``shown``; a line that goes on with a command keeps an indent."""
    return [("    " if line[:1].isspace() else "") + shown(line) for line in text.splitlines()]


def shortened(text: str, letters: int) -> str:
    """A text with at most so many letters; what is left out of its middle leaves an ellipsis."""
    if len(text) <= letters:
        return text
    end = (letters - 1) // 2
    return f"{text[: letters - 1 - end]}…{text[len(text) - end :]}"


def digits(value: float | None) -> str:
    """A figure with three significant digits, and all digits before the point."""
    if value is None or not math.isfinite(value):
        return DASH
    rounded = float(f"{value:.3g}")
    if not rounded:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(rounded))))}f}"


def plain(value: float) -> str:
    """A figure that somebody chose, such as a bound, without digits that say nothing."""
    return f"{value:g}"


def tenths(value: float | None) -> str:
    """A change in per cent."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.1f}"


def points(value: float | None) -> str:
    """An AP, 0 to 1, in points."""
    return DASH if value is None or not math.isfinite(value) else f"{100 * value:.1f}"


def lost(value: float | None) -> str:
    """Points of AP lost."""
    return DASH if value is None or not math.isfinite(value) else f"{value:.2f}"


def percent(share: float | None) -> str:
    """A share, 0 to 1, in per cent."""
    return DASH if share is None or not math.isfinite(share) else f"{100 * share:.1f} %"


def between(value: float | None, low: float, high: float, write: Callable[[float | None], str] = digits) -> str:
    """A figure with its interval, as in ``15.2 (15.0-15.4)``; without it where both ends are the figure itself.

    Args:
        value: the figure.
        low: the lower end.
        high: the upper end.
        write: how each of the three is written.
    """
    if value is None or low == value == high:
        return write(value)
    # A dash before a minus sign cannot be read.
    joint = " to " if low < 0 else "-"
    return f"{write(value)} ({write(low)}{joint}{write(high)})"


def estimated(estimate: Estimate | None, write: Callable[[float | None], str] = digits) -> str:
    """An estimate with its interval, and a dash where there is none."""
    return DASH if estimate is None else between(estimate.value, estimate.low, estimate.high, write)


def megabytes(size: float | None) -> str:
    """A size in bytes as MB or GB."""
    if size is None:
        return DASH
    return f"{digits(size / 1e9)} GB" if size >= 1e9 else f"{digits(size / 1e6)} MB"


def duration(seconds: float) -> str:
    """A time in seconds as people say it."""
    number, unit = (
        (seconds, "s") if seconds < 120 else (seconds / 60, "min") if seconds < 7200 else (seconds / 3600, "h")
    )
    return f"{number:.3g} {unit}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number and what it counts: 1 engine, 2 engines.

    Args:
        number: how many there are.
        one: the word for one.
        many: the word for several, if it is not ``one`` with an s.
    """
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def joined(words: Iterable[str], last: str = "and") -> str:
    """Words as a list in a sentence: a, b and c."""
    *first, end = list(words) or [""]
    return f"{', '.join(first)} {last} {end}" if first else end
