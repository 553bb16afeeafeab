"""The bootstrap of a drop in AP, on matches that agree with COCO's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.data.base import Sample
from edge_effdet.evaluation.accuracy import compare_confidence
from edge_effdet.evaluation.intervals import average_precision, drop_interval
from edge_effdet.evaluation.matching import match_within_classes
from edge_effdet.evaluation.metrics import coco_metrics

SPEC = ModelSpec("tiny", (64, 64), ("bar", "disc"), (1, 2))


def scenes(seed: int, count: int, quality: float = 1.0) -> tuple[list[Sample], list[Detections]]:
    """Pictures with boxes, some of them ignored, and detections that hit some of them, doubles and inventions."""
    rng = np.random.default_rng(seed)
    samples, detections = [], []
    for number in range(count):
        size = int(rng.integers(1, 7))
        corners = rng.uniform(0, 150, (size, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(8, 50, (size, 2))], axis=1).astype(np.float32)
        classes = rng.integers(0, 2, size)
        samples.append(Sample(str(number), Path(f"{number}.png"), 200, 200, boxes, classes, rng.random(size) < 0.15))
        found = np.concatenate([boxes, boxes[: size // 2], rng.uniform(0, 100, (2, 4)).astype(np.float32)])
        found[-2:, 2:] = found[-2:, :2] + 20
        found = (found + rng.normal(0, 2.5 / quality, found.shape)).astype(np.float32)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        ids = np.concatenate([classes, classes[: size // 2], [0, 1]]).astype(np.int32)
        scores = rng.permutation(len(found)).astype(np.float32) / 1000 + rng.random(len(found)).astype(np.float32) * 0.9
        order = np.argsort(-scores)
        detections.append(Detections(found[order], scores[order], ids[order]))
    return samples, detections


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_each_image_once_is_cocos_ap(seed):
    samples, detections = scenes(seed, 8)
    samples[0].ignore[:] = False
    expected = coco_metrics(samples, detections, SPEC).AP
    found = average_precision(match_within_classes(samples, detections, 2), np.ones(8, np.int64))
    assert found == pytest.approx(expected, abs=1e-6)


def test_an_image_drawn_twice_counts_as_two():
    samples, detections = scenes(5, 6)
    drawn = np.array([2, 0, 1, 1, 0, 3])
    chosen = np.repeat(np.arange(6), drawn)
    matches = match_within_classes(samples, detections, 2)
    again = match_within_classes([samples[k] for k in chosen], [detections[k] for k in chosen], 2)
    expected = average_precision(again, np.ones(len(chosen), np.int64))
    assert average_precision(matches, drawn) == pytest.approx(expected, abs=1e-9)


def test_no_change_is_no_drop_and_a_worse_detector_is_seen():
    samples, good = scenes(1, 40, quality=4)
    _, bad = scenes(1, 40, quality=0.7)
    assert drop_interval(samples, good, good, 2, resamples=20) == (0, 0)
    low, high = drop_interval(samples, good, bad, 2, resamples=60)
    difference = 100 * (coco_metrics(samples, good, SPEC).AP - coco_metrics(samples, bad, SPEC).AP)
    assert 0 < low < difference < high
    assert drop_interval(samples, good, bad, 2, resamples=60) == (low, high)


def test_flattened_scores_are_noticed():
    _, before = scenes(2, 10)
    after = [Detections(d.boxes, (d.scores * 0.6).astype(np.float32), d.class_ids) for d in before]
    said = compare_confidence(before, after)
    assert said.flattened is True and compare_confidence(before, before).flattened is False
    assert said.mean_top_score.built == pytest.approx(0.6 * said.mean_top_score.reference, rel=1e-5)
    assert len(said.reference) == len(said.edges) - 1
