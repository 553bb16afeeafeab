"""Cores by topology, affinity and quota, as the kernel's files tell them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_effdet.backends.base import LoadOptions
from edge_effdet.backends.cores import count_physical, cpu_flags, read_quota, usable_cores


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def topology(cores: list[tuple[int, int]]) -> dict[str, str]:
    """Files of processors with a package and a core each."""
    names = "physical_package_id", "core_id"
    return {
        f"devices/system/cpu/cpu{cpu}/topology/{name}": f"{value}\n"
        for cpu, values in enumerate(cores)
        for name, value in zip(names, values, strict=True)
    }


def test_hyper_threads_are_one_core_and_packages_are_two(tmp_path: Path):
    sys = write(tmp_path, topology([(0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (1, 0)]))
    assert count_physical({0, 1, 2, 3, 4, 5}, sys) == 3
    assert count_physical({0, 2}, sys) == 2
    assert count_physical({0, 1}, sys) == 1
    # No description of 6 and 7.
    assert count_physical({0, 6, 7}, sys) == 3


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {"fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"fs/cgroup/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"fs/cgroup/a/cpu.max": "200000 100000", "fs/cgroup/a/b/cpu.max": "max 100000"}, 2),
        ("0::/outside/of/us\n", {"fs/cgroup/cpu.max": "300000 100000"}, 3),
        (
            "4:memory:/\n2:cpu,cpuacct:/x\n",
            {"fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000", "fs/cgroup/cpu/x/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("2:cpu:/\n", {"fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        ("0::/\n", {"fs/cgroup/cpu.max": "nonsense"}, None),
        ("", {}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path: Path, cgroup, files, quota):
    proc = write(tmp_path / "proc", {"self/cgroup": cgroup})
    assert read_quota(proc, write(tmp_path / "sys", {"x": "", **files})) == quota


def test_cores_are_no_more_than_the_quota_pays_for(tmp_path: Path):
    proc = write(tmp_path / "proc", {"self/cgroup": "0::/\n"})
    assert usable_cores(proc, write(tmp_path / "half", {"fs/cgroup/cpu.max": "50000 100000"})) == 1
    free = usable_cores(proc, tmp_path / "nothing")
    assert usable_cores(proc, write(tmp_path / "many", {"fs/cgroup/cpu.max": "9900000 100000"})) == free >= 1


def test_runs_at_once_share_the_cores():
    assert LoadOptions().threads_of_a_run() == usable_cores()
    assert LoadOptions(parallel_runs=usable_cores()).threads_of_a_run() == 1
    assert LoadOptions(parallel_runs=10 * usable_cores()).threads_of_a_run() == 1
    assert LoadOptions(threads=7, parallel_runs=2).threads_of_a_run() == 7


def test_instruction_sets_are_those_of_all_cores_and_none_where_the_kernel_is_silent(tmp_path: Path):
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nflags\t\t: avx2 fma\nbugs\t: spectre\n\nprocessor\t: 1\nflags\t\t: avx2 avx_vnni\n"
    )
    assert cpu_flags(file, {}) == {"avx2", "fma", "avx_vnni"}
    file.write_text("Features\t: fp asimddp\n")
    assert cpu_flags(file, {}) == {"fp", "asimddp"}
    assert cpu_flags(tmp_path / "nowhere", {}) == frozenset()


def test_what_the_processor_says_goes_before_the_list_of_an_emulators_host(tmp_path: Path):
    file = tmp_path / "cpuinfo"
    file.write_text("flags\t\t: sse4_2 avx2 avx_vnni\n")
    # A processor that has what the kernel lists; NumPy does not know AVX-VNNI.
    assert cpu_flags(file, {"SSE42": True, "AVX2": True, "AVX512F": False}) == {"sse4_2", "avx2", "avx_vnni"}
    # QEMU's Nehalem on that machine: the kernel's list is that of the machine below.
    assert cpu_flags(file, {"SSE42": True, "AVX2": False, "AVX512F": False}) == {"sse4_2"}
    assert cpu_flags(tmp_path / "nowhere", {"AVX2": True, "MMX": True}) == {"avx2"}


def test_this_processor_says_what_it_has():
    assert cpu_flags() >= cpu_flags(Path("nowhere"))
    assert cpu_flags(Path("nowhere")), "NumPy keeps what it found elsewhere now"
