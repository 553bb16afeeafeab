"""NNCF's post-training INT8 of an ONNX graph: bias correction and its own choice of operators, the rest in FP32.

Its defaults but for one: depthwise convolutions would get a scale for each channel of their input, which onnxruntime refuses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def quantize(source: Path, pixels: np.ndarray, output: Path) -> None:
    """FP32 graph to Q/DQ INT8. See ``onnxruntime_static.quantize`` for the arguments."""
    import nncf
    import onnx
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters

    model = nncf.quantize(
        onnx.load(str(source)),
        nncf.Dataset([{"images": image[None]} for image in pixels]),
        subset_size=len(pixels),
        advanced_parameters=AdvancedQuantizationParameters(
            activations_quantization_params=QuantizationParameters(per_channel=False)
        ),
    )
    onnx.save(model, str(output))
