"""The table of the circumstances: how a command is killed or hampered, with which exit codes it may end then, and what has to be left.

What is expected of all of them stands in ``matrix.py``.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tests.faults.server import FAIL_FOR_GOOD, FAIL_ONCE, SEND_SIGNAL
from tests.faults.subjects import Subject

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class AtCall:
    """Something happens at a call that changes files: an action of ``calls_arm`` with its argument."""

    action: int
    argument: int


@dataclass(frozen=True, slots=True)
class Circumstance:
    """How a command is killed or hampered.

    Attributes:
        name: in short.
        title: its row in the table.
        codes: exit codes that are right, besides those of the subject where it is told to end.
        call: what happens at one of its calls; it is tried at many.
        settings: of the run, as ``Launcher.run`` takes them; one try for each.
        disk: sizes of the file system that the whole case lies on, as shares of what a run adds to it; one try for each.
        read_only: whether the file system of the case is read-only.
        foreign: whether the outputs belong to another user.
        at_once: how many of the command run at the same time.
        unicode: whether names have letters beyond ASCII, and the locale is C.
        killed: whether temporary files may stay, until the next run.
        rights: whether it needs root and mounts.
        only: subjects by name that it is tried with; empty for all.
    """

    name: str
    title: str
    codes: tuple[int, ...] = (0, 2)
    call: AtCall | None = None
    settings: Sequence[Mapping[str, Any]] = ({},)
    disk: Sequence[float] = ()
    read_only: bool = False
    foreign: bool = False
    at_once: int = 1
    unicode: bool = False
    killed: bool = False
    rights: bool = False
    only: tuple[str, ...] = ()

    def codes_of(self, subject: Subject) -> tuple[int, ...]:
        """The exit codes that are right for a command."""
        told = self.call is not None and self.call.action == SEND_SIGNAL and self.call.argument != signal.SIGKILL
        return (*self.codes, *(subject.told_to_end if told else ()))


_FRESH = ("detect", "detect, a video by OpenVINO", "evaluate", "verify", "serve", "data check", "data view")
"""Those that need no small network, so that they can run in a process of their own."""

CIRCUMSTANCES = (
    Circumstance(
        "kill",
        "killed (SIGKILL) before a system call",
        codes=(-signal.SIGKILL,),
        call=AtCall(SEND_SIGNAL, signal.SIGKILL),
        killed=True,
    ),
    Circumstance("interrupt", "Ctrl-C at a system call", codes=(130,), call=AtCall(SEND_SIGNAL, signal.SIGINT)),
    Circumstance("terminate", "SIGTERM at a system call", codes=(143,), call=AtCall(SEND_SIGNAL, signal.SIGTERM)),
    Circumstance("full", "disk full from a system call on", call=AtCall(FAIL_FOR_GOOD, errno.ENOSPC)),
    Circumstance(
        "broken",
        "input/output error of a system call",
        call=AtCall(FAIL_ONCE, errno.EIO),
        # A file that cannot be removed stays.
        killed=True,
    ),
    Circumstance("small", "a small disk (tmpfs)", disk=(0.0, 0.3, 0.6, 0.9), rights=True),
    Circumstance("read_only", "a read-only disk", read_only=True, rights=True),
    Circumstance("foreign", "a folder of another user", settings=({"drop_rights": True},), foreign=True, rights=True),
    Circumstance(
        "quota",
        "a limit on the size of files",
        settings=tuple({"limits": {"RLIMIT_FSIZE": size}} for size in (2048, 10_000, 100_000)),
    ),
    Circumstance(
        "home",
        "a user without a name and HOME",
        codes=(0,),
        settings=({"stranger": True, "without": ["HOME"]},),
        rights=True,
    ),
    Circumstance(
        "nowhere", "a HOME that cannot be made", codes=(0,), settings=({"environment": {"HOME": "/proc/nowhere"}},)
    ),
    Circumstance(
        "fresh",
        "the same, from the start of Python on",
        codes=(0,),
        settings=({"stranger": True, "without": ["HOME"], "fresh": True},),
        rights=True,
        only=_FRESH,
    ),
    Circumstance("shm", "no /dev/shm", settings=({"shm": "missing"},), rights=True),
    Circumstance("shm_full", "a full /dev/shm", settings=({"shm": "full"},), rights=True),
    Circumstance("locale", "C locale, names beyond ASCII", codes=(0,), unicode=True),
    # Libraries that cannot be loaded are not there.
    Circumstance(
        "memory",
        "a limit on memory",
        codes=(0, 2, 3),
        settings=tuple({"limits": {"RLIMIT_AS": size * MIB}} for size in (4, 32, 128, 512)),
    ),
    Circumstance(
        "files", "a limit on open files", settings=tuple({"limits": {"RLIMIT_NOFILE": more}} for more in (4, 16))
    ),
    Circumstance("stdin", "stdin is closed", codes=(0,), settings=({"stdin": "closed"},)),
    Circumstance(
        "streams",
        "stdout or stderr is closed or full",
        codes=(0,),
        settings=(
            {"stdout": "closed"},
            {"stderr": "closed"},
            {"stderr": "/dev/full"},
            {"stdin": "closed", "stdout": "closed", "stderr": "closed"},
        ),
    ),
    Circumstance("head", "| head -1", codes=(0,), settings=({"stdout": "one line"},)),
    Circumstance("no_room", "> /dev/full", codes=(2,), settings=({"stdout": "/dev/full"},)),
    Circumstance("two", "two at once", at_once=2),
)

NAMES = {circumstance.name: circumstance for circumstance in CIRCUMSTANCES}
