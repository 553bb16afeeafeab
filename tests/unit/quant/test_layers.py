"""A backend's error is found at its layer, is told apart from the loss of quantization, and FP32 has none."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper
from PIL import Image

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.backends import onnxruntime as onnxruntime_backend
from edge_effdet.backends.arithmetic import int8_arithmetic
from edge_effdet.backends.base import BACKENDS, Available, LoadOptions
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import BackendUnavailable, GraphError, UsageError
from edge_effdet.graph.model import save_graph
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.int8 import apply_recipe, make_recipe
from edge_effdet.quant.layer_report import draw_layers, layer_table, verdict
from edge_effdet.quant.layers import HIDDEN_DB, LIMITS_DB, LayerComparison, compare_layers
from edge_effdet.quant.options import Int8Options
from edge_effdet.quant.precision import convert_to_half
from edge_effdet.quant.probe import TIE_MARGIN, expose_tensors, find_layers, isolate_layers, keep_off_ties
from edge_effdet.quant.statistics import fetch_tensors, open_session
from edge_effdet.quant.tensor_errors import ErrorSums, TensorError
from tests.backends import FakeBackend
from tests.unit.quant.test_int8 import SPEC, residual_network

CPU_BACKENDS = ("onnxruntime", "openvino")
SHORT_OF_FP32 = 15.0
"""The least SQNR in dB that INT8 leaves in this small network, whose channels have very different ranges."""


def save(model: onnx.ModelProto, path: Path, precision: str, equalize: bool = True) -> Graph:
    calibration = {"options": {"equalize": equalize}} if precision == "int8" else None
    return save_graph(
        model,
        path,
        spec=SPEC,
        stage="optimized",
        precision=precision,
        rewrites={},
        parents={},
        calibration=calibration,
    )


def quantize(graph: Graph, images: CalibrationImages, path: Path, options: Int8Options) -> Graph:
    recipe = make_recipe(graph, images, options)
    return save(ir.to_proto(apply_recipe(recipe, list(recipe.weights))), path, "int8", options.equalize)


@pytest.fixture
def graph(bench, tmp_path: Path) -> Graph:
    return save(bench.make_model(*residual_network(np.random.default_rng(0))), tmp_path / "net.fp32.onnx", "fp32")


@pytest.fixture
def calibration(tiny_voc: Path) -> CalibrationImages:
    return load_calibration_images(read_dataset(tiny_voc).all_samples(), SPEC, 12, 0)


@pytest.fixture
def images(calibration: CalibrationImages) -> list[np.ndarray]:
    return list(calibration)[:3]


@pytest.fixture
def exact(graph: Graph, calibration: CalibrationImages, tmp_path: Path) -> Graph:
    """The network in INT8 with weights that every processor multiplies exactly."""
    return quantize(graph, calibration, tmp_path / "net.int8.onnx", Int8Options(weight_codes=63))


class SimulatedFaultyBackend(FakeBackend):
    """A stand-in for a processor with wrong arithmetic, which this one may not be: onnxruntime with one weight changed."""

    SUFFIX = ".onnx"

    def __init__(self, weight: str) -> None:
        super().__init__()
        self.weight = weight

    def load(self, engine: Engine, options: LoadOptions):
        model = onnx.load(str(engine.path))
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == self.weight)
        array = numpy_helper.to_array(tensor).copy()
        array[0] = -array[0]
        tensor.CopyFrom(numpy_helper.from_array(array, self.weight))
        onnx.save(model, str(engine.path))
        return onnxruntime_backend.load(engine, options)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(BACKENDS, "faulty", SimulatedFaultyBackend("third.weight_int8"))
    return "faulty"


def names(layers: Sequence) -> list[str]:
    return [layer.name for layer in layers]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_fp32_is_computed_as_it_is_written(graph: Graph, images, backend: str):
    found = compare_layers(graph, backend, images, graph)
    assert names(found.layers) == [
        "stem",
        "first",
        "second",
        "third",
        "fourth",
        "depth",
        "point",
        found.layers[-1].name,
    ]
    assert not found.parted(found.subject) and found.hidden_db is None and found.rescaled == frozenset()
    assert all(error.sqnr_db > 110 for error in found.subject.alone.values())
    assert all(error.sqnr_db == 200 and error.largest == 0 for error in found.quantization.values())
    assert found.subject.heads_db is not None and found.subject.heads_db > 100 and found.heads_db == 200
    assert "computes every layer as the graph says" in verdict(found)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_weights_that_no_processor_saturates_are_exact_in_every_layer(graph: Graph, exact: Graph, images, backend: str):
    found = compare_layers(exact, backend, images, graph)
    assert not found.parted(found.subject)
    assert min(error.sqnr_db for error in found.subject.alone.values()) > 110
    assert {layer.largest_code for layer in found.layers} == {63, None}
    for tensor, error in found.quantization.items():
        assert SHORT_OF_FP32 < error.sqnr_db < 60, tensor
        assert abs(found.subject.whole[tensor].sqnr_db - error.sqnr_db) < 1


def test_full_weights_are_found_out_on_a_processor_that_saturates(graph: Graph, calibration, images, tmp_path: Path):
    full = quantize(graph, calibration, tmp_path / "full.onnx", Int8Options(weight_codes=127))
    found = compare_layers(full, "openvino", images, graph, against="onnxruntime")
    assert found.against is not None and not found.parted(found.against)
    parted = found.parted(found.subject)
    if not int8_arithmetic("openvino").saturates:
        assert not parted and not found.parted_between
        return
    assert parted and found.parted_between == parted
    assert all(layer.kind == "dense" and layer.largest_code == 127 for layer in parted)
    assert "adds pairs of INT8 products in 16 bits" in verdict(found)


def test_a_planted_error_is_named_and_nothing_behind_it(graph: Graph, exact: Graph, images, faulty: str):
    found = compare_layers(exact, faulty, images, graph, against="onnxruntime")
    assert names(found.parted(found.subject)) == ["third"] == names(found.parted_between)
    assert found.against is not None and not found.parted(found.against)
    # In a whole run the error is carried on, so all layers behind look wrong too.
    behind = [layer for layer in found.layers if layer.name in ("fourth", "point")]
    lost = [found.quantization[layer.tensor].sqnr_db - found.subject.whole[layer.tensor].sqnr_db for layer in behind]
    assert min(lost) > 3
    text = verdict(found)
    assert text.startswith("faulty parts from the graph first at third: given exact inputs it has ")
    assert "the difference is faulty's doing" in text
    assert "faulty and onnxruntime part first at third" in text


def test_a_layer_that_loses_much_in_the_graph_is_named_and_not_the_backend(graph, exact, images, tmp_path: Path):
    model = onnx.load(str(exact.path))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "fourth.weight_int8")
    array = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array((array // 16 * 16).astype(np.int8), tensor.name))
    found = compare_layers(save(model, tmp_path / "coarse.onnx", "int8"), "onnxruntime", images, graph)
    assert not found.parted(found.subject)
    assert found.noisiest is not None and found.noisiest.name == "fourth"
    assert "The graph itself loses most at fourth" in verdict(found)


def test_equalized_channels_are_compared_up_to_their_factors(graph: Graph, exact: Graph, images):
    rescaled = compare_layers(exact, "onnxruntime", images, graph)
    assert rescaled.rescaled == {"c", "f", "g", "j"}
    as_they_are = compare_layers(
        replace(exact, calibration={"options": {"equalize": False}}), "onnxruntime", images, graph
    )
    assert as_they_are.rescaled == frozenset()
    for tensor in ("c", "f", "j"):
        assert rescaled.quantization[tensor].sqnr_db > SHORT_OF_FP32 > 10 > as_they_are.quantization[tensor].sqnr_db
        assert rescaled.quantization[tensor].largest is None and as_they_are.quantization[tensor].largest is not None
    assert rescaled.quantization["e"] == as_they_are.quantization["e"]


def test_without_the_fp32_graph_the_backend_is_judged_all_the_same(exact: Graph, images, faulty: str):
    found = compare_layers(exact, faulty, images)
    assert names(found.parted(found.subject)) == ["third"]
    assert found.quantization == {} and found.subject.whole == {} and found.heads_db is None and found.noisiest is None
    assert "Without the FP32 graph" in verdict(found)
    assert "to FP32" not in layer_table(found).splitlines()[-1]


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_a_graph_in_half_precision_is_judged_by_its_own_limit(graph, exact, images, tmp_path, precision, backend):
    model = ir.load(str((exact if precision == "int8" else graph).path))
    convert_to_half(model)
    half = save(ir.to_proto(model), tmp_path / "half.onnx", precision)
    found = compare_layers(half, backend, images, graph)
    assert found.subject.arithmetic in ("f16", "bf16") and not found.parted(found.subject)
    assert found.subject.limit_db == LIMITS_DB[found.subject.arithmetic] < LIMITS_DB["f32"]


def test_what_cannot_be_compared_is_refused(graph: Graph, images, tmp_path: Path):
    with pytest.raises(UsageError, match="no image"):
        compare_layers(graph, "onnxruntime", [])
    with pytest.raises(UsageError, match=r"\[1, 3, 8, 8\] and the graph takes \[1, 3, 32, 32\]"):
        compare_layers(graph, "onnxruntime", [np.zeros((1, 3, 8, 8), np.uint8)])
    with pytest.raises(UsageError, match="nothing to compare"):
        compare_layers(graph, "onnxruntime", images, against="onnxruntime")
    stranger = onnx.load(str(graph.path))
    made = {output for node in stranger.graph.node for output in node.output}
    for node in stranger.graph.node:
        for values in (node.input, node.output):
            values[:] = [f"other_{value}" if value in made else value for value in values]
    del stranger.graph.value_info[:]
    stranger.graph.output[0].name = "other_out"
    other = save(stranger, tmp_path / "other.onnx", "fp32")
    with pytest.raises(GraphError, match="not what that was made from"):
        compare_layers(graph, "onnxruntime", images, other)


def test_a_backend_that_only_compiles_here_says_so(graph: Graph, images, monkeypatch: pytest.MonkeyPatch):
    backend = SimulatedFaultyBackend("")
    monkeypatch.setattr(backend, "probe", lambda: Available("1", "builds for other machines", runs_here=False))
    monkeypatch.setitem(BACKENDS, "elsewhere", "simulated_backend_elsewhere")
    monkeypatch.setitem(sys.modules, "simulated_backend_elsewhere", backend)
    with pytest.raises(BackendUnavailable, match="cannot run here"):
        compare_layers(graph, "elsewhere", images)


def test_a_fault_that_hides_from_open_layers_is_seen_at_the_heads(graph: Graph, images):
    found = compare_layers(graph, "onnxruntime", images, graph)
    assert found.hidden_db is None
    hiding = replace(found, subject=replace(found.subject, heads_db=20.0))
    assert hiding.hidden_db is not None and hiding.hidden_db > HIDDEN_DB
    assert "the fault lies in what the compiler fuses" in verdict(hiding)


def test_the_table_has_the_first_and_the_worst_and_json_has_all(exact: Graph, graph: Graph, images, faulty: str):
    found = compare_layers(exact, faulty, images, graph, against="onnxruntime")
    text = layer_table(found, rows=3)
    rows = text.split("\n\n")[-1].splitlines()[2:]
    assert len(rows) == 3 and rows[0].startswith("third ")
    raw = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert raw["backends"][0] == {
        "backend": "faulty",
        "arithmetic": "f32",
        "limit_db": LIMITS_DB["f32"],
        "first": "third",
        "parted": ["third"],
    }
    assert raw["first_between"] == "third" and len(raw["layers"]) == len(found.layers)
    third = next(layer for layer in raw["layers"] if layer["name"] == "third")
    assert third["rescaled"] and third["largest_weight_code"] == 63
    assert third["alone"]["faulty"]["sqnr_db"] < 40 and third["alone"]["onnxruntime"]["sqnr_db"] > 110
    assert third["against_fp32"]["faulty"]["largest"] is None and third["alone"]["faulty"]["largest"] > 0


@pytest.mark.parametrize("form", ["parts", "agrees", "without FP32"])
def test_the_picture_is_drawn(exact: Graph, graph: Graph, images, faulty: str, tmp_path: Path, form: str):
    backend, reference = (faulty if form == "parts" else "onnxruntime"), (None if form == "without FP32" else graph)
    found = compare_layers(exact, backend, images, reference, against="openvino" if form == "parts" else None)
    path = tmp_path / "layers.png"
    draw_layers(found, path, "net.int8.onnx")
    with Image.open(path) as picture:
        assert picture.width > 1000 and picture.height > (800 if reference else 400)


def test_values_that_are_not_finite_part_and_say_so(graph: Graph, images):
    found = compare_layers(graph, "onnxruntime", images, graph)
    tensor = found.layers[2].tensor
    broken = {**found.subject.alone, tensor: TensorError(-200.0, None, None)}
    found = replace(found, subject=replace(found.subject, alone=broken))
    assert names(found.parted(found.subject)) == [found.layers[2].name]
    assert "it has values that are not finite" in verdict(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_layers_are_convolutions_behind_their_activations_and_what_is_quantized(bench, exact: Graph):
    tensors = {layer.name: layer.tensor for layer in find_layers(onnx.load(str(exact.path)))}
    assert tensors["stem"] == "b" and tensors["first"] == "c" and tensors["sum"] == "g" and tensors["up"] == "i"
    # The pixels before the stem are centred on another value in INT8.
    assert "centered" not in tensors.values()
    one = np.ones((1, 1, 1, 1), np.float32)
    model = bench.make_model(
        [
            ("conv", "Conv", ["x", "w"], ["y"], {}),
            ("sigmoid", "Sigmoid", ["y"], ["s"], {}),
            ("mul", "Mul", ["y", "s"], ["z"], {}),
            ("gate", "Conv", ["z", "w"], ["p"], {}),
            ("squeeze", "Sigmoid", ["p"], ["q"], {}),
            ("excite", "Mul", ["z", "q"], ["scores"], {}),
        ],
        {"w": one},
        {"x": ("float32", [1, 1, 2, 2])},
        {"scores": ("float32", [1, 1, 2, 2])},
    )
    found = find_layers(model)
    assert [(layer.name, layer.tensor) for layer in found] == [("conv", "z"), ("gate", "p"), ("scores", "scores")]
    assert [layer.sources for layer in found] == [(), ("z",), ("p", "z")]


def test_a_graph_that_is_cut_computes_the_same(exact: Graph, images):
    model = onnx.load(str(exact.path))
    tensors = [layer.tensor for layer in find_layers(model)]
    values = next(fetch_tensors(model, images[:1], tensors))
    cut, given_inputs = isolate_layers(model, tensors, values)
    assert {source.tensor for source in given_inputs.values()} == set(tensors) - {"out"}
    session = open_session(cut)
    feeds = {name: source.value(values[source.tensor]) for name, source in given_inputs.items()}
    taken = {value.name for value in session.get_inputs()}
    found = session.run(
        tensors, {name: value for name, value in {**feeds, "images": images[0]}.items() if name in taken}
    )
    for tensor, value in zip(tensors, found, strict=True):
        np.testing.assert_allclose(value, values[tensor], rtol=1e-5, atol=1e-5 * np.abs(values[tensor]).max())


def test_shown_tensors_are_the_last_outputs_and_the_others_stay(graph: Graph):
    model = onnx.load(str(graph.path))
    assert [output.name for output in expose_tensors(model, ["b", "c"]).graph.output] == ["out", "b", "c"]
    assert [output.name for output in expose_tensors(model, ["out", "b"]).graph.output] == ["out", "b"]
    assert [output.name for output in model.graph.output] == ["out"]


@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-4, 10))
def test_values_off_their_ties_round_to_the_same_codes(seed: int, scale: float):
    values = np.random.default_rng(seed).normal(0, 40 * scale, 500).astype(np.float32)
    moved = keep_off_ties(values, scale)
    step = np.float32(scale)
    np.testing.assert_array_equal(np.rint(moved / step), np.rint(values / step))
    distance = np.abs(np.abs(moved / step - np.rint(moved / step)) - 0.5)
    assert distance.min() > 0.99 * TIE_MARGIN
    kept = np.abs(np.abs(values / step - np.rint(values / step)) - 0.5) > TIE_MARGIN
    np.testing.assert_array_equal(moved[kept], values[kept])


def errors_of(expected: Sequence[np.ndarray], found: Sequence[np.ndarray], rescaled: bool = False) -> TensorError:
    sums = ErrorSums(["t"])
    for one, other in zip(expected, found, strict=True):
        sums.add({"t": one}, {"t": other})
    return sums.errors(frozenset({"t"}) if rescaled else frozenset())["t"]


def test_errors_are_summed_over_images():
    expected = [np.full((1, 2, 1, 1), 3.0, np.float32), np.full((1, 2, 1, 1), 4.0, np.float32)]
    found = [expected[0] + 1, expected[1]]
    error = errors_of(expected, found)
    assert error.sqnr_db == pytest.approx(10 * np.log10((2 * 9 + 2 * 16) / 2))
    assert error.largest == 1 and error.mean == pytest.approx(0.5)
    assert error.noise == pytest.approx(2 / 50)
    assert errors_of(expected, expected) == TensorError(200.0, 0.0, 0.0)
    assert errors_of([expected[0] * 0], [expected[0] * 0]).sqnr_db == 200
    assert errors_of([expected[0] * 0], [expected[0]]).sqnr_db < 0
    assert errors_of([expected[0]], [expected[0] * np.nan]) == TensorError(-200.0, None, None)
    assert errors_of([np.ones(3, np.float32)], [np.ones(3, np.float32)]).sqnr_db == 200


def test_a_factor_of_a_channel_is_divided_out_and_an_error_is_not():
    rng = np.random.default_rng(0)
    expected = [rng.normal(0, 1, (1, 3, 8, 8)).astype(np.float32) for _ in range(2)]
    factors = np.array([0.1, 3.0, 20.0], np.float32).reshape(1, 3, 1, 1)
    scaled = [value * factors for value in expected]
    assert errors_of(expected, scaled).sqnr_db < 0 < 100 < errors_of(expected, scaled, rescaled=True).sqnr_db
    noisy = [value + rng.normal(0, 0.1, value.shape).astype(np.float32) * factors for value in scaled]
    assert errors_of(expected, noisy, rescaled=True).sqnr_db == pytest.approx(20, abs=1)


def test_a_comparison_names_each_tensor_once(exact: Graph, graph: Graph, images):
    found: LayerComparison = compare_layers(exact, "onnxruntime", images, graph)
    tensors = [layer.tensor for layer in found.layers]
    assert len(set(tensors)) == len(tensors) == len(found.subject.alone)
    sources: Mapping[str, tuple[str, ...]] = {layer.name: layer.sources for layer in found.layers}
    assert sources["sum"] == ("c", "f") and sources["fourth"] == ("g",)
