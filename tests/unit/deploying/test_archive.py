"""The archive of a bundle: the same bytes for the same bundle, and what tar unpacks is the bundle."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from edge_effdet.deploying import archive as module
from edge_effdet.deploying.archive import require_compression, write_archive
from edge_effdet.errors import BundleError, InputError, MissingDependency

CONTENTS = {
    "edge-effdet": b"#!/bin/sh\n",
    "SHA256SUMS": b"0  a\n",
    "graphs/cells.fp32.onnx": bytes(range(256)) * 400,
    "wheels/a.whl": b"PK",
    f"records/{'n' * 90}/{'m' * 90}.json": b"{}\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make(tmp_path / "Bündel 1" / "cells-1.2-x86-cpu", list(CONTENTS))


def make(folder: Path, names: list[str]) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(CONTENTS[name])
    (folder / "edge-effdet").chmod(0o755)
    return folder


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def unpack(archive: Path, into: Path) -> Path:
    into.mkdir()
    if archive.suffix == ".zst":
        plain = into / "plain.tar"
        with module._zstd().open(archive, "rb") as stream, open(plain, "wb") as out:
            shutil.copyfileobj(stream, out)
        archive = plain
    subprocess.run(["tar", "-xf", str(archive), "-C", str(into)], check=True)
    (into / "plain.tar").unlink(missing_ok=True)
    (found,) = into.iterdir()
    return found


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_what_tar_unpacks_is_the_bundle(folder: Path, tmp_path: Path, kind: str):
    archive = write_archive(folder, kind)
    assert archive == folder.parent / f"cells-1.2-x86-cpu.tar.{kind}"
    found = unpack(archive, tmp_path / "unpacked")
    assert found.name == folder.name
    assert contents(found) == CONTENTS
    assert stat.S_IMODE((found / "edge-effdet").stat().st_mode) == 0o755
    assert stat.S_IMODE((found / "SHA256SUMS").stat().st_mode) == 0o644
    assert stat.S_IMODE((found / "graphs").stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_the_same_bundle_gives_the_same_bytes(folder: Path, tmp_path: Path, kind: str):
    """Whatever the order in which files were made, their times, and the rights that a umask left."""
    first = write_archive(folder, kind).read_bytes()
    other = make(tmp_path / "elsewhere" / folder.name, list(reversed(CONTENTS)))
    for number, path in enumerate(sorted(other.rglob("*"))):
        os.utime(path, (number, number))
        path.chmod(0o700 if path.is_dir() or path.name == "edge-effdet" else 0o600)
    assert write_archive(other, kind).read_bytes() == first
    (other / "SHA256SUMS").write_bytes(b"1  a\n")
    assert write_archive(other, kind).read_bytes() != first


def test_nothing_tells_of_the_machine_that_wrote_it(folder: Path):
    with tarfile.open(write_archive(folder, "gz")) as tar:
        entries = tar.getmembers()
    assert {(each.uid, each.gid, each.uname, each.gname, each.mtime) for each in entries} == {
        (0, 0, "", "", module.EPOCH)
    }
    assert [each.name for each in entries] == sorted(each.name for each in entries)


def test_what_is_no_file_is_refused_and_nothing_is_left(folder: Path):
    (folder / "link").symlink_to(folder / "SHA256SUMS")
    with pytest.raises(BundleError, match="is a link"):
        write_archive(folder, "gz")
    (folder / "link").unlink()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_disk_that_is_full_leaves_the_old_archive(folder: Path, monkeypatch: pytest.MonkeyPatch):
    archive = write_archive(folder, "gz")
    before = archive.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile, "copyfileobj", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_archive(folder, "gz")
    assert archive.read_bytes() == before
    assert sorted(path.name for path in folder.parent.iterdir()) == sorted([folder.name, archive.name])


def test_without_zstd(folder: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("compression", "compression.zstd", "backports", "backports.zstd"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependency, match=r"edge-effdet\[deploy\]"):
        write_archive(folder, "zst")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    # Before the work, where it is asked for.
    with pytest.raises(MissingDependency):
        require_compression("zst")
    require_compression("gz")
