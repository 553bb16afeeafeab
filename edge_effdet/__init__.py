"""EfficientDet from training to a Jetson: train, export, fuse, quantize with proof, compile, run, measure.

The names below are the public API. They are imported when they are first used, so that importing the package loads neither
torch nor a runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edge_effdet import signals

# First of all: what a command imports takes a good part of a second.
signals.end_while_importing()

if TYPE_CHECKING:
    # What type checkers read; the table below is what runs, and a test holds the two together.
    from edge_effdet.artifacts import AnchorSpec as AnchorSpec
    from edge_effdet.artifacts import Checkpoint as Checkpoint
    from edge_effdet.artifacts import Detections as Detections
    from edge_effdet.artifacts import Engine as Engine
    from edge_effdet.artifacts import Graph as Graph
    from edge_effdet.artifacts import ModelSpec as ModelSpec
    from edge_effdet.artifacts import PreprocessSpec as PreprocessSpec
    from edge_effdet.artifacts import load_engine as load_engine
    from edge_effdet.backends.base import get_backend as get_backend
    from edge_effdet.benchmarking.options import BenchmarkConfig as BenchmarkConfig
    from edge_effdet.benchmarking.record import Report as Report
    from edge_effdet.benchmarking.stage import benchmark_engines as benchmark_engines
    from edge_effdet.building.chain import build as build
    from edge_effdet.building.options import BuildConfig as BuildConfig
    from edge_effdet.building.verify import verify_engine as verify_engine
    from edge_effdet.data.check import check_dataset as check_dataset
    from edge_effdet.data.registry import read_dataset as read_dataset
    from edge_effdet.deploying.options import DeployConfig as DeployConfig
    from edge_effdet.deploying.stage import make_bundle as make_bundle
    from edge_effdet.device.manifest import Bundle as Bundle
    from edge_effdet.errors import EdgeEffDetError as EdgeEffDetError
    from edge_effdet.evaluation.ensemble import fuse_detections as fuse_detections
    from edge_effdet.evaluation.members import predict_image as predict_image
    from edge_effdet.evaluation.prediction import PredictConfig as PredictConfig
    from edge_effdet.evaluation.prediction import predict_files as predict_files
    from edge_effdet.evaluation.run import evaluate_engine as evaluate_engine
    from edge_effdet.evaluation.stage import EvaluateConfig as EvaluateConfig
    from edge_effdet.evaluation.stage import evaluate_detector as evaluate_detector
    from edge_effdet.graph.export import ExportConfig as ExportConfig
    from edge_effdet.graph.export import export_checkpoint as export_checkpoint
    from edge_effdet.graph.export import export_network as export_network
    from edge_effdet.quant.stage import QuantizeConfig as QuantizeConfig
    from edge_effdet.quant.stage import convert_to_fp16 as convert_to_fp16
    from edge_effdet.quant.stage import quantize_graph as quantize_graph
    from edge_effdet.runtime.detector import DetectOptions as DetectOptions
    from edge_effdet.runtime.detector import Detector as Detector
    from edge_effdet.runtime.detector import detect_image as detect_image
    from edge_effdet.runtime.pipeline import Pipeline as Pipeline
    from edge_effdet.runtime.sources import open_source as open_source
    from edge_effdet.serving.server import Service as Service
    from edge_effdet.serving.server import Serving as Serving
    from edge_effdet.serving.server import serve_engine as serve_engine
    from edge_effdet.training.options import TrainConfig as TrainConfig
    from edge_effdet.training.stage import train_detector as train_detector

_HOMES = {
    "AnchorSpec": "artifacts",
    "BenchmarkConfig": "benchmarking.options",
    "BuildConfig": "building.options",
    "Bundle": "device.manifest",
    "Checkpoint": "artifacts",
    "DeployConfig": "deploying.options",
    "DetectOptions": "runtime.detector",
    "Detections": "artifacts",
    "Detector": "runtime.detector",
    "EdgeEffDetError": "errors",
    "Engine": "artifacts",
    "EvaluateConfig": "evaluation.stage",
    "ExportConfig": "graph.export",
    "Graph": "artifacts",
    "ModelSpec": "artifacts",
    "Pipeline": "runtime.pipeline",
    "PredictConfig": "evaluation.prediction",
    "PreprocessSpec": "artifacts",
    "QuantizeConfig": "quant.stage",
    "Report": "benchmarking.record",
    "Service": "serving.server",
    "Serving": "serving.server",
    "TrainConfig": "training.options",
    "benchmark_engines": "benchmarking.stage",
    "build": "building.chain",
    "check_dataset": "data.check",
    "convert_to_fp16": "quant.stage",
    "detect_image": "runtime.detector",
    "evaluate_detector": "evaluation.stage",
    "evaluate_engine": "evaluation.run",
    "export_checkpoint": "graph.export",
    "export_network": "graph.export",
    "fuse_detections": "evaluation.ensemble",
    "get_backend": "backends.base",
    "load_engine": "artifacts",
    "make_bundle": "deploying.stage",
    "open_source": "runtime.sources",
    "predict_files": "evaluation.prediction",
    "predict_image": "evaluation.members",
    "quantize_graph": "quant.stage",
    "read_dataset": "data.registry",
    "serve_engine": "serving.server",
    "train_detector": "training.stage",
    "verify_engine": "building.verify",
}
"""Where each public name is defined."""

__all__ = [*_HOMES, "__version__"]  # noqa: PLE0604  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("edge-effdet")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith(f"{__name__}."):
            raise
        # The wheel in a bundle has the device's rooms alone.
        raise ImportError(
            f"{name} is not in the part of edge_effdet that a device has; use it where the whole package is installed."
        ) from error


def __dir__() -> list[str]:
    return list(__all__)
