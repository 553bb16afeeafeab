"""FP32 weights of a convolution to INT8 codes and a scale a filter, and the bias that makes up for the rounding.

A filter's scale is its largest absolute weight over the largest code, so that nothing is cut off. The largest code is 127, or less
where the processor's arithmetic would not be exact (``backends.arithmetic``). Where a filter has next to no weights and
a large bias, it is raised until the bias is within ``BIAS_CODES`` steps of input times weight: onnxruntime turns the bias into
that many INT32 steps, and one that does not fit saturates without a word. (A scale of 1 for such a filter, as is usual,
would be as bad: steps of the bias would be as coarse as those of the input.) Codes are chosen in one of two ways:

- ``nearest``: each weight for itself, ties to even.
- ``gptq``: one weight after the other, and what each loses is made up by those after it (Frantar et al., "GPTQ", arXiv
  2210.17323, algorithm 1, without its blocks). With G = E[x x^T] over the inputs x of a filter, the codes then nearly minimise
  the error of the output, E[(w x - q x)^2], and not that of the weights.

The bias takes what is left of the error's mean over the inputs (Nagel et al., "Data-Free Quantization", arXiv 1906.04721,
section 4.2): with x' what INT8 leaves of x, ``b' = b + E[w x] - E[q x']``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_effdet.quant.ranges import LARGEST_CODE

METHODS = ("nearest", "gptq")
BIAS_CODES = 2**30
DAMPING = 0.01
"""Of the mean of G's diagonal, added to it: inputs that were never seen must not be given all of the error (GPTQ, section 3.3)."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a convolution's filters see. A group of filters shares its inputs; K is channels of a group x kernel.

    Attributes:
        gram: float64 [groups, K, K], E[x x^T].
        mean: float64 [groups, K], E[x].
        rounded_mean: float64 [groups, K], E[x'].
    """

    gram: np.ndarray
    mean: np.ndarray
    rounded_mean: np.ndarray


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """INT8 weights of one convolution.

    Attributes:
        codes: int8, in the shape of the weight, none larger than the largest code that was allowed.
        scales: float32 [filters].
        bias_change: float32 [filters], to be added to the bias.
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
    """Codes, scales and the change of the bias.

    Args:
        weight: float32 [filters, channels of a group, height, width].
        bias: float32 [filters], or None.
        input_scale: of the codes of the input.
        inputs: of the convolution; ``nearest`` without correction needs none.
        method: one of ``METHODS``.
        correct_bias: else its change is 0.
        largest_code: of a weight, 1 to 127.
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
    """float32 [filters]; 1 for a filter of zeros without a bias, which any scale represents."""
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
    # The upper Cholesky factor of the inverse: its rows say how the weights after k make up for the error at k.
    upper = np.linalg.cholesky(np.linalg.inv(damped)).transpose(0, 2, 1)
    codes = np.empty_like(left)
    for k in range(size):
        codes[:, :, k] = np.clip(np.rint(left[:, :, k] / steps), -largest_code, largest_code)
        error = (left[:, :, k] - codes[:, :, k] * steps) / upper[:, k, k, None]
        left[:, :, k + 1 :] -= error[:, :, None] * upper[:, None, k, k + 1 :]
    return codes.reshape(flat.shape)


def _mean_output(flat: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """E[w x] of each filter, without its bias."""
    return np.einsum("gok,gk->go", flat.reshape(len(mean), -1, flat.shape[1]), mean).reshape(-1)
