"""What only a Jetson has: its releases, its power modes, the clocks of its GPU, and the meters on its power rails.

The kernel's files have all that is measured; where one has no power meters, ``tegrastats`` prints them.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_effdet.benchmarking.host.kernel_files import read_number, read_text
from edge_effdet.benchmarking.record import Jetson

_JETPACKS = {
    "35.1.0": "5.0.2",
    "35.2.1": "5.1",
    "35.3.1": "5.1.1",
    "35.4.1": "5.1.2",
    "35.5.0": "5.1.3",
    "35.6.0": "5.1.4",
    "36.3.0": "6.0",
    "36.4.0": "6.1",
    "36.4.3": "6.2",
    "36.4.4": "6.2.1",
    "36.5.0": "6.2.2",
    "38.2.0": "7.0",
    "38.2.1": "7.0",
    "38.4.0": "7.1",
    "39.2.0": "7.2",
}
"""The JetPack release of a release of Jetson Linux, by NVIDIA's JetPack archive."""

_GPU_NAMES = re.compile(r"gpu-gpc-0|[0-9a-f]+\.(gpu|ga10b|gv11b|gp10b|gm20b)")
"""The GPU among the devices whose clock the kernel scales: Thor, then Orin and older ones with the name of their GPU."""

_INPUTS = {"VDD_IN": "module", "POM_5V_IN": "module", "VIN": "board"}
"""Rails that feed the whole, and what that is."""

_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that feed a module together, of AGX Orin, Thor and AGX Xavier. AGX Orin's VDDQ_VDD2_1V8AO branches off VIN_SYS_5V0."""

_POWER_MODE = re.compile(r"NV Power Mode:\s*(\S+)")
_TEMPERATURE = re.compile(r"\b(\w+)@(-?[\d.]+)C\b")
_GPU_CLOCK = re.compile(r"GR3D_FREQ\s+(?:\d+%)?@\[?([\d,]+)")
_RAIL = re.compile(r"\b([A-Z]\w*) (\d+)(?:mW)?/\d+(?:mW)?(?:/\d+mW)?(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Tegrastats:
    """One line of ``tegrastats``.

    Attributes:
        gpu_mhz: the clock of the GPU, the highest of its parts; None where the line has none.
        temperatures: degrees Celsius by the name of the sensor, in small letters.
        rails: the power that each rail draws, in watts.
    """

    gpu_mhz: float | None = None
    temperatures: Mapping[str, float] = field(default_factory=dict)
    rails: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PowerInput:
    """The rails whose sum is the power that a Jetson draws.

    Attributes:
        rails: their names.
        of: what they feed, for people.
    """

    rails: tuple[str, ...]
    of: str


def describe_jetson(root: Path, cpus: Collection[int]) -> Jetson | None:
    """What a Jetson tells of itself; None on another machine.

    Args:
        root: where the file system begins.
        cpus: the logical cores that this process may use.
    """
    model = read_text(root / "proc/device-tree/model") or ""
    release = read_l4t(root)
    if "Jetson" not in model and release is None:
        return None
    return Jetson(
        model=model or "unknown Jetson",
        l4t=release,
        jetpack=None if release is None else _JETPACKS.get(release),
        power_mode=_power_mode(root),
        clocks_locked=clocks_locked(root, cpus),
    )


def read_l4t(root: Path) -> str | None:
    """The release of Jetson Linux, such as 36.4.3; None on another machine."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", read_text(root / "etc/nv_tegra_release") or "")
    if found:
        return f"{found[1]}.{found[2]}"
    status = read_text(root / "var/lib/dpkg/status") or ""
    found = re.search(r"^Package: nvidia-l4t-core\n(?:.+\n)*?Version: ([\d.]+)", status, re.MULTILINE)
    return found[1] if found else None


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


def choose_rails(names: Collection[str]) -> PowerInput | None:
    """The rails among those that were found which together feed the whole; None for a set that is not known, of which no sum is made."""
    for name, of in _INPUTS.items():
        if name in names:
            return PowerInput((name,), f"{of} ({name})")
    for rails in _SUMS:
        if set(rails) <= set(names):
            return PowerInput(rails, "module's rails (" + " + ".join(rails) + ")")
    return None


def find_rails(root: Path) -> dict[str, Callable[[], float | None]]:
    """The power meters of the board, by the name of their rail; each gives watts, or None where it does not answer.

    INA3221 tells millivolts and milliamperes of three rails, INA238 the microwatts of one
    (https://docs.kernel.org/hwmon/ina3221.html, https://docs.kernel.org/hwmon/ina238.html).
    """
    rails: dict[str, Callable[[], float | None]] = {}
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        chip = read_text(folder / "name") or ""
        if chip.startswith("ina3221"):
            for channel in (1, 2, 3):
                name = read_text(folder / f"in{channel}_label")
                if name and name != "NC":
                    rails[name] = _meter(folder / f"in{channel}_input", folder / f"curr{channel}_input")
        elif chip == "ina238":
            name = read_text(folder / "in1_label")
            if name:
                rails[name] = _meter(folder / "power1_input")
    return {name: ask for name, ask in rails.items() if ask() is not None}


def parse_tegrastats(line: str) -> Tegrastats:
    """What a line of ``tegrastats`` says, of JetPack 4 to 7. Of several figures for one rail, the first is that of the moment."""
    clock = _GPU_CLOCK.search(line)
    clocks = [int(each) for each in clock[1].split(",") if each] if clock else []
    return Tegrastats(
        # 0 is a GPU that is powered off.
        gpu_mhz=float(max(clocks)) if any(clocks) else None,
        # A sensor that is off says -256.
        temperatures={name.lower(): float(value) for name, value in _TEMPERATURE.findall(line) if float(value) > -100},
        rails={name: int(milliwatts) / 1000 for name, milliwatts in _RAIL.findall(line)},
    )


class TegrastatsReader:
    """Runs ``tegrastats`` and keeps its last line. It is for boards whose power meters the kernel does not show."""

    def __init__(self, program: str = "tegrastats", interval: float = 0.5) -> None:
        self.last = Tegrastats()
        self._process = subprocess.Popen(
            [program, "--interval", str(round(1000 * interval))],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._first = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="tegrastats", daemon=True)
        self._thread.start()
        self._first.wait(2 * interval + 1)

    def close(self) -> None:
        """End the program."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def _follow(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.last = parse_tegrastats(line)
                self._first.set()
        self.last = Tegrastats()
        self._first.set()


def _meter(voltage: Path, current: Path | None = None) -> Callable[[], float | None]:
    def watts() -> float | None:
        first = read_number(voltage)
        second = 1.0 if current is None else read_number(current)
        return None if first is None or second is None else first * second / 1e6

    return watts


def _power_mode(root: Path) -> str | None:
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
    modes = dict(
        re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", read_text(root / "etc/nvpmodel.conf") or "")
    )
    return modes.get(number[1]) if number else None
