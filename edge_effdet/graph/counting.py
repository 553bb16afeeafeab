"""What every count of a graph shares: the multiply-accumulates of a convolution, and the bytes of a number.

The report, the cost model, the proof of precision and the search all count with these functions, so that their figures agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edge_effdet.errors import GraphError

if TYPE_CHECKING:
    import onnx_ir as ir

BYTES_PER_NUMBER: Mapping[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""How many bytes a number takes in each precision."""

MACS_BEFORE_FUSION = "edge_effdet.macs_before_fusion"
"""A key in the ``metadata_props`` of a dense convolution that ``fuse_separable`` made: the MACs of the pair that it replaces, for one
image."""


def macs_of_shapes(positions: Sequence[int], weight: Sequence[int]) -> int:
    """Multiply-accumulates of a convolution, for one image: output positions x weights of a filter x filters.

    Args:
        positions: height and width of the output. Positions whose inputs are partly padding count in full.
        weight: the weight's shape: filters, channels of a group, height and width of the kernel.
    """
    return math.prod(positions) * math.prod(weight)


def convolution_macs(conv: ir.Node) -> int:
    """Multiply-accumulates of a Conv node for one image, whatever its batch.

    Raises:
        GraphError: a shape is unknown, or the height or width of the output is dynamic.
    """
    weight, output = conv.inputs[1], conv.outputs[0]
    if weight is None or weight.shape is None or output.shape is None:
        raise GraphError(f"The shape of {conv.name} is unknown, so its work cannot be counted; export the graph again.")
    positions = [size for size in output.shape[2:] if isinstance(size, int)]
    if len(positions) != 2:
        raise GraphError(
            f"The output of {conv.name} has a dynamic height or width, and only the batch may be dynamic; export the graph again."
        )
    return macs_of_shapes(positions, [int(size) for size in weight.shape])  # type: ignore[arg-type]


def macs_before_fusion(conv: ir.Node) -> int:
    """``convolution_macs``; for a dense convolution that replaces a separable pair, the MACs of the pair.

    A share of the work is counted with these, so that fusing a pair does not make its share larger.

    Raises:
        GraphError: as ``convolution_macs`` does.
    """
    before = conv.metadata_props.get(MACS_BEFORE_FUSION)
    return convolution_macs(conv) if before is None else int(before)
