"""How many threads a CPU backend gets: the physical cores that this process may use.

Not the processors that the machine has. Two hyper-threads share the units that a convolution fills; ``taskset``, a container's
CPU set and its CPU quota take cores away that a runtime goes on counting; and threads beyond the quota are stopped for most of
each period, in the middle of a run.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path

_PROC = Path("/proc")
_SYS = Path("/sys")
_NAMES = {
    "SSE41": "sse4_1",
    "SSE42": "sse4_2",
    "AVX": "avx",
    "AVX2": "avx2",
    "FMA3": "fma",
    "F16C": "f16c",
    "AVX512F": "avx512f",
    "AVX512BW": "avx512bw",
    "AVX512DQ": "avx512dq",
    "AVX512VL": "avx512vl",
    "AVX512VNNI": "avx512_vnni",
    "AVX512BF16": "avx512_bf16",
    "AVX512FP16": "avx512_fp16",
    "ASIMD": "asimd",
    "ASIMDHP": "asimdhp",
    "ASIMDDP": "asimddp",
    "SVE": "sve",
}
"""Linux's names of what NumPy tells of a processor. NumPy asks the processor, and does not know the newest instruction sets."""


def usable_cores(proc: Path = _PROC, sys: Path = _SYS, cpus: set[int] | None = None) -> int:
    """Physical cores of the CPU affinity, and no more than the cgroup's quota pays for; at least 1.

    Args:
        proc, sys: where the kernel's files are mounted.
        cpus: the logical cores that this process may use; None to ask the system.
    """
    physical = count_physical(usable_cpus() if cpus is None else cpus, sys)
    quota = read_quota(proc, sys)
    return physical if quota is None else max(1, min(physical, math.floor(quota)))


def cpu_flags(cpuinfo: Path = _PROC / "cpuinfo", features: Mapping[str, bool] | None = None) -> frozenset[str]:
    """The instruction sets that this process may use, as the kernel names them (``flags`` on x86, ``Features`` on Arm).

    An emulator such as QEMU passes the kernel's list of the machine below through, so what the processor itself says goes before it:
    where the two disagree, only what the processor says counts.

    Args:
        cpuinfo: the kernel's list; a file that cannot be read names nothing.
        features: whether the processor says that it has one, by NumPy's name; None to ask it.
    """
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    listed = [line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features"))]
    named = frozenset(" ".join(listed).split())
    said = {
        name: found
        for key, found in (_features() if features is None else features).items()
        if (name := _NAMES.get(key))
    }
    present = frozenset(name for name, found in said.items() if found)
    return named | present if named.isdisjoint(said.keys() - present) else present


def _features() -> Mapping[str, bool]:
    """What NumPy found by asking the processor; nothing where another version of NumPy keeps it elsewhere."""
    for module in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        with contextlib.suppress(ImportError, AttributeError):
            return importlib.import_module(module).__cpu_features__
    return {}


def processor_family() -> str:
    """``x86``, ``arm``, or the machine's own name where it is neither."""
    name = platform.machine().lower()
    if name in ("x86_64", "amd64", "i686", "i386"):
        return "x86"
    return "arm" if name in ("aarch64", "arm64") or name.startswith("armv") else name


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
    folders = group_folders("cpu", proc, sys)
    return min((quota for folder in folders for quota in _folder_quota(folder)), default=None)


def group_folders(controller: str, proc: Path = _PROC, sys: Path = _SYS) -> list[Path]:
    """Where the kernel may keep a controller of the cgroup of this process and of its parents, the innermost first.

    Args:
        controller: ``cpu`` or ``memory``.
        proc, sys: where the kernel's files are mounted.
    """
    found: list[Path] = []
    root = sys / "fs" / "cgroup"
    with contextlib.suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                tops = [root]
            elif controller in controllers.split(","):
                tops = [root / controller, root / controllers]
            else:
                continue
            for top in tops:
                # A container sees its own group at the top, whatever its path is outside.
                inner = top / path.lstrip("/")
                found += [folder for folder in (inner, *inner.parents) if folder.is_relative_to(top)]
    return found


def _folder_quota(folder: Path) -> list[float]:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return [] if quota == "max" else [int(quota) / int(period)]
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return [quota / period] if quota > 0 else []
    return []


def usable_cpus() -> set[int]:
    """The logical cores that this process may use."""
    # macOS and Windows have no affinity that Python can ask for.
    ask = getattr(os, "sched_getaffinity", None)
    return set(ask(0)) if ask else set(range(os.cpu_count() or 1))
