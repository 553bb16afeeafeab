from __future__ import annotations

import pytest

from edge_effdet.sending import spooled


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Receivers that are away are tried again soon."""
    monkeypatch.setattr(spooled, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(spooled, "LONGEST_WAIT", 0.5)
    monkeypatch.setattr(spooled, "FLUSH_EVERY", 0.1)
    monkeypatch.setattr(spooled, "LOOK_EVERY", 0.1)
    # A busy machine gets the time that it needs.
    monkeypatch.setattr(spooled, "LAST", 30.0)
