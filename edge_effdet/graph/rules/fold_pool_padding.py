"""Fold a Pad in front of a max pooling into the pooling's own padding.

TensorFlow's SAME padding is exported as a ``Pad`` with -inf and a ``MaxPool`` without padding. ONNX's MaxPool pads with -inf itself,
so ``MaxPool(Pad(x, p)) = MaxPool(x, pads=p)``. This saves a node, and it keeps a tensor that holds -inf from calibration, where its
range and its INT8 scale would be infinite.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edge_effdet.graph.rule import Refused, constant, insert_before, producer, replace_output


class FoldPoolPadding:
    name = "fold_pool_padding"

    def check(self, node: ir.Node) -> tuple[ir.Value, list[int]] | None:
        pad = producer(node.inputs[0], "Pad") if node.op_type == "MaxPool" else None
        if pad is None:
            return None
        if node.attributes.get_int("ceil_mode", 0) or node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            raise Refused("it rounds its output's size up or pads by itself, which depends on where the padding stands")
        amounts, fill = constant(pad.inputs[1]), constant(pad.inputs[2]) if len(pad.inputs) > 2 else None
        if pad.attributes.get_string("mode", "constant") != "constant":
            raise Refused("the padding before it is not constant")
        if amounts is None or len(pad.inputs) > 3:
            raise Refused("the amount of padding before it is not known")
        if fill is None or not np.isneginf(fill):
            raise Refused("the padding before it is not with -inf, so it takes part in the maximum")
        begin, end = np.split(amounts, 2)
        if begin[:2].any() or end[:2].any() or (amounts < 0).any():
            raise Refused("the padding before it is not over height and width alone")
        own = node.attributes.get_ints("pads", (0, 0, 0, 0))
        assert own is not None and pad.inputs[0] is not None
        total = np.concatenate([begin[2:], end[2:]]) + np.asarray(own)
        kernel = node.attributes.get_ints("kernel_shape")
        if kernel is None or (total >= np.tile(kernel, 2)).any():
            raise Refused("the padding before it is as wide as the kernel, which MaxPool does not allow")
        return pad.inputs[0], total.tolist()

    def rewrite(self, node: ir.Node, found: tuple[ir.Value, list[int]]) -> None:
        source, pads = found
        output = insert_before(node, "MaxPool", [source], f"{node.name}_padded", node.outputs[0])
        pool = output.producer()
        assert pool is not None
        pool.attributes.update(node.attributes)
        pool.attributes.add(ir.AttrInt64s("pads", pads))
        replace_output(node, output)
