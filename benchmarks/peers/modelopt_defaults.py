"""Quantize an ONNX graph to INT8 with ModelOpt's defaults (entropy, its own choice of operators), and the rest in FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def quantize(source: Path, pixels: np.ndarray, output: Path, method: str = "entropy") -> None:
    """Quantize an FP32 graph to INT8 with Q/DQ. See ``onnxruntime_static.quantize`` for the arguments; ``method`` is ModelOpt's."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source),
        quantize_mode="int8",
        calibration_data={"images": pixels},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(output),
        log_level="ERROR",
    )
