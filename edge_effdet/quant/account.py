"""The share of the convolutions' work that runs in each precision, counted on the engine where its backend tells, else on the graph.

``quant.proof`` counts the graph that is compiled. A compiler may run less in INT8: onnxruntime runs a convolution in FP32 where it
cannot fuse its Q/DQ pairs, and the graph does not show that. ``backends.engine_account`` is a backend's account of what it built.
"""

from __future__ import annotations

import logging

import onnx_ir as ir

from edge_effdet.artifacts import Graph, temporary_folder
from edge_effdet.backends.base import Compiled, require
from edge_effdet.backends.engine_account import EngineAccount
from edge_effdet.backends.work import EngineProof, count_engine
from edge_effdet.errors import first_line
from edge_effdet.quant.optimized_model import read_optimized
from edge_effdet.quant.proof import list_convolutions

logger = logging.getLogger("edge_effdet.quant")


def account_of(compiled: Compiled, graph: Graph, backend: str) -> EngineAccount | None:
    """The backend's account of what it compiled from a graph; None where it does not tell."""
    if compiled.optimized is None:
        return compiled.account
    with temporary_folder() as folder:
        optimized = folder / "optimized.onnx"
        optimized.write_bytes(compiled.optimized)
        try:
            precisions = read_optimized(graph.path, optimized)
        except Exception as error:
            # The engine is built, and worth more than what is told of it. What another version of onnxruntime writes may be anything.
            logger.warning("%s does not tell what it built: %s", backend, first_line(error))
            return None
    return EngineAccount(f"{backend}'s optimized model {require(backend).version}", precisions)


def prove_engine(model: ir.Model, account: EngineAccount | None) -> EngineProof:
    """Count the work of the engine that was compiled from a graph.

    Args:
        model: the graph.
        account: what the backend says of the engine; None counts the graph.

    Raises:
        GraphError: the graph has no convolution, or the shape of one is unknown.
    """
    return count_engine(list_convolutions(model), account)
