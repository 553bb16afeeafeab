"""How many threads a CPU backend gets: the physical cores that this process may use.

Not the processors that the machine has. Two hyper-threads share the units that a convolution fills; ``taskset``, a container's
CPU set and its CPU quota take cores away that a runtime goes on counting; and threads beyond the quota are stopped for most of
each period, in the middle of a run.
"""

from __future__ import annotations

import contextlib
import math
import os
from pathlib import Path

_PROC = Path("/proc")
_SYS = Path("/sys")


def usable_cores(proc: Path = _PROC, sys: Path = _SYS) -> int:
    """Physical cores of the CPU affinity, and no more than the cgroup's quota pays for; at least 1.

    Args:
        proc, sys: where the kernel's files are mounted.
    """
    physical = count_physical(_affinity(), sys)
    quota = read_quota(proc, sys)
    return physical if quota is None else max(1, min(physical, math.floor(quota)))


def cpu_flags(cpuinfo: Path = _PROC / "cpuinfo") -> frozenset[str]:
    """The instruction sets that the kernel names (``flags`` on x86, ``Features`` on Arm); empty where it cannot be asked."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    named = [line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))]
    return frozenset(" ".join(named).split())


def count_physical(cpus: set[int], sys: Path = _SYS) -> int:
    """Physical cores among logical ones, by the kernel's topology; a logical one that it does not describe counts."""
    cores = set()
    for cpu in cpus:
        topology = sys / "devices" / "system" / "cpu" / f"cpu{cpu}" / "topology"
        try:
            core = tuple(int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
        except (OSError, ValueError):
            core = (cpu,)
        cores.add(core)
    return max(1, len(cores))


def read_quota(proc: Path = _PROC, sys: Path = _SYS) -> float | None:
    """CPUs that the cgroup of this process may use, the least of it and its parents; None without a limit."""
    found: list[float] = []
    root = sys / "fs" / "cgroup"
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                tops = [root]
            elif "cpu" in controllers.split(","):
                tops = [root / "cpu", root / controllers]
            else:
                continue
            for top in tops:
                # A container sees its own group at the top, whatever its path is outside.
                for folder in (top / path.lstrip("/"), *(top / path.lstrip("/")).parents):
                    if folder.is_relative_to(top):
                        found += _folder_quota(folder)
    return min(found, default=None)


def _folder_quota(folder: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return [quota / period] if quota > 0 else []
    return []


def _affinity() -> set[int]:
    # macOS and Windows have no affinity that Python can ask for.
    ask = getattr(os, "sched_getaffinity", None)
    return set(ask(0)) if ask else set(range(os.cpu_count() or 1))
