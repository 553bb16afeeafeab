"""The network in torch with the interface of an engine's runner: the reference that engines are compared with."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import torch

from edge_effdet.artifacts import ModelSpec
from edge_effdet.backends.base import Runner, TensorSpec
from edge_effdet.models.detector import DEFAULT_TOP_K, DetectionModule


class TorchRunner(Runner):
    """Runs a network in torch, on the network's device, with the inputs and outputs of the exported graph.

    The input ``images`` is uint8 [B, 3, H, W] with any B; the outputs are NumPy arrays. The network is any module with
    effdet's head outputs, also a quantized one, and is set to evaluation mode.
    """

    def __init__(self, network: torch.nn.Module, spec: ModelSpec, top_k: int = DEFAULT_TOP_K) -> None:
        self.detector = DetectionModule(network, spec, top_k).eval()
        height, width = spec.image_size
        k = self.detector.top_k
        self.inputs = (TensorSpec("images", (-1, 3, height, width), np.dtype(np.uint8)),)
        self.outputs = (
            TensorSpec("boxes", (-1, k, 4), np.dtype(np.float32)),
            TensorSpec("scores", (-1, k), np.dtype(np.float32)),
            TensorSpec("class_ids", (-1, k), np.dtype(np.int32)),
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        device = self._network_device()
        # The network may be moved after this runner was made; anchors and normalisation then follow it.
        if self.detector.anchors.device != device:
            self.detector.to(device)
        with torch.inference_mode():
            results = self.detector(torch.from_numpy(feeds["images"]).to(device))
        return {spec.name: result.cpu().numpy() for spec, result in zip(self.outputs, results, strict=True)}

    def _network_device(self) -> torch.device:
        network = self.detector.network
        tensors = itertools.chain(network.parameters(), network.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))
