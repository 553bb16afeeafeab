"""The kinds of suppression, compared with effdet, with ensemble-boxes and with each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.runtime.nms import (
    NMS_KINDS,
    SOFT_LINEAR_THRESHOLD,
    decay_overlaps,
    fuse_overlaps,
    iou_matrix,
    select_boxes,
    suppress_overlaps,
)
from tests import tolerances

ALL = 1 << 30


def candidates(seed, count, grid=60, classes=3):
    """Random boxes with different scores, so that every reference takes them in the same order."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, grid, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, grid, (count, 2))], axis=1).astype(np.float32)
    scores = rng.permutation(np.linspace(0.05, 0.95, count)).astype(np.float32)
    return boxes, scores, rng.integers(0, classes, count).astype(np.int32)


def plain_greedy(boxes, scores, class_ids, threshold):
    """Greedy suppression in its simplest form, one candidate after the other."""
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        rivals = [other for other in kept if class_ids is None or class_ids[other] == class_ids[index]]
        if not rivals or iou_matrix(boxes[index][None], boxes[rivals]).max() <= threshold:
            kept.append(index)
    return kept


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 700])
@pytest.mark.parametrize("agnostic", [False, True])
def test_blocks_change_nothing(count, agnostic):
    boxes, scores, class_ids = candidates(count, count, grid=400)
    known = None if agnostic else class_ids
    expected = plain_greedy(boxes, scores, known, 0.5)
    for limit in (1, 100, ALL):
        assert suppress_overlaps(boxes, scores, known, 0.5, limit).tolist() == expected[:limit]


def test_class_agnostic_suppression_is_across_classes():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9]], np.float32)
    outputs = boxes, np.array([0.9, 0.8], np.float32), np.array([0, 1], np.int32)
    assert len(select_boxes(*outputs, kind="class-aware")[1]) == 2
    assert len(select_boxes(*outputs, kind="class-agnostic")[1]) == 1


@pytest.mark.parametrize("gaussian", [True, False])
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60))
@settings(max_examples=20, deadline=None)
def test_soft_nms_is_effdets(gaussian, seed, count):
    torch = pytest.importorskip("torch")
    soft_nms = pytest.importorskip("effdet.soft_nms")
    boxes, scores, class_ids = candidates(seed, count, classes=1)
    arrays = [torch.from_numpy(array) for array in (boxes, scores)]
    kept, decayed = decay_overlaps(boxes, scores, class_ids, gaussian, score_threshold=0.001, limit=ALL)
    expected, their_scores = soft_nms.soft_nms(
        *arrays, method_gaussian=gaussian, sigma=0.5, iou_threshold=SOFT_LINEAR_THRESHOLD, score_threshold=0.001
    )
    assert len(kept) == len(expected)
    np.testing.assert_allclose(decayed, their_scores.numpy(), atol=tolerances.SCORE)
    # Boxes whose scores decay to about the same value may change places.
    assert set(kept.tolist()) == set(expected.tolist())


@pytest.mark.parametrize("gaussian", [True, False])
def test_soft_nms_leaves_the_best_and_other_classes_alone(gaussian):
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    scores, class_ids = np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 0, 1], np.int32)
    kept, decayed = decay_overlaps(boxes, scores, class_ids, gaussian)
    assert kept.tolist()[:2] == [0, 2]
    np.testing.assert_array_equal(decayed[:2], scores[[0, 2]])
    assert decayed[2] < 0.2
    assert len(decay_overlaps(boxes, scores, class_ids, gaussian, limit=1)[0]) == 1
    assert len(decay_overlaps(boxes, scores, class_ids, gaussian, score_threshold=0.5)[0]) == 2


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 40))
@settings(max_examples=20, deadline=None)
def test_fusion_is_ensemble_boxes_with_the_highest_score(seed, count):
    ensemble_boxes = pytest.importorskip("ensemble_boxes")
    boxes, scores, class_ids = candidates(seed, count)
    expected, their_scores, their_classes = ensemble_boxes.weighted_boxes_fusion(
        [boxes / 128], [scores], [class_ids], iou_thr=0.5, skip_box_thr=0.0, conf_type="max"
    )
    fused, best, classes = fuse_overlaps(boxes, scores, class_ids, 0.5, ALL)
    assert len(fused) == len(expected)
    order = np.lexsort((expected[:, 0], -their_scores))
    np.testing.assert_allclose(best, their_scores[order], atol=1e-6)
    np.testing.assert_array_equal(classes, their_classes[order])
    np.testing.assert_allclose(fused, expected[order] * 128, atol=0.01)


def test_fusion_averages_by_score():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 6], [50, 50, 60, 60]], np.float32)
    scores, class_ids = np.array([0.6, 0.2, 0.7], np.float32), np.zeros(3, np.int32)
    fused, best, _ = fuse_overlaps(boxes, scores, class_ids)
    np.testing.assert_allclose(best, [0.7, 0.6])
    np.testing.assert_allclose(fused, [[50, 50, 60, 60], [0, 0, 10, 9]], rtol=1e-6)


@pytest.mark.parametrize("kind", NMS_KINDS)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 50), limit=st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_every_kind_gives_the_best_first_and_no_more_than_asked(kind, seed, count, limit):
    boxes, scores, class_ids = candidates(seed, count)
    found, best, classes = select_boxes(boxes, scores, class_ids, kind, 0.5, limit)
    assert len(found) == len(best) == len(classes) <= min(limit, count)
    assert (np.diff(best) <= 0).all()
    if count:
        assert best[0] == scores.max()
        assert found.min() >= boxes.min() - 1e-3
        assert found.max() <= boxes.max() + 1e-3
