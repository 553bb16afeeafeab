"""Deploy as the examples of Ultralytics do: all boxes from one output tensor, everything around the network on the host.

After ``examples/YOLOv8-ONNXRuntime/main.py`` of github.com/ultralytics/ultralytics, in its steps and their order: the picture is scaled, and
grey 114 is padded on both sides of it; it becomes floats from 0 to 1, then channels first; an onnxruntime session with default options
gives one tensor of shape [1, 4 + classes, anchors] with centres, sizes and scores; the best class of each anchor is taken, scores below a
threshold are dropped, and overlapping boxes are suppressed.

These parts differ from it. Pillow decodes and scales in place of OpenCV, as in all other ways. effdet's mean and standard deviation are
applied, because its networks expect them. The filter is written for whole arrays, where the example has a Python loop over all anchors, and
torchvision suppresses in place of OpenCV; both make this way faster. So that it finds as many objects as the other ways, the
threshold is 0 and the ``CANDIDATES`` best anchors go on, of which at most 100 detections are kept.

The picture lies elsewhere in the input than effdet puts it, in the middle and on another grey, and an anchor has one class, so other boxes
are found.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.peers.effdet_photo import Detect
from benchmarks.peers.raw_export import save_onnx
from edge_effdet.artifacts import Detections, ModelSpec, Size

if TYPE_CHECKING:
    import torch

GREY, THRESHOLD, IOU, CANDIDATES, KEPT = 114, 0.0, 0.5, 1000, 100


def export_one_tensor(network: torch.nn.Module, spec: ModelSpec, path: Path) -> Path:
    """Export effdet's network with decoded boxes: float32 images to [1, 4 + classes, anchors], a row cx, cy, w, h and scores an anchor."""
    import torch
    from effdet.anchors import Anchors, decode_box_outputs

    class OneTensor(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.anchors: Any = Anchors.from_config(network.config)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = self.network(images)
            scores, codes = (
                torch.cat([level.permute(0, 2, 3, 1).reshape(1, -1, width) for level in levels], 1)
                for levels, width in zip(found, (spec.num_classes, 4), strict=True)
            )
            boxes = decode_box_outputs(codes[0], self.anchors.boxes, output_xyxy=True)
            corner, opposite = boxes[:, :2], boxes[:, 2:]
            centred = torch.cat([(corner + opposite) / 2, opposite - corner], 1)
            return torch.cat([centred[None], scores.sigmoid()], 2).transpose(1, 2)

    return save_onnx(OneTensor().eval(), spec, path, ["output0"])


def letterbox(image: np.ndarray, size: Size) -> tuple[np.ndarray, float, tuple[int, int]]:
    """Scale a picture, uint8 [h, w, 3], into the middle of a grey canvas: the canvas, the scale, and the pixels on the left and above."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = round(height * scale), round(width * scale)
    top, left = ((outer - own) // 2 for outer, own in zip(size, inner, strict=True))
    resized = np.asarray(Image.fromarray(image).resize(inner[::-1], Image.Resampling.BILINEAR))
    canvas = np.full((*size, 3), GREY, np.uint8)
    canvas[top : top + inner[0], left : left + inner[1]] = resized
    return canvas, scale, (left, top)


def make_naive(spec: ModelSpec, graph: Path) -> Detect:
    """Detect in photos with a graph that ``export_one_tensor`` made. onnxruntime takes the threads that it takes by default."""
    import onnxruntime as ort
    import torch
    from torchvision.ops import batched_nms

    session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0].name
    mean, std = (np.array(values, np.float32) for values in (spec.preprocess.mean, spec.preprocess.std))

    def detect(content: bytes) -> Detections:
        image = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        canvas, scale, padding = letterbox(image, spec.image_size)
        pixels = (canvas.astype(np.float32) / 255.0 - mean) / std
        pixels = np.ascontiguousarray(np.expand_dims(np.transpose(pixels, (2, 0, 1)), 0))
        output: Any = session.run(None, {taken: pixels})[0]
        rows = np.transpose(np.squeeze(output, 0))
        scores, class_ids = rows[:, 4:].max(1), rows[:, 4:].argmax(1)
        chosen = np.flatnonzero(scores >= THRESHOLD)
        chosen = chosen[np.argsort(-scores[chosen])[:CANDIDATES]]
        centres, sizes = rows[chosen, :2], rows[chosen, 2:4]
        boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1)
        tensors = [torch.from_numpy(each) for each in (boxes, scores[chosen], class_ids[chosen])]
        kept = batched_nms(tensors[0], tensors[1], tensors[2], IOU).numpy()[:KEPT]
        boxes = (boxes[kept] - np.tile(np.array(padding, np.float32), 2)) / np.float32(scale)
        limits = np.tile(np.array(image.shape[1::-1], np.float32), 2)
        chosen = chosen[kept]
        return Detections(boxes.clip(0, limits), scores[chosen], class_ids[chosen].astype(np.int32))

    return detect
