"""The table of hardware, JetPack releases and targets: that its rows agree with each other, with published figures, and with the page."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_effdet.backends.base import BACKENDS, get_backend
from edge_effdet.device.targets import (
    HARDWARE,
    JETPACKS,
    MULTIPROCESSORS,
    ON_CPU,
    PYTHONS,
    TARGETS,
    find_jetpack,
    get_target,
)
from edge_effdet.errors import UsageError

PAGE = Path(__file__).resolve().parents[3] / "docs/targets.md"


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_consistent(name: str):
    target = TARGETS[name]
    assert target.name == name and target.title
    assert target.machine in ("aarch64", "x86_64")
    assert (
        target.backends and set(target.backends) <= set(BACKENDS) and len(set(target.backends)) == len(target.backends)
    )
    assert target.pythons and set(target.pythons) <= set(PYTHONS)
    assert set(target.modules) <= set(HARDWARE) and set(target.jetpacks) <= set(JETPACKS)
    assert target.is_jetson == target.system_packages == name.startswith("jetson-") == bool(target.jetpacks)
    assert target.is_jetson <= (target.machine == "aarch64")
    assert (target.backends[0] == "tensorrt") == bool(target.compiled), (
        "pycuda is what has no wheel, and TensorRT's runner needs it"
    )


@pytest.mark.parametrize("name", [name for name, target in TARGETS.items() if target.is_jetson])
def test_a_jetson_target_has_one_kind_of_gpu_and_the_pythons_of_its_jetpacks(name: str):
    target = TARGETS[name]
    assert len({HARDWARE[module].compute_capability for module in target.modules}) == 1
    (family,) = {HARDWARE[module].family for module in target.modules}
    assert all(
        family in JETPACKS[version].families and not JETPACKS[version].unsupported for version in target.jetpacks
    )
    assert {JETPACKS[version].python for version in target.jetpacks} == set(target.pythons)


def test_every_module_is_in_one_target_and_every_supported_jetpack_in_one_at_least():
    modules = [module for target in TARGETS.values() for module in target.modules]
    assert sorted(modules) == sorted(name for name, row in HARDWARE.items() if row.family)
    used = {version for target in TARGETS.values() for version in target.jetpacks}
    assert used == {version for version, row in JETPACKS.items() if not row.unsupported}


@pytest.mark.parametrize("name", HARDWARE)
def test_a_row_of_hardware_is_whole(name: str):
    row = HARDWARE[name]
    assert row.compute_capability in MULTIPROCESSORS
    assert min(row.multiprocessors, row.gpu_mhz, row.memory_gb, row.bandwidth) > 0 and row.dla >= 0
    assert bool(row.family) == bool(row.mode) == bool(row.model) == bool(row.parts)
    assert len(row.source) > 20


def test_a_part_number_is_that_of_one_module():
    parts = [part for row in HARDWARE.values() for part in row.parts]
    assert len(parts) == len(set(parts))


PUBLISHED = [
    # INT8, with sparsity, of the GPU alone: what the DLAs add is taken off where a module has some.
    ("orin-nano-8gb", 67),
    ("orin-nano-4gb", 34),
    ("orin-nx-16gb", 157 - 80),
    ("orin-nx-8gb", 117 - 40),
    ("agx-orin-64gb", 170),
    ("agx-orin-32gb", 241 - 92),
    ("agx-orin-industrial", 156),
]


@pytest.mark.parametrize(("name", "tops"), PUBLISHED)
def test_the_rate_that_follows_is_the_one_that_nvidia_publishes(name: str, tops: float):
    row = HARDWARE[name]
    core = MULTIPROCESSORS[row.compute_capability]
    dense = row.multiprocessors * core.tensor_cores * core.int8 * row.gpu_mhz / 1e6
    assert 2 * dense == pytest.approx(tops, rel=0.02)


@pytest.mark.parametrize(("name", "tflops"), [("thor", 2070), ("thor-t4000", 1200)])
def test_the_fp4_rate_of_a_thor_is_eight_times_the_dense_fp16_rate(name: str, tflops: float):
    row = HARDWARE[name]
    core = MULTIPROCESSORS[row.compute_capability]
    assert 8 * row.multiprocessors * core.tensor_cores * core.fp16 * row.gpu_mhz / 1e6 == pytest.approx(
        tflops, rel=0.01
    )


@pytest.mark.parametrize(
    ("name", "cuda_cores"),
    [
        ("orin-nano-8gb", 1024),
        ("orin-nano-4gb", 512),
        ("orin-nx-16gb", 1024),
        ("agx-orin-64gb", 2048),
        ("agx-orin-32gb", 1792),
        ("thor", 2560),
        ("thor-t4000", 1536),
        ("t4", 2560),
        ("rtx-4090", 16384),
    ],
)
def test_the_number_of_cuda_cores(name: str, cuda_cores: int):
    row = HARDWARE[name]
    assert row.multiprocessors * MULTIPROCESSORS[row.compute_capability].cuda_cores == cuda_cores


def test_a_release_of_jetson_linux_is_that_of_one_jetpack():
    releases = [release for row in JETPACKS.values() for release in row.l4t]
    assert len(releases) == len(set(releases))
    numbers = [[int(part) for part in release.split(".")] for release in releases]
    assert numbers == sorted(numbers), "the rows are in order"
    for version, row in JETPACKS.items():
        assert row.version == version and all(find_jetpack(release) is row for release in row.l4t)
        assert row.source and row.families
        assert bool(row.unsupported) == (row.python not in PYTHONS or int(row.tensorrt.split(".")[0]) < 10)


@pytest.mark.parametrize(
    ("l4t", "version"),
    [
        ("35.4.1", "5.1.2"),
        ("36.4.0", "6.1"),
        ("36.4.7", "6.2.1"),
        ("36.5.2", "6.2.3"),
        ("38.4.0", "7.1"),
        ("39.2.1", "7.2.1"),
        ("36.9.9", None),
        ("", None),
    ],
)
def test_the_jetpack_of_a_release_of_jetson_linux(l4t: str, version: str | None):
    found = find_jetpack(l4t)
    assert (found and found.version) == version


def test_an_unknown_target_is_told_what_there_is():
    with pytest.raises(UsageError, match=r"no target 'orin'.*jetson-orin-nano, .*x86-cpu"):
        get_target("orin")
    assert get_target("jetson-thor").modules == ("thor", "thor-t4000")


def page_rows() -> list[str]:
    """The rows of the page's three tables, as the table of the source has them."""
    rows = [
        f"| `{row.name}` | {row.title} | {row.machine} | {', '.join(row.backends)} | {', '.join(row.pythons)} | {', '.join(row.jetpacks)} |"
        for row in TARGETS.values()
    ]
    rows += [
        f"| {row.title} | {'.'.join(map(str, row.compute_capability))} | {row.multiprocessors} | {row.gpu_mhz} | {row.mode} | {row.memory_gb} | "
        f"{row.bandwidth:g} | {row.dla} | {row.source} |"
        for row in HARDWARE.values()
    ]
    rows += [
        f"| {row.version} | {', '.join(row.l4t)} | {row.ubuntu} | {row.python} | {row.cuda} | {row.cudnn} | {row.tensorrt} | "
        f"{', '.join(row.families)} | {'no: ' + row.unsupported if row.unsupported else 'yes'} | {row.source} |"
        for row in JETPACKS.values()
    ]
    return rows


def test_the_page_has_the_rows_of_the_table():
    text = PAGE.read_text(encoding="utf-8")
    missing = [row for row in page_rows() if row not in text]
    assert not missing, "\n".join(["docs/targets.md lacks:", *missing])
    assert sum(line.startswith("|") for line in text.splitlines()) == len(page_rows()) + 2 * 3


def test_the_backends_on_the_cpu_are_those_that_say_so():
    assert set(ON_CPU) == {name for name in BACKENDS if get_backend(name).TRAITS.on_cpu}
