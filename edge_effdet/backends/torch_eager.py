"""The reference: the network in torch, behind the same protocol as an engine. The one backend file that imports torch."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType

import numpy as np
import torch

from edge_effdet.artifacts import ModelSpec
from edge_effdet.backends.base import TensorSpec
from edge_effdet.models.detector import DEFAULT_TOP_K, Detector


class TorchRunner:
    """Run a network as the exported graph would. Takes uint8 [B, 3, H, W] under the name ``images``."""

    def __init__(self, network: torch.nn.Module, spec: ModelSpec, top_k: int = DEFAULT_TOP_K) -> None:
        self.detector = Detector(network, spec, top_k).eval()
        height, width = spec.image_size
        k = self.detector.top_k
        self.inputs = (TensorSpec("images", (-1, 3, height, width), np.dtype(np.uint8)),)
        self.outputs = (
            TensorSpec("boxes", (-1, k, 4), np.dtype(np.float32)),
            TensorSpec("scores", (-1, k), np.dtype(np.float32)),
            TensorSpec("class_ids", (-1, k), np.dtype(np.int32)),
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.inference_mode():
            results = self.detector(torch.from_numpy(feeds["images"]))
        return {spec.name: result.numpy() for spec, result in zip(self.outputs, results, strict=True)}

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
