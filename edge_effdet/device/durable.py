"""Writing that survives a power cut, and errors of the file system as sentences.

A device is switched off by pulling its plug. What was written is then on the disk only if ``fsync`` was called, and a file system may bring a later change
there before an earlier one, such as the new name of a file before its content.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from edge_effdet.artifacts import atomic_output, printable
from edge_effdet.artifacts.files import sync_folder
from edge_effdet.errors import InputError

_ADVICE = {
    errno.ENOSPC: "the disk is full; make room and run this again",
    errno.EDQUOT: "the quota of this user is used up; make room and run this again",
    errno.EROFS: "the file system is read-only; mount it for writing, or give another `root`",
    errno.EACCES: "this user may not write there; run this with sudo, or give another `root`",
    errno.EPERM: "this user may not write there; run this with sudo, or give another `root`",
    errno.EIO: "the disk reports errors; look at it with dmesg and replace it if they return",
    errno.ENOLCK: "the file system has no locks; give another `root`, on a local disk",
}


@contextlib.contextmanager
def telling_errors(folder: Path) -> Iterator[None]:
    """Turn an error of the operating system in the block, or one that an InputError was made from, into one sentence.

    Raises:
        InputError: names the folder, or the file, and what to do. Its cause is the error.
    """
    try:
        yield
    except OSError as error:
        raise InputError(_sentence(folder, error)) from error
    except InputError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _ADVICE:
            raise InputError(_sentence(folder, error.__cause__)) from error.__cause__
        raise


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it was made from, is a lack of room."""
    cause = error if isinstance(error, OSError) else error.__cause__
    return isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)


def _sentence(folder: Path, error: OSError) -> str:
    place = printable(str(error.filename or folder))
    advice = _ADVICE.get(error.errno or 0)
    if advice is None:
        return f"{place} cannot be read or written ({error.strerror or error}); see why, and run this again."
    return f"Writing {place} failed: {advice}."


def write_durably(path: Path, text: str, mode: int | None = None) -> None:
    """Write a file as a whole, and return when it and its name are on the disk: a power cut after that loses neither.

    Args:
        path: the file.
        text: its content.
        mode: its permissions where it is new; the group and the permissions of one that is there already stay. None for those of any new file.
    """
    with atomic_output(path) as temporary:
        if mode is not None:
            # Before the content is in it, and before it has its name: after a power cut in between the service could not read it.
            temporary.chmod(mode)
            with contextlib.suppress(FileNotFoundError, PermissionError):
                before = path.stat()
                os.chown(temporary, -1, before.st_gid)
                temporary.chmod(stat.S_IMODE(before.st_mode))
        temporary.write_text(printable(text), encoding="utf-8")
    sync_folder(path.parent)


def sync_all() -> None:
    """Return when everything that was written is on the disk. pip writes thousands of files and brings none of them there."""
    os.sync()


def remove_path(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def folder_mib(folder: Path) -> int:
    """What a folder with all that is in it takes on the disk, MiB; 0 where it is not there."""
    blocks = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                blocks += os.lstat(os.path.join(place, name)).st_blocks  # noqa: PTH118
    # By stat(2) a block has 512 bytes on every file system.
    return blocks * 512 >> 20
