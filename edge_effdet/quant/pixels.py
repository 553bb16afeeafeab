"""Make pixels INT8 codes without an error.

The stem takes ``x - m``, where x is a pixel of 0 to 255 and m the mean of its channel. Since m is not a whole number, INT8 codes of
``x - m`` are off by up to half a pixel value. ``x - 128`` is an INT8 code itself, at a scale of 1, and the difference goes into the
bias:

    W * (x - m) + b  =  W * (x - 128) + (b + sum W_c (128 - m_c))

This is exact except at the outermost output positions: the zeros that pad the convolution's input stood for the mean colour and stand
for 128 now. The letterbox fills the rest of the canvas with the mean colour itself, so only one row and one column see the padding.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edge_effdet.graph.rule import add_initializer, constant, has_one_use, producer
from edge_effdet.quant.ranges import LARGEST_CODE

MIDDLE = 128


def center_on_codes(model: ir.Model) -> dict[str, float]:
    """Rewrite the stem's input in place, where it is the sum of pixels and a shift.

    Returns:
        The range t of that tensor by its name, so that its codes -127 to 127 stand for themselves (QuantizeLinear also gives -128,
        which is pixel 0); empty where there is no such sum.
    """
    for conv in model.graph:
        addition = producer(conv.inputs[0], "Add") if conv.op_type == "Conv" else None
        if addition is None or not has_one_use(addition.outputs[0]):
            continue
        pixels, shift, weight = addition.inputs[0], constant(addition.inputs[1]), constant(conv.inputs[1])
        cast = producer(pixels, "Cast")
        raw = cast.inputs[0] if cast is not None else pixels
        if raw is None or not raw.is_graph_input() or shift is None or weight is None:
            continue
        bias = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        channels = np.broadcast_to(shift.reshape(-1), (weight.shape[1],)).astype(np.float64)
        moved = weight.sum(axis=(2, 3), dtype=np.float64) @ (channels + MIDDLE)
        total = moved if bias is None else moved + bias
        middle = np.full((1, weight.shape[1], 1, 1), -MIDDLE, np.float32)
        addition.replace_input_with(1, add_initializer(model.graph, "pixel_middle", middle))
        conv.resize_inputs(3)
        conv.replace_input_with(2, add_initializer(model.graph, "stem_bias", total.astype(np.float32)))
        return {str(addition.outputs[0].name): float(LARGEST_CODE)}
    return {}
