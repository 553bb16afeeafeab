"""The share of the convolutions' work that runs in each precision, counted on the graph itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edge_effdet.errors import GraphError
from edge_effdet.graph.counting import macs_before_fusion
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.precision import is_quantized


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


def prove_precision(model: ir.Model) -> PrecisionProof:
    """Count the work of a graph's convolutions.

    A convolution is INT8 only where its input and its weights both come from a DequantizeLinear.

    Raises:
        GraphError: the graph has no convolution, or the shape of one is unknown.
    """
    macs = {"int8": 0, "fp16": 0, "fp32": 0}
    kept_high: list[str] = []
    final: dict[str, str] = {}
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        name, precision = node.name or "?", graph_precision(node)
        if is_final(name):
            final[name] = precision
            continue
        macs[precision] += macs_before_fusion(node)
        if precision != "int8":
            kept_high.append(name)
    if not sum(macs.values()):
        raise GraphError("The graph holds no convolution, so it is not a detector; give a graph that export wrote.")
    return PrecisionProof(macs, tuple(kept_high), final)


def graph_precision(conv: ir.Node) -> str:
    """The precision of a convolution by the graph: ``int8``, ``fp16`` or ``fp32``."""
    if is_quantized(conv):
        return "int8"
    return "fp16" if conv.outputs[0].dtype == ir.DataType.FLOAT16 else "fp32"
