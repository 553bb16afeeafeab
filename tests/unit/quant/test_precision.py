"""FP16 by casts: where the casts stand, what stays FP32, and that the numbers are close."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edge_effdet.errors import GraphError
from edge_effdet.quant.precision import convert_to_half

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
LARGEST = np.finfo(np.float32).max
# The error of two convolutions of some tens of products each, where every node rounds to FP16's 11 bits.
RELATIVE_ERROR = 5e-3


def weights(seed=0, out_channels=8, channels=3, kernel=3):
    return np.random.default_rng(seed).normal(0, 0.3, (out_channels, channels, kernel, kernel)).astype(np.float32)


@pytest.fixture
def detector_like(bench):
    """Normalisation, conv, clips, resize, sum, conv, and a TopK with arithmetic behind it."""
    nodes = [
        ("to_float", "Cast", ["images"], ["pixels"], {"to": FULL}),
        ("normalise", "Mul", ["pixels", "pixel_scale"], ["x"], {}),
        ("conv", "Conv", ["x", "w", "b"], ["c"], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("clip", "Clip", ["c", "zero", "six"], ["r"], {}),
        ("open_clip", "Clip", ["r", "zero", "unbounded"], ["o"], {}),
        ("small", "MaxPool", ["o"], ["p"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("resize", "Resize", ["p", "", "scales"], ["u"], {"mode": "nearest"}),
        ("sum", "Add", ["o", "u"], ["s"], {}),
        ("predict", "Conv", ["s", "w2"], ["logits"], {}),
        ("flat", "Reshape", ["logits", "shape"], ["flattened"], {}),
        ("top", "TopK", ["flattened", "k"], ["values", "indices"], {}),
        ("score", "Sigmoid", ["values"], ["scores"], {}),
    ]
    arrays = {
        "pixel_scale": np.float32(1 / 128),
        "w": weights(),
        "b": np.linspace(-1, 1, 8, dtype=np.float32),
        "zero": np.float32(0),
        "six": np.float32(6),
        "unbounded": np.float32(LARGEST),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "w2": weights(1, 4, 8, 1),
        "shape": np.array([1, -1]),
        "k": np.array([5]),
    }
    return bench.make_model(
        nodes,
        arrays,
        {"images": ("uint8", [1, 3, 16, 16])},
        {"logits": ("float32", [1, 4, 8, 8]), "scores": ("float32", [1, 5]), "indices": ("int64", [1, 5])},
    )


def test_inputs_and_outputs_keep_their_types_and_the_numbers_are_close(bench, detector_like):
    count, converted = bench.edit(detector_like, convert_to_half)
    assert count == 8, "conv, two clips, pool, resize, sum, predict, reshape"
    for before, after in ((detector_like.graph.input, converted.graph.input), (detector_like.graph.output, converted.graph.output)):  # fmt: skip
        assert [value.SerializeToString() for value in before] == [value.SerializeToString() for value in after]
    pixels = np.random.default_rng(2).integers(0, 256, (1, 3, 16, 16), dtype=np.uint8)
    expected, given = bench.run(detector_like, {"images": pixels}), bench.run(converted, {"images": pixels})
    for before, after in zip(expected[:2], given[:2], strict=True):
        assert after.dtype == np.float32
        assert np.abs(after - before).max() <= RELATIVE_ERROR * np.abs(before).max()
        assert not np.array_equal(after, before), "nothing ran in FP16"


def test_what_runs_in_fp16_and_what_does_not(bench, detector_like):
    _, converted = bench.edit(detector_like, convert_to_half)
    types = bench.types(converted)
    by_name = {node.name: node for node in converted.graph.node}
    half = {name for name, node in by_name.items() if types[node.output[0]] == HALF and node.op_type != "Cast"}
    assert half == {"conv", "clip", "open_clip", "small", "resize", "sum", "predict", "flat"}
    assert types[by_name["normalise"].output[0]] == FULL
    assert types[by_name["top"].input[0]] == types["scores"] == FULL
    assert types[by_name["resize"].input[2]] == FULL
    assert types[by_name["conv"].input[1]] == types[by_name["conv"].input[2]] == HALF
    assert "w" not in types, "the FP32 weight is still in the file"


def test_what_stands_between_two_topks_runs_in_fp16_and_every_topk_in_fp32(bench):
    nodes = [
        ("predict", "Conv", ["images", "w"], ["logits"], {}),
        ("anchors_last", "Reshape", ["logits", "anchors_by_classes"], ["pairs"], {}),
        ("best_class", "ReduceMax", ["pairs", "axis"], ["best"], {"keepdims": 0}),
        ("anchors", "TopK", ["best", "k"], ["unused", "chosen"], {}),
        ("as_rows", "Unsqueeze", ["chosen", "axis"], ["row_indices"], {}),
        ("rows", "GatherND", ["pairs", "row_indices"], ["chosen_pairs"], {"batch_dims": 1}),
        ("flat", "Reshape", ["chosen_pairs", "flat_shape"], ["flattened"], {}),
        ("top", "TopK", ["flattened", "k"], ["values", "indices"], {}),
        ("score", "Sigmoid", ["values"], ["scores"], {}),
    ]
    arrays = {
        "w": weights(1, 4, 3, 1),
        "anchors_by_classes": np.array([1, 64, 4]),
        "axis": np.array([2]),
        "k": np.array([5]),
        "flat_shape": np.array([1, -1]),
    }
    inputs, outputs = (
        {"images": ("float32", [1, 3, 8, 8])},
        {"scores": ("float32", [1, 5]), "indices": ("int64", [1, 5])},
    )
    model = bench.make_model(nodes, arrays, inputs, outputs)
    _, converted = bench.edit(model, convert_to_half)
    types = bench.types(converted)
    by_name = {node.name: node for node in converted.graph.node}
    half = {name for name, node in by_name.items() if types.get(node.output[0]) == HALF and node.op_type != "Cast"}
    assert half == {"predict", "anchors_last", "best_class", "rows", "flat"}
    assert types[by_name["anchors"].input[0]] == types[by_name["top"].input[0]] == types["scores"] == FULL
    feeds = {"images": np.random.default_rng(2).normal(size=(1, 3, 8, 8)).astype(np.float32)}
    expected, given = bench.run(model, feeds)[0], bench.run(converted, feeds)[0]
    assert np.abs(given - expected).max() <= RELATIVE_ERROR


def test_no_tensor_is_cast_twice(bench, detector_like):
    _, converted = bench.edit(detector_like, convert_to_half)
    casts = [(node.input[0], node.attribute[0].i) for node in converted.graph.node if node.op_type == "Cast"]
    assert len(casts) == len(set(casts))
    # One cast is that of the pixels, one leads into FP16, one stands before TopK, and one makes the output.
    assert len(casts) == 4


def test_the_same_graph_gives_the_same_bytes(bench, detector_like):
    first, second = (bench.edit(detector_like, convert_to_half)[1].SerializeToString(deterministic=True) for _ in "ab")
    assert first == second


def test_a_constant_that_two_nodes_share_is_converted_once(bench, detector_like):
    _, converted = bench.edit(detector_like, convert_to_half)
    names = [tensor.name for tensor in converted.graph.initializer]
    assert names.count("zero_fp16") == 1
    assert "zero" not in names


def test_an_open_upper_bound_becomes_fp16s_largest_number(bench, detector_like):
    _, converted = bench.edit(detector_like, convert_to_half)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in converted.graph.initializer}
    assert arrays["unbounded_fp16"] == np.finfo(np.float16).max
    assert all(np.isfinite(array).all() for array in arrays.values())


def test_a_dynamic_batch_stays_dynamic(bench):
    model = bench.make_model(
        [("conv", "Conv", ["x", "w"], ["out"], {})],
        {"w": weights()},
        {"x": ("float32", ["batch", 3, 8, 8])},
        {"out": ("float32", ["batch", 8, 6, 6])},
    )
    _, converted = bench.edit(model, convert_to_half)
    for batch in (1, 3):
        feeds = {"x": np.random.default_rng(batch).normal(0, 1, (batch, 3, 8, 8)).astype(np.float32)}
        before, after = bench.run(model, feeds)[0], bench.run(converted, feeds)[0]
        assert np.abs(after - before).max() <= RELATIVE_ERROR * np.abs(before).max()
    assert bench.kinds(converted) == {"Cast": 2, "Conv": 1}


@pytest.mark.parametrize("value", [65520.0, -1e6, 3e38])
def test_a_weight_beyond_fp16_is_refused_by_its_name(bench, value):
    wrong = weights()
    wrong[3, 1, 0, 2] = value
    model = bench.make_model(
        [("conv", "Conv", ["x", "head.weight"], ["out"], {})],
        {"head.weight": wrong},
        {"x": ("float32", [1, 3, 8, 8])},
        {"out": ("float32", [1, 8, 6, 6])},
    )
    with pytest.raises(GraphError, match=r"head\.weight holds .* beyond FP16's 65504"):
        bench.edit(model, convert_to_half)


def mixed_model(bench):
    """A Q/DQ convolution with its activation and the Q/DQ behind it, then one without; SiLU between."""
    nodes, arrays = bench.quantized_input("a", "x")
    more_nodes, more_arrays = bench.quantized_weight("w", weights())
    after_nodes, after_arrays = bench.quantized_input("t", "r")
    return bench.make_model(
        [
            *nodes,
            *more_nodes,
            ("int8_conv", "Conv", ["a_dq", "w_dq", "bias"], ["c"], {}),
            ("sigmoid", "Sigmoid", ["c"], ["g"], {}),
            ("silu", "Mul", ["c", "g"], ["r"], {}),
            *after_nodes,
            ("half_conv", "Conv", ["t_dq", "w2"], ["h"], {}),
            ("relu", "Relu", ["h"], ["out"], {}),
        ],
        arrays | more_arrays | after_arrays | {"bias": np.ones(8, np.float32), "w2": weights(1, 4, 8, 1)},
        {"x": ("float32", [1, 3, 8, 8])},
        {"out": ("float32", [1, 4, 6, 6])},
    )


def test_the_quantized_part_stays_fp32(bench):
    model = mixed_model(bench)
    count, converted = bench.edit(model, convert_to_half)
    assert count == 2
    types = bench.types(converted)
    for node in converted.graph.node:
        kind = types[node.output[0]]
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert types[node.input[1]] == FULL, "a scale is no longer FP32"
        elif node.name in ("int8_conv", "sigmoid", "silu"):
            assert kind == FULL
        elif node.name in ("half_conv", "relu"):
            assert kind == HALF
    producers = {output: node for node in converted.graph.node for output in node.output}
    conv = next(node for node in converted.graph.node if node.name == "int8_conv")
    assert [producers[name].op_type for name in conv.input[:2]] == ["DequantizeLinear"] * 2
    quantize = next(node for node in converted.graph.node if node.name == "t_q")
    assert producers[quantize.input[0]].name == "silu", "no cast may stand between the activation and its Q"
    feeds = {"x": np.random.default_rng(3).normal(0, 1, (1, 3, 8, 8)).astype(np.float32)}
    before, after = bench.run(model, feeds)[0], bench.run(converted, feeds)[0]
    assert np.abs(after - before).max() <= RELATIVE_ERROR * np.abs(before).max()


def test_a_convolution_with_one_quantized_input_is_no_int8(bench):
    nodes, arrays = bench.quantized_input("a", "x")
    model = bench.make_model(
        [*nodes, ("conv", "Conv", ["a_dq", "w"], ["out"], {})],
        arrays | {"w": weights()},
        {"x": ("float32", [1, 3, 8, 8])},
        {"out": ("float32", [1, 8, 6, 6])},
    )
    count, converted = bench.edit(model, convert_to_half)
    assert count == 1
    assert bench.types(converted)[next(node for node in converted.graph.node if node.name == "conv").output[0]] == HALF


def test_a_graph_without_convolutions_stays_as_it_is(bench):
    model = bench.make_model(
        [("relu", "Relu", ["x"], ["out"], {})], {}, {"x": ("float32", [1, 3])}, {"out": ("float32", [1, 3])}
    )
    count, converted = bench.edit(model, convert_to_half)
    assert count == 0
    assert bench.kinds(converted) == {"Relu": 1}
