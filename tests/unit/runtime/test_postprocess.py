"""IoU, class-aware NMS compared with torchvision's, and scaling back to the original picture."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.errors import EngineError
from edge_effdet.runtime.nms import box_areas, iou_matrix, suppress_overlaps
from edge_effdet.runtime.postprocess import detections_from_outputs

ALL = 1 << 30


def random_boxes(seed, count, grid=40, classes=3):
    """Random boxes with whole coordinates, for which FP32 is exact, so that every reference finds the same IoUs.

    Thresholds are sums of a few powers of two for the same reason: 0.1 is not the same number in FP32 and FP64.
    """
    rng = np.random.default_rng(seed)
    corner = rng.integers(0, grid, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, grid, (count, 2))], axis=1).astype(np.float32)
    scores = rng.choice(np.linspace(0, 1, 4 * count + 2, dtype=np.float32), count, replace=True)
    return boxes, scores, rng.integers(0, classes, count).astype(np.int32)


def test_iou_by_hand():
    first = np.array([[0, 0, 2, 2], [5, 5, 4, 4]], np.float32)
    second = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [2, 0, 4, 2], [0, 0, 4, 1]], np.float32)
    np.testing.assert_allclose(iou_matrix(first, second), [[1 / 7, 1, 0, 2 / 6], [0, 0, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(box_areas(first), [4, 0])


def test_two_empty_boxes_do_not_overlap():
    point = np.array([[1, 1, 1, 1]], np.float32)
    assert iou_matrix(point, point) == 0


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_iou_is_symmetric_and_between_0_and_1(seed, count):
    boxes, *_ = random_boxes(seed, count)
    overlaps = iou_matrix(boxes, boxes)
    np.testing.assert_array_equal(overlaps, overlaps.T)
    np.testing.assert_array_equal(np.diag(overlaps), 1)
    assert (overlaps >= 0).all()
    assert (overlaps <= 1).all()


@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 200),
    threshold=st.sampled_from([0.125, 0.25, 0.5, 0.75]),
    grid=st.sampled_from([6, 40]),
)
@settings(max_examples=60, deadline=None)
def test_suppression_is_torchvisions(seed, count, threshold, grid):
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    boxes, scores, class_ids = random_boxes(seed, count, grid)
    expected = ops.batched_nms(*map(torch.from_numpy, (boxes, scores, class_ids.astype(np.int64))), threshold)
    kept = suppress_overlaps(boxes, scores, class_ids, threshold, ALL)
    np.testing.assert_array_equal(kept, expected.numpy())


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 80), limit=st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_what_is_kept_and_what_is_dropped(seed, count, limit):
    boxes, scores, class_ids = random_boxes(seed, count)
    kept = suppress_overlaps(boxes, scores, class_ids, 0.5, ALL)
    assert (np.diff(scores[kept]) <= 0).all()
    overlaps = iou_matrix(boxes, boxes) * (class_ids[:, None] == class_ids[None, :])
    within = overlaps[np.ix_(kept, kept)] - np.eye(len(kept))
    assert (within <= 0.5).all()
    dropped = np.setdiff1d(np.arange(count), kept)
    stronger = scores[kept][None, :] >= scores[dropped][:, None]
    assert ((overlaps[np.ix_(dropped, kept)] > 0.5) & stronger).any(axis=1).all()
    np.testing.assert_array_equal(suppress_overlaps(boxes, scores, class_ids, 0.5, limit), kept[:limit])
    again = suppress_overlaps(boxes[kept], scores[kept], class_ids[kept], 0.5, ALL)
    np.testing.assert_array_equal(again, np.arange(len(kept)))


def test_ties_are_kept_by_position_and_classes_do_not_touch():
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    scores = np.array([0.5, 0.5, 0.5], np.float32)
    assert suppress_overlaps(boxes, scores, np.array([0, 0, 1], np.int32)).tolist() == [0, 2]


def test_an_iou_at_the_threshold_is_kept():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 2]], np.float32)
    scores, class_ids = np.array([0.9, 0.8], np.float32), np.zeros(2, np.int32)
    assert suppress_overlaps(boxes, scores, class_ids, 0.5).tolist() == [0, 1]
    assert suppress_overlaps(boxes, scores, class_ids, 0.49).tolist() == [0]


def test_outputs_are_clipped_to_the_picture_and_scaled_back():
    boxes = np.array([[-8, 4, 32, 200], [80, 80, 120, 120]], np.float32)
    scores, class_ids = np.array([0.2, 0.9], np.float32), np.array([1, 0], np.int32)
    # A picture 100 high and 50 wide takes the left half of 64 x 64, so the second box lies outside.
    found = detections_from_outputs(boxes, scores, class_ids, (100, 50), (64, 64))
    np.testing.assert_allclose(found.boxes, [[50, 100, 50, 100], [0, 6.25, 50, 100]], rtol=1e-6)
    np.testing.assert_array_equal(found.class_ids, [0, 1])
    assert found.boxes.dtype == found.scores.dtype == np.float32


def test_low_scores_are_dropped_before_suppression_and_the_best_remain():
    boxes = np.array([[8 * i, 0, 8 * i + 8, 8] for i in range(6)], np.float32)
    scores = np.array([0.1, 0.6, 0.3, 0.5, 0.3, 0.2], np.float32)
    outputs = boxes, scores, np.zeros(6, np.int32)
    found = detections_from_outputs(*outputs, (64, 64), (64, 64), score_threshold=float(np.float32(0.3)), limit=3)
    np.testing.assert_array_equal(found.scores, np.array([0.6, 0.5, 0.3], np.float32))
    np.testing.assert_array_equal(found.boxes[:, 0], [8, 24, 16])
    assert len(detections_from_outputs(*outputs, (64, 64), (64, 64), score_threshold=0.7)) == 0


@pytest.mark.parametrize("original", [(1, 1), (1, 1000), (1000, 1)])
def test_no_candidates_are_no_detections(original):
    empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    assert len(detections_from_outputs(*empty, original, (64, 64))) == 0


def test_a_box_that_is_not_a_number_is_refused():
    boxes = np.array([[0, np.nan, 8, 8]], np.float32)
    with pytest.raises(EngineError, match="not finite"):
        detections_from_outputs(boxes, np.ones(1, np.float32), np.zeros(1, np.int32), (64, 64), (64, 64))
