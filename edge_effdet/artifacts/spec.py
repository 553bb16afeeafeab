"""What a model takes and gives: its input, its classes, its anchors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.errors import InputError

Size = tuple[int, int]
"""Height and width in pixels."""

PRECISIONS = ("fp32", "fp16", "int8")

_MOST_LEVELS = 16
"""A level halves the sides of the one before; with more there is not a pixel left."""

FUSIONS = ("fast", "softmax", "unbounded", "sum")
"""How a BiFPN node sums its inputs; ``models.bifpn`` has the formulas."""


@dataclass(frozen=True, slots=True)
class AnchorSpec:
    """RetinaNet-style anchors over pyramid levels, with the meaning that effdet gives each number.

    Level ``l`` has a cell every ``2**l`` pixels; each cell has ``num_scales * len(aspect_ratios)`` anchors of base size
    ``anchor_scale * stride``. An aspect ratio is the pair of factors on width and height.
    """

    min_level: int = 3
    max_level: int = 7
    num_scales: int = 3
    aspect_ratios: tuple[tuple[float, float], ...] = ((1.0, 1.0), (1.4, 0.7), (0.7, 1.4))
    anchor_scale: float = 4.0

    def __post_init__(self) -> None:
        numbers = (self.anchor_scale, *(factor for ratio in self.aspect_ratios for factor in ratio))
        levels_fit = 0 <= self.min_level <= self.max_level <= _MOST_LEVELS
        if not levels_fit or self.num_scales < 1 or not all(0 < number < math.inf for number in numbers):
            raise InputError(
                f"The model's anchors make no sense ({self}); its description was changed or damaged: export the model again."
            )


@dataclass(frozen=True, slots=True)
class PreprocessSpec:
    """Letterbox into the top-left corner, fill with the mean colour, then ``(pixel / 255 - mean) / std`` in the graph."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not all(math.isfinite(each) for each in self.mean) or not all(0 < each < math.inf for each in self.std):
            raise InputError(
                f"The model's normalisation makes no sense (mean {self.mean}, std {self.std}); its description was changed or damaged: export "
                "the model again."
            )

    @property
    def fill_color(self) -> tuple[int, int, int]:
        """The colour of the border, 0 to 255, RGB."""
        red, green, blue = (round(255 * channel) for channel in self.mean)
        return red, green, blue


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """All that is needed to turn pixels into boxes.

    Attributes:
        name: the architecture, as effdet spells it.
        image_size: height and width of the network's input, pixels.
        class_names: one name an output class, 0-based.
        category_ids: the data set's own id of each class (COCO's 1 to 90), in the order of ``class_names``.
        anchors: the anchor grid.
        preprocess: normalisation and fill.
        fusion: how the BiFPN sums its inputs, one of ``FUSIONS``.
    """

    name: str
    image_size: Size
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    anchors: AnchorSpec = field(default_factory=AnchorSpec)
    preprocess: PreprocessSpec = field(default_factory=PreprocessSpec)
    fusion: str = "fast"

    def __post_init__(self) -> None:
        if len(self.class_names) != len(self.category_ids):
            raise InputError(
                f"The model names {len(self.class_names)} classes but {len(self.category_ids)} category ids; "
                "give one id a class."
            )
        if not self.class_names:
            raise InputError("A model needs at least one class; the data set that was given has none.")
        twice = sorted({name for name in self.class_names if self.class_names.count(name) > 1})
        if twice:
            raise InputError(
                f"The model has several classes of one name ({', '.join(map(repr, twice))}), which nobody could tell apart in the results; "
                "rename them."
            )
        if min(self.image_size) < 1:
            raise InputError(
                f"The model takes pictures of {'x'.join(map(str, self.image_size))} pixels, which have none; export the model again."
            )
        if self.fusion not in FUSIONS:
            raise InputError(
                f"The model's BiFPN fusion {self.fusion!r} is none of {', '.join(FUSIONS)}; it was made by another version "
                "of edge_effdet: install that one, or train again."
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON holds it."""
        return to_json(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelSpec:
        """Read what ``to_dict`` wrote, after a trip through JSON. Raises InputError where a field is missing or of another type."""
        try:
            return from_json(cls, raw)
        except ValueError as error:
            raise InputError(f"The model description is damaged ({error}); export the model again.") from error
