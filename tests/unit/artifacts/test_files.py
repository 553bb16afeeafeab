"""No output over an input, places that can be written, and names that are not UTF-8."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_effdet.artifacts import (
    atomic_output,
    json_text,
    printable,
    refuse_overwrite,
    require_writable,
    require_writable_file,
    write_json,
    write_text,
)
from edge_effdet.artifacts.files import sync_folder, utf8_path
from edge_effdet.errors import InputError, UsageError

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "möwe.mp4") for form in ("NFC", "NFD"))


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A file in a folder of its own."""
    path = tmp_path / "videos" / "clip.mp4"
    path.parent.mkdir()
    path.write_bytes(b"frames")
    return path


def same(clip: Path) -> Path:
    return clip


def dotted(clip: Path) -> Path:
    return clip.parent / ".." / clip.parent.name / clip.name


def relative(clip: Path) -> Path:
    return Path(os.path.relpath(clip))


def linked(clip: Path) -> Path:
    link = clip.parent.parent / "link.mp4"
    link.symlink_to(clip)
    return link


def in_linked_folder(clip: Path) -> Path:
    link = clip.parent.parent / "link"
    link.symlink_to(clip.parent)
    return link / clip.name


def hard_linked(clip: Path) -> Path:
    link = clip.parent / "other.mp4"
    os.link(clip, link)
    return link


def in_capitals(clip: Path) -> Path:
    return clip.with_name("CLIP.MP4")


def in_capitals_in_linked_folder(clip: Path) -> Path:
    return in_capitals(in_linked_folder(clip))


WAYS = (same, dotted, relative, linked, in_linked_folder, hard_linked, in_capitals, in_capitals_in_linked_folder)


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_read_is_not_written_however_it_is_named(clip: Path, way: Callable[[Path], Path]):
    other = way(clip)
    with pytest.raises(UsageError) as caught:
        refuse_overwrite([clip.with_name("else.json"), other], [None, clip])
    assert str(caught.value) == f"Writing {other} would overwrite {clip}, which is read; give another `output`."
    # What exists has the same name both ways; what does not is no input.
    if other.exists():
        with pytest.raises(UsageError):
            refuse_overwrite([clip], [other])


@pytest.mark.parametrize(("there", "asked"), [(COMPOSED, DECOMPOSED), (DECOMPOSED, COMPOSED)])
def test_letters_may_be_composed_in_two_ways(tmp_path: Path, there: str, asked: str):
    (tmp_path / there).touch()
    with pytest.raises(UsageError):
        refuse_overwrite([tmp_path / asked], [tmp_path / there])


def test_two_files_that_exist_are_two_whatever_their_names(clip: Path):
    other = clip.with_name("CLIP.MP4")
    if other.exists():
        pytest.skip("this file system takes both names for one")
    other.touch()
    refuse_overwrite([other], [clip])


def test_what_is_not_read_may_be_written(clip: Path):
    refuse_overwrite(
        [clip.with_name("clip.jsonl"), clip.parent / "new" / "clip.mp4"], [clip, None, clip.parent / "absent"]
    )
    refuse_overwrite([], [clip])
    refuse_overwrite([clip], [])


@pytest.mark.parametrize("inside", ["a.onnx", "new/folder/a.onnx", "clip.mp4"])
def test_nothing_is_written_into_a_folder_that_is_read(clip: Path, inside: str):
    link = clip.parent.parent / "link"
    link.symlink_to(clip.parent)
    for folder, output in ((clip.parent, link / inside), (link, clip.parent / inside)):
        with pytest.raises(
            UsageError, match=f"{output} would be written into {folder}, which is read; give another `here`"
        ):
            refuse_overwrite([output], [folder], "here")
    refuse_overwrite([clip.parent.parent / "videos-2" / inside], [clip.parent])


def test_a_folder_that_is_written_stands_for_all_in_it(clip: Path):
    with pytest.raises(UsageError, match=f"Writing into {clip.parent} could overwrite {clip}"):
        refuse_overwrite([clip.parent], [clip])
    with pytest.raises(UsageError):
        refuse_overwrite([clip.parent.parent], [clip])
    refuse_overwrite([clip.parent / "pictures"], [clip])


def test_a_link_in_a_folder_that_is_read_is_not_replaced(clip: Path, tmp_path: Path):
    (tmp_path / "elsewhere").touch()
    (clip.parent / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="would be written into"):
        refuse_overwrite([clip.parent / "link"], [clip.parent])


def test_a_loop_of_links_is_a_place_like_any_other(clip: Path):
    loop = clip.with_name("loop")
    loop.symlink_to(loop)
    refuse_overwrite([loop], [clip])
    with pytest.raises(UsageError):
        refuse_overwrite([loop], [clip.parent])


@pytest.mark.parametrize("place", ["file/out", "file/out/deep", "file"])
def test_a_place_below_a_file_is_refused(tmp_path: Path, place: str):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="Cannot write"):
        require_writable(tmp_path / place)
    assert (tmp_path / "file").read_text() == "no folder"


def test_a_folder_that_is_made_stays_or_goes(tmp_path: Path):
    require_writable(tmp_path / "a" / "b", keep=False)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    require_writable(tmp_path / "a" / "b", keep=False)
    require_writable(tmp_path / "a", keep=False)
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]
    require_writable(tmp_path / "c" / "d")
    assert (tmp_path / "c" / "d").is_dir()
    assert list((tmp_path / "c" / "d").iterdir()) == []


def test_a_file_to_write_is_no_folder(tmp_path: Path):
    with pytest.raises(UsageError, match="is a folder and has to be a file"):
        require_writable_file(tmp_path)
    require_writable_file(tmp_path / "new" / "file.onnx")
    assert list(tmp_path.iterdir()) == []


BAD = os.fsdecode(b"\xb2\xe2 m\xc3\xb6we.jpg")


def test_bytes_that_are_no_text_are_escaped():
    assert printable(BAD) == r"\xb2\xe2 möwe.jpg"
    assert printable("lone \ud800, pair 🐦, C:\\x") == "lone \\ud800, pair 🐦, C:\\x"


@pytest.mark.parametrize("ascii_only", [False, True])
def test_json_holds_what_printable_gives(ascii_only: bool):
    value = {BAD: [BAD, 1.5, None, {"bird": '鸟 "groß"\t🐦'}]}
    text = json_text(value, ascii_only=ascii_only)
    assert text.isascii() == ascii_only
    assert json.loads(text) == {printable(BAD): [printable(BAD), *value[BAD][1:]]}
    assert text.encode("utf-8")


def test_files_hold_it_too(tmp_path: Path):
    write_json(tmp_path / "a.json", {"image": BAD})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"image": printable(BAD)}
    write_text(tmp_path / "a.txt", BAD)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == printable(BAD)


def test_a_file_of_the_users_own_survives_the_look_whether_a_folder_can_be_written(tmp_path: Path):
    for name in (".writable", "writable"):
        (tmp_path / name).write_text("mine")
    require_writable(tmp_path)
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {".writable": "mine", "writable": "mine"}


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "is the disk full?"),
        (errno.EDQUOT, "is the disk full?"),
        (errno.EFBIG, "is the disk full?"),
        (errno.EACCES, "see whether the folder may be written"),
        (errno.EIO, "see whether the folder may be written"),
    ],
)
def test_a_full_disk_is_only_asked_about_where_it_may_be_full(tmp_path: Path, number: int, said: str):
    with pytest.raises(InputError, match=said.replace("?", r"\?")) as refused, atomic_output(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert os.strerror(number) in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("number", "passes"), [(errno.EINVAL, True), (errno.ENOTSUP, True), (errno.EIO, False)])
def test_a_file_system_that_cannot_sync_a_folder_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, passes: bool
):
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with contextlib.nullcontext() if passes else pytest.raises(OSError, match="Input/output error"):
        sync_folder(tmp_path)


def test_a_private_file_is_its_owners_whatever_the_mask(tmp_path: Path):
    before = os.umask(0)
    try:
        with atomic_output(tmp_path / "a", private=True) as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o600
        with atomic_output(tmp_path / "b") as temporary:
            assert temporary.stat().st_mode & 0o777 == 0o666
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_device_or_a_pipe_is_not_replaced(tmp_path):
    """Root may rename a file over /dev/null, and then it is none any more."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "link", Path("/dev/full")):
        with pytest.raises(UsageError, match=r"is a device or a pipe, whose place a file would take"):
            require_writable_file(path)
        with pytest.raises(UsageError, match=r"is a device or a pipe"), atomic_output(path):
            pass
    assert (tmp_path / "pipe").is_fifo() and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]


def test_a_path_for_a_library_has_the_bytes_of_the_name_in_any_locale():
    assert utf8_path(Path("B\udcc3\udca4.onnx")) == utf8_path(Path("Bä.onnx")) == "Bä.onnx"
    assert utf8_path(Path("no\udcb2utf8")) == "no\udcb2utf8"
