"""Which backend ``--backend auto`` takes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from edge_effdet.backends import base
from edge_effdet.backends.base import AUTOMATIC, Available, Unavailable, choose_automatically
from edge_effdet.errors import BackendUnavailable

HERE = Available("1", "a processor")
ELSEWHERE = Available("2", "builds for other machines", runs_here=False)
MISSING = Unavailable("it is not installed", "install it")


def choose_among(monkeypatch, *answers):
    probes = dict(zip(AUTOMATIC, answers, strict=True))
    monkeypatch.setattr(base, "get_backend", lambda name: SimpleNamespace(probe=lambda: probes[name]))
    return choose_automatically()


def test_the_first_that_runs_here_is_taken(monkeypatch):
    assert choose_among(monkeypatch, HERE, HERE) == (AUTOMATIC[0], [])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(MISSING, "it is not installed"), (ELSEWHERE, "cannot run here (builds for other machines)")],
)
def test_one_that_does_not_run_here_is_passed_over_with_the_reason(monkeypatch, answer, reason):
    chosen, (passed,) = choose_among(monkeypatch, answer, HERE)
    assert chosen == AUTOMATIC[1]
    assert passed.startswith(f"{AUTOMATIC[0]}: ") and passed.endswith(reason)


def test_without_one_that_runs_here_all_reasons_are_named(monkeypatch):
    with pytest.raises(BackendUnavailable, match=r"it is not installed; .*cannot run here.*edge-effdet\[ort\]"):
        choose_among(monkeypatch, MISSING, ELSEWHERE)
