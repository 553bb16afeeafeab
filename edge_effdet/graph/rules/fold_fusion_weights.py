"""Write the BiFPN's weighted sum with constant weights as Mul and Add.

The exporter writes each fusion node of the BiFPN (EfficientDet, arXiv 1911.09070, section 3.3) as a stack and a sum over
the new last axis:

    ReduceSum(Concat(Unsqueeze(y_1), …, Unsqueeze(y_n)), axis -1)
    fast normalised, eq. 3:  y_i = Div(Mul(x_i, w_i), e + sum w)     where w has passed the ReLU
    softmax, eq. 2:          the stack is multiplied by a vector of n weights
    plain sum:               y_i = x_i

Unbounded fusion, eq. 1, is traced as Mul and Add already (``models.bifpn``), so the rule finds nothing to rewrite there.

At inference all weights are constants, so the node is sum_i c_i x_i with one number c_i for each edge: a ``Mul`` by c_i, left out
where c_i is 1, then a chain of ``Add``. An edge with c_i = 0 is dropped, because its x_i is finite and adds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edge_effdet.graph.rule import (
    Refused,
    add_initializer,
    constant,
    has_one_use,
    insert_before,
    producer,
    replace_output,
)


@dataclass(frozen=True, slots=True)
class _Edge:
    value: ir.Value
    factor: np.ndarray


class FoldFusionWeights:
    name = "fold_fusion_weights"

    def check(self, node: ir.Node) -> list[_Edge] | None:
        if node.op_type != "ReduceSum" or node.attributes.get_int("keepdims", 1) != 0:
            return None
        stacked, weights = node.inputs[0], None
        scaled = producer(stacked, "Mul")
        if scaled is not None:
            stacked, weights = _value_and_constant(scaled)
            if weights is None and producer(stacked, "Concat") is None:
                stacked = scaled.inputs[0]
        stack = producer(stacked, "Concat")
        if stack is None or not all(producer(value, "Unsqueeze") for value in stack.inputs):
            return None
        rank = _rank(node.outputs[0])
        axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if axes is None or rank is None or [axis % (rank + 1) for axis in axes.tolist()] != [rank]:
            raise Refused("it does not sum over the last axis alone")
        if stack.attributes.get_int("axis", 0) % (rank + 1) != rank:
            raise Refused("the stack before it is not along the last axis")
        if any(_new_axes(value, rank) != [rank] for value in stack.inputs):
            raise Refused("an input of the stack before it has its new axis elsewhere")
        count = len(stack.inputs)
        if scaled is not None and (
            weights is None or (weights.size != 1 and not weights.size == weights.shape[-1] == count)
        ):
            raise Refused("the weights of the stack are not one constant an edge")
        if not has_one_use(stack.outputs[0]):
            raise Refused("the stack before it has another consumer")
        factors = np.ones(count, np.float32) if weights is None else np.broadcast_to(weights.reshape(-1), (count,))
        return [_edge(value, np.asarray(factor)) for value, factor in zip(stack.inputs, factors, strict=True)]

    def rewrite(self, node: ir.Node, found: list[_Edge]) -> None:
        graph, like, name = node.graph, node.outputs[0], node.name or "fusion"
        assert graph is not None
        # With every weight at 0 one edge stays, so that the sum keeps its shape.
        edges = [edge for edge in found if edge.factor != 0] or found[:1]
        terms: list[ir.Value] = []
        for position, edge in enumerate(edges):
            term = edge.value
            if edge.factor != 1:
                factor = add_initializer(graph, f"{name}_weight_{position}", edge.factor)
                term = insert_before(node, "Mul", [term, factor], f"{name}_scale_{position}", like)
            terms.append(term)
        total = terms[0]
        for position, term in enumerate(terms[1:], start=1):
            total = insert_before(node, "Add", [total, term], f"{name}_add_{position}", like)
        replace_output(node, total)


def _edge(unsqueezed: ir.Value | None, factor: np.ndarray) -> _Edge:
    """An edge from one input of the stack: without its Unsqueeze, and without a Div and a Mul by a constant number."""
    assert unsqueezed is not None
    unsqueeze = unsqueezed.producer()
    assert unsqueeze is not None
    value = unsqueeze.inputs[0]
    assert value is not None
    total = factor.astype(np.float64)
    division = producer(value, "Div")
    divisor = _scalar(division.inputs[1]) if division is not None else None
    if division is not None and divisor is not None:
        total = total / divisor
        value = division.inputs[0]
    product = producer(value, "Mul")
    if product is not None:
        inner, scalar = _value_and_constant(product)
        if scalar is not None and scalar.size == 1:
            total, value = total * scalar.reshape(()).astype(np.float64), inner
    assert value is not None
    return _Edge(value, total.astype(np.float32).reshape(()))


def _new_axes(unsqueezed: ir.Value | None, rank: int) -> list[int] | None:
    unsqueeze = producer(unsqueezed, "Unsqueeze")
    axes = constant(unsqueeze.inputs[1]) if unsqueeze is not None and len(unsqueeze.inputs) > 1 else None
    return None if axes is None else [axis % (rank + 1) for axis in axes.tolist()]


def _value_and_constant(product: ir.Node) -> tuple[ir.Value | None, np.ndarray | None]:
    """The inputs of a Mul as the computed one and the constant one; the latter is None where both are computed."""
    first, second = product.inputs
    if constant(second) is not None:
        return first, constant(second)
    return second, constant(first)


def _scalar(value: ir.Value | None) -> np.ndarray | None:
    array = constant(value)
    return array.reshape(()).astype(np.float64) if array is not None and array.size == 1 else None


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)
