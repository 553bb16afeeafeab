"""CreateML JSON, as Roboflow and others write it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge_effdet.data import createml
from edge_effdet.data.raw import Certainty
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError


def row(label: Any = "bird", x=25, y=25, width=30, height=30):
    return {"label": label, "coordinates": {"x": x, "y": y, "width": width, "height": height}}


def entry(name, *rows):
    return {"image": name, "annotations": list(rows or [row()])}


@pytest.fixture
def make(draw, write):
    """A function that writes a file with entries, and a picture 96 wide and 64 high beside it for each."""

    def write_file(path, *entries, **dumping):
        for each in entries:
            draw(path.parent / each["image"], (64, 96))
        return write(path, json.dumps(entries, **dumping))

    return write_file


def boxes_of(dataset):
    return sorted(box for sample in dataset.all_samples() for box in sample.boxes.tolist())


def test_a_folder_for_each_split_as_roboflow_writes_it(tmp_path, make):
    for split in ("train", "valid", "test"):
        names = [f"{split}_{number}_jpg.rf.1.jpg" for number in range(3)]
        make(tmp_path / split / "_annotations.createml.json", *map(entry, names))
    assert createml.recognises(tmp_path) == Certainty.SURE
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.exporter, dataset.class_names) == ("createml", "Roboflow", ("bird",))
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 3, "val": 3, "test": 3}
    assert boxes_of(dataset) == [[10, 10, 40, 40]] * 9
    assert dataset.problems == ()


@pytest.mark.parametrize("name", ["birds.json", "annotations/birds.json", "birds/birds.json"])
def test_one_file_of_any_name(tmp_path, draw, write, name):
    draw(tmp_path / name.rpartition("/")[0] / "hen.jpg", (64, 96))
    path = write(tmp_path / name, json.dumps([{"imagefilename": "hen.jpg", "annotation": [row(), row("owl")]}]))
    for given in (tmp_path, path):
        assert createml.recognises(given) == (Certainty.LIKELY if given == tmp_path else Certainty.SURE)
        dataset = read_dataset(given)
        assert dataset.class_names == ("bird", "owl")
        assert boxes_of(dataset) == [[10, 10, 40, 40]] * 2
        assert dataset.exporter == ""


@pytest.mark.parametrize(
    "content",
    [
        [],
        {},
        [1, 2],
        ["image", "annotations"],
        {"image": "hen.jpg", "annotations": []},
        [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
        [{"id": 1, "annotations": [{"result": []}], "data": {"image": "/data/upload/1/hen.jpg"}}],
        [{"image": "hen.jpg"}],
        [{"image": 1, "annotations": []}],
    ],
)
def test_other_lists_are_not_recognised(tmp_path, write, content):
    path = write(tmp_path / "other.json", json.dumps(content))
    assert createml.recognises(tmp_path) == createml.recognises(path) == Certainty.NO


def test_a_large_first_entry_and_a_damaged_one(tmp_path, write):
    path = write(tmp_path / "a.json", json.dumps([entry("hen.jpg", *[row()] * 5000), entry("ö.jpg", *[row()] * 50000)]))
    assert createml.recognises(path) == Certainty.SURE
    assert createml.recognises(write(tmp_path / "b.json", '[{"image": "hen.jpg", "annotations": [')) == Certainty.NO


def test_an_empty_list_of_annotations_is_background(tmp_path, make):
    make(tmp_path / "_annotations.createml.json", entry("hen.jpg"), {"image": "owl.jpg", "annotations": []})
    assert sorted(len(sample.boxes) for sample in read_dataset(tmp_path).all_samples()) == [0, 1]


@pytest.mark.parametrize(
    "broken",
    [
        {"label": "bird"},
        {"label": "bird", "coordinates": None},
        {"label": "bird", "coordinates": {"x": 1, "y": 2, "width": 3}},
        {"label": "bird", "coordinates": {"x": "a", "y": 2, "width": 3, "height": 4}},
        {"coordinates": row()["coordinates"]},
        row(label=None),
        row(label=""),
        "words",
    ],
)
def test_a_row_without_a_box_or_label_is_rejected_with_its_line(tmp_path, make, problems_of, broken):
    entries = [entry("hen.jpg"), entry("owl.jpg", row(), broken), entry("duck.jpg", broken)]
    path = make(tmp_path / "_annotations.createml.json", *entries, indent=1)
    dataset = read_dataset(tmp_path)
    lines = path.read_text().splitlines()
    first, second = (lines.index(f'  "image": "{name}.jpg",') for name in ("owl", "duck"))
    name = "_annotations.createml.json"
    assert problems_of(dataset) == [
        ("bad_row", f"{name}:{first} annotation 2"),
        ("bad_row", f"{name}:{second} annotation 1"),
        ("rows_lost", "duck.jpg"),
    ]
    assert sorted(sample.path.name for sample in dataset.all_samples()) == ["hen.jpg", "owl.jpg"]


def test_an_entry_without_its_fields_and_a_missing_picture_are_named(tmp_path, make, problems_of):
    path = make(tmp_path / "_annotations.createml.json", entry("hen.jpg"))
    entries = [entry("hen.jpg"), "words", {"image": "owl.jpg"}, {"annotations": []}, entry("absent.jpg")]
    path.write_text(json.dumps(entries))
    dataset = read_dataset(tmp_path)
    assert problems_of(dataset) == [("bad_row", f"{path.name}:1")] * 3 + [("missing_image", f"{path.name}:1")]
    assert dataset.problems[-1].text == "skipped the image absent.jpg, which is not there"


def test_a_picture_that_is_named_twice_gets_the_boxes_of_both_entries(tmp_path, make):
    make(tmp_path / "a.json", entry("hen.jpg"), entry("hen.jpg", row(x=60)))
    dataset = read_dataset(tmp_path)
    assert boxes_of(dataset) == [[10, 10, 40, 40], [45, 10, 75, 40]]
    assert any("1 of 2 entries name a picture again" in note for note in dataset.notes)


def test_names_with_folders_and_backslashes(tmp_path, draw, write):
    draw(tmp_path / "images" / "hen.jpg", (64, 96))
    write(tmp_path / "a.json", json.dumps([entry("images\\hen.jpg")]))
    assert boxes_of(read_dataset(tmp_path)) == [[10, 10, 40, 40]]


def test_a_namesake_of_another_split_is_not_taken(tmp_path, make, write, problems_of):
    make(tmp_path / "train" / "_annotations.createml.json", entry("0001.jpg"), entry("0002.jpg"))
    write(tmp_path / "valid" / "_annotations.createml.json", json.dumps([entry("0001.jpg")]))
    dataset = read_dataset(tmp_path)
    assert set(dataset.splits) == {"train"}
    assert problems_of(dataset) == [("missing_image", "valid/_annotations.createml.json:1")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path, draw, encoding):
    draw(tmp_path / "hen.jpg", (64, 96))
    text = json.dumps([entry("hen.jpg", row("Möwe"))], ensure_ascii=False)
    (tmp_path / "a.json").write_bytes(text.encode(encoding))
    assert read_dataset(tmp_path).class_names == ("Möwe",)


@pytest.mark.parametrize("content", ['[{"image": ', '{"image": "hen.jpg"}'])
def test_a_damaged_file_is_a_problem_and_alone_an_error(tmp_path, make, write, problems_of, content):
    make(tmp_path / "train" / "_annotations.createml.json", entry("hen.jpg"))
    damaged = write(tmp_path / "valid" / "_annotations.createml.json", content)
    dataset = read_dataset(tmp_path)
    assert problems_of(dataset) == [("bad_row", "valid/_annotations.createml.json")]
    assert set(dataset.splits) == {"train"}
    with pytest.raises(DataError, match=r"no usable picture left \(1 bad_row\)"):
        read_dataset(damaged)
