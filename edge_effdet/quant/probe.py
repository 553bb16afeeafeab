"""Make graphs that show their inner tensors: in one whole run, or with exact inputs for each layer alone.

In a **whole run** each layer works on the output of the layer before it. An INT8 graph then amplifies small differences: where the
FP32 sums of two correct runs differ in the last bit, a value near a tie is rounded to two different codes, and a hundred layers later
the SQNR between the two runs is down to 20 dB. So a whole run shows how far a tensor is from the FP32 graph's, and does not show which
layer is at fault.

With **layers alone** the graph is cut at every tensor that is compared: a node that takes such a tensor takes a new input instead,
which is fed with the exact value. One run still computes every layer, and an error at a layer is the error of that layer. A value that
goes to a QuantizeLinear and lies near a tie is moved onto the code that it rounds to. In exact arithmetic this changes nothing, and
without it, sums that were added in another order could look like errors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import numpy_helper

TIE_MARGIN = 1 / 16
"""A value is near a tie where it is within this share of a code's step. FP16 moves the value of the largest code by half as much."""

DENSE, DEPTHWISE, OUTPUT = "dense", "depthwise", "output"

_ONE_NODE_ACTIVATIONS = frozenset({"Clip", "Relu", "HardSwish", "LeakyRelu", "PRelu", "Elu", "Mish", "Gelu", "Swish"})
_SORTED_OUTPUT = "scores"
"""The only output of the graph that can be compared. Scores are sorted, so a small error changes their values a little. Boxes and
classes stand in the order of the scores, so two scores that change places exchange whole rows of them."""


@dataclass(frozen=True, slots=True)
class ComparedLayer:
    """A tensor that is compared, named by the node that computes it.

    Attributes:
        name: the name of the convolution, or of another node whose output a QuantizeLinear takes.
        tensor: the name of the tensor; for a convolution it is the tensor behind its activation.
        kind: ``dense`` or ``depthwise`` for a convolution, ``output`` for the scores, else the operator.
        largest_code: the largest absolute weight code of a convolution in INT8; None for all other layers.
        sources: the compared tensors from which this one is computed without another compared tensor in between.
    """

    name: str
    tensor: str
    kind: str
    largest_code: int | None = None
    sources: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Given:
    """What an input of a cut graph is fed with.

    Attributes:
        tensor: the name of the tensor whose value it takes.
        scale: the scale of the codes where a QuantizeLinear takes the input; None where none does.
    """

    tensor: str
    scale: float | None

    def value(self, exact: np.ndarray) -> np.ndarray:
        """The tensor's exact value as the input takes it: off ties where it is quantized next."""
        return exact if self.scale is None else keep_off_ties(exact, self.scale)


def find_layers(model: onnx.ModelProto) -> list[ComparedLayer]:
    """The tensors of a graph that are compared, in the graph's order.

    These are the tensors behind each convolution and its activation, all other tensors that a QuantizeLinear takes, so that no
    arithmetic between two compared tensors is left out, and the scores. Tensors before the first convolution are left out, because
    INT8 centres the pixels on another value there (``quant.pixels``).
    """
    users = _users(model.graph)
    codes = _largest_codes(model.graph)
    quantized = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    behind_convolution: set[str] = set()
    layers: dict[str, ComparedLayer] = {}
    for node in model.graph.node:
        if node.op_type == "Conv":
            tensor = _behind_activation(node.output[0], users)
            layers[tensor] = ComparedLayer(
                node.name or tensor, tensor, _convolution_kind(node), codes.get(node.input[1])
            )
        elif behind_convolution.isdisjoint(node.input):
            continue
        behind_convolution.update(node.output)
        for output in node.output:
            if output in quantized and output not in layers:
                layers[output] = ComparedLayer(node.name or output, output, node.op_type)
    if _SORTED_OUTPUT in {output.name for output in model.graph.output}:
        layers[_SORTED_OUTPUT] = ComparedLayer(_SORTED_OUTPUT, _SORTED_OUTPUT, OUTPUT)
    return _in_graph_order(layers, model.graph)


def expose_tensors(
    model: onnx.ModelProto, tensors: Collection[str], like: Mapping[str, np.ndarray] | None = None
) -> onnx.ModelProto:
    """A copy of a graph whose last outputs are these tensors, in this order.

    Args:
        model: the graph.
        tensors: the names of the tensors.
        like: a value of each tensor, whose type its output is declared with; None declares no types.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    _add_outputs(exposed.graph, tensors, like)
    return exposed


def isolate_layers(
    model: onnx.ModelProto, tensors: Collection[str], like: Mapping[str, np.ndarray]
) -> tuple[onnx.ModelProto, dict[str, Given]]:
    """A copy of a graph that is cut at these tensors, and what each of its new inputs is fed with, by the input's name.

    Args:
        model: the graph.
        tensors: the names of the tensors, as ``find_layers`` gives them. They become the outputs of the copy.
        like: a value of each tensor, for the types and shapes of the new inputs.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    given: dict[str, Given] = {}
    for node in cut.graph.node:
        for position, tensor in enumerate(node.input):
            if tensor not in tensors:
                continue
            scale = _scale(node, constants) if node.op_type == "QuantizeLinear" and position == 0 else None
            name = f"{tensor}.given" if scale is None else f"{tensor}.given_to_{node.name}"
            node.input[position] = name
            given[name] = Given(tensor, scale)
    for name, source in given.items():
        value = like[source.tensor]
        kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
        cut.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, value.shape))
    del cut.graph.output[:]
    _add_outputs(cut.graph, tensors, like)
    return cut, given


def keep_off_ties(values: np.ndarray, scale: float) -> np.ndarray:
    """The values, where each one within ``TIE_MARGIN`` of a tie between two codes is replaced by the value of the code it rounds to."""
    step = values.dtype.type(scale)
    codes = values / step
    nearest = np.rint(codes)
    is_near = np.abs(codes - nearest) > 0.5 - TIE_MARGIN
    return np.where(is_near, nearest * step, values)


def _add_outputs(graph: onnx.GraphProto, tensors: Collection[str], like: Mapping[str, np.ndarray] | None) -> None:
    """Make these tensors the last outputs of a graph, in this order."""
    present = {output.name: output for output in graph.output}
    kept = [output for output in graph.output if output.name not in tensors]
    shown = [present.get(tensor) or _describe(tensor, None if like is None else like[tensor]) for tensor in tensors]
    outputs = [onnx.ValueInfoProto.FromString(output.SerializeToString()) for output in (*kept, *shown)]
    del graph.output[:]
    graph.output.extend(outputs)


def _describe(tensor: str, like: np.ndarray | None) -> onnx.ValueInfoProto:
    """The description of an output, with its type where that is known. onnxruntime does without the type, TensorRT does not."""
    if like is None:
        return onnx.ValueInfoProto(name=tensor)
    return onnx.helper.make_tensor_value_info(tensor, onnx.helper.np_dtype_to_tensor_dtype(like.dtype), None)


def _users(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for value in dict.fromkeys(node.input):
            users.setdefault(value, []).append(node)
    return users


def _behind_activation(tensor: str, users: Mapping[str, Sequence[onnx.NodeProto]]) -> str:
    """The output of the activation behind ``tensor`` where only that takes it, else ``tensor``. A SiLU is a Sigmoid and a Mul."""
    taking = users.get(tensor, ())
    if len(taking) == 1 and taking[0].op_type in _ONE_NODE_ACTIVATIONS:
        return taking[0].output[0]
    sigmoid = next((node for node in taking if node.op_type == "Sigmoid"), None)
    product = next((node for node in taking if node.op_type == "Mul"), None)
    if len(taking) == 2 and sigmoid is not None and product is not None and sigmoid.output[0] in product.input:
        return product.output[0]
    return tensor


def _largest_codes(graph: onnx.GraphProto) -> dict[str, int]:
    """The largest absolute code of each constant that a DequantizeLinear takes, by the DequantizeLinear's output."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    return {
        node.output[0]: int(np.abs(numpy_helper.to_array(constants[node.input[0]]).astype(np.int32)).max(initial=0))
        for node in graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }


def _convolution_kind(node: onnx.NodeProto) -> str:
    groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    return DENSE if groups == 1 else DEPTHWISE


def _scale(quantizer: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> float | None:
    tensor = constants.get(quantizer.input[1])
    array = None if tensor is None else numpy_helper.to_array(tensor)
    return None if array is None or array.size != 1 else float(array.reshape(()))


def _in_graph_order(layers: Mapping[str, ComparedLayer], graph: onnx.GraphProto) -> list[ComparedLayer]:
    """The layers in the order of the nodes that make their tensors, with the sources of each."""
    ordered: list[ComparedLayer] = []
    sources: dict[str, frozenset[str]] = {}
    for node in graph.node:
        before = frozenset().union(*(sources.get(value, frozenset()) for value in node.input))
        for output in node.output:
            sources[output] = before
            if output in layers:
                ordered.append(replace(layers[output], sources=tuple(sorted(before))))
                sources[output] = frozenset({output})
    return ordered
