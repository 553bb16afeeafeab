"""EfficientDet from training to a Jetson: export, fuse, quantize with proof, compile, run, measure.

The names below are the public API. They are imported when they are first used, so that importing the package loads neither
torch nor a runtime.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "AnchorSpec": "artifacts",
    "Checkpoint": "artifacts",
    "Detections": "artifacts",
    "DetectOptions": "detector",
    "Detector": "detector",
    "EdgeEffDetError": "errors",
    "Engine": "artifacts",
    "Graph": "artifacts",
    "ModelSpec": "artifacts",
    "Pipeline": "pipeline",
    "PreprocessSpec": "artifacts",
    "TrainOptions": "training.options",
    "check_dataset": "data.check",
    "convert_graph_to_half": "quantize",
    "detect_image": "detect",
    "evaluate_engine": "evaluate",
    "export_network": "export",
    "fuse_detections": "ensemble",
    "get_backend": "backends.base",
    "load_engine": "artifacts",
    "open_source": "sources",
    "predict_image": "predict",
    "quantize_graph": "quantize",
    "read_dataset": "data.dataset",
    "train_detector": "train",
}

# One table and not two, which the linters cannot see through.
__all__ = [*_HOMES]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
