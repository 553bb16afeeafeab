"""A batch norm is folded into the convolution before it: the numbers, shared convolutions, and where it must not happen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.graph.rules.fold_batchnorm import FoldBatchNorm


def statistics(rng, channels, prefix=""):
    """Statistics far from the identity that a model starts with: negative scales, means, variances over two decades."""
    return {
        f"{prefix}scale": (rng.normal(0, 1.5, channels)).astype(np.float32),
        f"{prefix}shift": rng.normal(0, 2, channels).astype(np.float32),
        f"{prefix}mean": rng.normal(0, 2, channels).astype(np.float32),
        f"{prefix}variance": np.exp(rng.uniform(-3, 2, channels)).astype(np.float32),
    }


def batchnorm(source, target, prefix="", **attributes):
    names = [f"{prefix}{name}" for name in ("scale", "shift", "mean", "variance")]
    return ("BatchNormalization", [source, *names], [target], attributes)


def conv_model(bench, seed=0, channels=4, out_channels=6, groups=1, bias=True, batch=1, epsilon=1e-3, **conv):
    rng = np.random.default_rng(seed)
    weights = {"head.conv.weight": rng.normal(0, 1, (out_channels, channels // groups, 3, 3)).astype(np.float32)}
    if bias:
        weights["head.conv.bias"] = rng.normal(0, 1, out_channels).astype(np.float32)
    nodes = [
        ("Conv", ["x", *weights], ["y"], {"group": groups, "pads": [1, 1, 1, 1], **conv}),
        batchnorm("y", "out", epsilon=epsilon),
    ]
    stride = conv.get("strides", [1, 1])
    size = [-(-side // step) for side, step in zip((8, 10), stride, strict=True)]
    return bench.make_model(
        nodes,
        weights | statistics(rng, out_channels),
        {"x": [batch, channels, 8, 10]},
        {"out": [batch, out_channels, *size]},
    )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"groups": 2}, {"channels": 6, "groups": 6}, {"strides": [2, 2]}, {"epsilon": 0.5}]
)
def test_one_fold(bench, bias, options):
    report = bench.apply(FoldBatchNorm(), conv_model(bench, bias=bias, **options))
    assert (report.fired, report.refused) == (1, ())
    assert bench.kinds() == {"Conv": 1}
    assert all(array.dtype == np.float32 for array in bench.initializers().values())


@given(
    seed=st.integers(0, 2**32 - 1),
    groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(),
    epsilon=st.sampled_from([1e-5, 1e-3, 0.1]),
)
@settings(max_examples=25, deadline=None)
def test_any_statistics_fold(shared_bench, seed, groups, bias, epsilon):
    model = conv_model(shared_bench, seed, groups=groups, out_channels=8, bias=bias, epsilon=epsilon)
    assert shared_bench.apply(FoldBatchNorm(), model, seed=seed).fired == 1


def test_the_folded_weights_by_hand(bench):
    model = bench.make_model(
        [("Conv", ["x", "w", "b"], ["y"], {}), batchnorm("y", "out", epsilon=0.0)],
        {
            "w": np.array([3, 5], np.float32).reshape(2, 1, 1, 1),
            "b": np.array([1, 2], np.float32),
            "scale": np.array([2, -1], np.float32),
            "shift": np.array([10, 20], np.float32),
            "mean": np.array([4, 6], np.float32),
            "variance": np.array([4, 0.25], np.float32),
        },
        {"x": [1, 1, 2, 2]},
        {"out": [1, 2, 2, 2]},
    )
    bench.apply(FoldBatchNorm(), model)
    weight, bias = (bench.initializers()[name] for name in bench.after.graph.node[0].input[1:])
    np.testing.assert_array_equal(weight.ravel(), [3, -10])
    np.testing.assert_array_equal(bias, [10 + (1 - 4), 20 - 2 * (2 - 6)])


def test_a_dynamic_batch_stays_dynamic(bench):
    model = conv_model(bench, batch="batch")
    for batch in (1, 3):
        assert bench.apply(FoldBatchNorm(), model, batch=batch).fired == 1
    for value in (*bench.after.graph.input, *bench.after.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def level_model(bench, raw_consumer):
    """One convolution over three levels with a batch norm for each level, as in effdet's heads."""
    rng = np.random.default_rng(3)
    weights = {
        "head.conv.weight": rng.normal(0, 1, (4, 4, 1, 1)).astype(np.float32),
        "head.conv.bias": rng.normal(0, 1, 4).astype(np.float32),
    }
    nodes, inputs, outputs = [], {}, {}
    shared = list(weights)
    for level in range(3):
        weights |= statistics(rng, 4, f"{level}.")
        nodes += [
            ("Conv", [f"p{level}", *shared], [f"y{level}"], {}),
            batchnorm(f"y{level}", f"out{level}", f"{level}."),
        ]
        inputs[f"p{level}"] = outputs[f"out{level}"] = [1, 4, 8 >> level, 8 >> level]
    if raw_consumer:
        nodes.append(("Conv", ["p0", *shared], ["raw"], {}))
        outputs["raw"] = [1, 4, 8, 8]
    return bench.make_model(nodes, weights, inputs, outputs)


@pytest.mark.parametrize("raw_consumer", [False, True])
def test_a_convolution_shared_by_levels_gets_a_copy_a_level(bench, raw_consumer):
    report = bench.apply(FoldBatchNorm(), level_model(bench, raw_consumer))
    assert (report.fired, report.refused) == (3, ())
    assert bench.kinds() == {"Conv": 3 + raw_consumer}
    used = [node.input[1] for node in bench.after.graph.node]
    assert len(set(used)) == 3 + raw_consumer
    assert all(name.startswith("head.conv.weight") for name in used)
    assert ("head.conv.weight" in used) == raw_consumer, "the original stays for whoever else uses it, and only then"
    assert len(bench.initializers()) == 2 * (3 + raw_consumer)


def refused(bench, model):
    report = bench.apply(FoldBatchNorm(), model)
    assert report.fired == 0
    assert "BatchNormalization" in bench.kinds()
    assert len(report.refused) == 1
    assert report.refused[0][0].startswith("BatchNormalization")
    return report.refused[0][1]


def test_a_convolution_with_another_consumer_is_left(bench):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 1, (4, 3, 1, 1)).astype(np.float32)} | statistics(rng, 4)
    nodes = [("Conv", ["x", "w"], ["y"], {}), batchnorm("y", "z"), ("Add", ["y", "z"], ["out"], {})]
    model = bench.make_model(nodes, weights, {"x": [1, 3, 4, 4]}, {"out": [1, 4, 4, 4]})
    assert refused(bench, model) == "the Conv before it has another consumer, which must not see the scale"


def test_a_convolution_that_is_an_output_too_is_left(bench):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 1, (4, 3, 1, 1)).astype(np.float32)} | statistics(rng, 4)
    nodes = [("Conv", ["x", "w"], ["y"], {}), batchnorm("y", "out")]
    model = bench.make_model(nodes, weights, {"x": [1, 3, 4, 4]}, {"out": [1, 4, 4, 4], "y": [1, 4, 4, 4]})
    assert "another consumer" in refused(bench, model)


def test_a_batch_norm_without_a_convolution_is_left(bench):
    rng = np.random.default_rng(0)
    nodes = [("Relu", ["x"], ["y"], {}), batchnorm("y", "out")]
    model = bench.make_model(nodes, statistics(rng, 4), {"x": [1, 4, 4, 4]}, {"out": [1, 4, 4, 4]})
    assert refused(bench, model) == "its input does not come from a Conv"


@pytest.mark.parametrize("given", ["w", "b"])
def test_weights_that_are_computed_are_left(bench, given):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 1, (4, 3, 1, 1)), "b": rng.normal(0, 1, 4)}
    shape = list(weights.pop(given).shape)
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    nodes = [("Conv", ["x", "w", "b"], ["y"], {}), batchnorm("y", "out")]
    inputs = {"x": [1, 3, 4, 4], given: shape}
    model = bench.make_model(nodes, weights | statistics(rng, 4), inputs, {"out": [1, 4, 4, 4]})
    assert refused(bench, model) == "the weights of the Conv before it are not constants"


def test_statistics_that_are_computed_are_left(bench):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 1, (4, 3, 1, 1)).astype(np.float32)} | statistics(rng, 4)
    del weights["shift"]
    nodes = [("Conv", ["x", "w"], ["y"], {}), batchnorm("y", "out")]
    model = bench.make_model(nodes, weights, {"x": [1, 3, 4, 4], "shift": [4]}, {"out": [1, 4, 4, 4]})
    assert refused(bench, model) == "its statistics are not constants"


def test_a_batch_norm_in_training_mode_is_left(bench):
    """A batch norm in training mode uses the batch's own statistics, which no weights can hold. onnxruntime's CPU does not run it."""
    import onnx_ir as ir

    from edge_effdet.graph.rule import apply_rule

    model = conv_model(bench)
    model.graph.node[1].attribute.add(name="training_mode", type=2, i=1)
    report = apply_rule(ir.from_proto(model), FoldBatchNorm())
    assert report.fired == 0
    assert "training" in report.refused[0][1]


def test_a_graph_without_batch_norm_is_left_silently(bench):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(0, 1, (4, 3, 1, 1)).astype(np.float32)}
    model = bench.make_model([("Conv", ["x", "w"], ["out"], {})], weights, {"x": [1, 3, 4, 4]}, {"out": [1, 4, 4, 4]})
    report = bench.apply(FoldBatchNorm(), model)
    assert (report.fired, report.refused) == (0, ())
