"""Make a graph FP16 by casts, so that a strongly typed build computes what the file says.

Everything from the first convolution on runs in FP16, with these exceptions:

- Every TopK runs in FP32, and so do scores and box decoding behind the last one: an FP16 coordinate in an image of 512 pixels has
  steps of up to half a pixel. The normalisation of the pixels, before the first convolution, is FP32 too.
- QuantizeLinear, DequantizeLinear, the convolutions between them and the activations behind these stay in FP32. So the scales are
  FP32, and the compiler sees ``DQ -> Conv -> activation -> Q`` without a cast inside, which is the form that it fuses.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edge_effdet.errors import GraphError
from edge_effdet.graph.rule import add_initializer, constant, producer

_LIMIT = float(np.finfo(np.float16).max)
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
_FUSED_WITH_INT8 = frozenset({"Clip", "Relu", "Sigmoid", "HardSwish", "HardSigmoid"})
"""Activations that a compiler fuses with the INT8 convolution before them."""
_FLOAT_ONLY_INPUTS = {"Resize": (1, 2)}
"""Positions of inputs whose type ONNX fixes to FP32: roi and scales."""


def convert_to_half(model: ir.Model) -> int:
    """Cast a graph to FP16 in place, as this module's docstring says. Its inputs and outputs keep their types.

    Returns:
        How many nodes run in FP16.

    Raises:
        GraphError: a weight does not fit into FP16, or the type of a tensor is unknown.
    """
    from onnx_ir.passes.common import ShapeInferencePass

    ShapeInferencePass()(model)
    half = _half_nodes(model.graph)
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    converted: dict[ir.Value, ir.Value] = {}
    for node in list(model.graph):
        if node not in half:
            continue
        for position, value in enumerate(node.inputs):
            if value is None or position in _FLOAT_ONLY_INPUTS.get(node.op_type, ()):
                continue
            array = constant(value)
            if array is not None:
                if array.dtype == np.float32:
                    node.replace_input_with(position, _half_constant(model.graph, value, array, converted))
            elif value.dtype == ir.DataType.FLOAT and value.producer() not in half:
                node.replace_input_with(position, _cast(model.graph, value, ir.DataType.FLOAT16, casts))
    for node in half:
        for value in node.outputs:
            if value.dtype != ir.DataType.FLOAT:
                continue
            value.dtype = ir.DataType.FLOAT16
            outside = [use for use in value.uses() if use.node not in half]
            if not outside and not value.is_graph_output():
                continue
            back = _cast(model.graph, value, ir.DataType.FLOAT, casts)
            for user, position in outside:
                if user is not back.producer():
                    user.replace_input_with(position, back)
            _move_graph_output(model.graph, value, back)
    _drop_unused_initializers(model)
    return len(half)


def _half_nodes(graph: ir.Graph) -> set[ir.Node]:
    # Between two TopKs the chosen rows are gathered from all scores, which would all have to be cast first if this were FP32.
    before_topk: set[ir.Node] = set()
    for node in reversed(graph):
        if any(use.node.op_type == "TopK" or use.node in before_topk for value in node.outputs for use in value.uses()):
            before_topk.add(node)
    after_conv: set[ir.Node] = set()
    after_topk: set[ir.Node] = set()
    quantized: set[ir.Node] = set()
    for node in graph:
        parents = [value.producer() for value in node.inputs if value is not None]
        if node.op_type == "Conv" or any(parent in after_conv for parent in parents):
            after_conv.add(node)
        if node.op_type == "TopK" or (node not in before_topk and any(parent in after_topk for parent in parents)):
            after_topk.add(node)
        if node.op_type in _QDQ or is_quantized(node):
            quantized.add(node)
        computed = [parent for parent in parents if parent is not None and parent.op_type != "Constant"]
        follows = bool(computed) and all(parent in quantized and parent.op_type not in _QDQ for parent in computed)
        # A Mul is the end of a SiLU, x * sigmoid(x), only where both its inputs follow a quantized convolution.
        if (node.op_type in _FUSED_WITH_INT8 or node.op_type == "Mul") and follows:
            quantized.add(node)
    nodes = after_conv - after_topk - quantized
    for node in nodes:
        if any(value.dtype is None for value in node.outputs):
            raise GraphError(
                f"The type of {node.name}'s output is unknown, so it cannot be cast to FP16; export the graph again."
            )
    return {node for node in nodes if any(value.dtype == ir.DataType.FLOAT for value in node.outputs)}


def is_quantized(node: ir.Node) -> bool:
    """Whether a node is a convolution whose input and weights both come from a DequantizeLinear."""
    return node.op_type == "Conv" and all(producer(value, "DequantizeLinear") for value in node.inputs[:2])


def _half_constant(
    graph: ir.Graph, value: ir.Value, array: np.ndarray, converted: dict[ir.Value, ir.Value]
) -> ir.Value:
    if value not in converted:
        # A Clip without an upper bound has the largest float32 number in its place.
        largest = np.abs(array[np.abs(array) < np.finfo(np.float32).max]).max(initial=0.0)
        if largest > _LIMIT:
            raise GraphError(
                f"{value.name} holds {largest:g}, beyond FP16's {_LIMIT:g}; the checkpoint has diverged, so train it again."
            )
        half = np.clip(array, -_LIMIT, _LIMIT).astype(np.float16)
        converted[value] = add_initializer(graph, f"{value.name}_fp16", half)
    return converted[value]


def _cast(
    graph: ir.Graph, value: ir.Value, to: ir.DataType, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]
) -> ir.Value:
    if (value, to) not in casts:
        name = f"{value.name}_to_{'fp16' if to == ir.DataType.FLOAT16 else 'fp32'}"
        output = ir.Value(name=name, shape=value.shape, type=ir.TensorType(to))
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(to))], outputs=[output], name=f"cast_{name}")
        source = value.producer()
        if source is None:
            graph.insert_before(graph[0], cast)
        else:
            graph.insert_after(source, cast)
        casts[value, to] = output
    return casts[value, to]


def _move_graph_output(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    for position, output in enumerate(graph.outputs):
        if output is old:
            old.name, new.name = f"{old.name}_fp16", old.name
            graph.outputs[position] = new


def _drop_unused_initializers(model: ir.Model) -> None:
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)
