"""What a report says of a Jetson, and its power rails, from files and from lines of ``tegrastats`` as their boards print them."""

from __future__ import annotations

import stat
import sys
from pathlib import Path

import pytest

from edge_effdet.benchmarking.host.jetson import (
    TegrastatsReader,
    choose_rails,
    describe_jetson,
    find_rails,
    parse_tegrastats,
)
from tests import kernel_trees
from tests.kernel_trees import write

NANO_4 = (
    "RAM 1766/3964MB (lfb 197x4MB) SWAP 0/2048MB (cached 0MB) CPU [24%@1224,15%@1224,13%@1224,10%@1224] EMC_FREQ 0% GR3D_FREQ 0% "
    "PLL@21C CPU@25C PMIC@100C GPU@23.5C AO@33.5C thermal@24.5C POM_5V_IN 2545/2547 POM_5V_GPU 0/0 POM_5V_CPU 549/529"
)
AGX_ORIN_5 = (
    "11-21-2025 08:49:48 RAM 13983/62780MB (lfb 424x4MB) SWAP 126/31390MB (cached 0MB) CPU [90%@2201,100%@2201] EMC_FREQ 1%@2133 "
    "GR3D_FREQ 14%@[407,408] VIC_FREQ 115 NVDLA0_FREQ @1600 APE 174 CV0@73.625C CPU@77.281C Tboard@62C SOC2@70C Tdiode@62.25C "
    "GPU@69.125C tj@77.281C VDD_GPU_SOC 3150mW/2971mW VDD_CPU_CV 14312mW/12415mW VIN_SYS_5V0 4968mW/5048mW VDDQ_VDD2_1V8AO 1091mW/1091mW"
)
ORIN_NANO_6 = (
    "11-15-2024 08:38:09 RAM 6185/7620MB (lfb 8x2MB) SWAP 851/3810MB (cached 1MB) CPU [15%@729,11%@729,off] EMC_FREQ 43%@2133 "
    "GR3D_FREQ 63%@[621] NVDEC off APE 200 cpu@53.968C soc2@52.437C gpu@53.343C tj@53.968C VDD_IN 12479mW/12479mW "
    "VDD_CPU_GPU_CV 4667mW/4667mW VDD_SOC 2817mW/2817mW"
)
ORIN_NANO_6_IDLE = (
    "06-18-2025 11:25:24 RAM 3452/7620MB (lfb 25x4MB) CPU [1%@1420,2%@1420] GR3D_FREQ 0% cpu@50.031C gpu@-256C "
    "VDD_IN 4824mW/4824mW VDD_CPU_GPU_CV 518mW/518"
)
THOR_7 = (
    "08-08-2026 21:00:39 RAM 8353/125749MB (lfb 31x4MB) CPU [90%@2601,75%@2601,off,7%@2601] EMC_FREQ 34%@4266 "
    "GR3D_FREQ @[1574,1574,1574] NVENC0_FREQ @1691 VIC off cpu@58.25C/61.75C tj@66.625C/66.625C gpu@56.937C/66.625C "
    "VDD_GPU 37939mW/8660mW/37939mW VDD_CPU_SOC_MSS 30059mW/12281mW/30059mW VIN_SYS_5V0 15486mW/7424mW/15486mW "
    "VIN 124486mW/36487mW/124486mW"
)


@pytest.mark.parametrize(
    ("line", "mhz", "cpu", "gpu", "of", "watts"),
    [
        (NANO_4, None, 25, 23.5, "module (POM_5V_IN)", 2.545),
        (
            AGX_ORIN_5,
            408,
            77.281,
            69.125,
            "module's rails (VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0)",
            3.15 + 14.312 + 4.968,
        ),
        (ORIN_NANO_6, 621, 53.968, 53.343, "module (VDD_IN)", 12.479),
        (ORIN_NANO_6_IDLE, None, 50.031, None, "module (VDD_IN)", 4.824),
        (THOR_7, 1574, 58.25, 56.937, "board (VIN)", 124.486),
    ],
)
def test_a_line_of_tegrastats(line: str, mhz, cpu, gpu, of, watts):
    told = parse_tegrastats(line)
    assert told.gpu_mhz == mhz
    assert told.temperatures.get("cpu") == cpu and told.temperatures.get("gpu") == gpu
    chosen = choose_rails(told.rails)
    assert chosen is not None and chosen.of == of
    assert sum(told.rails[name] for name in chosen.rails) == pytest.approx(watts)
    # Memory has the form of a rail, but for its unit.
    assert not {"RAM", "SWAP", "IRAM"} & told.rails.keys()


@pytest.mark.parametrize("line", ["", "tegrastats: command failed", "RAM 1/2MB", "VDD_IN", "GR3D_FREQ @[0,0]"])
def test_a_line_that_says_nothing_measures_nothing(line: str):
    told = parse_tegrastats(line)
    assert told.gpu_mhz is None and not told.rails and choose_rails(told.rails) is None


def test_a_set_of_rails_that_nobody_knows_is_not_summed():
    assert choose_rails({"VDD_GPU_SOC", "VDD_CPU_CV"}) is None
    assert choose_rails({"VDD_FUTURE", "VDD_OTHER"}) is None


def test_the_rails_of_the_power_meters(tmp_path: Path):
    rails = find_rails(kernel_trees.orin(tmp_path))
    assert {name: ask() for name, ask in rails.items()} == {"VDD_IN": 12.0, "VDD_CPU_GPU_CV": 4.5}
    write(tmp_path, {"sys/class/hwmon/hwmon1/curr1_input": 3000})
    assert rails["VDD_IN"]() == 15.0
    (tmp_path / "sys/class/hwmon/hwmon1/curr1_input").unlink()
    assert rails["VDD_IN"]() is None


def test_the_input_of_a_thor(tmp_path: Path):
    chip = "sys/class/hwmon/hwmon4"
    files = {f"{chip}/name": "ina238", f"{chip}/in1_label": "VIN", f"{chip}/power1_input": 150_000_000}
    rails = find_rails(write(tmp_path, files))
    assert {name: ask() for name, ask in rails.items()} == {"VIN": 150.0}


def test_a_release_that_nobody_knows_has_no_jetpack(tmp_path: Path):
    root = write(kernel_trees.orin(tmp_path), {"etc/nv_tegra_release": "# R36 (release), REVISION: 9.9, GCID: 1"})
    jetson = describe_jetson(root, range(4))
    assert jetson is not None and jetson.l4t == "36.9.9" and jetson.jetpack is None


def test_another_machine_is_no_jetson(tmp_path: Path):
    assert describe_jetson(kernel_trees.laptop(tmp_path), range(4)) is None


def test_tegrastats_is_followed_and_ended(tmp_path: Path):
    program = tmp_path / "tegrastats"
    program.write_text(
        f"#!{sys.executable}\nimport time\nwhile True:\n    print({ORIN_NANO_6!r}, flush=True)\n    time.sleep(0.05)\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    reader = TegrastatsReader(str(program), interval=10)
    assert reader.last.rails["VDD_IN"] == 12.479
    reader.close()
    assert not reader.last.rails, "what an ended program said last is no measurement"


def test_a_tegrastats_that_ends_at_once_measures_nothing(tmp_path: Path):
    program = tmp_path / "tegrastats"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    reader = TegrastatsReader(str(program), interval=10)
    assert not reader.last.rails
    reader.close()
