"""What share of a graph's convolution work runs in which precision, read off the graph itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edge_effdet.errors import GraphError
from edge_effdet.graph.rules.fuse_separable import MACS_BEFORE_FUSION
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.precision import is_quantized


@dataclass(frozen=True, slots=True)
class PrecisionProof:
    """Multiply-accumulates of the convolutions by precision; the final class and box convolutions stand apart.

    Attributes:
        macs: by ``int8``, ``fp16``, ``fp32``, of one image.
        kept_high: names of the convolutions that are not INT8, without the final ones.
        final: the final class and box convolutions and their precision.
    """

    macs: Mapping[str, int]
    kept_high: tuple[str, ...]
    final: Mapping[str, str]

    def fraction(self, precision: str) -> float:
        return self.macs[precision] / sum(self.macs.values())

    def to_dict(self) -> dict[str, Any]:
        return {
            "int8_mac_fraction": self.fraction("int8"),
            "fp16_mac_fraction": self.fraction("fp16"),
            "fp32_mac_fraction": self.fraction("fp32"),
            "convolution_macs": sum(self.macs.values()),
            "layers_kept_high_precision": list(self.kept_high),
            "final_convolutions": dict(self.final),
        }


def prove_precision(model: ir.Model) -> PrecisionProof:
    """Count a graph. A convolution is INT8 only where input and weights both come from a DequantizeLinear.

    Raises:
        GraphError: a convolution's shape is unknown.
    """
    macs = {"int8": 0, "fp16": 0, "fp32": 0}
    kept_high: list[str] = []
    final: dict[str, str] = {}
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        name, precision = node.name or "?", _precision(node)
        if is_final(name):
            final[name] = precision
            continue
        macs[precision] += macs_before_fusion(node)
        if precision != "int8":
            kept_high.append(name)
    if not sum(macs.values()):
        raise GraphError("The graph holds no convolution; it is not a detector.")
    return PrecisionProof(macs, tuple(kept_high), final)


def macs_before_fusion(conv: ir.Node) -> int:
    """Of a dense convolution that was made of a separable pair, those of the pair, so that fusion does not inflate a share."""
    before = conv.metadata_props.get(MACS_BEFORE_FUSION)
    return convolution_macs(conv) if before is None else int(before)


def convolution_macs(conv: ir.Node) -> int:
    """Multiply-accumulates for one image: output positions times weights of one filter times filters."""
    weight, output = conv.inputs[1], conv.outputs[0]
    assert weight is not None
    if weight.shape is None or output.shape is None:
        raise GraphError(f"The shape of {conv.name} is unknown; export the graph again.")
    positions = [size for size in output.shape[2:] if isinstance(size, int)]
    if len(positions) != 2:
        raise GraphError(f"The output of {conv.name} has a dynamic height or width; only the batch may be dynamic.")
    return math.prod(positions) * math.prod(int(size) for size in weight.shape)  # type: ignore[arg-type]


def _precision(conv: ir.Node) -> str:
    if is_quantized(conv):
        return "int8"
    return "fp16" if conv.outputs[0].dtype == ir.DataType.FLOAT16 else "fp32"
