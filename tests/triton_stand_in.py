"""A model of Triton's Python backend that runs an ONNX file as Triton's TensorRT backend would run a plan: the same tensors in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as pb_utils

OUTPUTS = ("boxes", "scores", "class_ids")


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        path = Path(args["model_repository"], args["model_version"], "model.onnx")
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self._answer(pb_utils.get_input_tensor_by_name(request, "images").as_numpy()) for request in requests]

    def _answer(self, images: Any) -> Any:
        found = self._session.run(OUTPUTS, {"images": images})
        return pb_utils.InferenceResponse(
            [pb_utils.Tensor(name, array) for name, array in zip(OUTPUTS, found, strict=True)]
        )
