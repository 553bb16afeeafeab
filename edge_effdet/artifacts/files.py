"""Files: hashes, writing as a whole or not at all, no output over an input, and names that are not UTF-8."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edge_effdet.artifacts.temporary import temporary_file, temporary_folder
from edge_effdet.errors import InputError, UsageError

_SURROGATE = re.compile("[\ud800-\udfff]")
_NOT_ASCII = re.compile("[^\x00-\x7f]")

_Key = tuple[Any, ...]
"""What two paths to one file share: its device and inode; where nothing is there yet, its folder's key and its folded name."""


def file_sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    # Python 3.10, which JetPack 6 ships, has no hashlib.file_digest.
    digest = hashlib.sha256()
    for block in iter(lambda: stream.read(1 << 20), b""):
        digest.update(block)
    return digest.hexdigest()


def has_sha256(path: Path, digest: str) -> bool:
    """Whether a file is still the one that a hash was taken of. False where it is gone."""
    try:
        return file_sha256(path) == digest
    except FileNotFoundError:
        return False


def text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def atomic_output(path: Path, private: bool = False) -> Iterator[Path]:
    """Give a temporary path beside ``path`` and rename it when the block ends without an error.

    Args:
        path: the file.
        private: whether only this user may read and write it.

    Raises:
        InputError: the folder cannot be made or written.
        UsageError: a device or a pipe is at ``path``.
    """
    path = Path(path)
    refuse_device(path)
    with contextlib.ExitStack() as closing:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = closing.enter_context(temporary_file(path.parent, 0o600 if private else 0o666))
        except OSError as error:
            raise InputError(
                f"Cannot write {path}: {error.strerror or error}; choose another folder with `output`."
            ) from error
        try:
            yield temporary
            # A device is switched off by pulling the plug, and the name must not be on the disk before the content is.
            sync_file(temporary)
            os.replace(temporary, path)
        except OSError as error:
            raise writing_failed(path, error) from error


@contextlib.contextmanager
def atomic_folder(path: Path, place: Path | None = None) -> Iterator[Path]:
    """Give a new folder, which gets the name ``path`` when the block ends without an error and all that is in it is on the disk.

    Args:
        path: the folder. Nothing is there yet, or a folder that is empty.
        place: where the new folder is made, on the same disk; None for beside ``path``.

    Raises:
        InputError: it cannot be made or written.
    """
    path = Path(path)
    place = path.parent if place is None else place
    with contextlib.ExitStack() as closing:
        try:
            place.mkdir(parents=True, exist_ok=True)
            folder = closing.enter_context(temporary_folder(place)) / path.name
            # Not the temporary one itself, which is for this user alone.
            folder.mkdir()
        except OSError as error:
            raise InputError(
                f"Cannot write {path}: {error.strerror or error}; choose another folder with `output`."
            ) from error
        try:
            yield folder
            for each, _, names in os.walk(folder):
                for name in names:
                    sync_file(Path(each, name))
                sync_folder(Path(each))
            os.replace(folder, path)
        except OSError as error:
            raise writing_failed(path, error) from error


def sync_file(path: Path) -> None:
    """Return when the content of a file is on the disk."""
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot, such as shared folders of virtual machines, and then a kill does no harm, but a power cut may.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def writing_failed(path: Path, error: OSError) -> InputError:
    """The error of a file that could not be written, in a sentence that suits the reason."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    advice = "is the disk full?" if full else "see whether the folder may be written, or choose another with `output`."
    return InputError(f"Writing {path} failed: {error.strerror or error}; {advice}")


def require_writable(folder: Path, keep: bool = True) -> None:
    """Make a folder and write in it, so that a stage fails before minutes of work and not after.

    Args:
        folder: where the outputs will be.
        keep: whether a folder that was made stays. A stage that may still refuse its inputs leaves none behind.

    Raises:
        InputError: the folder cannot be made or written.
    """
    folder = Path(folder)
    made = [each for each in (folder, *folder.parents) if not os.path.exists(each)]  # noqa: PTH110 - Path.exists may raise
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary_file(folder, 0o600):
            pass
    except OSError as error:
        raise InputError(
            f"Cannot write into {folder}: {error.strerror or error}; choose another folder with `output`."
        ) from error
    for each in () if keep else made:
        with contextlib.suppress(OSError):
            each.rmdir()


def require_writable_file(path: Path) -> None:
    """See that a file can be written, before the work; a folder that is made for that goes again.

    Raises:
        InputError: the folder cannot be made or written.
        UsageError: a folder, a device or a pipe is at ``path``.
    """
    if path.is_dir():
        raise UsageError(f"`output` {path} is a folder and has to be a file; add the file's name.")
    refuse_device(path)
    require_writable(path.parent, keep=False)


def refuse_device(path: Path) -> None:
    """Raises UsageError where a file would take the place of a device or a pipe. For root it does, and without ``/dev/null`` little runs."""
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):  # noqa: PTH110, PTH112, PTH113 - Path's may raise
        raise UsageError(
            f"`output` {path} is a device or a pipe, whose place a file would take; give the name of a file."
        )


def refuse_overwrite(outputs: Iterable[Path], inputs: Iterable[Path | None], field: str = "output") -> None:
    """Refuse to write what is read. A stage calls this with all its paths before it writes the first byte.

    A folder stands for all that is in it. Two paths are the same if they lead to one file, through links, as hard links or by names that the
    file system takes for one. A path where nothing is yet is also the same as one in its folder that differs only in case or in the
    composition of letters (Unicode NFC and NFD), since on another file system it would be.

    Args:
        outputs: the files that will be written, and the folders of those whose names are not known before.
        inputs: the files and folders that are read; None, and what is not there, is left out.
        field: the option by which the outputs can be moved, for the message.

    Raises:
        UsageError: names the output and the input.
    """
    written = []
    for output in map(Path, outputs):
        folder, target = _keys(output.parent), _keys(output)
        own = {target[0]} if file_identity(output) else {target[0], (folder[0], folded(output.name))}
        written.append((output, own, {*folder, *target[1:]}))
    parents: dict[Path, list[_Key]] = {}

    def keys_of(folder: Path) -> list[_Key]:
        if folder not in parents:
            parents[folder] = _keys(folder)
        return parents[folder]

    for source in (Path(each) for each in inputs if each is not None):
        identity = file_identity(source)
        if identity is None:
            continue
        places = [source, Path(os.path.realpath(source))] if source.is_symlink() else [source]
        read = {identity, *((keys_of(each.parent)[0], folded(each.name)) for each in places)}
        above = {key for each in places for key in keys_of(each.parent)}
        for output, own, folders in written:
            if own & read:
                raise UsageError(f"Writing {output} would overwrite {source}, which is read; give another `{field}`.")
            if folders & read:
                raise UsageError(
                    f"{output} would be written into {source}, which is read; give another `{field}`, outside of it."
                )
            if own & above and output.is_dir():
                raise UsageError(
                    f"Writing into {output} could overwrite {source}, which is read; give another `{field}`."
                )


def _keys(path: Path) -> list[_Key]:
    """The key of a path and of each folder above it, up to the root."""
    real = Path(os.path.realpath(path))
    keys: list[_Key] = []
    for each in (*reversed(real.parents), real):
        keys.append(file_identity(each) or (keys[-1], folded(each.name)))
    return keys[::-1]


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what a path leads to, which all names of a file share; None where there is nothing."""
    try:
        status = path.stat()
    # A name that no file can have, as with a zero byte in it, is a ValueError.
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def folded(name: str) -> str:
    """What names share that differ only in case or in the composition of letters."""
    return unicodedata.normalize("NFC", name).casefold()


def printable(text: str) -> str:
    """A text in which each byte of a file name that is not UTF-8 is written as ``\\xb2``, so that it can be printed and stored.

    Python holds such a byte as a lone surrogate, which no encoder takes.
    """
    return _SURROGATE.sub(lambda found: _escape(found[0]), text)


def utf8_path(path: Path) -> str:
    """A path for a library that encodes it as UTF-8: the same bytes, also where the locale is none of UTF-8 and Python holds them as lone surrogates."""
    return os.fsencode(path).decode(errors="surrogateescape")


def _escape(surrogate: str) -> str:
    number = ord(surrogate)
    return f"\\x{number - 0xDC00:02x}" if 0xDC80 <= number <= 0xDCFF else f"\\u{number:04x}"


def json_text(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """A value as JSON that can always be encoded: what is no text becomes ``printable``.

    Args:
        value: what ``json.dumps`` takes.
        indent: as ``json.dumps`` has it.
        ascii_only: whether letters beyond ASCII are escaped, as for a terminal of any encoding.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    text = _SURROGATE.sub(lambda found: "\\" + _escape(found[0]), text)
    # Now that it is text, each letter may be escaped by itself.
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) if ascii_only else text


def write_text(path: Path, text: str) -> None:
    with atomic_output(path) as temporary:
        temporary.write_text(printable(text), encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value, indent=2) + "\n")
