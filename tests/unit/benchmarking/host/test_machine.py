"""A machine as its files describe it: a laptop, a Jetson, a container, and this one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from edge_effdet.benchmarking.host.machine import describe_machine, machine_differences, machine_identity
from edge_effdet.benchmarking.record import GpuDescription, Jetson, Limits, Machine
from tests import kernel_trees
from tests.kernel_trees import CPU, write
from tests.simulated_nvml import H200, SimulatedNvml


def test_a_laptop(tmp_path: Path):
    machine = describe_machine(kernel_trees.laptop(tmp_path), range(4))
    assert (machine.host, machine.system, machine.kernel) == ("laptop", "Ubuntu 24.04.1 LTS", "6.8.0-45-generic")
    assert machine.memory_bytes == 16107640 * 1024 and machine.load_before == 0.52
    assert machine.cpu.name == "Intel(R) Core(TM) i5-1235U" and machine.cpu.architecture == "x86_64"
    assert (machine.cpu.cores, machine.cpu.threads) == (2, 4)
    # The instruction sets that matter, and no others.
    assert machine.cpu.instructions == ("avx", "avx2", "avx_vnni", "f16c", "fma", "sse4_1", "sse4_2")
    assert machine.cpu.governors == ("powersave",) and machine.cpu.max_mhz == 4400
    assert machine.cpu.turbo is True and machine.cpu.hypervisor is False
    assert machine.gpus == () and machine.jetson is None and machine.limits == Limits()


def test_only_the_cores_that_may_be_used_count(tmp_path: Path):
    root = kernel_trees.laptop(tmp_path)
    write(root, {f"{CPU}/cpu3/cpufreq/scaling_governor": "performance"})
    some = describe_machine(root, {2}).cpu
    assert (some.cores, some.threads, some.max_mhz, some.governors) == (1, 1, 3300, ("powersave",))
    assert describe_machine(root, {2, 3}).cpu.governors == ("performance", "powersave")


@pytest.mark.parametrize(
    ("files", "turbo"),
    [
        ({f"{CPU}/intel_pstate/no_turbo": 1}, False),
        ({f"{CPU}/cpufreq/boost": 1}, True),
        ({f"{CPU}/cpufreq/boost": 0}, False),
        ({}, None),
    ],
)
def test_turbo_by_either_driver(tmp_path: Path, files, turbo):
    assert describe_machine(write(tmp_path, {"proc/meminfo": "MemTotal: 1 kB", **files}), {0}).cpu.turbo is turbo


def test_a_jetson(tmp_path: Path):
    machine = describe_machine(kernel_trees.orin(tmp_path), range(4))
    assert machine.jetson == Jetson(
        model="NVIDIA Jetson Orin Nano Developer Kit",
        l4t="36.4.3",
        jetpack="6.2",
        power_mode="MAXN_SUPER",
        clocks_locked=False,
    )
    # Its kernel calls the processor "ARMv8 Processor rev 1 (v8l)".
    assert machine.cpu.name == "Cortex-A78AE" and machine.cpu.architecture == "aarch64"
    assert machine.cpu.instructions == ("asimd", "asimddp", "asimdhp")
    assert machine.cpu.hypervisor is None and machine.cpu.turbo is None and machine.cpu.max_mhz == 1728


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (["0x41/0xd0b"] * 4, "Raspberry Pi 5 Model B Rev 1.0, Cortex-A76"),
        (["0x41/0xd05", "0x41/0xd41"], "Raspberry Pi 5 Model B Rev 1.0, Cortex-A55 + Cortex-A78"),
        (["0x4e/0x004"], "Raspberry Pi 5 Model B Rev 1.0, Carmel"),
        # A core that the table does not have is named by its numbers and not by a guess.
        (["0x51/0x804"], "Raspberry Pi 5 Model B Rev 1.0, Arm core 0x51/0x804"),
    ],
)
def test_arm_cores_have_the_names_of_their_parts(tmp_path: Path, parts, name):
    blocks = [
        f"processor\t: {number}\nCPU implementer\t: {part.split('/')[0]}\nCPU part\t: {part.split('/')[1]}\n"
        for number, part in enumerate(parts)
    ]
    files = {"proc/cpuinfo": "\n".join(blocks), "proc/device-tree/model": "Raspberry Pi 5 Model B Rev 1.0\0"}
    assert describe_machine(write(tmp_path, {"proc/meminfo": "MemTotal: 1 kB", **files}), range(4)).cpu.name == name


@pytest.mark.parametrize(
    ("files", "limits"),
    [
        (
            {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000", "sys/fs/cgroup/memory.max": 2 << 30},
            Limits(cpus=1.5, memory_bytes=2 << 30),
        ),
        # The tightest of a group and its parents.
        (
            {
                "proc/self/cgroup": "0::/kubepods/pod",
                "sys/fs/cgroup/kubepods/memory.max": 1 << 30,
                "sys/fs/cgroup/kubepods/pod/memory.max": "max",
                "sys/fs/cgroup/kubepods/pod/cpu.max": "max 100000",
                "sys/fs/cgroup/kubepods/cpu.max": "400000 100000",
            },
            Limits(cpus=4, memory_bytes=1 << 30),
        ),
        # Version 1 says with a number beyond any memory that there is no limit.
        (
            {
                "proc/self/cgroup": "4:memory:/docker/x\n1:cpu,cpuacct:/docker/x",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
                "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes": 3 << 30,
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_quota_us": 50000,
                "sys/fs/cgroup/cpu/docker/x/cpu.cfs_period_us": 100000,
            },
            Limits(cpus=0.5, memory_bytes=3 << 30),
        ),
        (
            {"proc/self/cgroup": "4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712},
            Limits(),
        ),
    ],
)
def test_what_a_container_allows(tmp_path: Path, files, limits):
    machine = describe_machine(write(kernel_trees.laptop(tmp_path), files), range(4))
    assert machine.limits == limits
    assert machine.cpu.cores == max(1, min(2, int(limits.cpus or 2)))


def test_the_gpus_are_those_of_nvml(tmp_path: Path):
    nvml = SimulatedNvml(H200, {**H200, "nvmlDeviceGetEnforcedPowerLimit": None})
    gpu = GpuDescription(
        name="NVIDIA H200",
        driver="570.86.15",
        cuda="12.8",
        memory_bytes=150754820096,
        compute_capability="9.0",
        power_limit_w=700,
    )
    machine = describe_machine(kernel_trees.laptop(tmp_path), range(4), nvml)
    assert machine.gpus == (gpu, dataclasses.replace(gpu, power_limit_w=None))
    assert nvml.started == 0


def test_a_tree_with_nothing_in_it_is_no_error(tmp_path: Path):
    machine = describe_machine(tmp_path, {0})
    assert machine.memory_bytes > 0
    assert machine.load_before is None and machine.jetson is None and machine.limits == Limits()
    assert machine.cpu.governors == () and machine.cpu.max_mhz is machine.cpu.turbo is machine.cpu.hypervisor is None


def test_this_machine():
    machine = describe_machine()
    assert machine.cpu.name not in ("", "unknown") and 1 <= machine.cpu.cores <= machine.cpu.threads
    assert machine.cpu.instructions and machine.memory_bytes > 1 << 28
    assert {"numpy", "pillow"} <= machine.packages.keys()
    assert machine_differences(machine, machine) == ()


def changed(machine: Machine, **cpu) -> Machine:
    return dataclasses.replace(machine, cpu=dataclasses.replace(machine.cpu, **cpu))


def test_what_changes_on_one_machine_makes_no_other_of_it(tmp_path: Path):
    machine = describe_machine(kernel_trees.laptop(tmp_path), range(4))
    later = dataclasses.replace(
        changed(machine, governors=("performance",), turbo=False), load_before=3.0, host="renamed"
    )
    assert machine_identity(later) == machine_identity(machine) and machine_differences(machine, later) == ()


def test_the_differences_of_two_machines_in_words(tmp_path: Path):
    laptop = describe_machine(kernel_trees.laptop(tmp_path / "laptop"), range(4))
    fewer = changed(laptop, cores=1, threads=2, instructions=("avx2", "avx512f"))
    assert machine_differences(laptop, fewer) == (
        "the number of cores was 2 with 4 threads and is 1 with 2 threads now",
        "the processor lacks instruction sets that it had: avx, avx_vnni, f16c, fma, sse4_1, sse4_2",
        "the processor has instruction sets that it lacked: avx512f",
    )
    with_gpu = dataclasses.replace(laptop, gpus=(GpuDescription(name="NVIDIA H200"),))
    assert machine_differences(with_gpu, laptop) == ("the GPU was NVIDIA H200 and is none now",)


def test_two_power_modes_of_a_jetson_are_two_machines(tmp_path: Path):
    root = kernel_trees.orin(tmp_path)
    fast = describe_machine(root, range(4))
    slow = describe_machine(write(root, {"var/lib/nvpmodel/status": "pmode:0000"}), range(4))
    assert machine_differences(fast, slow) == ("the power mode was MAXN_SUPER and is 15W now",)
    other = describe_machine(kernel_trees.laptop(tmp_path / "laptop"), range(4))
    # All instruction sets differ between architectures, which is said once.
    assert not [each for each in machine_differences(fast, other) if "instruction" in each]
