"""The share of INT8, counted by hand."""

from __future__ import annotations

import json

import numpy as np
import onnx_ir as ir
import pytest

from edge_effdet.errors import GraphError
from edge_effdet.graph.counting import MACS_BEFORE_FUSION
from edge_effdet.quant.precision import convert_to_half
from edge_effdet.quant.proof import prove_precision

STEM = 16 * 16 * 8 * 3 * 9
DEPTHWISE = 8 * 8 * 8 * 9
POINTWISE = 8 * 8 * 4 * 8


def conv_nodes(bench, name, source, target, shape, quantize, **attributes):
    """The nodes of a convolution with Q/DQ at what ``quantize`` names: "input", "weight", both or none."""
    rng = np.random.default_rng(len(name))
    weight = rng.normal(0, 0.3, shape).astype(np.float32)
    nodes, arrays, taken = [], {}, [source, f"{name}.w"]
    if "input" in quantize:
        more, scales = bench.quantized_input(f"{name}.a", source)
        nodes, arrays, taken[0] = nodes + more, arrays | scales, f"{name}.a_dq"
    if "weight" in quantize:
        more, scales = bench.quantized_weight(f"{name}.w", weight)
        nodes, arrays, taken[1] = nodes + more, arrays | scales, f"{name}.w_dq"
    else:
        arrays[f"{name}.w"] = weight
    return [*nodes, (name, "Conv", taken, [target], attributes)], arrays


def make_model(bench, stem=(), depthwise=(), pointwise=(), final=(), batch=1):
    parts = [
        ("stem", "x", "s", (8, 3, 3, 3), stem, {"pads": [1, 1, 1, 1]}),
        ("depthwise", "s", "d", (8, 1, 3, 3), depthwise, {"pads": [1, 1, 1, 1], "strides": [2, 2], "group": 8}),
        ("pointwise", "d", "p", (4, 8, 1, 1), pointwise, {}),
        ("class_net.predict.conv_dw@0", "p", "f", (4, 1, 3, 3), final, {"pads": [1, 1, 1, 1], "group": 4}),
        ("class_net.predict.conv_pw@0", "f", "out", (9, 4, 1, 1), final, {}),
    ]
    nodes, arrays = [], {}
    for name, source, target, shape, quantize, attributes in parts:
        more, values = conv_nodes(bench, name, source, target, shape, quantize, **attributes)
        nodes, arrays = nodes + more, arrays | values
    return bench.make_model(
        nodes, arrays, {"x": ("float32", [batch, 3, 16, 16])}, {"out": ("float32", [batch, 9, 8, 8])}
    )


def prove(model):
    return prove_precision(ir.from_proto(model))


@pytest.mark.parametrize("batch", [1, 4, "batch"])
def test_macs_by_hand_whatever_the_batch(bench, batch):
    proof = prove(make_model(bench, batch=batch))
    assert proof.macs == {"int8": 0, "fp16": 0, "fp32": STEM + DEPTHWISE + POINTWISE}
    assert (STEM, DEPTHWISE, POINTWISE) == (55296, 4608, 2048)
    assert proof.kept_high == ("stem", "depthwise", "pointwise")


def test_int8_needs_both_inputs_from_a_dequantize(bench):
    both = ("input", "weight")
    proof = prove(make_model(bench, stem=("input",), depthwise=("weight",), pointwise=both))
    assert proof.macs == {"int8": POINTWISE, "fp16": 0, "fp32": STEM + DEPTHWISE}
    assert proof.kept_high == ("stem", "depthwise")
    assert proof.fraction("int8") == pytest.approx(POINTWISE / (STEM + DEPTHWISE + POINTWISE))
    every = prove(make_model(bench, both, both, both))
    assert every.fraction("int8") == 1
    assert every.kept_high == ()


@pytest.mark.parametrize(("final", "precision"), [((), "fp32"), (("input", "weight"), "int8"), (("input",), "fp32")])
def test_the_final_convolutions_stand_apart(bench, final, precision):
    proof = prove(make_model(bench, pointwise=("input", "weight"), final=final))
    assert proof.final == {"class_net.predict.conv_dw@0": precision, "class_net.predict.conv_pw@0": precision}
    assert sum(proof.macs.values()) == STEM + DEPTHWISE + POINTWISE
    assert not any("predict" in name for name in proof.kept_high)


def test_fp16_is_counted_after_casts(bench):
    model = ir.from_proto(make_model(bench, depthwise=("input", "weight")))
    convert_to_half(model)
    proof = prove_precision(model)
    assert proof.macs == {"int8": DEPTHWISE, "fp16": STEM + POINTWISE, "fp32": 0}
    assert proof.kept_high == ("stem", "pointwise")
    assert set(proof.final.values()) == {"fp16"}


def test_a_cast_between_dequantize_and_convolution_is_no_int8(bench):
    nodes, arrays = conv_nodes(bench, "conv", "x", "y", (4, 3, 1, 1), ("input", "weight"))
    cast = ("cast", "Cast", ["conv.a_dq"], ["cast"], {"to": 1})
    conv = ("conv", "Conv", ["cast", "conv.w_dq"], ["y"], {})
    model = bench.make_model(
        [*nodes[:-1], cast, conv], arrays, {"x": ("float32", [1, 3, 4, 4])}, {"y": ("float32", [1, 4, 4, 4])}
    )
    assert prove(model).macs["int8"] == 0


def test_the_json_adds_up(bench):
    raw = prove(make_model(bench, pointwise=("input", "weight"))).to_dict()
    raw = json.loads(json.dumps(raw))
    assert sum(raw[f"{kind}_mac_fraction"] for kind in ("int8", "fp16", "fp32")) == pytest.approx(1)
    assert raw["convolution_macs"] == STEM + DEPTHWISE + POINTWISE
    assert raw["layers_kept_high_precision"] == ["stem", "depthwise"]
    assert set(raw["final_convolutions"]) == {"class_net.predict.conv_dw@0", "class_net.predict.conv_pw@0"}


def test_a_graph_without_convolutions_is_refused(bench):
    model = bench.make_model(
        [("relu", "Relu", ["x"], ["out"], {})], {}, {"x": ("float32", [1, 3])}, {"out": ("float32", [1, 3])}
    )
    with pytest.raises(GraphError, match="holds no convolution"):
        prove(model)


def test_a_dynamic_height_is_refused_by_the_layer(bench):
    nodes, arrays = conv_nodes(bench, "conv", "x", "y", (4, 3, 1, 1), ())
    model = bench.make_model(
        nodes, arrays, {"x": ("float32", [1, 3, "height", 4])}, {"y": ("float32", [1, 4, "height", 4])}
    )
    with pytest.raises(GraphError, match="conv has a dynamic height or width"):
        prove(model)


def test_an_unknown_shape_is_refused_by_the_layer(bench):
    model = make_model(bench)
    del model.graph.value_info[:]
    with pytest.raises(GraphError, match="The shape of stem is unknown"):
        prove(model)


def test_a_dense_convolution_counts_as_the_pair_it_was_made_of(bench):
    model = ir.from_proto(make_model(bench, stem=("input", "weight")))
    stem = next(node for node in model.graph if node.name == "stem")
    before = prove_precision(model).macs["int8"]
    stem.metadata_props[MACS_BEFORE_FUSION] = "1000"
    assert (before, prove_precision(model).macs["int8"]) == (STEM, 1000)
