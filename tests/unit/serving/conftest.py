"""A small real engine for the service."""

from __future__ import annotations

import pytest

from edge_effdet.artifacts import Engine
from tests.serving import build_small_engine


@pytest.fixture(scope="session")
def small_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """See ``tests.serving.build_small_engine``."""
    return build_small_engine(tmp_path_factory.mktemp("serving"))
