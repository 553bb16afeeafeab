"""Every kind of fusion leaves the exporter as constant factors, and computes what torch does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from edge_effdet.graph.export import ExportOptions
from edge_effdet.models.bifpn import is_edge_weight
from edge_effdet.models.detector import DetectionModule
from edge_effdet.models.zoo import model_spec
from tests import tolerances
from tests.networks import export_and_compare, random_network, small_networks

LITE0, D0 = "tf_efficientdet_lite0", "tf_efficientdet_d0"
# Of the raw network, the weighted sums alone were made of these.
FUSION_KINDS = {"Div", "Unsqueeze", "Concat", "ReduceSum", "Softmax", "Relu", "Split", "Gather", "Stack"}
RAW = ExportOptions(raw=True)


@pytest.fixture(scope="module", autouse=True)
def _small_networks() -> Iterator[None]:
    with small_networks():
        yield


@pytest.mark.parametrize(
    ("name", "fusion"),
    [
        (LITE0, "fast"),
        *(pytest.param(LITE0, fusion, marks=pytest.mark.slow) for fusion in ("softmax", "unbounded", "sum")),
        (D0, "fast"),
    ],
)
def test_fusion_is_constant_in_the_graph_and_computes_what_torch_does(tmp_path: Path, name: str, fusion: str):
    spec = model_spec(name, ("disc",), image_size=(128, 128), fusion=fusion)
    network = random_network(spec)
    export, error = export_and_compare(network, spec, tmp_path / "raw.onnx", RAW)
    assert error <= tolerances.HEAD_TENSOR
    assert export.graph.spec == spec
    # A factor below 0 does not go through a MaxPool, and unbounded fusion has some; fast fusion makes zeros of weights below 0, and
    # where all of a node's are, one edge stays at 0, which nothing can be divided by.
    refusals = [why for report in export.report.rules for _, why in report.refused]
    allowed = "none of its factors is one that others can be divided by and that commutes with a pooling's maximum"
    assert all(fusion in ("unbounded", "fast") and why == allowed for why in refusals), refusals
    kinds = Counter(node.op_type for node in onnx.load(export.graph.path).graph.node)
    assert not FUSION_KINDS & set(kinds), kinds
    assert (export.graph.rewrites["absorb_fusion_weights"] >= 15) == (fusion != "sum")


def test_the_comparison_sees_another_weight():
    """The tests above would not pass with other weights in one node of the second layer."""
    spec = model_spec(LITE0, ("disc",), image_size=(128, 128), fusion="fast")
    network = random_network(spec)
    weights = [parameter for key, parameter in network.named_parameters() if is_edge_weight(key)]
    assert 0.1 < np.mean(torch.cat([weight.data for weight in weights]).numpy() < 0) < 0.9
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128), dtype=np.uint8))
    detector = DetectionModule(network, spec, raw=True).eval()
    with torch.inference_mode():
        expected = detector(images)
        weights[12].data[0] += 0.5
        changed = detector(images)
    moved = [float((new - old).abs().max() / old.abs().max()) for old, new in zip(expected, changed, strict=True)]
    assert max(moved) > 100 * tolerances.HEAD_TENSOR
