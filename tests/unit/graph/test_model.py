"""Graphs that were changed after export are refused, with a message that says what is wrong and where."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.errors import GraphError
from edge_effdet.graph.model import check_form, load_graph, save_graph
from edge_effdet.models.zoo import model_spec


def make_model(shape=(1, 3, 8, 8), opset=18, names=("images",)):
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "weight")
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
    output = helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [None, 2, None, None])
    conv = helper.make_node("Conv", [names[0], "weight"], ["boxes"], name="stem")
    graph = helper.make_graph([conv], "g", inputs, [output], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), ("batch", 3, 8, 16)])
def test_what_export_writes_is_accepted(shape):
    check_form(make_model(shape), "x.onnx")


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (make_model(opset=11), "opset 11, and the rewriting rules need 18 or later"),
        (make_model((1, 3, "height", 8)), "dynamic height or width"),
        (make_model((1, 4, 8, 8)), r"\[1, 4, 8, 8\] and not \[batch, 3, height, width\]"),
        (make_model((3, 8, 8)), r"not \[batch, 3, height, width\]"),
        (make_model(names=("images", "scale")), r"other inputs than one batch of images \(images, scale\)"),
    ],
)
def test_other_forms_are_refused(model, reason):
    with pytest.raises(GraphError, match=reason):
        check_form(model, "x.onnx")


def test_a_missing_weight_is_named_with_its_node():
    model = make_model()
    del model.graph.initializer[:]
    with pytest.raises(GraphError, match=r"node stem of x\.onnx takes weight"):
        check_form(model, "x.onnx")


@pytest.mark.parametrize("damage", ["opset", "axis", "weight", "shape"])
def test_a_graph_that_was_changed_is_refused_when_read(damage, tmp_path):
    path = tmp_path / "x.onnx"
    spec = model_spec("tf_efficientdet_lite0", ("disc",), image_size=(128, 128))
    save_graph(make_model(), path, spec=spec, stage="optimized", precision="fp32", rewrites={}, parents={})
    assert load_graph(path).spec == spec
    model = onnx.load(path)
    if damage == "opset":
        model.opset_import[0].version = 12
    elif damage == "axis":
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    elif damage == "weight":
        del model.graph.initializer[:]
    else:
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((2, 5, 1, 1), np.float32), "weight"))
    onnx.save(model, path)
    with pytest.raises(GraphError, match=r"x\.onnx") as refusal:
        load_graph(path)
    assert {"opset": "opset 12", "axis": "dynamic height", "weight": "weight", "shape": "stem"}[damage] in str(
        refusal.value
    )
