"""The exported graph finds what effdet's own predictor finds, on real photos, with a trained checkpoint."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from effdet import DetBenchPredict

from edge_effdet.artifacts import Detections, Graph, ModelSpec
from edge_effdet.backends.base import LoadOptions
from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner
from edge_effdet.data.base import Dataset, readable_images
from edge_effdet.models.checkpoint import load_network, open_checkpoint
from edge_effdet.runtime.detector import detect_image
from edge_effdet.runtime.nms import iou_matrix
from edge_effdet.runtime.preprocess import letterbox
from tests import tolerances
from tests.integration.conftest import BCCD_CHECKPOINT

THRESHOLD = 0.3


def predict_with_effdet(bench: DetBenchPredict, image: np.ndarray, spec: ModelSpec) -> Detections:
    canvas, scale = letterbox(image, spec.image_size, spec.preprocess)
    mean, std = np.array(spec.preprocess.mean, np.float32), np.array(spec.preprocess.std, np.float32)
    pixels = ((canvas / np.float32(255) - mean) / std).transpose(2, 0, 1)[None]
    info = {
        "img_scale": torch.tensor([1 / scale]),
        "img_size": torch.tensor([[image.shape[1], image.shape[0]]], dtype=torch.float32),
    }
    with torch.inference_mode():
        rows = bench(torch.from_numpy(pixels), info)[0].numpy()
    found = Detections(
        rows[:, :4].astype(np.float32), rows[:, 4].astype(np.float32), (rows[:, 5] - 1).clip(0).astype(np.int32)
    )
    return found.above(THRESHOLD)


@pytest.mark.data
def test_detections_equal_those_of_effdet(bccd_graph: Graph, bccd_dataset: Dataset):
    spec = bccd_graph.spec
    bench = DetBenchPredict(load_network(open_checkpoint(BCCD_CHECKPOINT))).eval()
    compared = 0
    with OnnxRuntimeRunner(bccd_graph.path, LoadOptions()) as runner:
        for sample, image in readable_images(bccd_dataset.splits["test"][:30]):
            expected = predict_with_effdet(bench, image, spec)
            # A score at the threshold may fall on either side of it; whatever is expected must be there just below.
            found = detect_image(runner, image, spec, THRESHOLD - tolerances.SCORE)
            assert len(expected) <= len(found) <= len(expected) + 2, sample.image_id
            overlap = iou_matrix(expected.boxes, found.boxes)
            overlap[expected.class_ids[:, None] != found.class_ids[None]] = 0
            best = overlap.argmax(axis=1)
            assert len(set(best)) == len(best)
            assert overlap.max(axis=1).min(initial=1) >= tolerances.BOX_IOU
            np.testing.assert_allclose(found.scores[best], expected.scores, atol=tolerances.SCORE)
            compared += len(expected)
    assert compared >= 200
