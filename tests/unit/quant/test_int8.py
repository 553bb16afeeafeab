"""From a small network to INT8: equalized channels compute the same, Q/DQ stands where it should, pixels are exact."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edge_effdet.artifacts import Graph, ModelSpec
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import GraphError, InputError, UsageError
from edge_effdet.graph.model import save_graph
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.equalize import balancing_factors, equalize_channels, find_streams
from edge_effdet.quant.int8 import apply_recipe, make_recipe
from edge_effdet.quant.options import Int8Options
from edge_effdet.quant.patches import ConvolutionShape, convolution_shapes, measure_inputs, pick_patches
from edge_effdet.quant.pixels import center_on_codes
from edge_effdet.quant.precision import convert_to_half
from edge_effdet.quant.proof import prove_precision
from edge_effdet.quant.statistics import fetch_tensors, measure_extents, measure_histograms, sample_values
from edge_effdet.quant.table import load_table, save_table, table_identity

SPEC = ModelSpec("tiny", (32, 32), ("bar", "disc"), (1, 2))
PADS = {"pads": [1, 1, 1, 1]}
FINAL = "class_net.predict.conv_pw"


def residual_network(rng: np.random.Generator, batch: int = 1):
    """A stem on pixels, a residual block, a resize, a separable pair and a final convolution; channels have very different ranges."""
    arrays = {
        "shift": np.full((1, 3, 1, 1), -123.4, np.float32),
        "stem.w": rng.normal(0, 0.01, (8, 3, 3, 3)),
        "stem.b": rng.normal(0, 0.3, 8),
        "first.w": rng.normal(0, 0.5, (8, 8, 1, 1)) * np.exp(rng.normal(0, 1.5, (8, 1, 1, 1))),
        "first.b": rng.normal(0, 0.3, 8),
        "second.w": rng.normal(0, 0.3, (8, 8, 1, 1)),
        "third.w": rng.normal(0, 0.3, (8, 8, 1, 1)) * np.exp(rng.normal(0, 1.5, (8, 1, 1, 1))),
        "third.b": rng.normal(0, 0.3, 8),
        "depth.w": rng.normal(0, 0.3, (8, 1, 3, 3)) * np.exp(rng.normal(0, 1, (8, 1, 1, 1))),
        "point.w": rng.normal(0, 0.3, (8, 8, 1, 1)),
        "final.w": rng.normal(0, 0.3, (4, 8, 1, 1)),
        "zero": np.float32(0),
        "six": np.float32(6),
        "factors": np.array([1, 1, 2, 2], np.float32),
    }
    nodes = [
        ("cast", "Cast", ["images"], ["pixels"], {"to": 1}),
        ("center", "Add", ["pixels", "shift"], ["centered"], {}),
        ("stem", "Conv", ["centered", "stem.w", "stem.b"], ["a"], {"strides": [2, 2], **PADS}),
        ("clip", "Clip", ["a", "zero", "six"], ["b"], {}),
        ("first", "Conv", ["b", "first.w", "first.b"], ["c"], {}),
        ("second", "Conv", ["c", "second.w"], ["d"], {}),
        ("clip2", "Clip", ["d", "zero", "six"], ["e"], {}),
        ("third", "Conv", ["e", "third.w", "third.b"], ["f"], {}),
        ("sum", "Add", ["f", "c"], ["g"], {}),
        ("fourth", "Conv", ["g", "second.w"], ["h"], {}),
        ("clip3", "Clip", ["h", "zero", "six"], ["h6"], {}),
        ("up", "Resize", ["h6", "", "factors"], ["i"], {"mode": "nearest"}),
        ("depth", "Conv", ["i", "depth.w"], ["j"], {"group": 8, **PADS}),
        ("point", "Conv", ["j", "point.w"], ["k"], {}),
        ("clip4", "Clip", ["k", "zero", "six"], ["l"], {}),
        (FINAL, "Conv", ["l", "final.w"], ["out"], {}),
    ]
    typed = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    return nodes, typed, {"images": ("uint8", [batch, 3, 32, 32])}, {"out": ("float32", [batch, 4, 32, 32])}


@pytest.fixture
def graph(bench, tmp_path: Path) -> Graph:
    return write(bench, tmp_path, residual_network(np.random.default_rng(0)))


def write(bench, folder: Path, network) -> Graph:
    model = bench.make_model(*network)
    return save_graph(
        model, folder / "net.onnx", spec=SPEC, stage="optimized", precision="fp32", rewrites={}, parents={}
    )


@pytest.fixture
def images(tiny_voc: Path) -> CalibrationImages:
    return load_calibration_images(read_dataset(tiny_voc).all_samples(), SPEC, 12, 0)


def outputs(model: onnx.ModelProto, images: CalibrationImages) -> np.ndarray:
    return np.concatenate([values["out"] for values in fetch_tensors(model, images, ["out"])])


def error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.square(found - expected).mean() / np.square(expected - expected.mean()).mean())


def test_streams_are_the_residuals_and_the_separable_pair(graph: Graph):
    streams = find_streams(ir.load(str(graph.path)))
    found = {stream.tensors: ([n.name for n in stream.makers], [n.name for n in stream.takers]) for stream in streams}
    assert found == {("c", "f", "g"): (["first", "third"], ["fourth", "second"]), ("j",): (["depth"], ["point"])}


def test_equalized_channels_compute_the_same_with_ranges_that_are_alike(graph: Graph, images: CalibrationImages):
    source = onnx.load(str(graph.path))
    model = ir.from_proto(source)
    assert equalize_channels(model, images) == 4
    changed = ir.to_proto(model)
    expected = outputs(source, images)
    np.testing.assert_allclose(outputs(changed, images), expected, atol=1e-5 * np.abs(expected).max())

    def spread(proto: onnx.ModelProto, tensor: str) -> float:
        largest = np.max(
            [np.abs(v[tensor]).max(axis=(0, 2, 3)) for v in fetch_tensors(proto, images, [tensor])], axis=0
        )
        return float(largest.max() / largest.min())

    for tensor in ("g", "j"):
        assert spread(changed, tensor) < 0.7 * spread(source, tensor)


def test_balancing_gives_both_sides_the_same_share():
    weight = np.array([[1.0, 0.1, 0.5]], np.float32).reshape(1, 3, 1, 1)
    largest = np.array([1.0, 10.0, 0.0])
    factors = balancing_factors(largest, [weight])
    assert factors[2] == 1 and factors[0] * factors[1] == pytest.approx(1)
    after = largest[:2] / factors[:2], weight.ravel()[:2] * factors[:2]
    assert after[0][0] / after[0][1] == pytest.approx(after[1][0] / after[1][1])


@pytest.mark.parametrize(
    ("options", "limit"),
    [
        (Int8Options(method="max", equalize=False, rounding="nearest", quantize_sums=False), 0.03),
        (Int8Options(), 0.02),
        (Int8Options(method="mse", correct_bias=True), 0.02),
    ],
)
def test_int8_is_close_and_stands_where_it_should(graph, images, options: Int8Options, limit: float, bench):
    recipe = make_recipe(graph, images, options)
    model = ir.to_proto(apply_recipe(recipe, list(recipe.weights)))
    onnx.checker.check_model(model, full_check=True)
    expected = outputs(onnx.load(str(graph.path)), images)
    assert 0 < error(outputs(model, images), expected) < limit
    assert prove_precision(ir.from_proto(onnx.shape_inference.infer_shapes(model))).fraction("int8") == 1
    makers = {output: node for node in model.graph.node for output in node.output}
    quantized = [node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    # Each tensor has one pair: g goes to one convolution, c to a convolution and a sum, and i is h6 behind the Resize.
    assert sorted(quantized) == ["b", "c", "centered", "e", "g", "i", "j"]
    total = next(node for node in model.graph.node if node.name == "sum")
    assert ("c_dequantized" in total.input) == options.quantize_sums
    final = next(node for node in model.graph.node if node.name == FINAL)
    assert not set(final.input) & {name for name, node in makers.items() if node.op_type == "DequantizeLinear"}
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert set(kinds) == {value for node in model.graph.node for value in node.input if value in kinds}
    assert all(kinds[node.input[1]] == onnx.TensorProto.FLOAT for node in model.graph.node if "antize" in node.op_type)


def test_the_rest_can_be_fp16(graph, images):
    recipe = make_recipe(graph, images, Int8Options())
    model = apply_recipe(recipe, list(recipe.weights))
    full = outputs(ir.to_proto(model), images)
    convert_to_half(model)
    half = ir.to_proto(model)
    onnx.shape_inference.infer_shapes(half, check_type=True, strict_mode=True)
    onnx.checker.check_model(half, full_check=True)
    assert error(outputs(half, images), full) < 1e-3


def test_a_part_of_it_is_int8_where_only_a_part_is_wanted(graph, images):
    recipe = make_recipe(graph, images, Int8Options(rounding="nearest"))
    proof = prove_precision(apply_recipe(recipe, ["fourth"]))
    assert set(proof.kept_high) == {"stem", "first", "second", "third", "depth", "point"}
    assert apply_recipe(recipe, []).graph[0].op_type == "Cast"


def test_pixels_are_exact_codes(graph, images):
    source = onnx.load(str(graph.path))
    model = ir.from_proto(source)
    assert center_on_codes(model) == {"centered": 127.0}
    changed = ir.to_proto(model)
    values = np.concatenate([v["centered"] for v in fetch_tensors(changed, images, ["centered"])])
    assert (values == np.rint(values)).all() and values.min() >= -128 and values.max() <= 127
    before, after = (np.concatenate([v["a"] for v in fetch_tensors(m, images, ["a"])]) for m in (source, changed))
    np.testing.assert_allclose(after[:, :, 1:, 1:], before[:, :, 1:, 1:], atol=1e-4)
    # The padding stood for the mean colour and stands for 128 now, which changes the outermost row and column.
    assert np.abs(after - before).max() > 1e-3


def test_an_input_that_is_no_pixels_is_left(bench):
    model = bench.make_model(
        [("conv", "Conv", ["x", "w"], ["y"], {})],
        {"w": np.ones((1, 1, 1, 1), np.float32)},
        {"x": ("float32", [1, 1, 2, 2])},
        {"y": ("float32", [1, 1, 2, 2])},
    )
    assert center_on_codes(ir.from_proto(model)) == {}


def test_the_same_inputs_give_the_same_bytes(graph, images):
    first, second = (
        ir.to_proto(apply_recipe(recipe, list(recipe.weights))).SerializeToString(deterministic=True)
        for recipe in (make_recipe(graph, images, Int8Options()) for _ in range(2))
    )
    assert first == second


def test_a_table_is_used_again_and_refused_for_others(graph, images, tmp_path):
    options = Int8Options(method="mse")
    recipe = make_recipe(graph, images, options)
    path = tmp_path / "table.json"
    save_table(recipe.table, path)
    identity = table_identity(graph, images, "mse", equalized=True)
    known = load_table(path, identity)
    assert known == recipe.table
    assert make_recipe(graph, images, options, known).scales == recipe.scales
    for change, said in (
        ({"graph_sha256": "0" * 64}, "another graph"),
        ({"manifest_sha256": "0" * 64}, "other images"),
        ({"method": "max"}, "another method"),
        ({"equalized": False}, "channels that were equalized otherwise"),
    ):
        with pytest.raises(InputError, match=said):
            load_table(path, {**identity, **change})
    path.write_text("{")
    with pytest.raises(InputError, match="is no calibration table"):
        load_table(path, identity)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
@pytest.mark.parametrize("part", ["ranges", "largest"])
def test_a_range_that_is_none_is_refused_by_its_tensors_name(graph, images, tmp_path, part, value):
    recipe = make_recipe(graph, images, Int8Options(method="max"))
    tensor = next(iter(recipe.table.ranges))
    broken = replace(recipe.table, **{part: {**getattr(recipe.table, part), tensor: value}})
    save_table(broken, tmp_path / "table.json")
    with pytest.raises(InputError, match=rf"is no calibration table .*the range of {re.escape(tensor)} is"):
        load_table(tmp_path / "table.json", recipe.table.identity)


def test_a_table_that_was_edited_is_refused_and_one_without_a_hash_is_read(graph, images, tmp_path):
    recipe = make_recipe(graph, images, Int8Options(method="max"))
    path = tmp_path / "table.json"
    save_table(recipe.table, path)
    raw = json.loads(path.read_text())
    tensor = next(iter(raw["ranges"]))
    raw["ranges"][tensor] *= 2
    path.write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"is no calibration table .*it was changed"):
        load_table(path, recipe.table.identity)
    del raw["sha256"]
    path.write_text(json.dumps(raw))
    assert load_table(path, recipe.table.identity).ranges[tensor] == 2 * recipe.table.ranges[tensor]


def test_a_table_that_lacks_a_tensor_is_refused_by_its_name(graph, images):
    recipe = make_recipe(graph, images, Int8Options(method="max"))
    tensor, *_ = recipe.inputs.values()
    ranges = {name: value for name, value in recipe.table.ranges.items() if name != tensor}
    with pytest.raises(InputError, match=rf"has no range for {re.escape(tensor)};"):
        make_recipe(graph, images, Int8Options(method="max"), replace(recipe.table, ranges=ranges))


def test_a_tensor_that_is_not_finite_or_constant_is_named(bench, tmp_path, images):
    nodes, arrays, taken, given = residual_network(np.random.default_rng(0))
    broken = {**arrays, "second.w": np.full_like(arrays["second.w"], np.nan)}
    with pytest.raises(GraphError, match="is not finite on a calibration image"):
        make_recipe(write(bench, tmp_path, (nodes, broken, taken, given)), images, Int8Options(equalize=False))
    dead = {
        **arrays,
        "third.w": np.zeros_like(arrays["third.w"]),
        "first.b": arrays["first.b"],
        "second.w": -np.abs(arrays["second.w"]),
    }
    dead["first.w"], dead["first.b"] = np.zeros_like(arrays["first.w"]), np.ones_like(arrays["first.b"])
    with pytest.raises(GraphError, match="was 1 everywhere over all calibration images"):
        make_recipe(write(bench, tmp_path, (nodes, dead, taken, given)), images, Int8Options(equalize=False))


def test_a_fixed_batch_is_refused(bench, tmp_path, images):
    with pytest.raises(UsageError, match="takes batches of 2"):
        make_recipe(write(bench, tmp_path, residual_network(np.random.default_rng(0), batch=2)), images, Int8Options())


def test_histograms_of_a_part_are_like_those_of_all(graph, images):
    source = onnx.load(str(graph.path))
    extents = measure_extents(source, images, ["b", "i"])
    part, whole = (measure_histograms(source, images, extents, sampled) for sampled in (500, 0))
    for tensor in ("b", "i"):
        shares = [np.cumsum(each[tensor]) / each[tensor].sum() for each in (part, whole)]
        assert part[tensor].sum() < whole[tensor].sum()
        assert np.abs(shares[0] - shares[1]).max() < 0.05
    values = np.arange(10_000)
    sampled = sample_values(values, 100, np.random.default_rng(0))
    assert 95 <= len(sampled) <= 105 and len(np.unique(np.diff(sampled))) == 1


@pytest.mark.parametrize("depthwise", [False, True])
def test_patches_are_what_the_filters_multiply(depthwise):
    rng = np.random.default_rng(4)
    value = rng.normal(size=(4, 6, 7)).astype(np.float32)
    groups = 4 if depthwise else 1
    shape = ConvolutionShape("x", (3, 3), (2, 1), (1, 2), (1, 2, 0, 1), groups)
    weight = rng.normal(size=(4, 4 // groups, 3, 3)).astype(np.float32)
    patches = pick_patches(value, shape, rng)
    found = np.einsum("gpk,gok->gop", patches, weight.reshape(groups, -1, patches.shape[2])).reshape(4, -1)
    import torch

    padded = torch.nn.functional.pad(torch.from_numpy(value)[None], (2, 1, 1, 0))
    expected = torch.nn.functional.conv2d(
        padded, torch.from_numpy(weight), stride=(2, 1), dilation=(1, 2), groups=groups
    )
    np.testing.assert_allclose(found, expected[0].reshape(4, -1).numpy(), atol=1e-5)


def test_inputs_are_means_over_the_images(graph, images):
    source = onnx.load(str(graph.path))
    assert convolution_shapes(source, ["depth"])["depth"].groups == 8
    seen = measure_inputs(source, images, ["first", "depth"], {"b": 0.01, "i": 0.01})
    exact = np.mean([v["b"].mean(axis=(0, 2, 3)) for v in fetch_tensors(source, images, ["b"])], axis=0)
    assert np.abs(seen["first"].mean[0] - exact).max() < 0.15
    assert seen["first"].gram.shape == (1, 8, 8) and seen["depth"].gram.shape == (8, 9, 9)
