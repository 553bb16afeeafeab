"""How a BiFPN node sums its inputs (EfficientDet, arXiv 1911.09070, section 3.3)."""

from __future__ import annotations

from typing import Any

FUSION_OF_WEIGHT_METHOD = {"fastattn": "fast", "attn": "softmax", "sum": "sum"}
"""effdet's name to ours: fast normalised (eq. 3), softmax (eq. 2), plain sum."""


def fusion_of_config(config: Any) -> str:
    """``fast``, ``softmax`` or ``sum``, from an effdet configuration; effdet's default is fast normalised."""
    from effdet.config import get_fpn_config

    if config.fpn_name is None:
        return "fast"
    nodes = get_fpn_config(config.fpn_name, min_level=config.min_level, max_level=config.max_level).nodes
    return FUSION_OF_WEIGHT_METHOD[nodes[0]["weight_method"]]
