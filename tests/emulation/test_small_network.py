"""INT8 of 7 bits is exact on every processor, and INT8 of 8 bits is where ``backends.arithmetic`` says that sums do not saturate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.emulation.small_detector import SLOPE, ExactRunner

PROCESSORS = ("host", "nehalem", "haswell", "arm64")
SAME_CODES = 1
"""How far codes may lie apart: a tie may be rounded to either side, which one layer on is no tie."""
OTHER_CODES = 20
"""From here on a sum has saturated; where it does, the small detector is 50 codes away and more."""


def codes_apart(features: Any, images: Path, biased: bool = True) -> float:
    """The largest error of the last codes, in codes."""
    exact = ExactRunner(biased).run({"images": np.load(images)})["features"]
    return float(np.abs(np.array(features) - exact).max() / SLOPE)


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_weights_of_7_bits_are_exact_everywhere(
    small_answers: dict[str, Any], small_engines: Path, processor: str, backend: str
):
    answer = small_answers[processor]["engines"][f"{backend}-7-bits"]
    runs = [answer["outputs"]] + ([answer["plain_outputs"]] if backend == "onnxruntime" else [])
    for outputs in runs:
        assert codes_apart(outputs["features"], small_engines / "images.npy") <= SAME_CODES


@pytest.mark.parametrize("processor", PROCESSORS)
@pytest.mark.parametrize("name", ["onnxruntime-8-bits", "onnxruntime-8-bits-no-bias", "openvino-8-bits"])
def test_weights_of_8_bits_are_wrong_where_the_arithmetic_says_so(
    small_answers: dict[str, Any], small_engines: Path, processor: str, name: str
):
    answers = small_answers[processor]
    features = answers["engines"][name]["outputs"]["features"]
    apart = codes_apart(features, small_engines / "images.npy", not name.endswith("no-bias"))
    if answers["backends"][name.partition("-")[0]]["saturates"]:
        assert apart >= OTHER_CODES
    else:
        assert apart <= SAME_CODES


def test_onnxruntime_as_it_comes_saturates_on_avx2(small_answers: dict[str, Any], small_engines: Path):
    for name in ("8-bits", "8-bits-no-bias"):
        plain = small_answers["haswell"]["engines"][f"onnxruntime-{name}"]["plain_outputs"]
        assert codes_apart(plain["features"], small_engines / "images.npy", name == "8-bits") >= OTHER_CODES


@pytest.mark.parametrize(
    ("processor", "has", "lacks", "saturates"),
    [
        ("nehalem", {"sse4_2"}, {"avx", "avx2", "fma"}, True),
        ("haswell", {"avx2", "fma"}, {"avx512f", "avx512_vnni", "avx_vnni"}, True),
        ("arm64", {"asimddp", "asimdhp"}, {"sve", "i8mm", "avx2"}, False),
    ],
)
def test_the_emulated_processor_is_seen_and_not_the_one_below(
    small_answers: dict[str, Any], processor: str, has: set[str], lacks: set[str], saturates: bool
):
    answers = small_answers[processor]
    assert has <= set(answers["flags"])
    assert lacks.isdisjoint(answers["flags"])
    assert answers["backends"]["openvino"]["saturates"] == saturates
