"""The share of the convolutions' work that runs in each precision: of a graph, and of the engine that was compiled from it.

The host lists a graph's convolutions (``quant.proof``). The list travels with the graph, so that a device that compiles it counts its own engine
without onnx.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_effdet.artifacts.record import Proof
from edge_effdet.backends.engine_account import BY_WIDTH, EngineAccount
from edge_effdet.errors import GraphError

logger = logging.getLogger("edge_effdet.backends.work")

NAMED = 3
"""How many convolutions a warning names; the record names all of them."""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of a graph.

    Attributes:
        name: of its node.
        macs: multiply-accumulates for one image; those of the pair that it replaces, where a pair was fused; 0 for a final one.
        precision: ``int8``, ``fp16`` or ``fp32``, by the graph.
        final: whether it is one of the final class and box convolutions, which are left out of the shares.
    """

    name: str
    macs: int
    precision: str
    final: bool


@dataclass(frozen=True, slots=True)
class PrecisionProof:
    """The work of a graph's convolutions by precision. The final class and box convolutions are not in these counts.

    Attributes:
        macs: multiply-accumulates for one image, by ``int8``, ``fp16`` and ``fp32``.
        kept_high: the names of the convolutions that are not INT8, without the final ones.
        final: the final class and box convolutions and their precision.
    """

    macs: Mapping[str, int]
    kept_high: tuple[str, ...]
    final: Mapping[str, str]

    def fraction(self, precision: str) -> float:
        """The share of the work that runs in a precision, 0 to 1."""
        return self.macs[precision] / sum(self.macs.values())

    def to_dict(self) -> dict[str, Any]:
        """The part ``proof`` of an engine's JSON."""
        return {
            "int8_mac_fraction": self.fraction("int8"),
            "fp16_mac_fraction": self.fraction("fp16"),
            "fp32_mac_fraction": self.fraction("fp32"),
            "convolution_macs": sum(self.macs.values()),
            "layers_kept_high_precision": list(self.kept_high),
            "final_convolutions": dict(self.final),
        }


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


def count_graph(convolutions: Sequence[Convolution]) -> PrecisionProof:
    """Count the work of a graph's convolutions. Raises GraphError where it has none but final ones."""
    macs = {"int8": 0, "fp16": 0, "fp32": 0}
    body = [each for each in convolutions if not each.final]
    for each in body:
        macs[each.precision] += each.macs
    if not sum(macs.values()):
        raise GraphError("The graph holds no convolution, so it is not a detector; give a graph that export wrote.")
    kept_high = tuple(each.name for each in body if each.precision != "int8")
    return PrecisionProof(macs, kept_high, {each.name: each.precision for each in convolutions if each.final})


def count_engine(convolutions: Sequence[Convolution], account: EngineAccount | None) -> EngineProof:
    """Count the work of the engine that was compiled from a graph.

    Args:
        convolutions: the graph's.
        account: what the backend says of the engine; None counts the graph.

    Raises:
        GraphError: the graph has no convolution.
    """
    proof = count_graph(convolutions)
    if account is not None and not any(each.name in account.precisions for each in convolutions):
        # A later version of the runtime may give the convolutions other names.
        logger.warning("%s names none of the convolutions, so the graph is counted", account.source)
        account = None
    if account is None:
        return EngineProof(proof, None, {"bf16": 0, **proof.macs})
    macs: dict[str, int] = dict.fromkeys(BY_WIDTH, 0)
    final: dict[str, str] = {}
    below: list[str] = []
    for each in convolutions:
        precision = account.precisions.get(each.name, each.precision)
        if each.final:
            final[each.name] = precision
            continue
        macs[precision] += each.macs
        if each.precision == "int8" != precision:
            below.append(each.name)
    not_named = tuple(each.name for each in convolutions if each.name not in account.precisions)
    return EngineProof(proof, account.source, macs, tuple(below), not_named, final)
