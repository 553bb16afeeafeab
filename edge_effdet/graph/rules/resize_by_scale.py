"""Give a nearest Resize its factors in place of the size of its output.

The exporter writes the size of a Resize's output, and with a dynamic batch also the nodes that compute this size. Where height and
width grow by whole factors k and ``asymmetric`` coordinates are rounded down, output i reads input ``floor(i / k)`` in both forms.
The constant factors ``[1, 1, k_h, k_w]`` need neither the size nor its arithmetic.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edge_effdet.graph.rule import Refused, add_initializer


class ResizeByScale:
    name = "resize_by_scale"

    def check(self, node: ir.Node) -> np.ndarray | None:
        """The factors along the four axes, float32 [4]."""
        if node.op_type != "Resize" or len(node.inputs) < 4 or node.inputs[3] is None:
            return None
        text = node.attributes.get_string
        if text("mode", "nearest") != "nearest":
            raise Refused("it interpolates")
        if (text("coordinate_transformation_mode", "half_pixel"), text("nearest_mode", "round_prefer_floor")) != (
            "asymmetric",
            "floor",
        ):
            raise Refused(
                "it does not round asymmetric coordinates down, so a factor may read another pixel than a size"
            )
        if node.attributes.get_ints("axes") is not None or node.inputs[0] is None:
            raise Refused("it resizes chosen axes only")
        before, after = node.inputs[0].shape, node.outputs[0].shape
        if before is None or after is None or len(before) != 4 or len(after) != 4:
            raise Refused("the shapes around it are not known")
        if before[0] != after[0] or before[1] != after[1]:
            raise Refused("it resizes the batch or the channels too")
        if text("keep_aspect_ratio_policy", "stretch") != "stretch":
            raise Refused("it keeps the aspect ratio, which factors do not")
        sides = [*before[2:], *after[2:]]
        if not all(isinstance(side, int) for side in sides):
            raise Refused("a height or width around it is not known")
        height, width, new_height, new_width = (int(side) for side in sides)  # type: ignore[arg-type]
        if new_height % height or new_width % width:
            raise Refused(f"{height}x{width} to {new_height}x{new_width} is not a whole factor")
        return np.array([1, 1, new_height // height, new_width // width], np.float32)

    def rewrite(self, node: ir.Node, found: np.ndarray) -> None:
        assert node.graph is not None
        scales = add_initializer(node.graph, f"{node.name}_scales", found)
        node.resize_inputs(3)
        node.replace_input_with(2, scales)
