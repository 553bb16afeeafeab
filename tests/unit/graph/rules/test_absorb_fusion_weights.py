"""Fusion weights move into the convolutions that make the tensors, but not where another consumer must not see them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.graph.rules.absorb_fusion_weights import AbsorbFusionWeights

RNG = np.random.default_rng(0)


def sums_model(bench, factors, through=(), convolution=False, other=None, bias=True, opset=18):
    """``y = Conv(x)``; one ``Mul(y, c)`` a factor, those in ``through`` behind that operator; each product is an output.

    With ``convolution`` a second Conv takes y, and with ``other`` an operator of that name.
    """
    arrays = {"conv.weight": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)}
    taken = ["x", "conv.weight"]
    if bias:
        arrays["conv.bias"] = RNG.normal(size=4).astype(np.float32)
        taken.append("conv.bias")
    nodes = [("Conv", taken, ["y"], {"pads": [1, 1, 1, 1]})]
    outputs = {}
    for position, factor in enumerate(factors):
        source, size = "y", [8, 8]
        if position < len(through) and through[position] == "MaxPool":
            nodes.append(("MaxPool", ["y"], [f"p{position}"], {"kernel_shape": [2, 2], "strides": [2, 2]}))
            source, size = f"p{position}", [4, 4]
        elif position < len(through) and through[position] in ("nearest", "linear"):
            arrays["scales"] = np.array([1, 1, 2, 2], np.float32)
            nodes.append(("Resize", ["y", "", "scales"], [f"r{position}"], {"mode": through[position]}))
            source, size = f"r{position}", [16, 16]
        arrays[f"c{position}"] = np.float32(factor)
        operands = [source, f"c{position}"]
        nodes.append(("Mul", operands[:: -1 if position % 2 else 1], [f"out{position}"], {}))
        outputs[f"out{position}"] = [1, 4, *size]
    if convolution:
        arrays["next.weight"] = RNG.normal(size=(4, 1, 3, 3)).astype(np.float32)
        arrays["next.bias"] = RNG.normal(size=4).astype(np.float32)
        nodes.append(("Conv", ["y", "next.weight", "next.bias"], ["next"], {"group": 4, "pads": [1, 1, 1, 1]}))
        outputs["next"] = [1, 4, 8, 8]
    if other == "output":
        outputs["y"] = [1, 4, 8, 8]
    elif other is not None:
        nodes.append((other, ["y"], ["other"], {}))
        outputs["other"] = [1, 4, 8, 8]
    return bench.make_model(nodes, arrays, {"x": [1, 3, 8, 8]}, outputs, opset)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("through", [(), ("MaxPool",), ("nearest",)])
def test_the_factor_of_an_only_consumer_goes(bench, through, bias):
    report = bench.apply(AbsorbFusionWeights(), sums_model(bench, [0.37], through, bias=bias))
    assert (report.fired, report.refused) == (1, ())
    assert bench.kinds()["Mul"] == 0


def test_other_consumers_are_rescaled(bench):
    model = sums_model(bench, [0.5, 0.25, -0.125], ("", "MaxPool", "nearest"), convolution=True)
    report = bench.apply(AbsorbFusionWeights(), model)
    assert report.fired == 1
    # The largest factor goes into the convolution, so the factors that are left are at most 1.
    assert bench.kinds()["Mul"] == 2
    left = [array for name, array in bench.initializers().items() if name.startswith("c") and array.size == 1]
    assert sorted(float(array.reshape(())) for array in left) == [-0.25, 0.5]


def test_equal_factors_go_together(bench):
    assert bench.apply(AbsorbFusionWeights(), sums_model(bench, [0.5, 0.5, 0.9])).fired == 1
    assert bench.kinds()["Mul"] == 1


def test_a_frequent_small_factor_does_not_blow_up_the_others(bench):
    assert bench.apply(AbsorbFusionWeights(), sums_model(bench, [0.02, 0.02, 1.5])).fired == 1
    left = [array for name, array in bench.initializers().items() if name.startswith("c") and array.size == 1]
    assert max(float(array.reshape(())) for array in left) < 1


def test_a_weight_that_two_convolutions_share_stays_for_the_other(bench):
    arrays = {"w": RNG.normal(size=(3, 3, 1, 1)).astype(np.float32), "c": np.float32(0.3)}
    nodes = [
        ("Conv", ["x", "w"], ["a"], {}),
        ("Conv", ["x", "w"], ["other"], {}),
        ("Mul", ["a", "c"], ["out"], {}),
    ]
    shape = [1, 3, 4, 4]
    model = bench.make_model(nodes, arrays, {"x": shape}, {"out": shape, "other": shape})
    assert bench.apply(AbsorbFusionWeights(), model).fired == 1
    assert set(bench.initializers()) == {"w", "w.1"}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"other": "Sigmoid"}, "Sigmoid_2 takes its output too"),
        ({"other": "output"}, "the graph's output takes its output too"),
        ({"factors": [-0.5], "through": ("MaxPool",)}, "a pooling's maximum"),
        ({"factors": [1e-4], "convolution": True}, "can be divided by"),
        # A factor that others are divided by must not be so small that these leave FP16's range.
        ({"factors": [0.02, -1.5], "through": ("", "MaxPool")}, "can be divided by"),
        ({"factors": [0.5], "through": ("linear",)}, None),
    ],
)
def test_what_must_stay(bench, changes, reason):
    """A factor below 0 does not commute with a maximum; a consumer that is not scaled back must not see the factor."""
    report = bench.apply(AbsorbFusionWeights(), sums_model(bench, **{"factors": [0.5], **changes}))
    assert report.fired == 0
    assert [reason in why for _, why in report.refused] == ([True] if reason else [])
    assert bench.kinds() == bench.kinds(bench.before)


def test_a_map_of_factors_is_no_weight(bench):
    arrays = {
        "w": RNG.normal(size=(3, 3, 1, 1)).astype(np.float32),
        "c": RNG.normal(size=(1, 3, 1, 1)).astype(np.float32),
    }
    nodes = [("Conv", ["x", "w"], ["a"], {}), ("Mul", ["a", "c"], ["out"], {})]
    model = bench.make_model(nodes, arrays, {"x": [1, 3, 4, 4]}, {"out": [1, 3, 4, 4]})
    report = bench.apply(AbsorbFusionWeights(), model)
    assert (report.fired, report.refused) == (0, ())


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_factors_compute_the_same(shared_bench, data):
    factors = data.draw(st.lists(st.floats(-2, 2).filter(lambda c: abs(c) > 0.02), min_size=1, max_size=4))
    through = data.draw(st.lists(st.sampled_from(["", "MaxPool", "nearest"]), max_size=4))
    convolution = data.draw(st.booleans())
    shared_bench.apply(AbsorbFusionWeights(), sums_model(shared_bench, factors, through, convolution))
