"""Whether a device fits the target of a bundle: what is there, what is missing, and what to do about it.

All is read from files below a root, so a copy of another machine's files can be inspected too. Nothing is changed and no connection is made.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.device.findings import Finding, Inspection
from edge_effdet.device.interpreter import THIS, DevicePython, find_python
from edge_effdet.device.kernel_files import read_fields, read_text
from edge_effdet.device.manifest import Manifest
from edge_effdet.device.nvidia import (
    check_cuda,
    check_driver,
    check_jetpack,
    check_module,
    check_tensorrt,
    note_clocks,
    note_power,
    read_jetpack,
)
from edge_effdet.device.targets import ON_CPU, PYTHONS, DeployTarget, JetPack, get_target

DISK_MIB = {"onnxruntime": 400, "openvino": 500, "tensorrt": 500, "tensorrt-rtx": 700, "onnxruntime-cuda": 4000}
"""What a version takes on the disk at most: up to 130 MiB of bundle, NumPy, Pillow and pip (113 MiB as installed), the backend's packages
(onnxruntime 78, OpenVINO 180, TensorRT-RTX 235 MiB as installed; those of CUDA from memory), and the engine."""

PIP_TENSORRT_MIB = 6000
"""In place of that with the TensorRT that pip fetches on a server, whose libraries are some GB; from memory."""

_SMALL_MIB, _LEAST_SWAP_MIB, _LEAST_FREE_MIB = 10 << 10, 3 << 10, 2 << 10
_OLDEST_YEAR = 2024


def inspect_device(
    target: str,
    bundle: Manifest | None = None,
    root: Path = THIS,
    install_root: Path | None = None,
    python: str | None = None,
) -> Inspection:
    """Look whether a device fits a target.

    Args:
        target: a key of ``targets.TARGETS``.
        bundle: what is to be installed; None for the target's first backend and a bundle that needs the network.
        root: where the file system begins.
        install_root: the folder that is installed into, which need not be there yet; None for the one of the superuser.
        python: the Python that makes the virtual environment, its path or name; None for the one that runs this.

    Raises:
        UsageError: the target is unknown.
    """
    wanted = get_target(target)
    backend = wanted.backends[0] if bundle is None else bundle.backend
    complete = bundle is not None and bundle.complete
    interpreter = find_python(root, python)
    jetpack = read_jetpack(root)
    findings = [_architecture(root, wanted), _backend(wanted, backend)]
    if wanted.is_jetson:
        findings += [check_jetpack(root, wanted, jetpack), check_module(root, wanted)]
    findings += [
        _system(root, jetpack if wanted.is_jetson else None),
        *_python(root, interpreter, python, wanted, backend, complete),
    ]
    if backend not in ON_CPU and not wanted.is_jetson:
        findings.append(check_driver(root))
    if backend == "tensorrt":
        if wanted.system_packages:
            findings.append(check_tensorrt(root, interpreter, jetpack))
        if wanted.compiled:
            findings.append(check_cuda(root, interpreter, jetpack if wanted.is_jetson else None, wanted))
    memory = _read_memory(root)
    findings.append(_memory(memory, builds=backend == "tensorrt" and wanted.is_jetson))
    findings.append(_disk(install_root or root / "opt/edge-effdet", wanted, backend))
    findings.append(_clock(time.time()))
    if wanted.is_jetson:
        findings += [note_power(root), note_clocks(root)]
    findings += [_network(root, complete), _cameras(root), _systemd(root)]
    limit = workspace_limit(memory.total) if backend == "tensorrt" and wanted.is_jetson and memory.total else 0
    return Inspection(target, tuple(findings), limit)


def workspace_limit(total_mib: int) -> int:
    """The limit for the scratch memory of TensorRT's builder on a board whose GPU shares the memory with the processor, in MiB.

    It is a quarter of what the system leaves, of which 2 GiB are taken off: an Orin Nano uses 1.6 GiB when idle and 2.1 GiB with its
    desktop. While a kernel is timed in its workspace, the builder also holds the weights in the graph's and the engine's precision, the
    inputs and outputs of the layer, and CUDA with its libraries. It is at least 256 MiB, with which convolutions of this size still have
    their kernels to choose from, and at most 4 GiB, which none of them fills. These are estimates; with too low a limit a kernel is
    left out and the engine may be slower, and with too high a one the build may be killed.

    Args:
        total_mib: all memory of the board, MiB.

    Returns:
        A multiple of 64.
    """
    quarter = (total_mib - 2048) // 4 // 64 * 64
    return max(256, min(4096, quarter))


def _architecture(root: Path, target: DeployTarget) -> Finding:
    # An emulated program is told the emulated processor by uname, and the real one by /proc.
    machine = platform.machine() if root == THIS else read_text(root / "proc/sys/kernel/arch") or "unknown"
    if machine == target.machine:
        return Finding("architecture", machine, target.machine)
    return Finding(
        "architecture", machine, target.machine, "blocking", "make a bundle for this machine by another `target`"
    )


def _backend(target: DeployTarget, backend: str) -> Finding:
    wanted = " or ".join(target.backends)
    if backend in target.backends:
        return Finding("backend", backend, wanted)
    return Finding("backend", backend, wanted, "blocking", "make the bundle with another `backend`")


def _system(root: Path, jetpack: JetPack | None) -> Finding:
    fields = read_fields(root / "etc/os-release")
    found = fields.get("PRETTY_NAME") or "unknown"
    if jetpack is None:
        return Finding("system", found)
    wanted = f"Ubuntu {jetpack.ubuntu}"
    if wanted in found:
        return Finding("system", found, wanted)
    fix = f"JetPack {jetpack.version} is made for it, so its packages may be missing here"
    return Finding("system", found, wanted, "warning", fix)


def _python(
    root: Path, python: DevicePython | None, given: str | None, target: DeployTarget, backend: str, complete: bool
) -> Iterator[Finding]:
    wanted = f"version {PYTHONS[0]} to {PYTHONS[-1]}"
    if python is None:
        fix = "run sudo apt install python3 python3-venv, or give another `python`"
        yield Finding("Python", f"not to be run as {given}" if given else "missing", wanted, "blocking", fix)
        return
    if python.version not in PYTHONS:
        fix = "install one of these and give it as `python`"
        yield Finding("Python", f"version {python.version}", wanted, "blocking", fix)
    elif backend == "tensorrt" and target.system_packages and not python.is_systems:
        fix = "give the system's, for which apt installs TensorRT, as `python` /usr/bin/python3"
        yield Finding("Python", f"the one at {python.program}", "the system's own", "blocking", fix)
    elif complete and python.version not in target.pythons:
        fix = "its wheels may be missing in the bundle; make the bundle with `python` " + python.version
        yield Finding("Python", f"version {python.version}", f"version {' or '.join(target.pythons)}", "warning", fix)
    else:
        yield Finding("Python", f"version {python.version}", wanted)
    what, install = "venv and pip", f"run sudo apt install python{python.version}-venv"
    if not python.has_venv:
        yield Finding(what, "without venv", "there", "blocking", install)
    elif python.has_pip or any((root / "usr/share/python-wheels").glob("pip-*.whl")):
        yield Finding(what, "there", "there")
    elif complete:
        yield Finding(what, "venv, and pip in the bundle", "there")
    else:
        yield Finding(what, "without ensurepip, which brings pip,", "there", "blocking", install)


@dataclass(frozen=True, slots=True)
class _Memory:
    """The memory of the device in MiB; ``on_disk`` is the swap that is not memory itself (zram)."""

    total: int
    available: int
    swap: int
    on_disk: int


def _read_memory(root: Path) -> _Memory:
    fields = read_fields(root / "proc/meminfo")
    sizes = {name: int(found[0]) >> 10 for name, text in fields.items() if (found := re.match(r"\d+", text))}
    rows = [line.split() for line in (read_text(root / "proc/swaps") or "").splitlines()[1:]]
    on_disk = sum(int(row[2]) >> 10 for row in rows if len(row) > 2 and "zram" not in row[0] and row[2].isdigit())
    total = sizes.get("MemTotal", 0)
    return _Memory(total, sizes.get("MemAvailable", total), sizes.get("SwapTotal", 0), on_disk)


def _memory(memory: _Memory, builds: bool) -> Finding:
    what = "memory"
    if not memory.total:
        return Finding(what, "unknown")
    found = f"total {_gib(memory.total)}, {_gib(memory.available)} available, {_gib(memory.swap)} swap"
    if memory.swap > memory.on_disk:
        found += f" ({_gib(memory.on_disk)} on a disk)"
    if builds and memory.available < _LEAST_FREE_MIB:
        fix = "end other programs before the engine is built, and the desktop too: sudo systemctl isolate multi-user.target"
        return Finding(what, found, f"at least {_gib(_LEAST_FREE_MIB)} available", "warning", fix)
    if builds and memory.total < _SMALL_MIB and memory.on_disk < _LEAST_SWAP_MIB:
        fix = (
            "add swap on a disk, which keeps the build from being killed, though the GPU cannot use it: sudo fallocate -l 8G /swapfile && sudo chmod "
            f"600 /swapfile && sudo mkswap /swapfile && sudo swapon /swapfile; the builder gets {workspace_limit(memory.total)} MiB of scratch memory"
        )
        return Finding(what, found, f"at least {_gib(_LEAST_SWAP_MIB)} of swap on a disk", "warning", fix)
    if memory.available < 512:
        return Finding(
            what, found, "at least 0.5 GiB available", "warning", "end other programs before the installation"
        )
    return Finding(what, found)


def _disk(folder: Path, target: DeployTarget, backend: str) -> Finding:
    needed = PIP_TENSORRT_MIB if backend == "tensorrt" and not target.system_packages else DISK_MIB.get(backend, 500)
    # Path.exists raises where a folder above may not be read.
    while not os.path.exists(folder):  # noqa: PTH110
        folder = folder.parent
    free = shutil.disk_usage(folder).free >> 20
    found, what = f"at {folder} {_gib(free)} free", "disk"
    if free < needed:
        fix = "remove what is not needed, or install to another disk with `root`"
        return Finding(what, found, f"at least {_gib(needed)} free", "blocking", fix)
    if free < 2 * needed:
        fix = "an update is installed beside the version that runs, so make room before the next one"
        return Finding(what, found, f"at least {_gib(2 * needed)} free", "warning", fix)
    return Finding(what, found, f"at least {_gib(needed)} free")


def _clock(now: float) -> Finding:
    year = time.gmtime(now).tm_year
    if year >= _OLDEST_YEAR:
        return Finding("clock", f"the year {year}")
    fix = (
        "set it (sudo timedatectl set-ntp true, or sudo date -s): the times in logs are wrong, and https and apt refuse their certificates; the "
        "installation itself does not depend on it"
    )
    return Finding("clock", f"the year {year}", f"the year {_OLDEST_YEAR} or a later one", "warning", fix)


def _network(root: Path, complete: bool) -> Finding:
    routes = [line.split() for line in (read_text(root / "proc/net/route") or "").splitlines()[1:]]
    there = any(len(row) > 7 and row[1] == row[7] == "00000000" for row in routes)
    routes = [line.split() for line in (read_text(root / "proc/net/ipv6_route") or "").splitlines()]
    there = there or any(len(row) > 9 and set(row[0] + row[1]) == {"0"} and row[9] != "lo" for row in routes)
    if there:
        return Finding("network", "a default route")
    if complete:
        return Finding("network", "no default route", fix="the bundle has all wheels, so none is needed")
    fix = "connect the device, so that pip finds its packages, or make the bundle with `wheels`"
    return Finding("network", "no default route", "a default route", "warning", fix)


def _cameras(root: Path) -> Finding:
    what = "cameras"
    cameras = sorted((root / "dev").glob("video[0-9]*"))
    if not cameras:
        return Finding(what, "none attached")
    user = os.getuid()
    names = {row[0]: row for row in _rows(root / "etc/passwd") if len(row) > 3 and row[2] == str(user)}
    group = next((row for row in _rows(root / "etc/group") if len(row) > 3 and row[0] == "video"), None)
    found = ", ".join(camera.name for camera in cameras)
    if group is None or user == 0:
        return Finding(what, found)
    if any(name in group[3].split(",") or row[3] == group[2] for name, row in names.items()):
        return Finding(what, found, "a user in the group video")
    fix = f"run sudo usermod -aG video {next(iter(names), '$USER')}, and log in again"
    return Finding(
        what, f"{found}, and this user is not in the group video", "a user in the group video", "warning", fix
    )


def _systemd(root: Path) -> Finding:
    if (root / "run/systemd/system").is_dir():
        return Finding("systemd", "running")
    fix = "the service is started in the background, and nothing starts it again after a restart of the device"
    return Finding("systemd", "not running", "running", "warning", fix)


def _rows(path: Path) -> list[list[str]]:
    return [line.split(":") for line in (read_text(path) or "").splitlines()]


def _gib(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB"
