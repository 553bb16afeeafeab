"""labelme JSON, a file for each picture."""

from __future__ import annotations

import json
from typing import Any

import pytest

from edge_effdet.data import coco, labelme
from edge_effdet.data.raw import Certainty
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError

CORNERS = ((10, 10), (40, 40))


def shape(points: Any = CORNERS, kind: Any = "rectangle", label: Any = "bird", **more):
    return {"label": label, "points": [list(point) for point in points], "shape_type": kind, "flags": {}, **more}


def content_of(picture, *shapes, **more):
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": list(shapes),
        "imagePath": picture,
        "imageData": None,
        "imageHeight": 64,
        "imageWidth": 96,
        **more,
    }


@pytest.fixture
def make(draw, write):
    """A function that writes a labelme file, and a picture 96 wide and 64 high beside it."""

    def write_file(path, *shapes, picture=True, indent=None, **more):
        if picture:
            draw(path.with_suffix(".jpg"), (64, 96))
        name = more.pop("name", f"{path.stem}.jpg")
        return write(path, json.dumps(content_of(name, *(shapes or [shape()]), **more), indent=indent))

    return write_file


def boxes_of(dataset):
    return sorted(box for sample in dataset.all_samples() for box in sample.boxes.tolist())


@pytest.mark.parametrize(
    ("points", "kind", "box"),
    [
        (((10, 10), (40, 40)), "rectangle", [10, 10, 40, 40]),
        (((40, 40), (10, 10)), "rectangle", [10, 10, 40, 40]),
        (((40, 10), (10, 40)), "rectangle", [10, 10, 40, 40]),
        (((10, 10), (40, 10), (40, 40), (10, 40)), "rectangle", [10, 10, 40, 40]),
        (((10, 10), (40, 10), (40, 40)), "polygon", [10, 10, 40, 40]),
        (((10, 10), (40, 10), (40, 40)), None, [10, 10, 40, 40]),
        (((25, 10), (40, 25), (25, 40), (10, 25)), "rotation", [10, 10, 40, 40]),
        (((25, 25), (40, 25)), "circle", [10, 10, 40, 40]),
        (((25, 25), (16, 13)), "circle", [10, 10, 40, 40]),
    ],
)
def test_the_box_of_each_shape(tmp_path, make, points, kind, box):
    path = make(tmp_path / "hen.json", shape(points, kind))
    for given in (tmp_path, path):
        dataset = read_dataset(given)
        assert (dataset.kind, dataset.exporter, dataset.class_names) == ("labelme", "labelme", ("bird",))
        assert boxes_of(dataset) == [box]
        assert dataset.problems == ()


@pytest.mark.parametrize("kind", ["mask", "point", "points", "line", "linestrip", "cuboid"])
def test_a_shape_that_is_not_a_box_is_named_with_its_line(tmp_path, make, problems_of, kind):
    path = make(tmp_path / "hen.json", shape(), shape(kind=kind), indent=1)
    make(tmp_path / "owl.json", shape(kind=kind))
    dataset = read_dataset(tmp_path)
    line = path.read_text().splitlines().index("  {", 8) + 1
    assert problems_of(dataset) == [
        ("bad_row", f"hen.json:{line} shape 2"),
        ("bad_row", "owl.json:1 shape 1"),
        ("rows_lost", "owl.json"),
    ]
    assert dataset.problems[0].text == f"skipped a shape of the type {kind} and the class bird, which is not a box"
    assert boxes_of(dataset) == [[10, 10, 40, 40]]


@pytest.mark.parametrize(
    "broken",
    [
        shape(CORNERS[:1]),
        shape(CORNERS, "polygon"),
        shape([]),
        shape([(1, 2, 3), (4, 5, 6)]),
        shape([("a", "b"), (1, 2)]),
        shape(label=""),
        shape(label=None),
        shape() | {"points": None},
        shape() | {"points": [1, 2, 3, 4]},
        shape(kind=["rectangle"]),
        "words",
    ],
)
def test_a_shape_that_is_not_whole_is_rejected(tmp_path, make, broken):
    make(tmp_path / "hen.json", shape(), broken)
    dataset = read_dataset(tmp_path)
    assert [problem.kind for problem in dataset.problems] == ["bad_row"]
    assert boxes_of(dataset) == [[10, 10, 40, 40]]


@pytest.mark.parametrize(
    ("path", "stored"),
    [
        ("..\\pics\\hen.jpg", "pics/hen.jpg"),
        ("..\\pics\\hen.jpg", "json/hen.jpg"),
        ("../images/hen.jpg", "images/hen.jpg"),
        ("C:\\Users\\me\\hen.jpg", "json/hen.jpg"),
        ("/home/me/set/hen.jpg", "images/hen.jpg"),
        ("IMG_0001.JPG", "json/hen.png"),
        (None, "json/hen.png"),
        ("hen.jpg", "deep/folder/hen.jpg"),
    ],
)
def test_where_the_picture_is(tmp_path, draw, make, path, stored):
    draw(tmp_path / stored, (64, 96))
    make(tmp_path / "json" / "hen.json", picture=False, name=path)
    dataset = read_dataset(tmp_path)
    assert [sample.path for sample in dataset.all_samples()] == [tmp_path / stored]
    assert boxes_of(dataset) == [[10, 10, 40, 40]]


def test_a_renamed_picture_beside_its_file_is_taken_before_another_that_still_has_the_name(tmp_path, draw, make):
    make(tmp_path / "a" / "hen.json", name="IMG_1.jpg")
    draw(tmp_path / "b" / "IMG_1.jpg", (64, 96))
    assert [sample.path for sample in read_dataset(tmp_path).all_samples()] == [tmp_path / "a" / "hen.jpg"]


def test_folders_with_the_names_of_splits(tmp_path, draw, make):
    make(tmp_path / "train" / "hen.json")
    draw(tmp_path / "images" / "val" / "hen.jpg", (64, 96))
    make(tmp_path / "labels" / "val" / "hen.json", picture=False)
    dataset = read_dataset(tmp_path)
    paths = {split: [sample.path for sample in samples] for split, samples in dataset.splits.items()}
    assert paths == {"train": [tmp_path / "train" / "hen.jpg"], "val": [tmp_path / "images" / "val" / "hen.jpg"]}
    assert len({sample.image_id for sample in dataset.all_samples()}) == 2


def test_a_namesake_of_another_split_is_not_taken(tmp_path, make, problems_of):
    make(tmp_path / "train" / "hen.json")
    make(tmp_path / "val" / "hen.json", picture=False)
    dataset = read_dataset(tmp_path)
    assert set(dataset.splits) == {"train"}
    assert problems_of(dataset) == [("missing_image", "val/hen.json")]


def test_a_picture_that_is_only_in_the_file_is_missing_and_the_cure_is_named(tmp_path, make):
    make(tmp_path / "hen.json", picture=False, imageData="aGVu")
    with pytest.raises(
        DataError, match=r"hen\.jpg, which is not there; the JSON holds a copy of it, which labelme_export"
    ):
        read_dataset(tmp_path)


def test_no_shapes_is_background_and_no_file_is_not(tmp_path, draw, make):
    make(tmp_path / "hen.json")
    owl = make(tmp_path / "owl.json")
    owl.write_text(json.dumps(content_of("owl.jpg")))
    draw(tmp_path / "duck.jpg")
    (tmp_path / "settings.json").write_text('{"shapes": 4}')
    dataset = read_dataset(tmp_path)
    assert {sample.path.stem: len(sample.boxes) for sample in dataset.all_samples()} == {"hen": 1, "owl": 0}
    assert f"{tmp_path}: duck.jpg is not read: pictures without a labelme file." in dataset.notes
    assert f"{tmp_path}: settings.json is not read: JSON without shapes." in dataset.notes


def test_a_declared_size_of_another_picture_is_told(tmp_path, make):
    for name in ("hen", "owl", "duck"):
        make(tmp_path / f"{name}.json", imageHeight=32, imageWidth=48)
    dataset = read_dataset(tmp_path)
    assert [problem.kind for problem in dataset.problems] == ["declared_size"]
    assert boxes_of(read_dataset(tmp_path, boxes_in="declared")) == [[20, 20, 80, 64]] * 3


def test_anylabeling_writes_the_same_form(tmp_path, make):
    make(tmp_path / "hen.json", shape(difficult=False), shape(difficult=True, score=None))
    dataset = read_dataset(tmp_path)
    assert dataset.exporter == "X-AnyLabeling"
    assert dataset.all_samples()[0].ignore.tolist() == [False, True]


def test_two_files_of_one_picture_are_named(tmp_path, make):
    make(tmp_path / "hen.json")
    make(tmp_path / "hen_flipped.json", name="hen.jpg")
    assert [problem.kind for problem in read_dataset(tmp_path).problems] == ["named_twice"]


@pytest.mark.parametrize("content", ['{"shapes": [', '{"shapes": [] "imagePath": 1', '{"a": {"shapes": []}}'])
def test_a_damaged_file_is_a_problem(tmp_path, make, problems_of, content):
    make(tmp_path / "hen.json")
    (tmp_path / "owl.json").write_text(content)
    dataset = read_dataset(tmp_path)
    assert problems_of(dataset) == [("bad_row", "owl.json")]
    assert boxes_of(dataset) == [[10, 10, 40, 40]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "cp1252"])
def test_encodings(tmp_path, draw, encoding):
    draw(tmp_path / "hen.jpg", (64, 96))
    text = json.dumps(content_of("hen.jpg", shape(label="Möwe")), ensure_ascii=False)
    (tmp_path / "hen.json").write_bytes(text.encode(encoding))
    assert read_dataset(tmp_path).class_names == ("Möwe",)


def test_keys_in_another_order_behind_the_picture_itself(tmp_path, make):
    path = make(tmp_path / "hen.json", imageData="x" * 200_000)
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert labelme.recognises(path) == Certainty.SURE and coco.recognises(path) == Certainty.NO
    assert boxes_of(read_dataset(tmp_path)) == [[10, 10, 40, 40]]


def test_how_sure_it_is(tmp_path, draw, write, make):
    make(tmp_path / "hen.json")
    assert labelme.recognises(tmp_path) == Certainty.LIKELY
    assert labelme.recognises(tmp_path / "hen.jpg") == Certainty.NO
    for number in range(10):
        draw(tmp_path / f"{number}.jpg")
    assert labelme.recognises(tmp_path) == Certainty.MAYBE
    (tmp_path / "hen.json").unlink()
    write(tmp_path / "animation.json", '{"shapes": [], "layers": []}')
    assert labelme.recognises(tmp_path) == labelme.recognises(tmp_path / "animation.json") == Certainty.NO
