"""What only a Jetson has, as a report tells it, and the meters on its power rails.

The kernel's files have all that is measured; where one has no power meters, ``tegrastats`` prints them.
"""

from __future__ import annotations

import re
import subprocess
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_effdet.benchmarking.record import Jetson
from edge_effdet.device.board import clocks_locked, read_l4t, read_model, read_power_mode
from edge_effdet.device.kernel_files import read_number, read_text
from edge_effdet.device.targets import find_jetpack

_INPUTS = {"VDD_IN": "module", "POM_5V_IN": "module", "VIN": "board"}
"""Rails that feed the whole, and what that is."""

_SUMS = (
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
    ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V"),
)
"""Rails that feed a module together, of AGX Orin, Thor and AGX Xavier. AGX Orin's VDDQ_VDD2_1V8AO branches off VIN_SYS_5V0."""

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
    model = read_model(root)
    release = read_l4t(root)
    jetpack = None if release is None else find_jetpack(release)
    if "Jetson" not in model and release is None:
        return None
    return Jetson(
        model=model or "unknown Jetson",
        l4t=release,
        jetpack=None if jetpack is None else jetpack.version,
        power_mode=read_power_mode(root),
        clocks_locked=clocks_locked(root, cpus),
    )


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
