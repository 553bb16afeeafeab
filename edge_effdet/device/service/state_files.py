"""Files in the folder of the state, which belongs to the user of the service.

Root reads and writes there too: it asks for the status, may run the service by hand, and starts and stops it as a background process. Whoever broke into the
service could have put a link to a file of root's in the place of one of these, or a pipe on which a reader waits for ever. So none of them is followed.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_MOST_BYTES = 1 << 20
"""Of a file that is read whole: a status takes 2 KiB."""


def open_state_file(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open a plain file, and nothing else in its place.

    Args:
        path: the file.
        flags, mode: as ``os.open`` takes them.

    Returns:
        A descriptor.

    Raises:
        OSError: as ``os.open`` raises it; a link or what is no plain file is refused with ``ELOOP`` or ``EINVAL``.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return descriptor


def take_state_file(path: Path, flags: int, mode: int = 0o666, own: bool = False) -> int:
    """Open a plain file to write it. A link or a pipe in its place is removed first, and where ``own`` is set a file of another user too.

    Returns:
        A descriptor.

    Raises:
        OSError: as ``os.open`` raises it.
    """
    try:
        descriptor = open_state_file(path, flags | os.O_CREAT, mode)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise
    else:
        if not own or os.fstat(descriptor).st_uid == os.geteuid():
            return descriptor
        os.close(descriptor)
    path.unlink(missing_ok=True)
    return open_state_file(path, flags | os.O_CREAT | os.O_EXCL, mode)


def read_state_file(path: Path) -> tuple[bytes, int]:
    """The content of a plain file, and the number of the user who owns it.

    Raises:
        OSError: it cannot be read, is none, or is larger than any of ours.
    """
    descriptor = open_state_file(path, os.O_RDONLY)
    with os.fdopen(descriptor, "rb") as stream:
        content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
        return content, os.fstat(descriptor).st_uid


def require_own_link(folder: Path) -> None:
    """See that a folder, where it is a link, was made one by root or by this user, as to another disk. Raises OSError where it was not."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode) and status.st_uid not in (0, os.geteuid()):
        raise OSError(errno.ELOOP, "it is a link that another user made", str(folder))


def give_state(state: Path, user: int, group: int) -> None:
    """Make the state, with all in it, that of a user: of the one who runs the service, as someone else may have run it before.

    What is no plain file and no folder is left as it is, and so is a file that has more names than one: the other name may be anywhere.

    Args:
        state: the folder; it is made where it is missing.
        user, group: their numbers.
    """
    state.mkdir(parents=True, exist_ok=True)
    os.chown(state, user, group)
    for _, folders, files, place in os.fwalk(state, follow_symlinks=False):
        for name in (*folders, *files):
            _give(name, place, user, group)


def _give(name: str, place: int, user: int, group: int) -> None:
    try:
        # By a descriptor, so that what is given is what was looked at. What is neither a file nor a folder is not opened: a device could act on that.
        if stat.S_IFMT(os.stat(name, dir_fd=place, follow_symlinks=False).st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
            return
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=place)
    except OSError as error:
        # It went in the meantime, or became a link.
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO):
            raise
        return
    try:
        status = os.fstat(descriptor)
        alone = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and status.st_nlink == 1)
        if alone and (status.st_uid, status.st_gid) != (user, group):
            os.fchown(descriptor, user, group)
    finally:
        os.close(descriptor)
