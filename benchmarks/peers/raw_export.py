"""Deploy as a user without edge_effdet does: effdet's network through ``torch.onnx.export``, run by onnxruntime or OpenVINO.

effdet's evaluation transforms and a normalisation in NumPy prepare the pictures, and effdet's own post-processing in torch follows.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.latency import open_onnxruntime, open_openvino
from benchmarks.peers.effdet_photo import Detect, read_with_transforms
from edge_effdet.artifacts import Detections, ModelSpec

if TYPE_CHECKING:
    import torch


def export_plainly(network: torch.nn.Module, spec: ModelSpec, path: Path) -> Path:
    """Export the network by ``torch.onnx.export(dynamo=True)``: it takes float32 images and gives the heads' ten tensors."""
    levels = range(spec.anchors.min_level, spec.anchors.max_level + 1)
    return save_onnx(network, spec, path, [f"{kind}_p{level}" for kind in ("classes", "boxes") for level in levels])


def save_onnx(network: torch.nn.Module, spec: ModelSpec, path: Path, output_names: Sequence[str]) -> Path:
    """Export a network of the input ``images``, float32 [1, 3, H, W], without the exporter's own messages."""
    import torch

    images = torch.zeros(1, 3, *spec.image_size)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (images,), dynamo=True, input_names=["images"], output_names=output_names, verbose=False
        )
    assert program is not None
    program.save(str(path))
    return path


def make_onnxruntime(network: torch.nn.Module, spec: ModelSpec, graph: Path, threads: int) -> Detect:
    """Detect in photos with the exported graph in onnxruntime."""
    return _make(network, spec, open_onnxruntime(graph, threads))


def make_openvino(
    network: torch.nn.Module, spec: ModelSpec, graph: Path, threads: int, precision: str | None = "f32"
) -> Detect:
    """Detect in photos with the exported graph in OpenVINO; see ``latency.open_openvino`` for ``precision`` and errors."""
    return _make(network, spec, open_openvino(graph, threads, precision))


def _make(network: Any, spec: ModelSpec, run: Callable[[np.ndarray], dict[str, np.ndarray]]) -> Detect:
    import torch
    from effdet.anchors import Anchors, generate_detections
    from effdet.bench import _post_process

    read, anchors, config = read_with_transforms(spec), Anchors.from_config(network.config), network.config
    mean, std = (
        np.array(values, np.float32)[None, :, None, None] * 255
        for values in (spec.preprocess.mean, spec.preprocess.std)
    )

    def detect(content: bytes) -> Detections:
        canvas, scale, (height, width) = read(content)
        outputs = run((canvas.transpose(2, 0, 1)[None].astype(np.float32) - mean) / std)
        tensors = [torch.from_numpy(values) for values in outputs.values()]
        classes, boxes = tensors[: config.num_levels], tensors[config.num_levels :]
        class_out, box_out, indices, class_ids = _post_process(
            classes, boxes, config.num_levels, config.num_classes, config.max_detection_points
        )
        image_size = torch.tensor([width, height], dtype=torch.float32)
        rows = generate_detections(
            class_out[0], box_out[0], anchors.boxes, indices[0], class_ids[0], torch.tensor(1 / scale), image_size
        ).numpy()
        rows = rows[rows[:, 5] > 0]
        return Detections(
            rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), rows[:, 5].astype(np.int32) - 1
        )

    return detect
