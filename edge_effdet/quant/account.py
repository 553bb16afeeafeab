"""The share of the convolutions' work that runs in each precision, counted on the engine where its backend tells, else on the graph.

``quant.proof`` counts the graph that is compiled. A compiler may run less in INT8: onnxruntime runs a convolution in FP32 where it
cannot fuse its Q/DQ pairs, and the graph does not show that. ``backends.engine_account`` is a backend's account of what it built.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from edge_effdet.artifacts import Graph
from edge_effdet.artifacts.record import Proof
from edge_effdet.backends.base import Compiled, require
from edge_effdet.backends.engine_account import BY_WIDTH, EngineAccount
from edge_effdet.errors import first_line
from edge_effdet.graph.counting import macs_before_fusion
from edge_effdet.quant.optimized_model import read_optimized
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.proof import PrecisionProof, graph_precision, prove_precision

logger = logging.getLogger("edge_effdet.quant")

NAMED = 3
"""How many convolutions a warning names; the record names all of them."""


@dataclass(frozen=True, slots=True)
class EngineProof:
    """The work of an engine's convolutions by precision. The final class and box convolutions are not in these counts.

    Attributes:
        graph: the counts of the graph that was compiled.
        source: who gave the account of the engine; None where the backend gives none, and then the counts are the graph's.
        macs: multiply-accumulates for one image, by the precisions of ``BY_WIDTH``.
        below_graph: the convolutions that are INT8 in the graph and not in the engine.
        not_named: the convolutions that the account does not name; they count with the precision of the graph.
        final: the final class and box convolutions and their precision; None where it is the graph's.
    """

    graph: PrecisionProof
    source: str | None
    macs: Mapping[str, int]
    below_graph: tuple[str, ...] = ()
    not_named: tuple[str, ...] = ()
    final: Mapping[str, str] | None = None

    def fraction(self, precision: str) -> float:
        """The share of the work that runs in a precision, 0 to 1."""
        return self.macs[precision] / sum(self.macs.values())

    @property
    def warning(self) -> str | None:
        """A sentence where the engine runs less in INT8 than its graph says; else None."""
        if not self.below_graph:
            return None
        more = len(self.below_graph) - NAMED
        named = ", ".join(self.below_graph[:NAMED]) + (f" and {more} more" if more > 0 else "")
        return (
            f"{100 * self.fraction('int8'):.1f} % of the convolutions' work runs in INT8, where the graph says "
            f"{100 * self.graph.fraction('int8'):.1f} %: {self.source} has {named} in a higher precision"
        )

    def record(self) -> Proof:
        """The part ``proof`` of the engine's record."""
        return Proof(
            **{f"{precision}_mac_fraction": self.fraction(precision) for precision in BY_WIDTH},
            convolution_macs=sum(self.macs.values()),
            graph_int8_mac_fraction=self.graph.fraction("int8"),
            counted_on="graph" if self.source is None else "engine",
            source=self.source,
            layers_kept_high_precision=self.graph.kept_high,
            layers_below_graph=self.below_graph,
            layers_not_named=self.not_named,
            final_convolutions=dict(self.graph.final if self.final is None else self.final),
        )


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
    """Count the work of the engine that was compiled from a graph.

    Args:
        model: the graph.
        account: what the backend says of the engine; None counts the graph.

    Raises:
        GraphError: the graph has no convolution, or the shape of one is unknown.
    """
    proof = prove_precision(model)
    named = [str(node.name) for node in model.graph if node.op_type == "Conv"]
    if account is not None and not any(name in account.precisions for name in named):
        # A later version of the runtime may give the convolutions other names.
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
        name, wanted = node.name or "?", graph_precision(node)
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
