"""The reference: the network in torch, behind the same protocol as an engine. The one backend file that imports torch."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from types import TracebackType

import numpy as np
import torch

from edge_effdet.artifacts import ModelSpec
from edge_effdet.backends.base import TensorSpec
from edge_effdet.models.detector import DEFAULT_TOP_K, Detector


class TorchRunner:
    """Run a network as the exported graph would, on the device that it is on; the results come to the CPU.

    Takes uint8 [B, 3, H, W], any B, under the name ``images``. The network is any module with effdet's head outputs, a
    quantized one too, and is set to evaluation mode.
    """

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
        device = self._network_device()
        # The anchors and the normalisation are ours and follow a network that is moved after this runner was made.
        if self.detector.anchors.device != device:
            self.detector.to(device)
        with torch.inference_mode():
            results = self.detector(torch.from_numpy(feeds["images"]).to(device))
        return {spec.name: result.cpu().numpy() for spec, result in zip(self.outputs, results, strict=True)}

    def _network_device(self) -> torch.device:
        network = self.detector.network
        tensors = itertools.chain(network.parameters(), network.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
