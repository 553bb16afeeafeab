"""Detect as a user of effdet does: by its DetBenchPredict in eager torch, with the normalisation of its loader."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from edge_effdet.artifacts import Detections, ModelSpec, Size

if TYPE_CHECKING:
    import torch


def make_predictor(network: torch.nn.Module, spec: ModelSpec) -> Callable[[np.ndarray, float, Size], Detections]:
    """A function that detects in a letterboxed picture and suppresses overlapping boxes.

    Args:
        network: effdet's network in evaluation mode. It runs with torch's number of threads.
        spec: the model, whose normalisation is used.

    Returns:
        A function of the canvas, uint8 [H, W, 3], its scale against the picture, and the picture's height and width. It gives at most
        100 detections of any score, which is effdet's limit, in pixels of the picture.
    """
    import torch
    from effdet import DetBenchPredict

    bench = DetBenchPredict(network).eval()
    mean, std = (
        torch.tensor(values).mul(255).view(1, 3, 1, 1) for values in (spec.preprocess.mean, spec.preprocess.std)
    )

    def predict(canvas: np.ndarray, scale: float, original: Size) -> Detections:
        height, width = original
        info = {
            "img_scale": torch.tensor([1 / scale]),
            "img_size": torch.tensor([[width, height]], dtype=torch.float32),
        }
        with torch.inference_mode():
            pixels = torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)[None]))
            rows = bench(pixels.float().sub_(mean).div_(std), info)[0].numpy()
        # effdet gives 100 rows and fills those without a detection with zeros.
        rows = rows[rows[:, 5] > 0]
        return Detections(
            rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int32) - 1
        )

    return predict
