"""What share of the convolution work runs in which precision in the engine itself, where its backend tells, and else in the graph.

``quant.proof`` counts the graph that went in. A compiler may do less: onnxruntime runs a convolution whose Q/DQ pairs it does not fuse
in FP32, and the graph does not show that. ``backends.engine_account`` has the backend's account of what came out.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edge_effdet.artifacts import Graph
from edge_effdet.backends.base import Compiled, require
from edge_effdet.backends.engine_account import BY_WIDTH, EngineAccount
from edge_effdet.errors import first_line
from edge_effdet.quant.optimized_model import read_optimized
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.precision import is_quantized
from edge_effdet.quant.proof import PrecisionProof, macs_before_fusion, prove_precision

logger = logging.getLogger("edge_effdet.quant")

NAMED = 3
"""Convolutions that a warning names; the record has all of them."""


@dataclass(frozen=True, slots=True)
class EngineProof:
    """Multiply-accumulates of the convolutions by precision; the final class and box convolutions stand apart.

    Attributes:
        graph: what was counted of the graph.
        source: what told of the engine; None where its backend does not, and then all below is the graph's.
        macs: by the names of ``BY_WIDTH``, of one image.
        below_graph: convolutions that are INT8 in the graph and not in the engine.
        not_named: convolutions that the account does not name; they count as in the graph.
        final: the final class and box convolutions and their precision.
    """

    graph: PrecisionProof
    source: str | None
    macs: Mapping[str, int]
    below_graph: tuple[str, ...] = ()
    not_named: tuple[str, ...] = ()
    final: Mapping[str, str] | None = None

    def fraction(self, precision: str) -> float:
        return self.macs[precision] / sum(self.macs.values())

    @property
    def warning(self) -> str | None:
        """A sentence where the engine runs less in INT8 than its graph says; None where it does not."""
        if not self.below_graph:
            return None
        more = len(self.below_graph) - NAMED
        named = ", ".join(self.below_graph[:NAMED]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{100 * self.fraction('int8'):.1f} % of the convolutions' work runs in INT8, where the graph says "
            f"{100 * self.graph.fraction('int8'):.1f} %: by {self.source}, {named} "
            f"{'do' if len(self.below_graph) > 1 else 'does'} not"
        )

    def to_dict(self) -> dict[str, Any]:
        """The graph's record, in which the shares and the final convolutions are the engine's where they are known."""
        return {
            **self.graph.to_dict(),
            **{f"{precision}_mac_fraction": self.fraction(precision) for precision in BY_WIDTH},
            "final_convolutions": dict(self.graph.final if self.final is None else self.final),
            "counted_on": "graph" if self.source is None else "engine",
            "source": self.source,
            "graph_int8_mac_fraction": self.graph.fraction("int8"),
            "layers_below_graph": list(self.below_graph),
            "layers_not_named": list(self.not_named),
        }


def account_of(compiled: Compiled, graph: Graph, backend: str) -> EngineAccount | None:
    """The backend's account of what it compiled from a graph; None where it does not tell."""
    if compiled.optimized is None:
        return compiled.account
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        optimized.write_bytes(compiled.optimized)
        try:
            precisions = read_optimized(graph.path, optimized)
        except Exception as error:
            # The engine is built, and worth more than what is told of it. What another version of onnxruntime writes may be anything.
            logger.warning("%s does not tell what it built: %s", backend, first_line(error))
            return None
    return EngineAccount(f"{backend}'s optimized model {require(backend).version}", precisions)


def prove_engine(model: ir.Model, account: EngineAccount | None) -> EngineProof:
    """Count the engine that was compiled from a graph.

    Raises:
        GraphError: a convolution's shape is unknown, or there is none.
    """
    proof = prove_precision(model)
    named = [str(node.name) for node in model.graph if node.op_type == "Conv"]
    if account is not None and not any(name in account.precisions for name in named):
        # A runtime that calls them otherwise by now tells nothing of them.
        logger.warning("%s names none of the convolutions, so the graph is counted", account.source)
        account = None
    if account is None:
        return EngineProof(proof, None, {"bf16": 0, **proof.macs})
    macs: dict[str, int] = dict.fromkeys(BY_WIDTH, 0)
    final: dict[str, str] = {}
    below: list[str] = []
    not_named: list[str] = []
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        name, wanted = node.name or "?", _graph_precision(node)
        precision = account.precisions.get(name, wanted)
        if name not in account.precisions:
            not_named.append(name)
        if is_final(name):
            final[name] = precision
            continue
        macs[precision] += macs_before_fusion(node)
        if wanted == "int8" != precision:
            below.append(name)
    return EngineProof(proof, account.source, macs, tuple(below), tuple(not_named), final)


def _graph_precision(conv: ir.Node) -> str:
    if is_quantized(conv):
        return "int8"
    return "fp16" if conv.outputs[0].dtype == ir.DataType.FLOAT16 else "fp32"
