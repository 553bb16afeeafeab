"""Data that somebody made to hang, to fill the memory, to walk the disk, or to show files that are none of its own."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path

import pytest

from edge_effdet.data.pictures import read_images
from edge_effdet.data.registry import read_dataset
from edge_effdet.data.text import read_text
from edge_effdet.errors import DataError

NAMES = "names: [bird]\n"
LAUGHS = "".join(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]\n" for level in range(1, 12))
MERGES = "".join(
    f"m{level}: &m{level}\n  ? !!merge x\n  : [{', '.join([f'*m{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


@pytest.fixture
def birds(tmp_path, draw, write) -> Path:
    """Two pictures with a bird each, in YOLO's form."""
    write(tmp_path / "birds" / "data.yaml", f"train: images\n{NAMES}")
    for stem in ("hen", "duck"):
        draw(tmp_path / "birds" / "images" / f"{stem}.jpg")
        write(tmp_path / "birds" / "labels" / f"{stem}.txt", "0 0.5 0.5 0.5 0.5\n")
    return tmp_path / "birds"


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text",
    [
        f"l0: &l0 [lol]\n{LAUGHS}names: *l11\n",
        f"l0: &l0 [lol]\n{LAUGHS}train: *l11\n{NAMES}",
        f"m0: &m0 {{a: b}}\n{MERGES}{NAMES}",
        f"train: &own [images, *own]\n{NAMES}",
    ],
    ids=["names", "train", "merges", "itself"],
)
def test_aliases_that_multiply_are_refused_in_little_memory(birds, write, text):
    write(birds / "data.yaml", text)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="more than 100000 names by its aliases"):
            read_dataset(birds / "data.yaml")
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "text", [f"train: {'[' * 2000}{']' * 2000}\n", f"train:\n  {'- ' * 2000}images\n", f"train: {'{a: ' * 2000}\n"]
)
def test_lists_within_lists_without_end_are_refused(birds, write, text):
    write(birds / "data.yaml", NAMES + text)
    with pytest.raises(DataError, match=r"data\.yaml holds lists within lists"):
        read_dataset(birds / "data.yaml")


@pytest.mark.timeout(10)
@pytest.mark.parametrize(
    "text",
    [
        "a: !!timestamp x",
        "a: !!bool maybe",
        'a: !!int ""',
        "!!int 1: x",
        "? !!null\n: b.txt",
        f'a: !!float "{"1:" * 1000}1"',
        f'a: !!int "{"1:" * 500_000}1"',
        f"val: {'x' * 300}.txt",
    ],
    ids=["timestamp", "bool", "int", "key", "null", "float", "minutes", "name"],
)
def test_tags_and_endless_names_of_a_yaml_do_no_harm(birds, write, text):
    write(birds / "data.yaml", f"train: images\n{NAMES}{text}\n")
    assert len(read_dataset(birds).splits["train"]) == 2


def test_aliases_of_an_honest_file_are_followed(birds, write):
    write(birds / "data.yaml", f"train: &all [images]\nval: *all\n{NAMES}")
    assert {split: len(samples) for split, samples in read_dataset(birds).splits.items()} == {"train": 2, "val": 2}


def test_a_huge_yaml_is_not_read(birds):
    with (birds / "data.yaml").open("r+") as stream:
        # Sparse: of this size by its name alone.
        stream.truncate(1 << 40)
    with pytest.raises(DataError, match=r"has 1099511\.6 MB, and a file of its kind has 1\.0 at most"):
        read_dataset(birds / "data.yaml")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("entry", ["/", "..", "../..", "../birds/..", "link"])
def test_a_split_that_holds_the_data_and_more_is_refused(birds, write, entry):
    (birds / "link").symlink_to("/")
    write(birds / "data.yaml", f"train: {entry}\n{NAMES}")
    with pytest.raises(DataError, match=r"data\.yaml:1: train names .* name the folder with the images alone"):
        read_dataset(birds)


@pytest.mark.parametrize("store", [".", ".dvc/cache/ab"])
def test_the_folder_of_the_file_itself_is_a_split(birds, write, store):
    file = write(birds / store / "stored", f"train: .\n{NAMES}")
    (birds / "data.yaml").unlink()
    (birds / "data.yaml").symlink_to(file)
    assert len(read_dataset(birds).splits["train"]) == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("entry", ["/", ".."])
def test_darknets_lists_do_not_walk_the_disk_either(birds, write, entry):
    (birds / "data.yaml").unlink()
    write(birds / "obj.names", "bird\n")
    write(birds / "obj.data", f"classes = 1\ntrain = {entry}\nnames = obj.names\n")
    with pytest.raises(DataError, match=r"obj\.data:2: train names .* name the folder with the images alone"):
        read_dataset(birds)


SECRET = "root:x:0:0:secret:/root:/bin/sh\n"


def everything_said(path: Path, caplog: pytest.LogCaptureFixture) -> str:
    try:
        dataset = read_dataset(path)
    except DataError as error:
        return f"{error} {caplog.text}"
    return f"{dataset.class_names} {dataset.notes} {dataset.problems} {caplog.text}"


@pytest.mark.parametrize("line", ["", "images/hen.jpg\n"], ids=["alone", "beside a picture"])
def test_what_is_in_a_file_of_somebody_else_is_not_shown(birds, tmp_path, write, caplog, line):
    file = write(tmp_path / "passwd", line + SECRET)
    write(birds / "data.yaml", f"train: {file}\n{NAMES}")
    text = everything_said(birds, caplog)
    assert "secret" not in text and str(file) in text
    assert ("is no list of images" in text) == (not line)


def test_a_foreign_file_gives_no_names_of_classes(birds, tmp_path, write, caplog):
    (birds / "data.yaml").unlink()
    file = write(tmp_path / "passwd", SECRET)
    write(birds / "obj.data", f"classes = 1\ntrain = images\nnames = {file}\n")
    text = everything_said(birds, caplog)
    assert "secret" not in text and f"names the list of classes {file}, which is not there" in text
    elsewhere = write(tmp_path / "cfg" / "birds.names", "bird\n")
    for stem in ("hen", "duck"):
        write(birds / "images" / f"{stem}.txt", "0 0.5 0.5 0.5 0.5\n")
    write(birds / "obj.data", f"classes = 1\ntrain = images\nnames = {elsewhere}\n")
    assert read_dataset(birds).class_names == ("bird",)


PIPES = (
    "data.yaml", "other.yaml", "images/pipe.jpg", "images/pipe.txt", "labels/pipe.txt", "labels/classes.txt", "classes.txt", "train.txt",
    "obj.data", "obj.names", "images.txt", "_darknet.labels", "annotations/instances_val.json", "_annotations.coco.json", "pipe.json",
    "_annotations.createml.json", "Annotations/pipe.xml", "pipe.xml", "labels/pipe.xml", "ImageSets/Main/val.txt", "boxes.csv", "notes.json",
)  # fmt: skip


@pytest.mark.timeout(120)
@pytest.mark.parametrize("yaml", [True, False])
def test_a_pipe_among_the_data_is_not_waited_for(birds, yaml, caplog):
    if not yaml:
        (birds / "data.yaml").unlink()
    for name in PIPES:
        path = birds / name
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        assert everything_said(birds, caplog), name
        path.unlink()
    for name in PIPES:
        path = birds / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            os.mkfifo(path)
    assert everything_said(birds, caplog)
    assert len(read_images(birds).all_samples()) == 2


@pytest.mark.timeout(60)
@pytest.mark.parametrize("entry", ["pipe", "pipe.jpg", "/dev/zero", "/dev/stdin"])
def test_a_split_that_is_a_pipe_or_a_device_is_refused(birds, write, entry):
    for name in ("pipe", "pipe.jpg"):
        os.mkfifo(birds / name)
    write(birds / "data.yaml", f"train: {entry}\n{NAMES}")
    with pytest.raises(DataError, match="is a pipe or a device and no file"):
        read_dataset(birds)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("read", [read_dataset, read_images])
def test_data_that_are_a_pipe_a_device_or_no_name_are_refused(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(DataError, match="is a pipe or a device; give a file or a folder"):
            read(path)
    with pytest.raises(DataError, match="cannot be read \\(File name too long\\)"):
        read(Path("x" * 5000))
    with pytest.raises(DataError, match="There is no data at"):
        read(tmp_path / "absent")


def test_a_pipe_is_no_text(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    for name in ("a.txt", "link.txt"):
        with pytest.raises(DataError, match=f"{name} is a pipe or a device"):
            read_text(tmp_path / name)
    (tmp_path / "b.txt").write_text("12345")
    assert read_text(tmp_path / "b.txt", 5) == "12345"
    with pytest.raises(DataError, match="at most"):
        read_text(tmp_path / "b.txt", 4)


def test_a_link_that_leads_nowhere_is_told(birds, problems_of):
    """As where a version control keeps the pictures elsewhere and has not fetched them."""
    (birds / "images" / "owl.jpg").symlink_to("/nowhere/owl.jpg")
    (birds / "labels" / "owl.txt").symlink_to(birds / "labels" / "hen.txt")
    assert problems_of(read_dataset(birds)) == [("unreadable_image", "images/owl.jpg")]


NESTED = "[" * 200_000


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("annotations/instances_train.json", '{"images": [], "annotations": [], "categories": ' + NESTED),
        ("annotations/instances_train.json", '{"images": ' + NESTED + ', "annotations": [], "categories": []'),
        ("_annotations.createml.json", NESTED),
        ("images/hen.json", '{"version": "5", "shapes": ' + NESTED),
        ("Annotations/hen.xml", "<annotation>" + "<object>" * 200_000),
        ("boxes.csv", "path,x_min,y_min,x_max,y_max,label\n" + '"' * 200_001),
    ],
    ids=["coco", "coco images", "createml", "labelme", "voc", "csv"],
)
def test_what_is_nested_without_end_is_refused_or_left_out(tmp_path, draw, write, caplog, name, text):
    draw(tmp_path / "images" / "hen.jpg")
    write(tmp_path / name, text)
    with pytest.raises(DataError):
        read_dataset(tmp_path)


@pytest.mark.timeout(60)
def test_xml_entities_do_not_multiply(tmp_path, draw, write):
    entities = "".join(f'<!ENTITY e{level} "{f"&e{level - 1};" * 10}">' for level in range(1, 12))
    write(
        tmp_path / "Annotations" / "hen.xml",
        f'<!DOCTYPE annotation [<!ENTITY e0 "lol">{entities}]><annotation><filename>&e11;</filename></annotation>',
    )
    draw(tmp_path / "JPEGImages" / "hen.jpg")
    with pytest.raises(DataError, match=r"hen\.xml"):
        read_dataset(tmp_path)


def test_the_names_of_an_honest_file_are_shown(birds, write, caplog):
    """What is hidden of a foreign file is what helps in one's own."""
    write(birds / "data.yaml", f"train: train.txt\n{NAMES}")
    write(birds / "train.txt", "images/hen.jpg\nimages/gone.jpg\nhttps://here/owl.jpg?key=1\n")
    text = everything_said(birds, caplog)
    assert "skipped the image images/gone.jpg" in text and "owl.jpg?key=1" in text
    assert json.dumps(["bird"])[1:-1].strip('"') in text


@pytest.fixture
def nobody(tmp_path: Path):
    """Be a user who may read what others may, and nothing else."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        folder.chmod(folder.stat().st_mode | 0o055)
    yield lambda: os.seteuid(65534)
    os.seteuid(0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "birds cannot be read (Permission denied); see whether"),
        ("data.yaml", "data.yaml cannot be read (Permission denied)"),
        ("images", "images cannot be read (Permission denied), and what is in it is left out"),
        ("images/hen.jpg", "hen.jpg: skipped, because it may not be read by this user"),
        ("labels/hen.txt", "hen.txt cannot be read (Permission denied)"),
    ],
)
def test_what_this_user_may_not_read_is_named(birds, nobody, caplog, name, said):
    (birds / name).chmod(0)
    nobody()
    assert said in everything_said(birds, caplog)
