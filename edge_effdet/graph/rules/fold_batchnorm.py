"""Fold a batch norm into the convolution before it.

At inference a batch norm is an affine map of each channel, and a convolution is linear:

    BN(W * x + b) = g / sqrt(v + e) * (W * x + b - m) + s
                  = (a W) * x + (a (b - m) + s)          where a = g / sqrt(v + e) is one factor for each output channel

EfficientDet's heads share one convolution over the pyramid levels and have one batch norm for each level. So each level gets a folded
copy of the weights of its own (at lite0, 30 copies of 64 x 64 values), and the shared original stays for other nodes that use it. The
weights are computed in FP64 and rounded once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

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
class _FoldedConvolution:
    conv: ir.Node
    weight: np.ndarray
    bias: np.ndarray


class FoldBatchNorm:
    name = "fold_batchnorm"

    def check(self, node: ir.Node) -> _FoldedConvolution | None:
        if node.op_type != "BatchNormalization":
            return None
        if node.attributes.get_int("training_mode", 0):
            raise Refused("it is in training mode and normalises by the batch's own statistics")
        conv = producer(node.inputs[0], "Conv")
        if conv is None:
            raise Refused("its input does not come from a Conv")
        if not has_one_use(conv.outputs[0]):
            raise Refused("the Conv before it has another consumer, which must not see the scale")
        weight = constant(conv.inputs[1])
        bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        scale, shift, mean, variance = (constant(value) for value in node.inputs[1:5])
        if weight is None or (bias is None and len(conv.inputs) > 2 and conv.inputs[2] is not None):
            raise Refused("the weights of the Conv before it are not constants")
        if scale is None or shift is None or mean is None or variance is None:
            raise Refused("its statistics are not constants")
        epsilon = node.attributes.get_float("epsilon", 1e-5)
        factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + epsilon)
        old_bias = np.zeros_like(factor) if bias is None else bias.astype(np.float64)
        return _FoldedConvolution(
            conv,
            (weight * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(weight.dtype),
            (factor * (old_bias - mean) + shift).astype(weight.dtype),
        )

    def rewrite(self, node: ir.Node, found: _FoldedConvolution) -> None:
        graph, conv = node.graph, found.conv
        assert graph is not None and conv.inputs[1] is not None
        name = conv.inputs[1].name or "weight"
        output = insert_before(
            node,
            "Conv",
            [
                conv.inputs[0],
                add_initializer(graph, name, found.weight),
                add_initializer(graph, name.removesuffix("weight") + "bias", found.bias),
            ],
            name=f"{conv.name}_{node.name}",
            like=node.outputs[0],
        )
        folded = output.producer()
        assert folded is not None
        folded.attributes.update(conv.attributes)
        replace_output(node, output)
