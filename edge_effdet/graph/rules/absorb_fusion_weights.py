"""Move a constant fusion weight into the convolution whose output it scales.

After ``fold_fusion_weights`` a node of the BiFPN is ``sum_i c_i x_i``, with one ``Mul`` for each edge. x_i comes from a
convolution, on some edges through a nearest ``Resize`` or a ``MaxPool``. A convolution is linear, copying values commutes
with any factor, and taking a maximum commutes with any factor above 0. So the convolution can carry the factor:

    c (W * x + b) = (c W) * x + c b        Resize(c y) = c Resize(y)        MaxPool(c y) = c MaxPool(y)  for c > 0

Most of these convolutions have several consumers, and all consumers see the factor p that the convolution absorbs. A consumer that
multiplies by c_i multiplies by c_i / p instead, so the ``Mul`` of every edge with c_i = p vanishes, and none is added. A consumer
that is a convolution takes 1/p into its own weights: ``(V / p) * (p y) = V * y``. With any other consumer the rule refuses.

p is the factor that most edges have; of several such factors it is the largest. No factor that is left is beyond ``RANGE``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_effdet.graph.rule import Refused, add_initializer, constant, replace_output, scale_input

RANGE = 64.0
"""Where other factors or weights are divided by p, it is between 1/64 and 64, so that weights and activations stay in the range in which
FP16 is precise."""


@dataclass(frozen=True, slots=True)
class _Absorption:
    factor: float
    scaled: list[tuple[ir.Node, float]]
    convolutions: list[ir.Node]


class AbsorbFusionWeights:
    name = "absorb_fusion_weights"

    def check(self, node: ir.Node) -> _Absorption | None:
        if node.op_type != "Conv":
            return None
        scaled: list[tuple[ir.Node, float]] = []
        convolutions: list[ir.Node] = []
        others: list[str] = []
        through_pool = False
        pending = [node.outputs[0]]
        while pending:
            value = pending.pop()
            if value.is_graph_output():
                others.append("the graph's output")
            for user, position in value.uses():
                factor = _scalar_factor(user, position)
                if factor is not None:
                    scaled.append((user, factor))
                elif user.op_type == "Conv" and position == 0:
                    convolutions.append(user)
                elif user.op_type == "MaxPool" or _is_nearest(user, position):
                    through_pool |= user.op_type == "MaxPool"
                    pending.append(user.outputs[0])
                else:
                    others.append(user.name or user.op_type)
        if not scaled:
            return None
        if others:
            raise Refused(f"{others[0]} takes its output too, and must not see the factor")
        if any(constant(value) is None for conv in (node, *convolutions) for value in conv.inputs[1:] if value):
            raise Refused("its weights, or those of a convolution that takes its output, are not constants")
        counts = Counter(factor for _, factor in scaled)
        alone = len(counts) == 1 and not convolutions
        bounded = [c for c in counts if c != 0 and all(abs(other) <= RANGE * abs(c) for other in counts)]
        usable = [c for c in bounded if (c > 0 or not through_pool) and (alone or 1 / RANGE <= abs(c) <= RANGE)]
        if not usable:
            raise Refused(
                "none of its factors is one that others can be divided by and that commutes with a pooling's maximum"
            )
        return _Absorption(max(usable, key=lambda c: (counts[c], abs(c))), scaled, convolutions)

    def rewrite(self, node: ir.Node, found: _Absorption) -> None:
        assert node.graph is not None
        for position in (1, 2):
            scale_input(node, position, found.factor)
        for conv in found.convolutions:
            scale_input(conv, 1, 1 / found.factor)
        for product, factor in found.scaled:
            position = 1 if constant(product.inputs[1]) is not None else 0
            source, old = product.inputs[1 - position], product.inputs[position]
            before = constant(old)
            assert source is not None and old is not None and before is not None
            if factor == found.factor:
                replace_output(product, source)
            else:
                left = np.full_like(before, factor / found.factor)
                product.replace_input_with(position, add_initializer(node.graph, old.name or "weight", left))


def _scalar_factor(user: ir.Node, position: int) -> float | None:
    """The constant c where ``user`` is Mul(y, c) with y at ``position``; None for any other node."""
    other = constant(user.inputs[1 - position]) if user.op_type == "Mul" else None
    if other is None or other.size != 1 or other.ndim > 4 or not np.isfinite(other).all():
        return None
    return float(other.reshape(()))


def _is_nearest(user: ir.Node, position: int) -> bool:
    text = user.attributes.get_string
    copies = user.op_type == "Resize" and text("mode", "nearest") == "nearest"
    # With tf_crop_and_resize a Resize fills in a value of its own outside the picture.
    return copies and position == 0 and text("coordinate_transformation_mode", "half_pixel") != "tf_crop_and_resize"
