"""TensorRT's account of an engine: the builder's log by the real TensorRT-RTX, the inspector's JSON as documented.

No GPU is here, so the JSON was written after NVIDIA's documentation of both schemas, and no engine has confirmed it.
"""

from __future__ import annotations

import json
from collections import deque
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Graph, ModelSpec
from edge_effdet.backends.base import CompileOptions
from edge_effdet.backends.tensorrt import builder as tensorrt
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.backends.tensorrt.layers import convolution_precisions, layers_from_json, layers_from_log

SPEC = ModelSpec("tiny", (16, 16), ("thing",), (1,))
INT8_TENSOR = "Thirty-two wide channel vectorized row major Int8 format"


def make_graph(folder, batch: int | str = 1) -> Graph:
    """Images uint8 [B, 3, 16, 16]; ``conv`` in INT8, behind it ``high`` in FP32."""
    rng = np.random.default_rng(0)
    arrays = {
        "scale": np.float32(2),
        "zero": np.int8(0),
        "codes": rng.integers(-127, 128, (8, 3, 3, 3), np.int8),
        "scales": np.full(8, 0.02, np.float32),
        "zeros": np.zeros(8, np.int8),
        "weight": rng.normal(size=(8, 8, 1, 1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("Conv", ["d", "w"], ["y"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["y"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "weight"], ["out"], name="high"),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 3, 16, 16])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, 8, 16, 16])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    path = folder / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return Graph(path, SPEC, "quantized", "int8", {}, {}, {}, "0" * 64)


@pytest.mark.parametrize(("target", "batch"), [("89", 1), ("86+89+120", 1), ("89", "batch")])
def test_the_builder_tells_for_each_target_and_profile(tmp_path, target: str, batch):
    trt = pytest.importorskip("tensorrt_rtx")
    options = CompileOptions(target=target, batch_sizes=(1, 4))
    compiled = tensorrt_rtx.compile(make_graph(tmp_path, batch), options)
    account = compiled.account
    assert len(compiled.content) > 10_000
    assert account is not None
    assert account.source == f"TensorRT-RTX's builder log {trt.__version__}"
    assert {name: account.precisions.get(name) for name in ("conv", "high")} == {"conv": "int8", "high": "fp32"}


def test_a_builder_that_lists_no_layers_gives_no_account(tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    log = SimpleNamespace(messages=deque([("INFO", "Engine generation completed.")]))
    assert tensorrt._read_account(tensorrt_rtx.FLAVOR, trt, log, b"engine") is None
    assert layers_from_log(["Layers: none"]) == []


def line(name: str, kind: str, inputs: str, constants: str, metadata: str) -> str:
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [{inputs}], Constants: [{constants}], Outputs: [], TacticName: , "
        f"StreamId: 0, Metadata: {metadata}"
    )


def tensor(shape: str, kind: str) -> str:
    return f" {{ Name: t, Dimensions: [{shape}], Strides: [1], StrideOrder: [0], Datatype: {kind}, Format: (NHWC) x }}"


def read(*lines: str) -> dict[str, str]:
    return convolution_precisions(layers_from_log(["something else", "Layers:\n" + "\n".join(lines)]))


def test_the_weights_are_the_largest_constant_wherever_they_stand():
    bias, weights = tensor("1,320,1", "Float"), tensor("1,320,1152", "Half")
    both = line(
        "f", "runtime_fusion", tensor("1,1152,100", "Half"), f"{bias},{weights}", "[ONNX Layer: a][ONNX Layer: b]"
    )
    assert read(both) == {"a": "fp16", "b": "fp16"}
    int8 = line(
        "c",
        "correlation",
        tensor("1,8,4,4", "Int8"),
        f"{tensor('8,8,1,1', 'Int8')},{tensor('1,8,1,1', 'Float')}",
        "[ONNX Layer: c]",
    )
    assert read(int8) == {"c": "int8"}


def test_a_residual_in_int8_beside_weights_in_fp16_is_no_int8():
    residual = f"{tensor('1,8,4,4', 'Half')},{tensor('1,8,4,4', 'Int8')}"
    assert read(line("c", "correlation", residual, tensor("8,8,1,1", "Half"), "[ONNX Layer: c]")) == {"c": "fp16"}


def test_layers_that_only_prepare_or_finish_are_no_account_of_a_convolution():
    assert read(line("k", "kgen", tensor("1,8,4,4", "Float"), tensor("1,8,1,1", "Int8"), "[ONNX Layer: c]")) == {}


def test_of_several_layers_for_one_convolution_the_widest_counts():
    lines = [
        line("c", "correlation", tensor("1,8,4,4", kind), tensor("8,8,1,1", kind), "[ONNX Layer: c]")
        for kind in ("Int8", "Half", "Int8")
    ]
    assert read(*lines) == {"c": "fp16"}


def documented(inputs: list[dict], **more) -> str:
    layer = {"Name": "c + relu", "LayerType": "CaskConvolution", "Inputs": inputs, "Outputs": [], **more}
    return json.dumps({"Layers": [layer], "Bindings": ["images"]})


@pytest.mark.parametrize(
    ("kind", "weights", "expected"),
    [
        (INT8_TENSOR, "Int8", "int8"),
        ("Channel major FP16 format where channel % 8 == 0", "Half", "fp16"),
        ("Row major linear FP32", "Float", "fp32"),
        ("Row major linear BF16 format", "BFloat16", "bf16"),
        (INT8_TENSOR, "Half", "fp16"),
    ],
)
def test_the_inspectors_json_of_tensorrt_10(kind: str, weights: str, expected: str):
    text = documented(
        [{"Name": "x", "Dimensions": [1, 32, 8, 8], "Format/Datatype": kind}],
        Weights={"Type": weights, "Count": 9216},
        Metadata="[ONNX Layer: c]\u001e[ONNX Layer: relu]",
    )
    assert convolution_precisions(layers_from_json(text)) == {"c": expected, "relu": expected}


def test_the_inspectors_json_with_a_field_for_the_type():
    text = json.dumps(
        {
            "Layers": [
                {
                    "Name": "c_myl0_3",
                    "LayerType": "correlation",
                    "Inputs": [
                        {"Dimensions": [1, 8, 4, 4], "Datatype": "Int8", "Format": "(NHWC) Channel major format"}
                    ],
                    "Constants": [
                        {"Dimensions": [1, 8, 1, 1], "Datatype": "Float"},
                        {"Dimensions": [8, 8, 1, 1], "Datatype": "Int8"},
                    ],
                    "Metadata": "[ONNX Layer: c]",
                }
            ]
        }
    )
    assert convolution_precisions(layers_from_json(text)) == {"c": "int8"}


def test_an_engine_without_details_tells_nothing():
    assert layers_from_json(json.dumps({"Layers": ["c + relu", "Reformat"], "Bindings": []})) == []
    assert layers_from_json('{"Layers": [{"Name": cut off') == []


class SimulatedTensorRT:
    """In place of TensorRT with a GPU: a runtime whose engine has an inspector that gives ``text``."""

    __version__ = "10.3.0"
    LayerInformationFormat = SimpleNamespace(JSON="json")

    def __init__(self, text: str | None) -> None:
        inspector = SimpleNamespace(get_engine_information=lambda form: {"json": text}[form])
        engine = None if text is None else SimpleNamespace(create_engine_inspector=lambda: inspector)
        self.Runtime = lambda log: SimpleNamespace(deserialize_cuda_engine=lambda content: engine)


def test_tensorrt_is_asked_by_its_inspector_where_the_log_lists_nothing():
    text = documented(
        [{"Name": "x", "Format/Datatype": INT8_TENSOR}], Weights={"Type": "Int8"}, Metadata="[ONNX Layer: c]"
    )
    log = SimpleNamespace(messages=deque())
    account = tensorrt._read_account(tensorrt.FLAVOR, SimulatedTensorRT(text), log, b"engine")
    assert account is not None
    assert (account.source, account.precisions) == ("TensorRT's engine inspector 10.3.0", {"c": "int8"})
    assert tensorrt._read_account(tensorrt.FLAVOR, SimulatedTensorRT(None), log, b"engine") is None
