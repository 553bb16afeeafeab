"""Apply the rules in order, tidy up by the library's passes, give nodes the names of their modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx_ir as ir

from edge_effdet.graph.cost import Decision, SeparablePair
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
"""In this order: weights are absorbed by convolutions that have their batch norm already, along paths without Pad."""


def optimize_model(
    model: ir.Model, dense: Callable[[SeparablePair], Decision | bool] | None = None
) -> list[RuleReport]:
    """Rewrite a graph in place and report what each rule did.

    Args:
        model: as torch.export traces it.
        dense: whether a separable pair becomes one dense convolution; None leaves all as they are.
    """
    rules: list[Rule] = [rule() for rule in RULES]
    if dense is not None:
        rules.append(FuseSeparable(dense))
    reports = [apply_rule(model, rule) for rule in rules]
    _tidy(model)
    name_convolutions(model)
    return reports


def _tidy(model: ir.Model) -> None:
    """Dead and duplicate nodes, unused opsets, order: by onnx-ir's own passes."""
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

    The heads run each module once a pyramid level: those get ``@0``, ``@1``, … from the finest level on.
    """
    convolutions = [node for node in model.graph if node.op_type == "Conv"]
    names = [_module_name(node) for node in convolutions]
    uses, seen = Counter(names), Counter[str]()
    for node, name in zip(convolutions, names, strict=True):
        node.name = f"{name}@{seen[name]}" if uses[name] > 1 else name
        seen[name] += 1


def _module_name(conv: ir.Node) -> str:
    weight = conv.inputs[1]
    assert weight is not None and weight.name is not None
    return weight.name.removeprefix("network.").split(".weight")[0]
