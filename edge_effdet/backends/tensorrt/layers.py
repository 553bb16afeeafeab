"""In which precision TensorRT runs each convolution, from what it tells of the layers of an engine.

With detailed profiling verbosity it tells of each layer its kind, the types of the tensors and constants that it reads, and which ONNX
nodes it computes. There are two ways to hear it:

- The engine inspector gives it as JSON. That takes the engine on the GPU that it was built for.
- The builder of TensorRT-RTX logs it, one line a layer, so that no GPU is needed. What it logs are types, which are decided
  there; the kernels are compiled on the device.

A convolution that a generated kernel (``kgen``) takes in is not told of: such a kernel reads codes, and in what it multiplies them it
does not say.

A layer multiplies codes where its weights are INT8 and so is a tensor that it takes. Sources: "Engine Inspector" in NVIDIA's TensorRT
documentation, and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x"; in 10 a tensor has one text for its format and type,
as in ``Thirty-two wide channel vectorized row major Int8 format``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_effdet.backends.engine_account import BY_WIDTH, widest

_LISTING = "Layers:"
_COMPUTING = re.compile(r"conv|^(correlation|runtime_fusion|gemm)$", re.IGNORECASE)
"""Kinds of layers that multiply."""

_TYPES = {
    "Int8": "int8",
    "INT8": "int8",
    "Half": "fp16",
    "FP16": "fp16",
    "BFloat16": "bf16",
    "BF16": "bf16",
    "Float": "fp32",
    "FP32": "fp32",
}
_TYPE = re.compile(rf"\b({'|'.join(_TYPES)})\b")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TENSOR = re.compile(r"Dimensions: \[([\d,-]*)\].*?Datatype: (\w+)")


@dataclass(frozen=True, slots=True)
class EngineLayer:
    """A layer of an engine.

    Attributes:
        kind: as TensorRT names it: ``correlation`` and ``kgen``, or ``CaskConvolution``.
        nodes: the ONNX nodes that it computes.
        inputs: a key of ``BY_WIDTH`` or an empty text for each tensor that it takes.
        weights: the type of its largest constant; empty where it has none, or it is not told.
        name: TensorRT's name of it.
    """

    kind: str
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: str
    name: str = ""

    @property
    def computes(self) -> bool:
        """Whether it multiplies: others that name a convolution's node prepare its input or finish its output."""
        return _COMPUTING.search(self.kind) is not None

    @property
    def precision(self) -> str | None:
        """A name of ``BY_WIDTH``, or None where it is not told."""
        if "int8" in self.inputs and self.weights in ("int8", ""):
            return "int8"
        known = [each for each in (*self.inputs, self.weights) if each in BY_WIDTH and each != "int8"]
        return widest(known) if known else None


def convolution_precisions(layers: Iterable[EngineLayer]) -> dict[str, str]:
    """By ONNX node; the widest where several layers compute one, as for several profiles."""
    found: dict[str, str] = {}
    for layer in layers:
        precision = layer.precision
        if precision is None or not layer.computes:
            continue
        for node in layer.nodes:
            found[node] = widest([precision, found.get(node, precision)])
    return found


def layers_from_log(messages: Sequence[str]) -> list[EngineLayer]:
    """What the builder logged; nothing where it listed no layers."""
    listed = [line for text in messages if text.startswith(_LISTING) for line in text.splitlines()]
    return [_layer_from_line(line) for line in listed if ", LayerType: " in line]


def layers_from_json(text: str) -> list[EngineLayer]:
    """What the inspector gave for a whole engine; nothing where it gave mere names, for an engine without details, or no JSON."""
    try:
        layers = json.loads(text).get("Layers", [])
    # The engine is built, and worth more than what is told of it.
    except ValueError:
        return []
    return [_layer_from_object(layer) for layer in layers if isinstance(layer, Mapping)]


def _layer_from_line(line: str) -> EngineLayer:
    """``Name: n, LayerType: k, Inputs: [...], Constants: [...], Outputs: [...], TacticName: ..., Metadata: [ONNX Layer: n]``."""
    fields = re.split(r", (LayerType|Inputs|Constants|Outputs|TacticName|Metadata): ", line)
    told = dict(zip(fields[1::2], fields[2::2], strict=True))
    constants = [
        (_count(shape.split(",")), _TYPES.get(kind, "")) for shape, kind in _TENSOR.findall(told.get("Constants", ""))
    ]
    inputs = tuple(_TYPES.get(kind, "") for _, kind in _TENSOR.findall(told.get("Inputs", "")))
    return EngineLayer(told["LayerType"], tuple(_NODE.findall(told.get("Metadata", ""))), inputs, _largest(constants))


def _layer_from_object(layer: Mapping[str, Any]) -> EngineLayer:
    constants = [(_count(each.get("Dimensions", ())), _type_of(each)) for each in layer.get("Constants", ())]
    weights = layer.get("Weights")
    if isinstance(weights, Mapping):
        constants.append((math.inf, _TYPES.get(str(weights.get("Type")), "")))
    inputs = tuple(_type_of(each) for each in layer.get("Inputs", ()))
    nodes = tuple(_NODE.findall(str(layer.get("Metadata", ""))))
    return EngineLayer(
        str(layer.get("LayerType", "")), nodes, inputs, _largest(constants), name=str(layer.get("Name", ""))
    )


def _type_of(tensor: Mapping[str, Any]) -> str:
    found = _TYPE.search(str(tensor.get("Datatype") or tensor.get("Format/Datatype") or ""))
    return _TYPES[found[1]] if found else ""


def _count(shape: Iterable[Any]) -> float:
    return math.prod(int(size) for size in shape if str(size).strip())


def _largest(constants: Sequence[tuple[float, str]]) -> str:
    """Its largest constant is a convolution's weights: a bias has one value a filter. ``max`` keeps the first of equals."""
    return max(constants, key=lambda each: each[0])[1] if constants else ""
