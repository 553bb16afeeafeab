"""Apply the rewriting rules in order, tidy the graph with onnx-ir's own passes, and name convolutions after their modules."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from edge_effdet.graph.cost import Decision, SeparablePair
from edge_effdet.graph.names import module_of_weight, number_repeats
from edge_effdet.graph.rule import Rule, RuleReport, apply_rule
from edge_effdet.graph.rules.absorb_fusion_weights import AbsorbFusionWeights
from edge_effdet.graph.rules.fold_batchnorm import FoldBatchNorm
from edge_effdet.graph.rules.fold_fusion_weights import FoldFusionWeights
from edge_effdet.graph.rules.fold_pixel_scale import FoldPixelScale
from edge_effdet.graph.rules.fold_pool_padding import FoldPoolPadding
from edge_effdet.graph.rules.fuse_separable import FuseSeparable
from edge_effdet.graph.rules.resize_by_scale import ResizeByScale

RULES: tuple[type[Rule], ...] = (
    FoldBatchNorm,
    FoldFusionWeights,
    FoldPoolPadding,
    AbsorbFusionWeights,
    FoldPixelScale,
    ResizeByScale,
)
"""The rules in the order in which they are applied. ``AbsorbFusionWeights`` needs convolutions whose batch norm is folded already, and
paths without a Pad."""


def optimize_model(
    model: ir.Model, dense: Callable[[SeparablePair], Decision | bool] | None = None
) -> list[RuleReport]:
    """Rewrite a graph in place and report what each rule did.

    Args:
        model: the graph as torch.export traces it.
        dense: says of each separable pair whether it becomes one dense convolution; None leaves all pairs as they are.
    """
    rules: list[Rule] = [rule() for rule in RULES]
    if dense is not None:
        rules.append(FuseSeparable(dense))
    reports = [apply_rule(model, rule) for rule in rules]
    _tidy(model)
    name_convolutions(model)
    return reports


def _tidy(model: ir.Model) -> None:
    """Remove dead and duplicate nodes and unused opsets, and sort the nodes, with onnx-ir's own passes."""
    from onnx_ir.passes import Sequential
    from onnx_ir.passes.common import (
        CommonSubexpressionEliminationPass,
        IdentityEliminationPass,
        RemoveUnusedNodesPass,
        RemoveUnusedOpsetsPass,
        TopologicalSortPass,
    )

    Sequential(
        IdentityEliminationPass(),
        CommonSubexpressionEliminationPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
        TopologicalSortPass(),
    )(model)


def name_convolutions(model: ir.Model) -> None:
    """Name each Conv after the module that owns its weight, so that a report says ``backbone.blocks.0.0.conv_dw``.

    A head runs each of its modules once a pyramid level. Those convolutions get the numbers ``@0``, ``@1``, … from the finest level.
    """
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    names = [_module_name(node) for node in convolutions]
    for node, name in zip(convolutions, number_repeats(names), strict=True):
        node.name = name


def _module_name(conv: ir.Node) -> str:
    weight = conv.inputs[1]
    assert weight is not None and weight.name is not None
    return module_of_weight(weight.name)
