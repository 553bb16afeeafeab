"""What is written survives a power cut, and an error of the file system is one sentence with the way out."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from edge_effdet.device.durable import folder_mib, is_disk_full, remove_path, telling_errors, write_durably
from edge_effdet.errors import InputError


def test_content_is_on_the_disk_before_its_name_and_the_name_before_the_return(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        done.append("folder" if Path(f"/proc/self/fd/{handle}").readlink() == tmp_path else "content")
        fsync(handle)

    def note_replace(old: Path, new: Path) -> None:
        done.append("name")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_durably(tmp_path / "a.json", "é\n")
    assert done == ["content", "name", "folder"]
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == "é\n"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "Writing /d failed: the disk is full; make room and run this again."),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "run this with sudo"),
        (errno.ENOLCK, "the file system has no locks"),
        (errno.ELOOP, "/d cannot be read or written (Too many levels of symbolic links); see why, and run this again."),
    ],
)
def test_errors_are_sentences(number, said):
    with pytest.raises(InputError) as caught, telling_errors(Path("/d")):
        raise OSError(number, os.strerror(number))
    assert said in str(caught.value)
    assert is_disk_full(caught.value) == (number == errno.ENOSPC)


def test_an_error_that_was_a_sentence_already_gets_the_better_one():
    with pytest.raises(InputError, match="the disk is full; make room"), telling_errors(Path("/d")):
        try:
            raise OSError(errno.ENOSPC, "No space left on device", "/d/file")
        except OSError as error:
            raise InputError("Writing failed; choose another folder with `output`.") from error
    with pytest.raises(InputError, match="another is at work"), telling_errors(Path("/d")):
        raise InputError("another is at work")


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to("folder")
    remove_path(tmp_path / "link")
    assert (tmp_path / "folder" / "file").exists()
    remove_path(tmp_path / "folder")
    remove_path(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_keeps_its_group_and_permissions(tmp_path):
    """Settings that may hold a password are for their owner at first, and then for the group of the service too."""
    path = tmp_path / "config.json"
    write_durably(path, "1", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    group = 65534 if os.geteuid() == 0 else os.getegid()
    os.chown(path, -1, group)
    write_durably(path, "2", mode=0o600)
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == ("2", 0o640, group)


def test_what_a_folder_takes_is_counted(tmp_path):
    assert folder_mib(tmp_path / "missing") == 0
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * (3 << 20))
    (tmp_path / "a" / "link").symlink_to("/")
    assert 3 <= folder_mib(tmp_path) <= 4
