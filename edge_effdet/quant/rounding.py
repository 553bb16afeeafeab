"""Round the FP32 weights of a convolution to INT8 codes with one scale a filter, and correct the bias for the rounding.

A filter's scale is its largest absolute weight over the largest code, so that no weight is cut off. The largest code is 127, or less
where the processor's arithmetic would not be exact (``backends.arithmetic``). Where a filter has tiny weights and a large bias, its
scale is raised until the bias is at most ``BIAS_CODES`` steps, where a step is the scale of the input times the scale of the weights:
onnxruntime turns the bias into INT32 steps of that size, and a bias that does not fit saturates without a message. (The usual scale
of 1 for such a filter would be as bad, because the steps of the bias would be as coarse as those of the input.) Codes are chosen in
one of two ways:

- ``nearest`` rounds each weight on its own, ties to even.
- ``gptq`` rounds one weight after the other, and the weights that follow make up for what it loses (Frantar et al., "GPTQ", arXiv
  2210.17323, algorithm 1, without its blocks). With G = E[x x^T] over the inputs x of a filter, the codes q then nearly minimise the
  error of the output, E[(w x - q x)^2], in place of the error of the weights.

The bias makes up for the mean error of the output (Nagel et al., "Data-Free Quantization", arXiv 1906.04721, section 4.2): where x'
is x rounded to INT8, the new bias is ``b' = b + E[w x] - E[q x']``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_effdet.quant.ranges import LARGEST_CODE

ROUNDING_METHODS = ("nearest", "gptq")
BIAS_CODES = 2**30
"""The most steps that a bias may have."""
DAMPING = 0.01
"""This share of the mean of G's diagonal is added to the diagonal, so that inputs that were never seen do not get all of the error
(GPTQ, section 3.3)."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Moments of the inputs x of a convolution's filters. The filters of a group share their inputs.

    K is the number of inputs of a filter: channels of a group x height x width of the kernel.

    Attributes:
        gram: E[x x^T], float64 [groups, K, K].
        mean: E[x], float64 [groups, K].
        rounded_mean: the mean of x rounded to INT8, float64 [groups, K].
    """

    gram: np.ndarray
    mean: np.ndarray
    rounded_mean: np.ndarray


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """The INT8 weights of one convolution.

    Attributes:
        codes: the codes, int8, in the shape of the weight.
        scales: the scale of each filter, float32 [filters].
        bias_change: what is added to the bias, float32 [filters].
    """

    codes: np.ndarray
    scales: np.ndarray
    bias_change: np.ndarray


def quantize_weight(
    weight: np.ndarray,
    bias: np.ndarray | None,
    input_scale: float,
    inputs: Inputs | None,
    method: str,
    correct_bias: bool,
    largest_code: int = LARGEST_CODE,
) -> QuantizedWeight:
    """Round the weights of one convolution.

    Args:
        weight: the weights, float32 [filters, channels of a group, height, width].
        bias: the bias, float32 [filters], or None.
        input_scale: the scale of the input's codes.
        inputs: moments of the inputs; None will do for ``nearest`` without a correction of the bias.
        method: one of ``ROUNDING_METHODS``.
        correct_bias: whether the bias makes up for the mean error; its change is 0 where not.
        largest_code: the largest absolute code of a weight, 1 to 127.
    """
    flat = weight.reshape(len(weight), -1).astype(np.float64)
    scales = filter_scales(flat, bias, input_scale, largest_code)
    if method == "gptq":
        assert inputs is not None
        codes = _round_in_order(flat, scales.astype(np.float64), inputs.gram, largest_code)
    else:
        codes = np.clip(np.rint(flat / scales[:, None]), -largest_code, largest_code)
    change = np.zeros(len(flat))
    if correct_bias:
        assert inputs is not None
        change = _mean_output(flat, inputs.mean) - _mean_output(codes * scales[:, None], inputs.rounded_mean)
    return QuantizedWeight(codes.astype(np.int8).reshape(weight.shape), scales, change.astype(np.float32))


def filter_scales(
    flat: np.ndarray, bias: np.ndarray | None, input_scale: float, largest_code: int = LARGEST_CODE
) -> np.ndarray:
    """The scale of each filter, float32 [filters]; 1 for a filter of zeros without a bias, which every scale represents."""
    scales = np.abs(flat).max(axis=1) / largest_code
    if bias is not None:
        scales = np.maximum(scales, np.abs(bias.astype(np.float64)) / (BIAS_CODES * input_scale))
    return np.where(scales > 0, scales, 1.0).astype(np.float32)


def _round_in_order(flat: np.ndarray, scales: np.ndarray, gram: np.ndarray, largest_code: int) -> np.ndarray:
    groups, size = len(gram), flat.shape[1]
    left = flat.reshape(groups, -1, size).copy()
    steps = scales.reshape(groups, -1)
    diagonal = np.einsum("gkk->gk", gram)
    damped = gram + np.eye(size) * np.maximum(DAMPING * diagonal.mean(axis=1), 1e-12)[:, None, None]
    # The upper Cholesky factor of the inverse: row k says how the weights after k make up for the error of weight k.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    codes = np.empty_like(left)
    for k in range(size):
        codes[:, :, k] = np.clip(np.rint(left[:, :, k] / steps), -largest_code, largest_code)
        error = (left[:, :, k] - codes[:, :, k] * steps) / upper[:, k, k, None]
        left[:, :, k + 1 :] -= error[:, :, None] * upper[:, None, k, k + 1 :]
    return codes.reshape(flat.shape)


def _mean_output(flat: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """E[w x] of each filter without its bias, float64 [filters]."""
    return np.einsum("gok,gk->go", flat.reshape(len(mean), -1, flat.shape[1]), mean).reshape(-1)
