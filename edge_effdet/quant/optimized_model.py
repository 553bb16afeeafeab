"""Which convolutions run in INT8, read from the model that onnxruntime made of a graph.

A session writes its optimized model to a file. A convolution in INT8 is a ``QLinearConv`` there, or a ``ConvInteger``, and bears its
node's name, with a number behind it where it was made anew. All others are floating point, whatever Q/DQ stands around them. The
layout transformer names these after their output, behind an activation that may have been fused, so a name does not always lead
back to the node. It need not: what is not INT8 has one type as a rule, and then all the rest has it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import TensorProto

from edge_effdet.backends.engine_account import widest

INTEGER = frozenset({"QLinearConv", "ConvInteger"})
FLOATING = frozenset({"Conv", "FusedConv", "NhwcFusedConv"})
"""Of onnxruntime's own domains as well as of ONNX's."""

_NUMBER = re.compile(r"_token_\d+$")
_LAYOUT = re.compile(r"_nchwc$")
_TYPES: Mapping[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}


def read_optimized(graph: Path, optimized: Path) -> dict[str, str]:
    """The precision of each convolution of a graph, by its node's name; those that cannot be told are missing.

    Args:
        graph: the file that a session was given.
        optimized: the file that the session wrote.
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
        candidates = (node.name, _NUMBER.sub("", node.name), by_output.get(_LAYOUT.sub("", node.name)))
        name = next((each for each in candidates if each in names), None)
        if name is None:
            unnamed.add(precision)
        elif precision:
            precisions[name] = widest([precision, precisions.get(name, precision)])
    if len(unnamed) == 1 and unnamed <= {*_TYPES.values()}:
        precisions.update(dict.fromkeys(names - precisions.keys(), unnamed.pop()))
    return precisions


def _floating_type(graph: onnx.GraphProto, node: onnx.NodeProto) -> str:
    """Of a convolution's weights, which is the type that it computes in; empty where it is not known."""
    weight = node.input[1]
    maker = next((each for each in graph.node if weight in each.output), None)
    if maker is not None and maker.op_type == "Cast":
        return _TYPES.get(next(each.i for each in maker.attribute if each.name == "to"), "")
    if maker is not None and maker.op_type == "DequantizeLinear":
        weight = maker.input[1]
    return _TYPES.get(next((each.data_type for each in graph.initializer if each.name == weight), 0), "")
