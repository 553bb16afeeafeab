"""Which backend wins, and that one that fails does not end the race."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Graph, ModelSpec
from edge_effdet.backends.base import BACKENDS, Available, CompileOptions, Unavailable
from edge_effdet.building import race
from edge_effdet.building.race import describe_race, race_backends
from edge_effdet.errors import AccuracyGateFailed, BackendUnavailable, GraphError
from edge_effdet.runtime.agreement import find_best
from tests.backends import HERE, BrightBoxRunner, FakeBackend

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("thing",), (1,))


def backend(answer=HERE, seconds=0.0, score=0.8):
    """One that takes so long for a run and gives its boxes this score."""

    def make_runner():
        runner = BrightBoxRunner(64, score=score)
        find = runner.run

        def run(feeds):
            time.sleep(seconds)
            return find(feeds)

        runner.run = run
        return runner

    return FakeBackend(answer, make_runner)


class Refusing(FakeBackend):
    def compile(self, graph, options):
        raise GraphError("it does not like the graph")


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return Graph(tmp_path / "graph.onnx", SPEC, "optimized", "fp32", {}, {}, {}, "ab" * 32)


def race_of(backends, graph, monkeypatch, draft=None, pictures=(), found=0.8):
    for name, each in backends.items():
        monkeypatch.setitem(BACKENDS, name, each)
    exact = BrightBoxRunner(64, score=found)
    monkeypatch.setattr(
        race, "find_in_graph", lambda graph, pictures: [find_best(exact, graph.spec, each) for each in pictures]
    )
    return race_backends(graph, CompileOptions(), tuple(backends), draft, pictures)


def bright(x):
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:40, x : x + 24] = 255
    return image


def test_a_backend_that_finds_something_else_is_left_out_with_the_figure(graph, monkeypatch):
    backends = {"slow": backend(seconds=0.005), "wrong": backend(score=0.4), "near": backend(score=0.79)}
    result = race_of(backends, graph, monkeypatch, pictures=[bright(4), bright(20)])
    assert result.order == ("near", "slow")
    rows = {each.backend: each for each in result.backends}
    assert rows["wrong"].latency is None
    assert (
        "computes something else here: on 2 pictures its scores differ from those of its own graph, computed exactly, by 50 %"
        in (rows["wrong"].skipped or "")
    )
    assert rows["near"].agreement.right and rows["near"].agreement.distance == pytest.approx(0.0125, abs=1e-3)
    assert "; wrong: it computes something else here" in describe_race(result)


def test_a_race_that_all_lose_by_what_they_find_is_no_missing_backend(graph, monkeypatch):
    with pytest.raises(
        AccuracyGateFailed, match=r"No backend here computes the graph as it is written \(wrong: .* 50 %"
    ):
        race_of({"wrong": backend(score=0.4)}, graph, monkeypatch, pictures=[bright(4)])


def test_the_fastest_wins_and_all_are_recorded(graph, monkeypatch):
    backends = {
        "slow": backend(seconds=0.005),
        "fast": backend(),
        "broken": Refusing(),
        "missing": backend(Unavailable("it is not installed", "install it")),
        "elsewhere": backend(Available("2", "a card", runs_here=False)),
    }
    result = race_of(backends, graph, monkeypatch)
    assert result.winner == "fast"
    assert describe_race(result).startswith("backend fast is the fastest here (slow ")
    assert (result.precision, result.graph_sha256) == ("fp32", "ab" * 32)
    rows = {each.backend: each for each in result.backends}
    assert list(rows) == list(backends)
    assert rows["slow"].latency.median_ms > rows["fast"].latency.median_ms
    assert rows["broken"].skipped == "it does not like the graph"
    assert rows["missing"].skipped == "it is not installed"
    assert "cannot run here" in rows["elsewhere"].skipped


def test_each_backend_may_run_a_draft_of_its_own(graph, monkeypatch, tmp_path):
    backends = {"one": backend(), "other": backend(seconds=0.005)}
    drafts = {name: replace(graph, path=tmp_path / f"{name}.onnx", precision="int8") for name in backends}
    # No draft could be made for it.
    drafts["other"] = replace(drafts["other"], precision="fp32")
    result = race_of(backends, graph, monkeypatch, drafts.__getitem__)
    assert {name: [each.path.name for each in fake.compiled] for name, fake in backends.items()} == {
        "one": ["one.onnx"],
        "other": ["other.onnx"],
    }
    assert (result.precision, result.graph_sha256) == ("int8", graph.sha256)
    assert [each.precision for each in result.backends] == ["int8", "fp32"]


def test_a_race_without_runners_is_an_error(graph, monkeypatch):
    with pytest.raises(BackendUnavailable, match=r"broken: it does not like the graph.*edge-effdet\[ort\]"):
        race_of({"broken": Refusing()}, graph, monkeypatch)


def test_the_picture_that_is_raced_on_is_an_empty_one_of_the_engines_input(graph, monkeypatch):
    """Timing must not depend on what is in a picture, so what is raced on is the letterbox's border all over."""
    seen = []

    class Watched(BrightBoxRunner):
        def run(self, feeds):
            seen.append(feeds["images"].copy())
            return super().run(feeds)

    race_of({"one": FakeBackend(make_runner=lambda: Watched(64))}, graph, monkeypatch)
    # Once to see whether it runs, and then again and again against the clock.
    assert len(seen) > 2
    assert {(picture.shape, picture.dtype.name) for picture in seen} == {((1, 3, 64, 64), "uint8")}
    border = np.reshape(SPEC.preprocess.fill_color, (3, 1, 1))
    assert all((picture == border).all() for picture in seen)
