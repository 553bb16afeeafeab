"""The search for the convolutions that stay high: their order, the budget, and the steps that are kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import AccuracyGateFailed, InputError
from edge_effdet.graph.model import save_graph
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.int8 import Recipe, make_recipe
from edge_effdet.quant.options import Int8Options
from edge_effdet.quant.search import (
    Placement,
    SearchedLayer,
    decibels,
    draw_placement,
    fewest_kept,
    placement_table,
    relative_error,
    search_placement,
    worst_first,
)
from tests.unit.quant.test_int8 import SPEC, residual_network

IDENTITY = {"graph_sha256": "a"}
NAMES = ["stem", "first", "second", "third", "fourth", "depth", "point"]


@given(need=st.integers(0, 40), most=st.integers(1, 40))
def test_the_fewest_that_do_are_found_with_few_trials(need, most):
    tried = []

    def drop_with(count: int) -> float:
        tried.append(count)
        return 1.0 if count < need else 0.0

    assert fewest_kept(drop_with, most, 0.5) == (need if need <= most else None)
    assert len(set(tried)) <= 2 * np.log2(most) + 4


def test_errors_are_measured_against_the_variance():
    one = [{"a": np.array([0.0, 2.0]), "b": np.array([10.0, 10.2])}]
    other = [{"a": np.array([0.0, 1.0]), "b": np.array([10.0, 10.2])}]
    assert relative_error(one, other) == pytest.approx(0.25)
    assert decibels(0.01) == pytest.approx(20) and decibels(0.0) == 200


def test_a_layer_that_saves_next_to_nothing_does_not_come_before_one_that_ruins_the_heads():
    layers = [SearchedLayer("stem", 10, 0.0), SearchedLayer("noisy", 10, 20.0), SearchedLayer("cheap", 10, 1.0)]
    assert worst_first(layers, {"stem": 1e-5, "noisy": 0.1, "cheap": 1e-3}, 3.0) == ["noisy", "cheap", "stem"]


@pytest.fixture(scope="module")
def prepared(shared_bench, tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("search")
    model = shared_bench.make_model(*residual_network(np.random.default_rng(0)))
    graph = save_graph(
        model, folder / "net.onnx", spec=SPEC, stage="optimized", precision="fp32", rewrites={}, parents={}
    )
    images = load_calibration_images(read_dataset(tiny_voc).all_samples(), SPEC, 12, 0)
    return make_recipe(graph, images, Int8Options(rounding="nearest")), images


def search(prepared: tuple[Recipe, object], judge, path: Path, budget: float = 0.3, identity=IDENTITY) -> Placement:
    recipe, images = prepared
    return search_placement(recipe, images, judge, budget, "orin-nano-8gb", path, identity)  # type: ignore[arg-type]


def test_what_has_to_stay_high_is_found_reported_and_drawn(prepared, tmp_path):
    asked: list[list[str]] = []

    def judge(quantized: Sequence[str]) -> float:
        asked.append(list(quantized))
        return 0.2 if len(quantized) <= 5 else 1.0

    placement = search(prepared, judge, tmp_path / "steps.json")
    assert sorted([*placement.kept_high, *placement.quantized]) == sorted(NAMES)
    assert len(placement.kept_high) == 2 and placement.drop == 0.2
    # There are so few layers that each one is judged alone.
    assert placement.alone == dict.fromkeys(NAMES, 0.2)
    assert asked[0] and len(asked[0]) == 7
    worth = {layer.name: placement.noise[layer.name] / max(layer.saved_us, 3.0) for layer in placement.layers}
    assert min(worth[name] for name in placement.kept_high) >= max(worth[name] for name in placement.quantized)
    text = placement_table(placement)
    assert "SQNR" in text and "0 kept high: +1.00" in text and all(name in text for name in NAMES)
    assert text.count("+0.20") == len(NAMES) + 1
    draw_placement(placement, tmp_path / "placement.png")
    with Image.open(tmp_path / "placement.png") as picture:
        assert picture.width > 1000
    told = placement.to_dict()
    assert json.loads(json.dumps(told))["layers"][0]["name"] == "stem"
    assert {layer["drop_alone"] for layer in told["layers"]} == {0.2}
    assert [layer["name"] for layer in told["layers"] if layer["precision"] == "high"] == [
        name for name in NAMES if name in placement.kept_high
    ]


def test_nothing_stays_high_where_nothing_is_lost(prepared, tmp_path):
    placement = search(prepared, lambda quantized: 0.0, tmp_path / "steps.json")
    assert placement.kept_high == () and placement.noise == {}
    assert placement_table(placement).startswith("points of AP lost with 0 kept high: +0.00; all convolutions can be")
    assert {layer["sqnr_db"] for layer in placement.to_dict()["layers"]} == {None}


def test_a_budget_that_cannot_be_met_names_the_nearest(prepared, tmp_path):
    with pytest.raises(AccuracyGateFailed, match=r"the nearest keeps 4 of 7 convolutions high and loses 0\.60"):
        search(prepared, lambda quantized: 0.6 if len(quantized) == 3 else 2.0, tmp_path / "steps.json")


def test_a_stopped_search_goes_on_where_it_was(prepared, tmp_path, monkeypatch):
    path = tmp_path / "steps.json"

    asked: list[int] = []

    def judge(quantized: Sequence[str]) -> float:
        asked.append(len(quantized))
        if len(asked) == 10:
            raise KeyboardInterrupt
        return 0.2 if len(quantized) <= 5 else 1.0

    with pytest.raises(KeyboardInterrupt):
        search(prepared, judge, path)
    kept = json.loads(path.read_text())
    assert set(kept["noise"]) == set(kept["alone"]) == set(NAMES) and kept["judged"] == {"0": 1.0, "1": 1.0}
    # What was measured is not measured again.
    monkeypatch.setattr("edge_effdet.quant.search.fetch_tensors", None)
    placement = search(prepared, judge, path)
    assert len(placement.kept_high) == 2 and asked == [7, *[1] * 7, 6, 5, 5]
    with pytest.raises(InputError, match="the steps of a search with another graph"):
        search(prepared, judge, path, identity={"graph_sha256": "b"})
    path.write_text("[")
    with pytest.raises(InputError, match="holds no steps of a search"):
        search(prepared, judge, path)
