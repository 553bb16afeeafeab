"""CSV files with one box in each row: where images are looked for, folds, and what is wrong in them."""

from __future__ import annotations

import numpy as np
import pytest

from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError

HEADER = "image_id,x_min,y_min,x_max,y_max,label"


def ids_of(dataset):
    return {split: [sample.image_id for sample in samples] for split, samples in dataset.splits.items()}


def test_a_folder_whose_files_tell_the_split(tmp_path, draw, write):
    for split, stem in (("train", "a"), ("train", "b"), ("test", "c")):
        draw(tmp_path / split / f"{stem}.jpg")
    write(tmp_path / "train.csv", f"{HEADER}\na.jpg,2,3,20,30,disc\na.jpg,1,1,5.5,5,bar\nb.jpg,2,3,20,30,disc\n")
    write(tmp_path / "test.csv", f"{HEADER}\nc.jpg,2,3,20,30,bar\n")
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.class_names, dataset.category_ids) == ("csv", ("bar", "disc"), (1, 2))
    assert ids_of(dataset) == {"test": ["c.jpg"], "train": ["a.jpg", "b.jpg"]}
    sample = dataset.splits["train"][0]
    np.testing.assert_array_equal(sample.boxes, [[2, 3, 20, 30], [1, 1, 5.5, 5]])
    assert sample.class_ids.tolist() == [1, 0]
    assert (sample.height, sample.width) == (40, 60)
    assert (dataset.problems, dataset.notes) == ((), ())


@pytest.mark.parametrize("place", ["a.jpg", "boxes/a.jpg", "images/a.jpg", "images/boxes/a.jpg"])
@pytest.mark.parametrize("image_id", ["a.jpg", "a"])
def test_images_are_found_with_and_without_suffix(tmp_path, draw, write, place, image_id):
    path = draw(tmp_path / place)
    dataset = read_dataset(write(tmp_path / "boxes.csv", f"{HEADER}\n{image_id},2,3,20,30,disc\n"))
    assert [sample.path for sample in dataset.all_samples()] == [path]


@pytest.mark.parametrize("image_id", ["left/cam.1.png", "left/cam.1"])
def test_an_image_id_may_be_a_path(tmp_path, draw, write, image_id):
    path = draw(tmp_path / "left" / "cam.1.png")
    dataset = read_dataset(write(tmp_path / "boxes.csv", f"{HEADER}\n{image_id},2,3,20,30,disc\n"))
    assert [sample.path for sample in dataset.all_samples()] == [path]


def test_one_file_that_names_no_split_holds_some_out(tmp_path, draw, write):
    rows = [f"{number}.png,2,3,20,30,disc" for number in range(10)]
    for number in range(10):
        draw(tmp_path / f"{number}.png")
    dataset = read_dataset(write(tmp_path / "labels.csv", "\n".join([HEADER, *rows])))
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 8, "val": 2}
    assert "2 of 10 images" in dataset.notes[0]


def test_one_id_for_two_images_becomes_their_paths(tmp_path, draw, write):
    for split in ("train", "val"):
        draw(tmp_path / split / "1.png")
        write(tmp_path / f"{split}.csv", f"{HEADER}\n1.png,2,3,20,30,disc\n")
    assert ids_of(read_dataset(tmp_path)) == {"train": ["train/1.png"], "val": ["val/1.png"]}


def test_an_empty_box_is_an_image_without_boxes(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    file = write(tmp_path / "train.csv", f"{HEADER}\na.png,2,3,20,30,disc\nb.png,,,,,\n\n")
    dataset = read_dataset(file)
    assert [sample.boxes.shape for sample in dataset.splits["train"]] == [(1, 4), (0, 4)]
    assert dataset.problems == ()


def test_columns_in_any_order_with_others_between(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    text = "\ufeffLabel, source ,x_min,y_max,y_min,x_max,image_id,width,height\ndisc,web,2,30,3,20,a.png,60,40\n"
    np.testing.assert_array_equal(
        read_dataset(write(tmp_path / "train.csv", text)).all_samples()[0].boxes, [[2, 3, 20, 30]]
    )


def test_width_and_height_in_place_of_the_far_corner(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    file = write(tmp_path / "train.csv", "image_id,x_min,y_min,width,height,label\na.png,2,3,18,27,disc\n")
    np.testing.assert_array_equal(read_dataset(file).all_samples()[0].boxes, [[2, 3, 20, 30]])


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("a.png,2,3,wide,30,disc", "bad_row"),
        ("a.png,2,3,20", "bad_row"),
        ("a.png,2,3,,30,disc", "bad_row"),
        ("a.png,2,3,20,30,", "bad_row"),
        (",2,3,20,30,disc", "bad_row"),
        ("a.png,2,3,nan,30,disc", "not_finite"),
        ("a.png,2,3,inf,30,disc", "not_finite"),
        ("a.png,20,3,20,30,disc", "degenerate"),
    ],
)
def test_a_wrong_row_is_skipped_and_its_line_named(tmp_path, draw, write, problems_of, caplog, row, kind):
    draw(tmp_path / "a.png")
    file = write(tmp_path / "train.csv", f"{HEADER}\na.png,1,1,5,5,disc\n\n{row}\n")
    dataset = read_dataset(file)
    np.testing.assert_array_equal(dataset.all_samples()[0].boxes, [[1, 1, 5, 5]])
    assert problems_of(dataset) == [(kind, "train.csv:4")]
    assert f"{file}:4: skipped" in caplog.text


def test_a_missing_and_a_broken_image_are_skipped(tmp_path, draw, write, problems_of):
    draw(tmp_path / "a.png")
    write(tmp_path / "b.png", "words")
    rows = "a.png,1,1,5,5,disc\nb.png,1,1,5,5,disc\nc.png,1,1,5,5,disc\n"
    dataset = read_dataset(write(tmp_path / "train.csv", f"{HEADER}\n{rows}"))
    assert ids_of(dataset) == {"train": ["a.png"]}
    assert problems_of(dataset) == [("unreadable_image", "b.png"), ("missing_image", "train.csv:4")]


@pytest.mark.parametrize("image_id", ["x" * 400, "x" * 400 + "/a", "a.png/b", ".", "images", "nul\0"])
def test_an_image_id_that_can_be_no_image_is_skipped(tmp_path, draw, write, image_id):
    draw(tmp_path / "a.png")
    dataset = read_dataset(write(tmp_path / "train.csv", f"{HEADER}\na.png,1,1,5,5,disc\n{image_id},1,1,5,5,disc\n"))
    assert ids_of(dataset) == {"train": ["a.png"]}
    assert [problem.kind in ("missing_image", "unreadable_image") for problem in dataset.problems] == [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column image_id.*which is empty.*write the header image_id,x_min"),
        (b"a.png,1,1,5,5,disc\n", r"has no column image_id, .*\(a\.png,1,1,5,5,disc\)"),
        (b"image_id,x_min,y_min,x_max,label\n", "has no column y_max in"),
        (b"image_id,x_min,y_min,x_max,y_max,label\n", "holds no row with a box and a label"),
        (b"image_id,x_min,y_min,x_max,y_max,label\n\xff\xfe,1,1,5,5,disc\n", "cannot be read.*UTF-8"),
    ],
)
def test_a_file_that_is_no_such_table_is_one_sentence(tmp_path, content, message):
    file = tmp_path / "train.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_dataset(file)


def test_a_table_of_another_kind_is_not_recognised(tmp_path, write):
    write(tmp_path / "results.csv", "epoch,loss\n1,0.5\n")
    with pytest.raises(DataError, match="no data set of a known format"):
        read_dataset(tmp_path)


@pytest.fixture
def folded(tmp_path, draw, write):
    """Six images in three folds, the last two with folds as pandas writes them (1.0), and a file test.csv."""
    rows = [f"{number}.png,2,3,20,30,disc,{number % 3}{'.0' if number > 3 else ''}" for number in range(6)]
    for number in range(7):
        draw(tmp_path / f"{number}.png")
    write(tmp_path / "boxes.csv", "\n".join([f"{HEADER},fold", *rows]))
    write(tmp_path / "test.csv", f"{HEADER},fold\n6.png,2,3,20,30,disc,0\n")
    return tmp_path


def test_folds_are_splits(folded):
    dataset = read_dataset(folded)
    expected = {
        "fold0": ["0.png", "3.png"],
        "fold1": ["1.png", "4.png"],
        "fold2": ["2.png", "5.png"],
        "test": ["6.png"],
    }
    assert ids_of(dataset) == expected
    assert dataset.folds == (0, 1, 2)
    chosen = ids_of(dataset.with_fold(1))
    assert chosen == {"train": ["0.png", "3.png", "2.png", "5.png"], "val": ["1.png", "4.png"], "test": ["6.png"]}
    with pytest.raises(DataError, match=r"no split 'train' but the folds 0, 1, 2; give `fold` K"):
        dataset.choose_split("train", ("train",))


def test_an_image_in_two_folds_is_named(tmp_path, write):
    file = write(tmp_path / "boxes.csv", f"{HEADER},fold\na.png,1,1,5,5,disc,0\na.png,2,2,9,9,disc,1\n")
    with pytest.raises(DataError, match=r"boxes\.csv:3 puts the image a\.png into fold 1, but line 2 into fold 0"):
        read_dataset(file)


@pytest.mark.parametrize("fold", ["", "a", "-1", "0.5", "²"])
def test_a_fold_that_is_no_number_is_a_bad_row(tmp_path, draw, write, problems_of, fold):
    for stem in "ab":
        draw(tmp_path / f"{stem}.png")
    rows = f"a.png,1,1,5,5,disc,0\nb.png,1,1,5,5,disc,{fold}\n"
    dataset = read_dataset(write(tmp_path / "boxes.csv", f"{HEADER},fold\n{rows}"))
    assert ids_of(dataset) == {"fold0": ["a.png"]}
    assert problems_of(dataset) == [("bad_row", "boxes.csv:3")]


@pytest.mark.data
def test_playing_cards(data_root):
    dataset = read_dataset(data_root / "playing_cards")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"test": 67, "train": 296}
    assert sum(len(sample.boxes) for sample in dataset.all_samples()) == 670
    assert dataset.class_names == ("ace", "jack", "king", "nine", "queen", "ten")
    assert dataset.problems == ()
