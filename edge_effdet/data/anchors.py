"""Which pyramid level a box belongs to, and which anchors would fit a data set's boxes best."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from edge_effdet.artifacts import AnchorSpec

GOOD_ENOUGH = 0.02
"""A smaller gain in mean best IoU does not justify anchors that differ from those of the pretrained heads."""

_FEWEST_BOXES = 10
_MOST_BOXES = 20_000
_SEED = 0
_SCALES = tuple(round(2 ** (step / 6), 2) for step in range(6, 19))
"""Candidates for ``anchor_scale``, 2 to 8: a level's three sizes are 2^(1/3) apart, so steps of 2^(1/6) miss little. A
scale below 2 is left out: its anchors are so far apart that a box of their size may overlap none of them well."""

_AS_GOOD = 0.005
"""Scales whose fit differs by less count as equal. Twice the scale gives the same anchors, one level lower."""


@dataclass(frozen=True, slots=True)
class AnchorAdvice:
    """The suggested anchors beside the default ones.

    Attributes:
        default, suggested: the anchors.
        default_iou, suggested_iou: the best IoU of a box with any of these anchors at its centre, as a mean over all boxes.
    """

    default: AnchorSpec
    suggested: AnchorSpec
    default_iou: float
    suggested_iou: float

    @property
    def default_is_good_enough(self) -> bool:
        return self.suggested_iou - self.default_iou < GOOD_ENOUGH

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "default_is_good_enough": self.default_is_good_enough}


def anchor_bases(spec: AnchorSpec) -> np.ndarray:
    """Sides of the square anchors in pixels: ``anchor_scale * 2**level * 2**(i / num_scales)``, float64 [levels, num_scales]."""
    levels = np.arange(spec.min_level, spec.max_level + 1)[:, None]
    return spec.anchor_scale * 2.0 ** (levels + np.arange(spec.num_scales) / spec.num_scales)


def best_levels(sizes: np.ndarray, spec: AnchorSpec) -> np.ndarray:
    """The pyramid level of each box: the level with the square anchor whose side is nearest, by ratio, to the box's.

    Args:
        sizes: sqrt(area) of boxes in pixels of the network's input, [N].

    Returns:
        int [N], ``min_level`` to ``max_level``.
    """
    bases = anchor_bases(spec)
    distance = np.abs(np.log(np.maximum(sizes, 1e-9))[:, None] - np.log(bases.ravel()))
    return spec.min_level + distance.argmin(axis=1) // spec.num_scales


def mean_best_iou(sides: np.ndarray, spec: AnchorSpec) -> float:
    """Mean over boxes of the best IoU with any anchor at the box's centre (arXiv 1612.08242, section 2).

    Args:
        sides: width and height of each box in pixels of the network's input, [N, 2].
    """
    anchors = (anchor_bases(spec).reshape(-1, 1, 1) * np.array(spec.aspect_ratios)).reshape(-1, 2)
    overlap = np.minimum(sides[:, None, 0], anchors[:, 0]) * np.minimum(sides[:, None, 1], anchors[:, 1])
    union = sides.prod(axis=1)[:, None] + anchors.prod(axis=1) - overlap
    return float((overlap / union).max(axis=1).mean())


def suggest_anchors(sides: np.ndarray, default: AnchorSpec) -> AnchorAdvice | None:
    """Suggest aspect ratios, by k-means over the boxes' shapes, and the scale that fits best with them.

    Of scales that fit equally well, the nearest to the default's is taken.

    Args:
        sides: width and height of each box in pixels of the network's input, [N, 2].
        default: the anchors to compare with. The suggestion has the same levels and as many scales and ratios.

    Returns:
        The suggestion with its fit, or None for fewer than 10 boxes.
    """
    if len(sides) < _FEWEST_BOXES:
        return None
    if len(sides) > _MOST_BOXES:
        sides = sides[np.random.default_rng(_SEED).choice(len(sides), _MOST_BOXES, replace=False)]
    ratios = _cluster_ratios(sides, len(default.aspect_ratios))
    candidates = [replace(default, aspect_ratios=ratios, anchor_scale=scale) for scale in _SCALES]
    fits = [mean_best_iou(sides, candidate) for candidate in candidates]
    equal = [index for index, fit in enumerate(fits) if fit >= max(fits) - _AS_GOOD]
    best = min(equal, key=lambda index: abs(np.log(_SCALES[index] / default.anchor_scale)))
    return AnchorAdvice(default, candidates[best], mean_best_iou(sides, default), fits[best])


def _cluster_ratios(sides: np.ndarray, count: int) -> tuple[tuple[float, float], ...]:
    """Centres of k-means over shapes with the distance 1 - IoU (arXiv 1612.08242, section 2), as factors on width and height.

    The pyramid levels take care of size, so each box is scaled to area 1: (e^t, e^-t) with t = log(width / height) / 2. Two such
    shapes overlap by m = e^-|t - t'|, and their IoU m / (2 - m) falls with |t - t'|: the nearest centre is the nearest t.
    The centres start at quantiles, so that the result is deterministic.
    """
    shapes = np.log(sides[:, 0] / sides[:, 1]) / 2
    centres = np.quantile(shapes, (np.arange(count) + 0.5) / count)
    for _ in range(100):
        nearest = np.abs(shapes[:, None] - centres).argmin(axis=1)
        means = [
            shapes[nearest == index].mean() if (nearest == index).any() else centres[index] for index in range(count)
        ]
        if np.allclose(means, centres):
            break
        centres = np.array(means)
    # Two digits after the point would make nothing of the side of a very long box.
    return tuple((float(f"{np.exp(t):.3g}"), float(f"{np.exp(-t):.3g}")) for t in np.sort(centres))
