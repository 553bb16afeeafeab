"""What was measured on: the processor, the GPUs, the system, the versions, and what holds them back.

All is read from the kernel's files and from NVML. What they do not tell is None, or left out.
"""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Collection, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from edge_effdet.backends.cores import cpu_flags, group_folders, read_quota, usable_cores, usable_cpus
from edge_effdet.backends.fingerprint import INSTRUCTION_SETS
from edge_effdet.benchmarking.host.jetson import describe_jetson
from edge_effdet.benchmarking.host.nvml import describe_gpus, why_no_nvml
from edge_effdet.benchmarking.record import Cpu, Limits, Machine
from edge_effdet.device.kernel_files import read_fields, read_number, read_text

PACKAGES = (
    "edge-effdet",
    "numpy",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "pycuda",
    "cuda-bindings",
    "mlcommons-loadgen",
)
"""The packages whose versions decide how fast an engine is, or how that is measured."""

_THIS = Path("/")

_ARM_PARTS = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x41, 0xD84): "Neoverse-V3",
    (0x41, 0xD85): "Cortex-X925",
    (0x41, 0xD87): "Cortex-A725",
    (0x4E, 0x003): "Denver 2",
    (0x4E, 0x004): "Carmel",
}
"""The name of an Arm core by its implementer and part, as in ``arch/arm64/include/asm/cputype.h`` of Linux. The parts are those of
Jetsons, Raspberry Pis and servers."""


def describe_machine(root: Path = _THIS, cpus: Collection[int] | None = None, nvml: Any = None) -> Machine:
    """This machine, but for its peaks.

    Args:
        root: where the file system begins, whose files say what the machine is.
        cpus: the logical cores that this process may use; None to ask the system.
        nvml: what stands in for ``pynvml``, for the GPUs.
    """
    cpus = usable_cpus() if cpus is None else set(cpus)
    here = root == _THIS
    memory = _memory(root)
    return Machine(
        host=(platform.node() if here else read_text(root / "proc/sys/kernel/hostname")) or "unknown",
        system=read_fields(root / "etc/os-release").get("PRETTY_NAME") or platform.system(),
        kernel=(platform.release() if here else read_text(root / "proc/sys/kernel/osrelease")) or "unknown",
        python=platform.python_version(),
        packages=installed_versions(),
        cpu=_describe_cpu(root, cpus),
        memory_bytes=memory,
        gpus=describe_gpus(nvml) if here or nvml is not None else (),
        gpu_note=why_no_nvml(nvml) if here or nvml is not None else "",
        jetson=describe_jetson(root, cpus),
        limits=_limits(root, memory),
        load_before=_load(root),
    )


def machine_identity(machine: Machine) -> dict[str, str]:
    """What decides how fast an engine is on a machine, by what it is called: where two machines agree in it, their times compare.

    The clock, the temperature and the load are not part of it, since they change on one machine too.
    """
    jetson = machine.jetson
    return {
        "processor": machine.cpu.name,
        "number of cores": f"{machine.cpu.cores} with {machine.cpu.threads} threads",
        "architecture": machine.cpu.architecture,
        "instruction sets": " ".join(machine.cpu.instructions),
        "GPU": ", ".join(gpu.name for gpu in machine.gpus) or "none",
        "Jetson": "none" if jetson is None else jetson.model,
        "power mode": "none" if jetson is None else jetson.power_mode or "unknown",
    }


def machine_differences(before: Machine, now: Machine) -> tuple[str, ...]:
    """In what two machines differ that decides how fast an engine is, a clause each; empty where their times compare."""
    old, new = machine_identity(before), machine_identity(now)
    clauses = [
        f"the {name} was {old[name]} and is {new[name]} now"
        for name in old
        if name != "instruction sets" and old[name] != new[name]
    ]
    had, has = set(before.cpu.instructions), set(now.cpu.instructions)
    # On another architecture all of them differ, which the clause on it says.
    if before.cpu.architecture == now.cpu.architecture:
        if had - has:
            clauses.append(f"the processor lacks instruction sets that it had: {', '.join(sorted(had - has))}")
        if has - had:
            clauses.append(f"the processor has instruction sets that it lacked: {', '.join(sorted(has - had))}")
    return tuple(clauses)


def installed_versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """The versions of those packages that are installed, by name."""
    found: dict[str, str] = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _describe_cpu(root: Path, cpus: set[int]) -> Cpu:
    proc, sys = root / "proc", root / "sys"
    here = root == _THIS
    listed = read_text(proc / "cpuinfo") or ""
    frequencies = [sys / f"devices/system/cpu/cpu{cpu}/cpufreq" for cpu in sorted(cpus)]
    highest = [clock for folder in frequencies if (clock := read_number(folder / "cpuinfo_max_freq"))]
    flags = cpu_flags(proc / "cpuinfo", None if here else {})
    x86 = "\nflags" in listed
    return Cpu(
        name=_cpu_name(root, listed, cpus),
        architecture=(platform.machine() if here else read_text(proc / "sys/kernel/arch")) or "unknown",
        cores=usable_cores(proc, sys, cpus),
        threads=len(cpus),
        instructions=tuple(sorted(flags & INSTRUCTION_SETS)),
        governors=tuple(sorted({text for folder in frequencies if (text := read_text(folder / "scaling_governor"))})),
        max_mhz=max(highest) / 1000 if highest else None,
        turbo=_turbo(sys),
        # Only x86 tells a guest that it is one.
        hypervisor="hypervisor" in _values(listed, "flags", 1)[0].split() if x86 else None,
    )


def _cpu_name(root: Path, listed: str, cpus: set[int]) -> str:
    """The name by the kernel; for Arm those of its cores, and the board where that is no Jetson, which is described on its own."""
    named = _values(listed, "model name", 1)
    parts: list[str] = []
    for block in listed.split("\n\n"):
        number, maker, part = (_values(block, name, 1) for name in ("processor", "CPU implementer", "CPU part"))
        if maker and part and (not number or int(number[0]) in cpus):
            key = (int(maker[0], 16), int(part[0], 16))
            parts.append(_ARM_PARTS.get(key, f"Arm core {maker[0]}/{part[0]}"))
    if parts:
        board = read_text(root / "proc/device-tree/model") or ""
        cores = " + ".join(dict.fromkeys(parts))
        return f"{board}, {cores}" if board and "Jetson" not in board else cores
    return (named[0] if named else "") or platform.processor() or platform.machine() or "unknown"


def _values(text: str, name: str, most: int) -> list[str]:
    """The values of the first lines of this name, whose form is ``name : value``."""
    found: list[str] = []
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            found.append(value.strip())
            if len(found) == most:
                break
    return found


def _turbo(sys: Path) -> bool | None:
    off = read_number(sys / "devices/system/cpu/intel_pstate/no_turbo")
    if off is not None:
        return off == 0
    boost = read_number(sys / "devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == 1


def _memory(root: Path) -> int:
    total = read_fields(root / "proc/meminfo").get("MemTotal", "")
    if total:
        return int(total.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _limits(root: Path, memory: int) -> Limits:
    proc, sys = root / "proc", root / "sys"
    files = [
        folder / name
        for folder in group_folders("memory", proc, sys)
        for name in ("memory.max", "memory.limit_in_bytes")
    ]
    # Version 1 says "no limit" with a number beyond any memory, version 2 with the word max.
    bounds = [int(bound) for file in files if (bound := read_number(file)) is not None and bound < memory]
    return Limits(cpus=read_quota(proc, sys), memory_bytes=min(bounds, default=None))


def _load(root: Path) -> float | None:
    text = read_text(root / "proc/loadavg")
    return float(text.split()[0]) if text else None
