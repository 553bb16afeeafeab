"""A folder of pictures without labels, or with labels that cannot be used."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image

from edge_effdet.data.pictures import read_images, read_pictures
from edge_effdet.errors import DataError


def draw(path: Path, size: tuple[int, int] = (96, 64)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)
    return path


def test_a_folder_of_pictures_is_one_split_without_boxes(tmp_path: Path):
    for name in ("a.jpg", "b.png", "day/a.jpg", "day/deep/c.JPG"):
        draw(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    dataset = read_pictures(tmp_path)
    assert (dataset.kind, dataset.class_names, list(dataset.splits)) == ("pictures", (), ["all"])
    assert [sample.image_id for sample in dataset.splits["all"]] == ["a.jpg", "b.png", "day/a.jpg", "day/deep/c.JPG"]
    assert {(sample.height, sample.width) for sample in dataset.all_samples()} == {(64, 96)}
    assert all(sample.boxes.shape == (0, 4) for sample in dataset.all_samples())


def test_what_cannot_be_read_is_left_out_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    draw(tmp_path / "a.jpg")
    (tmp_path / "words.jpg").write_text("words")
    (tmp_path / "raw.nef").write_text("raw")
    assert len(read_pictures(tmp_path).all_samples()) == 1
    assert "words.jpg: skipped" in caplog.text
    assert "left out: 1 .nef" in caplog.text


def test_a_folder_whose_labels_cannot_be_used_is_read_all_the_same_and_says_so(tmp_path: Path, caplog):
    draw(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "b.xml").write_text("<annotation><object></annotation>")
    with caplog.at_level(logging.INFO):
        assert len(read_images(tmp_path).all_samples()) == 1
    assert f"the labels of {tmp_path} are left aside; pictures read: 1. " in caplog.text


def test_a_folder_without_labels_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    draw(tmp_path / "a.jpg")
    with caplog.at_level(logging.INFO):
        assert read_images(tmp_path).kind == "pictures"
    assert "holds no labels of a known format; pictures read: 1" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("name", ["absent", ".", "a.jpg"])
def test_what_holds_no_pictures_is_refused(tmp_path: Path, name: str):
    if name == "a.jpg":
        draw(tmp_path / name)
    with pytest.raises(DataError):
        read_images(tmp_path / name)
