"""COCO files and folders as COCO and the usual exporters lay them out, and what is wrong in them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError

CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 3, "name": "bar"}]


def image(number, name=None):
    return {"id": number, "file_name": name or f"{number:03}.jpg", "height": 40, "width": 60}


def annotation(image_id, bbox=(2, 3, 10, 20), category_id=7, **more):
    return {"id": 1, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def write_pictures(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(np.full((40, 60, 3), 100, np.uint8)).save(folder / name)


def write_json(path, images, annotations=None, categories=CATEGORIES, pictures=None):
    """Write a COCO file with one box in each picture, and the pictures into the folder ``pictures``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if annotations is None:
        annotations = [annotation(entry["id"]) for entry in images]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    if pictures is not None:
        write_pictures(pictures, [entry["file_name"] for entry in images])
    return path


def write_coco(root, **splits):
    """Write ``annotations/instances_<split>.json`` and ``<split>/`` for each split, given its image ids."""
    for split, numbers in splits.items():
        path = root / "annotations" / f"instances_{split}.json"
        write_json(path, [image(number) for number in numbers], pictures=root / split)
    return root


def ids_of(dataset):
    return {split: [sample.path.stem for sample in samples] for split, samples in dataset.splits.items()}


def test_a_folder_as_coco_lays_it_out(tmp_path):
    dataset = read_dataset(write_coco(tmp_path, train2017=[1, 2], val2017=[3]))
    assert (dataset.kind, dataset.class_names, dataset.category_ids) == ("coco", ("bar", "disc"), (3, 7))
    assert ids_of(dataset) == {"train": ["001", "002"], "val": ["003"]}
    assert dataset.notes == ()
    sample = dataset.splits["val"][0]
    np.testing.assert_array_equal(sample.boxes, [[2, 3, 12, 23]])
    np.testing.assert_array_equal(sample.class_ids, [1])
    assert (sample.height, sample.width) == (40, 60)


def test_captions_and_keypoints_beside_the_instances_do_not_matter(tmp_path):
    """annotations_trainval2017.zip unpacks to such a folder."""
    write_coco(tmp_path, val2017=[1])
    folder = tmp_path / "annotations"
    captions = {"images": [image(1)], "annotations": [{"image_id": 1, "id": 1, "caption": "a disc"}]}
    (folder / "captions_val2017.json").write_text(json.dumps(captions))
    write_json(folder / "person_keypoints_val2017.json", [image(1)], categories=[{"id": 1, "name": "person"}])
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("bar", "disc")
    assert ids_of(dataset) == {"val": ["001"]}


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("instances_calibration", "calibration"),
        ("instances_valid", "val"),
        ("instances_validation2020", "val"),
        ("instances_test-dev2017", "test"),
        ("training", "train"),
        ("my_val_set", "val"),
    ],
)
def test_the_split_is_read_from_the_name(tmp_path, file, split):
    write_json(tmp_path / "annotations" / f"{file}.json", [image(1)], pictures=tmp_path / "images")
    assert ids_of(read_dataset(tmp_path)) == {split: ["001"]}


def test_a_folder_as_roboflow_lays_it_out(tmp_path):
    """Roboflow makes a folder for each split and numbers the images of each from 0."""
    for split in ("train", "valid", "test"):
        names = [image(number, f"{split}_{number}.jpg") for number in range(3)]
        write_json(tmp_path / split / "_annotations.coco.json", names, pictures=tmp_path / split)
    dataset = read_dataset(tmp_path)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"test": 3, "train": 3, "val": 3}
    assert len(dataset.all_samples()) == 9
    train, val = ({sample.image_id for sample in dataset.splits[split]} for split in ("train", "val"))
    assert not train & val, "pictures of two splits have one id"


@pytest.mark.parametrize("folder", ["", "images", "val2017", "images/val2017", "val", "images/val"])
def test_pictures_are_found_where_exporters_put_them(tmp_path, folder):
    write_json(tmp_path / "annotations" / "instances_val2017.json", [image(1)], pictures=tmp_path / folder)
    assert read_dataset(tmp_path).splits["val"][0].path == tmp_path / folder / "001.jpg"


def test_a_name_may_hold_a_folder(tmp_path):
    write_pictures(tmp_path / "camera" / "left", ["1.jpg"])
    write_json(tmp_path / "annotations.json", [image(1, "camera/left/1.jpg")])
    assert read_dataset(tmp_path).all_samples()[0].path == tmp_path / "camera" / "left" / "1.jpg"


def test_one_file(tmp_path):
    write_coco(tmp_path, train2017=[1, 2], val2017=[3])
    dataset = read_dataset(tmp_path / "annotations" / "instances_val2017.json")
    assert ids_of(dataset) == {"val": ["003"]}


def test_one_file_that_names_no_split_holds_some_out_and_says_so(tmp_path):
    path = write_json(tmp_path / "labels.json", [image(number) for number in range(1, 11)], pictures=tmp_path)
    first, again = read_dataset(path), read_dataset(path)
    assert {split: len(samples) for split, samples in first.splits.items()} == {"train": 8, "val": 2}
    assert ids_of(first) == ids_of(again)
    assert f"{path} names no splits: 2 of 10 images, chosen with seed 0" in first.notes[0]


def test_a_file_without_a_split_beside_files_with_one(tmp_path):
    write_coco(tmp_path, train2017=[1])
    write_json(tmp_path / "annotations" / "more.json", [image(2)], pictures=tmp_path / "images")
    assert ids_of(read_dataset(tmp_path)) == {"train": ["001"], "all": ["002"]}


def test_crowds_are_marked(tmp_path):
    rows = [annotation(1), annotation(1, iscrowd=1), annotation(1, iscrowd=0)]
    write_json(tmp_path / "instances_val.json", [image(1)], rows, pictures=tmp_path)
    np.testing.assert_array_equal(read_dataset(tmp_path).all_samples()[0].ignore, [False, True, False])


def test_a_picture_without_annotations_stays(tmp_path):
    write_json(tmp_path / "instances_val.json", [image(1), image(2)], [annotation(1)], pictures=tmp_path)
    assert [len(sample.boxes) for sample in read_dataset(tmp_path).all_samples()] == [1, 0]


@pytest.mark.parametrize(
    ("bbox", "kind"),
    [
        ((5, 5, 0, 9), "degenerate"),
        ((5, 5, -2, 9), "degenerate"),
        ((60, 0, 5, 5), "degenerate"),
        ((float("nan"), 1, 2, 3), "not_finite"),
        ((1, 1, float("inf"), 3), "not_finite"),
    ],
)
def test_what_is_no_box_is_skipped_and_the_annotation_named(tmp_path, caplog, bbox, kind):
    rows = [annotation(1, bbox, id=41), annotation(1)]
    path = write_json(tmp_path / "instances_val.json", [image(1)], rows, pictures=tmp_path)
    dataset = read_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.all_samples()[0].boxes, [[2, 3, 12, 23]])
    assert [(problem.kind, problem.where) for problem in dataset.problems] == [(kind, f"{path}:1 annotation 41")]
    assert caplog.text.count(f"{path}:1 annotation 41: skipped") == 1


@pytest.mark.parametrize("indent", [None, 0, 2])
def test_the_line_is_that_of_the_annotation_however_the_file_is_laid_out(tmp_path, indent):
    """The file also has a key of the same name inside another object, and a string with brackets."""
    path = tmp_path / "instances_val.json"
    images = [image(1), image(2, "absent.jpg")]
    rows = [annotation(1, segmentation=[[1, 2], [3]]), annotation(1, (5, 5, 0, 9), id=2, note='}], ["annotations": ')]
    content = {"info": {"annotations": [1], "x": 1.5}, "annotations": rows, "categories": CATEGORIES, "images": images}
    path.write_text(json.dumps(content, indent=indent))
    write_pictures(tmp_path, ["001.jpg"])
    lines = path.read_text().splitlines()
    problems = {problem.kind: problem.where for problem in read_dataset(tmp_path).problems}
    at = {kind: int(where.removeprefix(f"{path}:").split()[0]) for kind, where in problems.items()}
    assert problems["degenerate"].endswith(" annotation 2")
    if indent is None:
        assert at == {"degenerate": 1, "missing_image": 1}
        return
    first = lines.index(next(line for line in lines if '"bbox"' in line))
    second = lines.index(next(line for line in lines[first + 1 :] if '"bbox"' in line), first + 1)
    assert first + 1 < at["degenerate"] <= second
    assert lines[at["degenerate"] - 1].strip() == "{"
    named = next(number for number, line in enumerate(lines, 1) if "absent.jpg" in line)
    assert at["missing_image"] == named - 2


def test_a_box_beyond_the_edge_is_recorded_and_counted_but_not_warned_of(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [annotation(1, (-0.5, 0, 20, 20)), annotation(1, (50, 30, 20, 20), id=2)]
    write_json(tmp_path / "instances_val.json", [image(1)], rows, pictures=tmp_path)
    dataset = read_dataset(tmp_path)
    np.testing.assert_array_equal(dataset.all_samples()[0].boxes, [[0, 0, 19.5, 20], [50, 30, 60, 40]])
    assert [problem.kind for problem in dataset.problems] == ["outside"]
    assert dataset.problems[0].where.endswith("annotation 2")
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "1 of the kind outside" in caplog.text


@pytest.mark.parametrize(
    ("broken", "kind"),
    [
        ({"category_id": 99}, "unknown_class"),
        ({"category_id": "disc"}, "bad_row"),
        ({"category_id": None}, "bad_row"),
        ({"category_id": float("inf")}, "bad_row"),
        ({"bbox": [1, 2, 3]}, "bad_row"),
        ({"bbox": None}, "bad_row"),
        ({"bbox": [1, 2, 10**400, 3]}, "bad_row"),
        ({"bbox": ["a", 1, 2, 3]}, "bad_row"),
    ],
)
def test_an_annotation_without_a_box_or_category_is_skipped_and_the_file_named(tmp_path, caplog, broken, kind):
    rows = [annotation(1) | broken, annotation(1)]
    path = write_json(tmp_path / "instances_val.json", [image(1)], rows, pictures=tmp_path)
    dataset = read_dataset(tmp_path)
    assert len(dataset.all_samples()[0].boxes) == 1
    assert [problem.kind for problem in dataset.problems] == [kind]
    assert f"{path}:1 annotation 1: skipped an annotation" in caplog.text


def test_an_annotation_without_an_image_is_skipped(tmp_path):
    rows = [annotation(1), {"id": 2, "category_id": 7, "bbox": [1, 2, 3, 4]}, annotation(55), "words", annotation([1])]
    write_json(tmp_path / "instances_val.json", [image(1)], rows, pictures=tmp_path)
    dataset = read_dataset(tmp_path)
    assert len(dataset.all_samples()[0].boxes) == 1
    assert [problem.kind for problem in dataset.problems] == ["bad_row"] * 4


def test_files_of_folds_become_folds(tmp_path):
    write_coco(tmp_path, fold0=[1, 2], fold1=[3], test=[4])
    dataset = read_dataset(tmp_path).with_fold(1)
    assert ids_of(dataset) == {"train": ["001", "002"], "val": ["003"], "test": ["004"]}


def test_missing_pictures_are_named_but_not_all_in_the_log(tmp_path, caplog):
    path = write_json(tmp_path / "instances_val.json", [image(number) for number in range(1, 16)])
    write_pictures(tmp_path, ["002.jpg"])
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset) == {"val": ["002"]}
    assert [problem.kind for problem in dataset.problems] == ["missing_image"] * 14
    assert caplog.text.count(f"{path}:1: skipped the image") == 10
    assert "4 more of the kind missing_image" in caplog.text
    assert f"python -m edge_effdet.data check {tmp_path} lists them" in caplog.text


def test_a_file_that_is_no_picture_is_skipped_and_named(tmp_path, caplog):
    write_json(tmp_path / "instances_val.json", [image(1), image(2)], pictures=tmp_path)
    (tmp_path / "002.jpg").write_bytes(b"words")
    assert ids_of(read_dataset(tmp_path)) == {"val": ["001"]}
    assert str(tmp_path / "002.jpg") in caplog.text


def test_no_picture_at_all_is_refused(tmp_path):
    write_json(tmp_path / "instances_val.json", [image(1)])
    with pytest.raises(DataError, match=rf"{tmp_path} holds annotations but none of their images"):
        read_dataset(tmp_path)


def test_two_files_with_one_list_of_categories_each_are_joined(tmp_path):
    write_json(tmp_path / "train.json", [image(1)], pictures=tmp_path)
    write_json(
        tmp_path / "val.json", [image(2)], categories=[*CATEGORIES, {"id": 5, "name": "cone"}], pictures=tmp_path
    )
    dataset = read_dataset(tmp_path)
    assert (dataset.class_names, dataset.category_ids) == (("bar", "cone", "disc"), (3, 5, 7))
    assert [int(sample.class_ids[0]) for sample in dataset.all_samples()] == [2, 2]


def test_two_files_that_disagree_about_a_category_are_refused(tmp_path):
    write_json(tmp_path / "train.json", [image(1)], pictures=tmp_path)
    write_json(tmp_path / "val.json", [image(2)], categories=[{"id": 7, "name": "cone"}], pictures=tmp_path)
    with pytest.raises(DataError, match=r"val\.json calls category 7 'cone', another file of .* calls it 'disc'"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    "content", ["", '{"images": [', "[1, 2]", '{"images": {}}', '{"images": [], "categories": []}']
)
def test_a_file_that_is_no_coco_file_is_named(tmp_path, content):
    path = tmp_path / "instances_val.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"instances_val\.json (is not whole JSON|has no list)"):
        read_dataset(path)


@pytest.mark.parametrize(
    ("images", "categories"),
    [
        ([{"id": 1}], CATEGORIES),
        ([{"file_name": "001.jpg"}], CATEGORIES),
        (["001.jpg"], CATEGORIES),
        ([image(1) | {"id": [1]}], CATEGORIES),
        ([image(1)], [{"name": "disc"}]),
        ([image(1)], [{"id": 7}]),
        ([image(1)], [{"id": "seven", "name": "disc"}]),
    ],
)
def test_an_image_or_category_without_its_fields_is_refused_by_the_file_name(tmp_path, images, categories):
    path = write_json(tmp_path / "instances_val.json", images, [annotation(1)], categories)
    write_pictures(tmp_path, ["001.jpg"])
    with pytest.raises(DataError, match=r"instances_val\.json"):
        read_dataset(path)


def test_json_of_another_kind_is_not_recognised(tmp_path):
    (tmp_path / "package.json").write_text('{"name": "other"}')
    with pytest.raises(DataError, match="no data set of a known format"):
        read_dataset(tmp_path)
    with pytest.raises(DataError, match="no data set of a known format"):
        read_dataset(tmp_path / "package.json")


@pytest.mark.data
def test_open_coco_photographs(data_root):
    dataset = read_dataset(data_root / "coco_val_open")
    assert len(dataset.all_samples()) == 91
    assert sum(len(sample.boxes) for sample in dataset.all_samples()) == 716
