"""Pascal VOC folders as they are found, and what is wrong in them."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data import voc
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError

BOX = (2, 3, 20, 30)


def item(name="disc", box=BOX, more=""):
    sides = "".join(
        f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    )
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


def write_picture(path, size=(40, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), 100, np.uint8)).save(path)


def write_voc(root, objects, annotations="Annotations", images="JPEGImages", suffix=".jpg"):
    """Write a picture of 40 x 60 and an XML file for each stem in ``objects``, which maps stems to the XML of their objects."""
    for stem, text in objects.items():
        write_picture(root / images / f"{stem}{suffix}")
        xml = root / annotations / f"{stem}.xml"
        xml.parent.mkdir(parents=True, exist_ok=True)
        xml.write_text(f"<annotation><filename>{stem}</filename>{text}</annotation>")
    return root


def write_split(root, name, stems):
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text("\n".join(stems) + "\n\n")


def stems_of(samples):
    return [sample.image_id for sample in samples]


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("Annotations", "JPEGImages"),
        ("annotations", "images"),
        ("annots", "Images"),
        ("xml", "imgs"),
        ("xmls", "images"),
        (".", "."),
        (".", "images"),
        ("annotations", "annotations"),
    ],
)
def test_folders_of_several_names(tmp_path, annotations, images):
    dataset = read_dataset(write_voc(tmp_path, {"a": item(), "b": item("bar")}, annotations, images))
    assert (dataset.kind, dataset.class_names, dataset.category_ids) == ("voc", ("bar", "disc"), (1, 2))
    assert stems_of(dataset.all_samples()) == ["a", "b"]
    sample = dataset.all_samples()[0]
    assert (sample.height, sample.width) == (40, 60)
    np.testing.assert_array_equal(sample.boxes, [BOX])
    assert sample.boxes.dtype == np.float32
    np.testing.assert_array_equal(sample.class_ids, [1])


@pytest.mark.parametrize("suffix", [".png", ".JPG", ".jpeg"])
def test_pictures_of_several_kinds(tmp_path, suffix):
    dataset = read_dataset(write_voc(tmp_path, {"a": item(), "b": item()}, suffix=suffix))
    assert len(dataset.all_samples()) == 2


def test_an_empty_annotation_folder_is_passed_over(tmp_path):
    (tmp_path / "Annotations").mkdir()
    write_voc(tmp_path, {"a": item()}, annotations="xml")
    assert stems_of(read_dataset(tmp_path).all_samples()) == ["a"]


def test_splits_come_from_image_sets_in_their_order(tmp_path, caplog):
    write_voc(tmp_path, {stem: item() for stem in "abcd"})
    write_split(tmp_path, "train", ["c", "a"])
    write_split(tmp_path, "trainval", ["c 1", "a -1", "b"])
    write_split(tmp_path, "test", ["d", "absent", "other"])
    dataset = read_dataset(tmp_path)
    assert {name: stems_of(samples) for name, samples in dataset.splits.items()} == {
        "train": ["c", "a"],
        "trainval": ["c", "a", "b"],
        "test": ["d"],
    }
    assert dataset.notes == ()
    assert stems_of(dataset.all_samples()) == ["a", "b", "c", "d"]
    assert [(problem.kind, problem.where[-10:]) for problem in dataset.problems] == [
        ("missing_image", "test.txt:2"),
        ("missing_image", "test.txt:3"),
    ]
    assert "test.txt:2: skipped absent, which has no XML file" in caplog.text


def test_without_a_split_file_some_are_held_out_and_it_is_said(tmp_path, caplog):
    write_voc(tmp_path, {f"{number:02}": item() for number in range(20)})
    caplog.set_level(logging.INFO)
    first, again = read_dataset(tmp_path), read_dataset(tmp_path)
    assert {name: len(samples) for name, samples in first.splits.items()} == {"train": 16, "val": 4}
    assert not set(stems_of(first.splits["train"])) & set(stems_of(first.splits["val"]))
    assert stems_of(first.splits["val"]) == stems_of(again.splits["val"])
    assert len(first.notes) == 1
    assert f"{tmp_path} names no splits: 4 of 20 images, chosen with seed 0" in first.notes[0]
    assert first.notes[0] in caplog.text


def test_difficult_objects_are_marked(tmp_path):
    text = item() + item(more="<difficult>1</difficult>") + item(more="<difficult>0</difficult>")
    sample = read_dataset(write_voc(tmp_path, {"a": text})).all_samples()[0]
    np.testing.assert_array_equal(sample.ignore, [False, True, False])


def test_parts_of_an_object_are_no_objects(tmp_path):
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    dataset = read_dataset(write_voc(tmp_path, {"a": item(more=part)}))
    assert dataset.class_names == ("disc",)
    np.testing.assert_array_equal(dataset.all_samples()[0].boxes, [BOX])


def test_a_picture_without_objects_stays(tmp_path):
    dataset = read_dataset(write_voc(tmp_path, {"a": item(), "b": ""}))
    empty = dataset.all_samples()[1]
    assert (empty.boxes.shape, empty.class_ids.shape, empty.ignore.shape) == ((0, 4), (0,), (0,))


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ((5, 5, 5, 9), "degenerate"),
        ((9, 5, 5, 9), "degenerate"),
        ((60, 0, 70, 10), "degenerate"),
        (("nan", 1, 2, 3), "not_finite"),
        ((1, 1, "inf", 9), "not_finite"),
    ],
)
def test_what_is_no_box_is_skipped_and_its_line_named(tmp_path, caplog, box, kind):
    dataset = read_dataset(write_voc(tmp_path, {"odd": f"\n{item()}\n{item(box=box)}\n"}))
    sample = dataset.all_samples()[0]
    np.testing.assert_array_equal(sample.boxes, [BOX])
    assert len(sample.class_ids) == len(sample.ignore) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    where = f"{tmp_path / 'Annotations' / 'odd.xml'}:3"
    assert [(problem.kind, problem.where) for problem in dataset.problems] == [(kind, where)]
    assert f"{where}: skipped" in caplog.text


def test_a_box_is_clipped_to_the_picture(tmp_path):
    dataset = read_dataset(write_voc(tmp_path, {"a": item(box=(-3, "1.5", 61, 99)) + item(box=(0, 0, 61, 9))}))
    np.testing.assert_array_equal(dataset.all_samples()[0].boxes, [[0, 1.5, 60, 40], [0, 0, 60, 9]])
    assert [problem.kind for problem in dataset.problems] == ["outside"]
    assert "59 pixels beyond" in dataset.problems[0].text


def test_a_box_that_stands_there_twice_is_told_and_kept(tmp_path):
    dataset = read_dataset(write_voc(tmp_path, {"a": item() + item("bar") + item()}))
    assert len(dataset.all_samples()[0].boxes) == 3
    assert [problem.kind for problem in dataset.problems] == ["duplicate"]


def test_a_file_in_another_encoding_is_read(tmp_path):
    write_voc(tmp_path, {"a": item()})
    text = f'<?xml version="1.0" encoding="iso-8859-1"?><annotation>{item("Bär")}</annotation>'
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode("latin-1"))
    assert read_dataset(tmp_path).class_names == ("Bär",)


def test_images_without_a_file_are_counted_in_a_note(tmp_path):
    write_voc(tmp_path, {"a": item(), "b": item()})
    (tmp_path / "Annotations" / "b.xml").unlink()
    dataset = read_dataset(tmp_path)
    assert "1 images have no XML file and are left out (first: b.jpg)" in dataset.notes[-1]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<object><name>disc", "not whole XML .mismatched tag"),
        ("\n<object>\n</wrong>", "bad.xml:3: skipped bad.xml: it is not whole XML"),
        ("<?xml version='1.0' encoding='klingon'?>", "not whole XML"),
        ("<object><name>disc</name></object>", "object 1 has no box"),
        (item() + "<object><bndbox/></object>", "object 2 has no name"),
        (item(box=(1, 2, "wide", 4)), r"object 1 \(disc\) has a box that is not four numbers"),
        ("<object><name>disc</name><bndbox><xmin>1</xmin></bndbox></object>", "not four numbers"),
    ],
)
def test_a_broken_xml_is_skipped_with_its_name_and_reason(tmp_path, caplog, text, reason):
    dataset = read_dataset(write_voc(tmp_path, {"bad": text, "good": item()}))
    assert stems_of(dataset.all_samples()) == ["good"]
    assert [problem.kind for problem in dataset.problems] == ["bad_row"]
    assert len(caplog.records) == 1
    assert str(tmp_path / "Annotations" / "bad.xml") in caplog.text
    assert re.search(reason, caplog.text)


def test_a_missing_picture_is_skipped_and_named(tmp_path, caplog):
    write_voc(tmp_path, {"a": item(), "b": item()})
    (tmp_path / "JPEGImages" / "b.jpg").unlink()
    assert stems_of(read_dataset(tmp_path).all_samples()) == ["a"]
    assert f"{tmp_path / 'Annotations' / 'b.xml'}:1: skipped b.xml: it has no image b.*" in caplog.text


def test_a_file_that_is_no_picture_is_skipped_and_named(tmp_path, caplog):
    write_voc(tmp_path, {"a": item(), "b": item()})
    (tmp_path / "JPEGImages" / "b.jpg").write_bytes(b"words")
    assert stems_of(read_dataset(tmp_path).all_samples()) == ["a"]
    assert str(tmp_path / "JPEGImages" / "b.jpg") in caplog.text


def test_a_folder_whose_files_are_all_broken_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"Annotations holds no readable annotation"):
        read_dataset(write_voc(tmp_path, {"a": "<object>", "b": ""}))


def test_a_folder_without_its_pictures_is_refused(tmp_path):
    write_voc(tmp_path, {"a": item()})
    (tmp_path / "JPEGImages" / "a.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=rf"{tmp_path} holds annotations but none of their images"):
        read_dataset(tmp_path)


def test_other_folders_are_not_recognised(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    assert not voc.recognises(tmp_path)
    (tmp_path / "file.xml").write_text("<annotation/>")
    assert not voc.recognises(tmp_path / "file.xml")
    assert voc.recognises(tmp_path)


@pytest.mark.data
def test_blood_cells(bccd, caplog):
    dataset = read_dataset(bccd)
    assert dataset.class_names == ("Platelets", "RBC", "WBC")
    assert {name: len(samples) for name, samples in dataset.splits.items()}["test"] == 72
    assert len(dataset.all_samples()) == 364
    degenerate = [record.getMessage() for record in caplog.records if "degenerate" in record.getMessage()]
    assert len(degenerate) == 2
    assert [problem.where.removeprefix(f"{bccd}/") for problem in dataset.problems] == [
        "Annotations/BloodImage_00338.xml:158",
        "Annotations/BloodImage_00343.xml:50",
    ]
    assert all(problem.where in message for problem, message in zip(dataset.problems, degenerate, strict=True))
    assert sum(len(sample.boxes) for sample in dataset.all_samples()) == 4888 - 2
    for sample in dataset.all_samples():
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= (640, 480, 640, 480)).all()
