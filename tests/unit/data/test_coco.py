"""COCO files and folders as COCO and the usual exporters lay them out, and what is wrong in them."""

from __future__ import annotations

import json
import logging
import unicodedata
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data import coco
from edge_effdet.data.raw import Certainty
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError

CATEGORIES = [{"id": 7, "name": "disc"}, {"id": 3, "name": "bar"}]


def image(number, name=None):
    return {"id": number, "file_name": name or f"{number:03}.jpg", "height": 40, "width": 60}


def annotation(image_id, bbox: Any = (2, 3, 10, 20), category_id: Any = 7, **more):
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


def boxes_of(dataset):
    return sorted(box for sample in dataset.all_samples() for box in sample.boxes.tolist())


def said_of(dataset):
    return " ".join([*dataset.notes, *(f"{problem.where}: {problem.text}" for problem in dataset.problems)])


def kinds_of(dataset):
    return [problem.kind for problem in dataset.problems]


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
    assert f"{path} names no splits: 2 of 10 images, chosen by the hashes of their names" in first.notes[0]


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
        ((5, 5, -2, 9), "swapped"),
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
    assert caplog.text.count(f"{path}:1 annotation 41: ") == 1


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


def test_no_picture_at_all_is_refused_with_the_first_reasons_and_the_folders_searched(tmp_path):
    path = write_json(tmp_path / "annotations" / "instances_val.json", [image(number) for number in range(1, 6)])
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=r"no usable picture left \(5 missing_image\)") as error:
        read_dataset(tmp_path)
    assert f"{path}:1: skipped the image 001.jpg, which is not there" in str(error.value)
    assert f"looked for in {tmp_path / 'annotations'}, {tmp_path / 'images'}, {tmp_path} and" in str(error.value)


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
def test_a_file_of_nothing_but_images_or_categories_without_their_fields_is_refused(tmp_path, images, categories):
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


# Which files count


FULL = {"images": [image(1)], "annotations": [annotation(1)], "categories": CATEGORIES}


@pytest.mark.parametrize(
    ("name", "beside", "certainty"),
    [
        ("annotations/train.json", "images", Certainty.SURE),
        ("annotations/instances_val2017.json", "val2017", Certainty.SURE),
        ("_annotations.coco.json", ".", Certainty.SURE),
        ("valid/_annotations.coco.json", "valid", Certainty.SURE),
        ("batch7/_annotations.coco.json", "batch7", Certainty.SURE),
        ("labels.json", "data", Certainty.LIKELY),
        ("result.json", "images", Certainty.LIKELY),
        ("train/labels.json", "train/data", Certainty.LIKELY),
        ("labels.json", "images", Certainty.MAYBE),
        ("anything.json", "images", Certainty.MAYBE),
        ("ANYTHING.JSON", "images", Certainty.MAYBE),
        ("train/anything.json", "train", Certainty.MAYBE),
        ("other/anything.json", "other", Certainty.NO),
    ],
)
def test_how_sure_a_layout_makes(tmp_path, name, beside, certainty):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(FULL))
    write_pictures(tmp_path / beside, ["001.jpg"])
    (tmp_path / "more").mkdir()
    assert coco.recognises(tmp_path) == certainty
    assert coco.recognises(path) == Certainty.SURE
    if certainty:
        assert len(read_dataset(tmp_path).all_samples()) == 1


def test_annotations_beside_xml_files_may_have_been_converted_from_them(tmp_path):
    write_json(tmp_path / "annotations" / "all.json", [image(1)], pictures=tmp_path / "images")
    (tmp_path / "annotations" / "001.xml").write_text("<annotation></annotation>")
    assert coco.recognises(tmp_path) == Certainty.LIKELY


@pytest.mark.parametrize(
    "content",
    [
        {"engine": "x.onnx", "images": [], "skipped": []},
        {"categories": [], "info": {"contributor": "Label Studio"}},
        {"images": [image(1)], "categories": CATEGORIES},
        {"images": {"1": "a"}, "annotations": {}, "categories": {}},
        {"annotations": [annotation(1)]},
        [FULL],
        [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4], "score": 0.5}],
        "images annotations categories",
        {},
    ],
)
def test_a_stray_file_makes_no_data_set_and_is_named_beside_one(tmp_path, content):
    stray = tmp_path / "metrics.json"
    stray.write_text(json.dumps(content))
    write_pictures(tmp_path, ["001.jpg"])
    assert coco.recognises(tmp_path) == Certainty.NO
    write_json(tmp_path / "annotations" / "instances_val.json", [image(1)])
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset) == {"val": ["001"]}
    assert f"{tmp_path}: metrics.json is not read, because it is no COCO file." in dataset.notes


def test_files_that_cannot_be_opened_or_are_empty_are_no_coco_files(tmp_path):
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    (tmp_path / "noise.json").write_bytes(bytes(range(256)))
    (tmp_path / "folder.json").mkdir()
    assert coco.recognises(tmp_path) == Certainty.NO
    for name in ("empty.json", "noise.json"):
        assert coco.recognises(tmp_path / name) == Certainty.NO


@pytest.mark.parametrize("keys", [("annotations", "images", "categories"), ("categories", "annotations", "images")])
@pytest.mark.parametrize("indent", [None, 2])
def test_keys_may_come_late_in_a_large_file_which_is_not_parsed_to_recognise_it(tmp_path, monkeypatch, keys, indent):
    content = {"info": {"note": "x" * 300_000, "images": 5}, "licenses": ["images"], **{key: FULL[key] for key in keys}}
    path = tmp_path / "all.json"
    path.write_text(json.dumps(content, indent=indent))
    write_pictures(tmp_path, ["001.jpg"])
    with monkeypatch.context() as patched:
        patched.setattr(coco, "read_json", None)
        assert coco.recognises(tmp_path) == Certainty.MAYBE
    assert len(boxes_of(read_dataset(path))) == 1


def test_a_file_without_annotations_beside_others_is_named_and_does_not_refuse_them(tmp_path):
    write_coco(tmp_path, train=[1, 2], val=[3])
    write_pictures(tmp_path / "test", ["004.jpg"])
    (tmp_path / "annotations" / "test.json").write_text(json.dumps({"images": [image(4)], "categories": CATEGORIES}))
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset) == {"train": ["001", "002"], "val": ["003"]}
    assert dataset.notes == (f"{tmp_path}: annotations/test.json is not read, because it has no list 'annotations'.",)


def test_a_file_of_another_form_that_is_given_says_what_it_lacks(tmp_path):
    path = tmp_path / "test.json"
    path.write_text(json.dumps({"images": [image(4)], "categories": CATEGORIES}))
    with pytest.raises(DataError, match=r"test\.json has no list 'annotations'\. A COCO file of boxes has lists"):
        read_dataset(path)


def test_a_damaged_file_beside_whole_ones_is_a_problem(tmp_path):
    write_coco(tmp_path, train=[1], val=[2])
    whole = (tmp_path / "annotations" / "instances_train.json").read_text()
    (tmp_path / "annotations" / "instances_train.json").write_text(whole[: len(whole) // 2])
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset) == {"val": ["002"]}
    assert kinds_of(dataset) == ["bad_row"]
    assert "instances_train.json: skipped, because it is not whole JSON" in said_of(dataset)


def test_a_folder_of_a_damaged_file_says_so(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text('{"images": [')
    with pytest.raises(DataError, match=r"instances_train\.json is not whole JSON"):
        read_dataset(tmp_path)


def test_a_coco_file_beside_the_folder_of_annotations_is_named_and_not_read(tmp_path):
    write_coco(tmp_path, train=[1])
    write_json(tmp_path / "old.json", [image(2)], categories=[{"id": 7, "name": "cone"}], pictures=tmp_path)
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset) == {"train": ["001"]}
    assert "old.json is not read, because it lies beside the folders with annotation files" in said_of(dataset)


@pytest.mark.parametrize("kind", ["voc", "yolo"])
def test_a_stray_coco_file_in_a_data_set_of_another_format_is_named_and_not_read(tmp_path, write, kind):
    if kind == "voc":
        write_pictures(tmp_path / "JPEGImages", ["hen.jpg"])
        box = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
        shape = f"<object><name>bird</name><bndbox>{box}</bndbox></object>"
        write(tmp_path / "Annotations" / "hen.xml", f"<annotation><filename>hen.jpg</filename>{shape}</annotation>")
    else:
        write_pictures(tmp_path / "images", ["hen.jpg"])
        write(tmp_path / "labels" / "hen.txt", "0 0.5 0.5 0.2 0.2\n")
        write(tmp_path / "data.yaml", "train: images\nnames: [bird]\n")
    write_json(tmp_path / "stray.json", [image(1, "hen.jpg")])
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.class_names) == (kind, ("bird",))
    assert f"{tmp_path} holds files of COCO JSON too, which are not read." in dataset.notes


def test_files_of_other_tasks_are_named(tmp_path):
    write_coco(tmp_path, val2017=[1])
    for task in ("captions", "person_keypoints"):
        (tmp_path / "annotations" / f"{task}_val2017.json").write_text(json.dumps(FULL))
    (note,) = read_dataset(tmp_path).notes
    assert "captions_val2017.json, annotations/person_keypoints_val2017.json are not read" in note
    alone = read_dataset(tmp_path / "annotations" / "person_keypoints_val2017.json")
    assert len(boxes_of(alone)) == 1 and alone.notes == ()


def test_a_folder_within_a_folder_as_archives_unpack(tmp_path):
    write_json(tmp_path / "birds" / "result.json", [image(1)], pictures=tmp_path / "birds" / "images")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "birds" / "._result.json").write_bytes(b"\x00\x05\x16\x07")
    assert coco.recognises(tmp_path) == Certainty.LIKELY
    assert len(boxes_of(read_dataset(tmp_path))) == 1


@pytest.mark.parametrize("given", ["annotations", "annotations/all.json"])
def test_the_folder_of_annotations_may_be_given(tmp_path, given):
    write_json(tmp_path / "annotations" / "all.json", [image(1)], pictures=tmp_path / "deep" / "folder")
    assert len(boxes_of(read_dataset(tmp_path / given))) == 1


# Exporters


@pytest.mark.parametrize(
    ("name", "pictures", "more", "exporter"),
    [
        ("labels.json", "data", {"info": {"url": "https://voxel51.com/fiftyone"}}, "FiftyOne"),
        ("labels.json", "data", {"info": {}}, "FiftyOne"),
        ("result.json", "images", {"info": {"contributor": "Label Studio", "version": "1.0"}}, "Label Studio"),
        ("train/_annotations.coco.json", "train", {"info": {"description": "Exported from roboflow.com"}}, "Roboflow"),
        ("train/_annotations.coco.json", "train", {}, "Roboflow"),
        ("annotations/instances_default.json", "images/default", {"info": {"year": "", "url": ""}}, "CVAT"),
        ("annotations/instances_Train.json", "images/Train", {"licenses": [{"name": "", "id": 0, "url": ""}]}, "CVAT"),
        ("annotations/instances_val2017.json", "val2017", {"info": {"url": "http://cocodataset.org"}}, "COCO"),
        ("annotations/instances_val2017.json", "val2017", {"info": ["words"]}, ""),
    ],
)
def test_the_exporter_is_named(tmp_path, name, pictures, more, exporter):
    path = write_json(tmp_path / name, [image(1)], pictures=tmp_path / pictures)
    path.write_text(json.dumps(more | json.loads(path.read_text())))
    dataset = read_dataset(tmp_path)
    assert dataset.exporter == exporter
    assert (f"{tmp_path} looks like an export of {exporter}." in dataset.notes) == bool(exporter)
    assert boxes_of(dataset) == [[2, 3, 12, 23]]


def test_fiftyone_writes_no_annotations_where_nothing_was_labelled(tmp_path):
    write_json(tmp_path / "train" / "labels.json", [image(1)], pictures=tmp_path / "train" / "data")
    write_json(tmp_path / "val" / "labels.json", [image(1)], pictures=tmp_path / "val" / "data")
    content = {"info": {"url": "https://voxel51.com/fiftyone"}, "images": [image(1)], "categories": CATEGORIES}
    (tmp_path / "val" / "labels.json").write_text(json.dumps(content))
    dataset = read_dataset(tmp_path)
    assert {split: len(samples[0].boxes) for split, samples in dataset.splits.items()} == {"train": 1, "val": 0}
    assert dataset.problems == ()


def roboflow_categories(above="birds"):
    return [
        {"id": 0, "name": "birds", "supercategory": "none"},
        {"id": 1, "name": "hen", "supercategory": above},
    ]


@pytest.mark.parametrize(
    ("above", "info", "box_of_0", "names"),
    [
        ("birds", "roboflow.com", False, ("hen",)),
        ("birds", "roboflow.com", True, ("birds", "hen")),
        ("none", "roboflow.com", False, ("birds", "hen")),
        ("birds", "by hand", False, ("birds", "hen")),
    ],
)
def test_the_category_of_roboflows_project_is_no_class(tmp_path, above, info, box_of_0, names):
    categories = roboflow_categories(above)
    rows = [annotation(1, category_id=1)]
    path = write_json(tmp_path / "train" / "all.json", [image(1)], rows, categories, pictures=tmp_path / "train")
    path.write_text(json.dumps({"info": {"description": info}} | json.loads(path.read_text())))
    rows = [annotation(2, category_id=0 if box_of_0 else 1)]
    path = write_json(tmp_path / "valid" / "all.json", [image(2)], rows, categories, pictures=tmp_path / "valid")
    path.write_text(json.dumps({"info": {"description": info}} | json.loads(path.read_text())))
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == names
    assert ("The category 0, 'birds', is Roboflow's" in said_of(dataset)) == (len(names) == 1)
    assert dataset.category_ids == ((1,) if len(names) == 1 else (0, 1))
    assert int(dataset.splits["train"][0].class_ids[0]) == len(names) - 1


@pytest.mark.parametrize(
    "name",
    [
        "images\\hen (2).jpg",
        "images\\1/hen (2).jpg",
        "/data/upload/1/hen (2).jpg",
        "/data/upload/1/hen%20%282%29.jpg",
        "..\\..\\media\\upload\\4\\hen (2).jpg",
        "/data/local-files/?d=set/hen%20(2).jpg",
        "https://example.org/set/hen%20(2).jpg",
    ],
)
def test_names_as_label_studio_writes_them(tmp_path, name):
    write_pictures(tmp_path / "images", ["hen (2).jpg", "hen.jpg"])
    write_json(tmp_path / "result.json", [image(0, name) | {"width": None, "height": None}, image(1, "images/hen.jpg")])
    dataset = read_dataset(tmp_path)
    assert sorted(sample.path.name for sample in dataset.all_samples()) == ["hen (2).jpg", "hen.jpg"]
    assert len(boxes_of(dataset)) == 2 and dataset.problems == ()


def test_an_address_takes_the_place_of_a_name_in_lvis(tmp_path):
    write_pictures(tmp_path / "train2017", ["000000391895.jpg"])
    entry = {"id": 391895, "coco_url": "http://images.cocodataset.org/train2017/000000391895.jpg"}
    write_json(tmp_path / "annotations" / "lvis_v1_train.json", [entry])
    assert len(boxes_of(read_dataset(tmp_path))) == 1


@pytest.mark.parametrize(("stored", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_of_names_may_be_composed_or_not(tmp_path, stored, written):
    names = ["ém.jpg", "ñu.jpg", "ört.jpg"]
    write_pictures(tmp_path / "images", [unicodedata.normalize(stored, name) for name in names])
    entries = [image(number, unicodedata.normalize(written, name)) for number, name in enumerate(names)]
    write_json(tmp_path / "a.json", entries)
    assert len(boxes_of(read_dataset(tmp_path / "a.json"))) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings(tmp_path, encoding):
    content = {"images": [image(1)], "annotations": [annotation(1)], "categories": [{"id": 7, "name": "Möwe"}]}
    text = json.dumps(content, ensure_ascii=False, indent=1)
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    write_pictures(tmp_path, ["001.jpg"])
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("Möwe",)
    assert len(boxes_of(dataset)) == 1


# Ids


def test_pictures_of_one_id_are_left_out_and_named_and_get_no_boxes(tmp_path):
    entries = [image(1, "hen.jpg"), image(1, "duck.jpg"), image(2, "owl.jpg")]
    rows = [annotation(1), annotation(1, (20, 10, 20, 20)), annotation(2)]
    path = write_json(tmp_path / "a.json", entries, rows, pictures=tmp_path / "images")
    dataset = read_dataset(path)
    assert [sample.path.name for sample in dataset.all_samples()] == ["owl.jpg"]
    assert boxes_of(dataset) == [[2, 3, 12, 23]]
    assert kinds_of(dataset) == ["duplicate_id"]
    assert "the image id 1 means 2 pictures, hen.jpg, duck.jpg" in said_of(dataset)


def test_where_every_id_means_several_pictures_the_error_says_so(tmp_path):
    path = write_json(tmp_path / "a.json", [image(1, "hen.jpg"), image(1, "duck.jpg")], pictures=tmp_path)
    with pytest.raises(DataError, match=r"1 duplicate_id.*id 1 means 2 pictures, hen\.jpg, duck\.jpg"):
        read_dataset(path)


def test_an_image_that_is_listed_twice_is_read_once(tmp_path):
    path = write_json(tmp_path / "a.json", [image(1), image(1)], [annotation(1)], pictures=tmp_path)
    dataset = read_dataset(path)
    assert boxes_of(dataset) == [[2, 3, 12, 23]]
    assert "1 of 1 images are listed more than once" in said_of(dataset)


def test_one_picture_under_two_ids_is_named(tmp_path):
    path = write_json(tmp_path / "a.json", [image(1, "hen.jpg"), image(2, "hen.jpg")], pictures=tmp_path)
    dataset = read_dataset(path)
    assert kinds_of(dataset) == ["named_twice"]
    assert "hen.jpg: 2 entries of the annotations mean this one picture: 1, 2" in said_of(dataset)


@pytest.mark.parametrize(("of_image", "of_annotation"), [("7", 7), (7, "7"), (7, 7.0), ("7", 7.0), ("hen", "hen")])
def test_ids_of_different_types_are_matched_as_text(tmp_path, of_image, of_annotation):
    entries = [image(1) | {"id": of_image}]
    path = write_json(tmp_path / "a.json", entries, [annotation(of_annotation)], pictures=tmp_path)
    dataset = read_dataset(path)
    assert boxes_of(dataset) == [[2, 3, 12, 23]] and dataset.problems == ()
    assert ("ids were matched as text" in said_of(dataset)) == (of_image != of_annotation)


def test_ids_that_are_written_otherwise_are_not_matched(tmp_path):
    entries = [image(1) | {"id": "007"}, image(2)]
    path = write_json(tmp_path / "a.json", entries, [annotation(7), annotation(2)], pictures=tmp_path)
    dataset = read_dataset(path)
    assert kinds_of(dataset) == ["bad_row"] and len(boxes_of(dataset)) == 1


def test_where_no_annotation_finds_its_image_no_picture_becomes_background(tmp_path):
    path = write_json(tmp_path / "a.json", [image(1), image(2)], [annotation(11), annotation(12)], pictures=tmp_path)
    with pytest.raises(DataError, match=r"annotation of image 11, which is not in the list of images"):
        read_dataset(path)


@pytest.mark.parametrize("ids", [("7", "3"), (7.0, 3.0)])
def test_ids_of_categories_may_be_written_as_text(tmp_path, ids):
    categories = [{"id": ids[0], "name": "disc"}, {"id": ids[1], "name": "bar"}]
    path = write_json(tmp_path / "a.json", [image(1)], categories=categories, pictures=tmp_path)
    dataset = read_dataset(path)
    assert (dataset.class_names, dataset.category_ids) == (("bar", "disc"), (3, 7))
    assert dataset.all_samples()[0].class_ids.tolist() == [1]


def test_categories_that_are_identified_by_words_are_numbered_in_their_order(tmp_path):
    categories = [{"id": "d-1", "name": "disc"}, {"id": "b-2", "name": "bar"}]
    rows = [annotation(1, category_id="b-2"), annotation(1, category_id="c-3")]
    path = write_json(tmp_path / "a.json", [image(1)], rows, categories, pictures=tmp_path)
    dataset = read_dataset(path)
    assert (dataset.class_names, dataset.category_ids) == (("disc", "bar"), (1, 2))
    assert dataset.all_samples()[0].class_ids.tolist() == [1]
    assert kinds_of(dataset) == ["bad_row"]


@pytest.mark.parametrize("broken", ["words", {"file_name": "9.jpg"}, {"id": 9}, {"id": 9, "file_name": None}])
def test_an_image_without_its_fields_is_skipped_and_the_others_are_read(tmp_path, broken):
    path = write_json(tmp_path / "a.json", [image(1)], pictures=tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": [broken, image(1)]}, indent=0))
    dataset = read_dataset(path)
    assert len(boxes_of(dataset)) == 1
    assert [(problem.kind, problem.where) for problem in dataset.problems] == [("bad_row", f"{path}:3")]


# Boxes


POLYGON = [10, 10, 40, 10, 40, 30]


@pytest.mark.parametrize(
    "segmentation",
    [
        [POLYGON],
        POLYGON,
        [[10, 10, 20, 10, 20, 30], [30, 20, 40, 20, 40, 30]],
        [[10, 10], [40, 10], [40, 30]],
        [[[10, 10], [40, 10], [40, 30]]],
    ],
)
@pytest.mark.parametrize("missing", [{}, {"bbox": None}, {"bbox": []}])
def test_where_there_is_no_bbox_the_box_is_that_of_the_outline(tmp_path, segmentation, missing):
    row = {"id": 1, "image_id": 1, "category_id": 7, "segmentation": segmentation, **missing}
    path = write_json(tmp_path / "a.json", [image(1)], [row, annotation(1)], pictures=tmp_path)
    dataset = read_dataset(path)
    assert boxes_of(dataset) == [[2, 3, 12, 23], [10, 10, 40, 30]]
    assert (
        "1 of 2 annotations have no bbox; the box around their outline" in said_of(dataset) and dataset.problems == ()
    )


@pytest.mark.parametrize(
    ("segmentation", "text"),
    [
        ({"counts": "abc", "size": [40, 60]}, "without a bbox, whose mask is run-length encoded"),
        ([], "without a bbox and without an outline"),
        (None, "without a bbox and without an outline"),
        ([[1, 2, 3, 4]], "without a bbox and without an outline"),
        ([[1, 2, 3, 4, 5, 6, 7]], "without a bbox and without an outline"),
        ([["a", 2, 3, 4, 5, 6]], "bbox is not four numbers"),
        ([{"x": 1}], "bbox is not four numbers"),
    ],
)
def test_where_there_is_neither_bbox_nor_outline_the_row_is_rejected(tmp_path, segmentation, text):
    row = {"id": 4, "image_id": 1, "category_id": 7, "segmentation": segmentation}
    path = write_json(tmp_path / "a.json", [image(1), image(2)], [row, annotation(2)], pictures=tmp_path)
    dataset = read_dataset(path)
    assert kinds_of(dataset) == ["bad_row", "rows_lost"]
    assert f"{path}:1 annotation 4: skipped an annotation" in said_of(dataset) and text in said_of(dataset)
    assert [sample.path.name for sample in dataset.all_samples()] == ["002.jpg"]


def test_a_picture_that_has_lost_all_of_its_rows_is_left_out_and_one_without_rows_is_background(tmp_path):
    entries = [image(number) for number in (1, 2, 3)]
    rows = [annotation(1, category_id=99), annotation(2), annotation(2, [1, 2])]
    path = write_json(tmp_path / "a.json", entries, rows, pictures=tmp_path)
    dataset = read_dataset(path)
    assert {sample.path.stem: len(sample.boxes) for sample in dataset.all_samples()} == {"002": 1, "003": 0}
    assert sorted(kinds_of(dataset)) == ["bad_row", "rows_lost", "unknown_class"]


@pytest.mark.parametrize(("crowd", "ignored"), [("0", False), ("1", True), (None, False), (False, False), (True, True)])
def test_crowds_are_marked_however_it_is_written(tmp_path, crowd, ignored):
    path = write_json(tmp_path / "a.json", [image(1)], [annotation(1, iscrowd=crowd)], pictures=tmp_path)
    assert read_dataset(path).all_samples()[0].ignore.tolist() == [ignored]


def test_swapped_corners_and_fractions_are_told_for_the_whole_set(tmp_path):
    entries = [image(number) for number in (1, 2, 3)]
    rows = [annotation(number, (0.1, 0.25, 0.3, 0.5)) for number in (1, 2, 3)]
    path = write_json(tmp_path / "a.json", entries, rows, pictures=tmp_path)
    assert "3 of 3 boxes have all numbers from 0 to 1" in said_of(read_dataset(path))
    scaled = read_dataset(path, boxes_in="fractions")
    np.testing.assert_allclose(boxes_of(scaled), [[6, 10, 24, 30]] * 3, rtol=1e-6)
    rows = [annotation(number, (40, 30, -30, -20)) for number in (1, 2, 3)]
    write_json(path, entries, rows)
    with pytest.raises(DataError, match="3 of 3 boxes have swapped corners"):
        read_dataset(path)


def test_a_second_corner_in_place_of_width_and_height_is_told(tmp_path):
    entries = [image(number) for number in (1, 2, 3)]
    rows = [annotation(number, (20, 10, 50, 38)) for number in (1, 2, 3)]
    path = write_json(tmp_path / "a.json", entries, rows, pictures=tmp_path)
    assert "corners_as_size" in kinds_of(read_dataset(path))
    assert boxes_of(read_dataset(path, boxes_in="corners")) == [[20, 10, 50, 38]] * 3


# Declared sizes


def test_a_declared_size_that_is_half_of_the_pictures(tmp_path):
    entries = [image(number) | {"width": 30, "height": 20} for number in (1, 2, 3)]
    rows = [annotation(number, (2, 3, 10, 10)) for number in (1, 2, 3)]
    path = write_json(tmp_path / "a.json", entries, rows, pictures=tmp_path)
    dataset = read_dataset(path)
    assert kinds_of(dataset) == ["declared_size"]
    assert "3 of 3 pictures have another size" in said_of(dataset) and "declared 30x20, in the file 60x40" in said_of(
        dataset
    )
    assert boxes_of(read_dataset(path, boxes_in="declared")) == [[4, 6, 24, 26]] * 3


def test_a_declared_size_before_the_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    entries = [image(number) for number in (1, 2, 3)]
    path = write_json(tmp_path / "a.json", entries)
    for entry in entries:
        Image.new("RGB", (60, 40), (90, 90, 90)).save(tmp_path / entry["file_name"], exif=exif)
    assert "3 of 3 pictures were annotated before their EXIF orientation" in said_of(read_dataset(path))
    assert boxes_of(read_dataset(path, boxes_in="raw")) == [[17, 2, 37, 12]] * 3


@pytest.mark.parametrize(
    "size", [{"width": None, "height": None}, {"width": 0, "height": 0}, {"width": "a", "height": 40}]
)
def test_an_unknown_size_is_none(tmp_path, size):
    path = write_json(tmp_path / "a.json", [image(1) | size], pictures=tmp_path)
    assert read_dataset(path).problems == ()


# Pictures


def test_of_namesakes_the_one_of_the_split_is_taken_and_it_is_said(tmp_path):
    for split in ("train", "val"):
        write_json(
            tmp_path / "annotations" / f"instances_{split}.json", [image(1, "hen.jpg")], pictures=tmp_path / split
        )
    write_pictures(tmp_path / "images", ["hen.jpg"])
    dataset = read_dataset(tmp_path)
    paths = {split: [sample.path for sample in samples] for split, samples in dataset.splits.items()}
    assert paths == {split: [tmp_path / split / "hen.jpg"] for split in ("train", "val")}
    assert f"{tmp_path / 'train'} is read and {tmp_path / 'images'} is not (first: hen.jpg)" in said_of(dataset)


@pytest.mark.parametrize("folder", ["valid", "Validation", "images/val_images", "val/images", "data"])
def test_pictures_are_found_in_folders_with_the_name_of_the_split(tmp_path, folder):
    write_json(tmp_path / "annotations" / "instances_val.json", [image(1)], pictures=tmp_path / folder)
    assert ids_of(read_dataset(tmp_path)) == {"val": ["001"]}


def test_two_splits_may_have_their_pictures_in_the_folder_of_one(tmp_path):
    write_json(tmp_path / "annotations" / "train.json", [image(1)], pictures=tmp_path / "train")
    write_json(tmp_path / "annotations" / "val.json", [image(2)], pictures=tmp_path / "train")
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset) == {"train": ["001"], "val": ["002"]}
    assert "val.json: 1 of its 1 pictures were found in the folder of another split" in said_of(dataset)


def test_a_namesake_of_another_split_is_not_taken_for_a_missing_picture(tmp_path):
    write_json(tmp_path / "annotations" / "train.json", [image(1), image(2)], pictures=tmp_path / "train")
    write_json(tmp_path / "annotations" / "val.json", [image(1)])
    dataset = read_dataset(tmp_path)
    assert ids_of(dataset) == {"train": ["001", "002"]}
    assert kinds_of(dataset) == ["missing_image"]
    assert "skipped the image 001.jpg, which is there only for another split" in said_of(dataset)


def test_a_name_that_fits_several_pictures_is_not_taken(tmp_path):
    for folder in ("a", "b"):
        write_pictures(tmp_path / folder, ["001.jpg"])
    write_json(tmp_path / "all.json", [image(1), image(2)])
    write_pictures(tmp_path, ["002.jpg"])
    dataset = read_dataset(tmp_path)
    assert [sample.path.name for sample in dataset.all_samples()] == ["002.jpg"]
    assert f"1 name fits several pictures below {tmp_path}, none of which is taken (first: 001.jpg)" in said_of(dataset)


@pytest.mark.data
def test_open_coco_photographs(data_root):
    dataset = read_dataset(data_root / "coco_val_open")
    assert len(dataset.all_samples()) == 91
    assert sum(len(sample.boxes) for sample in dataset.all_samples()) == 716
