"""Every kind of fusion leaves the exporter as constant factors in Mul and Add, and computes what torch does."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch

from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner
from edge_effdet.export import ExportOptions, export_network
from edge_effdet.models.bifpn import is_edge_weight
from edge_effdet.models.detector import Detector
from edge_effdet.models.zoo import create_network, model_spec
from tests import tolerances

LITE0, D0 = "tf_efficientdet_lite0", "tf_efficientdet_d0"
# Of the raw network, the weighted sums alone were made of these.
FUSION_KINDS = {"Div", "Unsqueeze", "Concat", "ReduceSum", "Softmax", "Relu", "Split", "Gather", "Stack"}


def randomise(network):
    """Statistics, biases and fusion weights as training leaves them: none is the identity, some weights are negative."""
    generator = torch.Generator().manual_seed(3)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
    # effdet starts the heads with small weights and one large bias, beside which nothing that the BiFPN does would show.
    network.class_net.predict.conv_pw.bias.data.zero_()
    for part in (network.fpn, network.class_net, network.box_net):
        for module in part.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, generator=generator)
    signs = []
    for name, parameter in network.named_parameters():
        if is_edge_weight(name):
            parameter.data.normal_(0.7, 0.8, generator=generator)
            signs += (parameter < 0).tolist()
    return signs


@pytest.mark.parametrize(
    ("name", "fusion"), [(LITE0, "fast"), (LITE0, "softmax"), (LITE0, "unbounded"), (LITE0, "sum"), (D0, "fast")]
)
def test_fusion_is_constant_in_the_graph_and_computes_what_torch_does(tmp_path, name, fusion):
    spec = model_spec(name, ("disc",), image_size=(128, 128), fusion=fusion)
    torch.manual_seed(0)
    network = create_network(spec).eval()
    signs = randomise(network)
    assert fusion == "sum" or 0.1 < np.mean(signs) < 0.9
    images = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128), dtype=np.uint8)
    with torch.inference_mode():
        expected = Detector(network, spec, raw=True).eval()(torch.from_numpy(images))
    export = export_network(network, spec, {}, tmp_path / "raw.onnx", ExportOptions(raw=True))
    assert export.graph.spec == spec
    assert not any(report.refused for report in export.reports)
    kinds = Counter(node.op_type for node in onnx.load(export.graph.path).graph.node)
    assert not FUSION_KINDS & set(kinds), kinds
    with OnnxRuntimeRunner(export.graph.path) as runner:
        outputs = runner.run({"images": images})
        found = [outputs[output.name] for output in runner.outputs]
    assert len(found) == len(expected) == 10
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == tuple(theirs.shape)
        error = np.abs(ours - theirs.numpy()).max()
        assert error <= tolerances.HEAD_TENSOR * np.abs(theirs.numpy()).max()
    weights = [parameter for key, parameter in network.named_parameters() if is_edge_weight(key)]
    if weights:
        # The comparison above would not pass with other weights in one node of the second layer.
        weights[12].data[0] += 0.5
        with torch.inference_mode():
            changed = Detector(network, spec, raw=True).eval()(torch.from_numpy(images))
        moved = [float((new - old).abs().max() / old.abs().max()) for old, new in zip(expected, changed, strict=True)]
        assert max(moved) > 100 * tolerances.HEAD_TENSOR
