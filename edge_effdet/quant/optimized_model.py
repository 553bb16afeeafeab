"""Read from the model that onnxruntime made of a graph in which precision each convolution runs.

A session can write its optimized model to a file. There a convolution in INT8 is a ``QLinearConv`` or a ``ConvInteger`` with the name
of its node, and with a number behind the name where onnxruntime made the node anew. All other convolutions compute in floating point,
even with Q/DQ around them. The layout transformer names these after their output, which may be that of a fused activation, so the name
does not always lead back to the node. It need not: as a rule all convolutions that are not INT8 have the same type, and then a
convolution that cannot be found has it too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Set
from pathlib import Path

import onnx
from onnx import TensorProto

from edge_effdet.backends.engine_account import widest

INTEGER = frozenset({"QLinearConv", "ConvInteger"})
FLOATING = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})
"""Operators of ONNX and of onnxruntime's own domains."""

_NUMBER = re.compile(r"_token_\d+$")
_LAYOUT = re.compile(r"_nchwc$")
_PRECISION_OF_TYPE: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
}


def read_optimized(graph: Path, optimized: Path) -> dict[str, str]:
    """The precision of each convolution of a graph, by its node's name. A convolution whose precision is unknown is missing.

    Args:
        graph: the ONNX file that a session was given.
        optimized: the ONNX file that the session wrote.
    """
    source, made = (onnx.load(str(path), load_external_data=False).graph for path in (graph, optimized))
    names = {node.name for node in source.node if node.op_type == "Conv"}
    by_output = {node.output[0]: node.name for node in source.node if node.op_type == "Conv"}
    precisions: dict[str, str] = {}
    unnamed: set[str] = set()
    for node in made.node:
        if node.op_type not in INTEGER | FLOATING:
            continue
        precision = "int8" if node.op_type in INTEGER else _floating_type(made, node)
        name = find_node(node.name, names, by_output)
        if name is None:
            unnamed.add(precision)
        elif precision:
            precisions[name] = widest([precision, precisions.get(name, precision)])
    if len(unnamed) == 1 and unnamed <= {*_PRECISION_OF_TYPE.values()}:
        precisions.update(dict.fromkeys(names - precisions.keys(), unnamed.pop()))
    return precisions


def find_node(name: str, names: Set[str], by_output: Mapping[str, str]) -> str | None:
    """The convolution of the graph that a node of the optimized model was made from; None where its name does not lead to one.

    Args:
        name: the name in the optimized model.
        names: the names of the graph's convolutions.
        by_output: these names by the tensors that a node may be called after.
    """
    candidates = (name, _NUMBER.sub("", name), by_output.get(_LAYOUT.sub("", name)))
    return next((each for each in candidates if each in names), None)


def _floating_type(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """The type of a convolution's weights, in which it computes; empty where it is unknown."""
    weight = node.input[1]
    maker = next((each for each in graph.node if weight in each.output), None)
    if maker is not None and maker.op_type == "Cast":
        return _PRECISION_OF_TYPE.get(next(each.i for each in maker.attribute if each.name == "to"), "")
    if maker is not None and maker.op_type == "DequantizeLinear":
        weight = maker.input[1]
    return _PRECISION_OF_TYPE.get(next((each.data_type for each in graph.initializer if each.name == weight), 0), "")
