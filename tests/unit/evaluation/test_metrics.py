"""COCO metrics against pycocotools, the reference implementation, and by hand."""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.data.base import make_sample
from edge_effdet.errors import DataError, MissingDependency
from edge_effdet.evaluation.metrics import CocoMetrics, coco_ground_truth, coco_metrics, coco_results

SPEC = ModelSpec("tiny", (64, 64), ("disc", "bar", "cone"), (1, 2, 3))
SIX = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


def make(image_id, *rows, size=(300, 400)):
    return make_sample(str(image_id), Path(f"{image_id}.jpg"), *size, rows, "test")


def exact(sample, score=0.9):
    """Detections that are the truth."""
    return Detections(sample.boxes, np.full(len(sample.boxes), score, np.float32), sample.class_ids.astype(np.int32))


def random_case(seed, images=12):
    """Pictures with boxes of all sizes, a fifth of them ignored, and detections: jittered, doubled, missed, invented."""
    rng = np.random.default_rng(seed)
    samples, detections = [], []
    for number in range(images):
        count = int(rng.integers(0, 9))
        sides = np.exp(rng.uniform(np.log(8), np.log(220), (count, 2)))
        corner = rng.uniform(0, [350, 250], (count, 2))
        boxes = np.concatenate([corner, corner + sides], axis=1)
        rows = [(box, int(rng.integers(3)), bool(rng.random() < 0.2)) for box in boxes]
        sample = make(number, *rows)
        source = np.repeat(np.arange(len(sample.boxes)), rng.integers(0, 3, len(sample.boxes)))
        found = sample.boxes[source]
        mistaken = rng.random(len(source)) < 0.1
        classes = np.where(mistaken, rng.integers(0, 3, len(source)), sample.class_ids[source])
        scale = np.tile(found[:, 2:] - found[:, :2], 2)
        found = found + rng.normal(0, 0.08, found.shape) * scale
        corner = rng.uniform(0, 200, (3, 2))
        invented = np.concatenate([corner, corner + rng.uniform(5, 150, (3, 2))], axis=1)
        found = np.concatenate([found, invented]).astype(np.float32)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        classes = np.concatenate([classes, rng.integers(0, 3, 3)]).astype(np.int32)
        # Scores are all different: the order of equal ones is for each implementation to choose.
        scores = (rng.permutation(len(found)) + rng.random(len(found)) * 0.9 + 0.05).astype(np.float32) / len(found)
        samples.append(sample)
        detections.append(Detections(found, scores.astype(np.float32), classes))
    return samples, detections


@pytest.mark.parametrize("seed", range(6))
def test_the_numbers_are_those_of_pycocotools(seed):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    samples, detections = random_case(seed)
    assert any(sample.ignore.any() for sample in samples)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco.COCO()
        truth.dataset = coco_ground_truth(samples, SPEC)
        truth.createIndex()
        evaluation = cocoeval.COCOeval(truth, truth.loadRes(coco_results(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = coco_metrics(samples, detections, SPEC)
    ours = [getattr(metrics, name) for name in SIX]
    expected = [value if value >= 0 else math.nan for value in evaluation.stats[:6]]
    np.testing.assert_allclose(ours, expected, atol=1e-6, rtol=0)
    assert 0.05 < metrics.AP < 0.95, "the case is too easy or too hard to tell anything"
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    for position, name in enumerate(SPEC.class_names):
        values = precision[:, :, position]
        assert metrics.per_class[name] == pytest.approx(values[values > -1].mean(), abs=1e-6)
        assert metrics.per_class_AP50[name] == pytest.approx(values[0][values[0] > -1].mean(), abs=1e-6)
        boxes = sum(int(((sample.class_ids == position) & ~sample.ignore).sum()) for sample in samples)
        assert metrics.boxes_per_class[name] == boxes
    assert np.mean(list(metrics.per_class_AP50.values())) == pytest.approx(metrics.AP50, abs=1e-6)


def test_perfect_detections_have_ap_1():
    samples = [
        make(0, ((0, 0, 20, 20), 0, False), ((50, 50, 110, 110), 1, False)),
        make(1, ((10, 10, 200, 200), 0, False)),
    ]
    metrics = coco_metrics(samples, [exact(sample) for sample in samples], SPEC)
    assert [getattr(metrics, name) for name in SIX] == pytest.approx([1.0] * 6)
    assert metrics.per_class == pytest.approx({"disc": 1.0, "bar": 1.0})
    assert metrics.boxes_per_class == {"disc": 2, "bar": 1}, "a class without a box is left out"
    assert metrics.images == 2


def test_no_detections_have_ap_0():
    samples = [make(0, ((0, 0, 20, 20), 0, False)), make(1)]
    metrics = coco_metrics(samples, [NOTHING, NOTHING], SPEC)
    assert (metrics.AP, metrics.AP50, metrics.AP_small) == (0, 0, 0)
    assert math.isnan(metrics.AP_medium)
    assert metrics.per_class == {"disc": 0}


def test_a_box_of_another_class_does_not_count():
    sample = make(0, ((0, 0, 20, 20), 0, False))
    wrong = replace(exact(sample), class_ids=np.array([1], np.int32))
    assert coco_metrics([sample], [wrong], SPEC).AP == 0


def test_the_iou_decides_which_threshold_is_met():
    # 100 x 64 of 100 x 100: IoU 0.64, so thresholds 0.50, 0.55 and 0.60 of the ten are met.
    sample = make(0, ((0, 0, 100, 100), 0, False))
    found = replace(exact(sample), boxes=np.array([[0, 0, 100, 64]], np.float32))
    metrics = coco_metrics([sample], [found], SPEC)
    found_points = [metrics.AP, metrics.AP50, metrics.AP75]
    assert found_points == pytest.approx([0.3, 1.0, 0.0])


def test_a_detection_of_an_ignored_box_is_neither_right_nor_wrong():
    sample = make(0, ((0, 0, 20, 20), 0, False), ((50, 50, 90, 90), 0, True))
    found = replace(exact(sample), scores=np.array([0.5, 0.9], np.float32))
    ignoring = coco_metrics([sample], [found], SPEC).to_dict()
    assert ignoring["AP"] == pytest.approx(1)
    counting = coco_metrics([replace(sample, ignore=np.zeros(2, bool))], [found.above(0.8)], SPEC).to_dict()
    # Half the boxes are found, without a mistake: precision 1 at 51 of COCO's 101 recalls.
    assert counting["AP"] == pytest.approx(51 / 101)


def test_pictures_without_any_box_that_counts_are_refused():
    ignored = make(0, ((0, 0, 20, 20), 0, True))
    for samples in ([ignored], [make(0)], []):
        with pytest.raises(DataError, match="None of the images has a labelled box"):
            coco_metrics(samples, [NOTHING] * len(samples), SPEC)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_result_that_is_missing_or_surplus_is_refused(count):
    samples = [make(number, ((0, 0, 20, 20), 0, False)) for number in range(2)]
    with pytest.raises(ValueError, match="2"):
        coco_metrics(samples, [exact(samples[0])] * count, SPEC)


def test_nothing_is_printed(capfd):
    sample = make(0, ((0, 0, 20, 20), 0, False))
    coco_metrics([sample], [exact(sample)], SPEC)
    assert capfd.readouterr().out == "", "stdout belongs to --json"


def test_the_coco_form_by_hand():
    samples = [make(5), make(3, ((1, 2, 11, 22), 2, True))]
    truth = coco_ground_truth(samples, SPEC)
    assert [(entry["id"], entry["file_name"]) for entry in truth["images"]] == [(1, "5.jpg"), (2, "3.jpg")]
    expected = {"id": 1, "image_id": 2, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 1}
    assert truth["annotations"] == [expected]
    assert [entry["name"] for entry in truth["categories"]] == ["disc", "bar", "cone"]
    rows = coco_results([NOTHING, exact(samples[1], 0.5)])
    assert rows == [{"image_id": 2, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.5}]
    json.dumps([truth, rows])


def test_json_has_null_for_nan():
    metrics = CocoMetrics(0.5, 0.6, 0.4, math.nan, 0.5, 0.5, {"disc": 0.5}, 3)
    raw = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert raw["AP_small"] is None
    assert (raw["AP"], raw["per_class"], raw["images"]) == (0.5, {"disc": 0.5}, 3)


def test_without_faster_coco_eval_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    sample = make(0, ((0, 0, 20, 20), 0, False))
    with pytest.raises(MissingDependency, match=r"pip install 'edge-effdet\[eval\]'"):
        coco_metrics([sample], [exact(sample)], SPEC)
