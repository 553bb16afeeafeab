"""Two steps of top-K choose the same pairs of an anchor and a class as one step."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.graph_subjects import random_network
from edge_effdet.artifacts import Graph
from edge_effdet.graph.export import ExportOptions, export_network
from edge_effdet.models import detector
from edge_effdet.models.detector import DetectionModule, best_pairs
from edge_effdet.models.zoo import model_spec
from edge_effdet.quant.stage import convert_to_fp16
from tests.networks import small_networks


def logits_of(seed: int, batch: int, anchors: int, classes: int) -> torch.Tensor:
    """Random logits without ties, so that only one choice is right."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(anchors * classes, generator=generator) for _ in range(batch)])
    return order.reshape(batch, anchors, classes).float()


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    batch=st.integers(1, 3),
    anchors=st.integers(1, 300),
    classes=st.integers(1, 40),
    part=st.floats(0.01, 1),
    steps=st.integers(1, 2),
)
def test_the_pairs_are_the_best_of_all(seed: int, batch: int, anchors: int, classes: int, part: float, steps: int):
    logits = logits_of(seed, batch, anchors, classes)
    # Two steps first choose ``count`` anchors, so there must be that many.
    count = max(1, int(part * anchors * (classes if steps == 1 else 1)))
    with patch.object(detector, "TWO_STEPS_FROM", float("inf") if steps == 1 else 0):
        best, rows, class_ids = best_pairs(logits, count)
    assert class_ids.dtype == torch.int32
    assert torch.equal(best, logits.flatten(1).sort(dim=1, descending=True).values[:, :count])
    assert torch.equal(logits[torch.arange(batch)[:, None], rows, class_ids.long()], best)


@pytest.mark.parametrize(("classes", "calls"), [(3, 1), (90, 2)])
def test_only_many_classes_take_two_steps(classes: int, calls: int, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    topk = torch.topk
    monkeypatch.setattr(
        detector.torch, "topk", lambda x, *rest, **more: (sizes.append(x.shape[1]), topk(x, *rest, **more))[1]
    )
    best_pairs(logits_of(0, 1, 1000, classes), 20)
    assert sizes == ([1000, 20 * classes] if calls == 2 else [1000 * classes])


def test_the_best_may_all_be_of_one_anchor():
    logits = torch.zeros(1, 100, 50)
    logits[0, 7] = torch.arange(1, 51)
    best, rows, class_ids = best_pairs(logits, 5)
    assert best.tolist() == [[50, 49, 48, 47, 46]]
    assert rows.tolist() == [[7] * 5]
    assert class_ids.tolist() == [[49, 48, 47, 46, 45]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, Graph]:
    """A network and its graph, in which 100 pairs are chosen of 3069 anchors and 90 classes."""
    spec = model_spec("tf_efficientdet_lite0", image_size=(128, 128))
    with small_networks():
        network = random_network(spec, seed=0)
    path = tmp_path_factory.mktemp("exported") / "two.onnx"
    return network, export_network(network, spec, {}, path, ExportOptions(batch_size=2, top_k=100)).graph


@pytest.mark.parametrize("half", [False, True])
def test_two_steps_find_the_same_in_the_exported_graph(
    half: bool, exported: tuple[torch.nn.Module, Graph], tmp_path: Path
):
    network, graph = exported
    spec = graph.spec
    if half:
        graph = convert_to_fp16(graph, tmp_path / "half.onnx")
    kinds = [node.op_type for node in onnx.load(graph.path).graph.node]
    assert kinds.count("TopK") == 2 and kinds.count("ReduceMax") == 1
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 128, 128), np.uint8)
    session = ort.InferenceSession(str(graph.path), providers=["CPUExecutionProvider"])
    _, scores, class_ids = session.run(None, {"images": images})
    with torch.no_grad(), patch.object(detector, "TWO_STEPS_FROM", float("inf")):
        _, expected, expected_ids = DetectionModule(network, spec, 100).eval()(torch.from_numpy(images))
    np.testing.assert_allclose(scores, expected.numpy(), atol=3e-2 if half else 1e-4)
    if not half:
        assert (class_ids == expected_ids.numpy()).mean() > 0.98
