"""YOLO folders as Ultralytics and the exporters lay them out, and what is wrong in them."""

from __future__ import annotations

import json
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data import yolo
from edge_effdet.data.raw import Certainty
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
    assert "1 picture without a label file counts as background" in " ".join(dataset.notes)


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
        ("1 0.5 0.5 -0.5 0.25", "bad_row"),
        ("1 30 20 30 10", "bad_row"),
        ("1 nan 0.5 0.5 0.25", "not_finite"),
        ("1 0.1 0.1 0.2 inf 0.2 0.3", "not_finite"),
        ("5 0.5 0.5 0.5 0.25", "unknown_class"),
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
    assert sorted(problems_of(dataset)) == [("missing_image", "labels/train/b.txt:1"), ("missing_image", "test.txt:2")]


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
        ("names: !!python/object/apply:os.system [ls]\ntrain: x\n", "train names x, which is not there"),
        ('train: "\\UFFFFFFFF"\n', "is not whole YAML"),
        ("just words: [names\x00", r"data\.yaml is no text in UTF-8"),
        ("just words: [names\t- x: {\n", "is not whole YAML"),
        ("- names: x\n", "holds no keys like names and train"),
        ("train: images/train\nnames: disc\n", r"no usable names of classes \('disc'\)"),
        ("train: images/train\nnames: []\n", "no usable names of classes"),
        ("train: images/train\nnc: 0\n", r"no usable names of classes \(None\)"),
        ("train: images/train\nnc: -5\n", r"no usable names of classes \(None\)"),
        ("train: images/train\nnc: 1000000000\n", r"no usable names of classes \(None\)"),
        ("names: [bar, disc]\n", "leads to no images: it names no train, val or test"),
        ("names: [bar]\ntrain: absent\n", r"1 missing_image.*data\.yaml:2: train names absent, which is not there"),
        (
            "names: [bar]\nval: empty\n",
            r"data\.yaml:2: val names empty, which holds no image; pictures were looked for in",
        ),
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


# What programs and people make of it. Every picture is 96x64.

ROWS = {"bird": "0 0.3 0.4 0.3 0.4\n", "cat": "1 0.6 0.6 0.2 0.2\n"}
BIRD, CAT = [14.4, 12.8, 43.2, 38.4], [48, 32, 67.2, 44.8]


@pytest.fixture
def birds(tmp_path, draw, write):
    """A function that writes three pictures of each split with rows, in the folders of a layout."""

    def write_birds(
        rows=ROWS["bird"],
        images="images/{}",
        labels="labels/{}",
        yaml="path: .\ntrain: images/train\nval: images/val\nnames: [bird, cat]\n",
    ):
        if yaml is not None:
            write(tmp_path / "data.yaml", yaml)
        for split in ("train", "val"):
            for stem in ("hen", "duck", "goose"):
                draw(tmp_path / images.format(split) / f"{stem}_{split}.jpg", (64, 96))
                if labels is not None:
                    write(tmp_path / labels.format(split) / f"{stem}_{split}.txt", rows)
        return tmp_path

    return write_birds


def counts(dataset):
    return {split: len(samples) for split, samples in dataset.splits.items()}


def boxes(dataset):
    return sorted([round(float(side), 3) for side in box] for sample in dataset.all_samples() for box in sample.boxes)


def said(dataset):
    return " ".join([*dataset.notes, *(problem.text for problem in dataset.problems)])


@pytest.mark.parametrize(
    "row",
    [
        "0,0.3,0.4,0.3,0.4",
        "0, 0.3, 0.4, 0.3, 0.4,",
        "0;0.3;0.4;0.3;0.4",
        "0;0,3;0,4;0,3;0,4",
        "0 0,3 0,4 0,3 0,4",
        "0\t0.3,0.4,0.3,0.4",
    ],
)
def test_other_separators_are_read_with_one_note(birds, row):
    dataset = read_dataset(birds(f"{row}\n"))
    assert boxes(dataset) == [BIRD] * 6
    assert (len(dataset.notes), dataset.problems) == (1, ())
    assert "6 label files separate numbers by commas or semicolons" in said(dataset)


def test_tabs_need_no_note(birds):
    dataset = read_dataset(birds("0\t0.3\t0.4\t0.3\t0.4\n"))
    assert (boxes(dataset), dataset.notes) == ([BIRD] * 6, ())


def test_a_number_behind_the_box_is_left_out_with_one_note(birds):
    dataset = read_dataset(birds("0 0.3 0.4 0.3 0.4 17\n0 0.6 0.6 0.2 0.2 0.93\n"))
    assert boxes(dataset) == sorted([BIRD, CAT] * 6)
    assert len(dataset.notes) == 1
    assert "12 rows have a number behind the box, most likely a track id or a confidence" in said(dataset)


def test_pixels_are_one_problem_with_its_count_and_cure(birds):
    with pytest.raises(DataError, match="no usable picture left") as refused:
        read_dataset(birds("0 40 30 30 30\n"))
    text = str(refused.value)
    assert text.count("most likely pixels") == 1
    assert "6 of 6 rows" in text and "divide x and width by the picture's width" in text
    assert "duck_train.txt:1" in text


def test_pictures_with_good_rows_stay_where_others_are_in_pixels(birds, write):
    root = birds("0 40 30 30 30\n")
    write(root / "labels" / "val" / "hen_val.txt", ROWS["bird"] + "0 40 30 30 30\n")
    dataset = read_dataset(root)
    assert counts(dataset) == {"val": 1}
    assert [problem.kind for problem in dataset.problems] == ["bad_row", "rows_lost"]


def test_pictures_whose_rows_were_all_rejected_are_no_background(birds, write):
    root = birds()
    write(root / "labels" / "val" / "hen_val.txt", "0 wide\n")
    write(root / "labels" / "val" / "duck_val.txt", "")
    dataset = read_dataset(root)
    assert [len(sample.boxes) for sample in dataset.splits["val"]] == [0, 1]
    assert "1 picture has lost all rows" in said(dataset)


def test_classes_that_are_counted_from_1_are_told(birds):
    assert "numbered from 1 to 2 in the labels" in said(read_dataset(birds("1 0.3 0.4 0.3 0.4\n2 0.6 0.6 0.2 0.2\n")))


@pytest.mark.parametrize("folder", ["label/{}", "txt/{}", "annotations/{}"])
def test_labels_in_a_folder_of_another_name_are_refused_with_both_places(birds, folder):
    root = birds(labels=folder)
    with pytest.raises(DataError, match="none of 6 pictures has a label file") as refused:
        read_dataset(root)
    assert str(root / "labels" / "train") in str(refused.value)
    assert f"{root / folder.format('train')} (3 files)" in str(refused.value)


def test_no_labels_at_all_are_refused(birds):
    with pytest.raises(DataError, match=r"none of 6 pictures has a label file.*put them there"):
        read_dataset(birds(labels=None))


def test_a_split_without_labels_is_left_out_and_told(birds, problems_of):
    root = birds()
    (root / "labels" / "val").rename(root / "labels" / "validation")
    dataset = read_dataset(root)
    assert counts(dataset) == {"train": 3}
    assert ("no_labels", "images/val/duck_val.jpg") in problems_of(dataset)
    assert f"{root / 'labels' / 'validation'} (3 files)" in said(dataset)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_labels_as_notepad_saves_them(birds, encoding):
    root = birds()
    for label in root.rglob("*.txt"):
        label.write_text(ROWS["bird"] + ROWS["cat"], encoding=encoding)
    dataset = read_dataset(root)
    assert boxes(dataset) == sorted([BIRD, CAT] * 6)
    assert dataset.problems == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_a_yaml_file_in_other_encodings(birds, encoding):
    root = birds()
    text = "train: images/train\nval: images/val\nnames: [Möwe, no]\n"
    (root / "data.yaml").write_text(text, encoding=encoding)
    # For YAML a bare no is false.
    assert read_dataset(root).class_names == ("Möwe", "no")


def test_a_label_file_that_is_no_text_loses_its_picture(birds):
    root = birds()
    (root / "labels" / "val" / "hen_val.txt").write_bytes(b"0 0.3 0.4\x81 0.3 0.4\n")
    dataset = read_dataset(root)
    assert counts(dataset) == {"train": 3, "val": 2}
    assert [problem.kind for problem in dataset.problems] == ["encoding", "rows_lost"]


@pytest.mark.parametrize("composed", ["NFC", "NFD"])
def test_letters_of_names_may_be_composed_or_decomposed(tmp_path, draw, write, composed):
    other = "NFD" if composed == "NFC" else "NFC"
    draw(tmp_path / "images" / "train" / f"{unicodedata.normalize(composed, 'ém')}.jpg", (64, 96))
    write(tmp_path / "labels" / "train" / f"{unicodedata.normalize(other, 'ém')}.txt", ROWS["bird"])
    write(tmp_path / "data.yaml", "train: images/train\nnames: [bird]\n")
    dataset = read_dataset(tmp_path)
    assert (boxes(dataset), dataset.problems) == ([BIRD], ())


@pytest.mark.parametrize("name", ["{}.TXT", "{}.jpg.txt"])
def test_other_names_of_label_files(birds, name):
    root = birds()
    for label in list(root.rglob("*_*.txt")):
        label.rename(label.with_name(name.format(label.stem)))
    dataset = read_dataset(root)
    assert (boxes(dataset), dataset.problems, dataset.notes) == ([BIRD] * 6, (), ())


def test_folders_in_another_case(birds):
    dataset = read_dataset(birds(images="Images/{}", labels="Labels/{}"))
    assert counts(dataset) == {"train": 3, "val": 3}
    assert len(boxes(dataset)) == 6


@pytest.mark.parametrize("name", ["birds.yaml", "birds.yml", "dataset.yml", "DATA.YAML"])
def test_a_yaml_file_of_any_name(birds, name):
    root = birds()
    (root / "data.yaml").rename(root / name)
    assert counts(read_dataset(root)) == {"train": 3, "val": 3}


def test_of_several_yaml_files_the_likeliest_is_read_and_the_others_are_noted(birds, write):
    root = birds()
    write(root / "a.yaml", "train: images/val\nnames: [x, y]\n")
    write(root / "hyp.yaml", "lr0: 0.01\nmomentum: 0.9\n")
    dataset = read_dataset(root)
    assert dataset.class_names == ("bird", "cat")
    assert f"{root / 'data.yaml'} is read, and a.yaml beside it is not" in said(dataset)
    (root / "data.yaml").rename(root / f"{root.name}.yaml")
    assert read_dataset(root).class_names == ("bird", "cat")


@pytest.mark.parametrize(
    "text",
    [
        "version: 3\nservices:\n  db:\n    image: postgres\n",
        "nc: 80\nbackbone: []\nhead: []\n",
        "task: detect\nval: true\ndata: x.yaml\n",
    ],
)
def test_other_yaml_files_are_not_recognised(tmp_path, write, text):
    write(tmp_path / "some.yaml", text)
    assert yolo.recognises(tmp_path) == Certainty.NO


FOLDERS = "train: images/train\nval: images/val\n"


@pytest.mark.parametrize(
    "yaml",
    [
        "path: ../datasets/birds\n" + FOLDERS + "test:\nnames: [bird, cat]\n",
        "path: /home/somebody/export\ntrain: ./images/train/\nval: ./images/val/\nnames:\n  0: bird\n  1: cat\n",
        "train: images/train\nvalidation: images/val\nnc: 2\nnames: [bird, cat]\n",
        "train: images\\train\nval: images\\val\nnames: [bird, cat]\n",
        "train: /content/birds/images/train\nval: /content/birds/images/val\nnames: [bird, cat]\n",
        "train: 'D:\\data\\images\\train'\nval: 'D:\\data\\images\\val'\nnames: [bird, cat]\n",
        "Train: Images/Train\nVal: Images/VAL\nnames: [bird, cat]\n",
        "{train: images/train, val: images/val, names: [bird, cat]}\n",
        '{"train": "images/train", "val": ["images/val"], "names": {"0": "bird", "1": "cat"}}\n',
    ],
)
def test_the_forms_of_the_yaml_file(birds, yaml):
    dataset = read_dataset(birds(yaml=yaml))
    assert counts(dataset) == {"train": 3, "val": 3}
    assert boxes(dataset) == [BIRD] * 6
    assert (dataset.class_names, dataset.problems) == (("bird", "cat"), ())


def test_classes_that_have_a_number_only(birds):
    assert read_dataset(birds(yaml=FOLDERS + "nc: 2\n")).class_names == ("class_0", "class_1")


def test_a_folder_that_is_gone_is_not_replaced_by_one_of_another_split(birds):
    dataset = read_dataset(birds(yaml="train: images/train\nval: /content/val/images\nnames: [bird, cat]\n"))
    assert counts(dataset) == {"train": 3}
    assert "val names /content/val/images, which is not there" in said(dataset)


def test_a_folder_that_is_found_elsewhere_is_told(birds):
    root = birds(yaml="train: /content/birds/images/train\nnames: [bird, cat]\n")
    assert f"train names /content/birds/images/train, which is not there; {root / 'images' / 'train'} is read" in said(
        read_dataset(root)
    )


@pytest.mark.parametrize("prefix", ["", "./", "data/", "/home/me/birds/", "birds\\"])
def test_lists_with_prefixes_that_exist_nowhere(birds, write, prefix):
    root = birds(yaml="path: .\ntrain: train.txt\nValidation: Validation.txt\nnames:\n  0: bird\n  1: cat\n")
    for split, name in (("train", "train.txt"), ("val", "Validation.txt")):
        lines = [f"{prefix}images/{split}/{stem}_{split}.jpg" for stem in ("hen", "duck", "goose")]
        write(root / name, "\ufeff" + "\r\n".join(lines))
    dataset = read_dataset(root)
    assert counts(dataset) == {"train": 3, "val": 3}
    assert (len(boxes(dataset)), dataset.problems) == (6, ())
    assert dataset.exporter == ("CVAT" if prefix == "data/" else "")


def test_a_subset_of_cvat_keeps_its_name(birds, write):
    root = birds(yaml="train: images/train\nnight: night.txt\nnames: [bird, cat]\n")
    write(root / "night.txt", "images/val/hen_val.jpg\n")
    assert counts(read_dataset(root)) == {"train": 3, "night": 1}


def test_a_listed_picture_is_not_replaced_by_its_namesake_of_another_split(birds, write):
    root = birds(yaml="train: train.txt\nval: images/val\nnames: [bird, cat]\n")
    write(root / "train.txt", "images/train/hen_train.jpg\nimages/train/hen_val.jpg\n")
    dataset = read_dataset(root)
    assert counts(dataset) == {"train": 1, "val": 3}
    assert [problem.where for problem in dataset.problems] == [f"{root / 'train.txt'}:2"]


def test_linked_folders_are_followed_and_each_picture_is_counted_once(birds, draw, write):
    root = birds(images="set/images/{}", labels="set/labels/{}", yaml=None)
    write(root / "set" / "data.yaml", "train: images/train\nval: images/val\nnames: [bird, cat]\n")
    for number in range(2):
        draw(root / "else" / "images" / f"sw{number}.jpg", (64, 96))
        write(root / "else" / "labels" / f"sw{number}.txt", ROWS["bird"])
    try:
        for kind in ("images", "labels"):
            (root / "set" / kind / "train" / "camA").symlink_to(f"../../../else/{kind}")
            (root / "set" / kind / "train" / "loop").symlink_to("..")
    except OSError:
        pytest.skip("links cannot be made here")
    dataset = read_dataset(root / "set")
    assert counts(dataset) == {"train": 5, "val": 3}
    assert (len(boxes(dataset)), dataset.problems) == (8, ())


def test_of_a_photo_and_its_mask_the_photo_is_read(birds, draw):
    root = birds()
    draw(root / "images" / "train" / "hen_train.png", (64, 96))
    dataset = read_dataset(root)
    assert sorted(sample.path.name for sample in dataset.splits["train"]) == [
        "duck_train.jpg",
        "goose_train.jpg",
        "hen_train.jpg",
    ]
    assert "1 picture is not read, because another one has the same name" in said(dataset)


def test_pictures_that_cannot_be_read_here_are_counted(birds):
    root = birds()
    (root / "images" / "train" / "hen_train.jpg").rename(root / "images" / "train" / "hen_train.nef")
    dataset = read_dataset(root)
    assert "left out 1 .nef" in said(dataset)
    assert "skipped hen_train.txt: it has no picture" in said(dataset)


def test_notes_of_label_studio_do_not_make_it_coco(birds, write):
    root = birds()
    write(root / "notes.json", json.dumps({"categories": [], "info": {}}))
    dataset = read_dataset(root)
    assert (dataset.kind, counts(dataset)) == ("yolo", {"train": 3, "val": 3})
    assert "notes.json" in said(dataset)


def test_a_picture_of_two_splits_is_told_once(birds, write):
    root = birds(yaml="train: [images/train, images/val]\nval: images/val\nnames: [bird, cat]\n")
    write(root / "labels" / "val" / "hen_val.txt", ROWS["bird"] + "0 wide\n")
    dataset = read_dataset(root)
    assert counts(dataset) == {"train": 6, "val": 3}
    assert len(dataset.problems) == 1


@pytest.mark.parametrize(
    ("exporter", "yaml", "images", "labels", "more"),
    [
        (
            "Roboflow",
            "train: ../train/images\nval: ../val/images\n\nnc: 2\nnames: ['bird', 'cat']\n\nroboflow:\n  workspace: w\n",
            "{}/images",
            "{}/labels",
            None,
        ),
        (
            "FiftyOne",
            "names:\n  0: bird\n  1: cat\npath: /home/me\ntrain: ./images/train/\nval: ./images/val/\n",
            "images/{}",
            "labels/{}",
            None,
        ),
        ("Label Studio", None, "images", "labels", ("classes.txt", "notes.json")),
        ("labelImg", None, ".", ".", ("classes.txt",)),
        ("labelImg", None, "images/{}", "labels/{}", ("labels/train/classes.txt", "labels/val/classes.txt")),
        ("", None, "{}/images", "{}/labels", ("classes.txt",)),
        ("", None, "images/{}", "labels/{}", ("Classes.txt",)),
    ],
)
def test_exports_are_read_and_their_program_is_named(birds, write, exporter, yaml, images, labels, more):
    root = birds(images=images, labels=labels, yaml=yaml)
    if exporter == "FiftyOne":
        (root / "data.yaml").rename(root / "dataset.yaml")
    for name in more or ():
        content = {"categories": [{"id": 0, "name": "bird"}], "info": {"contributor": "Label Studio"}}
        write(root / name, json.dumps(content) if name.endswith(".json") else "bird\ncat\n")
    dataset = read_dataset(root)
    assert (dataset.kind, dataset.exporter, dataset.class_names) == ("yolo", exporter, ("bird", "cat"))
    assert boxes(dataset) == [BIRD] * 6
    assert dataset.problems == ()
    if "{}" in images:
        assert list(counts(dataset).items()) == [("train", 3), ("val", 3)]
    else:
        assert sum(counts(dataset).values()) == 6


def test_labels_without_their_pictures_are_named_and_where_was_looked(tmp_path, write):
    write(tmp_path / "classes.txt", "bird\n")
    for stem in ("hen", "duck"):
        write(tmp_path / "labels" / f"0225a044-{stem}.txt", ROWS["bird"])
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"2 missing_image.*skipped 0225a044-duck\.txt: it has no picture") as refused:
        read_dataset(tmp_path)
    assert f"pictures were looked for in {tmp_path}" in str(refused.value)


def test_without_names_classes_are_called_by_their_numbers_and_that_is_told(birds):
    dataset = read_dataset(birds(ROWS["bird"] + ROWS["cat"], yaml=None))
    assert dataset.class_names == ("class_0", "class_1")
    assert counts(dataset) == {"train": 3, "val": 3}
    assert "no file names the classes" in said(dataset)


def test_a_huge_number_of_a_class_does_not_make_as_many_classes(birds, problems_of):
    root = birds(ROWS["bird"] + ROWS["cat"] + "1000000000 0.5 0.5 0.1 0.1\n", yaml=None)
    dataset = read_dataset(root)
    assert dataset.class_names == ("class_0", "class_1")
    assert problems_of(dataset)[0] == ("unknown_class", "labels/train/duck_train.txt:3")


def test_lists_of_classes_that_contradict_each_other_are_refused(birds, write):
    root = birds(yaml=None)
    write(root / "labels" / "train" / "classes.txt", "bird\ncat\n")
    write(root / "labels" / "val" / "classes.txt", "cat\nbird\n")
    with pytest.raises(DataError, match="give the classes other names or another order"):
        read_dataset(root)


def test_a_list_of_classes_among_other_texts_is_no_yolo(tmp_path, draw, write):
    draw(tmp_path / "images" / "a.jpg")
    write(tmp_path / "classes.txt", "bird\n")
    write(tmp_path / "readme.txt", "0 birds were hurt in the making of this set\n")
    assert yolo.recognises(tmp_path) == Certainty.NO


def test_fractions_may_be_of_the_picture_as_it_is_stored(birds):
    root = birds(ROWS["bird"])
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in root.rglob("*.jpg"):
        with Image.open(path) as image:
            image.save(path, exif=exif)
    # [14.4, 12.8, 43.2, 38.4] of the stored frame, 64 high, turned to the right.
    assert boxes(read_dataset(root, boxes_in="raw")) == [[25.6, 14.4, 51.2, 43.2]] * 6
    assert boxes(read_dataset(root)) == [[9.6, 19.2, 28.8, 57.6]] * 6
