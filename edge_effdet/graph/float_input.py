"""Let a graph take its pixels as float32, for programs that feed no bytes, as DeepStream's nvinfer does.

An exported graph takes uint8 and casts it to float32 first. A float32 holds each of the 256 pixel values exactly, so without the cast the
graph computes the same numbers to the bit. Where the precision of a graph is written into it, by casts or Q/DQ pairs, it stays as it is.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from edge_effdet.artifacts import Graph
from edge_effdet.errors import GraphError
from edge_effdet.graph.model import save_graph
from edge_effdet.graph.rule import producer, replace_output

RULE = "float_input"


def write_float_input(graph: Graph, output: Path) -> Graph:
    """Write the graph with a float32 input, whose values still go from 0 to 255.

    Args:
        graph: a graph of any precision. One that takes float32 already is written as it is.
        output: the ONNX file to write.

    Returns:
        The graph, whose parent ``graph`` is the one that was given.

    Raises:
        GraphError: the input is of another type, or is used before it is cast to float32.
    """
    model = ir.load(str(graph.path))
    fired = _drop_cast(model, graph.path)
    return save_graph(
        ir.to_proto(model),
        output,
        spec=graph.spec,
        stage=graph.stage,
        precision=graph.precision,
        rewrites={**graph.rewrites, RULE: fired},
        parents={**graph.parents, "graph": graph.sha256},
        calibration=graph.calibration,
    )


def _drop_cast(model: ir.Model, path: Path) -> int:
    """Make the input float32 in place, and return how many casts were dropped."""
    pixels = model.graph.inputs[0]
    if pixels.dtype == ir.DataType.FLOAT:
        return 0
    casts = [use.node for use in pixels.uses()]
    if pixels.dtype != ir.DataType.UINT8 or not all(_casts_to_float(node) for node in casts):
        raise GraphError(
            f"{path} uses its input {pixels.name} before it is cast from uint8 to float32, so it cannot take float32 instead; export it again."
        )
    pixels.dtype = ir.DataType.FLOAT
    for node in casts:
        replace_output(node, pixels)
    return len(casts)


def _casts_to_float(node: ir.Node) -> bool:
    return producer(node.outputs[0], "Cast") is node and node.attributes.get_int("to", 0) == int(ir.DataType.FLOAT)
