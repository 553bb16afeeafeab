"""How a BiFPN node sums its inputs (EfficientDet, arXiv 1911.09070, section 3.3).

``c_i`` is the factor of input i, from its learnable weight ``w_i``, which starts at 1:

    fast        c_i = relu(w_i) / (1e-4 + sum_j relu(w_j))      fast normalised, eq. 3
    softmax     c_i = exp(w_i) / sum_j exp(w_j)                 eq. 2
    unbounded   c_i = w_i                                       eq. 1
    sum         c_i = 1                                         no weights, as in effdet's lite models

effdet implements all but ``unbounded``, which this module adds. The export turns each kind into ``sum_i c_i x_i`` with
constant factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

FUSION_OF_WEIGHT_METHOD = {"fastattn": "fast", "attn": "softmax", "sum": "sum"}
"""effdet's name of each kind of fusion, mapped to the name used here."""

FPN_NAMES = {"fast": "bifpn_fa", "softmax": "bifpn_attn", "unbounded": "bifpn_attn", "sum": "bifpn_sum"}
"""Each kind of fusion, mapped to the BiFPN that effdet builds for it. For ``unbounded``, ``make_unbounded`` then replaces its nodes."""

_EPSILON = 1e-4


class UnboundedFusion(nn.Module):
    """A BiFPN node with unbounded fusion (eq. 1), made from an effdet node that has fusion weights; parameters keep their names."""

    def __init__(self, combine: Any) -> None:
        super().__init__()
        self.inputs_offsets: tuple[int, ...] = combine.inputs_offsets
        self.resample: nn.ModuleDict = combine.resample
        self.edge_weights: nn.Parameter = combine.edge_weights

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Map the features of all earlier levels and nodes, float [B, C_i, H_i, W_i] each, to this node's, float [B, C, H, W]."""
        weights = self.edge_weights.to(features[0].dtype).unbind()
        inputs = zip(self.inputs_offsets, self.resample.values(), weights, strict=True)
        total, *terms = (resample(features[offset]) * weight for offset, resample, weight in inputs)
        # Added one by one: stacking the inputs on a new last axis, as effdet does, copies each into another memory layout.
        for term in terms:
            total = total + term
        return total


def fusion_of_config(config: Any) -> str:
    """The kind of fusion in an effdet configuration: ``fast``, which is effdet's default, ``softmax`` or ``sum``."""
    from effdet.config import get_fpn_config

    if config.fpn_name is None:
        return "fast"
    nodes = get_fpn_config(config.fpn_name, min_level=config.min_level, max_level=config.max_level).nodes
    return FUSION_OF_WEIGHT_METHOD[nodes[0]["weight_method"]]


def make_unbounded(network: Any) -> None:
    """Replace, in place, every node of an effdet network's BiFPN by an unbounded one. The nodes must have fusion weights."""
    for cell in network.fpn.cell:
        for node in cell.fnode:
            node.combine = UnboundedFusion(node.combine)


def is_edge_weight(name: str) -> bool:
    """Whether the tensor ``name`` of a network's state holds a node's fusion weights."""
    return name.endswith(".combine.edge_weights")


def convert_edge_weights(state: Mapping[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    """Convert a network's fusion weights so that another kind of fusion gives the same factors, as far as it can.

    The conversion to ``unbounded`` is exact. The factors of ``fast`` and ``softmax`` add up to 1, so a conversion to these
    keeps only the ratios between a node's factors, and turns negative factors into 0. ``sum`` has no weights: a conversion to
    it drops them, and after a conversion from it the target keeps its initial weights of 1, which give the same sum in
    ``unbounded`` and the mean in ``fast`` and ``softmax``.

    Args:
        state: the network's state, names to tensors.
        source, target: the kinds of fusion before and after.

    Returns:
        The converted state. Fusion weights that the source lacks are not added.
    """
    if target == "sum":
        return {name: tensor for name, tensor in state.items() if not is_edge_weight(name)}
    if source == target:
        return dict(state)
    return {
        name: _weights_of_factors(edge_factors(tensor, source), target) if is_edge_weight(name) else tensor
        for name, tensor in state.items()
    }


def edge_factors(weights: torch.Tensor, fusion: str) -> torch.Tensor:
    """The factors c_i [n] of a node's inputs from its weights w_i [n]."""
    if fusion == "fast":
        positive = weights.relu()
        return positive / (positive.sum() + _EPSILON)
    return weights.softmax(0) if fusion == "softmax" else weights


def _weights_of_factors(factors: torch.Tensor, fusion: str) -> torch.Tensor:
    if fusion == "softmax":
        # A factor of 0 has no finite weight.
        return factors.clamp(min=_EPSILON).log()
    return factors
