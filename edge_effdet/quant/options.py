"""The options of INT8: how ranges and weights are computed."""

from __future__ import annotations

from dataclasses import dataclass

from edge_effdet.backends.arithmetic import EXACT_EVERYWHERE, FULL_RANGE
from edge_effdet.errors import UsageError
from edge_effdet.options import check_choices, option
from edge_effdet.quant.ranges import RANGE_METHODS
from edge_effdet.quant.rounding import ROUNDING_METHODS


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How INT8 ranges and weights are computed."""

    method: str = option(
        "percentile", help="how a range is chosen from the values that a tensor had", choices=tuple(RANGE_METHODS)
    )
    equalize: bool = option(True, help="scale the channels of a tensor to similar ranges first, where that is exact")
    rounding: str = option("gptq", help="how a weight is rounded", choices=ROUNDING_METHODS)
    correct_bias: bool = option(False, help="correct each bias by the mean error that the rounding causes")
    quantize_sums: bool = option(True, help="let the sum at the end of a block read its residual input as INT8")
    weight_codes: int = option(
        EXACT_EVERYWHERE,
        help=f"largest code of a weight: {EXACT_EVERYWHERE} is exact on every processor, and {FULL_RANGE} on GPUs, on Arm and on "
        "x86 processors with VNNI alone",
    )

    def __post_init__(self) -> None:
        check_choices(self)
        check_weight_codes(self.weight_codes)


def check_weight_codes(largest: int) -> None:
    """Raises UsageError for a largest code that INT8 does not have."""
    if not 1 <= largest <= FULL_RANGE:
        raise UsageError(
            f"`weight_codes` {largest} makes no sense in INT8; give {EXACT_EVERYWHERE}, which is exact on every processor, or "
            f"{FULL_RANGE}."
        )
