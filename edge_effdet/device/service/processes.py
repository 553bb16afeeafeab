"""Processes told apart beyond doubt, and a clock that goes on from the start of the machine.

The number of a process is given again to a later one, and the wall clock of a device without a battery for it begins in 1970 at each start,
so neither tells alone whether a process that wrote its number down is still there.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

_ZOMBIE, _START = 0, 19
"""Fields of ``/proc/<pid>/stat`` after the name: the state, and when the process was started, in ticks since the machine was (proc(5))."""


def seconds_since_boot() -> float:
    """Seconds since the machine was started, with those in which it slept. All processes of the machine read the same clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_identity(pid: int, proc: Path = Path("/proc")) -> str | None:
    """What tells a process from every other one, earlier or later: the start of the machine and the process's own. None where it has ended.

    Args:
        pid: its number.
        proc: where the kernel's files are mounted.
    """
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        boot = (proc / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    # The name stands in brackets and may hold anything, brackets too.
    fields = text.rpartition(")")[2].split()
    if len(fields) <= _START or fields[_ZOMBIE] in ("Z", "X"):
        return None
    return f"{boot}:{fields[_START]}"


def process_owner(pid: int, proc: Path = Path("/proc")) -> int | None:
    """The number of the user who started a process, and who may end it; None where it has ended.

    Args:
        pid: its number.
        proc: where the kernel's files are mounted.
    """
    try:
        text = (proc / str(pid) / "status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The real user comes first, then the effective one.
    found = re.search(r"^Uid:\s*(\d+)", text, re.MULTILINE)
    return int(found[1]) if found else None
