"""Quantize an ONNX graph to INT8 with NNCF: bias correction, its own choice of operators, and the rest in FP32.

All settings but one are its defaults. By default depthwise convolutions would get a scale for each channel of their input, which
onnxruntime refuses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


def quantize(source: Path, pixels: np.ndarray, output: Path) -> None:
    """Quantize an FP32 graph to INT8 with Q/DQ. See ``onnxruntime_static.quantize`` for the arguments."""
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
