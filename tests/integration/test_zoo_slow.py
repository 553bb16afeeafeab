"""The larger subject, D0 with SiLU and weighted fusion: exports, quantizes and builds. Minutes, so it is slow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edge_effdet.artifacts import Graph
from edge_effdet.backends import tensorrt_rtx
from edge_effdet.backends.base import CompileOptions
from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner
from edge_effdet.data.dataset import read_dataset
from edge_effdet.export import ExportOptions, export_network
from edge_effdet.graph.model import load_model
from edge_effdet.models.detector import Detector
from edge_effdet.models.zoo import create_network, model_spec
from edge_effdet.quant.calibration import load_calibration_images
from edge_effdet.quantize import QuantizeOptions, convert_graph_to_half, quantize_graph
from tests import tolerances

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def randomise(network: torch.nn.Module) -> None:
    """A fresh model hides mistakes: its batch norms are the identity and its fusion weights all alike."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
    for name, parameter in network.named_parameters():
        if "edge_weights" in name:
            parameter.data.uniform_(-0.3, 1, generator=generator)


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    made = create_network(model_spec("tf_efficientdet_d0")).eval()
    randomise(made)
    return made


@pytest.fixture(scope="module")
def graph(network: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    path = tmp_path_factory.mktemp("d0") / "d0.onnx"
    return export_network(network, model_spec("tf_efficientdet_d0"), {}, path, ExportOptions()).graph


def test_every_rule_fires(graph: Graph):
    # One of the 14 paddings is gone before its rule: a fusion weight below 0 drops its edge, and the pooling with it.
    assert graph.rewrites == {"fold_batchnorm": 30, "fold_fusion_weights": 24, "fold_pool_padding": 13}
    kinds = {node.op_type for node in load_model(graph.path).graph.node}
    assert not kinds & {"BatchNormalization", "ReduceSum", "Pad"}


@pytest.mark.parametrize("batch_size", [1, 0])
def test_head_tensors_equal_those_of_torch(network: torch.nn.Module, batch_size: int, tmp_path: Path):
    spec = model_spec("tf_efficientdet_d0")
    options = ExportOptions(raw=True, batch_size=batch_size)
    raw = export_network(network, spec, {}, tmp_path / "raw.onnx", options).graph
    images = np.random.default_rng(0).integers(0, 256, (batch_size or 2, 3, 512, 512), np.uint8)
    with torch.inference_mode():
        expected = Detector(network, spec, raw=True).eval()(torch.from_numpy(images))
    with OnnxRuntimeRunner(raw.path) as runner:
        found = runner.run({"images": images})
    assert len(found) == len(expected) == 10
    for name, tensor in zip(found, expected, strict=True):
        error = np.abs(found[name] - tensor.numpy()).max() / np.abs(tensor.numpy()).max()
        assert error <= tolerances.HEAD_TENSOR, name


@pytest.mark.data
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("target", ["86+89+120", "75"])
def test_tensorrt_rtx_builds_without_a_gpu(precision: str, target: str, graph: Graph, data_root: Path, tmp_path: Path):
    built = graph
    if precision == "fp16":
        built = convert_graph_to_half(graph, tmp_path / "fp16.onnx")
    elif precision == "int8":
        photos = read_dataset(data_root / "coco_val_open").all_samples()
        images = load_calibration_images(photos, graph.spec, 8, seed=0)
        options = QuantizeOptions("max", high_precision="fp16")
        built = quantize_graph(graph, images, options, tmp_path / "int8.onnx")
    assert len(tensorrt_rtx.compile(built, CompileOptions(target=target))) > 5_000_000
