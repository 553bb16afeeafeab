"""How INT8 ranges and weights are worked out."""

from __future__ import annotations

from dataclasses import dataclass

from edge_effdet.backends.arithmetic import EXACT_EVERYWHERE, FULL_RANGE
from edge_effdet.errors import UsageError
from edge_effdet.options import option
from edge_effdet.quant.ranges import METHODS as RANGE_METHODS
from edge_effdet.quant.rounding import METHODS as ROUNDING_METHODS


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How INT8 ranges and weights are worked out."""

    method: str = option("percentile", help="how a range is chosen from what was seen", choices=tuple(RANGE_METHODS))
    equalize: bool = option(True, help="bring the channels of a tensor to like ranges first, where that is exact")
    rounding: str = option("gptq", help="how a weight is rounded", choices=ROUNDING_METHODS)
    correct_bias: bool = option(False, help="let the bias make up for the mean error of the rounding")
    quantize_sums: bool = option(True, help="let a block's sum read its residual as INT8")
    weight_codes: int = option(
        EXACT_EVERYWHERE,
        help=f"largest code of a weight: {EXACT_EVERYWHERE} is exact on every processor, and {FULL_RANGE} on GPUs, on Arm and on "
        "x86 processors with VNNI alone",
    )

    def __post_init__(self) -> None:
        check_weight_codes(self.weight_codes)


def check_weight_codes(largest: int) -> None:
    """Raises UsageError for a largest code that INT8 does not have."""
    if not 1 <= largest <= FULL_RANGE:
        raise UsageError(
            f"Weight codes of up to {largest} make no sense in INT8; give {EXACT_EVERYWHERE}, which is exact on every processor, or "
            f"{FULL_RANGE}."
        )
