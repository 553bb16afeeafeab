"""Run our file in onnxruntime with its default options, as any other program would."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner, tensor_spec


class PlainRunner(OnnxRuntimeRunner):
    """A session with onnxruntime's defaults. Without VNNI its fused INT8 convolutions saturate, unless weights keep to 7 bits."""

    def __init__(self, path: Path) -> None:
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self.inputs = tuple(tensor_spec(tensor) for tensor in self._session.get_inputs())
        self.outputs = tuple(tensor_spec(tensor) for tensor in self._session.get_outputs())
