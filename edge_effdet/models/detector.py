"""The network from raw pixels to decoded boxes: the module that the export traces and that torch runs as the reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from edge_effdet.artifacts import ModelSpec

MAX_TOP_K = 3840
"""TensorRT's TopK takes no larger K; effdet's own default is 5000."""

DEFAULT_TOP_K = 1000

TWO_STEPS_FROM = 8
"""Top-K takes two steps if they sort at least this many times fewer scores than one step. Below it no gain could be measured."""


class DetectionModule(nn.Module):
    """Normalise, run effdet's network, keep the best anchor x class pairs, decode their boxes.

    Input: uint8 or float32 [B, 3, H, W], RGB, 0 to 255.
    Outputs: boxes float32 [B, K, 4] xyxy in input pixels, scores float32 [B, K], class_ids int32 [B, K], descending by
    score. With ``raw``: the class logits of all levels, then their box codes, float32 [B, A*C, h, w] and [B, A*4, h, w]
    each, with A anchors a cell and C classes. K is ``top_k``, at most ``MAX_TOP_K`` and the number of pairs.
    """

    anchors: torch.Tensor
    pixel_scale: torch.Tensor
    pixel_shift: torch.Tensor

    def __init__(self, network: nn.Module, spec: ModelSpec, top_k: int = DEFAULT_TOP_K, raw: bool = False) -> None:
        super().__init__()
        from effdet.anchors import Anchors

        self.network = network
        self.num_classes = spec.num_classes
        self.raw = raw
        anchors: Any = Anchors(
            spec.anchors.min_level,
            spec.anchors.max_level,
            spec.anchors.num_scales,
            spec.anchors.aspect_ratios,
            spec.anchors.anchor_scale,
            spec.image_size,
        ).boxes
        self.top_k = min(top_k, MAX_TOP_K, len(anchors) * spec.num_classes)
        # (pixel / 255 - mean) / std as one multiplication and one addition.
        mean, std = torch.tensor(spec.preprocess.mean), torch.tensor(spec.preprocess.std)
        self.register_buffer("pixel_scale", (1 / (255 * std)).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("pixel_shift", (-mean / std).reshape(1, 3, 1, 1), persistent=False)
        y_min, x_min, y_max, x_max = anchors.unbind(1)
        centers_sizes = torch.stack([(x_min + x_max) / 2, (y_min + y_max) / 2, x_max - x_min, y_max - y_min], dim=1)
        self.register_buffer("anchors", centers_sizes, persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        class_levels, box_levels = self.network(self.normalise(images))
        if self.raw:
            return (*class_levels, *box_levels)
        return self.decode(class_levels, box_levels)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Normalise pixels 0 to 255, uint8 or float32 [B, 3, H, W], to the network's input, float32 [B, 3, H, W]."""
        return images.float() * self.pixel_scale + self.pixel_shift

    def decode(
        self, class_levels: Sequence[torch.Tensor], box_levels: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Decode the head tensors of all levels, float32 [B, A*C, h, w] and [B, A*4, h, w] each, to boxes, scores and class ids."""
        logits = torch.cat([_anchors_last(level, self.num_classes) for level in class_levels], dim=1)
        codes = torch.cat([_anchors_last(level, 4) for level in box_levels], dim=1)
        # The sigmoid is monotonic, so the best logits have the best scores, and only K scores are computed.
        top_logits, anchor_indices, class_ids = best_pairs(logits, self.top_k)
        # Looked up as an embedding, which is exported as one Gather; indexing becomes GatherND and an Expand.
        top_anchors = nn.functional.embedding(anchor_indices, self.anchors)
        return decode_boxes(_rows(codes, anchor_indices), top_anchors), top_logits.sigmoid(), class_ids


def best_pairs(logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Find the ``count`` pairs of an anchor and a class with the highest logits.

    With many classes this takes two steps: first the ``count`` anchors whose best class has the highest logits, then the best
    pairs among these anchors. The result is the same: an anchor with a better best class has a better pair, and fewer than
    ``count`` pairs are better than one of the best ``count``. The two steps sort N + count * C logits in place of N * C.

    Args:
        logits: float32 [B, N, C], N anchors and C classes.
        count: K, at most N * C.

    Returns:
        Logits float32 [B, K] descending, anchors int64 [B, K], classes int32 [B, K].
    """
    anchors, classes = logits.shape[1:]
    chosen = None
    if TWO_STEPS_FROM * (anchors + count * classes) < anchors * classes:
        chosen = torch.topk(logits.amax(2), count, dim=1).indices
        logits = _rows(logits, chosen)
    top_logits, top_indices = torch.topk(logits.flatten(1), count, dim=1)
    rows = top_indices // classes
    class_ids = (top_indices - rows * classes).to(torch.int32)
    return top_logits, rows if chosen is None else torch.gather(chosen, 1, rows), class_ids


def decode_boxes(codes: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """Box codes to boxes: the inverse of the Faster R-CNN box coder (arXiv 1506.01497, eq. 2), as effdet orders it.

    Args:
        codes: [..., 4], (ty, tx, th, tw).
        anchors: [..., 4], (center x, center y, width, height) in pixels.

    Returns:
        [..., 4], xyxy in pixels.
    """
    ty, tx, th, tw = codes.split(1, dim=-1)
    centers = torch.cat([tx, ty], dim=-1) * anchors[..., 2:] + anchors[..., :2]
    half_sizes = torch.cat([tw, th], dim=-1).exp() * (anchors[..., 2:] * 0.5)
    return torch.cat([centers - half_sizes, centers + half_sizes], dim=-1)


def _rows(values: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """The rows ``indices`` [B, K] of ``values`` [B, N, V], as [B, K, V]."""
    return torch.gather(values, 1, indices.unsqueeze(2).expand(-1, -1, values.shape[2]))


def _anchors_last(level: torch.Tensor, values: int) -> torch.Tensor:
    """Reorder a head tensor [B, A*values, h, w] to [B, h*w*A, values]."""
    return level.permute(0, 2, 3, 1).reshape(level.shape[0], -1, values)
