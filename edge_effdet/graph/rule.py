"""How a rewriting rule is applied to a graph, and what rules share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir


class Refused(Exception):
    """A node looks like a rule's pattern, and rewriting it would be wrong; the message is the reason."""


@dataclass(frozen=True, slots=True)
class RuleReport:
    """What one rule did to one graph.

    Attributes:
        rule: the rule's name.
        fired: how often it rewrote.
        refused: the node's name and the reason, for each node that it left alone on purpose.
    """

    rule: str
    fired: int
    refused: tuple[tuple[str, str], ...]


class Rule(Protocol):
    """A rewriting rule: a pattern that ends at one node, and what takes its place."""

    name: str

    def check(self, node: ir.Node) -> Any | None:
        """Give what ``rewrite`` needs, or None where the pattern does not end at ``node``. Raises Refused with a reason."""
        ...

    def rewrite(self, node: ir.Node, found: Any) -> None:
        """Replace the pattern that ends at ``node``. Nodes that lose their last consumer are removed afterwards."""
        ...


def apply_rule(model: ir.Model, rule: Rule) -> RuleReport:
    """Try a rule once at each node of the graph, in order."""
    fired = 0
    refused: list[tuple[str, str]] = []
    for node in list(model.graph):
        if node.graph is None:
            continue
        try:
            found = rule.check(node)
        except Refused as reason:
            refused.append((node.name or node.op_type, str(reason)))
            continue
        if found is not None:
            rule.rewrite(node, found)
            fired += 1
    remove_unused(model)
    return RuleReport(rule.name, fired, tuple(refused))


def remove_unused(model: ir.Model) -> None:
    """Remove nodes and initializers that nothing uses, with onnx-ir's own pass."""
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(model)


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that makes ``value``, or None where it is of another type or of another domain than ONNX's."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.domain == "" and node.op_type == op_type else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The array of an initializer or of a Constant node; None for a value that is computed."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def has_one_use(value: ir.Value) -> bool:
    """Whether exactly one node takes the value, and the graph does not give it out."""
    return len(value.uses()) == 1 and not value.is_graph_output()


def add_initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add an initializer to a graph and return it; a name that is taken gets a number."""
    unique, number = name, 1
    while unique in graph.initializers:
        unique, number = f"{name}.{number}", number + 1
    value = ir.Value(name=unique, const_value=ir.tensor(array, name=unique))
    value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    graph.register_initializer(value)
    return value


def insert_before(node: ir.Node, op_type: str, inputs: list[ir.Value | None], name: str, like: ir.Value) -> ir.Value:
    """Put a new node in front of ``node`` and return its one output, which has the type and shape of ``like``."""
    assert node.graph is not None
    output = ir.Value(name=f"{name}_output", shape=like.shape, type=like.type)
    node.graph.insert_before(node, ir.Node("", op_type, inputs, outputs=[output], name=name))
    return output


def replace_output(node: ir.Node, new: ir.Value) -> None:
    """Let all that take the output of ``node``, and the graph's outputs, take ``new`` instead; then remove the node."""
    old, graph = node.outputs[0], node.graph
    assert graph is not None
    if old.is_graph_output():
        if new.is_graph_input() or new.is_graph_output():
            new = insert_before(node, "Identity", [new], f"{node.name}_identity", old)
        for position, output in enumerate(graph.outputs):
            if output is old:
                graph.outputs[position] = new
        new.name = old.name
    ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)


def scale_input(conv: ir.Node, position: int, factors: np.ndarray | float) -> None:
    """Multiply the weight or the bias of a convolution by factors.

    The convolution gets a copy: the original stays for other nodes that share it.

    Args:
        conv: a Conv node.
        position: 1 for the weight, 2 for the bias; a convolution without a bias stays as it is.
        factors: one number, or an array that broadcasts against the weight or bias.
    """
    value = conv.inputs[position] if position < len(conv.inputs) else None
    array = constant(value)
    if value is None or array is None:
        return
    assert conv.graph is not None
    scaled = (array.astype(np.float64) * factors).astype(array.dtype)
    conv.replace_input_with(position, add_initializer(conv.graph, value.name or "weight", scaled))
