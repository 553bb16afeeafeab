"""Fold the scale of the pixels' normalisation into the stem convolution.

The detector takes raw pixels x and normalises each channel c of the picture to ``s_c x_c + t_c``:

    W * (s x + t) = (W s) * (x + t / s)

So the stem takes the scale into its weights, and one ``Add`` is left. The shift stays in front of the convolution, because the zeros
that pad its input stand for the mean colour: ``s x + t = 0`` before the rewrite, ``x + t / s = 0`` after it. Folded into a bias, the
shift would be added where the padding is too, and the border would need a map of corrections as large as the output. One addition
over three channels is cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_effdet.graph.rule import Refused, add_initializer, constant, has_one_use, insert_before, producer


@dataclass(frozen=True, slots=True)
class _FoldedScale:
    pixels: ir.Value
    weight: np.ndarray
    shift: np.ndarray


class FoldPixelScale:
    name = "fold_pixel_scale"

    def check(self, node: ir.Node) -> _FoldedScale | None:
        addition = producer(node.inputs[0], "Add") if node.op_type == "Conv" else None
        product = producer(addition.inputs[0], "Mul") if addition is not None else None
        if addition is None or product is None:
            return None
        scale, shift, weight = constant(product.inputs[1]), constant(addition.inputs[1]), constant(node.inputs[1])
        if scale is None or shift is None:
            return None
        if weight is None:
            raise Refused("its weights are not constants")
        channels = (1, weight.shape[1], 1, 1)
        if node.attributes.get_int("group", 1) != 1 or scale.shape != channels or shift.shape != channels:
            raise Refused("the scale and shift before it are not one number an input channel")
        if not scale.all():
            raise Refused("a scale of 0 before it cannot be divided by")
        if not (has_one_use(product.outputs[0]) and has_one_use(addition.outputs[0])):
            raise Refused("the normalised picture has another consumer")
        pixels = product.inputs[0]
        assert pixels is not None
        exact = scale.astype(np.float64)
        with np.errstate(over="ignore"):
            offset = (shift / exact).astype(shift.dtype)
        if not np.isfinite(offset).all():
            raise Refused("a scale before it is too small to divide by")
        return _FoldedScale(pixels, (weight * exact).astype(weight.dtype), offset)

    def rewrite(self, node: ir.Node, found: _FoldedScale) -> None:
        graph, addition, weight = node.graph, node.inputs[0], node.inputs[1]
        assert graph is not None and addition is not None and weight is not None
        shift = add_initializer(graph, "pixel_offset", found.shift)
        centered = insert_before(node, "Add", [found.pixels, shift], "center_pixels", addition)
        node.replace_input_with(0, centered)
        node.replace_input_with(1, add_initializer(graph, weight.name or "weight", found.weight))
