"""Networks as training leaves them, the comparison of their graphs with torch, and two ways to export in less time."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from edge_effdet.artifacts import ModelSpec
from edge_effdet.backends.base import LoadOptions
from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner
from edge_effdet.graph import export
from edge_effdet.graph.export import Export, ExportOptions, export_network
from edge_effdet.models import zoo
from edge_effdet.models.bifpn import is_edge_weight
from edge_effdet.models.detector import DetectionModule
from edge_effdet.models.zoo import create_network


def random_network(spec: ModelSpec, seed: int = 3, settled: bool = True) -> torch.nn.Module:
    """A network with random statistics, biases and fusion weights, some of them below 0.

    A fresh one hides mistakes: its batch norms are the identity and its fusion weights all alike. ``settled`` ones have
    statistics about those of noise images, as training leaves them: else values grow from layer to layer until FP32's own
    rounding is larger than what a comparison may allow.
    """
    torch.manual_seed(seed)
    network = create_network(spec).eval()
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for module in norms:
        module.bias.data.normal_(0, 0.1, generator=generator)
        module.weight.data.uniform_(0.5, 1.5, generator=generator)
    # effdet starts the heads with small weights and one large bias, beside which nothing that the BiFPN does would show.
    network.class_net.predict.conv_pw.bias.data.zero_()
    # Squeeze and excitation starts with weights that make its gates so steep that they magnify FP32's rounding.
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d) and (not name.startswith("backbone") or ".se." in name):
            torch.nn.init.kaiming_normal_(module.weight, generator=generator)
    for name, parameter in network.named_parameters():
        if is_edge_weight(name):
            parameter.data.normal_(0.7, 0.8, generator=generator)
            # A sum whose weights are all below 0 is 0 for every image, so it has no range to calibrate.
            if bool((parameter <= 0).all()):
                parameter.data.neg_()
    if settled:
        for module in norms:
            # The running statistics become those of the next batch.
            module.momentum = 1.0
        with torch.inference_mode():
            network.train()(_noise(spec, generator))
        network.eval()
    for module in norms:
        spread = module.running_var.sqrt()
        module.running_mean.add_(0.1 * spread * torch.randn(spread.shape, generator=generator))
        module.running_var.mul_(torch.empty_like(spread).uniform_(0.5, 2, generator=generator))
    return network


def _noise(spec: ModelSpec, generator: torch.Generator) -> torch.Tensor:
    """So many images that a channel of the coarsest level has 64 values.

    Of fewer, some channels hardly vary, and a batch norm that divides by that blows FP32's rounding up.
    """
    height, width = spec.image_size
    images = max(2, math.ceil(64 / (math.ceil(height / 128) * math.ceil(width / 128))))
    return torch.randn(images, 3, height, width, generator=generator)


def export_and_compare(
    network: torch.nn.Module, spec: ModelSpec, path: Path, options: ExportOptions, batch: int = 1
) -> tuple[Export, float]:
    """Export the head tensors and run them beside torch.

    Returns:
        The export, and the largest error of any head tensor, relative to that tensor's largest value.
    """
    images = np.random.default_rng(0).integers(0, 256, (batch, 3, *spec.image_size), dtype=np.uint8)
    with torch.inference_mode():
        expected = DetectionModule(network, spec, raw=True).eval()(torch.from_numpy(images))
    export = export_network(network, spec, {}, path, options)
    with OnnxRuntimeRunner(export.graph.path, LoadOptions()) as runner:
        outputs = runner.run({"images": images})
        found = [outputs[output.name] for output in runner.outputs]
    assert len(found) == len(expected) == 10
    error = 0.0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        error = max(error, float(np.abs(ours - theirs.numpy()).max() / np.abs(theirs.numpy()).max()))
    return export, error


@contextlib.contextmanager
def small_networks() -> Iterator[None]:
    """Within it, the zoo's models have a small backbone and heads of one layer, and all of their BiFPN."""
    usual = zoo.effdet_config

    def shrink(name: str) -> DictConfig:
        config = usual(name)
        OmegaConf.set_readonly(config, False)
        # timm has it for tests.
        config.backbone_name = "test_efficientnet"
        config.box_class_repeats = 1
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "effdet_config", shrink)
        yield


@contextlib.contextmanager
def traced_once() -> Iterator[None]:
    """Within it, a network that is exported again is not traced again, which would take nine tenths of the time for the same graph."""
    trace = export.trace_network
    last: dict[object, ir.Model] = {}

    def look_up(network: torch.nn.Module, spec: ModelSpec, options: ExportOptions) -> ir.Model:
        weights = hashlib.sha256()
        for tensor in network.state_dict().values():
            weights.update(tensor.numpy().tobytes())
        key = (weights.digest(), spec, options.input_dtype, options.batch_size, options.top_k, options.raw)
        if key not in last:
            last.clear()
            last[key] = trace(network, spec, options)
            for value in last[key].graph.initializers.values():
                # The network may be trained on, and the graph has its tensors.
                value.const_value = ir.Tensor(value.const_value.numpy().copy(), name=value.name)
        # The rules change a model in place.
        return last[key].clone()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "trace_network", look_up)
        yield
