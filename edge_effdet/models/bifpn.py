"""How a BiFPN node sums its inputs (EfficientDet, arXiv 1911.09070, section 3.3).

``c_i`` is the factor of input i, from its learnable weight ``w_i``, which starts at 1:

    fast        c_i = relu(w_i) / (1e-4 + sum_j relu(w_j))      fast normalised, eq. 3
    softmax     c_i = exp(w_i) / sum_j exp(w_j)                 eq. 2
    unbounded   c_i = w_i                                       eq. 1
    sum         c_i = 1                                         no weights: RetinaNet's and effdet's lite models' way

effdet has all but ``unbounded``, which is here. At export each becomes ``sum_i c_i x_i`` with constant factors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

FUSION_OF_WEIGHT_METHOD = {"fastattn": "fast", "attn": "softmax", "sum": "sum"}
"""effdet's name to ours."""

FPN_NAMES = {"fast": "bifpn_fa", "softmax": "bifpn_attn", "unbounded": "bifpn_attn", "sum": "bifpn_sum"}
"""Our name to the BiFPN of effdet to build; ``make_unbounded`` then changes the nodes of the one for ``unbounded``."""

_EPSILON = 1e-4


class UnboundedFusion(nn.Module):
    """A node of a BiFPN by eq. 1, made from one of effdet's with weights; parameters keep their names."""

    def __init__(self, combine: Any) -> None:
        super().__init__()
        self.inputs_offsets: tuple[int, ...] = combine.inputs_offsets
        self.resample: nn.ModuleDict = combine.resample
        self.edge_weights: nn.Parameter = combine.edge_weights

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Features of the levels and nodes so far, float [B, C_i, H_i, W_i], to [B, C, H, W] of this node."""
        weights = self.edge_weights.to(features[0].dtype).unbind()
        inputs = zip(self.inputs_offsets, self.resample.values(), weights, strict=True)
        total, *terms = (resample(features[offset]) * weight for offset, resample, weight in inputs)
        # A chain of sums, because a stack on a new last axis copies every input into another memory layout.
        for term in terms:
            total = total + term
        return total


def fusion_of_config(config: Any) -> str:
    """``fast``, ``softmax`` or ``sum``, from an effdet configuration; effdet's default is fast normalised."""
    from effdet.config import get_fpn_config

    if config.fpn_name is None:
        return "fast"
    nodes = get_fpn_config(config.fpn_name, min_level=config.min_level, max_level=config.max_level).nodes
    return FUSION_OF_WEIGHT_METHOD[nodes[0]["weight_method"]]


def make_unbounded(network: Any) -> None:
    """Make every node of an effdet network's BiFPN, which must have weights, an unbounded one, in place."""
    for cell in network.fpn.cell:
        for node in cell.fnode:
            node.combine = UnboundedFusion(node.combine)


def is_edge_weight(name: str) -> bool:
    """Whether a tensor of a network's state is the fusion weights of a node."""
    return name.endswith(".combine.edge_weights")


def convert_edge_weights(state: Mapping[str, torch.Tensor], source: str, target: str) -> dict[str, torch.Tensor]:
    """A network's state with its fusion weights changed so that another kind of fusion gives the same factors.

    Exact into ``unbounded``. Into ``fast`` and ``softmax``, whose factors add up to 1, the ratios are kept: the same
    factors where the source's add up to 1 too, and negative ones become 0. From ``sum`` there is nothing to convert; the
    weights that the target starts with, 1, are that very sum in ``unbounded`` and the mean in the others. Into ``sum``
    the weights are dropped.

    Args:
        state: names to tensors, of a network with fusion ``source``.
        source, target: kinds of fusion.

    Returns:
        The state without those fusion weights that the target lacks; those that the source lacks are not added.
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
