"""YOLO folders as Ultralytics and the exporters lay them out, and what is wrong in them."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError, MissingDependency

YAML = "train: images/train\nval: images/val\nnames: [bar, disc]\n"
ROW = "1 0.5 0.5 0.5 0.25\n"
BOX = [15, 15, 45, 25]


@pytest.fixture
def root(tmp_path, draw, write):
    """Two training images and one for validation, each with a disc in its middle."""
    write(tmp_path / "data.yaml", YAML)
    for split, stem in (("train", "a"), ("train", "b"), ("val", "c")):
        draw(tmp_path / "images" / split / f"{stem}.jpg")
        write(tmp_path / "labels" / split / f"{stem}.txt", ROW)
    return tmp_path


def ids_of(dataset):
    return {split: [sample.image_id for sample in samples] for split, samples in dataset.splits.items()}


@pytest.mark.parametrize("name", ["", "data.yaml"])
def test_a_folder_and_its_yaml_are_the_same(root, name):
    dataset = read_dataset(root / name)
    assert (dataset.kind, dataset.class_names, dataset.category_ids) == ("yolo", ("bar", "disc"), (0, 1))
    assert ids_of(dataset) == {"train": ["a", "b"], "val": ["c"]}
    sample = dataset.splits["val"][0]
    np.testing.assert_allclose(sample.boxes, [BOX])
    assert (sample.class_ids.tolist(), sample.height, sample.width) == ([1], 40, 60)
    assert (dataset.problems, dataset.notes) == ((), ())


@pytest.mark.parametrize(
    "text",
    [
        "path: .\n" + YAML,
        "path: images\ntrain: train\nval: val\nnames: {0: bar, 1: disc}\nnc: 2\n",
        "path: /nowhere\n" + YAML,
        "train: ../images/train\nval: ./images/val/\nnames:\n  0: bar\n  1: disc\n",
        "train: [images/train]\nval: [images/val]\nnames: ['bar', 'disc']\n",
        "train: train.txt\nval: lists/val.txt\nnames: [bar, disc]\n",
    ],
)
def test_the_ways_to_name_images(root, write, text):
    write(root / "data.yaml", text)
    write(root / "train.txt", "./images/train/a.jpg\nimages/train/b.jpg\n\n")
    write(root / "lists" / "val.txt", f"{root}/images/val/c.jpg\n")
    dataset = read_dataset(root)
    assert ids_of(dataset) == {"train": ["a", "b"], "val": ["c"]}
    assert [sample.class_ids.tolist() for sample in dataset.all_samples()] == [[1], [1], [1]]
    assert dataset.class_names == ("bar", "disc")


def test_a_list_of_folders_is_joined(root, write):
    write(root / "data.yaml", "train: [images/train, images/val]\nnames: [bar, disc]\n")
    assert ids_of(read_dataset(root)) == {"train": ["a", "b", "c"]}


def test_a_folder_as_roboflow_lays_it_out(tmp_path, draw, write):
    """Roboflow's paths begin with ../ although the folders are beside the file, and the folder test may be missing."""
    for split in ("train", "valid"):
        draw(tmp_path / split / "images" / "1.jpg")
        write(tmp_path / split / "labels" / "1.txt", ROW)
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['bar', 'disc']\n"
    write(tmp_path / "data.yaml", text)
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset) == {"train": ["train/images/1.jpg"], "val": ["valid/images/1.jpg"]}
    assert [(problem.kind, problem.where) for problem in dataset.problems] == [
        ("missing_image", f"{tmp_path / 'data.yaml'}:3")
    ]


def test_labels_may_stand_beside_the_images(tmp_path, draw, write):
    draw(tmp_path / "photos" / "a.jpg")
    write(tmp_path / "photos" / "a.txt", ROW)
    write(tmp_path / "dataset.yaml", "train: photos\nnc: 2\n")
    dataset = read_dataset(tmp_path)
    np.testing.assert_allclose(dataset.splits["train"][0].boxes, [BOX])
    assert dataset.class_names == ("class_0", "class_1")


def test_only_the_last_folder_named_images_is_exchanged(tmp_path, draw, write):
    root = tmp_path / "images" / "set"
    draw(root / "images" / "a.jpg")
    write(root / "labels" / "a.txt", ROW)
    write(root / "data.yaml", "train: images\nnames: [bar, disc]\n")
    assert len(read_dataset(root).splits["train"][0].boxes) == 1


def test_an_image_without_a_label_file_or_row_has_no_boxes(root, write, draw):
    draw(root / "images" / "train" / "d.jpg")
    write(root / "labels" / "train" / "b.txt", "\n")
    dataset = read_dataset(root)
    assert [len(sample.boxes) for sample in dataset.splits["train"]] == [1, 0, 0]
    assert dataset.problems == ()


def test_an_outline_becomes_its_bounding_box(root, write):
    write(root / "labels" / "val" / "c.txt", "0 0.25 0.5 0.5 0.25 0.75 0.75\n1 0.1 0.1 0.2 0.1 0.2 0.3 0.1 0.3\n")
    sample = read_dataset(root).splits["val"][0]
    np.testing.assert_allclose(sample.boxes, [[15, 10, 45, 30], [6, 4, 12, 12]], atol=1e-5)


def test_keypoints_behind_a_box_are_no_outline(root, write):
    write(root / "data.yaml", YAML + "kpt_shape: [1, 2]\n")
    write(root / "labels" / "val" / "c.txt", "1 0.5 0.5 0.5 0.25 0.9 0.9\n")
    np.testing.assert_allclose(read_dataset(root).splits["val"][0].boxes, [BOX])


def test_numbers_of_classes_with_gaps(root, write):
    write(root / "data.yaml", "val: images/val\nnames: {7: disc, 1: bar}\n")
    write(root / "labels" / "val" / "c.txt", "7 0.5 0.5 0.5 0.25\n1.0 0.5 0.5 0.2 0.2\n")
    dataset = read_dataset(root)
    assert (dataset.class_names, dataset.category_ids) == (("bar", "disc"), (1, 7))
    assert dataset.splits["val"][0].class_ids.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("1 0.5 0.5 wide 0.25", "bad_row"),
        ("disc 0.5 0.5 0.5 0.25", "bad_row"),
        ("1.5 0.5 0.5 0.5 0.25", "bad_row"),
        ("nan 0.5 0.5 0.5 0.25", "bad_row"),
        ("1 0.5 0.5 0.5", "bad_row"),
        ("1", "bad_row"),
        ("1 0.5 0.5 0.5 0.25 0.9", "bad_row"),
        ("1 30 20 30 10", "bad_row"),
        ("1 nan 0.5 0.5 0.25", "not_finite"),
        ("1 0.1 0.1 0.2 inf 0.2 0.3", "not_finite"),
        ("2 0.5 0.5 0.5 0.25", "unknown_class"),
        ("-1 0.5 0.5 0.5 0.25", "unknown_class"),
        ("1 0.5 0.5 0 0.25", "degenerate"),
    ],
)
def test_a_wrong_row_is_skipped_and_its_line_named(root, write, problems_of, caplog, row, kind):
    label = write(root / "labels" / "val" / "c.txt", f"\n{ROW}{row}\n")
    dataset = read_dataset(root)
    np.testing.assert_allclose(dataset.splits["val"][0].boxes, [BOX])
    assert problems_of(dataset) == [(kind, "labels/val/c.txt:3")]
    assert f"{label}:3: skipped" in caplog.text


def test_a_box_beyond_the_edge_is_clipped_and_recorded(root, write, problems_of):
    write(root / "labels" / "val" / "c.txt", "1 0.9 0.5 0.5 0.25\n")
    dataset = read_dataset(root)
    np.testing.assert_allclose(dataset.splits["val"][0].boxes, [[39, 15, 60, 25]])
    assert problems_of(dataset) == [("outside", "labels/val/c.txt:1")]


def test_labels_without_an_image_and_listed_images_that_are_missing_are_named(root, write, problems_of):
    (root / "images" / "train" / "b.jpg").unlink()
    write(root / "labels" / "train" / "classes.txt", "bar\ndisc\n")
    write(root / "data.yaml", YAML + "test: test.txt\n")
    write(root / "test.txt", "images/val/c.jpg\nimages/val/d.jpg\n")
    dataset = read_dataset(root)
    assert ids_of(dataset) == {"train": ["a"], "val": ["c"], "test": ["c"]}
    assert problems_of(dataset) == [("missing_image", "labels/train/b.txt:1"), ("missing_image", "test.txt:2")]


def test_a_broken_image_is_skipped(root, write, problems_of):
    write(root / "images" / "train" / "b.jpg", "words")
    dataset = read_dataset(root)
    assert ids_of(dataset)["train"] == ["a"]
    assert problems_of(dataset) == [("unreadable_image", "images/train/b.jpg")]


def test_a_count_that_disagrees_with_the_names_is_told(root, write, problems_of):
    write(root / "data.yaml", YAML + "nc: 3\n")
    dataset = read_dataset(root)
    assert dataset.class_names == ("bar", "disc")
    assert problems_of(dataset) == [("bad_row", "data.yaml:4")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: [bar, disc\ntrain: x", r"data\.yaml is not whole YAML \(line 2: "),
        ("names: !!python/object/apply:os.system [ls]\ntrain: x\n", "is not whole YAML"),
        ("just words: [names\x00", "is not whole YAML"),
        ("- names: x\n", "holds no keys like names and train"),
        ("train: images/train\nnames: disc\n", r"no usable names of classes \('disc'\)"),
        ("train: images/train\nnames: []\n", "no usable names of classes"),
        ("train: images/train\nnc: 0\n", r"no usable names of classes \(None\)"),
        ("names: [bar, disc]\n", "leads to no images: it names no train, val or test"),
        ("names: [bar]\ntrain: absent\n", "leads to no images: train names absent, which is not there"),
        ("names: [bar]\nval: empty\n", "leads to no images: val names empty, which holds no image"),
    ],
)
def test_a_yaml_file_that_is_no_use_is_one_sentence(root, write, text, message):
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        read_dataset(write(root / "data.yaml", text))


def test_without_pyyaml_the_extra_is_named(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependency, match=r"PyYAML is not installed.*edge-effdet\[train\]"):
        read_dataset(root)
