"""What a backend declares, how one is loaded, and which one ``--backend auto`` takes."""

from __future__ import annotations

import pytest

from edge_effdet.artifacts import PRECISIONS, Engine, ModelSpec, file_sha256
from edge_effdet.backends.base import (
    BACKENDS,
    Available,
    LoadOptions,
    Traits,
    Unavailable,
    automatic_backends,
    choose_automatically,
    get_backend,
    load_runner,
)
from edge_effdet.errors import BackendUnavailable, EngineError, UsageError
from tests.backends import HERE, BrightBoxRunner, FakeBackend

AUTOMATIC = automatic_backends()
ELSEWHERE = Available("2", "builds for other machines", runs_here=False)
MISSING = Unavailable("it is not installed", "install it")


def choose_among(monkeypatch, *answers):
    for name, answer in zip(AUTOMATIC, answers, strict=True):
        monkeypatch.setitem(BACKENDS, name, FakeBackend(answer, traits=get_backend(name).TRAITS))
    return choose_automatically()


def test_a_backend_declares_itself():
    assert AUTOMATIC == ["tensorrt", "onnxruntime"]
    for name in BACKENDS:
        traits = get_backend(name).TRAITS
        assert traits.rest in PRECISIONS
        # A default of half precision costs a CPU accuracy and gains it nothing.
        assert not (traits.on_cpu and traits.rest == "fp16")


def test_threads_are_refused_where_nothing_runs_on_the_cpu(monkeypatch, tmp_path):
    monkeypatch.setitem(BACKENDS, "card", FakeBackend(traits=Traits(on_cpu=False)))
    (tmp_path / "x.fake").write_bytes(b"engine")
    engine = Engine(tmp_path / "x.fake", ModelSpec("x", (64, 64), ("thing",), (1,)), "card", "fp32")
    load_runner(engine, LoadOptions(parallel_runs=2)).close()
    with pytest.raises(UsageError, match="`threads` 2 means nothing"):
        load_runner(engine, LoadOptions(threads=2))
    with pytest.raises(UsageError, match="`parallel_runs` -1 makes no sense"):
        LoadOptions(parallel_runs=-1)


@pytest.mark.parametrize("moment", ["before", "meanwhile", "gone"])
@pytest.mark.parametrize("run_limit", [0.0, 60.0])
def test_an_engine_that_is_replaced_until_it_is_loaded_is_not_run(monkeypatch, tmp_path, moment, run_limit):
    """Its record would be that of the engine before."""
    path = tmp_path / "x.fake"
    path.write_bytes(b"engine")
    engine = Engine(path, ModelSpec("x", (64, 64), ("thing",), (1,)), "card", "fp32", file_sha256(path))
    closed = []

    class Loaded(BrightBoxRunner):
        def close(self):
            closed.append(True)

    def load():
        if moment != "before":
            path.unlink() if moment == "gone" else path.write_bytes(b"engine of another build")
        return Loaded(64)

    monkeypatch.setitem(BACKENDS, "card", FakeBackend(make_runner=load))
    if moment == "before":
        load_runner(engine, LoadOptions(run_limit=run_limit)).close()
        closed.clear()
        path.write_bytes(b"engine of another build")
    with pytest.raises(EngineError, match=r"x\.fake was replaced before it was loaded, .*load it again"):
        load_runner(engine, LoadOptions(run_limit=run_limit))
    assert closed == [True]


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
