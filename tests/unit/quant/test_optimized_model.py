"""onnxruntime's optimized model tells the precision of each convolution, whether it keeps its name or loses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Graph, ModelSpec
from edge_effdet.backends import onnxruntime
from edge_effdet.backends.base import CompileOptions
from edge_effdet.quant.account import account_of
from edge_effdet.quant.optimized_model import read_optimized

SPEC = ModelSpec("tiny", (16, 16), ("thing",), (1,))


def save(path: Path, nodes: list, arrays: dict, shape: list[int]) -> Path:
    """A graph from ``x`` float32 [1, 16, 16, 16] to ``out``."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("x", [1, 16, 16, 16]), ("out", shape))
    ]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "tiny", values[:1], values[1:], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def precisions_of(path: Path) -> dict[str, str]:
    graph = Graph(path, SPEC, "optimized", "int8", {}, {}, {}, "0" * 64)
    compiled = onnxruntime.compile(graph, CompileOptions())
    account = account_of(compiled, graph, "onnxruntime")
    assert account is not None
    assert compiled.content == path.read_bytes()
    assert [each.name for each in path.parent.iterdir()] == [path.name], "the optimized model was left behind"
    return dict(account.precisions)


@pytest.mark.parametrize("activation", ["Relu", "Clip", "Sigmoid", "Softsign"])
def test_fp32_under_whatever_name_the_layout_gives_it(tmp_path: Path, activation: str):
    """The layout transformer fuses some activations, and then names the convolution after its output."""
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(16, 16, 3, 3)), "b": rng.normal(size=(16, 16, 1, 1)), "low": 0.0, "high": 6.0}
    limits = ["low", "high"] if activation == "Clip" else []
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node(activation, ["y", *limits], ["z"], name="activation"),
        helper.make_node("Conv", ["z", "b"], ["out"], name="second"),
    ]
    arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}
    path = save(tmp_path / "tiny.onnx", nodes, arrays, [1, 16, 16, 16])
    assert precisions_of(path) == {"first": "fp32", "second": "fp32"}


def quantized(zero: int, arrays: dict) -> list:
    """``conv`` between unsigned codes, which onnxruntime fuses on every processor, and ``open`` whose output is not quantized."""
    rng = np.random.default_rng(0)
    arrays |= {
        "scale": np.float32(0.05),
        "zero": np.uint8(zero),
        "codes": rng.integers(-63, 64, (8, 16, 1, 1), np.int8),
        "scales": np.full(8, 0.01, np.float32),
        "zeros": np.zeros(8, np.int8),
        "codes2": rng.integers(-63, 64, (8, 8, 1, 1), np.int8),
    }
    pairs = [
        node
        for source, result in (("x", "d"), ("y", "e"))
        for node in (
            helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{source}_q"]),
            helper.make_node("DequantizeLinear", [f"{source}_q", "scale", "zero"], [result]),
        )
    ]
    return [
        helper.make_node("DequantizeLinear", ["codes", "scales", "zeros"], ["w"], axis=0),
        helper.make_node("DequantizeLinear", ["codes2", "scales", "zeros"], ["v"], axis=0),
        *pairs[:2],
        helper.make_node("Conv", ["d", "w"], ["y"], name="conv"),
        *pairs[2:],
        helper.make_node("Conv", ["e", "v"], ["z"], name="open"),
        helper.make_node("Softsign", ["z"], ["out"]),
    ]


def test_a_convolution_is_int8_where_its_output_is_quantized_too(tmp_path: Path):
    arrays: dict = {}
    path = save(tmp_path / "tiny.onnx", quantized(128, arrays), arrays, [1, 8, 16, 16])
    assert precisions_of(path) == {"conv": "int8", "open": "fp32"}


def test_what_cannot_be_told_apart_is_left_out(tmp_path: Path):
    """Two convolutions have unknown names and different types, so neither type may be given to either."""
    half = np.zeros((16, 16, 1, 1), np.float16)
    arrays = {"a": half.astype(np.float32), "b": half}
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["y"], name="first"),
        helper.make_node("Cast", ["y"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("Conv", ["h", "b"], ["i"], name="second"),
        helper.make_node("Cast", ["i"], ["out"], to=TensorProto.FLOAT),
    ]
    source = save(tmp_path / "tiny.onnx", nodes, arrays, [1, 16, 16, 16])
    assert read_optimized(source, source) == {"first": "fp32", "second": "fp16"}
    made = onnx.load(source)
    for position, node in enumerate(made.graph.node):
        node.name = f"made_{position}"
    outputs = {"y": "made_y", "i": "made_i"}
    for node in made.graph.node:
        node.input[0], node.output[0] = (outputs.get(name, name) for name in (node.input[0], node.output[0]))
    onnx.save(made, tmp_path / "made.onnx")
    assert read_optimized(source, tmp_path / "made.onnx") == {}
