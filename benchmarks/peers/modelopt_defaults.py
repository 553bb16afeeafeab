"""ModelOpt's ONNX INT8 path with its defaults (entropy, its own choice of operators), remainder in FP32."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def quantize(source: Path, pixels: np.ndarray, output: Path, method: str = "entropy") -> None:
    """FP32 graph to Q/DQ INT8. See ``onnxruntime_static.quantize`` for the arguments."""
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
