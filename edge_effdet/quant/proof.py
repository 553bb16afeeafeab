"""The convolutions of a graph: their work, and the precision that the graph gives them."""

from __future__ import annotations

import onnx_ir as ir

from edge_effdet.backends.work import Convolution, PrecisionProof, count_graph
from edge_effdet.graph.counting import macs_before_fusion
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.precision import is_quantized


def prove_precision(model: ir.Model) -> PrecisionProof:
    """Count the work of a graph's convolutions.

    Raises:
        GraphError: the graph has no convolution, or the shape of one is unknown.
    """
    return count_graph(list_convolutions(model))


def list_convolutions(model: ir.Model) -> tuple[Convolution, ...]:
    """The convolutions of a graph in its order.

    One is INT8 only where its input and its weights both come from a DequantizeLinear.

    Raises:
        GraphError: the shape of one is unknown.
    """
    return tuple(_describe(node) for node in model.graph if node.op_type == "Conv")


def _describe(conv: ir.Node) -> Convolution:
    name = conv.name or "?"
    final = is_final(name)
    # The shapes of the final ones are not needed, and a graph that was cut may lack them.
    return Convolution(name, 0 if final else macs_before_fusion(conv), graph_precision(conv), final)


def graph_precision(conv: ir.Node) -> str:
    """The precision of a convolution by the graph: ``int8``, ``fp16`` or ``fp32``."""
    if is_quantized(conv):
        return "int8"
    return "fp16" if conv.outputs[0].dtype == ir.DataType.FLOAT16 else "fp32"
