"""Temporary files and folders. A process locks each that it makes, so that what a killed one left can be told from what another works with.

The lock is the kernel's (``flock``), which ends with the process, however that ends. Where a process makes something for the first time, it removes what it
finds there of this name, of this user, and without a lock. On a file system without locks nothing is removed.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_NAME = re.compile(r"\.edge-effdet-temporary-([0-9a-f]{8})-[0-9a-f]{8}")
"""A name that nobody gives to a file of their own, since such files are removed. The first number is that of the machine's start (``_machine_start``), the
second one is drawn."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_at_work: set[Path] = set()
"""What this process has made and not removed yet."""

_swept: set[tuple[Path, int, int]] = set()
"""Path, device and inode of the folders that this process has looked into."""


@contextlib.contextmanager
def temporary_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder under a hidden name for this user alone, which is removed with all that is in it when the block ends.

    Args:
        parent: the folder that it is made in; None for the system's folder for temporary files.

    Raises:
        OSError: it cannot be made.
    """
    with _made(parent, _make_folder) as folder:
        yield folder


@contextlib.contextmanager
def temporary_file(parent: Path, mode: int = 0o666) -> Iterator[Path]:
    """Make an empty file under a hidden name, which is removed when the block ends, unless it was given another name.

    tempfile's files are for their owner alone, and an engine is for other users too; here the system takes the mask of the process off the mode.
    To ask for the mask is to change it, also for the threads that write at the same time.

    Args:
        parent: the folder that it is made in.
        mode: its permissions, before the mask.

    Raises:
        OSError: it cannot be made.
    """
    with _made(parent, lambda path: os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)) as path:
        yield path


def is_temporary(name: str) -> bool:
    """Whether a file or folder of this name is one of these."""
    return _NAME.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes of this user left in a folder. To make something there does so too, once in a process."""
    with contextlib.suppress(OSError):
        for each in list(folder.iterdir()):
            found = _NAME.fullmatch(each.name)
            if found:
                with contextlib.suppress(OSError):
                    _remove_leftover(each, found[1])


def _look_into(folder: Path) -> None:
    with contextlib.suppress(OSError):
        status = folder.stat()
        key = folder, status.st_dev, status.st_ino
        if key not in _swept:
            _swept.add(key)
            remove_leftovers(folder)


@contextlib.contextmanager
def _made(parent: Path | None, make: Callable[[Path], int | None]) -> Iterator[Path]:
    """Make something of a new name in a folder, hold its lock until the block ends, and remove it where it still has that name.

    ``make`` gets the path, and returns a descriptor of what it made, or None where that is gone again.
    """
    folder = parent or Path(tempfile.gettempdir())
    _look_into(folder)
    while True:
        path = folder / f".edge-effdet-temporary-{_machine_start()}-{secrets.token_hex(4)}"
        handle, is_ours = None, True
        _at_work.add(path)
        try:
            try:
                handle = make(path)
            except FileExistsError:
                is_ours = False
            if handle is not None and _keep(path, handle):
                yield path
                return
        finally:
            # Ctrl-C may have come right after it was made.
            if is_ours:
                _discard(path)
            _at_work.discard(path)
            if handle is not None:
                os.close(handle)


def _discard(path: Path) -> None:
    """Remove a file or a folder, if it is still there. What cannot be removed now, a later process removes."""
    try:
        _remove(path)
    except BaseException:
        # Ctrl-C or SIGTERM came while it was removed.
        _remove(path)
        raise


@atexit.register
def _discard_all() -> None:
    """Remove what a thread still works with when the process ends, as one that loads an engine does when Ctrl-C comes."""
    for path in list(_at_work):
        _discard(path)


# A forked process works with none of what this one made, and may end before it.
os.register_at_fork(after_in_child=_at_work.clear)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        if not path.is_dir():
            path.unlink(missing_ok=True)
            return
        shutil.rmtree(path, ignore_errors=True)
        # That opens a folder within another one, and a process at its limit of open files may open one at a time at most.
        for root, folders, files in os.walk(path, topdown=False):
            for name in files:
                Path(root, name).unlink()
            for name in folders:
                each = Path(root, name)
                each.unlink() if each.is_symlink() else each.rmdir()
        path.rmdir()


def _make_folder(path: Path) -> int | None:
    path.mkdir(0o700)
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None


def _keep(path: Path, handle: int) -> bool:
    """Lock what was made; False where another process took it for a leftover in the moment before, and removes it."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # The file system has no locks, so nobody can lock it to remove it.
        return True
    return os.path.lexists(path)


def _remove_leftover(path: Path, machine_start: str) -> None:
    """Remove what a killed process made. Raises OSError where a process works with it, or nobody can tell."""
    status = path.lstat()
    is_folder = stat.S_ISDIR(status.st_mode)
    if status.st_uid != os.geteuid() or not (is_folder or stat.S_ISREG(status.st_mode)):
        return
    # Another number is of this machine before it was started anew, or of another machine, whose locks a file system of the network need not tell of.
    # A disk of this machine has a driver's number.
    if machine_start != _machine_start() and os.major(status.st_dev) == 0:
        return
    # NFS gives this lock only on a file that is open for writing.
    handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)


@functools.cache
def _machine_start() -> str:
    """Eight digits that are others each time a machine is started; zeros where the system does not tell."""
    try:
        found = re.match("[0-9a-f]{8}", _BOOT_ID.read_text(encoding="ascii"))
    except (OSError, ValueError):
        found = None
    return found[0] if found else "0" * 8
