"""Views and weighted boxes fusion: what must hold of any boxes, and the traps of the package below."""

from __future__ import annotations

import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.errors import MissingDependency, UsageError
from edge_effdet.evaluation.ensemble import TTA_VIEWS, check_same_classes, fuse_detections

SIZE = (120, 200)
"""Height and width."""
NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))
PIXELS = 1e-3
"""Tolerance: ensemble-boxes averages shares of the picture's sides in float32."""


def found(*rows) -> Detections:
    """Detections of (x_min, y_min, x_max, y_max, score, class)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int32))


@st.composite
def apart(draw) -> Detections:
    """Boxes that do not overlap: each inside a cell of 20 x 20 of its own, with scores that differ."""
    cells = draw(st.lists(st.integers(0, 59), unique=True, max_size=12))
    scores = draw(st.lists(st.integers(1, 1000), unique=True, min_size=len(cells), max_size=len(cells)))
    rows = []
    for cell, score in zip(cells, sorted(scores, reverse=True), strict=True):
        x, y = cell % 10 * 20, cell // 10 * 20
        left, top = draw(st.integers(0, 9)), draw(st.integers(0, 9))
        width, height = draw(st.integers(1, 10)), draw(st.integers(1, 10))
        rows.append((x + left, y + top, x + left + width, y + top + height, score / 1000, draw(st.integers(0, 3))))
    return found(*rows)


@st.composite
def anything(draw) -> Detections:
    """Any boxes that ``Detections`` takes: outside the picture, without area, of score 0, in any order."""
    count = draw(st.integers(0, 8))
    number = st.floats(-300, 500, width=32)
    boxes = draw(st.lists(st.tuples(number, number, number, number), min_size=count, max_size=count))
    scores = draw(st.lists(st.floats(0, 1, width=32), min_size=count, max_size=count))
    class_ids = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), np.array(class_ids, np.int32)
    )


def assert_same(actual: Detections, expected: Detections) -> None:
    np.testing.assert_array_equal(actual.class_ids, expected.class_ids)
    np.testing.assert_allclose(actual.scores, expected.scores, atol=1e-6)
    np.testing.assert_allclose(actual.boxes, expected.boxes, atol=PIXELS)


@given(apart())
@settings(deadline=None)
def test_fusing_one_list_of_boxes_that_do_not_overlap_changes_nothing(detections: Detections):
    assert_same(fuse_detections([detections], SIZE), detections)


@given(apart(), st.integers(2, 4))
@settings(deadline=None)
def test_fusing_equal_lists_changes_nothing(detections: Detections, count: int):
    assert_same(fuse_detections([detections] * count, SIZE), detections)


@given(st.lists(anything(), max_size=4))
@settings(deadline=None)
def test_whatever_comes_in_what_goes_out_is_valid_sorted_inside_the_picture_and_without_a_warning(lists):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = fuse_detections(lists, SIZE)
    assert (np.diff(fused.scores) <= 0).all()
    assert ((fused.scores > 0) & (fused.scores <= 1)).all()
    assert (fused.boxes >= 0).all() and (fused.boxes <= [SIZE[1], SIZE[0]] * 2).all()
    assert (fused.boxes[:, 2:] >= fused.boxes[:, :2]).all()
    assert set(fused.class_ids.tolist()) <= {class_id for each in lists for class_id in each.class_ids.tolist()}


@given(anything(), st.sampled_from([view for view in TTA_VIEWS["all"] if view.flip is not None]))
@settings(deadline=None)
def test_mirroring_twice_changes_nothing(detections: Detections, view):
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    assert (view.show(image) != image).any()
    np.testing.assert_array_equal(view.show(view.show(image)), image)
    back = view.undo(view.undo(detections, image), image)
    assert_same(back, detections)


@pytest.mark.parametrize("view", TTA_VIEWS["all"], ids=lambda view: view.name)
def test_a_box_is_undone_to_where_the_pixels_are(view):
    image = np.zeros((*SIZE, 3), np.uint8)
    image[10:30, 50:90] = 255
    rows, columns = np.nonzero(view.show(image)[..., 0])
    seen = found((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1, 0.5, 0))
    np.testing.assert_array_equal(view.undo(seen, image).boxes, [[50, 10, 90, 30]])


def test_boxes_that_overlap_become_their_average_weighted_by_score():
    fused = fuse_detections([found((10, 10, 50, 50, 0.9, 1)), found((14, 10, 54, 50, 0.3, 1))], SIZE)
    assert_same(fused, found((11, 10, 51, 50, 0.6, 1)))


def test_what_only_some_lists_have_counts_less_and_an_empty_list_is_a_list():
    box = (10, 10, 50, 50, 0.8, 1)
    assert_same(fuse_detections([found(box), NOTHING, NOTHING, NOTHING], SIZE), found((*box[:4], 0.2, 1)))
    weighted = fuse_detections([found(box), NOTHING], SIZE, weights=[3, 1])
    assert_same(weighted, found((*box[:4], 0.6, 1)))


def test_boxes_of_other_classes_or_apart_stay_their_own():
    first, second = found((10, 10, 50, 50, 0.8, 0)), found((10, 10, 50, 50, 0.6, 1))
    assert_same(fuse_detections([first, second], SIZE), found((10, 10, 50, 50, 0.4, 0), (10, 10, 50, 50, 0.3, 1)))
    third = found((30, 10, 70, 50, 0.6, 0))
    assert len(fuse_detections([first, third], SIZE)) == 2
    assert len(fuse_detections([first, third], SIZE, iou_threshold=0.3)) == 1


def test_low_scores_can_be_left_out_before():
    first, second = found((10, 10, 50, 50, 0.8, 0)), found((14, 10, 54, 50, 0.1, 0))
    assert_same(fuse_detections([first, second], SIZE, skip_below=0.2), found((10, 10, 50, 50, 0.4, 0)))


def test_nothing_to_fuse_gives_nothing():
    assert len(fuse_detections([], SIZE)) == len(fuse_detections([NOTHING, NOTHING], SIZE)) == 0


def test_ties_do_not_depend_on_the_order_of_the_lists():
    first, second = found((10, 10, 50, 50, 0.8, 2)), found((80, 10, 120, 50, 0.8, 1))
    assert_same(fuse_detections([first, second], SIZE), fuse_detections([second, first], SIZE))


@pytest.mark.parametrize("weights", [[1.0], [1, 1, 1], [1, 0], [1, -1]])
def test_weights_that_do_not_fit_are_refused_and_not_ignored(weights, capsys):
    with pytest.raises(ValueError, match="2 lists need as many weights above 0"):
        fuse_detections([NOTHING, NOTHING], SIZE, weights=weights)
    assert capsys.readouterr().out == ""


def test_without_the_package_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ensemble_boxes", None)
    with pytest.raises(MissingDependency, match=r"pip install 'edge-effdet\[ensemble\]'"):
        fuse_detections([NOTHING], SIZE)


def test_models_of_the_same_classes_may_differ_in_size_and_others_are_refused_by_name():
    def spec(*names, size=64):
        return ModelSpec("tiny", (size, size), names, tuple(range(1, len(names) + 1)))

    check_same_classes([spec("cat", "dog"), spec("cat", "dog", size=128)], ["a", "b"])
    with pytest.raises(UsageError, match="class 1 is 'dog' in a and 'cow' in c"):
        check_same_classes([spec("cat", "dog"), spec("cat", "dog"), spec("cat", "cow")], ["a", "b", "c"])
    with pytest.raises(UsageError, match="a has 2 classes and b has 1"):
        check_same_classes([spec("cat", "dog"), spec("cat")], ["a", "b"])
