"""How far results may lie apart, in one place. A test never widens one on the spot."""

from __future__ import annotations

HEAD_TENSOR = 1e-4
"""FP32, exported and optimized graph against torch, relative to the largest value: sums in another order."""

SCORE = 1e-3
"""FP32, score of the same detection against effdet's: the head's error through the sigmoid."""

BOX_IOU = 0.99
"""FP32, the same detection against effdet's: the head's error through the box code's exponential."""

AP_OTHER_RUNTIME = 1e-3
"""FP32, OpenVINO against onnxruntime, AP of 0 to 1 on a dozen images: a few detections change places."""

AP_FP16 = 5e-3
"""FP16 against FP32, on two dozen images: ten bits of mantissa move scores by a thousandth."""

AP_BF16 = 1e-2
"""BF16 against FP32, on two dozen images: seven bits of mantissa move scores by less than a hundredth."""

AP_INT8_REST_IN_FP16 = 1e-2
"""INT8 with the rest in FP16 against the rest in FP32, on two dozen images: the same, and it moves INT8 codes too."""
