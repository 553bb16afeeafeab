"""Where a runtime that compiles at load keeps what it compiled, for the next start on this machine.

What is kept runs in the engine's place, whose hash was checked before. A hash in the file would not protect it, for whoever writes the file can
work it out. So it is a file of the user's own in a folder that nobody else can write into; another one is neither read nor written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from pathlib import Path

from edge_effdet.artifacts import Engine, atomic_output

logger = logging.getLogger("edge_effdet.backends.runtime_cache")

SUFFIX = ".runtime_cache"

_COMPILED = "compiled"
"""The folder in the user's cache."""


def user_cache_folder() -> Path:
    """The folder of the user's own for what can be made again. Raises RuntimeError for a user without a home, as in some containers."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge_effdet"


def runtime_cache_path(engine: Engine) -> Path | None:
    """``<engine>.runtime_cache`` beside the engine, or else in the user's cache folder: where others cannot write. None where there is no such place.

    A folder that others can write into is none, be it that the sticky bit, as that of /tmp, keeps them from files that are not theirs: the file may not be
    there yet.
    """
    folder = engine.path.parent
    beside = engine.path.with_name(engine.path.name + SUFFIX)
    if os.access(folder, os.W_OK) and is_private(folder):
        return beside
    try:
        # What is run without a JSON beside it, as the cost model does, has no hash.
        return user_cache_folder() / _COMPILED / f"{engine.sha256[:16]}-{beside.name}"
    except RuntimeError:
        logger.info(
            "%s is compiled at each start: others can write into its folder, and this user has no home", engine.path
        )
        return None


def is_private(path: Path) -> bool:
    """Whether a file or folder, and no link to one, is this user's and nobody else can write into it. Raises OSError where it is not there."""
    status = path.lstat()
    if not hasattr(os, "getuid"):
        return True
    return not stat.S_ISLNK(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def read_private(path: Path) -> bytes | None:
    """The content of a file that only this user can have written; None where there is none, or another may have written it, which is logged."""
    try:
        private = is_private(path) and is_private(Path(os.path.realpath(path.parent)))
        if private:
            return path.read_bytes()
    except OSError:
        return None
    logger.warning(
        "%s is not used: another user may have written it; delete it, and see who can write into its folder", path
    )
    return None


def write_private(path: Path, content: bytes) -> None:
    """Write a file for this user alone, whole or not at all; a folder that is made for it is this user's alone too.

    Raises:
        InputError: the folder cannot be made or written.
        OSError: others can write into the folder.
    """
    # What is wrong with the folder, ``atomic_output`` says.
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_in_user_cache(path.parent):
            path.parent.chmod(0o700)
    if path.parent.is_dir() and not is_private(Path(os.path.realpath(path.parent))):
        raise OSError(f"others can write into {path.parent}")
    with atomic_output(path, private=True) as temporary:
        temporary.write_bytes(content)


def _is_in_user_cache(folder: Path) -> bool:
    try:
        return folder.parent == user_cache_folder()
    except RuntimeError:
        return False
