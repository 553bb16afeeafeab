"""INT8 weights: scales, codes and bias, and the error of the output by GPTQ against rounding to the nearest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.quant.rounding import Inputs, quantize_weight

SCALE = 0.05


def seen(x: np.ndarray, groups: int) -> Inputs:
    """The moments of inputs ``x``, [groups, positions, K]."""
    rounded = np.clip(np.rint(x / SCALE), -127, 127) * SCALE
    gram = np.einsum("gpk,gpl->gkl", x, x) / x.shape[1]
    assert len(gram) == groups
    return Inputs(gram, x.mean(axis=1), rounded.mean(axis=1))


@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 3))
@settings(max_examples=25, deadline=None)
def test_nearest_codes_are_within_half_a_step_and_never_minus_128(seed, spread):
    rng = np.random.default_rng(seed)
    weight = (rng.normal(size=(6, 3, 2, 2)) * np.exp(rng.uniform(-spread, spread, (6, 1, 1, 1)))).astype(np.float32)
    made = quantize_weight(weight, None, SCALE, None, "nearest", correct_bias=False)
    steps = made.scales.reshape(-1, 1, 1, 1)
    assert made.codes.dtype == np.int8 and made.codes.min() >= -127
    # The error may be a little more than half a step, because the division and the product are rounded to FP32.
    assert (np.abs(made.codes * steps - weight) <= 0.5001 * steps).all()
    assert not made.bias_change.any()


def test_halves_are_rounded_to_even():
    weight = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5], np.float32).reshape(1, 6, 1, 1)
    made = quantize_weight(weight, None, SCALE, None, "nearest", correct_bias=False)
    assert made.codes.ravel().tolist() == [127, 0, 2, 2, 0, -2]


@given(seed=st.integers(0, 2**32 - 1), groups=st.sampled_from([1, 4]))
@settings(max_examples=20, deadline=None)
def test_gptq_gives_outputs_that_are_closer_than_those_of_nearest(seed, groups):
    """Inputs that are like activations: positive, and similar in neighbouring channels."""
    rng = np.random.default_rng(seed)
    size = 16
    x = np.abs(
        rng.normal(size=(groups, 500, 2)) @ rng.normal(size=(groups, 2, size))
        + 0.1 * rng.normal(size=(groups, 500, size))
    )
    weight = rng.normal(size=(8, size, 1, 1)).astype(np.float32)
    inputs = seen(x, groups)

    def error(method: str) -> float:
        made = quantize_weight(weight, None, SCALE, inputs, method, correct_bias=False)
        change = (made.codes * made.scales.reshape(-1, 1, 1, 1) - weight).reshape(groups, -1, size)
        return float(np.square(np.einsum("gok,gpk->gop", change, x)).mean())

    assert error("gptq") < 0.8 * error("nearest")


@pytest.mark.parametrize("method", ["nearest", "gptq"])
def test_the_bias_takes_the_mean_error(method):
    rng = np.random.default_rng(3)
    x = np.abs(rng.normal(2, 1, (1, 400, 9)))
    weight = rng.normal(size=(5, 1, 3, 3)).astype(np.float32)
    inputs = seen(x, 1)
    made = quantize_weight(weight, None, SCALE, inputs, method, correct_bias=True)
    rounded = np.clip(np.rint(x / SCALE), -127, 127) * SCALE
    before = x[0] @ weight.reshape(5, -1).T
    after = rounded[0] @ (made.codes * made.scales.reshape(-1, 1, 1, 1)).reshape(5, -1).T
    assert np.abs((after + made.bias_change - before).mean(axis=0)).max() < 1e-5
    assert np.abs((after - before).mean(axis=0)).max() > 1e-4


def test_a_filter_with_a_bias_and_next_to_no_weights_gets_a_scale_that_int32_can_hold_its_bias_in():
    weight = np.array([[0.0, 0.0], [1e-9, 0.0], [1.0, -0.5]], np.float32).reshape(3, 2, 1, 1)
    bias = np.array([-2.0, 3.0, 0.1], np.float32)
    made = quantize_weight(weight, bias, SCALE, None, "nearest", correct_bias=False)
    steps = np.abs(bias) / (SCALE * made.scales)
    assert (steps <= 2**30 * 1.001).all() and (steps[:2] > 2**29).all()
    assert made.scales[2] == np.float32(1 / 127)
    assert not made.codes[:2].any()


def test_a_filter_of_zeros_without_a_bias_has_a_scale():
    made = quantize_weight(np.zeros((2, 3, 1, 1), np.float32), None, SCALE, None, "nearest", correct_bias=False)
    assert made.scales.tolist() == [1, 1] and not made.codes.any()
