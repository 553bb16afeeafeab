"""The cost model: what has to hold for any constants, the decisions for the BiFPN, and a real measurement."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.artifacts import PRECISIONS
from edge_effdet.backends.base import Available
from edge_effdet.backends.tensorrt import builder as tensorrt_backend
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.errors import BackendUnavailable, UsageError
from edge_effdet.graph import cost
from edge_effdet.graph.cost import (
    MARGIN,
    Decision,
    SeparablePair,
    decide,
    dense_us,
    depthwise_us,
    measure_decision,
    model_decision,
    pointwise_us,
)
from edge_effdet.graph.targets import TARGETS, get_target

TINY = SeparablePair("tiny", 8, 8, (3, 3), (1, 1), 6, 5)


def bifpn(side, channels=64, channels_out=None):
    return SeparablePair(f"p{side}", channels, channels_out or channels, (3, 3), (1, 1), side, side)


pairs = st.builds(
    SeparablePair,
    name=st.just("pair"),
    channels_in=st.integers(1, 700),
    channels_out=st.integers(1, 900),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 3)]),
    stride=st.sampled_from([(1, 1), (2, 2), (1, 2)]),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
)
targets, precisions = st.sampled_from(list(TARGETS)), st.sampled_from(PRECISIONS)


@given(pair=pairs, target=targets, precision=precisions, batch=st.integers(1, 8))
@settings(deadline=None)
def test_every_time_is_finite_and_holds_a_launch(pair, target, precision, batch):
    machine = TARGETS[target]
    for time_us in (dense_us, depthwise_us, pointwise_us):
        time = time_us(pair, machine, precision, batch)
        assert math.isfinite(time) and time > machine.launch_us
    decision = model_decision(pair, target, precision, batch)
    assert (decision.name, decision.basis) == ("pair", "model")
    assert decision.keep_us > 2 * machine.launch_us


@given(pair=pairs, target=targets, precision=precisions, more=st.integers(0, 300), field=st.sampled_from(
    ["channels_in", "channels_out", "height", "width"]
))  # fmt: skip
@settings(deadline=None)
def test_a_larger_layer_is_never_cheaper(pair, target, precision, more, field):
    larger = replace(pair, **{field: getattr(pair, field) + more})
    for time_us in (dense_us, depthwise_us, pointwise_us):
        assert time_us(larger, TARGETS[target], precision) >= time_us(pair, TARGETS[target], precision)


@given(pair=pairs, target=targets, precision=precisions, batch=st.integers(1, 8))
@settings(deadline=None)
def test_a_larger_batch_is_never_cheaper_and_no_image_costs_more_in_one(pair, target, precision, batch):
    one, many = (dense_us(pair, TARGETS[target], precision, images) for images in (1, batch))
    assert one <= many <= batch * one * (1 + 1e-9)


@given(pair=pairs, target=targets)
@settings(deadline=None)
def test_a_dense_kernel_of_one_position_is_the_pointwise_convolution(pair, target):
    """The time of the depthwise convolution before it is saved entirely."""
    single = replace(pair, kernel=(1, 1), stride=(1, 1))
    decision = model_decision(single, target, "fp32")
    assert decision.dense_us == pointwise_us(single, TARGETS[target], "fp32") < decision.keep_us


def test_a_layer_counted_by_hand():
    """A layer of 64 x 64 x 64 on an Orin Nano at FP16 has 128 x 2 tiles of 32 x 32 x 576, or moves 1 MB at 102.4 GB/s.

    Its 8 multiprocessors have 4 tensor cores each, which do 512 operations a clock at 1020 MHz.
    """
    target = get_target("orin-nano-8gb")
    dense = dense_us(bifpn(64), target, "fp16") - target.launch_us
    assert dense == pytest.approx(2 * 256 * 32 * 32 * 576 / (0.35 * 8 * 4 * 512 * 1020e6) * 1e6)
    pointwise = pointwise_us(bifpn(64), target, "fp16") - target.launch_us
    assert pointwise == pytest.approx(2 * (2 * 64**3 + 64 * 64) / (cost.MEMORY * 102.4e9) * 1e6)
    depthwise = depthwise_us(bifpn(64), target, "fp16") - target.launch_us
    assert depthwise == pytest.approx(2 * (2 * 64**3 + 64 * 9) / (cost.MEMORY * 102.4e9) * 1e6)


def test_channels_are_padded_to_what_a_kernel_reads():
    target = get_target("t4")
    assert dense_us(bifpn(16, 33, 64), target, "int8") == dense_us(bifpn(16, 64, 64), target, "int8")
    assert dense_us(bifpn(64, 33, 64), target, "fp16") < dense_us(bifpn(64, 48, 64), target, "fp16")


def test_a_stride_makes_the_depthwise_input_larger_and_the_pointwise_no_dearer():
    target, strided = get_target("t4"), replace(bifpn(64), stride=(2, 2))
    assert depthwise_us(strided, target, "fp16") > depthwise_us(bifpn(64), target, "fp16")
    assert pointwise_us(strided, target, "fp16") == pointwise_us(bifpn(64), target, "fp16")


def test_multiply_accumulates():
    pair = SeparablePair("p", 5, 7, (3, 2), (2, 2), 4, 6)
    assert pair.separate_macs == 24 * 5 * (6 + 7)
    assert pair.dense_macs == 24 * 5 * 7 * 6


def test_a_decision_wants_a_tenth():
    assert Decision("p", 10, 10 * MARGIN, "model").dense
    assert not Decision("p", 10, 9.5, "model").dense
    assert "not cheaper by a tenth" in str(Decision("p", 10, 9.5, "model"))
    assert "keeping the two is cheaper" in str(Decision("p", 10, 30, "model"))
    assert str(Decision("head", 10, 3, "measured")) == (
        "head: dense is cheaper, 10 us for the two against 3 us dense (measured)"
    )


SIDES = (64, 32, 16, 8, 4)


@pytest.mark.parametrize(
    ("target", "precision", "dense"),
    [
        # D0's BiFPN and heads: 64 channels at 64 x 64 down to 4 x 4. Small levels are all launch, large ones all work.
        ("orin-nano-8gb", "fp16", {16, 8, 4}),
        ("orin-nano-8gb", "int8", {16, 8, 4}),
        ("orin-nano-4gb", "fp16", {8, 4}),
        ("orin-nx-8gb", "int8", {16, 8, 4}),
        ("agx-orin-64gb", "int8", {32, 16, 8, 4}),
        ("agx-orin-32gb", "fp16", {16, 8, 4}),
        ("t4", "fp32", set()),
        ("t4", "fp16", {32, 16, 8, 4}),
        ("t4", "int8", {32, 16, 8, 4}),
        ("rtx-4090", "int8", set(SIDES)),
        ("thor", "fp16", set(SIDES)),
        ("thor-t4000", "int8", set(SIDES)),
    ],
)
def test_what_the_table_says_of_d0(target, precision, dense):
    assert {side for side in SIDES if model_decision(bifpn(side), target, precision).dense} == dense


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("channels", [64, 88, 112, 160, 224, 384])
def test_a_processor_keeps_the_two(precision, channels):
    """A CPU has no kernel launch to save and no idle tensor cores, so eight times the arithmetic takes eight times as long."""
    assert not any(model_decision(bifpn(side, channels), "cpu", precision).dense for side in SIDES)


@pytest.mark.parametrize("target", TARGETS)
def test_the_class_predictor_of_a_fine_level_is_kept_where_the_target_is_small(target):
    if target != "thor":
        assert not model_decision(bifpn(64, 64, 810), target, "fp16").dense


def test_the_same_question_has_the_same_answer():
    for pair in (bifpn(64), bifpn(4)):
        again = model_decision(replace(pair), "t4", "int8")
        assert again == model_decision(pair, "t4", "int8")
    renamed = model_decision(replace(bifpn(64), name="other"), "t4", "int8")
    assert replace(renamed, name="p64") == model_decision(bifpn(64), "t4", "int8")


@pytest.mark.parametrize("name", TARGETS)
def test_each_row_is_whole(name):
    target = TARGETS[name]
    assert len(target.source) > 20
    assert 0 < target.efficiency <= 1
    rates = [getattr(rate, precision) for rate in (target.matrix, target.vector) for precision in PRECISIONS]
    assert all(rate > 0 for rate in [*rates, target.bandwidth, target.launch_us, target.multiprocessors])
    if target.compute_capability:
        assert target.matrix.fp32 <= target.matrix.fp16 < target.matrix.int8
        assert target.vector.fp16 <= target.matrix.fp16


def test_the_rates_follow_from_the_hardware():
    """Those that data sheets give, dense: an Orin Nano's and a Thor's INT8, a T4's and an RTX 4090's FP32, FP16 and INT8."""
    assert TARGETS["orin-nano-8gb"].matrix.int8 == pytest.approx(67 / 2, rel=0.01)
    assert TARGETS["thor"].matrix.int8 == pytest.approx(2070 / 4, rel=0.01)
    for name, rates in (("t4", (8.1, 65, 130)), ("rtx-4090", (82.6, 165.2, 660.6))):
        found = [TARGETS[name].matrix.at(precision) for precision in PRECISIONS]
        assert found == pytest.approx(rates, rel=0.01)
    assert TARGETS["rtx-4090"].vector.fp32 == pytest.approx(82.6, rel=0.01)


def test_unknown_names_are_told_what_there_is():
    with pytest.raises(UsageError, match=r"no target 'orin'.*orin-nano-8gb, .*cpu"):
        model_decision(TINY, "orin", "fp16")
    with pytest.raises(UsageError, match="no target 'orin'"):
        decide(TINY, "orin", "fp16")
    for ask in (lambda: model_decision(TINY, "t4", "fp8"), lambda: measure_decision(TINY, "fp8")):
        with pytest.raises(UsageError, match=r"no precision 'fp8'.*fp32, fp16, int8"):
            ask()
    with pytest.raises(UsageError, match="no backend"):
        measure_decision(TINY, "fp32", "onnx")


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_pair_is_measured(precision):
    decision = measure_decision(TINY, precision, rounds=1)
    assert (decision.name, decision.basis) == ("tiny", "measured")
    assert all(math.isfinite(time) and time > 0 for time in (decision.keep_us, decision.dense_us))


def test_a_pair_whose_output_does_not_fit_its_input_is_measured_once():
    pair = SeparablePair("tiny", 4, 12, (3, 5), (2, 1), 3, 5, (2, 1))
    assert measure_decision(pair, "fp32", rounds=1).keep_us > 0


def test_equal_pairs_are_measured_once(monkeypatch):
    cost._measure.cache_clear()
    built = []
    real = cost._pair_model
    monkeypatch.setattr(cost, "_pair_model", lambda *arguments: built.append(arguments) or real(*arguments))
    first = measure_decision(TINY, "fp32", rounds=1)
    second = measure_decision(replace(TINY, name="another"), "fp32", rounds=1)
    assert len(built) == 2
    assert (first.name, second.name) == ("tiny", "another")
    assert (first.keep_us, first.dense_us) == (second.keep_us, second.dense_us)
    measure_decision(replace(TINY, height=7), "fp32", rounds=1)
    assert len(built) == 4


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(("pair", "copies"), [(TINY, 3), (SeparablePair("odd", 4, 12, (3, 5), (2, 1), 3, 5), 1)])
@pytest.mark.parametrize("dense", [False, True])
def test_the_graphs_that_are_timed_hold_what_their_precision_says(pair, copies, precision, dense):
    model = cost._pair_model(pair, precision, 2, dense, copies)
    onnx.checker.check_model(model, full_check=True)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == copies * (1 if dense else 2)
    kinds = {tensor.data_type for tensor in model.graph.initializer if len(tensor.dims) == 4}
    assert kinds == {
        {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "int8": onnx.TensorProto.INT8}[precision]
    }
    if precision == "int8":
        made_by = {output: node.op_type for node in model.graph.node for output in node.output}
        assert all(made_by[value] == "DequantizeLinear" for node in convolutions for value in node.input)
    (output,) = onnx.shape_inference.infer_shapes(model).graph.output
    assert [axis.dim_value for axis in output.type.tensor_type.shape.dim] == [
        2, pair.channels_out, pair.height, pair.width
    ]  # fmt: skip


def test_numbers_keep_their_size_along_the_chain():
    """If they grew or vanished, a long chain would time overflow or denormals."""
    import onnxruntime

    model = cost._pair_model(bifpn(16, 16), "fp32", 1, False, 4)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": np.random.default_rng(1).normal(size=(1, 16, 16, 16)).astype(np.float32)})
    assert 0.05 < result.std() < 20


def test_this_processor_is_measured_and_an_absent_card_is_modelled(monkeypatch):
    assert decide(TINY, "cpu", "fp32").basis == "measured"
    with monkeypatch.context() as patch:
        patch.setattr(tensorrt_backend, "probe", lambda: cuda.Unavailable("none here", "add one"))
        assert decide(TINY, "t4", "fp16") == model_decision(TINY, "t4", "fp16")


@pytest.mark.parametrize(("capability", "basis"), [((8, 7), "measured"), ((8, 9), "model")])
def test_a_present_card_is_measured_where_it_is_of_the_target_kind(monkeypatch, capability, basis):
    """The hardware is missing, so TensorRT, the GPU and the measurement are stand-ins."""
    asked = []
    monkeypatch.setattr(tensorrt_backend, "probe", lambda: Available("10.3", "stand-in"))
    monkeypatch.setattr(cuda, "probe_gpu", lambda: cuda.Gpu("stand-in", capability))
    monkeypatch.setattr(cost, "_measure", lambda *arguments: asked.append(arguments) or (3.0, 2.0))
    assert decide(TINY, "orin-nano-8gb", "int8", batch=4).basis == basis
    assert [arguments[1:3] + arguments[4:] for arguments in asked] == (
        [("int8", "tensorrt", 4)] if basis == "measured" else []
    )


def test_a_measurement_without_its_backend_says_what_to_do(monkeypatch):
    cost._measure.cache_clear()
    monkeypatch.setattr(tensorrt_backend, "probe", lambda: cuda.Unavailable("none here", "add one"))
    with pytest.raises(BackendUnavailable, match="none here; add one"):
        measure_decision(TINY, "fp16", "tensorrt")
