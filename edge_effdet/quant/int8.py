"""INT8 by explicit Q/DQ: work out once what each convolution becomes in INT8, then put any choice of them into the graph.

The Q/DQ nodes stand where TensorRT turns them into INT8 kernels:

- Each tensor that quantized convolutions take has one QuantizeLinear/DequantizeLinear pair, which they share. It stands behind a
  Resize and not before it, because TensorRT resizes in floating point and a pair before the Resize would only round once more.
- Weights are INT8 initializers with a DequantizeLinear along the filters.
- A sum that takes such a tensor takes it behind the DequantizeLinear (``quantize_sums``). So the residual of a block is read as INT8,
  with the scale of the convolutions that take it, and no wider copy of it is kept.
- Scales are FP32 and zero points are 0. Everything else stays as it was.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from edge_effdet.artifacts import Graph
from edge_effdet.errors import InputError, UsageError
from edge_effdet.graph.model import load_model
from edge_effdet.graph.rule import add_initializer, constant, remove_unused
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.equalize import equalize_channels
from edge_effdet.quant.options import Int8Options
from edge_effdet.quant.patches import measure_inputs
from edge_effdet.quant.pixels import center_on_codes
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.ranges import LARGEST_CODE
from edge_effdet.quant.rounding import QuantizedWeight, quantize_weight
from edge_effdet.quant.statistics import input_tensors
from edge_effdet.quant.table import CalibrationTable, measure_table

ROUNDING_IMAGES = 16
"""How many calibration images the rounding of weights looks at. It needs means and moments, which take fewer images than extremes."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that makes a graph INT8, for any choice of its convolutions.

    Attributes:
        model: the FP32 graph with equalized channels.
        scales: the scale of the codes of each tensor that a convolution takes, by the tensor's name.
        inputs: the name of the tensor that each convolution takes, by the convolution's name.
        weights: the INT8 weights by the convolution's name, without the final convolutions, which stay in high precision.
        options: the options that the recipe was made with.
        table: the ranges behind the scales.
    """

    model: onnx.ModelProto
    scales: Mapping[str, float]
    inputs: Mapping[str, str]
    weights: Mapping[str, QuantizedWeight]
    options: Int8Options
    table: CalibrationTable


def make_recipe(
    graph: Graph, images: CalibrationImages, options: Int8Options, table: CalibrationTable | None = None
) -> Recipe:
    """Equalize the channels of a graph, measure the ranges of its tensors and round its weights.

    Args:
        graph: an FP32 graph that was optimized, for single images or with a dynamic batch.
        images: the calibration images.
        options: how ranges and weights are worked out.
        table: ranges that were measured before with the same graph, images and options; None measures them.

    Raises:
        UsageError: the graph takes batches of a fixed size above 1.
        GraphError: a tensor is not finite, or has one value only; the message names it.
        InputError: ``table`` lacks the range of a tensor.
    """
    source = load_model(graph.path)
    _require_single_images(source)
    model = ir.from_proto(source)
    if options.equalize:
        equalize_channels(model, images)
    pixels = center_on_codes(model)
    equalized: onnx.ModelProto = ir.to_proto(model)
    names = [str(node.name) for node in model.graph if node.op_type == "Conv" and not is_final(str(node.name))]
    inputs = input_tensors(model, names)
    if table is None:
        tensors = list(dict.fromkeys(inputs.values()))
        table = measure_table(graph, equalized, images, tensors, options.method, options.equalize)
    elif missing := set(inputs.values()) - set(table.ranges):
        raise InputError(
            f"The calibration table has no range for {', '.join(sorted(missing)[:3])}{' and others' if len(missing) > 3 else ''}; delete the file, "
            "and it is measured again."
        )
    scales = {tensor: np.float32(t / LARGEST_CODE).item() for tensor, t in {**table.ranges, **pixels}.items()}
    needed = options.rounding == "gptq" or options.correct_bias
    seen = measure_inputs(equalized, images.first(ROUNDING_IMAGES), names, scales) if needed else {}
    weights: dict[str, QuantizedWeight] = {}
    for node in (node for node in model.graph if node.name in inputs):
        name = str(node.name)
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        weights[name] = quantize_weight(
            _weight(node),
            bias,
            scales[inputs[name]],
            seen.get(name),
            options.rounding,
            options.correct_bias,
            options.weight_codes,
        )
    return Recipe(equalized, scales, inputs, weights, options, table)


def apply_recipe(recipe: Recipe, quantized: Collection[str]) -> ir.Model:
    """The graph with these convolutions in INT8, given by their names."""
    model = ir.from_proto(recipe.model)
    wanted = set(quantized)
    dequantized: dict[ir.Value, ir.Value] = {}
    for node in [node for node in model.graph if node.op_type == "Conv" and node.name in wanted]:
        source, name = node.inputs[0], str(node.name)
        assert source is not None
        if source not in dequantized:
            dequantized[source] = _insert_pair(model.graph, source, recipe.scales[str(source.name)])
        node.replace_input_with(0, dequantized[source])
        _set_weight(node, recipe.weights[name])
    if recipe.options.quantize_sums:
        for source, value in dequantized.items():
            for user, position in list(source.uses()):
                if user.op_type == "Add" and _is_residual(user):
                    user.replace_input_with(position, value)
    model.graph.sort()
    # These are the weights that INT8 or equalization replaced.
    remove_unused(model)
    return model


def _insert_pair(graph: ir.Graph, source: ir.Value, scale: float) -> ir.Value:
    """Add a Q/DQ pair behind a tensor and return its output. Nodes that took the tensor still take it."""
    name = str(source.name)
    constants = [
        add_initializer(graph, f"{name}_scale", np.asarray(scale, np.float32)),
        add_initializer(graph, f"{name}_zero_point", np.zeros((), np.int8)),
    ]
    codes = ir.Value(name=f"{name}_quantized", shape=source.shape, type=ir.TensorType(ir.DataType.INT8))
    # The value needs a type object of its own: a shared one would change for both values when one of them is cast.
    result = ir.Value(name=f"{name}_dequantized", shape=source.shape, type=ir.TensorType(ir.DataType.FLOAT))
    graph.append(ir.Node("", "QuantizeLinear", [source, *constants], outputs=[codes], name=f"quantize_{name}"))
    graph.append(ir.Node("", "DequantizeLinear", [codes, *constants], outputs=[result], name=f"dequantize_{name}"))
    return result


def _set_weight(conv: ir.Node, weight: QuantizedWeight) -> None:
    graph, old = conv.graph, conv.inputs[1]
    assert graph is not None and old is not None
    name = str(conv.name)
    codes = add_initializer(graph, f"{name}.weight_int8", weight.codes)
    scales = add_initializer(graph, f"{name}.weight_scale", weight.scales)
    zeros = add_initializer(graph, f"{name}.weight_zero_point", np.zeros(weight.scales.shape, np.int8))
    result = ir.Value(name=f"{name}.weight_dequantized", shape=old.shape, type=ir.TensorType(ir.DataType.FLOAT))
    axis = ir.AttrInt64("axis", 0)
    node = ir.Node(
        "", "DequantizeLinear", [codes, scales, zeros], [axis], outputs=[result], name=f"dequantize_{name}.weight"
    )
    graph.insert_before(conv, node)
    conv.replace_input_with(1, result)
    if weight.bias_change.any():
        before = constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
        bias = weight.bias_change if before is None else before + weight.bias_change
        conv.resize_inputs(3)
        conv.replace_input_with(2, add_initializer(graph, f"{name}.bias_int8", bias.astype(np.float32)))


def _is_residual(addition: ir.Node) -> bool:
    """Whether a sum is of two computed tensors, one of them the output of a convolution, into which TensorRT fuses the sum."""
    if len(addition.inputs) != 2 or any(value is None or constant(value) is not None for value in addition.inputs):
        return False
    makers = [value.producer() for value in addition.inputs if value is not None]
    return any(maker is not None and maker.op_type == "Conv" for maker in makers)


def _weight(conv: ir.Node) -> np.ndarray:
    array = constant(conv.inputs[1])
    assert array is not None
    return array


def _require_single_images(model: onnx.ModelProto) -> None:
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if batch > 1:
        raise UsageError(
            f"The graph takes batches of {batch}, and calibration runs one image at a time; export it with "
            "`batch_size` 1, or 0 for a dynamic batch."
        )
