"""Darknet's layout of YOLO as CVAT, Roboflow and FiftyOne write it, and what is wrong in it."""

from __future__ import annotations

import pytest

from edge_effdet.data import darknet
from edge_effdet.data.raw import Certainty
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError

ROW = "0 0.5 0.5 0.2 0.2\n"
BOX = [38.4, 25.6, 57.6, 38.4]
STEMS = ("hen", "duck", "goose")
OBJ_DATA = "classes = 1\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n"


@pytest.fixture
def put(draw, write):
    """A function that writes three pictures of 96x64 into a folder, each with a label file beside it."""

    def put_pictures(folder, suffix="", rows=ROW):
        for stem in STEMS:
            draw(folder / f"{stem}{suffix}.jpg", (64, 96))
            write(folder / f"{stem}{suffix}.txt", rows)

    return put_pictures


@pytest.fixture
def cvat(tmp_path, put, write):
    """CVAT's "YOLO 1.1" of a task."""
    write(tmp_path / "obj.data", OBJ_DATA)
    write(tmp_path / "obj.names", "bird\n")
    write(tmp_path / "train.txt", "".join(f"data/obj_train_data/{stem}.jpg\n" for stem in STEMS))
    put(tmp_path / "obj_train_data")
    return tmp_path


def counts(dataset):
    return {split: len(samples) for split, samples in dataset.splits.items()}


def boxes(dataset):
    return [[round(float(side), 3) for side in box] for sample in dataset.all_samples() for box in sample.boxes]


def said(dataset):
    return " ".join([*dataset.notes, *(problem.text for problem in dataset.problems)])


@pytest.mark.parametrize("path", ["", "obj.data"])
def test_a_task_of_cvat(cvat, path):
    dataset = read_dataset(cvat / path)
    assert (dataset.kind, dataset.class_names, dataset.exporter) == ("darknet", ("bird",), "CVAT")
    assert counts(dataset) == {"train": 3}
    assert boxes(dataset) == [BOX] * 3
    assert dataset.problems == ()


def test_a_project_of_cvat_with_folders_and_track_ids(tmp_path, put, write):
    splits = ("Train", "Validation")
    lists = "".join(f"{split} = data/{split}.txt\n" for split in splits)
    write(tmp_path / "obj.data", f"classes = 2\n{lists}names = data/obj.names\nbackup = backup/\n")
    write(tmp_path / "obj.names", "bird\ncat\n")
    for split in splits:
        put(tmp_path / f"obj_{split}_data" / "cam1", split, f"{ROW.strip()} 7\n")
        names = [f"data/obj_{split}_data/cam1/{stem}{split}.jpg\n" for stem in STEMS]
        write(tmp_path / f"{split}.txt", "".join(names))
    dataset = read_dataset(tmp_path)
    assert counts(dataset) == {"train": 3, "val": 3}
    assert boxes(dataset) == [BOX] * 6
    assert "6 rows have a number behind the box" in said(dataset)


@pytest.mark.parametrize(
    "prefix", ["", "data/obj_train_data/", "/home/me/darknet/data/obj_train_data/", "C:\\x\\obj_train_data\\"]
)
def test_lists_with_other_prefixes(cvat, write, prefix):
    write(cvat / "train.txt", "\ufeff" + "\r\n".join(f"{prefix}{stem}.jpg" for stem in STEMS))
    dataset = read_dataset(cvat)
    assert (counts(dataset), dataset.problems) == ({"train": 3}, ())


def test_an_export_without_its_pictures_says_where_was_looked(cvat):
    for stem in STEMS:
        (cvat / "obj_train_data" / f"{stem}.jpg").unlink()
    with pytest.raises(DataError, match="3 missing_image") as refused:
        read_dataset(cvat)
    assert f"{cvat / 'train.txt'}:1: skipped the image data/obj_train_data/hen.jpg, which is not there" in str(
        refused.value
    )
    assert f"pictures were looked for in {cvat}" in str(refused.value)


def test_what_obj_data_names_and_is_not_there_is_told(cvat, write, problems_of):
    write(cvat / "obj.data", OBJ_DATA.replace("classes = 1", "classes = 2") + "valid = data/valid.txt\n")
    dataset = read_dataset(cvat)
    assert counts(dataset) == {"train": 3}
    assert sorted(problems_of(dataset)) == [("bad_row", "obj.data:1"), ("missing_image", "obj.data:5")]


@pytest.mark.parametrize(
    ("name", "message"), [("obj.names", "names the list of classes data/obj.names, which is not there")]
)
def test_a_missing_list_of_classes_is_refused(cvat, name, message):
    (cvat / name).unlink()
    with pytest.raises(DataError, match=message):
        read_dataset(cvat)


def test_an_empty_list_of_classes_is_refused(cvat, write):
    write(cvat / "obj.names", "\n")
    with pytest.raises(DataError, match="holds no name of a class"):
        read_dataset(cvat)


def test_a_blank_line_in_the_list_of_classes_has_a_number(cvat, write):
    write(cvat / "obj.names", "bird\n\ncat\n")
    write(cvat / "obj_train_data" / "hen.txt", "2 0.5 0.5 0.2 0.2\n")
    dataset = read_dataset(cvat)
    assert (dataset.class_names, dataset.category_ids) == (("bird", "cat"), (0, 2))
    assert sorted(int(sample.class_ids[0]) for sample in dataset.all_samples()) == [0, 0, 1]


def test_a_background_picture_has_an_empty_file_and_a_broken_row_is_told(cvat, write, problems_of):
    write(cvat / "obj_train_data" / "hen.txt", "")
    write(cvat / "obj_train_data" / "duck.txt", f"{ROW}0 wide 0.5 0.2 0.2\n3 0.5 0.5 0.2 0.2\n")
    dataset = read_dataset(cvat)
    assert [len(sample.boxes) for sample in dataset.splits["train"]] == [0, 1, 1]
    assert problems_of(dataset) == [
        ("bad_row", "obj_train_data/duck.txt:2"),
        ("unknown_class", "obj_train_data/duck.txt:3"),
    ]


def test_classes_that_are_counted_from_1_are_told(cvat, write):
    write(cvat / "obj.names", "bird\ncat\n")
    for stem, number in zip(STEMS, (1, 1, 2), strict=True):
        write(cvat / "obj_train_data" / f"{stem}.txt", f"{number} 0.5 0.5 0.2 0.2\n")
    assert "numbered from 1 to 2 in the labels" in said(read_dataset(cvat))


@pytest.mark.parametrize("folders", [("train", "valid", "test"), ("train",)])
def test_folders_of_roboflow(tmp_path, put, write, folders):
    write(tmp_path / "README.roboflow.txt", "birds - v1\n")
    for folder in folders:
        write(tmp_path / folder / "_darknet.labels", "bird")
        put(tmp_path / folder, f"_jpg.rf.1{folder}")
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.exporter, dataset.class_names) == ("darknet", "Roboflow", ("bird",))
    assert boxes(dataset) == [BOX] * 3 * len(folders)
    assert list(counts(dataset)) == ["train", "val", "test"][: len(folders)]


def test_one_folder_of_roboflow_has_no_split(tmp_path, put, write):
    write(tmp_path / "train" / "_darknet.labels", "bird")
    put(tmp_path / "train")
    dataset = read_dataset(tmp_path / "train")
    assert sum(counts(dataset).values()) == 3
    assert "names no splits" in said(dataset)


def test_a_label_without_its_picture_is_told(tmp_path, put, write, problems_of):
    write(tmp_path / "train" / "_darknet.labels", "bird")
    put(tmp_path / "train")
    (tmp_path / "train" / "hen.jpg").unlink()
    dataset = read_dataset(tmp_path)
    assert problems_of(dataset) == [("missing_image", "train/hen.txt:1")]


def test_folders_whose_classes_contradict_each_other_are_refused(tmp_path, put, write):
    for folder, text in (("train", "bird\ncat\n"), ("valid", "cat\nbird\n")):
        write(tmp_path / folder / "_darknet.labels", text)
        put(tmp_path / folder)
    with pytest.raises(DataError, match="give the classes other names or another order"):
        read_dataset(tmp_path)


def test_fiftyone(tmp_path, put, write):
    write(tmp_path / "obj.names", "bird\n")
    write(tmp_path / "images.txt", "".join(f"data/{stem}.jpg\n" for stem in STEMS))
    put(tmp_path / "data", rows=f"{ROW.strip()} 0.93\n")
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.exporter) == ("darknet", "FiftyOne")
    assert set(counts(dataset)) == {"train", "val"}
    assert boxes(dataset) == [BOX] * 3


@pytest.mark.parametrize("folders", [("train", "val"), ("images/train", "images/val")])
def test_names_without_lists_are_read_by_folders(tmp_path, put, write, folders):
    write(tmp_path / "birds.names", "bird\n")
    for folder in folders:
        put(tmp_path / folder, folder.rpartition("/")[2])
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, counts(dataset)) == ("darknet", {"train": 3, "val": 3})


def test_labels_in_their_own_folder_as_darknet_itself_wants_them(tmp_path, draw, write):
    write(tmp_path / "obj.data", OBJ_DATA)
    write(tmp_path / "obj.names", "bird\n")
    write(tmp_path / "train.txt", "VOC2007/JPEGImages/hen.jpg\nimages/duck.jpg\n")
    for images, labels, stem in (("VOC2007/JPEGImages", "VOC2007/labels", "hen"), ("images", "labels", "duck")):
        draw(tmp_path / images / f"{stem}.jpg", (64, 96))
        write(tmp_path / labels / f"{stem}.txt", ROW)
    assert boxes(read_dataset(tmp_path)) == [BOX] * 2


def test_other_folders_are_not_recognised(tmp_path, draw, write):
    draw(tmp_path / "a.jpg")
    write(tmp_path / "some.data", "a = 1\n")
    write(tmp_path / "people.names", "Anna\n")
    write(tmp_path / "a.txt", "a caption\n")
    assert darknet.recognises(tmp_path) == Certainty.NO
    assert darknet.recognises(tmp_path / "some.data") == Certainty.NO
    assert darknet.recognises(tmp_path / "a.txt") == Certainty.NO
    write(tmp_path / "a.txt", ROW)
    assert darknet.recognises(tmp_path) == Certainty.LIKELY
