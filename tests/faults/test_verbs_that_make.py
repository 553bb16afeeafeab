"""Verbs that make a checkpoint, a graph, an engine or a bundle, each in some of the circumstances."""

from __future__ import annotations

import pytest

from tests.faults.matrix import sample_tries

pytestmark = pytest.mark.slow

VERBS = ("train", "export", "quantize", "build_engine", "deploy")


@pytest.mark.parametrize("tried", sample_tries(VERBS, seed=18, count=18), ids=lambda tried: tried.name)
def test_a_verb_holds(tried, hold):
    hold(tried)
