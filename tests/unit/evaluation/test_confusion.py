from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_effdet.artifacts import Detections
from edge_effdet.data.base import Sample
from edge_effdet.evaluation.confusion import (
    confusion_matrix,
    confusion_table,
    count_errors,
    most_confused_with,
    save_confusion_picture,
    view_confusion,
)

CLASSES = 3


def truth(*rows) -> Sample:
    """A sample of (x_min, y_min, x_max, y_max, class, ignore)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    boxes, class_ids, ignore = table[:, :4].astype(np.float32), table[:, 4].astype(np.int64), table[:, 5].astype(bool)
    return Sample("a", Path("a.jpg"), 100, 100, boxes, class_ids, ignore)


def found(*rows) -> Detections:
    """Detections of (x_min, y_min, x_max, y_max, score, class)."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(table[:, :4].astype(np.float32), table[:, 4].astype(np.float32), table[:, 5].astype(np.int32))


def matrix_of(sample: Sample, detections: Detections, **options) -> list[list[int]]:
    return confusion_matrix([sample], [detections], CLASSES, **options).tolist()


@st.composite
def boxes(draw) -> tuple[float, float, float, float]:
    x, y = draw(st.integers(0, 80)), draw(st.integers(0, 80))
    return x, y, x + draw(st.integers(1, 20)), y + draw(st.integers(1, 20))


@st.composite
def samples(draw) -> Sample:
    rows = [(*box, draw(st.integers(0, 2)), draw(st.booleans())) for box in draw(st.lists(boxes(), max_size=8))]
    return truth(*rows)


@st.composite
def detections(draw) -> Detections:
    score = st.floats(0, 1, width=32)
    return found(*((*box, draw(score), draw(st.integers(0, 2))) for box in draw(st.lists(boxes(), max_size=8))))


@given(st.lists(st.tuples(samples(), detections()), max_size=3))
@settings(deadline=None)
def test_each_row_sums_to_the_boxes_of_its_class(pairs):
    matrix = confusion_matrix([sample for sample, _ in pairs], [found for _, found in pairs], CLASSES)
    assert matrix.shape == (CLASSES + 1, CLASSES + 1) and matrix.dtype == np.int64
    for class_id in range(CLASSES):
        boxes = sum(int((sample.class_ids[~sample.ignore] == class_id).sum()) for sample, _ in pairs)
        assert matrix[class_id].sum() == boxes
    counted = sum(int((found.scores >= 0.3).sum()) for _, found in pairs)
    assert matrix[:, :-1].sum() <= counted, "a detection counts once, or not at all on an ignored region"
    assert matrix[-1, -1] == 0


@given(samples())
@settings(deadline=None)
def test_perfect_detections_are_on_the_diagonal(sample: Sample):
    """Also where one object has two labels, and where ignored boxes are found."""
    perfect = Detections(sample.boxes, np.full(len(sample.boxes), 0.9, np.float32), sample.class_ids.astype(np.int32))
    matrix = confusion_matrix([sample], [perfect], CLASSES)
    # A detection of an ignored box may take the place of that of a box right under it.
    if not sample.ignore.any():
        assert count_errors(matrix) == (0, 0, 0)
    assert matrix[-1].sum() == 0


def test_a_wrong_name_is_a_confusion_and_not_one_missed_and_one_false():
    sample = truth((0, 0, 10, 10, 0, False), (50, 50, 60, 60, 1, False), (80, 80, 90, 90, 1, False))
    detections = found((0, 0, 10, 11, 0.9, 0), (50, 50, 60, 60, 0.8, 2), (20, 20, 30, 30, 0.7, 1))
    matrix = confusion_matrix([sample], [detections], CLASSES)
    assert matrix.tolist() == [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]
    assert count_errors(matrix) == (1, 1, 1)
    assert most_confused_with(matrix, 1) == (2, 1)
    assert most_confused_with(matrix, 0) is None


def test_the_higher_score_has_the_first_choice_and_a_second_one_is_false():
    sample = truth((0, 0, 10, 10, 0, False))
    assert matrix_of(sample, found((0, 0, 10, 10, 0.5, 0), (0, 0, 10, 9, 0.9, 1)))[0] == [0, 1, 0, 0]
    assert matrix_of(sample, found((0, 0, 10, 10, 0.5, 0), (0, 0, 10, 9, 0.9, 1)))[3] == [1, 0, 0, 0]


def test_below_the_score_or_the_overlap_it_is_missed():
    sample = truth((0, 0, 10, 10, 0, False))
    assert matrix_of(sample, found((0, 0, 10, 10, 0.29, 0)))[0] == [0, 0, 0, 1]
    half = found((0, 0, 10, 5, 0.9, 0))
    assert matrix_of(sample, half)[0] == [1, 0, 0, 0], "an IoU of exactly 0.5 is enough, as in COCO"
    assert matrix_of(sample, half, iou_threshold=0.51) == [[0, 0, 0, 1], [0] * 4, [0] * 4, [1, 0, 0, 0]]


def test_an_ignored_box_is_neither_missed_nor_a_mistake():
    sample = truth((0, 0, 40, 40, 0, True))
    nothing = [[0] * 4] * 4
    assert matrix_of(sample, found()) == nothing
    assert matrix_of(sample, found((0, 0, 10, 10, 0.9, 1), (0, 0, 40, 40, 0.8, 0))) == nothing, "a crowd holds many"
    assert matrix_of(sample, found((35, 35, 60, 60, 0.9, 1)))[3] == [0, 1, 0, 0]


def many(count: int) -> tuple[np.ndarray, list[str]]:
    """A matrix of ``count`` classes of which every third has no box, and a few are confused."""
    matrix = np.zeros((count + 1, count + 1), np.int64)
    for index in range(count):
        if index % 3:
            matrix[index, index] = 50
            matrix[index, -1] = index
    matrix[1, 2], matrix[4, 3], matrix[-1, 5] = 9, 7, 3
    return matrix, [f"class {index}" for index in range(count)]


def test_few_classes_are_shown_as_they_are_without_those_that_have_no_box():
    matrix, names = many(6)
    view = view_confusion(matrix, names)
    assert view.row_names == ("class 1", "class 2", "class 4", "class 5", "background")
    # Class 3 has no box, but one of class 4 was taken for it.
    assert view.column_names == ("class 1", "class 2", "class 4", "class 5", "others", "missed")
    assert view.counts[2].tolist() == [0, 0, 50, 0, 7, 4]


def test_of_many_classes_the_most_confused_are_shown_and_nothing_is_lost():
    matrix, names = many(90)
    view = view_confusion(matrix, names)
    assert len(view.row_names) == 22 and view.row_names[-2:] == ("others", "background")
    assert {"class 1", "class 2", "class 4", "class 89"} <= set(view.row_names)
    assert view.counts.sum() == matrix.sum()


def test_the_table_has_the_names_and_counts():
    text = confusion_table(view_confusion(*many(6)))
    assert [line.split() for line in text.splitlines()[2:4]] == [
        ["class", "1", "50", "9", "0", "0", "0", "1"],
        ["class", "2", "0", "50", "0", "0", "0", "2"],
    ]
    assert text.splitlines()[-1].split() == ["background", "0", "0", "0", "3", "0", "-"]


@pytest.mark.parametrize("count", [1, 6, 90])
def test_the_picture_is_a_png_of_a_size_to_look_at(count: int, tmp_path: Path):
    matrix, names = many(count) if count > 1 else (np.array([[3, 1], [2, 0]]), ["$cat_{1$"])
    save_confusion_picture(tmp_path / "a" / "confusion.png", view_confusion(matrix, names), "title")
    with Image.open(tmp_path / "a" / "confusion.png") as picture:
        assert picture.format == "PNG"
        assert max(picture.size) < 2500
        assert np.asarray(picture.convert("L")).std() > 5
