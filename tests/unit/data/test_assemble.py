"""From what a reader found to samples: one policy for all formats, and mistakes that only the whole set shows."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data.assemble import assemble
from edge_effdet.data.base import Problem
from edge_effdet.data.patterns import require_trainable
from edge_effdet.data.raw import RawBox, RawDataset, RawPicture
from edge_effdet.errors import DataError, UsageError


@pytest.fixture
def make(tmp_path):
    """A set whose pictures of 96 x 64 pixels have these boxes each."""

    def of(*pictures, kind="csv", label="bird", **fields):
        found = []
        for number, boxes in enumerate(pictures):
            path = tmp_path / f"{number}.png"
            Image.new("RGB", (96, 64)).save(path)
            rows = [RawBox(box, label, where=f"a:{number}") for box in boxes]
            found.append(RawPicture(str(number), path, f"a:{number}", rows))
        return RawDataset(tmp_path, kind, [("train", found)], **fields)

    return of


def said(dataset):
    return {problem.kind: problem.text for problem in dataset.problems}


GOOD = (10.0, 10.0, 40.0, 40.0)


def test_a_picture_that_lost_all_its_rows_is_left_out_and_one_without_any_is_background(make):
    raw = make([GOOD], [], [(200.0, 10.0, 220.0, 20.0)], [(float("nan"), 0.0, 1.0, 1.0)], [GOOD, (0.0, 0.0, 0.0, 5.0)])
    raw.parts[0][1][1].rejected = 0
    dataset = assemble(raw)
    assert [sample.image_id for sample in dataset.splits["train"]] == ["0", "1", "4"]
    assert "2 pictures have lost all rows" in said(dataset)["rows_lost"]


def test_a_row_that_the_reader_rejected_counts(make):
    raw = make([GOOD], [])
    raw.parts[0][1][1].rejected = 1
    raw.problems.append(Problem("bad_row", "a:1", "skipped a row"))
    assert len(assemble(raw).splits["train"]) == 1


def test_fractions_are_told_and_read_where_that_is_asked_for(make):
    boxes = [[(0.1, 0.15, 0.4, 0.55)]] * 3
    dataset = assemble(make(*boxes))
    assert "3 of 3 boxes have all numbers from 0 to 1" in said(dataset)["fractions"]
    assert "`boxes_in` fractions" in said(dataset)["fractions"]
    with pytest.raises(DataError, match=r"3 of 3 boxes are smaller than a pixel.*`boxes_in` fractions"):
        require_trainable(dataset.splits["train"])
    dataset = assemble(make(*boxes), "fractions")
    assert "fractions" not in said(dataset)
    np.testing.assert_allclose(dataset.splits["train"][0].boxes, [[9.6, 9.6, 38.4, 35.2]], rtol=1e-6)
    require_trainable(dataset.splits["train"])


def test_one_small_box_is_no_pattern(make):
    dataset = assemble(make([GOOD, (0.0, 0.0, 1.0, 1.0)], [GOOD]))
    assert "fractions" not in said(dataset)


def test_swapped_corners_are_one_problem_with_their_count(make):
    dataset = assemble(make(*[[(40.0, 40.0, 10.0, 10.0)]] * 3, [GOOD]))
    assert "3 of 4 boxes have swapped corners" in said(dataset)["swapped"]
    assert [problem.kind for problem in dataset.problems].count("swapped") == 1
    assert len(dataset.splits["train"]) == 1


def test_a_set_of_swapped_corners_alone_says_so_and_not_that_they_have_no_area(make):
    with pytest.raises(DataError, match=r"no usable picture left.*swapped corners") as refused:
        assemble(make(*[[(40.0, 40.0, 10.0, 10.0)]] * 3))
    assert "degenerate" not in str(refused.value)


def test_a_second_corner_in_place_of_width_and_height(make):
    # As a COCO reader gives them: x + "width".
    corners = [(50.0, 30.0, 90.0, 60.0), (40.0, 20.0, 80.0, 50.0), (60.0, 10.0, 95.0, 40.0)]
    read = [[(x, y, x + right, y + bottom)] for x, y, right, bottom in corners]
    dataset = assemble(make(*read, kind="coco"))
    assert "3 of 3 boxes reach beyond their picture" in said(dataset)["corners_as_size"]
    dataset = assemble(make(*read, kind="coco"), "corners")
    assert "corners_as_size" not in said(dataset)
    assert [tuple(sample.boxes[0]) for sample in dataset.splits["train"]] == corners


def test_classes_that_are_counted_from_1(make):
    raw = make([GOOD], [GOOD], kind="yolo", label=1, classes={0: "bird"})
    # As a second picture with the last number shows.
    with pytest.raises(DataError, match="no usable picture left"):
        assemble(raw)
    raw = make([GOOD], [GOOD], kind="yolo", label=1, classes={0: "bird", 1: "fish"})
    raw.parts[0][1][1].boxes[0] = RawBox(GOOD, 2, where="a:1")
    dataset = assemble(raw)
    assert "numbered from 1 to 2 in the labels and from 0 to 1" in said(dataset)["class_numbers"]


def test_two_names_for_one_picture_are_told(make):
    raw = make([GOOD])
    (picture,) = raw.parts[0][1]
    raw.parts[0][1].append(RawPicture("cam2/0", picture.path, "a:9", [RawBox(GOOD, "bird")]))
    assert "2 entries of the annotations mean this one picture: 0, cam2/0" in said(assemble(raw))["named_twice"]


def test_a_failure_names_the_first_reasons_and_where_was_looked(make, tmp_path):
    raw = make(searched="/data/images")
    raw.problems += [Problem("missing_image", f"a:{n}", f"skipped the image {n}.jpg") for n in range(5)]
    with pytest.raises(DataError) as refused:
        assemble(raw)
    text = str(refused.value)
    assert "5 missing_image" in text and "a:2: skipped the image 2.jpg and 2 more" in text
    assert "a:3" not in text and "pictures were looked for in /data/images" in text


def test_an_unknown_way_of_writing_boxes_is_refused(make):
    with pytest.raises(UsageError, match="There is no `boxes_in` 'inches'"):
        assemble(make([GOOD]), "inches")
