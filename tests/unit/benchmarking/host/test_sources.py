"""Which files tell clocks, temperatures, energy and throttling, on a laptop and on a Jetson."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_effdet.benchmarking.host.sources import (
    MOST_CORES,
    CpuClock,
    Packages,
    Throttling,
    find_cpu_temperature,
    find_gpu_temperature,
)
from tests import kernel_trees
from tests.kernel_trees import CPU, write


def test_the_clock_is_that_of_the_busy_cores(tmp_path: Path):
    clock = CpuClock(kernel_trees.laptop(tmp_path), range(4))
    assert clock.read({0: 30, 1: 10, 2: 0, 3: 0}) == pytest.approx((3 * 1000 + 2000) / 4)
    # Nobody worked: the plain mean.
    assert clock.read({}) == pytest.approx(2500)
    assert CpuClock(tmp_path, [3]).read({0: 100}) == 4000


def test_cores_of_one_policy_are_asked_once(tmp_path: Path):
    clock = CpuClock(kernel_trees.orin(tmp_path), range(4))
    assert clock.read(dict.fromkeys(range(4), 1)) == 1344
    assert len(clock._files) == 1


def test_a_virtual_machine_has_its_clock_in_the_list_of_processors(tmp_path: Path):
    root = kernel_trees.laptop(tmp_path)
    for cpu in range(4):
        (root / f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq").unlink()
    assert CpuClock(root, [1, 2]).read({1: 1, 2: 3}) == pytest.approx((1301 + 3 * 1302) / 4)
    assert CpuClock(tmp_path / "nothing", [0]).read({}) is None


def test_a_large_server_is_asked_for_some_of_its_cores(tmp_path: Path):
    files = {f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq": 2_000_000 for cpu in range(100)}
    clock = CpuClock(write(tmp_path, files), range(100))
    assert len(clock._files) <= MOST_CORES and clock.read({}) == 2000


@pytest.mark.parametrize(
    ("files", "celsius"),
    [
        # The chip's own sensor before the zones, and Tdie before Tctl, which some processors raise by an offset.
        (
            {
                "sys/class/hwmon/hwmon0/name": "k10temp",
                "sys/class/hwmon/hwmon0/temp1_label": "Tctl",
                "sys/class/hwmon/hwmon0/temp1_input": 85000,
                "sys/class/hwmon/hwmon0/temp2_label": "Tdie",
                "sys/class/hwmon/hwmon0/temp2_input": 58000,
            },
            58,
        ),
        ({"sys/class/hwmon/hwmon3/name": "cpu_thermal", "sys/class/hwmon/hwmon3/temp1_input": 51000}, 51),
        # Two sockets: the hotter one.
        (
            {
                f"sys/class/hwmon/hwmon{number}/{name}": text
                for number in (0, 1)
                for name, text in (
                    ("name", "coretemp"),
                    ("temp1_label", f"Package id {number}"),
                    ("temp1_input", 60000 + 5000 * number),
                )
            },
            65,
        ),
        ({"sys/class/thermal/thermal_zone0/type": "CPU-therm", "sys/class/thermal/thermal_zone0/temp": 44500}, 44.5),
        ({"sys/class/thermal/thermal_zone4/type": "soc-thermal", "sys/class/thermal/thermal_zone4/temp": 39000}, 39),
        # The room, a disk, and a sensor that is off.
        ({"sys/class/thermal/thermal_zone0/type": "acpitz", "sys/class/thermal/thermal_zone0/temp": 27800}, None),
        ({"sys/class/hwmon/hwmon0/name": "nvme", "sys/class/hwmon/hwmon0/temp1_input": 91000}, None),
        (
            {"sys/class/thermal/thermal_zone0/type": "cpu-thermal", "sys/class/thermal/thermal_zone0/temp": -256000},
            None,
        ),
        ({}, None),
    ],
)
def test_the_temperature_of_the_processor(tmp_path: Path, files, celsius):
    assert find_cpu_temperature(write(tmp_path, files)).read() == celsius


def test_the_temperatures_of_whole_machines(tmp_path: Path):
    laptop, orin = kernel_trees.laptop(tmp_path / "laptop"), kernel_trees.orin(tmp_path / "orin")
    assert find_cpu_temperature(laptop).read() == 71 and find_gpu_temperature(laptop).read() is None
    assert find_cpu_temperature(orin).read() == 63.625 and find_gpu_temperature(orin).read() == 61.25


def test_a_counter_of_energy_that_begins_anew_goes_on(tmp_path: Path):
    zone = "sys/class/powercap/intel-rapl:0"
    packages = Packages(kernel_trees.laptop(tmp_path))
    # The parts of the package, and the same package by another way, do not count again.
    assert packages.read() == 250
    write(tmp_path, {f"{zone}/energy_uj": 262_143_000_000})
    before = packages.read()
    write(tmp_path, {f"{zone}/energy_uj": 1_671_150})
    after = packages.read()
    assert before is not None and after is not None
    assert after - before == pytest.approx((262_143_328_850 - 262_143_000_000 + 1_671_150) / 1e6)


def test_energy_that_may_not_be_read_is_not_measured(tmp_path: Path):
    root = kernel_trees.laptop(tmp_path)
    # A folder in place of the file cannot be read, not even by the superuser.
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    (root / "sys/class/powercap/intel-rapl:0/energy_uj").mkdir()
    packages = Packages(root)
    assert not packages and packages.read() is None and packages.refused
    assert not Packages(tmp_path / "nothing").refused


def test_a_counter_of_throttling_that_rises_is_noticed_once(tmp_path: Path):
    throttling = Throttling(kernel_trees.laptop(tmp_path), range(4))
    assert throttling.read() == ()
    write(tmp_path, {f"{CPU}/cpu2/thermal_throttle/core_throttle_count": 13})
    assert throttling.read() == ("heat of the processor",)
    assert throttling.read() == ()


def test_a_jetson_tells_of_heat_and_of_its_supply(tmp_path: Path):
    throttling = Throttling(kernel_trees.orin(tmp_path), range(4))
    # A fan that runs and a clock that the power mode bounds hold nothing down.
    assert throttling.read() == ()
    write(tmp_path, {"sys/class/hwmon/hwmon2/oc3_event_cnt": 100, "sys/class/thermal/cooling_device1/cur_state": 1})
    assert throttling.read() == ("over-current or under-voltage of the module", "heat (gpu-throttle-alert)")
    assert throttling.read() == ("heat (gpu-throttle-alert)",)


@pytest.mark.parametrize("kind", ["Processor", "cpufreq-cpu0", "thermal-cpufreq-0"])
def test_a_processor_that_is_cooled_by_its_clock(tmp_path: Path, kind: str):
    device = "sys/class/thermal/cooling_device0"
    throttling = Throttling(write(tmp_path, {f"{device}/type": kind, f"{device}/cur_state": 2}), [0])
    assert throttling.read() == ("heat of the processor",)


def test_where_nothing_tells_throttling_is_not_known(tmp_path: Path):
    assert Throttling(tmp_path, [0]).read() is None
