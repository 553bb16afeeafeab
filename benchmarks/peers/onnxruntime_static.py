"""Quantize by onnxruntime's own quantize_static, with its defaults (MinMax, every operator that it knows) or convolutions only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


def quantize(
    source: Path, pixels: np.ndarray, output: Path, convolutions_only: bool = False, method: str = "MinMax"
) -> None:
    """Quantize an FP32 graph to INT8 with Q/DQ.

    Args:
        source: the FP32 graph, whose one input takes a batch of 1.
        pixels: the calibration images, float32 [N, 3, H, W], 0 to 255.
        output: the ONNX file to write.
        convolutions_only: whether every other operator is left alone.
        method: ``MinMax``, ``Entropy`` or ``Percentile``.
    """
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds: Iterator[dict[str, Any]] = iter({"images": image[None]} for image in pixels)

        def get_next(self) -> dict[str, Any] | None:  # type: ignore[override]
            return next(self.feeds, None)

    quantize_static(
        str(source),
        str(output),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        op_types_to_quantize=["Conv"] if convolutions_only else None,
    )
