"""Figures are written with the digits that people need."""

from __future__ import annotations

import pytest

from edge_effdet.benchmarking.report.figures import (
    between,
    counted,
    digits,
    duration,
    joined,
    lost,
    megabytes,
    percent,
    points,
    shortened,
    shown,
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (15.234, "15.2"),
        (0.12345, "0.123"),
        (9.996, "10.0"),
        (99.96, "100"),
        (152.6, "153"),
        (1523.4, "1,523"),
        (-0.5, "-0.500"),
        (0.0, "0"),
        (None, "-"),
        (float("nan"), "-"),
        (float("inf"), "-"),
    ],
)
def test_three_digits(value, written):
    assert digits(value) == written


def test_intervals():
    assert between(15.2, 15.0, 15.4) == "15.2 (15.0-15.4)"
    assert between(0.04, -0.1, 0.18, lost) == "0.04 (-0.10 to 0.18)"
    assert between(15.2, 15.2, 15.2) == "15.2"
    assert between(None, 1.0, 2.0) == "-"


def test_units():
    assert (points(0.4449), points(None), percent(0.981), percent(None)) == ("44.5", "-", "98.1 %", "-")
    assert (megabytes(4_200_000), megabytes(8.2e9), megabytes(None)) == ("4.20 MB", "8.20 GB", "-")
    assert (duration(45), duration(1800), duration(7200), duration(150)) == ("45 s", "30 min", "2 h", "2.5 min")


def test_words():
    assert (counted(1, "engine"), counted(2000, "query", "queries")) == ("1 engine", "2,000 queries")
    assert (joined([]), joined(["a"]), joined(["a", "b"]), joined("abc")) == ("", "a", "a and b", "a, b and c")


def test_long_names_lose_their_middle():
    assert shortened("a" * 10, 10) == "a" * 10
    assert shortened("abcdefghijk", 6) == "abc…jk"
    assert all(len(shortened("abcdefghijk", letters)) == letters for letters in range(2, 11))


def test_what_steers_a_terminal_is_written_out():
    assert shown("\x1b[31mred\x07") == "\\x1b[31mred\\x07"
    assert shown("  two\n lines\t") == "two lines"
    assert shown("a\u202eb\U000e0001") == "a\\u202eb\\U000e0001"
    assert shown("Größe 検出") == "Größe 検出"
    assert shown("caf\udce9") == "caf\\xe9"
