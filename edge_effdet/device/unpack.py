"""Unpacking the archive of a bundle. Its content is not trusted, for nothing was checked yet: only files and folders, inside one folder, within limits."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from edge_effdet.artifacts import printable, temporary_folder
from edge_effdet.artifacts.temporary import remove_leftovers
from edge_effdet.device.durable import telling_errors
from edge_effdet.errors import BackendUnavailable, BundleError, InputError

MOST_FILES = 10_000
MOST_BYTES = 8 << 30
"""Of all files together. TensorRT's wheels, the largest that a bundle can hold, take 2 GiB."""

MOST_BETWEEN = 1 << 20
"""Bytes before a file, between two, and behind the last one: headers, which ``tarfile`` reads whole however long they say they are, and padding. Those
of a bundle take 1.5 KiB a file, and the padding at the end up to 10 KiB."""

_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_NAME = re.compile(r"[!-~]+")


@contextlib.contextmanager
def unpacked(archive: Path, place: Path) -> Iterator[Path]:
    """Unpack the archive of a bundle into a hidden folder, which is removed when the block ends.

    Args:
        archive: a ``.tar.gz`` or ``.tar.zst``; the first bytes tell which.
        place: the folder that the hidden one is made in. What an earlier run left there after a kill is removed.

    Returns:
        The folder in the archive.

    Raises:
        BundleError: it is no such archive, is cut off or damaged, or holds what no bundle has, such as links or paths that lead out.
        InputError: it cannot be read, or the place not be written.
        BackendUnavailable: nothing here can read a ``.tar.zst``.
    """
    made = not place.exists()
    try:
        with contextlib.ExitStack() as closing:
            with telling_errors(place):
                place.mkdir(parents=True, exist_ok=True)
                remove_leftovers(place)
                folder = closing.enter_context(temporary_folder(place))
                _unpack(archive, folder)
                (inside,) = folder.iterdir()
            yield inside
    finally:
        # What was refused leaves nothing behind.
        with contextlib.suppress(OSError):
            if made:
                place.rmdir()


def _unpack(archive: Path, folder: Path) -> None:
    try:
        # Read as a stream, from front to back: nothing in the archive decides where is read next.
        with _decompressed(archive) as content:
            stream = _Limited(content, archive)
            with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]  # it asks for read alone
                _extract(tar, stream, archive, folder)
            # The checksum of gzip is at the end, behind what tar reads.
            stream.allow(MOST_BETWEEN)
            while stream.read(1 << 16):
                pass
    except (
        *(tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile),
        # What tarfile raises for headers that are malformed in other ways.
        *(ValueError, OverflowError, RecursionError, MemoryError),
    ) as error:
        raise BundleError(f"{archive} is cut off or damaged ({error}); copy it again.") from error


class _Limited:
    """A stream of which no more is read than was allowed before: what an archive says of its own lengths is not believed."""

    def __init__(self, stream: Any, archive: Path) -> None:
        self._stream, self._archive, self._left = stream, archive, MOST_BETWEEN

    def allow(self, count: int) -> None:
        """Let so many bytes be read from here on."""
        self._left = count

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes. Raises BundleError where more are read than was allowed."""
        # tarfile asks for blocks of 10 KiB and puts them together.
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise _refused(self._archive, f"more than {MOST_BETWEEN >> 20} MiB of headers and padding for one file")
        return content


def _extract(tar: tarfile.TarFile, stream: _Limited, archive: Path, folder: Path) -> None:
    total = count = 0
    tops: set[str] = set()
    while True:
        stream.allow(MOST_BETWEEN)
        member = tar.next()
        if member is None:
            break
        name = member.name
        path = PurePosixPath(name)
        if name == "." and member.isdir():
            raise _refused(archive, "no folder around its files; pack the folder of the bundle and not what is in it")
        if not _NAME.fullmatch(name) or path.is_absolute() or ".." in path.parts or path.as_posix() != name:
            raise _refused(archive, f"a path that no bundle has, {printable(name)[:80]!r}")
        if not (member.isreg() or member.isdir()) or member.issparse():
            raise _refused(archive, f"{name[:80]!r}, which is a link, a device or the like")
        total, count = total + member.size, count + 1
        tops.add(path.parts[0])
        if not 0 <= member.size <= total <= MOST_BYTES or count > MOST_FILES:
            raise _refused(archive, f"more than {MOST_FILES} files or {MOST_BYTES >> 30} GiB")
        if len(tops) > 1 or (len(path.parts) == 1 and not member.isdir()):
            raise _refused(archive, "more than one folder")
        target = folder / name
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        content = tar.extractfile(member)
        assert content is not None
        stream.allow(member.size + MOST_BETWEEN)
        try:
            with open(target, "xb") as written:
                shutil.copyfileobj(content, written, 1 << 20)
        except FileExistsError as error:
            raise _refused(archive, f"{name[:80]!r} twice") from error
        target.chmod(0o755 if member.mode & 0o100 else 0o644)
    if not tops:
        raise _refused(archive, "nothing")


@contextlib.contextmanager
def _decompressed(archive: Path) -> Iterator[Any]:
    try:
        stream = open(archive, "rb")  # noqa: SIM115 - closed below
    except OSError as error:
        raise InputError(
            f"{archive} cannot be read ({error.strerror}); give the folder of a bundle, or its archive."
        ) from error
    with stream:
        start = stream.read(4)
        stream.seek(0)
        if start.startswith(_GZIP):
            with gzip.open(stream) as content:
                yield content
        elif start == _ZSTD:
            with _from_zstd(archive, stream) as content:
                yield content
        else:
            raise BundleError(
                f"{archive} is neither a .tar.gz nor a .tar.zst; give the folder or the archive that python -m edge_effdet.deploy wrote."
            )


@contextlib.contextmanager
def _from_zstd(archive: Path, stream: IO[bytes]) -> Iterator[Any]:
    """By Python 3.14's module, or by the program ``zstd``."""
    try:
        from compression import zstd  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        program = shutil.which("zstd")
    else:
        with zstd.open(stream) as content:
            try:
                yield content
            except zstd.ZstdError as error:
                raise EOFError(str(error)) from error
        return
    if program is None:
        raise BackendUnavailable(
            f"Nothing on this machine can read {archive}; install the program zstd, for example by apt install zstd, or take the .tar.gz."
        )
    # The look at the first bytes has moved the file on, for the program too.
    os.lseek(stream.fileno(), 0, os.SEEK_SET)
    with subprocess.Popen(
        [program, "-dcq"], stdin=stream, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            raise
        if process.wait():
            raise EOFError("zstd found an error in it")


def _refused(archive: Path, what: str) -> BundleError:
    return BundleError(
        f"{archive} holds {what}, so it is not the archive of a bundle; do not use it, and copy the bundle again."
    )
