"""Who had the processors: what they did in all, how much of it was ours, and how much the hypervisor gave away.

Times are in clock ticks since an arbitrary moment (100 a second on nearly all systems), and only differences of them mean something.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.device.kernel_files import read_text


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """What some processors did so far.

    Attributes:
        busy: the time that each worked, by its number.
        total: the time that passed, over all of them.
        stolen: the time in which one was ready to work and the hypervisor ran something else, over all of them.
    """

    busy: dict[int, int]
    total: int
    stolen: int


def read_cpu_times(proc: Path, cpus: Iterable[int]) -> CpuTimes | None:
    """What these processors did since the system started, by ``/proc/stat``; None where it tells of none of them.

    Args:
        proc: where the kernel's files are mounted.
        cpus: the logical cores that count.
    """
    wanted = {f"cpu{cpu}": cpu for cpu in cpus}
    busy: dict[int, int] = {}
    total = stolen = 0
    for line in (read_text(proc / "stat") or "").splitlines():
        if not line.startswith("cpu"):
            break
        name, *fields = line.split()
        if name in wanted:
            # The time of guests is within that of user and nice (https://docs.kernel.org/filesystems/proc.html).
            user, nice, system, idle, waiting, interrupt, soft, steal = map(int, fields[:8])
            busy[wanted[name]] = user + nice + system + interrupt + soft
            total += user + nice + system + interrupt + soft + idle + waiting + steal
            stolen += steal
    return CpuTimes(busy, total, stolen) if busy else None


@dataclass(frozen=True, slots=True)
class _Process:
    """One process.

    Attributes:
        parent: the process that started it.
        began: when it was started; tells two processes of one number apart.
        own: its time on processors.
        reaped: the time of those of its children that ended and that it has waited for, and of theirs.
    """

    parent: int
    began: int
    own: int
    reaped: int


class OwnTime:
    """The processor time of this process, of others that are told, and of all their children.

    A child that ends hands its time to its parent. What a told process used in its last moments is lost where nobody who is ours
    waits for it: less than the time between two readings.

    Args:
        proc: where the kernel's files are mounted.
        ours: gives the numbers of the processes that count as ours besides this one. It is asked at each reading.
    """

    def __init__(self, proc: Path, ours: Callable[[], Iterable[int]] = tuple) -> None:
        self._proc = proc
        self._ours = ours
        self._tracked: dict[int, _Process] = {}
        self._foreign: set[int] = set()
        self._ticks = 0

    def read(self) -> int:
        """The time since the first reading, in clock ticks; 0 where the system does not list its processes.

        A process counts from the reading on in which it is first told.
        """
        try:
            listed = {int(name) for name in os.listdir(self._proc) if name.isdigit()}  # noqa: PTH208
        except OSError:
            return 0
        before = self._tracked
        told = {os.getpid(), *self._ours()} & listed
        old_foreign = self._foreign
        # A process that is only told now may have children that were taken for others' before.
        foreign = old_foreign & listed if told <= before.keys() else set()

        now: dict[int, _Process] = {}
        for pid in (before.keys() & listed) | told:
            process = self._look(pid)
            if process is not None and (pid in told or process.began == before[pid].began):
                now[pid] = process
        # Processes that were others' stay so, so that each of them is looked at once.
        unknown = {pid: process for pid in listed - foreign - now.keys() if (process := self._look(pid)) is not None}
        while children := {pid: process for pid, process in unknown.items() if process.parent in now}:
            now |= children
            unknown = {pid: process for pid, process in unknown.items() if pid not in children}
        self._foreign = foreign | unknown.keys()
        self._tracked = now

        if before:
            self._ticks += self._gained(before, now, told, old_foreign)
        return self._ticks

    def _gained(self, before: dict[int, _Process], now: dict[int, _Process], told: set[int], foreign: set[int]) -> int:
        lost = dict.fromkeys(now, 0)
        for pid, process in before.items():
            if _same(process, now.get(pid)):
                continue
            # Whoever waited for it has its whole time now, of which the greater part was counted while it ran.
            parent = process.parent
            while parent in before and not _same(before[parent], now.get(parent)):
                parent = before[parent].parent
            if parent in lost:
                lost[parent] += process.own + process.reaped
        gained = 0
        for pid, process in now.items():
            old = before.get(pid)
            if old is not None and _same(old, process):
                gained += process.own - old.own + max(0, process.reaped - old.reaped - lost[pid])
            elif pid not in told and pid not in foreign:
                gained += process.own + process.reaped
        return gained

    def _look(self, pid: int) -> _Process | None:
        text = read_text(f"{self._proc}/{pid}/stat")
        if not text:
            return None
        # The name, in parentheses, may have spaces and parentheses in it. Fields 4, 14 to 17 and 22 (proc_pid_stat(5)).
        fields = text.rpartition(")")[2].split()
        user, system, child_user, child_system = map(int, fields[11:15])
        return _Process(int(fields[1]), int(fields[19]), user + system, child_user + child_system)


def _same(first: _Process, second: _Process | None) -> bool:
    return second is not None and first.began == second.began
