"""A small bundle, made once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bundles import write_template
from tests.once import make_once


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes; ``write_bundle`` makes others of it."""
    return make_once(tmp_path_factory, "bundle_template", write_template)
