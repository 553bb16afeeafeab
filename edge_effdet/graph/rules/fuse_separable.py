"""Compose a depthwise and a pointwise convolution with nothing between them into one dense convolution.

The depthwise convolution D has one k x k filter for each channel, the pointwise convolution P mixes the channels of one position:

    y_c = D_c * x_c + d_c                                   where c is an input channel and d the bias, if there is one
    z_o = sum_c P_oc y_c + p_o
        = sum_c (P_oc D_c) * x_c  +  (p_o + sum_c P_oc d_c)

So W_ocij = P_oc D_cij and b = p + P d, with the depthwise convolution's stride, dilation and padding. This is exact at the border
too: both forms see the zeros that pad x, and d is added at every output position, so P d is the same number at all of them. W and b
are computed in FP64 and rounded once.

The dense convolution has up to k k times the multiply-accumulates, in one kernel that tensor cores run, and no tensor in between.
Whether it is cheaper depends on the target, so the rule asks for each pair. Where the answer is no, it refuses and gives both times.

The class and box heads run the same pair over five levels. Levels that share both convolutions share the dense weights too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_effdet.graph.cost import Decision, SeparablePair
from edge_effdet.graph.counting import MACS_BEFORE_FUSION
from edge_effdet.graph.names import module_of_weight
from edge_effdet.graph.rule import (
    Refused,
    add_initializer,
    constant,
    has_one_use,
    insert_before,
    producer,
    replace_output,
)


@dataclass(frozen=True, slots=True)
class _Fusion:
    depthwise: ir.Node
    pair: SeparablePair


class FuseSeparable:
    """The rule that this module's docstring describes.

    Args:
        wanted: says of each pair whether to compose it, by a ``Decision`` or a plain answer; None composes every pair.
    """

    name = "fuse_separable"

    def __init__(self, wanted: Callable[[SeparablePair], Decision | bool] | None = None) -> None:
        self._wanted = wanted
        self._made: dict[tuple[ir.Value | None, ...], list[ir.Value | None]] = {}

    def check(self, node: ir.Node) -> _Fusion | None:
        depthwise = producer(node.inputs[0], "Conv") if node.op_type == "Conv" else None
        if depthwise is None or depthwise.attributes.get_int("group", 1) == 1:
            return None
        own, mix = constant(depthwise.inputs[1]), constant(node.inputs[1])
        if own is None or mix is None:
            raise Refused("its weights, or those of the grouped Conv before it, are not constants")
        kernel, filters = own.shape, mix.shape
        if own.ndim != 4 or kernel[1] != 1:
            return None
        _check_pointwise(node, filters)
        if kernel[0] != depthwise.attributes.get_int("group", 1):
            raise Refused("the depthwise Conv before it makes several channels of each")
        if not has_one_use(depthwise.outputs[0]):
            raise Refused("the depthwise Conv before it has another consumer, which needs its output")
        if any(conv.attributes.get_string("auto_pad", "NOTSET") != "NOTSET" for conv in (depthwise, node)):
            raise Refused("its padding, or that of the depthwise Conv before it, is left to auto_pad")
        if any(constant(value) is None for conv in (depthwise, node) for value in conv.inputs[2:] if value is not None):
            raise Refused("its bias, or that of the depthwise Conv before it, is not a constant")
        pair = _describe(depthwise, node, kernel, filters)
        answer = True if self._wanted is None else self._wanted(pair)
        if isinstance(answer, Decision):
            if not answer.dense:
                raise Refused(str(answer))
        elif not answer:
            raise Refused(f"{pair.name}: keeping the two is what was asked for")
        return _Fusion(depthwise, pair)

    def rewrite(self, node: ir.Node, found: _Fusion) -> None:
        depthwise = found.depthwise
        weights = self._compose(depthwise, node)
        inputs = [depthwise.inputs[0], *weights]
        output = insert_before(node, "Conv", inputs, f"{node.name}_dense", node.outputs[0])
        dense = output.producer()
        assert dense is not None
        dense.attributes.update(depthwise.attributes)
        dense.attributes.add(ir.AttrInt64("group", 1))
        dense.metadata_props[MACS_BEFORE_FUSION] = str(found.pair.separate_macs)
        replace_output(node, output)

    def _compose(self, depthwise: ir.Node, pointwise: ir.Node) -> list[ir.Value | None]:
        """Initializers of the dense weight and of the bias, if there is one. Pairs that share their parts share the initializers."""
        assert pointwise.graph is not None and pointwise.inputs[1] is not None
        parts = tuple(value for conv in (depthwise, pointwise) for value in (conv.inputs[1], _bias(conv)))
        if parts in self._made:
            return self._made[parts]
        own, own_bias, mix, mix_bias = (constant(value) for value in parts)
        assert own is not None and mix is not None
        matrix = mix[:, :, 0, 0].astype(np.float64)
        weight = matrix[:, :, None, None] * own[None, :, 0].astype(np.float64)
        name = pointwise.inputs[1].name or "weight"
        made: list[ir.Value | None] = [add_initializer(pointwise.graph, name, weight.astype(mix.dtype))]
        if own_bias is not None or mix_bias is not None:
            bias = np.zeros(len(matrix)) if mix_bias is None else mix_bias.astype(np.float64)
            if own_bias is not None:
                bias = bias + matrix @ own_bias.astype(np.float64)
            bias_name = f"{name.split('.weight')[0]}.bias"
            made.append(add_initializer(pointwise.graph, bias_name, bias.astype(mix.dtype)))
        self._made[parts] = made
        return made


def _check_pointwise(node: ir.Node, filters: tuple[int, ...]) -> None:
    if node.attributes.get_int("group", 1) != 1:
        raise Refused("it works in groups, so it does not mix all channels of the depthwise Conv before it")
    if filters[2:] != (1, 1):
        raise Refused("its kernel is larger than 1 x 1, so that the two together reach further than one of them")
    if any(step != 1 for step in node.attributes.get_ints("strides", (1, 1)) or ()):
        raise Refused("it has a stride of its own")
    if any(node.attributes.get_ints("pads", (0,)) or ()):
        raise Refused("it pads, and what it pads with lacks the bias of the depthwise Conv before it")


def _describe(
    depthwise: ir.Node, pointwise: ir.Node, kernel: tuple[int, ...], filters: tuple[int, ...]
) -> SeparablePair:
    shape, weight = pointwise.outputs[0].shape, pointwise.inputs[1]
    assert weight is not None
    sizes = [size for size in shape[2:] if isinstance(size, int)] if shape is not None else []
    if len(sizes) != 2:
        raise Refused("the size of its output is unknown, so its multiply-accumulates cannot be counted")
    return SeparablePair(
        name=module_of_weight(weight.name or "weight"),
        channels_in=kernel[0],
        channels_out=filters[0],
        kernel=(kernel[2], kernel[3]),
        stride=_two(depthwise, "strides"),
        height=sizes[0],
        width=sizes[1],
        dilation=_two(depthwise, "dilations"),
    )


def _bias(conv: ir.Node) -> ir.Value | None:
    return conv.inputs[2] if len(conv.inputs) > 2 else None


def _two(conv: ir.Node, attribute: str) -> tuple[int, int]:
    down, across = conv.attributes.get_ints(attribute, (1, 1)) or (1, 1)
    return down, across
