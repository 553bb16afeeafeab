"""Measurements of a second, and backends that stand in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_effdet.backends.base import BACKENDS
from edge_effdet.benchmarking.options import EFFORTS, Effort
from tests.bench_backends import STANDING_IN

TINY = Effort(
    rounds=5,
    single_s=0.1,
    network_s=0.03,
    pool_rounds=2,
    pool_s=0.1,
    probes=3,
    probe_s=0.2,
    queries=8,
    stages=5,
    profiled=2,
)


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, backend in STANDING_IN.items():
        monkeypatch.setitem(BACKENDS, name, backend)
    monkeypatch.setitem(EFFORTS, "quick", TINY)
    yield
