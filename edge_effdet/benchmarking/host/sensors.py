"""What the machine shows while it is measured: clocks, temperatures, power, throttling, and who else had the processors.

A thread reads it twice a second and keeps all of it. What nothing measures is None, and ``Sensors.missing`` says why; no figure is
worked out from a model of the machine.
"""

from __future__ import annotations

import shutil
import statistics
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from edge_effdet.backends.cores import group_folders, read_quota, usable_cpus
from edge_effdet.benchmarking.host.cpu_time import OwnTime, read_cpu_times
from edge_effdet.benchmarking.host.jetson import (
    PowerInput,
    TegrastatsReader,
    choose_rails,
    find_rails,
)
from edge_effdet.benchmarking.host.nvml import GpuState, NvmlGpu, start_nvml
from edge_effdet.benchmarking.host.sources import (
    CpuClock,
    Packages,
    Throttling,
    find_cpu_temperature,
    find_gpu_temperature,
)
from edge_effdet.benchmarking.record import Reading
from edge_effdet.device.board import find_gpu_clock, read_l4t
from edge_effdet.device.kernel_files import read_fields, read_number

OTHERS_ALLOWED = 0.05
"""The share of the processors that other processes may take before a reading is marked."""

STOLEN_ALLOWED = 0.02
"""The share of the time that the hypervisor may give away before a reading is marked."""

LIMITED_ALLOWED = 0.01
"""The share of the scheduler's periods in which a limit may stop this process before a reading is marked."""

_LEAST_TICKS = 10
"""Clock ticks of a processor below which a share of them is too coarse to tell: a tenth of a second."""

_LEAST_SECONDS = 0.05
"""The time between two readings of a counter of energy from which power is worked out."""

_MOST_MISSED = 0.1
"""The share of the samples of a quantity that may be missing, as when a sensor does not answer once."""


@dataclass(frozen=True, slots=True)
class _Moment:
    """What was read at one time. Times of processors are in clock ticks since an arbitrary moment.

    Attributes:
        time: when, in seconds by ``time.perf_counter``.
        busy, total, stolen: as in ``CpuTimes``, over all processors.
        own: what was ours of ``busy``.
        periods, stopped: of the scheduler's periods, how many there were and in how many the limit stopped this process.
        watts, joules: the power of each meter, and the energy that it has counted.
        held: what held a clock down since the time before.
    """

    time: float
    busy: float | None
    total: float | None
    stolen: float | None
    own: float
    periods: float | None
    stopped: float | None
    cpu_mhz: float | None
    cpu_c: float | None
    gpu_mhz: float | None
    gpu_c: float | None
    watts: tuple[float | None, ...]
    joules: tuple[float | None, ...]
    held: tuple[str, ...] | None


class Sensors:
    """Reads the sensors from ``with`` on, until its end.

    Args:
        ours: gives the numbers of the processes that do not count as others, besides this one. Their children do not count either.
        interval: seconds between two readings.
        root: where the file system begins.
        cpus: the logical cores that are used; None to ask the system.
        nvml: what stands in for ``pynvml``.
    """

    def __init__(
        self,
        ours: Callable[[], Iterable[int]] = tuple,
        *,
        interval: float = 0.5,
        root: Path = Path("/"),
        cpus: Collection[int] | None = None,
        nvml: Any = None,
    ) -> None:
        self._interval = interval
        self._proc = root / "proc"
        self._cpus = sorted(usable_cpus() if cpus is None else cpus)
        self._own = OwnTime(self._proc, ours)
        self._clock = CpuClock(root, self._cpus)
        self._cpu_temperature = find_cpu_temperature(root)
        self._gpu_temperature = find_gpu_temperature(root)
        self._gpu_clock = find_gpu_clock(root)
        self._throttling = Throttling(root, self._cpus)
        self._group = _limited_group(root)
        self._packages = Packages(root)
        self._root, self._given_nvml = root, nvml
        self._nvml: Any = None
        self._gpu: NvmlGpu | None = None
        self._rails = find_rails(root)
        self._input = choose_rails(self._rails)
        self._tegrastats: TegrastatsReader | None = None
        self._meters: tuple[str, ...] = ()

        self._busy: dict[int, int] = {}
        self._moments: list[_Moment] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="sensors", daemon=True)

    def __enter__(self) -> Sensors:
        here = self._root == Path("/")
        self._nvml = start_nvml(self._given_nvml) if here or self._given_nvml is not None else None
        self._gpu = None if self._nvml is None else NvmlGpu(self._nvml)
        if self._input is None and read_l4t(self._root) and shutil.which("tegrastats"):
            self._tegrastats = TegrastatsReader(interval=self._interval)
            self._input = choose_rails(self._tegrastats.last.rails)
        self._meters = self._name_meters(GpuState() if self._gpu is None else self._gpu.read())
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self._tegrastats is not None:
            self._tegrastats.close()
        if self._nvml is not None:
            self._nvml.nvmlShutdown()

    @property
    def missing(self) -> tuple[str, ...]:
        """What is not measured here, and why, a sentence each. It is known within ``with``."""
        first = self._moments[0]
        found = (
            (first.cpu_mhz, "The clock of the processor was not measured: the system does not tell it."),
            (first.cpu_c, "The temperature of the processor was not measured: the system shows no sensor of it."),
            (self._meters or None, f"Power was not measured: {self._why_no_power()}."),
            (first.held, "Throttling was not watched: the system neither counts nor reports it."),
        )
        return tuple(sentence for value, sentence in found if value is None)

    def sample(self) -> None:
        """Read all sensors now."""
        with self._lock:
            self._moments.append(self._read())

    def reading(self, since: float, until: float | None = None) -> Reading:
        """What the sensors showed over a stretch of time.

        Shares of time come from counters between its ends, and all else from the samples within it.

        Args:
            since: its beginning, in seconds by ``time.perf_counter``.
            until: its end; None for now.
        """
        moments = self._between(since, until)
        until = moments[-1].time if until is None else until
        inside = [each for each in moments if since <= each.time <= until] or moments[-1:]
        busy, own, total, stolen, periods, stopped = (
            _climb([(each.time, getattr(each, name)) for each in moments], since, until)
            for name in ("busy", "own", "total", "stolen", "periods", "stopped")
        )
        if total is not None and total < _LEAST_TICKS * len(self._cpus):
            total = None
        taken = None if busy is None or own is None else max(0.0, busy - own)
        meters = [index for index in range(len(self._meters)) if any(each.watts[index] is not None for each in inside)]
        powers = [watts for each in inside if (watts := _sum(each.watts[index] for index in meters)) is not None]
        # The first of them says what happened before the stretch.
        held = [each.held for each in moments[1:] or moments if each.held is not None]
        return Reading(
            cpu_mhz=_median(inside, "cpu_mhz"),
            cpu_c=_highest(inside, "cpu_c"),
            gpu_mhz=_median(inside, "gpu_mhz"),
            gpu_c=_highest(inside, "gpu_c"),
            power_w=statistics.median(powers) if powers else None,
            power_of=" + ".join(self._meters[index] for index in meters) if powers else None,
            throttled=", ".join(dict.fromkeys(cause for causes in held for cause in causes)) if held else None,
            others=_share(taken, total),
            stolen=_share(stolen, total),
            limited=_share(stopped, periods),
        )

    def energy(self, since: float, until: float | None = None) -> tuple[float, str] | None:
        """The energy that was used over a stretch of time, in joules, and by what; None where nothing measures it.

        A counter of energy goes before the sum of the sampled power.

        Args:
            since: its beginning, in seconds by ``time.perf_counter``.
            until: its end; None for now.
        """
        moments = self._between(since, until)
        until = moments[-1].time if until is None else until
        joules, names = 0.0, []
        for index, name in enumerate(self._meters):
            counted = _climb([(each.time, each.joules[index]) for each in moments], since, until)
            used = (
                _area([(each.time, each.watts[index]) for each in moments], since, until)
                if counted is None
                else counted
            )
            if used is not None:
                joules += used
                names.append(name)
        return (joules, " + ".join(names)) if names else None

    @staticmethod
    def marks(reading: Reading) -> tuple[str, ...]:
        """What makes the figures of a stretch less certain, a sentence each; the same sentence for the same cause."""
        sentences = []
        if (reading.others or 0) > OTHERS_ALLOWED:
            sentences.append(f"Other processes took more than {100 * OTHERS_ALLOWED:.0f} % of the processors' time.")
        if (reading.stolen or 0) > STOLEN_ALLOWED:
            sentences.append(
                f"The hypervisor gave more than {100 * STOLEN_ALLOWED:.0f} % of the time to other machines."
            )
        if (reading.limited or 0) > LIMITED_ALLOWED:
            sentences.append("The limit of the container or of the service manager stopped the run again and again.")
        if reading.throttled:
            sentences.append(f"A clock was held down: {reading.throttled}.")
        return tuple(sentences)

    def _follow(self) -> None:
        while not self._ended.wait(self._interval):
            self.sample()

    def _between(self, since: float, until: float | None) -> Sequence[_Moment]:
        """The samples of a stretch, and one on each side of it where there is one. A stretch that is not over yet is read now."""
        with self._lock:
            last = self._moments[-1].time
        if until is None or until > last:
            self.sample()
        with self._lock:
            moments = list(self._moments)
        times = [each.time for each in moments]
        first = max(0, bisect_right(times, since) - 1)
        return moments[first:] if until is None else moments[first : bisect_left(times, until) + 1]

    def _read(self) -> _Moment:
        now = time.perf_counter()
        times = read_cpu_times(self._proc, self._cpus)
        own = self._own.read()
        spent: dict[int, int] = {}
        if times is not None:
            spent = {cpu: busy - self._busy.get(cpu, busy) for cpu, busy in times.busy.items()}
            self._busy = times.busy
        group = read_fields(self._group) if self._group is not None else {}
        gpu = GpuState() if self._gpu is None else self._gpu.read()
        watts, joules = self._read_power(now, gpu)
        board = self._tegrastats.last if self._tegrastats is not None else None
        return _Moment(
            time=now,
            busy=None if times is None else float(sum(times.busy.values())),
            total=None if times is None else float(times.total),
            stolen=None if times is None else float(times.stolen),
            own=float(own),
            periods=float(group["nr_periods"]) if "nr_periods" in group else None,
            stopped=float(group["nr_throttled"]) if "nr_throttled" in group else None,
            cpu_mhz=self._clock.read(spent),
            cpu_c=self._cpu_temperature.read(),
            gpu_mhz=_first(gpu.mhz, self._scaled_gpu_clock(), None if board is None else board.gpu_mhz),
            gpu_c=_first(gpu.celsius, self._gpu_temperature.read()),
            watts=watts,
            joules=joules,
            held=_together(self._throttling.read(), gpu.holds),
        )

    def _scaled_gpu_clock(self) -> float | None:
        hertz = None if self._gpu_clock is None else read_number(self._gpu_clock / "cur_freq")
        # 0 is a GPU that is powered off.
        return hertz / 1e6 if hertz else None

    def _name_meters(self, gpu: GpuState) -> tuple[str, ...]:
        """What draws the power that is measured. The input of a board has its processor and its GPU in it."""
        if self._input is not None:
            return (self._input.of,)
        names = []
        if gpu.watts is not None or gpu.joules is not None:
            names.append("GPU")
        if self._packages:
            names.append("processor package")
        return tuple(names)

    def _read_power(self, now: float, gpu: GpuState) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
        watts: list[float | None] = []
        joules: list[float | None] = []
        for index, name in enumerate(self._meters):
            power = energy = None
            if self._input is not None:
                power = self._read_input(self._input)
            elif name == "GPU":
                power, energy = gpu.watts, gpu.joules
            else:
                energy = self._packages.read()
            if power is None and energy is not None and self._moments:
                before = self._moments[-1]
                used, passed = before.joules[index], now - before.time
                # Over a shorter time the steps of the counter are all that is seen.
                long = passed >= _LEAST_SECONDS
                power = ((energy - used) / passed if used is not None else None) if long else before.watts[index]
            watts.append(power)
            joules.append(energy)
        return tuple(watts), tuple(joules)

    def _read_input(self, chosen: PowerInput) -> float | None:
        if self._tegrastats is not None:
            rails = self._tegrastats.last.rails
            return _sum(rails.get(name) for name in chosen.rails)
        return _sum(self._rails[name]() for name in chosen.rails)

    def _why_no_power(self) -> str:
        if self._packages.refused:
            return "the counter of the processor's energy may be read by the superuser alone"
        return "no meter of the processor, the GPU or the board was found"


def _limited_group(root: Path) -> Path | None:
    """The counters of the innermost control group that has a limit on processor time; None without a limit."""
    quota = read_quota(root / "proc", root / "sys")
    if quota is None:
        return None
    files = [folder / "cpu.stat" for folder in group_folders("cpu", root / "proc", root / "sys")]
    # A group without a limit of its own counts no periods, or none that ever begins.
    counting = [file for file in files if "nr_periods" in read_fields(file)]
    return next(
        (file for file in counting if read_fields(file)["nr_periods"] != "0"), counting[0] if counting else None
    )


def _share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else min(1.0, part / whole)


def _climb(points: Sequence[tuple[float, float | None]], since: float, until: float) -> float | None:
    """By how much a counter rose between two times, linear between its samples; None where it was not read."""
    values = _known(points)
    return _at(values, until) - _at(values, since) if len(values) > 1 else None


def _area(points: Sequence[tuple[float, float | None]], since: float, until: float) -> float | None:
    """The integral of a quantity between two times by the trapezoidal rule; None where it was not read."""
    values = _known(points)
    if not values:
        return None
    inner = [(when, value) for when, value in values if since < when < until]
    ends = [(since, _at(values, since)), *inner, (until, _at(values, until))]
    return sum((end - start) * (first + second) / 2 for (start, first), (end, second) in pairwise(ends))


def _known(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """The samples that were read; none where too many were not."""
    values = [(when, value) for when, value in points if value is not None]
    return values if len(points) - len(values) <= _MOST_MISSED * len(points) else []


def _at(values: Sequence[tuple[float, float]], when: float) -> float:
    """The value at a time, linear between two samples, and that of the first or last one beyond them."""
    index = bisect_left([each[0] for each in values], when)
    if index == 0:
        return values[0][1]
    if index == len(values):
        return values[-1][1]
    (before, low), (after, high) = values[index - 1 : index + 1]
    return low + (high - low) * (when - before) / (after - before)


def _median(moments: Sequence[_Moment], name: str) -> float | None:
    values = [value for each in moments if (value := getattr(each, name)) is not None]
    return statistics.median(values) if values else None


def _highest(moments: Sequence[_Moment], name: str) -> float | None:
    return max((value for each in moments if (value := getattr(each, name)) is not None), default=None)


def _sum(values: Iterable[float | None]) -> float | None:
    """Their sum; None where there is none, or where one of them is not known."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return sum(known) if known and len(known) == len(listed) else None


def _first(*values: float | None) -> float | None:
    return next((value for value in values if value is not None), None)


def _together(first: tuple[str, ...] | None, second: tuple[str, ...] | None) -> tuple[str, ...] | None:
    return None if first is None and second is None else (*(first or ()), *(second or ()))
