"""An archive is unpacked as a bundle's is written, and whatever else it may hold is refused before it can do harm."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_effdet.deploying.archive import write_archive
from edge_effdet.device import unpack
from edge_effdet.device.unpack import unpacked
from edge_effdet.errors import BackendUnavailable, BundleError, InputError
from tests.bundles import all_files


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "cells-1.0-x86-cpu"
    (folder / "graphs").mkdir(parents=True)
    (folder / "graphs" / "cells.onnx").write_bytes(os.urandom(300_000))
    (folder / "edge-effdet").write_text("#!/bin/sh\n")
    (folder / "edge-effdet").chmod(0o755)
    return folder


def write_tar(path: Path, *members: tuple[str, object]) -> Path:
    """A .tar.gz of members by name: text is a file, None a folder, and anything else changes the header of the tar."""
    with tarfile.open(path, "w:gz") as tar:
        for name, what in members:
            member = tarfile.TarInfo(name)
            if what is None:
                member.type = tarfile.DIRTYPE
            elif isinstance(what, str):
                member.size = len(what)
            elif isinstance(what, Callable):
                what(member)
            tar.addfile(member, io.BytesIO(what.encode()) if isinstance(what, str) else None)
    return path


def link(kind: bytes, target: str) -> Callable[[tarfile.TarInfo], None]:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname = kind, target

    return change


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_what_was_packed_is_unpacked(bundle, tmp_path, kind):
    archive = write_archive(bundle, kind)
    with unpacked(archive, tmp_path / "place") as folder:
        assert folder.name == bundle.name
        assert all_files(folder) == all_files(bundle)
        assert os.access(folder / "edge-effdet", os.X_OK) and not os.access(folder / "graphs" / "cells.onnx", os.X_OK)
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize(
    "members",
    [
        [("../evil", "x")],
        [("b/../../evil", "x")],
        [("/tmp/evil", "x")],
        [("b/./evil", "x")],
        [("b/e\u202evil", "x")],
        [("b/a b", "x")],
        [("b", None), ("b/link", link(tarfile.SYMTYPE, "/etc"))],
        [("b", None), ("b/link", link(tarfile.SYMTYPE, "..")), ("b/link/evil", "x")],
        [("b", None), ("b/link", link(tarfile.LNKTYPE, "/etc/passwd"))],
        [("b", None), ("b/device", link(tarfile.CHRTYPE, ""))],
        [("b", None), ("b/pipe", link(tarfile.FIFOTYPE, ""))],
        [("b", None), ("c", None)],
        [("alone", "x")],
        [("b/twice", "x"), ("b/twice", "y")],
        [],
    ],
)
def test_what_no_bundle_has_is_refused(members, tmp_path):
    archive = write_tar(tmp_path / "bundle.tar.gz", *members)
    with pytest.raises(BundleError, match="is not the archive of a bundle"), unpacked(archive, tmp_path / "place"):
        pass
    assert [each.name for each in tmp_path.iterdir()] == ["bundle.tar.gz"]


def test_an_archive_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpack, "MOST_BYTES", 1000)
    monkeypatch.setattr(unpack, "MOST_FILES", 10)
    for members in ([("b/large", "x" * 1001)], [(f"b/{number}", "x") for number in range(11)]):
        archive = write_tar(tmp_path / "bundle.tar.gz", *members)
        with pytest.raises(BundleError, match="holds more than"), unpacked(archive, tmp_path / "place"):
            pass


def write_blocks(path: Path, *blocks: bytes) -> Path:
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for block in blocks:
            stream.write(block)
    return path


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.DIRTYPE]
)
@pytest.mark.parametrize("first", [True, False])
def test_a_header_that_is_long_is_not_read_whole(tmp_path, kind, first):
    """tarfile reads the headers of long names and of PAX into memory, however long they say they are."""
    begin = tarfile.TarInfo("b")
    begin.type = tarfile.DIRTYPE
    header = tarfile.TarInfo("b/x")
    header.type, header.size = kind, 1 << 30
    blocks = [] if first else [begin.tobuf()]
    archive = write_blocks(tmp_path / "bundle.tar.gz", *blocks, header.tobuf(), *[bytes(1 << 20)] * 64)
    tracemalloc.start()
    try:
        with (
            pytest.raises(BundleError, match="is not the archive of a bundle") as caught,
            unpacked(archive, tmp_path / "place"),
        ):
            pass
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "place").exists()


def test_what_follows_the_end_is_not_read_for_ever(tmp_path):
    begin = tarfile.TarInfo("b")
    begin.type = tarfile.DIRTYPE
    archive = write_blocks(tmp_path / "bundle.tar.gz", begin.tobuf(), bytes(1024), *[bytes(1 << 20)] * 64)
    with pytest.raises(BundleError, match="headers and padding"), unpacked(archive, tmp_path / "place"):
        pass


def test_a_size_below_nothing_is_refused(tmp_path):
    """Two files could together seem to have no size."""
    header = bytearray(tarfile.TarInfo("b/x").tobuf())
    header[124:136] = b"\xff" * 12
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    archive = write_blocks(tmp_path / "bundle.tar.gz", bytes(header), bytes(1024))
    with pytest.raises(BundleError), unpacked(archive, tmp_path / "place"):
        pass


def test_a_large_file_is_not_taken_for_a_header(bundle, tmp_path):
    (bundle / "large").write_bytes(bytes(5 << 20))
    with unpacked(write_archive(bundle, "gz"), tmp_path / "place") as folder:
        assert (folder / "large").stat().st_size == 5 << 20


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_an_archive_that_is_cut_off_is_refused(bundle, tmp_path, kind):
    archive = write_archive(bundle, kind)
    content = archive.read_bytes()
    for length in (len(content) - 5, len(content) // 2, 200):
        archive.write_bytes(content[:length])
        with pytest.raises(BundleError, match="is cut off or damaged"), unpacked(archive, tmp_path / "place"):
            pass
    assert not (tmp_path / "place").exists()


def test_a_changed_byte_is_noticed_where_gzip_covers_it(bundle, tmp_path):
    archive = write_archive(bundle, "gz")
    content = bytearray(archive.read_bytes())
    content[len(content) // 2] ^= 1
    archive.write_bytes(content)
    with pytest.raises(BundleError), unpacked(archive, tmp_path / "place"):
        pass


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("a text")
    with (
        pytest.raises(BundleError, match=r"neither a \.tar\.gz nor a \.tar\.zst"),
        unpacked(tmp_path / "a.txt", tmp_path / "place"),
    ):
        pass
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(BundleError), unpacked(tmp_path / "b.gz", tmp_path / "place"):
        pass
    with pytest.raises(InputError, match="cannot be read"), unpacked(tmp_path / "missing.gz", tmp_path / "place"):
        pass


def test_without_zstd_the_way_out_is_told(bundle, tmp_path, monkeypatch):
    if sys.version_info >= (3, 14):
        pytest.skip("Python has zstd itself")
    archive = write_archive(bundle, "zst")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(BackendUnavailable, match="apt install zstd"), unpacked(archive, tmp_path / "place"):
        pass


def test_what_a_kill_left_is_removed_and_what_another_process_unpacks_stays(bundle, tmp_path):
    place = tmp_path / "place"
    code = (
        "import sys\nfrom pathlib import Path\nfrom edge_effdet.device.unpack import unpacked\n"
        "with unpacked(Path(sys.argv[1]), Path(sys.argv[2])) as folder:\n    print(folder, flush=True)\n    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(write_archive(bundle, "gz")), str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        archive = write_archive(bundle, "gz")
        with unpacked(archive, place):
            assert theirs.is_dir()
        other.kill()
    assert theirs.is_dir()
    with unpacked(archive, place):
        assert not theirs.exists()
