"""Whether a device fits the target of a bundle: what is there, what is missing, and what to do about it.

All is read from files below a root, so a copy of another machine's files can be inspected too. Nothing is changed and no connection is made.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edge_effdet.device.findings import Finding, Inspection
from edge_effdet.device.interpreter import THIS, DevicePython, apt_install, find_python
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
from edge_effdet.device.wheels import WheelHost, needed_wheels, own_glibc, pinned_pythons, pythons_of, suits

DISK_MIB = {"onnxruntime": 400, "openvino": 500, "tensorrt": 500, "tensorrt-rtx": 700, "onnxruntime-cuda": 4000}
"""What a version takes on the disk at most: up to 130 MiB of bundle, NumPy, Pillow and pip (113 MiB as installed), the backend's packages
(onnxruntime 78, OpenVINO 180, TensorRT-RTX 235 MiB as installed; those of CUDA from memory), and the engine."""

PIP_TENSORRT_MIB = 6000
"""In place of that with the TensorRT that pip fetches on a server, whose libraries are some GB; from memory."""

_SMALL_MIB, _LEAST_SWAP_MIB, _LEAST_FREE_MIB = 10 << 10, 3 << 10, 2 << 10
_OLDEST_YEAR = 2024


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """What is to be done on a device beside the bundle itself.

    Attributes:
        install_root: the folder that is installed into, which need not be there yet; None for the one of the superuser.
        python: the Python that makes the virtual environment, its path or name; None for the one that runs this.
        made: given the Python and the limit for the builder's scratch memory, how many MiB of what an installation takes are there already; None for
            all of it.
        hidden: folders that what runs the service does not see, such as home folders.
        closed: whether what runs the service is another user, who enters only what all users may.
    """

    install_root: Path | None = None
    python: str | None = None
    made: Callable[[DevicePython, int], int | None] = lambda _, __: 0
    hidden: tuple[str, ...] = ()
    closed: bool = False


def inspect_device(
    target: str,
    bundle: Manifest | None = None,
    root: Path = THIS,
    plans: Plans | None = None,
    folder: Path | None = None,
) -> Inspection:
    """Look whether a device fits a target.

    Args:
        target: a key of ``targets.TARGETS``.
        bundle: what is to be installed; None for the target's first backend and a bundle that needs the network.
        root: where the file system begins.
        plans: what is to be done; None for an installation as the superuser does it.
        folder: the bundle's, whose wheels are looked at; None to look at none.

    Raises:
        UsageError: the target is unknown.
    """
    wanted, plans = get_target(target), plans or Plans()
    backend = wanted.backends[0] if bundle is None else bundle.backend
    complete = bundle is not None and bundle.complete
    interpreter = find_python(root, plans.python)
    jetpack = read_jetpack(root)
    architecture = _architecture(root, wanted)
    findings = [architecture, _backend(wanted, backend)]
    if wanted.is_jetson:
        findings += [check_jetpack(root, wanted, jetpack), check_module(root, wanted)]
    findings += [
        _system(root, jetpack if wanted.is_jetson else None),
        *_python(interpreter, plans, wanted, backend, complete),
    ]
    if bundle is not None and folder is not None and interpreter is not None:
        findings += _wheels(root, folder, bundle, WheelHost(interpreter.version, architecture.found))
    if backend not in ON_CPU and not wanted.is_jetson:
        findings.append(check_driver(root))
    if backend == "tensorrt":
        if wanted.system_packages:
            findings.append(check_tensorrt(root, interpreter, jetpack))
        if wanted.compiled:
            findings.append(check_cuda(root, interpreter, jetpack if wanted.is_jetson else None, wanted))
    memory = _read_memory(root)
    findings.append(_memory(memory, builds=backend == "tensorrt" and wanted.is_jetson))
    limit = workspace_limit(memory.total) if backend == "tensorrt" and wanted.is_jetson and memory.total else 0
    made = 0 if interpreter is None else plans.made(interpreter, limit)
    place = plans.install_root or root / "opt/edge-effdet"
    findings += _place(place) if plans.closed else ()
    findings.append(_disk(place, wanted, backend, made))
    findings.append(_clock(time.time()))
    if wanted.is_jetson:
        findings += [note_power(root), note_clocks(root)]
    findings += [_network(root, complete), _cameras(root), _systemd(root)]
    return Inspection(target, tuple(findings), limit, interpreter)


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
    python: DevicePython | None, plans: Plans, target: DeployTarget, backend: str, complete: bool
) -> Iterator[Finding]:
    wanted = f"version {PYTHONS[0]} to {PYTHONS[-1]}"
    if python is None:
        fix = "run sudo apt install python3 python3-venv, or give another `python`"
        found = f"not to be run as {plans.python}" if plans.python else "missing"
        yield Finding("Python", found, wanted, "blocking", fix)
        return
    unseen = _unseen_part(python, plans)
    if python.version not in PYTHONS:
        fix = "install one of these and give it as `python`"
        yield Finding("Python", f"version {python.version}", wanted, "blocking", fix)
    elif backend == "tensorrt" and target.system_packages and not python.is_systems:
        fix = "give the system's, for which apt installs TensorRT, as `python` /usr/bin/python3"
        yield Finding("Python", f"the one at {python.program}", "the system's own", "blocking", fix)
    elif unseen is not None:
        fix = (
            "give the system's as `python` /usr/bin/python3, or one below /usr/local or /opt; or install with `service` process, which runs as "
            "this user"
        )
        found = f"in {unseen}, where the unit of the service cannot run it,"
        yield Finding("Python", found, "where every user and service may run it", "blocking", fix)
    elif complete and python.version not in target.pythons:
        fix = "its wheels may be missing in the bundle; make the bundle with `python` " + python.version
        yield Finding("Python", f"version {python.version}", f"version {' or '.join(target.pythons)}", "warning", fix)
    else:
        yield Finding("Python", f"version {python.version}", wanted)
    what, install = "venv and pip", f"run {apt_install(python)}"
    if not python.has_venv:
        yield Finding(what, "without venv", "there", "blocking", install)
    elif python.pip_wheel is not None:
        yield Finding(what, "there", "there")
    elif complete:
        yield Finding(what, "venv, and pip in the bundle", "there")
    else:
        yield Finding(what, "without ensurepip, which brings pip,", "there", "blocking", install)


def _unseen_part(python: DevicePython, plans: Plans) -> Path | None:
    """The folder of a Python that what runs the service does not see or may not enter; None where there is none."""
    paths = (Path(python.executable), python.library)
    hidden = (folder for path in paths for folder in path.parents if str(folder) in plans.hidden)
    closed = (_closed_part(path.parent) for path in paths if plans.closed)
    return next(hidden, None) or next((folder for folder in closed if folder is not None), None)


def _closed_part(folder: Path) -> Path | None:
    """The first folder on the way to another one that not every user may enter; None where there is none, or it is not there yet."""
    for each in (*reversed(folder.parents), folder):
        with contextlib.suppress(OSError):
            if not each.stat().st_mode & stat.S_IXOTH:
                return each
    return None


def _place(folder: Path) -> Iterator[Finding]:
    """Whether the user of the service may enter the folder that is installed into."""
    closed = _closed_part(folder)
    if closed is not None:
        fix = f"run chmod o+x {closed}, or give another `root`"
        yield Finding(
            "place", f"in {closed}, which the service's user may not enter,", "open to all users", "blocking", fix
        )


def _wheels(root: Path, folder: Path, bundle: Manifest, machine: WheelHost) -> Iterator[Finding]:
    """Whether pip will find a wheel for this Python and machine for all that is to be installed, before anything is copied."""
    pinned = pinned_pythons(folder, bundle)
    if pinned and machine.python not in pinned:
        # pip would pass over all lines, and install nothing.
        versions = " and ".join(pinned)
        fix = f"give a `python` of version {' or '.join(pinned)}, or make the bundle with `python` {machine.python}"
        yield Finding("the bundle", f"for Python {versions}", f"for Python {machine.python}", "blocking", fix)
        return
    if root == THIS:
        machine = replace(machine, glibc=own_glibc())
    for name, wheels in needed_wheels(folder, bundle, machine.python):
        if any(suits(wheel, machine) for wheel in wheels):
            continue
        found = ", ".join(wheel.path.name for wheel in wheels) or "missing"
        others = [each for each in pythons_of((folder / bundle.wheel).parent) if each != machine.python]
        give = f"give a `python` of version {' or '.join(others)}, for which the bundle is, or " if others else ""
        fix = f"{give}make the bundle for this device, with `python` {machine.python}"
        yield Finding(f"the wheel of {name}", found, f"one for {machine}", "blocking", fix)
        return
    if bundle.complete:
        yield Finding("wheels", f"for {machine}", "for this Python and machine")


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


def _disk(folder: Path, target: DeployTarget, backend: str, made: int | None) -> Finding:
    """``made`` are the MiB of the version that are there already; None for all."""
    needed = PIP_TENSORRT_MIB if backend == "tensorrt" and not target.system_packages else DISK_MIB.get(backend, 500)
    # Path.exists raises where a folder above may not be read.
    while not os.path.exists(folder):  # noqa: PTH110
        folder = folder.parent
    free = shutil.disk_usage(folder).free >> 20
    found, what = f"at {folder} {_gib(free)} free", "disk"
    if made is None:
        return Finding(what, f"{found}, and the version is there")
    # A step that was cut off is done anew, and what it left is removed first.
    least = max(0, needed - made)
    if free < least:
        fix = "remove what is not needed, or install to another disk with `root`"
        return Finding(what, found, f"at least {_gib(least)} free", "blocking", fix)
    if free < least + needed:
        fix = "an update is installed beside the version that runs, so make room before the next one"
        return Finding(what, found, f"at least {_gib(least + needed)} free", "warning", fix)
    return Finding(what, found, f"at least {_gib(least)} free")


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
