"""What the sensors say of a stretch of time: on trees of other machines, by a stand-in for NVML, and on this machine."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from edge_effdet.backends.cores import usable_cpus
from edge_effdet.benchmarking.host.sensors import Sensors
from edge_effdet.benchmarking.record import Reading
from tests import kernel_trees
from tests.kernel_trees import CPU, process, stat, write
from tests.simulated_nvml import H200, ORIN, SimulatedNvml

NEVER = 1000.0
"""Seconds between two samples of the thread, for tests that take each sample themselves."""

BUSY = "import os\nopen(os.environ['STARTED'], 'w').write(str(os.getpid()))\nwhile True: pass"


def watch(root: Path, **options) -> Sensors:
    return Sensors(interval=NEVER, root=root, cpus=range(4), **options)


def me(own: int = 0) -> dict[str, str | int]:
    return process(os.getpid(), 1, 100, own=own)


def now(sensors: Sensors) -> float:
    """The moment after the last sample: what is written from then on belongs to the next stretch, however slow the machine is."""
    return math.nextafter(sensors._moments[-1].time, math.inf)


def test_a_laptop(tmp_path: Path):
    root = write(kernel_trees.laptop(tmp_path), me())
    with watch(root) as sensors:
        since = now(sensors)
        # 400 ticks on four processors: 160 of them busy, 100 of these ours, and 20 stolen.
        write(
            root,
            {
                "proc/stat": stat((200, 50, 1000, 0), (150, 50, 1050, 0), (100, 60, 1085, 5), (100, 50, 1085, 15)),
                **me(100),
            },
        )
        write(
            root,
            {"sys/class/hwmon/hwmon1/temp1_input": 88000, f"{CPU}/cpu0/thermal_throttle/package_throttle_count": 41},
        )
        reading = sensors.reading(since)
    assert reading.others == pytest.approx(60 / 400) and reading.stolen == pytest.approx(20 / 400)
    assert reading.cpu_c == 88 and reading.throttled == "heat of the processor" and reading.limited is None
    # The clocks are 1, 2, 3 and 4 GHz, and the processors worked 100, 50, 10 and 0 ticks.
    assert reading.cpu_mhz == pytest.approx((100 * 1000 + 50 * 2000 + 10 * 3000) / 160)
    assert reading.gpu_mhz is reading.gpu_c is None
    assert Sensors.marks(reading) == (
        "Other processes took more than 5 % of the processors' time.",
        "The hypervisor gave more than 2 % of the time to other machines.",
        "A clock was held down: heat of the processor.",
    )


def test_a_stretch_without_others_has_no_marks(tmp_path: Path):
    root = write(kernel_trees.laptop(tmp_path), me())
    with watch(root) as sensors:
        since = now(sensors)
        write(root, {"proc/stat": stat(*[(200, 50, 1000, 0)] * 4), **me(398)})
        reading = sensors.reading(since)
    assert reading.others == pytest.approx(2 / 400) and reading.stolen == 0 and reading.throttled == ""
    assert Sensors.marks(reading) == ()


def test_a_stretch_that_is_too_short_for_the_clock_ticks_has_no_shares(tmp_path: Path):
    root = write(kernel_trees.laptop(tmp_path), me())
    with watch(root) as sensors:
        since = now(sensors)
        write(root, {"proc/stat": stat((101, 50, 1001, 0), *[(100, 50, 1002, 0)] * 3)})
        reading = sensors.reading(since)
    assert reading.others is reading.stolen is None and reading.cpu_c == 71


def test_a_laptops_energy_is_that_of_its_package(tmp_path: Path):
    root = write(kernel_trees.laptop(tmp_path), me())
    with watch(root) as sensors:
        since = now(sensors)
        time.sleep(0.06)
        write(root, {"sys/class/powercap/intel-rapl:0/energy_uj": 253_000_000})
        reading = sensors.reading(since)
        passed = sensors._moments[-1].time - since
        # A sample that follows at once sees no power of its own.
        sensors.sample()
        energy, after = sensors.energy(since), sensors.reading(since)
    assert energy == (pytest.approx(3), "processor package")
    assert reading.power_w == pytest.approx(3 / passed) and reading.power_of == "processor package"
    assert after.power_w == reading.power_w


def test_a_limit_that_stops_the_run_is_marked(tmp_path: Path):
    files = {"sys/fs/cgroup/cpu.max": "150000 100000", "proc/self/cgroup": "0::/"}
    root = write(
        kernel_trees.laptop(tmp_path),
        {**files, "sys/fs/cgroup/cpu.stat": "usage_usec 1\nnr_periods 10\nnr_throttled 2", **me()},
    )
    with watch(root) as sensors:
        since = now(sensors)
        write(root, {"sys/fs/cgroup/cpu.stat": "usage_usec 9\nnr_periods 110\nnr_throttled 32"})
        reading = sensors.reading(since)
    assert reading.limited == pytest.approx(0.3)
    assert any("limit of the container" in mark for mark in Sensors.marks(reading))


def test_a_jetson(tmp_path: Path):
    root = write(kernel_trees.orin(tmp_path), me())
    with watch(root, nvml=SimulatedNvml(ORIN)) as sensors:
        since = now(sensors)
        time.sleep(0.1)
        write(root, {"sys/class/thermal/thermal_zone1/temp": 70000, "sys/class/thermal/cooling_device1/cur_state": 1})
        reading, energy = sensors.reading(since), sensors.energy(since)
        spent = time.perf_counter() - since
        missing = sensors.missing
    assert (reading.cpu_mhz, reading.cpu_c, reading.gpu_mhz, reading.gpu_c) == (1344, 63.625, 612, 70)
    assert (reading.power_w, reading.power_of) == (12, "module (VDD_IN)")
    assert reading.throttled == "heat (gpu-throttle-alert)"
    # No counter: the integral of the power.
    assert energy is not None and energy[1] == "module (VDD_IN)" and 12 * 0.1 <= energy[0] <= 12 * spent
    assert missing == ()


def test_a_jetson_whose_kernel_shows_no_power_meters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = write(kernel_trees.orin(tmp_path), me())
    shutil.rmtree(root / "sys/class/hwmon/hwmon1")
    shutil.rmtree(root / "sys/class/devfreq")
    line = "RAM 6185/7620MB (lfb 8x2MB) GR3D_FREQ 63%@[621] cpu@53.968C VDD_IN 12479mW/12479mW VDD_SOC 2817mW/2817mW"
    program = tmp_path / "bin/tegrastats"
    program.parent.mkdir()
    program.write_text(
        f"#!{sys.executable}\nimport time\nwhile True:\n    print({line!r}, flush=True)\n    time.sleep(0.05)\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with watch(root) as sensors:
        reading = sensors.reading(now(sensors))
    assert (reading.power_w, reading.power_of, reading.gpu_mhz) == (12.479, "module (VDD_IN)", 621)


def test_a_gpu_that_is_powered_off_is_not_measured(tmp_path: Path):
    root = write(kernel_trees.orin(tmp_path), {"sys/class/devfreq/17000000.gpu/cur_freq": 0, **me()})
    (root / "sys/class/thermal/thermal_zone1/temp").unlink()
    with watch(root) as sensors:
        reading = sensors.reading(now(sensors))
    assert reading.gpu_mhz is reading.gpu_c is None


def test_a_server_with_a_gpu(tmp_path: Path):
    nvml = SimulatedNvml(H200)
    root = write(kernel_trees.laptop(tmp_path), me())
    with watch(root, nvml=nvml) as sensors:
        assert nvml.started == 1
        since = now(sensors)
        time.sleep(0.06)
        nvml.gpus[0] |= {
            "nvmlDeviceGetTotalEnergyConsumption": 5_050_000,
            "nvmlDeviceGetClockInfo": 1200,
            "nvmlDeviceGetTemperature": 84,
        }
        nvml.gpus[0] |= {"nvmlDeviceGetCurrentClocksEventReasons": 0x4 | 0x20, "nvmlDeviceGetPowerUsage": 650_000}
        write(root, {"sys/class/powercap/intel-rapl:0/energy_uj": 253_000_000})
        reading, energy = sensors.reading(since), sensors.energy(since)
    assert nvml.started == 0
    assert (reading.gpu_mhz, reading.gpu_c) == (1200, 84)
    assert reading.throttled == "power limit of the GPU, heat of the GPU"
    assert reading.power_of == "GPU + processor package" and reading.power_w is not None and reading.power_w > 650
    assert energy is not None and energy[1] == "GPU + processor package" and energy[0] == pytest.approx(53)


def test_a_gpu_without_a_counter_of_energy_has_its_power_summed(tmp_path: Path):
    nvml = SimulatedNvml({**H200, "nvmlDeviceGetTotalEnergyConsumption": None})
    with watch(write(tmp_path, me()), nvml=nvml) as sensors:
        since = now(sensors)
        time.sleep(0.1)
        energy = sensors.energy(since)
        spent = time.perf_counter() - since
    assert energy is not None and energy[1] == "GPU" and 120 * 0.1 <= energy[0] <= 120 * spent


def test_a_sensor_that_does_not_answer_once_is_forgiven(tmp_path: Path):
    root = write(kernel_trees.orin(tmp_path), me())
    meter = root / "sys/class/hwmon/hwmon1/curr1_input"
    with watch(root) as sensors:
        since = now(sensors)
        for number in range(20):
            meter.unlink() if number == 10 else write(root, {"sys/class/hwmon/hwmon1/curr1_input": 2400})
            sensors.sample()
        assert sensors.energy(since) is not None and sensors.reading(since).power_w == 12
        meter.unlink()
        for _ in range(20):
            sensors.sample()
        assert sensors.energy(since) is None, "half of the stretch was not measured"


def test_a_machine_without_sensors_measures_nothing(tmp_path: Path):
    with watch(write(tmp_path, me())) as sensors:
        since = now(sensors)
        assert sensors.reading(since) == Reading() and sensors.energy(since) is None
        assert len(sensors.missing) == 4 and all(each.endswith(".") for each in sensors.missing)
    assert Sensors.marks(Reading()) == ()


def test_why_power_is_not_measured(tmp_path: Path):
    root = write(kernel_trees.laptop(tmp_path), me())
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()
    with watch(root) as sensors:
        assert sensors.missing == (
            "Power was not measured: the counter of the processor's energy may be read by the superuser alone.",
        )


def test_past_stretches_are_told_apart(tmp_path: Path):
    root = write(kernel_trees.laptop(tmp_path), me())
    busy, idle = 150, 1000
    with watch(root) as sensors:
        times = [now(sensors)]
        for celsius in (50000, 90000, 60000):
            # The processors work in the second stretch only.
            busy, idle = (busy + 100, idle) if celsius == 90000 else (busy, idle + 100)
            write(root, {"sys/class/hwmon/hwmon1/temp1_input": celsius, "proc/stat": stat(*[(busy, 0, idle, 0)] * 4)})
            sensors.sample()
            times.append(now(sensors))
        readings = [sensors.reading(since, until) for since, until in pairwise(times)]
    assert [each.cpu_c for each in readings] == [50, 90, 60]
    assert [each.others for each in readings] == pytest.approx([0, 1, 0], abs=0.001)


@pytest.fixture
def hog(tmp_path: Path) -> Iterator[int]:
    """The number of a busy process that is not a child of this one."""
    started = tmp_path / "started"
    # What is started by a process that ends at once has no parent of ours.
    command = [
        sys.executable,
        "-c",
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1]])",
        BUSY,
    ]
    subprocess.run(command, env={**os.environ, "STARTED": str(started)}, check=True)
    while not (started.exists() and started.read_text()):
        time.sleep(0.01)
    pid = int(started.read_text())
    yield pid
    os.kill(pid, 9)


def ticks_of(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_busy_stranger_on_this_machine_is_noticed(hog: int):
    with Sensors(interval=0.1) as sensors:
        before, since = ticks_of(hog), time.perf_counter()
        time.sleep(1.5)
        reading = sensors.reading(since)
        taken = ticks_of(hog) - before
    share = taken / os.sysconf("SC_CLK_TCK") / 1.5 / len(usable_cpus())
    # On an idle machine it has a processor of its own: half of two. A busy one gives it less, and others more.
    assert reading.others is not None and reading.others > 0.8 * share - 0.02
    assert share > 0.06 or len(usable_cpus()) > 8, "the process was not busy"
    assert any("Other processes" in mark for mark in Sensors.marks(reading)) == (reading.others > 0.05)


@pytest.mark.parametrize("told", [False, True])
def test_a_busy_process_of_ours_is_not_another(request, tmp_path: Path, told: bool):
    """A child is ours by itself, and a process that is told although it is no child."""
    if told:
        pid = request.getfixturevalue("hog")
    else:
        child = subprocess.Popen([sys.executable, "-c", BUSY], env={**os.environ, "STARTED": str(tmp_path / "started")})
        request.addfinalizer(child.wait)
        request.addfinalizer(child.kill)
        pid = child.pid
    with Sensors(lambda: [pid] if told else (), interval=0.1) as sensors:
        before, since = ticks_of(pid), time.perf_counter()
        time.sleep(1.5)
        reading = sensors.reading(since)
        taken = ticks_of(pid) - before
    share = taken / os.sysconf("SC_CLK_TCK") / 1.5 / len(usable_cpus())
    # Whatever else runs here, the processors that it had were not those of others.
    assert reading.others is not None and reading.others <= 1 - 0.9 * share + 0.05
    assert reading.cpu_mhz is None or reading.cpu_mhz > 0


def test_a_process_of_ours_that_ends_breaks_nothing():
    with Sensors(interval=0.05) as sensors:
        since = time.perf_counter()
        for _ in range(5):
            subprocess.run([sys.executable, "-c", "pass"], check=True)
        time.sleep(0.2)
        reading = sensors.reading(since)
        assert reading.others is not None and 0 <= reading.others <= 1
        assert sensors._thread.is_alive()
    assert not sensors._thread.is_alive()


def test_watching_costs_little():
    """The processor time of a sample against the time between two of them; a machine that is busy makes it no dearer."""
    with Sensors(interval=NEVER) as sensors:
        sensors.sample()
        before = time.thread_time()
        for _ in range(50):
            sensors.sample()
        assert (time.thread_time() - before) / 50 < 0.01 * 0.5
