"""onnxruntime with its default options: what any other program does with our file."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner, tensor_spec


class PlainRunner(OnnxRuntimeRunner):
    """A session without any option of ours. Without VNNI its fused INT8 convolutions saturate, unless weights keep to 7 bits."""

    def __init__(self, path: Path) -> None:
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = tuple(tensor_spec(tensor) for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor_spec(tensor) for tensor in self._session.get_outputs())
