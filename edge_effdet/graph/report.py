"""What a graph holds and what it costs: nodes, multiply-accumulates, parameters and memory traffic.

Everything is counted from shapes, so it is the same on every machine. All counts are for one image: a dynamic batch counts as 1, and
the counts of a batch of N are divided by N. For each layer these are counted:

- **MACs** (multiply-accumulates) of convolutions, at every output position, also where the filter reaches into the padding. They are
  the MACs that the graph computes: a dense convolution that replaces a separable pair has its own count and not the pair's.
  Element-wise arithmetic, pooling and decoding count as 0.
- **Parameters**: the floating-point constants that a node takes, without its settings (the bounds of a Clip, the scales of a Resize).
  Integers are settings and indices. A layer lists all constants that it takes; a sum over layers counts each constant once, so that
  a convolution which a head shares over the pyramid levels is in the sum once.
- **Activations**: the other tensors that a node takes or makes, each once, even where a node takes the same tensor twice.
- **Traffic**: the least that crosses memory where no layer is fused with its neighbours. Each layer reads its activations and its
  parameters once and writes its outputs once. Caches that are too small add to the traffic, and fusing takes away from it. A Gather
  or Slice reads only as much of its table as it picks.
- **Bytes** in the graph's own types, and as if every floating-point tensor were FP32, FP16 or INT8. Pixels and indices keep their
  types. The scales, INT32 biases and casts that a graph of lower precision would have are left out.

Every node through which pixels pass is a layer, where a Sigmoid and the Mul that makes it a SiLU are one layer. Views (Reshape,
Unsqueeze, …) move no data, and arithmetic on shapes or constants comes before any pixel; neither is a layer.

A convolution belongs to the part of the network that its module's name says. Any other node belongs to the part of the convolution
before it, and where several convolutions meet, to the one that stands furthest along the network. There are two exceptions. A node
between two convolutions of the BiFPN belongs to the part of the later one, because a cell begins with its weighted sum. A node behind
the last convolution of the heads belongs to the decoding.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edge_effdet.errors import GraphError
from edge_effdet.graph.counting import BYTES_PER_NUMBER, convolution_macs
from edge_effdet.graph.names import module_of_weight, number_repeats
from edge_effdet.graph.rule import RuleReport, has_one_use, producer

PIXELS, DECODING, OTHER = "pixels", "decoding", "other"
_MODULE_PATTERNS = (
    ("stem", r"backbone\.conv_stem"),
    ("stage", r"backbone\.blocks\.(\d+)"),
    ("bifpn inputs", r"fpn\.resample"),
    ("bifpn cell", r"fpn\.cell\.(\d+)"),
    ("class head", r"class_net\."),
    ("box head", r"box_net\."),
)
"""The parts of the network in its order: the label, and a pattern of the modules that belong to the part."""
ORDER = {label: rank for rank, label in enumerate((PIXELS, *(label for label, _ in _MODULE_PATTERNS), DECODING, OTHER))}

GROUPS = {
    "convolution": "Conv",
    "activation": "SiLU Sigmoid Relu Clip HardSwish HardSigmoid LeakyRelu PRelu Elu Tanh Softplus Softmax Gelu Swish Mish",
    "element-wise": "Add Mul Sub Div Sum Max Min Exp Pow Sqrt Floor Neg Mod Where Equal Greater Less",
    "pooling": "MaxPool AveragePool GlobalAveragePool GlobalMaxPool ReduceMean ReduceSum ReduceMax",
    "normalization": "BatchNormalization InstanceNormalization LayerNormalization",
    "resize": "Resize Upsample",
    "layout": "Transpose Concat Split Slice Pad Expand Tile",
    "conversion": "Cast QuantizeLinear DequantizeLinear",
    "selection": "TopK Gather GatherElements GatherND ArgMax NonMaxSuppression NonZero ScatterND",
}
_GROUP_OF = {kind: group for group, kinds in GROUPS.items() for kind in kinds.split()}
_VIEWS = frozenset({"Reshape", "Unsqueeze", "Squeeze", "Flatten", "Identity", "Dropout"})
_SHAPES = frozenset({"Shape", "Size"})
_PICKS = frozenset({"Gather", "GatherElements", "GatherND", "Slice"})
_SETTINGS = frozenset({"Clip", "Resize", "Upsample", "Pad", "QuantizeLinear", "DequantizeLinear"})
"""Operators whose inputs after the first are settings and no data."""


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """How many nodes a graph has.

    Attributes:
        by_kind: how many nodes each operator has.
        silu: how many pairs of a Sigmoid and a Mul are a SiLU.
    """

    by_kind: Mapping[str, int]
    silu: int

    @property
    def total(self) -> int:
        """How many nodes there are."""
        return sum(self.by_kind.values())

    @property
    def silu_as_one(self) -> int:
        """How many nodes there are where each SiLU counts as one node, as in a library that has SiLU as an operator."""
        return self.total - self.silu

    def to_dict(self) -> dict[str, Any]:
        return {"total": self.total, "silu_as_one": self.silu_as_one, "by_kind": dict(self.by_kind)}


@dataclass(frozen=True, slots=True)
class Volume:
    """How much data some tensors hold.

    Attributes:
        numbers: how many floating-point elements they have.
        other_bytes: the bytes of pixels and indices, which no precision changes.
        graph_bytes: the bytes of all elements in the graph's own types.
    """

    numbers: int = 0
    other_bytes: int = 0
    graph_bytes: int = 0

    def __add__(self, other: Volume) -> Volume:
        numbers, others = self.numbers + other.numbers, self.other_bytes + other.other_bytes
        return Volume(numbers, others, self.graph_bytes + other.graph_bytes)

    def in_bytes(self, precision: str) -> int:
        """The bytes of all elements if every floating-point one were ``fp32``, ``fp16`` or ``int8``."""
        return self.numbers * BYTES_PER_NUMBER[precision] + self.other_bytes

    def to_dict(self) -> dict[str, int]:
        return {"graph": self.graph_bytes, **{precision: self.in_bytes(precision) for precision in BYTES_PER_NUMBER}}


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of a layer or of several layers, for one image; ``edge_effdet.graph.report`` says what is counted.

    Attributes:
        macs: multiply-accumulates of convolutions.
        parameters: the constants as they are stored.
        inputs: the activations that are read.
        weights: the constants that are read: a shared one once a layer, and of a table only what is picked.
        outputs: the activations that are written.
    """

    macs: int
    parameters: Volume
    inputs: Volume
    weights: Volume
    outputs: Volume

    @property
    def traffic(self) -> Volume:
        """All that is read and written."""
        return self.inputs + self.weights + self.outputs

    @property
    def intensity(self) -> float:
        """MACs for each byte of traffic in the graph's own types; 0 without traffic."""
        return self.macs / self.traffic.graph_bytes if self.traffic.graph_bytes else 0.0

    def to_dict(self) -> dict[str, Any]:
        traffic = self.traffic.to_dict()
        return {
            "macs": self.macs,
            "parameters": self.parameters.numbers,
            "parameter_bytes": self.parameters.to_dict(),
            "input_bytes": self.inputs.to_dict(),
            "weight_bytes": self.weights.to_dict(),
            "output_bytes": self.outputs.to_dict(),
            "traffic_bytes": traffic,
            "macs_per_byte": {name: self.macs / size if size else 0.0 for name, size in traffic.items()},
        }


@dataclass(frozen=True, slots=True)
class CountedLayer:
    """One node through which pixels pass, or the two nodes of a SiLU.

    Attributes:
        name: the node's name; for a convolution its module.
        kind: the operator, or ``SiLU``.
        group: the kind of work, a key of ``GROUPS`` or ``other``.
        part: the part of the network: ``stem``, ``stage 3``, ``bifpn cell 0``, ``class head``, …
        after: the convolution whose output the layer works on; empty for a convolution and before the first one.
        shape: the shape of the first output, with a batch of 1.
        cost: the cost of this layer alone.
    """

    name: str
    kind: str
    group: str
    part: str
    after: str
    shape: tuple[int, ...]
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        place = {"name": self.name, "kind": self.kind, "group": self.group, "part": self.part, "after": self.after}
        return {**place, "shape": list(self.shape), **self.cost.to_dict()}


@dataclass(frozen=True, slots=True)
class Total:
    """The sum of some layers; parameters that several share are counted once.

    Attributes:
        label: the part or group.
        layers: how many layers it has.
        cost: the cost of all of them.
    """

    label: str
    layers: int
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        return {"label": self.label, "layers": self.layers, **self.cost.to_dict()}


@dataclass(frozen=True, slots=True)
class GraphReport:
    """All that is known about a graph without running it.

    Attributes:
        nodes: the counts of the graph's nodes.
        nodes_before: the counts of the graph as it was traced; None where they were not given.
        rules: what each rule did and what it left alone; empty where that was not given.
        layers: the layers in the graph's order.
        parts: the sum of each part of the network, from pixels to decoding.
        groups: the sum of each kind of work.
        total: the sum of all layers.
    """

    nodes: NodeCounts
    nodes_before: NodeCounts | None
    rules: tuple[RuleReport, ...]
    layers: tuple[CountedLayer, ...]
    parts: tuple[Total, ...]
    groups: tuple[Total, ...]
    total: Total

    def to_dict(self) -> dict[str, Any]:
        """The report for JSON. Bytes stand by precision, those in the graph's own types under ``graph``."""
        return {
            "nodes_before": self.nodes_before.to_dict() if self.nodes_before else None,
            "nodes": self.nodes.to_dict(),
            "rules": [
                {"rule": rule.rule, "fired": rule.fired, "refused": [list(refusal) for refusal in rule.refused]}
                for rule in self.rules
            ],
            "total": self.total.to_dict(),
            "parts": [part.to_dict() for part in self.parts],
            "groups": [group.to_dict() for group in self.groups],
            "layers": [layer.to_dict() for layer in self.layers],
        }


def make_report(
    model: ir.Model, nodes_before: NodeCounts | None = None, rules: Sequence[RuleReport] = ()
) -> GraphReport:
    """Count a graph, traced or optimized, as the module's docstring says. The graph stays as it is.

    Args:
        model: the graph, with the shapes of its values.
        nodes_before: what ``count_nodes`` gave for the graph before the rules.
        rules: the reports of the rules.

    Raises:
        GraphError: a shape or type is unknown, or an axis other than the batch is dynamic.
    """
    flow = _follow_pixels(model.graph)
    silu = _silu_pairs(model.graph)
    halves = set(silu.values())
    counted = [
        _count_layer(node, flow, silu.get(node))
        for node in flow.nodes
        if node not in halves and node.op_type not in _VIEWS
    ]
    layers = [layer for layer, _ in counted]
    parts = sorted({layer.part for layer in layers}, key=part_order)
    groups = [group for group in (*GROUPS, OTHER) if any(layer.group == group for layer in layers)]
    return GraphReport(
        nodes=count_nodes(model),
        nodes_before=nodes_before,
        rules=tuple(rules),
        layers=tuple(layers),
        parts=tuple(_add_up(part, [pair for pair in counted if pair[0].part == part]) for part in parts),
        groups=tuple(_add_up(group, [pair for pair in counted if pair[0].group == group]) for group in groups),
        total=_add_up("all", counted),
    )


def count_nodes(model: ir.Model) -> NodeCounts:
    """Count the nodes by operator, and the pairs of nodes that are a SiLU."""
    return NodeCounts(Counter(node.op_type for node in model.graph), len(_silu_pairs(model.graph)))


@dataclass(frozen=True, slots=True)
class _Flow:
    """The way of the pixels through the graph.

    Attributes:
        nodes: the nodes that pixels pass through, in order.
        values: the inputs, and all tensors that these nodes make.
        names: the name of each node; for a convolution its module.
        before: the convolution whose output each node works on.
        parts: the part of the network that each node belongs to.
        batch: the number of images of a run; the name of the batch axis where it is dynamic.
    """

    nodes: list[ir.Node]
    values: set[ir.Value]
    names: Mapping[ir.Node, str]
    before: Mapping[ir.Node, ir.Node | None]
    parts: Mapping[ir.Node, str]
    batch: int | str | None

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """The shape of a tensor for one image. Raises GraphError where it is unknown or dynamic."""
        if value.shape is None:
            raise GraphError(
                f"The shape of {value.name} is unknown, so its bytes cannot be counted; export the graph again, or run "
                "ONNX's shape inference over it."
            )
        axes = [size if isinstance(size, int) else size.value for size in value.shape]
        if not isinstance(self.batch, int):
            axes = [1 if axis == self.batch else axis for axis in axes]
        elif value in self.values and self.batch > 1 and axes and isinstance(axes[0], int):
            # Where the batch is flattened with other axes it is still a factor of the first.
            axes[0] = axes[0] // self.batch if axes[0] % self.batch == 0 else axes[0]
        shape = tuple(axis for axis in axes if isinstance(axis, int))
        if len(shape) < len(axes):
            raise GraphError(
                f"{value.name} has the shape {value.shape}, and only the batch may be dynamic where bytes are counted; export "
                "the graph with `image_size`."
            )
        return shape

    def volume(self, value: ir.Value) -> Volume:
        """How much data a tensor holds for one image. Raises GraphError where its shape or type is unknown."""
        elements = math.prod(self.shape(value))
        if value.dtype is None:
            raise GraphError(
                f"The type of {value.name} is unknown, so its bytes cannot be counted; export the graph again."
            )
        size = math.ceil(elements * value.dtype.itemsize)
        return Volume(elements, 0, size) if value.dtype.is_floating_point() else Volume(0, size, size)


def _follow_pixels(graph: ir.Graph) -> _Flow:
    convolutions = [node for node in graph if node.op_type == "Conv"]
    modules = [_module(node) for node in convolutions]
    names = dict(zip(convolutions, number_repeats(modules), strict=True))
    nodes: list[ir.Node] = []
    values = set(graph.inputs)
    before: dict[ir.Node, ir.Node | None] = {}
    parts: dict[ir.Node, str] = {}
    for node in graph:
        if node.op_type in _SHAPES or values.isdisjoint(value for value in node.inputs if value is not None):
            continue
        nodes.append(node)
        values.update(node.outputs)
        before[node] = None
        if node.op_type == "Conv":
            parts[node] = _module_part(_module(node))
            continue
        names[node] = node.name or node.op_type
        makers = [value.producer() for value in node.inputs if value is not None and value in values]
        sources = [maker if maker.op_type == "Conv" else before[maker] for maker in makers if maker]
        # The node works on the convolution that stands furthest along the network. Where several stand in the same part, the last
        # input's is taken: the list is reversed because max returns the first of equal entries.
        known = [conv for conv in reversed(sources) if conv]
        before[node] = max(known, key=lambda conv: part_order(parts[conv]), default=None)
    following: dict[ir.Node, set[str]] = {}
    for node in reversed(nodes):
        users = [use.node for value in node.outputs for use in value.uses()]
        next_parts = ({parts[user]} if user.op_type == "Conv" else following.get(user, set()) for user in users)
        following[node] = set().union(*next_parts)
        if node.op_type != "Conv":
            source = before[node]
            parts[node] = _part(parts[source] if source else PIXELS, following[node])
    shape = graph.inputs[0].shape if graph.inputs else None
    axis = shape[0] if shape else 1
    return _Flow(nodes, values, names, before, parts, axis if isinstance(axis, int) else axis.value)


def _part(source: str, following: set[str]) -> str:
    """The part of a node that stands behind a convolution of ``source`` and before convolutions of the parts ``following``."""
    if source.startswith("bifpn") and following and all(part.startswith("bifpn") for part in following):
        return min(following, key=part_order)
    return DECODING if source.endswith("head") and not following else source


def _module(conv: ir.Node) -> str:
    """The module that owns a convolution, by the node's name once the graph is optimized, and by its weight's name before that."""
    name, weight = conv.name or "Conv", conv.inputs[1]
    if _module_part(name) != OTHER or weight is None or weight.name is None:
        return name
    owner = module_of_weight(weight.name)
    return owner if _module_part(owner) != OTHER else name


def _module_part(module: str) -> str:
    for label, pattern in _MODULE_PATTERNS:
        if found := re.match(pattern, module):
            return " ".join((label, *found.groups()))
    return OTHER


def part_order(part: str) -> tuple[int, int]:
    """A key that sorts parts in the network's order."""
    return ORDER[family(part)], int(part.removeprefix(family(part)) or 0)


def family(part: str) -> str:
    """The label of a part without its number: ``stage`` for ``stage 3``."""
    return part.rstrip(" 0123456789")


def _silu_pairs(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """From each Mul that makes a SiLU to its Sigmoid: x * sigmoid(x), where no other node takes the Sigmoid's output.

    The gate of squeeze-and-excitation multiplies a value by the Sigmoid of another one, so it is no SiLU.
    """
    pairs: dict[ir.Node, ir.Node] = {}
    for node in graph:
        if node.op_type != "Mul":
            continue
        for value, other in (tuple(node.inputs), tuple(reversed(node.inputs))):
            sigmoid = producer(other, "Sigmoid")
            if sigmoid is not None and sigmoid.inputs[0] is value and has_one_use(sigmoid.outputs[0]):
                pairs[node] = sigmoid
    return pairs


_Counted = tuple[CountedLayer, Mapping[ir.Value, Volume]]
"""A layer, and how much data each constant that it takes holds."""


def _count_layer(node: ir.Node, flow: _Flow, sigmoid: ir.Node | None) -> _Counted:
    kind = "SiLU" if sigmoid else node.op_type
    inputs = dict.fromkeys(value for value in (sigmoid or node).inputs if value is not None)
    settings = set(node.inputs[1:]) if kind in _SETTINGS else set()
    read = {value: flow.volume(value) for value in inputs if value in flow.values}
    constants = {
        value: flow.volume(value)
        for value in inputs
        if value not in flow.values and value not in settings and value.dtype and value.dtype.is_floating_point()
    }
    written = _sum(flow.volume(value) for value in node.outputs if value.uses() or value.is_graph_output())
    weights = dict(constants)
    if kind in _PICKS:
        for volumes in (read, weights):
            volumes.update({value: _smaller(volumes[value], written) for value in node.inputs[:1] if value in volumes})
    source = flow.before[node]
    layer = CountedLayer(
        flow.names[node],
        kind,
        _GROUP_OF.get(kind, OTHER),
        flow.parts[node],
        flow.names[source] if source else "",
        flow.shape(node.outputs[0]),
        Cost(
            convolution_macs(node) if kind == "Conv" else 0,
            _sum(constants.values()),
            _sum(read.values()),
            _sum(weights.values()),
            written,
        ),
    )
    return layer, constants


def _add_up(label: str, counted: Sequence[_Counted]) -> Total:
    costs = [layer.cost for layer, _ in counted]
    stored = {value: volume for _, constants in counted for value, volume in constants.items()}
    return Total(
        label,
        len(costs),
        Cost(
            sum(cost.macs for cost in costs),
            _sum(stored.values()),
            _sum(cost.inputs for cost in costs),
            _sum(cost.weights for cost in costs),
            _sum(cost.outputs for cost in costs),
        ),
    )


def _sum(volumes: Iterable[Volume]) -> Volume:
    return sum(volumes, Volume())


def _smaller(one: Volume, other: Volume) -> Volume:
    return one if one.graph_bytes <= other.graph_bytes else other
