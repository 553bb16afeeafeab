"""The maths of weights stored as INT8, the checks of scales, and what is refused before anything is read."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Graph, ModelSpec
from edge_effdet.errors import DataError, GraphError, UsageError
from edge_effdet.quantize import (
    CalibrationOptions,
    _check_scales,
    _store_weights_as_int8,
    calibration_dataset,
    calibration_images_from,
    convert_graph_to_half,
)

SPEC = ModelSpec("tiny", (64, 64), ("disc",), (1,))


def qdq_model(weight, scale, axis=0, activation_scale=0.02):
    """Q/DQ around the input and the weight of a convolution, as ModelOpt writes it: the weight in FP32 before its Q."""
    scale = np.asarray(scale, np.float32)
    zero = np.zeros(scale.shape, np.int8)
    options = {"axis": axis} if scale.ndim else {}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("QuantizeLinear", ["w", "w_scale", "w_zero"], ["wq"], **options),
        helper.make_node("DequantizeLinear", ["wq", "w_scale", "w_zero"], ["wd"], **options),
        helper.make_node("Conv", ["xd", "wd"], ["out"], name="conv"),
    ]
    arrays = {"x_scale": np.float32(activation_scale), "x_zero": np.int8(0), "w": weight}
    arrays |= {"w_scale": scale, "w_zero": zero}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, weight.shape[1], 4, 4])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def store(model):
    edited = ir.from_proto(model)
    _store_weights_as_int8(edited)
    proto = ir.to_proto(edited)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def codes_of(model):
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name.startswith("w_int8"))


def run(model, x):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@given(seed=st.integers(0, 2**32 - 1), per_channel=st.booleans(), spread=st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_a_weight_is_stored_within_half_a_scale(seed, per_channel, spread):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(0, 1, (6, 3, 2, 2)) * np.exp(rng.uniform(-spread, spread, (6, 1, 1, 1)))).astype(np.float32)
    largest = np.abs(weight).max(axis=(1, 2, 3)) if per_channel else np.abs(weight).max()
    scale = (largest / 127).astype(np.float32)
    before = qdq_model(weight, scale)
    after = store(before)
    codes = codes_of(after)
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    step = scale.reshape(-1, 1, 1, 1) if per_channel else scale
    # A little more than half: the division and the product are rounded to FP32.
    assert (np.abs(codes * step - weight) <= 0.5001 * step).all()
    kinds = [node.op_type for node in after.graph.node]
    assert kinds.count("QuantizeLinear") == 1
    assert kinds.count("DequantizeLinear") == 2
    assert "w" not in [tensor.name for tensor in after.graph.initializer]
    x = rng.normal(0, 1, (1, 3, 4, 4)).astype(np.float32)
    np.testing.assert_array_equal(run(after, x), run(before, x))


def test_a_weight_beyond_its_range_is_clipped_without_minus_128():
    weight = np.array([-9, -1, -0.5, 0.5, 1.5, 9], np.float32).reshape(6, 1, 1, 1)
    codes = codes_of(store(qdq_model(weight, np.float32(1 / 127))))
    assert codes.ravel().tolist() == [-127, -127, -64, 64, 127, 127]


def test_halves_are_rounded_to_even():
    weight = np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32).reshape(5, 1, 1, 1)
    assert codes_of(store(qdq_model(weight, np.float32(1)))).ravel().tolist() == [0, 2, 2, 0, -2]


def test_a_filter_of_zeros_is_zeros():
    weight = np.zeros((2, 3, 1, 1), np.float32)
    weight[1] = 1
    codes = codes_of(store(qdq_model(weight, [0.0, 1 / 127])))
    assert not codes[0].any()
    assert (codes[1] == 127).all()


def test_scales_along_another_axis():
    weight = np.array([[1, 2], [3, 4]], np.float32).reshape(2, 2, 1, 1)
    codes = codes_of(store(qdq_model(weight, [0.5, 0.25], axis=1)))
    np.testing.assert_array_equal(codes.reshape(2, 2), [[2, 8], [6, 16]])


@pytest.mark.parametrize("scale", [np.inf, np.nan])
def test_a_scale_that_is_not_finite_is_refused_by_the_tensor(scale):
    model = ir.from_proto(qdq_model(np.ones((1, 1, 1, 1), np.float32), np.float32(1), activation_scale=scale))
    with pytest.raises(GraphError, match="Calibration gave x no finite FP32 scale"):
        _check_scales(model)


def test_a_tensor_without_a_range_is_refused_by_its_name():
    model = ir.from_proto(qdq_model(np.ones((1, 1, 1, 1), np.float32), np.float32(1), activation_scale=0))
    with pytest.raises(GraphError, match="x was constant over all calibration images"):
        _check_scales(model)


def test_good_scales_pass():
    _check_scales(ir.from_proto(qdq_model(np.ones((2, 1, 1, 1), np.float32), [1.0, 0.5])))


def wrap(path, precision="fp32"):
    return Graph(path, SPEC, "optimized", precision, {}, {}, {}, "0" * 64)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_graph_that_is_converted_already_is_refused(tmp_path, precision):
    with pytest.raises(GraphError, match=rf"tiny\.onnx is {precision} already; give the FP32 graph"):
        convert_graph_to_half(wrap(tmp_path / "tiny.onnx", precision), tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_int8_is_never_calibrated_on_nothing(tmp_path):
    with pytest.raises(UsageError, match=r"INT8 needs real images.*--calibration-data"):
        calibration_dataset(CalibrationOptions())
    with pytest.raises(DataError, match="There is no data at"):
        calibration_dataset(CalibrationOptions(calibration_data=tmp_path / "absent"))


def test_calibration_takes_the_train_split_and_the_letterbox(tiny_voc):
    options = CalibrationOptions(calibration_data=tiny_voc)
    images = calibration_images_from(calibration_dataset(options), options, SPEC)
    assert images.pixels.shape == (8, 3, 64, 64)
    assert set(images.manifest) == {f"scene_{number:02}" for number in range(8)}
