"""What ``serve`` is told."""

from __future__ import annotations

import pytest

from edge_effdet.errors import UsageError
from edge_effdet.serving.options import EngineOptions, LimitOptions


@pytest.mark.parametrize(
    "wrong",
    [
        {"queue": -1},
        {"max_body_mib": 0},
        {"body_seconds": float("nan")},
        {"run_seconds": -1},
        {"request_rate": float("nan")},
    ],
)
def test_limits_that_make_no_sense(wrong):
    with pytest.raises(UsageError):
        LimitOptions(**wrong)


def test_runs_that_make_no_sense():
    for name in ("runs", "threads"):
        with pytest.raises(UsageError):
            EngineOptions(**{name: -1})
