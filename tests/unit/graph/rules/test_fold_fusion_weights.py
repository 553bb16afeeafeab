"""The BiFPN's weighted sum becomes Mul and Add, for every form and sign of weights; other sums stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from edge_effdet.graph.rules.fold_fusion_weights import FoldFusionWeights

SHAPE = [3, 4, 6]
EPSILON = 1e-4


def fusion_model(
    bench,
    kind,
    weights,
    batch=1,
    weight_first=False,
    unsqueeze_axis=4,
    concat_axis=4,
    sum_axis=4,
    keepdims=0,
    weight_shape=None,
    output=None,
    more_nodes=(),
    more_outputs=None,
    relu_before=True,
):
    """``out`` is the fusion of ``len(weights)`` inputs, as the exporter writes each of effdet's kinds."""
    nodes, arrays = [], {"sum_axis": np.array([sum_axis]), "unsqueeze_axis": np.array([unsqueeze_axis])}
    weights = np.asarray(weights, np.float32)
    terms = []
    for position, weight in enumerate(weights):
        value = f"x{position}"
        if relu_before:
            nodes.append(("Neg", [value], [f"n{position}"], {}))
            value = f"n{position}"
        if kind == "fast":
            arrays[f"w{position}"], arrays["total"] = weight, np.float32(weights.sum() + EPSILON)
            pair = [f"w{position}", value] if weight_first else [value, f"w{position}"]
            nodes += [
                ("Mul", pair, [f"m{position}"], {}),
                ("Div", [f"m{position}", "total"], [f"d{position}"], {}),
            ]
            value = f"d{position}"
        nodes.append(("Unsqueeze", [value, "unsqueeze_axis"], [f"u{position}"], {}))
        terms.append(f"u{position}")
    nodes.append(("Concat", terms, ["stack"], {"axis": concat_axis}))
    summed = "stack"
    if kind == "softmax":
        arrays["w"] = weights.reshape(weight_shape or -1)
        nodes.append(("Mul", ["w", "stack"] if weight_first else ["stack", "w"], ["scaled"], {}))
        summed = "scaled"
    nodes.append(("ReduceSum", [summed, "sum_axis"], ["out"], {"keepdims": keepdims}))
    return bench.make_model(
        [*nodes, *more_nodes],
        arrays,
        {f"x{position}": [batch, *SHAPE] for position in range(len(weights))},
        {"out": output or [batch, *SHAPE], **(more_outputs or {})},
    )


def assert_folded(bench, report, edges, scaled):
    """Assert that the sum is a chain of Add over ``edges`` terms, of which ``scaled`` have a factor."""
    assert (report.fired, report.refused) == (1, ())
    kinds = bench.kinds()
    assert (kinds["Add"], kinds["Mul"]) == (edges - 1, scaled)
    assert not {"Concat", "ReduceSum", "Unsqueeze", "Div"} & set(kinds)


@pytest.mark.parametrize("kind", ["fast", "softmax"])
@pytest.mark.parametrize("weight_first", [False, True])
@pytest.mark.parametrize("weights", [(0.3, 1.7), (0.9, 0.05, 1.2), (-0.5, 2.0), (-1.5, -0.25, 0.5)])
def test_a_weighted_sum(bench, kind, weight_first, weights):
    report = bench.apply(FoldFusionWeights(), fusion_model(bench, kind, weights, weight_first=weight_first))
    assert_folded(bench, report, len(weights), len(weights))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_plain_sum_has_no_factors(bench, count):
    report = bench.apply(FoldFusionWeights(), fusion_model(bench, "sum", [1] * count))
    assert_folded(bench, report, count, 0)


@pytest.mark.parametrize("kind", ["fast", "softmax"])
def test_an_edge_of_weight_0_is_dropped(bench, kind):
    report = bench.apply(FoldFusionWeights(), fusion_model(bench, kind, (0.6, 0.0, 0.4)))
    assert_folded(bench, report, 2, 2)
    assert not any("x1" in node.input for node in bench.after.graph.node)


@pytest.mark.parametrize("kind", ["fast", "softmax"])
def test_all_weights_0_are_a_tensor_of_zeros(bench, kind):
    report = bench.apply(FoldFusionWeights(), fusion_model(bench, kind, (0.0, 0.0)))
    assert_folded(bench, report, 1, 1)


def test_one_weight_for_the_whole_stack(bench):
    model = fusion_model(bench, "softmax", (0.5, 0.5))
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(0.5), "w"))
    assert_folded(bench, bench.apply(FoldFusionWeights(), model), 2, 2)


@pytest.mark.parametrize("relu_before", [True, False])
def test_a_weight_of_1_beside_0_leaves_the_other_edge_as_it_is(bench, relu_before):
    """A softmax that is saturated leaves one edge. Where that is the graph's input, the output still needs a node of its own."""
    report = bench.apply(FoldFusionWeights(), fusion_model(bench, "softmax", (1.0, 0.0), relu_before=relu_before))
    assert report.fired == 1
    assert bench.kinds()["Add"] == 0


@given(
    weights=st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=4),
    kind=st.sampled_from(["fast", "softmax"]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=25, deadline=None)
def test_any_weights_fold(shared_bench, weights, kind, seed):
    # The weights of the fast form have passed the ReLU, so their sum is not near 0.
    weights = [abs(weight) for weight in weights] if kind == "fast" else weights
    # Terms that cancel would leave a sum that is small beside its rounding errors.
    weights = [*weights, 4.0]
    report = shared_bench.apply(FoldFusionWeights(), fusion_model(shared_bench, kind, weights), seed=seed)
    nonzero = [weight for weight in weights if weight != 0]
    assert report.fired == 1
    assert shared_bench.kinds()["Add"] <= len(nonzero) - 1


def test_a_dynamic_batch_stays_dynamic(bench):
    model = fusion_model(bench, "fast", (0.3, 1.7), batch="batch")
    for batch in (1, 3):
        assert_folded(bench, bench.apply(FoldFusionWeights(), model, batch=batch), 2, 2)
    assert bench.after.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_several_fusions_in_one_graph(bench):
    arrays = {"axis": np.array([-1]), "w": np.array([0.25, 0.75], np.float32)}
    nodes = []
    for stage, (first, second, out) in enumerate((("a", "b", "s"), ("s", "b", "t"), ("t", "s", "out"))):
        nodes += [
            ("Unsqueeze", [first, "axis"], [f"f{stage}"], {}),
            ("Unsqueeze", [second, "axis"], [f"g{stage}"], {}),
            ("Concat", [f"f{stage}", f"g{stage}"], [f"c{stage}"], {"axis": -1}),
            ("Mul", [f"c{stage}", "w"], [f"m{stage}"], {}),
            ("ReduceSum", [f"m{stage}", "axis"], [out], {"keepdims": 0}),
        ]
    model = bench.make_model(nodes, arrays, {"a": [1, *SHAPE], "b": [1, *SHAPE]}, {"out": [1, *SHAPE]})
    report = bench.apply(FoldFusionWeights(), model)
    assert report.fired == 3
    assert bench.kinds() == {"Mul": 6, "Add": 3}


def refused(bench, model):
    report = bench.apply(FoldFusionWeights(), model)
    assert report.fired == 0
    assert "ReduceSum" in bench.kinds()
    assert len(report.refused) == 1
    return report.refused[0][1]


def test_a_sum_over_another_axis_is_left(bench):
    model = fusion_model(bench, "sum", (1, 1), sum_axis=2, output=[1, 3, 6, 2])
    assert refused(bench, model) == "it does not sum over the last axis alone"


def test_a_stack_along_another_axis_is_left(bench):
    model = fusion_model(bench, "sum", (1, 1), concat_axis=1, output=[1, 6, 4, 6])
    assert refused(bench, model) == "the stack before it is not along the last axis"


def test_a_new_axis_that_is_not_the_one_summed_is_left(bench):
    """After an Unsqueeze at axis 1 the last axis is the width, so the sum is over the widths of all inputs."""
    model = fusion_model(bench, "sum", (1, 1), unsqueeze_axis=1, output=[1, 1, 3, 4])
    refused(bench, model)


def test_weights_along_another_axis_are_left(bench):
    """The two weights scale the two rows of the height and not the two inputs."""
    nodes = [
        ("Unsqueeze", ["a", "axis"], ["f"], {}),
        ("Unsqueeze", ["b", "axis"], ["g"], {}),
        ("Concat", ["f", "g"], ["c"], {"axis": -1}),
        ("Mul", ["c", "w"], ["m"], {}),
        ("ReduceSum", ["m", "axis"], ["out"], {"keepdims": 0}),
    ]
    arrays = {"axis": np.array([-1]), "w": np.array([0.25, 3], np.float32).reshape(2, 1, 1)}
    model = bench.make_model(nodes, arrays, {"a": [1, 3, 2, 5], "b": [1, 3, 2, 5]}, {"out": [1, 3, 2, 5]})
    assert "weights of the stack" in refused(bench, model)


def test_a_weight_a_pixel_is_left(bench):
    weights = np.random.default_rng(0).normal(0, 1, (6, 2)).astype(np.float32)
    model = fusion_model(bench, "softmax", (1, 1))
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(weights, "w"))
    assert refused(bench, model) == "the weights of the stack are not one constant an edge"


@pytest.mark.parametrize("weight_first", [False, True])
def test_weights_that_are_computed_are_left(bench, weight_first):
    nodes = [
        ("Unsqueeze", ["a", "axis"], ["f"], {}),
        ("Unsqueeze", ["b", "axis"], ["g"], {}),
        ("Concat", ["f", "g"], ["c"], {"axis": -1}),
        ("Mul", ["w", "c"] if weight_first else ["c", "w"], ["m"], {}),
        ("ReduceSum", ["m", "axis"], ["out"], {"keepdims": 0}),
    ]
    inputs = {"a": [1, *SHAPE], "b": [1, *SHAPE], "w": [2]}
    model = bench.make_model(nodes, {"axis": np.array([-1])}, inputs, {"out": [1, *SHAPE]})
    assert refused(bench, model) == "the weights of the stack are not one constant an edge"


def test_a_stack_with_another_consumer_is_left(bench):
    model = fusion_model(
        bench, "fast", (1, 2), more_nodes=[("Relu", ["stack"], ["other"], {})], more_outputs={"other": [1, *SHAPE, 2]}
    )
    assert refused(bench, model) == "the stack before it has another consumer"


def test_a_sum_that_keeps_its_axis_is_no_fusion(bench):
    report = bench.apply(FoldFusionWeights(), fusion_model(bench, "sum", (1, 1), keepdims=1, output=[1, *SHAPE, 1]))
    assert (report.fired, report.refused) == (0, ())


def test_any_other_sum_is_left_silently(bench):
    nodes = [("Relu", ["x"], ["y"], {}), ("ReduceSum", ["y", "axis"], ["out"], {"keepdims": 0})]
    model = bench.make_model(nodes, {"axis": np.array([3])}, {"x": [1, *SHAPE]}, {"out": [1, 3, 4]})
    report = bench.apply(FoldFusionWeights(), model)
    assert (report.fired, report.refused) == (0, ())


def test_unbounded_fusion_is_folded_as_it_comes(bench):
    nodes = [
        ("Mul", ["a", "v"], ["p"], {}),
        ("Mul", ["b", "w"], ["q"], {}),
        ("Add", ["p", "q"], ["out"], {}),
    ]
    arrays = {"v": np.float32(-0.5), "w": np.float32(2)}
    model = bench.make_model(nodes, arrays, {"a": [1, *SHAPE], "b": [1, *SHAPE]}, {"out": [1, *SHAPE]})
    report = bench.apply(FoldFusionWeights(), model)
    assert (report.fired, report.refused) == (0, ())
    assert bench.kinds() == {"Mul": 2, "Add": 1}
