"""The models by name: effdet's D0 to D7x and lite0 to lite4, as ModelSpecs and as torch modules.

Compound scaling (EfficientDet, arXiv 1911.09070, table 1) grows resolution, BiFPN width and depth and head depth
together; ``compound_scaling_table`` shows what effdet uses. effdet's configuration is the single source of these numbers.
"""

from __future__ import annotations

import math
import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from edge_effdet.artifacts import FUSIONS, AnchorSpec, ModelSpec, PreprocessSpec, Size
from edge_effdet.errors import UsageError

if TYPE_CHECKING:
    import torch

_ZOO_NAME = re.compile(r"(tf_)?efficientdet_(d\d|lite\d)")

COCO_CLASS_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag tie suitcase frisbee "
    "skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle - wine_glass "
    "cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair couch "
    "potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone microwave oven toaster sink "
    "refrigerator - book clock vase scissors teddy_bear hair_drier toothbrush"
)
"""The 90 outputs of effdet's COCO head; ``-`` is an id that COCO does not use."""


class ScalingRow(NamedTuple):
    """The sizes that compound scaling sets in one model."""

    name: str
    backbone: str
    image_size: Size
    fpn_channels: int
    fpn_repeats: int
    head_repeats: int
    levels: str
    fusion: str


def model_names() -> tuple[str, ...]:
    """Every name that ``model_spec`` and ``create_network`` take."""
    from effdet.config.model_config import efficientdet_model_param_dict

    return tuple(name for name in efficientdet_model_param_dict if _ZOO_NAME.match(name))


def coco_classes() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Names and ids of the 90 outputs of effdet's COCO head; an unused id is named ``unused_<id>``."""
    words = COCO_CLASS_NAMES.split()
    names = [f"unused_{i}" if word == "-" else word.replace("_", " ") for i, word in enumerate(words, start=1)]
    return tuple(names), tuple(range(1, len(names) + 1))


def effdet_config(name: str) -> Any:
    """effdet's configuration of a model (an OmegaConf object). Raises UsageError for an unknown name."""
    from effdet import get_efficientdet_config

    if name not in model_names():
        near = get_close_matches(name, model_names(), n=1)
        hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(model_names())}."
        raise UsageError(f"There is no model named {name!r}; {hint}")
    return get_efficientdet_config(name)


def model_spec(
    name: str,
    class_names: tuple[str, ...] | None = None,
    category_ids: tuple[int, ...] | None = None,
    image_size: Size | None = None,
    fusion: str | None = None,
) -> ModelSpec:
    """The ModelSpec of a model.

    Args:
        name: the model's name, as effdet spells it.
        class_names: the name of each class; None for effdet's 90 COCO outputs.
        category_ids: the data set's id of each class; None numbers the classes from 1.
        image_size: height and width, each a multiple of 32; None for the model's default.
        fusion: how the BiFPN sums its inputs, one of ``FUSIONS``; None for the model's default.

    Raises:
        UsageError: an unknown name or kind of fusion, or a size that does not fit.
    """
    from edge_effdet.models.bifpn import fusion_of_config

    config = effdet_config(name)
    if fusion not in (None, *FUSIONS):
        raise UsageError(
            f"There is no BiFPN fusion named {fusion!r}; the names are {', '.join(FUSIONS)}, and the default of {name} is "
            f"{fusion_of_config(config)}."
        )
    height, width = image_size or tuple(config.image_size)
    if height % 32 or width % 32 or min(height, width) < 64:
        raise UsageError(
            f"An image size of {height}x{width} does not fit {name}: height and width must be multiples of 32, at least "
            f"64; try {max(64, round(height / 32) * 32)}x{max(64, round(width / 32) * 32)}."
        )
    # effdet pools to the next level only if both sides shrink, so no side may reach 1 pixel before the other.
    if any((height > 2**level) != (width > 2**level) for level in range(config.min_level, config.max_level)):
        larger = max(height, width)
        raise UsageError(
            f"An image size of {height}x{width} does not fit {name}: one side shrinks to 1 pixel in the feature pyramid before "
            f"the other; give both sides more than {2 ** (config.max_level - 1)} pixels, or try {larger}x{larger}."
        )
    if class_names is None:
        class_names, category_ids = coco_classes()
    anchors = AnchorSpec(
        min_level=config.min_level,
        max_level=config.max_level,
        num_scales=config.num_scales,
        aspect_ratios=tuple(_aspect_pair(ratio) for ratio in config.aspect_ratios),
        anchor_scale=float(config.anchor_scale),
    )
    ids = category_ids or tuple(range(1, len(class_names) + 1))
    return ModelSpec(
        name=name,
        image_size=(height, width),
        class_names=class_names,
        category_ids=ids,
        anchors=anchors,
        preprocess=preprocess_of_config(config),
        fusion=fusion or fusion_of_config(config),
    )


def preprocess_of_config(config: Any) -> PreprocessSpec:
    """The normalisation in an effdet configuration, which its weights expect; ImageNet's where it names none."""
    if config.get("mean") is None:
        return PreprocessSpec()
    return PreprocessSpec(tuple(config.mean), tuple(config.std))


def create_network(spec: ModelSpec) -> torch.nn.Module:
    """Build effdet's network for a spec, with random weights (to repeat them, seed torch first).

    It maps normalised pixels, float32 [B, 3, H, W], to ten head tensors: class logits and box codes of each level. Fusion
    weights start at 1.
    """
    from effdet import EfficientDet
    from effdet.config import set_config_writeable

    from edge_effdet.models.bifpn import FPN_NAMES, fusion_of_config, make_unbounded

    config = effdet_config(spec.name)
    set_config_writeable(config)
    config.image_size = spec.image_size
    config.num_classes = spec.num_classes
    config.min_level, config.max_level = spec.anchors.min_level, spec.anchors.max_level
    config.num_levels = spec.anchors.max_level - spec.anchors.min_level + 1
    config.num_scales = spec.anchors.num_scales
    config.aspect_ratios = [list(pair) for pair in spec.anchors.aspect_ratios]
    config.anchor_scale = spec.anchors.anchor_scale
    if spec.fusion != fusion_of_config(config):
        config.fpn_name = FPN_NAMES[spec.fusion]
    network = EfficientDet(config, pretrained_backbone=False)
    if spec.fusion == "unbounded":
        make_unbounded(network)
    return network


def compound_scaling_table() -> list[ScalingRow]:
    """The sizes of all models, one row for each; ``python -m edge_effdet.models.zoo`` prints the table."""
    from edge_effdet.models.bifpn import fusion_of_config

    rows = []
    for name in model_names():
        config = effdet_config(name)
        rows.append(
            ScalingRow(
                name,
                config.backbone_name,
                tuple(config.image_size),
                config.fpn_channels,
                config.fpn_cell_repeats,
                config.box_class_repeats,
                f"P{config.min_level}-P{config.max_level}",
                fusion_of_config(config),
            )
        )
    return rows


def _aspect_pair(ratio: Any) -> tuple[float, float]:
    if isinstance(ratio, float | int):
        return math.sqrt(ratio), 1 / math.sqrt(ratio)
    width, height = ratio
    return float(width), float(height)


def main() -> None:
    header = ("model", "backbone", "size", "width", "BiFPNs", "head", "levels", "fusion")
    rows = [header] + [
        (row.name, row.backbone, "x".join(map(str, row.image_size)), *map(str, row[3:]))
        for row in compound_scaling_table()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
