"""What a Jetson tells of itself: its module, its release of Jetson Linux, its power modes and its clocks, from files as boards have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_effdet.device.board import (
    clocks_locked,
    find_gpu_clock,
    parse_power_mode,
    read_l4t,
    read_package,
    read_power_mode,
    read_power_modes,
    recognise_module,
)
from edge_effdet.device.targets import HARDWARE
from tests import kernel_trees
from tests.kernel_trees import CPU, write


@pytest.mark.parametrize(
    ("files", "release"),
    [
        ({"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic"}, "36.4.3"),
        ({"etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic"}, "38.2.0"),
        # A container has no /etc/nv_tegra_release, and may have the package.
        (
            {
                "var/lib/dpkg/status": "Package: libc6\nVersion: 2.35\n\nPackage: nvidia-l4t-core\nStatus: install ok installed\n"
                "Architecture: arm64\nVersion: 36.4.4-20250616085344\n\nPackage: zlib1g\nVersion: 1.2"
            },
            "36.4.4",
        ),
        ({"var/lib/dpkg/status": "Package: libc6\nVersion: 2.35"}, None),
        ({}, None),
    ],
)
def test_the_release_of_jetson_linux(tmp_path: Path, files, release):
    assert read_l4t(write(tmp_path, files)) == release


def test_the_version_of_a_package(tmp_path: Path):
    text = (
        "Package: python3-libnvinfer-dev\nStatus: install ok installed\nVersion: 1\n\n"
        "Package: python3-libnvinfer\nStatus: install ok installed\nDescription: bindings\n of two lines\nVersion: 10.3.0.30-1+cuda12.5\n\n"
        "Package: removed\nStatus: deinstall ok config-files\nVersion: 3\n\nPackage: last\nStatus: install ok installed\nVersion: 4"
    )
    write(tmp_path, {"var/lib/dpkg/status": text})
    assert read_package(tmp_path, "python3-libnvinfer") == "10.3.0.30-1+cuda12.5"
    assert read_package(tmp_path, "last") == "4"
    for name in ("removed", "libnvinfer", "python3.libnvinfer", "none"):
        assert read_package(tmp_path, name) is None


@pytest.mark.parametrize(
    ("board", "module"),
    [
        (kernel_trees.ORIN_NANO_6, "orin-nano-8gb"),
        (kernel_trees.ORIN_NX_6, "orin-nx-16gb"),
        (kernel_trees.AGX_ORIN_7, "agx-orin-64gb"),
        (kernel_trees.THOR_7, "thor"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_the_module_of_a_developer_kit(tmp_path: Path, board: kernel_trees.Board, module: str):
    assert recognise_module(kernel_trees.jetson(tmp_path, board)) == module


@pytest.mark.parametrize("name", [name for name, row in HARDWARE.items() if row.parts])
def test_a_part_number_names_the_module_whatever_carries_it(tmp_path: Path, name: str):
    for part in HARDWARE[name].parts:
        write(tmp_path, {"proc/device-tree/compatible": f"other,carrier-1+{part}\0nvidia,{part}\0nvidia,tegra\0"})
        assert recognise_module(tmp_path) == name


@pytest.mark.parametrize(
    ("model", "memory_kib", "module"),
    [
        # Makers of carrier boards change the device tree; the memory is what such boards tell.
        ("Some Carrier with Jetson Orin Nano", 3_700_000, "orin-nano-4gb"),
        ("Some Carrier with Jetson Orin Nano", 7_802_844, "orin-nano-8gb"),
        ("Some Carrier with Jetson Orin NX", 7_802_844, "orin-nx-8gb"),
        ("Some Carrier with Jetson Orin NX", 16_017_124, "orin-nx-16gb"),
        ("Some Carrier with Jetson AGX Orin", 31_900_000, "agx-orin-32gb"),
        ("Some Carrier with Jetson AGX Orin", 64_285_572, "agx-orin-64gb"),
        ("Some Carrier with Jetson Thor", 64_000_000, "thor-t4000"),
        ("Some Carrier with Jetson Thor", 128_825_804, "thor"),
        ("NVIDIA Jetson Xavier NX", 7_802_844, None),
        ("Raspberry Pi 5 Model B", 7_802_844, None),
    ],
)
def test_a_board_without_a_part_number_is_told_by_its_name_and_memory(tmp_path: Path, model, memory_kib, module):
    files = {"proc/device-tree/model": f"{model}\0", "proc/meminfo": f"MemTotal:    {memory_kib} kB"}
    assert recognise_module(write(tmp_path, files)) == module


def test_another_machine_has_no_module(tmp_path: Path):
    assert recognise_module(kernel_trees.laptop(tmp_path)) is None
    assert recognise_module(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("NV Fan Mode:quiet\nNV Power Mode: 30W\n2\n", "30W"),
        ("NV Power Mode: MAXN\n0\n", "MAXN"),
        ("NVPM ERROR: Error opening /var/lib/nvpmodel/status: 13\n", None),
        ("", None),
    ],
)
def test_the_answer_of_nvpmodel(text: str, mode):
    assert parse_power_mode(text) == mode


def test_the_power_modes_that_a_board_lists(tmp_path: Path):
    root = kernel_trees.orin(tmp_path)
    assert read_power_modes(root) == {0: "15W", 2: "MAXN_SUPER"}
    assert read_power_mode(root) == "MAXN_SUPER"
    # The file explains its own format in comments.
    write(root, {"etc/nvpmodel.conf": "# < POWER_MODEL ID=0 NAME=mode_name >\n< POWER_MODEL ID=00 NAME=MAXN >"})
    assert read_power_modes(root) == {0: "MAXN"}


@pytest.mark.parametrize(
    "files",
    [
        {"var/lib/nvpmodel/status": ""},
        {"var/lib/nvpmodel/status": "pmode:0007"},
        {"etc/nvpmodel.conf": "< PM_CONFIG DEFAULT=2 >"},
    ],
)
def test_a_power_mode_that_the_files_do_not_tell(tmp_path: Path, files):
    assert read_power_mode(write(kernel_trees.orin(tmp_path), files)) is None


def test_clocks_are_locked_where_the_lowest_is_the_highest(tmp_path: Path):
    root = kernel_trees.orin(tmp_path)
    assert clocks_locked(root, range(4)) is False
    write(root, {f"{CPU}/cpufreq/policy0/scaling_min_freq": 1_728_000})
    assert clocks_locked(root, range(4)) is False, "the GPU's clock may still change"
    write(root, {"sys/class/devfreq/17000000.gpu/min_freq": 1_020_000_000})
    assert clocks_locked(root, range(4)) is True
    assert clocks_locked(tmp_path / "nothing", range(4)) is None


@pytest.mark.parametrize("name", ["17000000.gpu", "17000000.ga10b", "17000000.gv11b", "57000000.gpu", "gpu-gpc-0"])
def test_the_folder_of_the_gpu_clock(tmp_path: Path, name: str):
    write(tmp_path, {f"sys/class/devfreq/{each}/cur_freq": 1 for each in ("15340000.vic", name, "gpu-nvd-0")})
    found = find_gpu_clock(tmp_path)
    assert found is not None and found.name == name
