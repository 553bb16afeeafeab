"""A Pad is folded into the max pooling behind it, except for paddings that MaxPool cannot do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.graph.rules.fold_pool_padding import FoldPoolPadding

MINUS_INFINITY = np.float32(-np.inf)


def pool_model(
    bench,
    pads=(0, 1),
    kernel=(3, 3),
    strides=(2, 2),
    size=(8, 10),
    fill=MINUS_INFINITY,
    batch=1,
    axes=None,
    own=(0, 0, 0, 0),
    outputs=None,
    pad_options=None,
    **pool,
):
    """``out = MaxPool(Pad(Relu(x)))``; ``pads`` are the padding at the begin and at the end, of height and of width."""
    amounts = np.array([0, 0, pads[0], pads[0], 0, 0, pads[1], pads[1]]) if axes is None else np.asarray(axes)
    arrays = {"amounts": amounts}
    taken = ["y", "amounts"]
    if fill is not None:
        arrays["fill"] = fill
        taken.append("fill")
    nodes = [
        ("Neg", ["x"], ["y"], {}),
        ("Pad", taken, ["padded"], pad_options or {}),
        (
            "MaxPool",
            ["padded"],
            ["out"],
            {"kernel_shape": list(kernel), "strides": list(strides), "pads": list(own), **pool},
        ),
    ]
    if outputs is None:
        padded = [size[i] + amounts[2 + i] + amounts[6 + i] + own[i] + own[2 + i] for i in (0, 1)]
        sides = [(int(padded[i]) - kernel[i]) // strides[i] + 1 for i in (0, 1)]
        outputs = {"out": [batch, 4 + int(amounts[1] + amounts[5]), *sides]}
    return bench.make_model(nodes, arrays, {"x": [batch, 4, *size]}, outputs)


@pytest.mark.parametrize(
    ("pads", "kernel", "strides"),
    [((0, 1), (3, 3), (2, 2)), ((1, 1), (3, 3), (2, 2)), ((1, 1), (3, 3), (1, 1)), ((0, 0), (2, 2), (2, 2)),
     ((2, 1), (5, 4), (3, 2))],
)  # fmt: skip
def test_padding_becomes_an_attribute(bench, pads, kernel, strides):
    report = bench.apply(FoldPoolPadding(), pool_model(bench, pads, kernel, strides))
    assert (report.fired, report.refused) == (1, ())
    assert bench.kinds() == {"Neg": 1, "MaxPool": 1}
    pool = bench.after.graph.node[-1]
    attributes = {item.name: list(item.ints) for item in pool.attribute}
    assert attributes == {"kernel_shape": [*kernel], "strides": [*strides], "pads": [pads[0]] * 2 + [pads[1]] * 2}


@given(
    pads=st.lists(st.integers(0, 3), min_size=4, max_size=4),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
)
@settings(max_examples=40, deadline=None)
def test_any_padding_narrower_than_the_kernel_folds(shared_bench, pads, kernel, strides, size):
    """The kernel reaches beyond the padding: a window of padding alone would give -inf, whose error no bound can judge."""
    top, left, bottom, right = (min(pad, kernel[i % 2] - 1) for i, pad in enumerate(pads))
    axes = [0, 0, top, left, 0, 0, bottom, right]
    report = shared_bench.apply(FoldPoolPadding(), pool_model(shared_bench, None, kernel, strides, size, axes=axes))
    assert report.fired == 1


def test_both_paddings_are_added(bench):
    report = bench.apply(FoldPoolPadding(), pool_model(bench, (1, 0), (4, 4), own=(1, 0, 0, 2)))
    assert report.fired == 1
    assert list(next(item.ints for item in bench.after.graph.node[-1].attribute if item.name == "pads")) == [2, 1, 0, 2]


def test_a_padding_with_another_consumer_stays_for_it(bench):
    # The Clip makes -inf finite, so that the outputs can be compared.
    model = bench.make_model(
        [
            ("Neg", ["x"], ["y"], {}),
            ("Pad", ["y", "amounts", "fill"], ["padded"], {}),
            ("MaxPool", ["padded"], ["out"], {"kernel_shape": [3, 3], "strides": [2, 2]}),
            ("Clip", ["padded", "low"], ["other"], {}),
        ],
        {"amounts": np.array([0, 0, 0, 0, 0, 0, 1, 1]), "fill": MINUS_INFINITY, "low": np.float32(-9)},
        {"x": [1, 4, 8, 10]},
        {"out": [1, 4, 4, 5], "other": [1, 4, 9, 11]},
    )
    assert bench.apply(FoldPoolPadding(), model).fired == 1
    assert bench.kinds() == {"Neg": 1, "Pad": 1, "MaxPool": 1, "Clip": 1}


def test_a_dynamic_batch_stays_dynamic(bench):
    model = pool_model(bench, batch="batch")
    for batch in (1, 3):
        assert bench.apply(FoldPoolPadding(), model, batch=batch).fired == 1
    assert bench.after.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def refused(bench, model):
    report = bench.apply(FoldPoolPadding(), model)
    assert report.fired == 0
    assert bench.kinds()["Pad"] == 1
    assert len(report.refused) == 1
    assert report.refused[0][0].startswith("MaxPool")
    return report.refused[0][1]


@pytest.mark.parametrize("fill", [np.float32(0), np.float32(-5), np.finfo(np.float32).min, None])
def test_a_fill_that_could_be_the_maximum_is_left(bench, fill):
    assert "with -inf" in refused(bench, pool_model(bench, fill=fill))


def test_a_padding_of_another_kind_is_left(bench):
    model = pool_model(bench, fill=None, pad_options={"mode": "reflect"})
    assert refused(bench, model) == "the padding before it is not constant"


def test_a_padding_of_the_channels_is_left(bench):
    # A channel that is -inf everywhere has no finite maximum, so only the answer of the rule is looked at.
    import onnx_ir as ir

    from edge_effdet.graph.rule import apply_rule

    model = pool_model(bench, axes=[0, 1, 0, 0, 0, 0, 1, 1])
    report = apply_rule(ir.from_proto(model), FoldPoolPadding())
    assert report.fired == 0
    assert "height and width alone" in report.refused[0][1]


def test_a_negative_padding_is_left(bench):
    model = pool_model(bench, axes=[0, 0, -1, 0, 0, 0, 1, 1])
    assert "height and width alone" in refused(bench, model)


def test_a_padding_as_wide_as_the_kernel_is_left(bench):
    model = pool_model(bench, (0, 2), (2, 2), (3, 3), size=(8, 8))
    assert "as wide as the kernel" in refused(bench, model)


def test_padding_over_chosen_axes_is_left(bench):
    model = bench.make_model(
        [
            ("Pad", ["x", "amounts", "fill", "axes"], ["padded"], {}),
            ("MaxPool", ["padded"], ["out"], {"kernel_shape": [3, 3], "strides": [2, 2]}),
        ],
        {"amounts": np.array([0, 0, 1, 1]), "fill": MINUS_INFINITY, "axes": np.array([2, 3])},
        {"x": [1, 4, 8, 10]},
        {"out": [1, 4, 4, 5]},
    )
    assert "amount of padding before it is not known" in refused(bench, model)


def test_rounding_up_is_left(bench):
    """With ceil_mode a window that starts in MaxPool's own padding is dropped, and one in a Pad's is not."""
    import onnx_ir as ir

    from edge_effdet.graph.rule import apply_rule

    model = pool_model(bench, (0, 2), (3, 3), size=(4, 4), outputs={"out": [1, 4, 3, 3]}, ceil_mode=1)
    report = apply_rule(ir.from_proto(model), FoldPoolPadding())
    assert report.fired == 0
    assert len(report.refused) == 1


def test_padding_that_the_pool_works_out_itself_is_left(bench):
    model = bench.make_model(
        [
            ("Pad", ["x", "amounts", "fill"], ["padded"], {}),
            ("MaxPool", ["padded"], ["out"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
        ],
        {"amounts": np.array([0, 0, 1, 1, 0, 0, 1, 1]), "fill": MINUS_INFINITY},
        {"x": [1, 4, 8, 10]},
        {"out": [1, 4, 5, 6]},
    )
    refused(bench, model)


def test_a_pool_without_padding_is_left_silently(bench):
    nodes = [("MaxPool", ["x"], ["out"], {"kernel_shape": [3, 3]})]
    model = bench.make_model(nodes, {}, {"x": [1, 4, 8, 8]}, {"out": [1, 4, 6, 6]})
    report = bench.apply(FoldPoolPadding(), model)
    assert (report.fired, report.refused) == (0, ())
