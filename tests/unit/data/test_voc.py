"""Pascal VOC folders as they are found, and what is wrong in them."""

from __future__ import annotations

import logging
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data import voc
from edge_effdet.data.raw import Certainty
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
    assert f"{tmp_path} names no splits: 4 of 20 images, chosen by the hashes of their names" in first.notes[0]
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


def test_swapped_corners_are_told_with_their_line(tmp_path):
    dataset = read_dataset(write_voc(tmp_path, {"odd": f"\n{item()}\n{item(box=(9, 5, 5, 9))}\n"}))
    where = f"{tmp_path / 'Annotations' / 'odd.xml'}:3"
    assert [(problem.kind, problem.where) for problem in dataset.problems] == [("swapped", where)]


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
    assert f"{tmp_path / 'JPEGImages'}: left out 1 image without an XML file (first: b.jpg)." in dataset.notes


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<object><name>disc", "not whole XML .mismatched tag"),
        ("\n<object>\n</wrong>", "bad.xml:3: skipped bad.xml: it is not whole XML"),
        ("<?xml version='1.0' encoding='klingon'?>", "not whole XML"),
    ],
)
def test_a_broken_xml_is_skipped_with_its_name_and_reason(tmp_path, caplog, text, reason):
    dataset = read_dataset(write_voc(tmp_path, {"bad": text, "good": item()}))
    assert stems_of(dataset.all_samples()) == ["good"]
    assert [problem.kind for problem in dataset.problems] == ["bad_row"]
    assert len(caplog.records) == 1
    assert str(tmp_path / "Annotations" / "bad.xml") in caplog.text
    assert re.search(reason, caplog.text)
    assert not [note for note in dataset.notes if "without an XML file" in note]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<object><name>disc</name></object>", "disc has no bndbox"),
        ("<object><name>disc</name><polygon><x1>1</x1></polygon></object>", "disc has no bndbox but a polygon"),
        ("<object><name>disc</name><robndbox><cx>1</cx></robndbox></object>", "disc has no bndbox but a robndbox"),
        ("<object><bndbox/></object>", "it has no name"),
        (item(box=(1, 2, "wide", 4)), "disc has a box that is not four numbers"),
        (
            "<object><name>disc</name><bndbox><xmin>1</xmin></bndbox></object>",
            "disc has a box that is not four numbers",
        ),
    ],
)
def test_an_object_that_cannot_be_understood_is_told_and_the_picture_keeps_the_others(tmp_path, text, reason):
    dataset = read_dataset(write_voc(tmp_path, {"a": f"\n{item()}\n{text}\n", "lost": text, "none": ""}))
    # Without its only object the picture would be background.
    assert stems_of(dataset.all_samples()) == ["a", "none"]
    np.testing.assert_array_equal(dataset.all_samples()[0].boxes, [BOX])
    found = {problem.where.rpartition("/")[2]: problem for problem in dataset.problems}
    assert found["a.xml:3"].text.startswith(f"skipped object 2 of a.xml: {reason}")
    assert (found["lost.xml:1"].kind, len(dataset.problems)) == ("rows_lost", 3)


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
    with pytest.raises(
        DataError, match=r"holds no XML file with an object.*a\.xml:1: skipped a\.xml: it is not whole XML"
    ):
        read_dataset(write_voc(tmp_path, {"a": "<object>", "b": ""}))


def test_a_folder_without_its_pictures_is_refused_with_the_reasons(tmp_path):
    write_voc(tmp_path, {stem: item() for stem in "abcd"})
    for stem in "abcd":
        (tmp_path / "JPEGImages" / f"{stem}.jpg").unlink()
    with pytest.raises(DataError, match="4 missing_image") as refused:
        read_dataset(tmp_path)
    assert f"{tmp_path / 'Annotations' / 'a.xml'}:1: skipped a.xml: it has no image a.*" in str(refused.value)
    assert f"pictures were looked for in {tmp_path / 'JPEGImages'}, " in str(refused.value)


def test_other_folders_are_not_recognised(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations").mkdir()
    assert voc.recognises(tmp_path) == Certainty.NO
    # CVAT's own XML holds all pictures of a task.
    (tmp_path / "Annotations" / "annotations.xml").write_text(
        "<?xml version='1.0'?>\n<annotations><version>1.1</version>"
    )
    assert voc.recognises(tmp_path) == Certainty.NO
    (tmp_path / "file.xml").write_text("<!-- by <hand> --><annotation/>")
    assert voc.recognises(tmp_path / "file.xml") == Certainty.NO
    assert voc.recognises(tmp_path) == Certainty.LIKELY
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation/>")
    assert voc.recognises(tmp_path) == Certainty.SURE


# Layouts of the programs that people use. Every picture is 96x64 and has one box.

BIRD = (10, 10, 40, 40)


def picture(path, colour=100, mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (96, 64), colour if mode == "L" else (colour, 90, 120)).save(path)


def annotation(path, filename, more="", size=(96, 64), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    declared = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    name = f"<filename>{filename}</filename>" if filename is not None else ""
    path.write_text(f"<annotation>{name}{more}{declared}{item('bird', options.get('box', BIRD))}</annotation>", "utf-8")


def boxes(dataset):
    return sorted(box.tolist() for sample in dataset.all_samples() for box in sample.boxes)


def names(dataset, split=None):
    return sorted(sample.path.name for sample in (dataset.splits[split] if split else dataset.all_samples()))


def said(dataset):
    return " ".join([*dataset.notes, *(problem.text for problem in dataset.problems)])


@pytest.mark.parametrize(
    "filename", ["hen.jpg", "hen", "JPEGImages/hen.jpg", "C:\\\\set\\\\hen.jpg", "HEN.JPG", None, ""]
)
def test_the_photo_is_read_and_not_the_mask_beside_it(tmp_path, filename):
    picture(tmp_path / "JPEGImages" / "hen.jpg")
    picture(tmp_path / "JPEGImages" / "hen.png", mode="L")
    annotation(tmp_path / "Annotations" / "hen.xml", filename and filename.replace("\\\\", "\\"))
    dataset = read_dataset(tmp_path)
    assert names(dataset) == ["hen.jpg"]
    assert "hen.png is not read and hen.jpg is" in said(dataset)


def test_the_file_name_in_the_xml_goes_before_a_likelier_suffix(tmp_path):
    picture(tmp_path / "JPEGImages" / "hen.jpg")
    picture(tmp_path / "JPEGImages" / "hen.png")
    annotation(tmp_path / "Annotations" / "hen.xml", "hen.png")
    assert names(read_dataset(tmp_path)) == ["hen.png"]


def test_a_file_name_of_another_picture_that_has_an_xml_of_its_own_is_not_followed(tmp_path):
    for stem in ("hen", "hen2"):
        picture(tmp_path / f"{stem}.jpg")
        annotation(tmp_path / f"{stem}.xml", "hen.jpg")
    dataset = read_dataset(tmp_path)
    assert names(dataset) == ["hen.jpg", "hen2.jpg"]
    assert "1 XML file names a picture that is not there, or that has an XML file of its own" in said(dataset)


def test_a_picture_that_was_converted_or_renamed_is_found_and_told(tmp_path):
    picture(tmp_path / "JPEGImages" / "hen.png")
    annotation(tmp_path / "Annotations" / "hen.xml", "hen.jpg")
    picture(tmp_path / "JPEGImages" / "duck.jpg")
    annotation(tmp_path / "Annotations" / "duck.xml", "IMG_1.jpg")
    picture(tmp_path / "JPEGImages" / "goose.jpg")
    annotation(tmp_path / "Annotations" / "0225a044-goose.xml", "0225a044-goose.jpg")
    dataset = read_dataset(tmp_path)
    assert names(dataset) == ["duck.jpg", "goose.jpg", "hen.png"]
    assert "2 XML files name a picture that is not there" in said(dataset)
    assert "1 picture is there with another suffix than the XML file says" in said(dataset)
    assert "hen.png is read for hen.jpg" in said(dataset)


def test_a_missing_picture_is_not_replaced_by_one_of_another_folder(tmp_path):
    picture(tmp_path / "JPEGImages" / "cam2" / "hen.jpg")
    picture(tmp_path / "JPEGImages" / "cam1" / "duck.jpg")
    picture(tmp_path / "SegmentationClass" / "goose.png")
    annotation(tmp_path / "Annotations" / "cam1" / "hen.xml", "cam1/hen.jpg")
    annotation(tmp_path / "Annotations" / "cam1" / "duck.xml", "cam1/duck.jpg")
    annotation(tmp_path / "Annotations" / "goose.xml", "goose.jpg")
    dataset = read_dataset(tmp_path)
    assert names(dataset) == ["duck.jpg"]
    assert sorted(problem.kind for problem in dataset.problems) == ["missing_image"] * 2


@pytest.mark.parametrize("composed", ["NFC", "NFD"])
def test_letters_may_be_composed_or_decomposed(tmp_path, composed):
    on_disk, written = (unicodedata.normalize(form, "ém") for form in ("NFD" if composed == "NFC" else "NFC", composed))
    picture(tmp_path / "JPEGImages" / f"{on_disk}.jpg")
    annotation(tmp_path / "Annotations" / f"{on_disk}.xml", f"{written}.jpg")
    write_split(tmp_path, "train", [written])
    assert len(read_dataset(tmp_path).splits["train"]) == 1


def test_upper_case_suffixes(tmp_path):
    for stem in ("hen", "duck", "goose"):
        picture(tmp_path / "JPEGImages" / f"{stem}.JPG")
        annotation(tmp_path / "Annotations" / f"{stem}.XML", f"{stem}.JPG")
    assert boxes(read_dataset(tmp_path)) == [list(BIRD)] * 3


def test_names_with_blanks_in_lists(tmp_path):
    for stem in ("hen", "hen (2)", "duck"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotation(tmp_path / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
    write_split(tmp_path, "train", ["hen", "hen (2)"])
    write_split(tmp_path, "val", ["duck  1", "duck -1"])
    dataset = read_dataset(tmp_path)
    assert {split: stems_of(samples) for split, samples in dataset.splits.items()} == {
        "train": ["hen", "hen (2)"],
        "val": ["duck"],
    }
    assert dataset.problems == ()


def test_a_name_with_a_number_behind_a_blank_is_not_cut(tmp_path):
    for stem in ("hen", "hen 1"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotation(tmp_path / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
    write_split(tmp_path, "train", ["hen 1", "hen 3"])
    dataset = read_dataset(tmp_path)
    assert stems_of(dataset.splits["train"]) == ["hen 1"]
    assert [problem.text for problem in dataset.problems] == ["skipped hen 3, which has no XML file"]
    assert "1 picture is in no list of a split and left out" in said(dataset)


@pytest.mark.parametrize(
    "lines",
    [
        ["hen.jpg", "./JPEGImages/duck.jpg"],
        ["/home/me/VOC2007/JPEGImages/hen.jpg", "JPEGImages\\duck.jpg"],
        ["Annotations/hen.xml", "DUCK"],
    ],
)
def test_lists_of_paths(tmp_path, lines):
    for stem in ("hen", "duck"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotation(tmp_path / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
    write_split(tmp_path, "train", lines)
    assert stems_of(read_dataset(tmp_path).splits["train"]) == ["hen", "duck"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_list_as_notepad_saves_it(tmp_path, encoding):
    picture(tmp_path / "JPEGImages" / "hen.jpg")
    annotation(tmp_path / "Annotations" / "hen.xml", "hen.jpg")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("hen\r\n", encoding)
    assert stems_of(read_dataset(tmp_path).splits["train"]) == ["hen"]


@pytest.mark.parametrize("stems", [("Train", "Validation"), ("training", "VAL")])
def test_lists_of_cvat_projects_and_of_classes(tmp_path, stems):
    for stem in ("hen", "duck", "goose"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotation(tmp_path / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
    for split, members in zip(stems, (["hen", "duck"], ["goose"]), strict=True):
        write_split(tmp_path, split, members)
        write_split(tmp_path, f"bird_{split}", [f"{stem}  1" for stem in members])
        write_split(tmp_path, f"cat_{split}", [f"{stem} -1" for stem in members])
    (tmp_path / "labelmap.txt").write_text("background:0,0,0::\nbird:250,50,83::\n")
    dataset = read_dataset(tmp_path)
    assert (names(dataset, "train"), names(dataset, "val")) == (["duck.jpg", "hen.jpg"], ["goose.jpg"])
    assert list(dataset.splits) == ["train", "val"]
    assert dataset.exporter == "CVAT"


def test_lists_of_other_names_are_splits_if_they_list_pictures(tmp_path):
    write_voc(tmp_path, {stem: item() for stem in "abc"})
    write_split(tmp_path, "fold0", ["a"])
    write_split(tmp_path, "fold1", ["b", "c"])
    write_split(tmp_path, "readme", ["these are the folds"])
    dataset = read_dataset(tmp_path)
    assert dataset.folds == (0, 1)
    assert "readme.txt lists none of the pictures and is not read" in said(dataset)


@pytest.mark.parametrize("folder", [".", "ImageSets"])
def test_lists_beside_the_annotations(tmp_path, folder):
    write_voc(tmp_path, {stem: item() for stem in "abc"})
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / "train.txt").write_text("a\nb\n")
    (tmp_path / folder / "test.txt").write_text("c\n")
    (tmp_path / "notes.txt").write_text("a\n")
    dataset = read_dataset(tmp_path)
    assert {split: stems_of(samples) for split, samples in dataset.splits.items()} == {
        "train": ["a", "b"],
        "test": ["c"],
    }


def test_folders_below_the_annotations_as_cvat_writes_them(tmp_path):
    for camera in ("cam1", "cam2"):
        for number, stem in enumerate(("hen", "duck", "goose")):
            picture(tmp_path / "JPEGImages" / camera / f"{stem}.jpg", 40 + number)
            annotation(tmp_path / "Annotations" / camera / f"{stem}.xml", f"{camera}/{stem}.jpg")
    write_split(
        tmp_path, "default", [f"{camera}/{stem}" for camera in ("cam1", "cam2") for stem in ("hen", "duck", "goose")]
    )
    dataset = read_dataset(tmp_path)
    assert {sample.image_id for sample in dataset.all_samples()} == {
        f"{camera}/{stem}" for camera in ("cam1", "cam2") for stem in ("hen", "duck", "goose")
    }
    # CVAT's default is no split.
    assert set(dataset.splits) == {"train", "val"}
    assert boxes(dataset) == [list(BIRD)] * 6


def test_a_name_without_its_folder_counts_where_it_is_the_only_one(tmp_path):
    for path in ("cam1/hen", "cam2/hen", "cam2/duck"):
        picture(tmp_path / "JPEGImages" / f"{path}.jpg")
        annotation(tmp_path / "Annotations" / f"{path}.xml", f"{path.rpartition('/')[2]}.jpg")
    write_split(tmp_path, "train", ["duck", "hen", "cam1/hen"])
    dataset = read_dataset(tmp_path)
    assert stems_of(dataset.splits["train"]) == ["cam2/duck", "cam1/hen"]
    assert [problem.where.rpartition("/")[2] for problem in dataset.problems] == ["train.txt:2"]


@pytest.mark.parametrize(("annotations", "images"), [(".", "."), ("Annotations", "JPEGImages"), ("labels", "data")])
@pytest.mark.parametrize("folders", [("train", "valid", "test"), ("Train", "Validation", "Testing")])
def test_a_folder_for_each_split(tmp_path, annotations, images, folders):
    for folder in folders:
        for stem in ("hen", "duck", "goose"):
            picture(tmp_path / folder / images / f"{stem}_jpg.rf.1{folder}.jpg")
            source = "<source><database>roboflow.com</database></source>"
            annotation(
                tmp_path / folder / annotations / f"{stem}_jpg.rf.1{folder}.xml", f"{stem}_jpg.rf.1{folder}.jpg", source
            )
    dataset = read_dataset(tmp_path)
    assert dataset.kind == "voc"
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 3, "val": 3, "test": 3}
    assert list(dataset.splits) == ["train", "val", "test"]
    assert boxes(dataset) == [list(BIRD)] * 9
    assert "Roboflow" in said(dataset)


def test_roboflow_writes_the_sides_in_another_order(tmp_path):
    picture(tmp_path / "train" / "a.jpg")
    text = "<xmin>10</xmin><xmax>40</xmax><ymin>12</ymin><ymax>44</ymax>"
    (tmp_path / "train" / "a.xml").write_text(
        f"<annotation><filename>a.jpg</filename><object><name>bird</name><bndbox>{text}</bndbox></object></annotation>"
    )
    assert boxes(read_dataset(tmp_path)) == [[10, 12, 40, 44]]


@pytest.mark.parametrize("place", ["images", ".", "annotations"])
def test_splits_as_sub_folders_of_the_annotations(tmp_path, place):
    for split, stem in (("train", "hen"), ("train", "duck"), ("val", "goose")):
        picture(tmp_path / "images" / split / f"{stem}.jpg")
        folder = tmp_path / place / split if place != "." else tmp_path / "images" / split
        annotation(folder / f"{stem}.xml", f"{stem}.jpg")
    dataset = read_dataset(tmp_path)
    assert (names(dataset, "train"), names(dataset, "val")) == (["duck.jpg", "hen.jpg"], ["goose.jpg"])


@pytest.mark.parametrize("above", ["", "VOCdevkit/"])
def test_the_folders_of_the_challenge_one_level_up(tmp_path, above):
    for year in ("VOC2007", "VOC2012"):
        root = tmp_path / above / year
        for stem in ("hen", "duck"):
            picture(root / "JPEGImages" / f"{stem}.jpg", int(year[-2:]))
            annotation(root / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
        write_split(root, "train", ["hen"])
        write_split(root, "val", ["duck"])
    dataset = read_dataset(tmp_path)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 2, "val": 2}
    assert len({sample.image_id for sample in dataset.all_samples()}) == 4


def test_copies_in_split_folders_go_before_the_files_that_they_were_made_of(tmp_path):
    for folder, stems in ((".", ("hen", "duck")), ("train", ("hen",)), ("test", ("duck",))):
        for stem in stems:
            picture(tmp_path / folder / f"{stem}.jpg")
            annotation(tmp_path / folder / f"{stem}.xml", f"{stem}.jpg")
    dataset = read_dataset(tmp_path)
    assert {split: stems_of(samples) for split, samples in dataset.splits.items()} == {
        "train": ["hen"],
        "test": ["duck"],
    }
    assert f"the XML files in {tmp_path} are not read" in said(dataset)


def test_linked_folders_are_followed_and_loops_end(tmp_path):
    picture(tmp_path / "else" / "images" / "hen.jpg")
    annotation(tmp_path / "else" / "xml" / "hen.xml", "hen.jpg")
    picture(tmp_path / "set" / "JPEGImages" / "duck.jpg")
    annotation(tmp_path / "set" / "Annotations" / "duck.xml", "duck.jpg")
    try:
        (tmp_path / "set" / "JPEGImages" / "cam").symlink_to("../../else/images")
        (tmp_path / "set" / "Annotations" / "cam").symlink_to("../../else/xml")
        (tmp_path / "set" / "Annotations" / "loop").symlink_to("..")
    except OSError:
        pytest.skip("links cannot be made here")
    assert {sample.image_id for sample in read_dataset(tmp_path / "set").all_samples()} == {"cam/hen", "duck"}


def exported(root, kind):
    for stem in ("hen", "duck", "goose"):
        if kind == "FiftyOne":
            picture(root / "data" / f"{stem}.jpg")
            annotation(root / "labels" / f"{stem}.xml", f"{stem}.jpg", f"<path>/home/me/{stem}.jpg</path>")
        elif kind == "labelImg":
            picture(root / f"{stem}.jpg")
            more = f"<path>C:\\set\\{stem}.jpg</path><source><database>Unknown</database></source>"
            annotation(root / f"{stem}.xml", f"{stem}.jpg", more)
        elif kind == "Label Studio":
            name = f"0225a044-{stem}"
            picture(root / "images" / f"{name}.jpg")
            # Its old versions leave the suffix out.
            annotation(root / "Annotations" / f"{name}.xml", name, "<source><database>MyDatabase</database></source>")
        elif kind == "labelme":
            picture(root / "JPEGImages" / f"{stem}.jpg")
            annotation(root / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
            (root / "class_names.txt").write_text("_background_\nbird\n")
        elif kind == "Roboflow":
            picture(root / f"{stem}.jpg")
            annotation(root / f"{stem}.xml", f"{stem}.jpg")
            (root / "README.roboflow.txt").write_text("This dataset was exported via roboflow.com\n")


@pytest.mark.parametrize("exporter", ["FiftyOne", "labelImg", "Label Studio", "labelme", "Roboflow"])
def test_exports_are_read_and_their_program_is_named(tmp_path, exporter):
    exported(tmp_path, exporter)
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.exporter) == ("voc", exporter)
    assert boxes(dataset) == [list(BIRD)] * 3
    assert f"looks like an export of {exporter}" in said(dataset)
    assert dataset.problems == ()


@pytest.mark.parametrize(
    ("content", "encoding"),
    [
        ("<annotation>{}</annotation>", "utf-8-sig"),
        ("<annotation>{}</annotation>", "utf-16"),
        ("<annotation>{}</annotation>", "utf-16-le"),
        ("<annotation>{}</annotation>", "cp1252"),
        ('<?xml version="1.0" encoding="utf-8"?><annotation>{}</annotation>', "utf-16"),
        ('<?xml version="1.0" encoding="utf-8"?><annotation>{}</annotation>', "cp1252"),
        ('<?xml version="1.0" encoding="utf-16"?><annotation>{}</annotation>', "utf-8"),
        ('<?xml version="1.0" encoding="iso-8859-1"?><annotation>{}</annotation>', "utf-8"),
        ('<?xml version="1.0" encoding="iso-8859-2"?><annotation>{}</annotation>', "iso-8859-2"),
        ('\n\n<?xml version="1.0"?><annotation>{}</annotation>', "utf-8"),
    ],
)
def test_encodings_and_declarations_that_are_not_true(tmp_path, content, encoding):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    text = content.format(item("Möwe") + "\n" + item("Möwe", (5, 5, 5, 9)))
    (tmp_path / "Annotations" / "a.xml").write_bytes(text.encode(encoding))
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("Möwe",)
    assert len(boxes(dataset)) == 1
    line = 4 if content.startswith("\n") else 2
    assert [problem.where.rpartition("/")[2] for problem in dataset.problems] == [f"a.xml:{line}"]


def test_a_file_of_zeros_is_told_and_its_picture_left_out(tmp_path):
    write_voc(tmp_path, {"a": item(), "b": item()})
    (tmp_path / "Annotations" / "b.xml").write_bytes(b"\x81\x8d" + b"<annotation>" + b"\0" * 50)
    dataset = read_dataset(tmp_path)
    assert stems_of(dataset.all_samples()) == ["a"]
    assert [problem.kind for problem in dataset.problems] == ["encoding"]


def test_a_declared_size_is_compared_with_the_picture(tmp_path):
    for stem in ("hen", "duck", "goose"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotation(tmp_path / "Annotations" / f"{stem}.xml", f"{stem}.jpg", size=(192, 128), box=(10, 10, 60, 60))
    dataset = read_dataset(tmp_path)
    assert boxes(dataset) == [[10, 10, 60, 60]] * 3
    assert (
        "3 of 3 pictures" in said(dataset) and "0.5 times" in said(dataset) and "`boxes_in` declared" in said(dataset)
    )
    assert boxes(read_dataset(tmp_path, boxes_in="declared")) == [[5, 5, 30, 30]] * 3


@pytest.mark.parametrize("size", [(0, 0), ("", ""), ("unknown", 64)])
def test_a_size_that_says_nothing_is_no_mismatch(tmp_path, size):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    annotation(tmp_path / "Annotations" / "a.xml", "a.jpg", size=size)
    assert read_dataset(tmp_path).problems == ()


def test_boxes_at_the_edge(tmp_path):
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    text = "".join(item("bird", box) for box in ((1, 1, 96, 64), (0, 0, 97, 65), (-3, 0, 99, 64)))
    (tmp_path / "Annotations" / "a.xml").write_text(f"<annotation>{text}</annotation>")
    dataset = read_dataset(tmp_path)
    assert boxes(dataset) == [[0, 0, 96, 64], [0, 0, 96, 64], [1, 1, 96, 64]]
    assert [problem.kind for problem in dataset.problems] == ["outside"]


def test_fractions_are_told(tmp_path):
    for stem in ("hen", "duck", "goose"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotation(tmp_path / "Annotations" / f"{stem}.xml", f"{stem}.jpg", box=(0.1, 0.15, 0.4, 0.55))
    assert "3 of 3 boxes" in said(read_dataset(tmp_path)) and "fractions" in said(read_dataset(tmp_path))
    np.testing.assert_allclose(
        boxes(read_dataset(tmp_path, boxes_in="fractions")), [[9.6, 9.6, 38.4, 35.2]] * 3, rtol=1e-6
    )


def test_truncated_objects_count_and_several_boxes_of_one_object_do_too(tmp_path):
    twice = item().replace(
        "</object>", "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    )
    text = item("bar", more="<truncated>1</truncated>") + twice
    dataset = read_dataset(write_voc(tmp_path, {"a": text}))
    (sample,) = dataset.all_samples()
    assert len(sample.boxes) == 3
    assert not sample.ignore.any()


def test_a_problem_of_a_picture_in_two_splits_is_told_once(tmp_path):
    write_voc(tmp_path, {"a": item(box=(5, 5, 5, 9)) + item(), "b": item()})
    write_split(tmp_path, "train", ["a"])
    write_split(tmp_path, "val", ["b"])
    write_split(tmp_path, "trainval", ["a", "b"])
    dataset = read_dataset(tmp_path)
    assert [problem.kind for problem in dataset.problems] == ["degenerate"]
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 1, "val": 1, "trainval": 2}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("detections.json", '{"engine": "x", "images": [], "skipped": []}'),
        ("metrics.json", '{"images": 3, "ap": 0.5, "categories": []}'),
    ],
)
def test_a_stray_json_is_noted(tmp_path, name, content):
    for stem in ("hen", "duck", "goose"):
        picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        annotation(tmp_path / "Annotations" / f"{stem}.xml", f"{stem}.jpg")
    (tmp_path / name).write_text(content)
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, len(dataset.all_samples())) == ("voc", 3)
    assert name in said(dataset)


def test_pictures_that_cannot_be_read_here_are_counted(tmp_path):
    write_voc(tmp_path, {"a": item(), "b": item()})
    (tmp_path / "JPEGImages" / "b.jpg").rename(tmp_path / "JPEGImages" / "b.nef")
    dataset = read_dataset(tmp_path)
    assert stems_of(dataset.all_samples()) == ["a"]
    assert "left out 1 .nef" in said(dataset)


@pytest.mark.data
def test_blood_cells(bccd, caplog):
    dataset = read_dataset(bccd)
    assert dataset.class_names == ("Platelets", "RBC", "WBC")
    assert {name: len(samples) for name, samples in dataset.splits.items()}["test"] == 72
    assert len(dataset.all_samples()) == 364
    degenerate = [record.getMessage() for record in caplog.records if "degenerate" in record.getMessage()]
    assert len(degenerate) == 2
    assert sorted(problem.where.removeprefix(f"{bccd}/") for problem in dataset.problems) == [
        "Annotations/BloodImage_00338.xml:158",
        "Annotations/BloodImage_00343.xml:50",
    ]
    assert all(problem.where in message for problem, message in zip(dataset.problems, degenerate, strict=True))
    assert sum(len(sample.boxes) for sample in dataset.all_samples()) == 4888 - 2
    for sample in dataset.all_samples():
        assert (sample.boxes >= 0).all()
        assert (sample.boxes <= (640, 480, 640, 480)).all()
