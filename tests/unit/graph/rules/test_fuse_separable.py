"""Depthwise and pointwise convolutions become one: the numbers, the MACs that are noted, and where it must not happen."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.graph.cost import Decision, SeparablePair
from edge_effdet.graph.counting import MACS_BEFORE_FUSION
from edge_effdet.graph.optimize import name_convolutions
from edge_effdet.graph.rule import apply_rule
from edge_effdet.graph.rules.fuse_separable import FuseSeparable

SIDES = (9, 11)


def pair_model(
    bench, seed=0, channels=4, channels_out=6, kernel=(3, 3), biases=(True, True), batch=1, multiplier=1,
    pointwise=None, pointwise_kernel=(1, 1), between=None, also=None, computed=(), **depthwise,
):  # fmt: skip
    """``z = P(D(x))``: ``between`` is an operator in the middle, ``also`` another one that takes y; ``computed`` weights are inputs."""
    rng = np.random.default_rng(seed)
    depthwise = {"group": channels, "pads": [1, 1, 1, 1], "strides": [1, 1], "dilations": [1, 1], **depthwise}
    pointwise = {"strides": [1, 1], "pads": [0, 0, 0, 0], "group": 1, **(pointwise or {})}
    middle = channels * multiplier
    arrays = {
        "network.fpn.conv_dw.weight": rng.normal(0, 1, (middle, channels // depthwise["group"], *kernel)),
        "network.fpn.conv_dw.bias": rng.normal(0, 3, middle),
        "network.fpn.conv_pw.weight": rng.normal(0, 1, (channels_out, middle // pointwise["group"], *pointwise_kernel)),
        "network.fpn.conv_pw.bias": rng.normal(0, 3, channels_out),
    }
    names = list(arrays)
    taken = [names[:2] if biases[0] else names[:1], names[2:] if biases[1] else names[2:3]]
    inputs = {"x": [batch, channels, *SIDES]} | {name: list(arrays.pop(name).shape) for name in computed}
    used = {name for group in taken for name in group}
    arrays = {name: array.astype(np.float32) for name, array in arrays.items() if name in used}
    size = convolved(SIDES, kernel, depthwise)
    nodes = [("Conv", ["x", *taken[0]], ["y"], depthwise)]
    if between:
        nodes.append((between, ["y"], ["a"], {}))
    nodes.append(("Conv", ["a" if between else "y", *taken[1]], ["z"], pointwise))
    outputs = {"z": [batch, channels_out, *convolved(size, pointwise_kernel, pointwise)]}
    if also == "output":
        outputs["y"] = [batch, middle, *size]
    elif also:
        nodes.append((also, ["y"], ["other"], {}))
        outputs["other"] = [batch, middle, *size]
    return bench.make_model(nodes, arrays, inputs, outputs)


def convolved(size, kernel, attributes):
    if "auto_pad" in attributes:
        return [-(-side // step) for side, step in zip(size, attributes["strides"], strict=True)]
    pads, steps = attributes["pads"], attributes["strides"]
    spans = [step * (side - 1) + 1 for step, side in zip(attributes.get("dilations", (1, 1)), kernel, strict=True)]
    return [(size[axis] + pads[axis] + pads[axis + 2] - spans[axis]) // steps[axis] + 1 for axis in (0, 1)]


def metadata(model):
    return [{entry.key: entry.value for entry in node.metadata_props} for node in model.graph.node]


@given(
    seed=st.integers(0, 2**32 - 1),
    channels=st.integers(2, 9),
    channels_out=st.integers(1, 9),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    biases=st.tuples(st.booleans(), st.booleans()),
    batch=st.sampled_from([1, 3, "batch"]),
)
@settings(max_examples=60, deadline=None)
def test_any_pair_becomes_one(
    shared_bench, seed, channels, channels_out, kernel, strides, dilations, pads, biases, batch
):
    model = pair_model(
        shared_bench, seed, channels, channels_out, kernel, biases, batch, strides=strides, dilations=dilations, pads=pads
    )  # fmt: skip
    report = shared_bench.apply(FuseSeparable(), model, batch=2 if batch == "batch" else 1, seed=seed)
    assert (report.fired, report.refused) == (1, ())
    assert shared_bench.kinds() == {"Conv": 1}
    (node,) = shared_bench.after.graph.node
    assert len(node.input) == 2 + any(biases)
    positions = np.prod(convolved(SIDES, kernel, {"pads": pads, "strides": strides, "dilations": dilations}))
    macs = positions * channels * (np.prod(kernel) + channels_out)
    assert metadata(shared_bench.after) == [{MACS_BEFORE_FUSION: str(macs)}]


def test_the_dense_weights_by_hand(bench):
    arrays = {
        "d": np.array([[[[1, 2]]], [[[3, 4]]]], np.float32),
        "db": np.array([10, 20], np.float32),
        "p": np.array([5, 7, -1, 0.5], np.float32).reshape(2, 2, 1, 1),
        "pb": np.array([100, 200], np.float32),
    }
    nodes = [
        ("Conv", ["x", "d", "db"], ["y"], {"group": 2, "pads": [0, 1, 0, 0]}),
        ("Conv", ["y", "p", "pb"], ["z"], {}),
    ]
    bench.apply(FuseSeparable(), bench.make_model(nodes, arrays, {"x": [1, 2, 3, 4]}, {"z": [1, 2, 3, 4]}))
    (node,) = bench.after.graph.node
    weight, bias = (bench.initializers()[name] for name in node.input[1:])
    np.testing.assert_array_equal(weight, [[[[5, 10]], [[21, 28]]], [[[-1, -2]], [[1.5, 2]]]])
    np.testing.assert_array_equal(bias, [100 + 5 * 10 + 7 * 20, 200 - 10 + 0.5 * 20])
    assert weight.dtype == bias.dtype == np.float32


def test_the_border_is_exact_where_the_input_is_zero_and_the_bias_is_not(bench):
    """Padding behind the depthwise bias would lack the bias at the border. With an input of 0 only the biases are left."""
    model = pair_model(bench, pads=[2, 2, 2, 2])
    bench.apply(FuseSeparable(), model)
    feeds = {"x": np.zeros([1, 4, *SIDES], np.float32)}
    (before,), (after,) = bench.run(model, feeds), bench.run(bench.after, feeds)
    np.testing.assert_allclose(after, before, rtol=1e-5)
    assert np.ptp(after, axis=(2, 3)).max() == 0


def test_half_precision_weights_stay_half(bench):
    model = pair_model(bench)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(
            onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor).astype(np.float16), tensor.name)
        )
    rewritten = ir.from_proto(model)
    assert apply_rule(rewritten, FuseSeparable()).fired == 1
    assert {value.dtype for value in rewritten.graph.initializers.values()} == {ir.DataType.FLOAT16}


def test_the_dense_convolution_has_the_name_of_the_pointwise_module(bench):
    rewritten = ir.from_proto(pair_model(bench))
    apply_rule(rewritten, FuseSeparable())
    name_convolutions(rewritten)
    assert [node.name for node in rewritten.graph] == ["fpn.conv_pw"]


def level_model(bench, shared_pointwise):
    """A pair over three levels as in the heads: D is shared, and P is shared or has a copy for each level."""
    rng = np.random.default_rng(1)
    arrays = {"head.conv_dw.weight": rng.normal(0, 1, (4, 1, 3, 3)).astype(np.float32)}
    nodes, inputs, outputs = [], {}, {}
    for level in range(3):
        suffix = "" if shared_pointwise or level == 0 else f".{level}"
        names = [f"head.conv_pw.weight{suffix}", f"head.conv_pw.bias{suffix}"]
        arrays.setdefault(names[0], rng.normal(0, 1, (5, 4, 1, 1)).astype(np.float32))
        arrays.setdefault(names[1], rng.normal(0, 1, 5).astype(np.float32))
        nodes.append(("Conv", [f"x{level}", "head.conv_dw.weight"], [f"y{level}"], {"group": 4, "pads": [1, 1, 1, 1]}))
        nodes.append(("Conv", [f"y{level}", *names], [f"z{level}"], {}))
        inputs[f"x{level}"], outputs[f"z{level}"] = [1, 4, 8 >> level, 8 >> level], [1, 5, 8 >> level, 8 >> level]
    return bench.make_model(nodes, arrays, inputs, outputs)


@pytest.mark.parametrize("shared_pointwise", [True, False])
def test_levels_share_the_dense_weights_where_they_shared_both(bench, shared_pointwise):
    report = bench.apply(FuseSeparable(), level_model(bench, shared_pointwise))
    assert (report.fired, report.refused) == (3, ())
    assert bench.kinds() == {"Conv": 3}
    assert len({node.input[1] for node in bench.after.graph.node}) == (1 if shared_pointwise else 3)
    assert len(bench.initializers()) == (2 if shared_pointwise else 6)
    assert [int(entry[MACS_BEFORE_FUSION]) for entry in metadata(bench.after)] == [
        (8 >> level) ** 2 * 4 * (9 + 5) for level in range(3)
    ]
    rewritten = ir.from_proto(bench.after)
    name_convolutions(rewritten)
    assert [node.name for node in rewritten.graph] == ["head.conv_pw@0", "head.conv_pw@1", "head.conv_pw@2"]


def test_only_what_is_wanted_is_composed_and_the_rest_is_listed_with_both_times(bench):
    asked = []

    def wanted(pair):
        asked.append(pair)
        return Decision(pair.name, 8.0, 4.0 if pair.height < 8 else 12.0, "model")

    report = bench.apply(FuseSeparable(wanted), level_model(bench, True))
    assert report.fired == 2
    assert asked[0] == SeparablePair("head.conv_pw", 4, 5, (3, 3), (1, 1), 8, 8)
    assert [pair.height for pair in asked] == [8, 4, 2]
    assert bench.kinds() == {"Conv": 4}
    ((node, reason),) = report.refused
    assert node == "Conv_1"
    assert "head.conv_pw" in reason and "8 us" in reason and "12 us" in reason and "model" in reason


def test_a_plain_no_is_listed_too(bench):
    report = bench.apply(FuseSeparable(lambda pair: False), pair_model(bench))
    assert report.fired == 0
    assert "fpn.conv_pw" in report.refused[0][1]


def test_the_pair_that_is_asked_about_has_the_sizes_of_the_output(bench):
    asked = []
    model = pair_model(bench, kernel=(3, 2), strides=[2, 1], dilations=[1, 2], pads=[1, 1, 1, 1])
    bench.apply(FuseSeparable(lambda pair: bool(asked.append(pair)) or True), model)
    assert asked == [SeparablePair("fpn.conv_pw", 4, 6, (3, 2), (2, 1), 5, 11, (1, 2))]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"also": "Relu"}, "another consumer"),
        ({"also": "output"}, "another consumer"),
        ({"pointwise_kernel": (3, 1), "pointwise": {"pads": [1, 0, 1, 0]}}, "kernel is larger than 1 x 1"),
        ({"pointwise": {"group": 2}}, "in groups"),
        ({"pointwise": {"strides": [2, 2]}}, "stride of its own"),
        ({"pointwise": {"pads": [0, 1, 0, 0]}}, "it pads"),
        ({"multiplier": 2}, "several channels of each"),
        ({"computed": ("network.fpn.conv_dw.weight",)}, "weights"),
        ({"computed": ("network.fpn.conv_pw.weight",)}, "weights"),
        ({"computed": ("network.fpn.conv_dw.bias",)}, "bias"),
        ({"computed": ("network.fpn.conv_pw.bias",)}, "bias"),
    ],
)
def test_what_would_be_wrong_is_refused(bench, options, reason):
    report = bench.apply(FuseSeparable(), pair_model(bench, **options))
    assert report.fired == 0
    assert bench.kinds()["Conv"] == 2
    assert [reason in given for _, given in report.refused] == [True]
    assert metadata(bench.after) == [{}] * len(bench.after.graph.node)


@pytest.mark.parametrize("which", [0, 1])
def test_padding_that_the_runtime_chooses_is_refused(bench, which):
    model = pair_model(bench)
    attributes = model.graph.node[which].attribute
    kept = [attribute for attribute in attributes if attribute.name != "pads"]
    del attributes[:]
    attributes.extend([*kept, onnx.helper.make_attribute("auto_pad", "SAME_UPPER")])
    report = bench.apply(FuseSeparable(), model)
    assert report.fired == 0
    assert "auto_pad" in report.refused[0][1]


def test_an_output_of_unknown_size_is_refused(bench):
    model = pair_model(bench)
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        value.type.tensor_type.shape.dim[2].dim_param = "height"
    report = apply_rule(ir.from_proto(model), FuseSeparable())
    assert report.fired == 0
    assert "unknown" in report.refused[0][1]


@pytest.mark.parametrize(
    "options",
    [
        {"between": "Relu"},
        {"between": "Sigmoid"},
        {"group": 2},
        {"group": 1},
        {"channels": 1},
    ],
)
def test_what_is_no_separable_pair_is_left_silently(bench, options):
    """In MBConv an activation stands between the two, and a grouped convolution is not depthwise."""
    report = bench.apply(FuseSeparable(), pair_model(bench, **options))
    assert (report.fired, report.refused) == (0, ())
