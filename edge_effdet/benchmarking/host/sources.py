"""Where a computer tells its clocks, temperatures, power and throttling: which files it has, found once, and what they say.

Each source is a class that looks for its files when it is made, and whose ``read`` gives what they say now. A source without files
says None. At most ``MOST_CORES`` cores are asked, so that a server with many of them is not slowed down by being watched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_effdet.device.kernel_files import read_number, read_text

MOST_CORES = 16

_CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_CPU_LABELS = ("Package id", "Tdie", "Tctl")
_CPU_ZONES = ("x86_pkg_temp", "cpu-thermal", "cpu_thermal", "cpu-therm", "mcpu-therm", "bcpu-therm")
_WHOLE_ZONES = ("soc-thermal", "soc_thermal", "tj-thermal", "tj-therm")
"""Zones of a chip as a whole, which stand in for its processor where it has no zone of its own."""

_HELD_FOR_HEAT = ("cpufreq-", "thermal-cpufreq")
"""Beginnings of the names of cooling devices that lower the processor's clock; a fan is one too and lowers nothing."""


class CpuClock:
    """The clock of the processor.

    Args:
        root: where the file system begins.
        cpus: the logical cores that count.
    """

    def __init__(self, root: Path, cpus: Sequence[int]) -> None:
        self._cpuinfo = root / "proc/cpuinfo"
        self._cpus = frozenset(cpus)
        # Cores whose clock changes together share a folder, to which each has a link.
        groups: dict[Path, list[int]] = {}
        for cpu in cpus:
            folder = root / f"sys/devices/system/cpu/cpu{cpu}/cpufreq"
            if read_number(folder / "scaling_cur_freq") is not None:
                groups.setdefault(folder.resolve(), []).append(cpu)
        self._files = [(folder / "scaling_cur_freq", group) for folder, group in _spread(list(groups.items()))]

    def read(self, busy: Mapping[int, int]) -> float | None:
        """The mean over the cores in MHz, each weighted by how busy it was, since the clock of an idle core slows nothing down.

        Args:
            busy: how long each core worked since the last reading.
        """
        clocks = [(read_number(file), sum(busy.get(cpu, 0) for cpu in group)) for file, group in self._files]
        found = [(clock / 1000, weight) for clock, weight in clocks if clock is not None]
        found = found or [(clock, busy.get(cpu, 0)) for cpu, clock in self._listed()]
        if not found:
            return None
        whole = sum(weight for _, weight in found)
        if whole == 0:
            return sum(clock for clock, _ in found) / len(found)
        return sum(clock * weight for clock, weight in found) / whole

    def _listed(self) -> list[tuple[int, float]]:
        """Cores and their clocks by ``/proc/cpuinfo``, which on x86 has the clock of a virtual machine too."""
        found: list[tuple[int, float]] = []
        number = -1
        try:
            # The kernel writes it while it is read, so that what is not read costs nothing.
            with open(self._cpuinfo, encoding="utf-8", errors="replace") as lines:
                for line in lines:
                    if line.startswith("processor"):
                        number = int(line.partition(":")[2])
                    elif line.startswith("cpu MHz") and number in self._cpus:
                        found.append((number, float(line.partition(":")[2])))
                        if len(found) == min(len(self._cpus), MOST_CORES):
                            break
        except (OSError, ValueError):
            return []
        return found


class Temperature:
    """The temperature of the processor, or of the GPU of a board that has one with it.

    Args:
        files: the files that tell it, in thousandths of a degree Celsius.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = [file for file in files if read_number(file) is not None]

    def __bool__(self) -> bool:
        return bool(self._files)

    def read(self) -> float | None:
        """The highest of them in degrees Celsius."""
        found = [value / 1000 for file in self._files if (value := read_number(file)) is not None]
        # A sensor that is off says -256.
        return max((value for value in found if value > -100), default=None)


def find_cpu_temperature(root: Path) -> Temperature:
    """The temperature of the processor: by its own sensor chip, else by the thermal zone that is its own, else by that of its chip."""
    files: list[Path] = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if (read_text(folder / "name") or "") in _CPU_CHIPS:
            labels = {file: read_text(file) or "" for file in sorted(folder.glob("temp*_label"))}
            chosen: list[Path] = []
            for wanted in _CPU_LABELS:
                chosen = chosen or [file for file, label in labels.items() if label.startswith(wanted)]
            names = [file.name.replace("_label", "_input") for file in chosen] or ["temp1_input"]
            files += [folder / name for name in names]
    for names in (_CPU_ZONES, _WHOLE_ZONES):
        if not (found := Temperature(files)):
            files = _zones(root, names)
        else:
            return found
    return Temperature(files)


def find_gpu_temperature(root: Path) -> Temperature:
    """The temperature of the GPU of a Jetson. Its zone may be silent while the GPU is powered off."""
    return Temperature(_zones(root, ("gpu-thermal", "gpu-therm")))


class Packages:
    """The energy that the processor's packages have used, by the kernel's powercap.

    Intel's and AMD's processors count it (https://docs.kernel.org/power/powercap/powercap.html); most systems let the superuser alone
    read it, since it gives away what others compute.
    """

    def __init__(self, root: Path) -> None:
        # The zones of parts, such as intel-rapl:0:0, are within their package, and intel-rapl-mmio counts the same package again.
        zones = [
            each for each in sorted((root / "sys/class/powercap").glob("intel-rapl:*")) if each.name.count(":") == 1
        ]
        packages = [zone for zone in zones if (read_text(zone / "name") or "").startswith("package")]
        self._files = [zone / "energy_uj" for zone in packages if read_number(zone / "energy_uj") is not None]
        self._ranges = [read_number(file.with_name("max_energy_range_uj")) or 0.0 for file in self._files]
        self._last = [read_number(file) for file in self._files]
        self._turns = [0] * len(self._files)
        self.refused = bool(packages) and not self._files
        """Whether they are there and may not be read."""

    def __bool__(self) -> bool:
        return bool(self._files)

    def read(self) -> float | None:
        """The energy in joules since an arbitrary moment, over all packages."""
        total = 0.0
        for index, file in enumerate(self._files):
            value, last = read_number(file), self._last[index]
            if value is None:
                return None
            # The counter begins anew at its end, within the hour for a busy server.
            if last is not None and value < last:
                self._turns[index] += 1
            self._last[index] = value
            total += value + self._turns[index] * self._ranges[index]
        return total / 1e6 if self._files else None


class Throttling:
    """Whether the processor or the board was held down for heat or power.

    Counters of the processor (``thermal_throttle`` on x86) and of a Jetson's supply (``oc*_event_cnt``) rise while it happens; cooling
    devices say that it is so now.

    Args:
        root: where the file system begins.
        cpus: the logical cores that count.
    """

    def __init__(self, root: Path, cpus: Sequence[int]) -> None:
        counters: list[tuple[Path, str]] = []
        for cpu in _spread(sorted(cpus)):
            folder = root / f"sys/devices/system/cpu/cpu{cpu}/thermal_throttle"
            counters += [(folder / f"{part}_throttle_count", "heat of the processor") for part in ("core", "package")]
        for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
            # Under-voltage, average and momentary over-current of an Orin or a Thor, by NVIDIA's Jetson Linux Developer Guide.
            counters += [
                (file, "over-current or under-voltage of the module") for file in sorted(folder.glob("oc*_event_cnt"))
            ]
        self._counters = [(file, cause) for file, cause in counters if read_number(file) is not None]
        self._last = [read_number(file) for file, _ in self._counters]
        self._devices: list[tuple[Path, str]] = []
        for folder in sorted((root / "sys/class/thermal").glob("cooling_device*")):
            kind = read_text(folder / "type") or ""
            alert = kind.endswith("-alert")
            if alert or kind.startswith(_HELD_FOR_HEAT) or kind == "Processor":
                self._devices.append((folder / "cur_state", f"heat ({kind})" if alert else "heat of the processor"))

    def __bool__(self) -> bool:
        return bool(self._counters or self._devices)

    def read(self) -> tuple[str, ...] | None:
        """What held it down since the last reading, for people; None where nothing tells."""
        if not self:
            return None
        causes: dict[str, None] = {}
        for index, (file, cause) in enumerate(self._counters):
            value, last = read_number(file), self._last[index]
            if value is not None:
                if last is not None and value > last:
                    causes[cause] = None
                self._last[index] = value
        for file, cause in self._devices:
            if (read_number(file) or 0) > 0:
                causes[cause] = None
        return tuple(causes)


def _zones(root: Path, names: Sequence[str]) -> list[Path]:
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    return [zone / "temp" for zone in zones if (read_text(zone / "type") or "").lower() in names]


def _spread(items: Sequence[object]) -> list:
    """At most ``MOST_CORES`` of them, evenly spread."""
    step = max(1, -(-len(items) // MOST_CORES))
    return list(items[::step])
