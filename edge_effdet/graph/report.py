"""What a graph holds and what it costs: nodes, multiply-accumulates, parameters and memory traffic.

Everything is counted from shapes, so it is the same on every machine. Of one image: a dynamic batch counts as 1, and the
counts of a batch of N are divided by N. What is counted, layer by layer:

- **MACs** are those of convolutions, at each output position including those that see padding, and those that the graph
  does: a dense convolution made of a separable pair has its own. Element-wise arithmetic, pooling and decoding have none.
- **Parameters** are the floating-point constants that a node takes, but for its settings (bounds of a Clip, scales of a
  Resize). Integers are settings and indices. A layer lists all that it takes; a sum lists each constant once, so that a
  convolution which the heads share over the levels is there once.
- **Activations** are the other tensors that a node takes or makes, each once, even where a node takes one twice.
- **Traffic** is the floor of what crosses memory when nothing is fused with its neighbours: each layer reads its
  activations and its parameters once and writes its outputs once. Caches that are too small only add to that, and fusing
  takes away from it. Of a table that a Gather or Slice picks from, only as much is read as is picked.
- **Bytes** are given as the graph's own types have them, and as if every floating-point tensor were FP32, FP16 or INT8.
  Pixels and indices keep their types. Scales, INT32 biases and casts, which such a graph adds, are left out.

Layers are all nodes through which pixels pass. A Sigmoid with the Mul that makes it a SiLU is one. Views (Reshape,
Unsqueeze, …) move nothing, and arithmetic on shapes or constants comes before any pixel: neither is a layer.

A convolution belongs to the part of the network that its module's name says. Any other node belongs to the part of the
convolution before it, the latest where several meet, with two exceptions: between two convolutions of the BiFPN it belongs
to the one after it, because a cell begins with its weighted sum; behind the last convolution of the heads it is decoding.
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
from edge_effdet.graph.rule import RuleReport, has_one_use, producer

PRECISIONS: Mapping[str, int] = {"fp32": 4, "fp16": 2, "int8": 1}
"""Bytes of a number."""

PIXELS, DECODING, OTHER = "pixels", "decoding", "other"
_PARTS = (
    ("stem", r"backbone\.conv_stem"),
    ("stage", r"backbone\.blocks\.(\d+)"),
    ("bifpn inputs", r"fpn\.resample"),
    ("bifpn cell", r"fpn\.cell\.(\d+)"),
    ("class head", r"class_net\."),
    ("box head", r"box_net\."),
)
"""Label and the modules that belong there, in the network's order."""
ORDER = {label: rank for rank, label in enumerate((PIXELS, *(label for label, _ in _PARTS), DECODING, OTHER))}

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
"""Kinds whose inputs after the first say how to do it and are no data."""


@dataclass(frozen=True, slots=True)
class NodeCounts:
    """Nodes by kind.

    Attributes:
        by_kind: operator to number.
        silu: pairs of a Sigmoid and the Mul that makes it a SiLU.
    """

    by_kind: Mapping[str, int]
    silu: int

    @property
    def total(self) -> int:
        return sum(self.by_kind.values())

    @property
    def silu_as_one(self) -> int:
        """Nodes, each SiLU counted as one: what a library with a SiLU of its own sees."""
        return self.total - self.silu

    def to_dict(self) -> dict[str, Any]:
        return {"total": self.total, "silu_as_one": self.silu_as_one, "by_kind": dict(self.by_kind)}


@dataclass(frozen=True, slots=True)
class Volume:
    """How much data some tensors hold.

    Attributes:
        numbers: floating-point elements.
        other_bytes: bytes of pixels and indices, which no precision changes.
        graph_bytes: of both, as the graph's own types have them.
    """

    numbers: int = 0
    other_bytes: int = 0
    graph_bytes: int = 0

    def __add__(self, other: Volume) -> Volume:
        numbers, others = self.numbers + other.numbers, self.other_bytes + other.other_bytes
        return Volume(numbers, others, self.graph_bytes + other.graph_bytes)

    def in_bytes(self, precision: str) -> int:
        """If every number were ``fp32``, ``fp16`` or ``int8``."""
        return self.numbers * PRECISIONS[precision] + self.other_bytes

    def to_dict(self) -> dict[str, int]:
        return {"graph": self.graph_bytes, **{precision: self.in_bytes(precision) for precision in PRECISIONS}}


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a layer, or of the sum of some, for one image; ``edge_effdet.graph.report`` says what is counted.

    Attributes:
        macs: multiply-accumulates of convolutions.
        parameters: the constants as they are stored.
        inputs: activations read.
        weights: constants read, of a table only what is picked, and a shared one once a layer.
        outputs: activations written.
    """

    macs: int
    parameters: Volume
    inputs: Volume
    weights: Volume
    outputs: Volume

    @property
    def traffic(self) -> Volume:
        return self.inputs + self.weights + self.outputs

    @property
    def intensity(self) -> float:
        """MACs a byte of traffic, in the graph's own types."""
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
class Layer:
    """One node through which pixels pass, or a SiLU.

    Attributes:
        name: of the node; of a convolution, its module.
        kind: the operator, or ``SiLU``.
        group: ``convolution``, ``activation``, ``element-wise``, …
        part: ``stem``, ``stage 3``, ``bifpn cell 0``, ``class head``, …
        after: the convolution whose output it works on, empty for a convolution and for what comes before all.
        shape: of its first output, with a batch of 1.
        cost: of this layer alone.
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
        layers: how many.
        cost: their sum.
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
        nodes: of the graph.
        nodes_before: of the graph as it was traced, if given.
        rules: what each rule did and what it left alone, if given.
        layers: in the graph's order.
        parts: sums over the parts of the network, from pixels to decoding.
        groups: sums over kinds of work.
        total: the sum over all layers.
    """

    nodes: NodeCounts
    nodes_before: NodeCounts | None
    rules: tuple[RuleReport, ...]
    layers: tuple[Layer, ...]
    parts: tuple[Total, ...]
    groups: tuple[Total, ...]
    total: Total

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; bytes by precision, ``graph`` for the graph's own types."""
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
        model: with the shapes of its values.
        nodes_before: ``count_nodes`` of the graph before the rules.
        rules: what they reported.

    Raises:
        GraphError: a shape is unknown, or an axis other than the batch is dynamic.
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
    """Nodes by kind, and how many pairs of them are a SiLU."""
    return NodeCounts(Counter(node.op_type for node in model.graph), len(_silu_pairs(model.graph)))


@dataclass(frozen=True, slots=True)
class _Flow:
    """Where pixels go.

    Attributes:
        nodes: those that they pass through, in order.
        values: what they become.
        names: of nodes; of convolutions, their modules.
        before: the convolution whose output a node works on.
        parts: of the network, by node.
        batch: images of a run; the name of the axis where it is dynamic.
    """

    nodes: list[ir.Node]
    values: set[ir.Value]
    names: Mapping[ir.Node, str]
    before: Mapping[ir.Node, ir.Node | None]
    parts: Mapping[ir.Node, str]
    batch: int | str | None

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """For one image. Raises GraphError."""
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
                "the graph with --image-size."
            )
        return shape

    def volume(self, value: ir.Value) -> Volume:
        """Of one image. Raises GraphError."""
        elements = math.prod(self.shape(value))
        if value.dtype is None:
            raise GraphError(
                f"The type of {value.name} is unknown, so its bytes cannot be counted; export the graph again."
            )
        size = math.ceil(elements * value.dtype.itemsize)
        return Volume(elements, 0, size) if value.dtype.is_floating_point() else Volume(0, size, size)


def _follow_pixels(graph: ir.Graph) -> _Flow:
    modules = [_module(node) for node in graph if node.op_type == "Conv"]
    uses, seen = Counter(modules), Counter[str]()
    names: dict[ir.Node, str] = {}
    nodes: list[ir.Node] = []
    values = set(graph.inputs)
    before: dict[ir.Node, ir.Node | None] = {}
    parts: dict[ir.Node, str] = {}
    for node in graph:
        if node.op_type in _SHAPES or values.isdisjoint(value for value in node.inputs if value is not None):
            continue
        nodes.append(node)
        values.update(node.outputs)
        names[node], before[node] = node.name or node.op_type, None
        if node.op_type == "Conv":
            module = _module(node)
            names[node] = f"{module}@{seen[module]}" if uses[module] > 1 else module
            seen[module] += 1
            parts[node] = _module_part(module)
            continue
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
    """Of a node between convolutions of these parts."""
    if source.startswith("bifpn") and following and all(part.startswith("bifpn") for part in following):
        return min(following, key=part_order)
    return DECODING if source.endswith("head") and not following else source


def _module(conv: ir.Node) -> str:
    """The module that owns a convolution: its name once the graph is optimized, before that its weight's."""
    name, weight = conv.name or "Conv", conv.inputs[1]
    if _module_part(name) != OTHER or weight is None or weight.name is None:
        return name
    owner = weight.name.removeprefix("network.").split(".weight")[0]
    return owner if _module_part(owner) != OTHER else name


def _module_part(module: str) -> str:
    for label, pattern in _PARTS:
        if found := re.match(pattern, module):
            return " ".join((label, *found.groups()))
    return OTHER


def part_order(part: str) -> tuple[int, int]:
    return ORDER[family(part)], int(part.removeprefix(family(part)) or 0)


def family(part: str) -> str:
    """``stage`` of ``stage 3``."""
    return part.rstrip(" 0123456789")


def _silu_pairs(graph: ir.Graph) -> dict[ir.Node, ir.Node]:
    """Each Mul that multiplies a value by its own Sigmoid, which nobody else takes, and that Sigmoid.

    Squeeze-and-excitation multiplies by the Sigmoid of another value and is none.
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


_Counted = tuple[Layer, Mapping[ir.Value, Volume]]
"""A layer and the constants that it takes."""


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
    layer = Layer(
        flow.names[node],
        kind,
        _GROUP_OF.get(kind, OTHER),
        flow.parts[node],
        flow.names[source] if source else "",
        flow.shape(node.outputs[0]),
        Cost(
            _macs(node, flow) if kind == "Conv" else 0,
            _sum(constants.values()),
            _sum(read.values()),
            _sum(weights.values()),
            written,
        ),
    )
    return layer, constants


def _macs(conv: ir.Node, flow: _Flow) -> int:
    """Output positions times weights of one filter times filters."""
    assert conv.inputs[1] is not None
    return math.prod(flow.shape(conv.outputs[0])[2:]) * math.prod(flow.shape(conv.inputs[1]))


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
