"""Cross-layer equalization: bring the channels of a tensor to similar ranges before the tensor gets its one INT8 scale.

Where convolutions make a tensor, convolutions take it, and nothing but sums stands between them, each channel c can be divided by any
e_c > 0 if the consumers' weights are multiplied by it. The network computes the same (Nagel et al., "Data-Free Quantization Through
Weight Equalization and Bias Correction", arXiv 1906.04721, section 4.1):

    V * (y / e) with V_oc e_c in place of V_oc   =   V * y

EfficientDet has two such places:

- between the depthwise and the pointwise convolution of a separable pair in BiFPN and heads, where there is no activation;
- in the residual streams of the backbone: the outputs of a stage's blocks, which end without an activation, and their sums.

It is not possible across an activation: ``min(x / e, 6)`` is not ``min(x, 6) / e``, and no factor can be moved through a SiLU. So the
tensors between the convolutions inside a block stay as they are.

e balances both sides: ``e_c = sqrt(a_c / v_c)``, where a_c is the largest absolute value of channel c over the calibration images and
v_c is the largest weight that takes channel c, relative to the largest weight of its filter. After that, the share that the channel
has of the tensor's range equals the share that its weights have of the filters' ranges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from edge_effdet.graph.rule import constant, scale_input
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.statistics import fetch_tensors

LARGEST_FACTOR = 64.0
"""Factors are between 1/64 and 64, so that weights and activations stay in the range in which FP16 is precise."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Tensors that must share one e, because they are summed, and the convolutions around them.

    Attributes:
        tensors: the names of the tensors.
        makers: the convolutions that make them.
        takers: the convolutions that take them.
    """

    tensors: tuple[str, ...]
    makers: tuple[ir.Node, ...]
    takers: tuple[ir.Node, ...]


def equalize_channels(model: ir.Model, images: CalibrationImages) -> int:
    """Equalize the channels of a graph in place. The graph computes the same in FP32.

    Args:
        model: the FP32 graph.
        images: the images that the ranges of the channels are measured on.

    Returns:
        How many tensors were equalized.
    """
    streams = find_streams(model)
    tensors = [tensor for stream in streams for tensor in stream.tensors]
    if not tensors:
        return 0
    ranges = channel_ranges(ir.to_proto(model), images, tensors)
    for stream in streams:
        largest = np.max([ranges[tensor] for tensor in stream.tensors], axis=0)
        scale_channels(stream, balancing_factors(largest, [_constant(taker, 1) for taker in stream.takers]))
    return len(tensors)


def find_streams(model: ir.Model) -> list[Stream]:
    """Every stream of a graph, in the graph's order."""
    streams: list[Stream] = []
    done: set[ir.Value] = set()
    for node in model.graph:
        if node.op_type == "Conv" and node.outputs[0] not in done:
            group = _connected(node.outputs[0])
            done |= group
            stream = _as_stream(group)
            if stream is not None:
                streams.append(stream)
    return streams


def channel_ranges(
    model: onnx.ModelProto, images: CalibrationImages, tensors: Sequence[str]
) -> Mapping[str, np.ndarray]:
    """The largest absolute value of each channel over all images, float32 [channels], by the tensor's name."""
    largest: dict[str, np.ndarray] = {}
    for values in fetch_tensors(model, images, tensors, "looking at channels"):
        for tensor, value in values.items():
            own = np.maximum(value.max(axis=(0, 2, 3)), -value.min(axis=(0, 2, 3)))
            largest[tensor] = np.maximum(largest[tensor], own) if tensor in largest else own
    return largest


def balancing_factors(largest: np.ndarray, weights: Sequence[np.ndarray]) -> np.ndarray:
    """The factor e of each channel, float64 [channels]: its geometric mean is 1 before ``LARGEST_FACTOR`` bounds it.

    Args:
        largest: the largest absolute value of each channel, [channels].
        weights: the weights of the convolutions that take them, [filters, channels or 1, height, width] each.
    """
    taken = np.zeros(len(largest))
    for weight in weights:
        flat = np.abs(weight).reshape(*weight.shape[:2], -1).max(axis=2).astype(np.float64)
        # A depthwise filter has a scale of its own, so its weights set no other channel's step.
        if weight.shape[1] != len(largest):
            continue
        taken = np.maximum(taken, (flat / np.maximum(flat.max(axis=1, keepdims=True), 1e-30)).max(axis=0))
    usable = (largest > 0) & (taken > 0)
    factors = np.ones(len(largest))
    if not usable.any():
        return factors
    factors[usable] = np.sqrt(largest[usable] / taken[usable])
    factors[usable] /= np.exp(np.log(factors[usable]).mean())
    return np.clip(factors, 1 / LARGEST_FACTOR, LARGEST_FACTOR)


def scale_channels(stream: Stream, factors: np.ndarray) -> None:
    """Divide the channels of a stream's tensors by ``factors``, float64 [channels], and multiply the takers' weights by them."""
    for maker in stream.makers:
        scale_input(maker, 1, 1 / factors.reshape(-1, 1, 1, 1))
        scale_input(maker, 2, 1 / factors)
    for taker in stream.takers:
        depthwise = taker.attributes.get_int("group", 1) != 1
        scale_input(taker, 1, factors.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)))


def _connected(start: ir.Value) -> set[ir.Value]:
    """A tensor, and all tensors that sums connect it with."""
    group, pending = {start}, [start]
    while pending:
        value = pending.pop()
        ties = [user for user, _ in value.uses() if user.op_type == "Add"]
        maker = value.producer()
        if maker is not None and maker.op_type == "Add":
            ties.append(maker)
        for tie in ties:
            for other in (*tie.inputs, *tie.outputs):
                if other is not None and other not in group:
                    group.add(other)
                    pending.append(other)
    return group


def _as_stream(group: set[ir.Value]) -> Stream | None:
    """The stream of these tensors; None where something else than a convolution or a sum makes or takes one of them."""
    makers: list[ir.Node] = []
    takers: list[ir.Node] = []
    for value in group:
        maker = value.producer()
        if maker is None or maker.op_type not in ("Conv", "Add") or value.is_graph_output():
            return None
        if maker.op_type == "Conv":
            makers.append(maker)
        for user, position in value.uses():
            if user.op_type == "Conv" and position == 0:
                takers.append(user)
            elif user.op_type != "Add":
                return None
    grouped = [conv for conv in takers if conv.attributes.get_int("group", 1) not in (1, len(_constant(conv, 1)))]
    if not takers or grouped:
        return None
    by_name = sorted(group, key=lambda value: value.name or "")
    return Stream(tuple(str(value.name) for value in by_name), tuple(_by_name(makers)), tuple(_by_name(takers)))


def _by_name(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    return sorted(set(nodes), key=lambda node: node.name or "")


def _constant(conv: ir.Node, position: int) -> np.ndarray:
    array = constant(conv.inputs[position])
    assert array is not None
    return array
