"""What is refused before anything is measured."""

from __future__ import annotations

import pytest

from edge_effdet.benchmarking.options import BenchmarkConfig, parse_duration
from edge_effdet.errors import UsageError


@pytest.mark.parametrize(("text", "seconds"), [("30m", 1800), ("90s", 90), ("2h", 7200), ("1.5 m", 90), ("10S", 10)])
def test_durations(text: str, seconds: float):
    assert parse_duration(text) == seconds
    assert BenchmarkConfig(output="x", sustain=text).sustain_seconds == seconds


@pytest.mark.parametrize("text", ["", "30", "m", "-5m", "9s", "0h", "1d", "inf s"])
def test_what_is_no_duration_is_refused(text: str):
    with pytest.raises(UsageError, match="`sustain`"):
        BenchmarkConfig(output="x", sustain=text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "slow"), ("threads", -1), ("pictures", -1), ("max_slowdown", -1.0), ("max_slowdown", float("nan")), ("max_ap_drop", -0.1),
        ("score_threshold", 1.5), ("latency_bound", 0.0), ("latency_bound", float("nan")), ("boxes_in", "inches"),
    ],
)  # fmt: skip
def test_a_number_or_a_name_that_makes_no_sense_is_refused(field: str, value: object):
    with pytest.raises(UsageError, match=f"`{field}`"):
        BenchmarkConfig(output="x", **{field: value})
