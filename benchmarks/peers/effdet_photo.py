"""Detect in photos as a user of effdet does: by its own evaluation transforms, then its DetBenchPredict in torch, eager or compiled."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edge_effdet.artifacts import Detections, ModelSpec, Size

if TYPE_CHECKING:
    import torch

Detect = Callable[[bytes], Detections]
"""Takes the content of a JPEG file and gives at most 100 detections of any score, in pixels of the picture."""


def read_with_transforms(spec: ModelSpec) -> Callable[[bytes], tuple[np.ndarray, float, Size]]:
    """A function that decodes a photo and applies effdet's ``transforms_coco_eval`` to it.

    The function gives the canvas, uint8 [H, W, 3], its scale against the photo, and the photo's height and width.
    """
    from effdet.data.transforms import transforms_coco_eval

    # effdet's type annotations allow square inputs only, and do not say that a transform can be called.
    transform: Any = transforms_coco_eval(spec.image_size, use_prefetcher=True, mean=spec.preprocess.mean)  # type: ignore[arg-type]

    def read(content: bytes) -> tuple[np.ndarray, float, Size]:
        image = Image.open(io.BytesIO(content)).convert("RGB")
        planes, annotations = transform(image, {})
        return planes.transpose(1, 2, 0), 1 / annotations["img_scale"], (image.height, image.width)

    return read


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


def make_eager(network: torch.nn.Module, spec: ModelSpec) -> Detect:
    """effdet's DetBenchPredict in eager torch, with torch's number of threads."""
    read, predict = read_with_transforms(spec), make_predictor(network, spec)
    return lambda content: predict(*read(content))


def make_compiled(network: torch.nn.Module, spec: ModelSpec) -> Detect:
    """As ``make_eager``, with the network through ``torch.compile``, which compiles at the first picture."""
    import torch

    # With dynamic shapes a second model in the process would be compiled for any size, which takes too long.
    compiled: torch.nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]
    return make_eager(compiled, spec)
