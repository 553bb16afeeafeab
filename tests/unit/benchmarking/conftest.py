"""Measurements of a second, and backends that stand in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edge_effdet.backends.base import BACKENDS
from edge_effdet.benchmarking.options import EFFORTS
from tests.bench_backends import STANDING_IN, TINY


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, backend in STANDING_IN.items():
        monkeypatch.setitem(BACKENDS, name, backend)
    monkeypatch.setitem(EFFORTS, "quick", TINY)
    yield
