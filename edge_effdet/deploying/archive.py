"""A bundle as one file: a tar archive that is the same, byte for byte, for the same bundle."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import atomic_output
from edge_effdet.device.manifest import files_of
from edge_effdet.errors import InputError, MissingDependency

EPOCH = 315532800
"""1980-01-01, the time of every file in archives and wheels: ZIP has none before it, and GNU tar doubts times near 1970."""

_LEVELS = {"gz": 6, "zst": 12}


def write_archive(folder: Path, kind: str) -> Path:
    """Write a folder into an archive beside it.

    Args:
        folder: it becomes the one folder at the top of the archive. It holds folders and files, no links.
        kind: ``gz``, which Python's standard library and every tar can read, or ``zst``, which is smaller.

    Returns:
        The archive ``<folder>.tar.<kind>``. An earlier one is replaced, as a whole or not at all.

    Raises:
        BundleError: something in the folder is neither a file nor a folder.
        InputError: a file cannot be read, or the archive not be written.
        MissingDependency: for ``zst`` before Python 3.14, ``backports.zstd`` is not installed.
    """
    names = sorted(files_of(folder))
    folders = {parent.as_posix() for name in names for parent in Path(name).parents} - {"."}
    archive = folder.with_name(f"{folder.name}.tar.{kind}")
    # PAX writes names that are too long for the plain header in one way alone.
    with (
        atomic_output(archive) as temporary,
        _compressing(temporary, kind) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        tar.addfile(_entry(folder.name, 0o755, tarfile.DIRTYPE))
        for name in sorted({*names, *folders}):
            inside = f"{folder.name}/{name}"
            if name in folders:
                tar.addfile(_entry(inside, 0o755, tarfile.DIRTYPE))
            else:
                _add_file(tar, folder / name, inside)
    return archive


def _add_file(tar: tarfile.TarFile, path: Path, inside: str) -> None:
    try:
        with open(path, "rb") as content:
            status = path.stat()
            entry = _entry(inside, 0o755 if status.st_mode & 0o100 else 0o644, tarfile.REGTYPE)
            entry.size = status.st_size
            tar.addfile(entry, content)
    except OSError as error:
        raise InputError(
            f"{path} could not be put into the archive: {error.strerror or error}; see who may read it, and whether there is room on the disk."
        ) from error


def _entry(name: str, mode: int, kind: bytes) -> tarfile.TarInfo:
    """The header of a file, without owner and time of the machine that wrote it."""
    entry = tarfile.TarInfo(name)
    entry.mode, entry.type, entry.mtime = mode, kind, EPOCH
    return entry


def require_compression(kind: str) -> None:
    """See that archives of a kind can be written here, before minutes of work; of any kind that is none nothing is asked.

    Raises:
        MissingDependency: for ``zst`` before Python 3.14, ``backports.zstd`` is not installed.
    """
    if kind == "zst":
        _zstd()


@contextmanager
def _compressing(path: Path, kind: str) -> Iterator[Any]:
    with open(path, "wb") as raw:
        if kind == "gz":
            # Neither the name nor the time of the file goes into its header.
            with gzip.GzipFile("", "wb", _LEVELS[kind], raw, mtime=0) as stream:
                yield stream
        else:
            with _zstd().ZstdFile(raw, "wb", level=_LEVELS[kind]) as stream:
                yield stream


def _zstd() -> Any:
    """The module ``compression.zstd`` of Python 3.14, or the package that has it for earlier ones."""
    try:
        from compression import zstd
    except ModuleNotFoundError:
        try:
            from backports import zstd
        except ModuleNotFoundError as error:
            raise MissingDependency("backports.zstd", "deploy", "to write an archive of type zst") from error
    return zstd
