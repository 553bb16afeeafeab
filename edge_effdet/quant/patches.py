"""Second moments and means of what the filters of convolutions see, over calibration images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.ranges import LARGEST_CODE
from edge_effdet.quant.rounding import Inputs
from edge_effdet.quant.statistics import fetch_tensors

POSITIONS, GROUPED_POSITIONS = 192, 64
"""How many output positions of an image are looked at: for a convolution over all channels, and for a depthwise one."""


@dataclass(frozen=True, slots=True)
class ConvolutionShape:
    """How a convolution picks its inputs.

    Attributes:
        tensor: the name of its input.
        kernel: height and width.
        strides: vertical and horizontal.
        dilations: vertical and horizontal.
        pads: top, left, bottom and right.
        groups: how many groups of channels there are.
    """

    tensor: str
    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    groups: int


def measure_inputs(
    model: onnx.ModelProto, images: CalibrationImages, convolutions: Sequence[str], scales: Mapping[str, float]
) -> dict[str, Inputs]:
    """Measure the moments of what each convolution's filters see, at random positions of each image, seeded by its number.

    Args:
        model: the graph.
        images: the images to look at.
        convolutions: the names of Conv nodes.
        scales: the scale of the INT8 codes of each input tensor, by the tensor's name.

    Returns:
        The moments by the convolution's name.
    """
    shapes = convolution_shapes(model, convolutions)
    sums: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
    seen = dict.fromkeys(convolutions, 0)
    tensors = list(dict.fromkeys(shape.tensor for shape in shapes.values()))
    for number, values in enumerate(fetch_tensors(model, images, tensors, "looking at inputs")):
        generator = np.random.default_rng(number)
        for name, shape in shapes.items():
            patches = pick_patches(values[shape.tensor][0], shape, generator)
            scale = scales[shape.tensor]
            rounded = np.clip(np.rint(patches / scale), -LARGEST_CODE, LARGEST_CODE) * scale
            parts = (np.matmul(patches.transpose(0, 2, 1), patches), patches.sum(axis=1), rounded.sum(axis=1))
            if name not in sums:
                sums[name] = tuple(np.zeros(part.shape, np.float64) for part in parts)  # type: ignore[assignment]
            for total, part in zip(sums[name], parts, strict=True):
                total += part
            seen[name] += patches.shape[1]
    return {name: Inputs(*(total / seen[name] for total in totals)) for name, totals in sums.items()}


def pick_patches(value: np.ndarray, shape: ConvolutionShape, generator: np.random.Generator) -> np.ndarray:
    """Pick the inputs of a convolution's filters at random output positions, with zeros where a filter reaches over the border.

    Args:
        value: the convolution's input for one image, float32 [channels, height, width].
        shape: how the convolution picks its inputs.
        generator: chooses the positions.

    Returns:
        The inputs, float32 [groups, positions, channels of a group x height x width of the kernel].
    """
    top, left, bottom, right = shape.pads
    reach = [dilation * (side - 1) + 1 for dilation, side in zip(shape.dilations, shape.kernel, strict=True)]
    inside = (value.shape[1] + top + bottom, value.shape[2] + left + right)
    height, width = ((size - far) // stride + 1 for size, far, stride in zip(inside, reach, shape.strides, strict=True))
    wanted = POSITIONS if shape.groups == 1 else GROUPED_POSITIONS
    positions = np.arange(height * width)
    if len(positions) > wanted:
        positions = np.sort(generator.choice(len(positions), wanted, replace=False))
    rows = (positions // width * shape.strides[0] - top)[:, None] + np.arange(shape.kernel[0]) * shape.dilations[0]
    columns = (positions % width * shape.strides[1] - left)[:, None] + np.arange(shape.kernel[1]) * shape.dilations[1]
    valid = ((rows >= 0) & (rows < value.shape[1]))[:, :, None] & ((columns >= 0) & (columns < value.shape[2]))[:, None]
    rows, columns = np.clip(rows, 0, value.shape[1] - 1), np.clip(columns, 0, value.shape[2] - 1)
    picked = value[:, rows[:, :, None], columns[:, None]] * valid
    grouped = picked.reshape(shape.groups, -1, len(positions), shape.kernel[0] * shape.kernel[1])
    return np.ascontiguousarray(grouped.transpose(0, 2, 1, 3)).reshape(shape.groups, len(positions), -1)


def convolution_shapes(model: onnx.ModelProto, convolutions: Sequence[str]) -> dict[str, ConvolutionShape]:
    """How each of these convolutions picks its inputs, by its name, in the order of the graph."""
    wanted = set(convolutions)
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: dict[str, ConvolutionShape] = {}
    for node in model.graph.node:
        if node.op_type != "Conv" or node.name not in wanted:
            continue
        given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
        kernel = weights[node.input[1]][2:]
        found[node.name] = ConvolutionShape(
            node.input[0],
            (kernel[0], kernel[1]),
            tuple(given.get("strides", (1, 1))),  # type: ignore[arg-type]
            tuple(given.get("dilations", (1, 1))),  # type: ignore[arg-type]
            tuple(given.get("pads", (0, 0, 0, 0))),  # type: ignore[arg-type]
            int(given.get("group", 1)),  # type: ignore[arg-type]
        )
    return found
