"""What a Jetson tells of itself in its files: its module, its release of Jetson Linux, its power modes, and whether its clocks are held.

Every function takes the root of the file system, so that a copy of such files will do.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path

from edge_effdet.device.kernel_files import read_fields, read_number, read_text
from edge_effdet.device.targets import HARDWARE

_GPU_NAMES = re.compile(r"gpu-gpc-0|[0-9a-f]+\.(gpu|ga10b|gv11b|gp10b|gm20b)")
"""The GPU among the devices whose clock the kernel scales: Thor, then Orin and older ones with the name of their GPU."""

_POWER_MODE = re.compile(r"NV Power Mode:\s*(\S+)")
_PART = re.compile(r"p\d{4}-\d{4}")


def read_model(root: Path) -> str:
    """The name of the board by its device tree; empty on a machine that has none."""
    return read_text(root / "proc/device-tree/model") or ""


def read_l4t(root: Path) -> str | None:
    """The release of Jetson Linux, such as 36.4.3; None on another machine."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    if found:
        return f"{found[1]}.{found[2]}"
    version = read_package(root, "nvidia-l4t-core")
    found = re.match(r"[\d.]+", version or "")
    return found[0] if found else None


def read_package(root: Path, package: str) -> str | None:
    """The version of an installed Debian package; None where it is not installed."""
    status = read_text(root / "var/lib/dpkg/status") or ""
    found = re.search(rf"^Package: {re.escape(package)}\n((?:.+(?:\n|\Z))*)", status, re.MULTILINE)
    # A package that was removed stays listed for its configuration files.
    if found is None or re.search(r"^Status: (?!.* installed$)", found[1], re.MULTILINE):
        return None
    version = re.search(r"^Version: (\S+)", found[1], re.MULTILINE)
    return version[1] if version else None


def recognise_module(root: Path) -> str | None:
    """The key of the module in ``targets.HARDWARE``; None on another machine, or where none of the listed modules fits.

    The part number in the device tree decides. A board whose maker changed that is told by its name and by its memory: of the modules of
    that name, it is the smallest one that has so much.
    """
    compatible = read_text(root / "proc/device-tree/compatible") or ""
    parts = set(_PART.findall(compatible))
    for key, module in HARDWARE.items():
        if parts & set(module.parts):
            return key
    model, memory = read_model(root), _memory_kib(root)
    fitting = [
        key
        for key, module in HARDWARE.items()
        if module.model and module.model in model and memory is not None and memory <= module.memory_gb << 20
    ]
    return min(fitting, key=lambda key: HARDWARE[key].memory_gb, default=None)


def read_power_mode(root: Path) -> str | None:
    """The name of the power mode that is set, such as MAXN; None where nothing tells it."""
    if root == Path("/") and shutil.which("nvpmodel"):
        try:
            answer = subprocess.run(
                ["nvpmodel", "-q"], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=5, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            answer = None
        mode = None if answer is None else parse_power_mode(answer.stdout)
        if mode is not None:
            return mode
    # Older releases let the superuser alone ask, but all may read what was set last.
    number = re.search(r"pmode:0*(\d+)", read_text(root / "var/lib/nvpmodel/status") or "")
    return read_power_modes(root).get(int(number[1])) if number else None


def read_power_modes(root: Path) -> dict[int, str]:
    """The names of the board's power modes by their number, which means another mode on another module; empty where none are listed."""
    found = re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", read_text(root / "etc/nvpmodel.conf") or "", re.MULTILINE
    )
    return {int(number): name for number, name in found}


def parse_power_mode(text: str) -> str | None:
    """The mode in the answer of ``nvpmodel -q``, such as MAXN; None where it says none."""
    found = _POWER_MODE.search(text)
    return found[1] if found else None


def clocks_locked(root: Path, cpus: Collection[int]) -> bool | None:
    """Whether the lowest allowed clock of the processors and of the GPU is the highest, as ``jetson_clocks`` sets them.

    ``jetson_clocks`` itself tells it to the superuser alone.
    """
    processors = [root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq" for cpu in sorted(cpus)]
    pairs = [(read_number(each / "scaling_min_freq"), read_number(each / "scaling_max_freq")) for each in processors]
    gpu = find_gpu_clock(root)
    if gpu is not None:
        pairs.append((read_number(gpu / "min_freq"), read_number(gpu / "max_freq")))
    known = [(low, high) for low, high in pairs if low is not None and high is not None]
    return all(low == high for low, high in known) if known else None


def find_gpu_clock(root: Path) -> Path | None:
    """The folder in which the kernel tells the clock of the GPU (``cur_freq``, in Hz)."""
    folder = root / "sys/class/devfreq"
    found = sorted(each for each in folder.glob("*") if _GPU_NAMES.fullmatch(each.name))
    return found[0] if found else None


def _memory_kib(root: Path) -> int | None:
    found = re.match(r"\d+", read_fields(root / "proc/meminfo").get("MemTotal", ""))
    return int(found[0]) if found else None
