"""Pictures are found under the names that exporters write."""

from __future__ import annotations

import unicodedata

import pytest

from edge_effdet.data.finder import PictureFinder, walk_pictures


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


@pytest.mark.parametrize(
    "name",
    [
        "hen (2).jpg",
        "./hen (2).jpg",
        "images/hen (2).jpg",
        "images\\hen (2).jpg",
        "images\\1/hen (2).jpg",
        "..\\..\\media\\upload\\4\\hen (2).jpg",
        "/data/upload/1/hen (2).jpg",
        "/data/local-files/?d=set/hen%20(2).jpg",
        "/data/local-files/?d=set/hen+(2).jpg",
        "https://example.org/a/hen%20(2).jpg",
        "HEN (2).JPG",
    ],
)
def test_a_name_however_it_is_spelled(tmp_path, name):
    touch(tmp_path, "images/hen (2).jpg", "images/hen.jpg")
    finder = PictureFinder([tmp_path / "images"])
    assert finder.find(name) == tmp_path / "images" / "hen (2).jpg"
    assert finder.problems() == []


@pytest.mark.parametrize(("stored", "written"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_may_be_composed_or_not(tmp_path, stored, written):
    touch(tmp_path, unicodedata.normalize(stored, "ém.jpg"))
    found = PictureFinder([tmp_path]).find(unicodedata.normalize(written, "ém.jpg"))
    assert found is not None and found.exists()


def test_a_path_is_followed_before_a_name(tmp_path):
    touch(tmp_path, "images/cam1/hen.jpg", "images/cam2/hen.jpg", "images/hen.jpg")
    finder = PictureFinder([tmp_path / "images"])
    for name in ("cam1/hen.jpg", "cam2/hen.jpg", "hen.jpg"):
        assert finder.find(name) == tmp_path / "images" / name


def test_a_bare_name_gets_the_suffix_that_is_there(tmp_path):
    touch(tmp_path, "hen.JPG", "hen.txt", "owl.2024.png")
    finder = PictureFinder([tmp_path])
    assert finder.find("hen", (".jpg", ".png")) == tmp_path / "hen.JPG"
    assert finder.find("owl.2024", (".jpg", ".png")) == tmp_path / "owl.2024.png"
    assert finder.find("hen") is None


def test_of_namesakes_the_first_folder_wins_and_it_is_said(tmp_path):
    touch(tmp_path, "train/hen.jpg", "images/hen.jpg", "images/owl.jpg")
    finder = PictureFinder([tmp_path / "train", tmp_path / "images", tmp_path / "absent"])
    assert finder.find("hen.jpg") == tmp_path / "train" / "hen.jpg"
    assert finder.find("owl.jpg") == tmp_path / "images" / "owl.jpg"
    (problem,) = finder.problems()
    assert "1 picture has a namesake" in problem.text and "first: hen.jpg" in problem.text
    assert str(tmp_path / "absent") not in finder.searched()


def test_a_link_to_the_same_picture_is_no_namesake(tmp_path):
    touch(tmp_path, "train/hen.jpg")
    (tmp_path / "images").symlink_to(tmp_path / "train")
    finder = PictureFinder([tmp_path / "train", tmp_path / "images"])
    assert finder.find("hen.jpg") is not None and finder.problems() == []


def test_a_picture_elsewhere_is_found_only_if_its_name_is_its_own(tmp_path):
    touch(tmp_path, "a/deep/hen.jpg", "a/owl.jpg", "b/owl.jpg")
    finder = PictureFinder([tmp_path / "images"], root=tmp_path)
    assert finder.find("somewhere/hen.jpg") == tmp_path / "a" / "deep" / "hen.jpg"
    assert finder.find("hen", (".jpg",)) == tmp_path / "a" / "deep" / "hen.jpg"
    assert finder.find("owl.jpg") is None


@pytest.mark.parametrize("name", ["", "/", "..", "a\x00b.jpg", "x" * 5000, "a/" * 500 + "b.jpg"])
def test_a_name_that_no_file_has_is_not_found(tmp_path, name):
    touch(tmp_path, "hen.jpg")
    assert PictureFinder([tmp_path], root=tmp_path).find(name) is None


def test_linked_folders_are_walked_once(tmp_path):
    touch(tmp_path, "images/a.jpg", "images/notes.txt", "images/._a.jpg", "images/.cache/b.jpg", "else/c.png")
    (tmp_path / "images" / "cam").symlink_to(tmp_path / "else")
    (tmp_path / "images" / "loop").symlink_to(tmp_path / "images")
    assert [path.name for path in walk_pictures(tmp_path / "images")] == ["a.jpg", "c.png"]
