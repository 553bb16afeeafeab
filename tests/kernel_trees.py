"""Trees of files as the kernels of other machines show them, for code that takes the root of the file system as an argument."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CPU = "sys/devices/system/cpu"


def write(root: Path, files: Mapping[str, str | int]) -> Path:
    """Write each text under its path; a line ends it, as in the kernel's files."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")
    return root


def stat(*cpus: tuple[int, int, int, int]) -> str:
    """``/proc/stat`` of processors with the clock ticks of user, system, idle and steal each."""
    lines = [
        f"cpu{number} {user} 0 {system} {idle} 0 0 0 {steal} 0 0"
        for number, (user, system, idle, steal) in enumerate(cpus)
    ]
    return "\n".join(["cpu  0 0 0 0 0 0 0 0 0 0", *lines, "intr 12345 0 0", "ctxt 1"])


def process(
    pid: int, parent: int, began: int, own: int = 0, reaped: int = 0, name: str = "python"
) -> dict[str, str | int]:
    """``/proc/PID/stat`` of a process with its clock ticks and those of the children that it has waited for."""
    fields = ["S", parent, 1, 1, 0, -1, 0, 0, 0, 0, 0, own, 0, reaped, 0, 20, 0, 1, 0, began, 1000, 10]
    return {f"proc/{pid}/stat": f"{pid} ({name}) " + " ".join(map(str, fields))}


def laptop(root: Path) -> Path:
    """A laptop with an Intel processor of two cores with two threads each."""
    flags = "fpu sse4_1 sse4_2 avx avx2 fma f16c avx_vnni aes"
    block = (
        "processor\t: {}\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Core(TM) i5-1235U\ncpu MHz\t\t: {}\nflags\t\t: "
        + flags
        + "\n"
    )
    files: dict[str, str | int] = {
        "proc/cpuinfo": "\n".join(block.format(cpu, 1300 + cpu) for cpu in range(4)),
        "proc/meminfo": "MemTotal:       16107640 kB\nMemFree:         1000000 kB",
        "proc/loadavg": "0.52 0.58 0.59 1/1023 12345",
        "proc/sys/kernel/hostname": "laptop",
        "proc/sys/kernel/osrelease": "6.8.0-45-generic",
        "proc/sys/kernel/arch": "x86_64",
        "proc/self/cgroup": "0::/user.slice",
        "etc/os-release": 'NAME="Ubuntu"\nHOME_URL="https://www.ubuntu.com/"\nPRETTY_NAME="Ubuntu 24.04.1 LTS"\nID=ubuntu',
        f"{CPU}/intel_pstate/no_turbo": 0,
        "sys/class/hwmon/hwmon0/name": "nvme",
        "sys/class/hwmon/hwmon0/temp1_input": 91000,
        "sys/class/hwmon/hwmon1/name": "coretemp",
        "sys/class/hwmon/hwmon1/temp1_label": "Package id 0",
        "sys/class/hwmon/hwmon1/temp1_input": 71000,
        "sys/class/hwmon/hwmon1/temp2_label": "Core 0",
        "sys/class/hwmon/hwmon1/temp2_input": 69000,
        "sys/class/thermal/thermal_zone0/type": "acpitz",
        "sys/class/thermal/thermal_zone0/temp": 27800,
        "sys/class/thermal/thermal_zone1/type": "x86_pkg_temp",
        "sys/class/thermal/thermal_zone1/temp": 70000,
        "sys/class/thermal/cooling_device0/type": "Processor",
        "sys/class/thermal/cooling_device0/cur_state": 0,
        "sys/class/thermal/cooling_device1/type": "intel_powerclamp",
        "sys/class/thermal/cooling_device1/cur_state": -1,
        "sys/class/powercap/intel-rapl:0/name": "package-0",
        "sys/class/powercap/intel-rapl:0/energy_uj": 250_000_000,
        "sys/class/powercap/intel-rapl:0/max_energy_range_uj": 262_143_328_850,
        "sys/class/powercap/intel-rapl:0:0/name": "core",
        "sys/class/powercap/intel-rapl:0:0/energy_uj": 1,
        "sys/class/powercap/intel-rapl-mmio:0/name": "package-0",
        "sys/class/powercap/intel-rapl-mmio:0/energy_uj": 250_000_000,
    }
    for cpu in range(4):
        files |= {
            f"{CPU}/cpu{cpu}/topology/physical_package_id": 0,
            f"{CPU}/cpu{cpu}/topology/core_id": cpu // 2,
            f"{CPU}/cpu{cpu}/cpufreq/scaling_governor": "powersave",
            f"{CPU}/cpu{cpu}/cpufreq/scaling_cur_freq": 1_000_000 * (cpu + 1),
            f"{CPU}/cpu{cpu}/cpufreq/scaling_min_freq": 400_000,
            f"{CPU}/cpu{cpu}/cpufreq/scaling_max_freq": 4_400_000,
            f"{CPU}/cpu{cpu}/cpufreq/cpuinfo_max_freq": 4_400_000 if cpu < 2 else 3_300_000,
            f"{CPU}/cpu{cpu}/thermal_throttle/core_throttle_count": 12,
            f"{CPU}/cpu{cpu}/thermal_throttle/package_throttle_count": 40,
        }
    return write(root, {**files, "proc/stat": stat(*[(100, 50, 1000, 0)] * 4)})


def orin(root: Path) -> Path:
    """A Jetson Orin Nano with JetPack 6.2, on which ``jetson_clocks`` was not run, with four of its cores."""
    block = (
        "processor\t: {}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nBogoMIPS\t: 62.50\n"
        "Features\t: fp asimd evtstrm aes asimdhp cpuid asimddp\nCPU implementer\t: 0x41\nCPU part\t: 0xd42\nCPU revision\t: 1\n"
    )
    files: dict[str, str | int] = {
        "proc/cpuinfo": "\n".join(block.format(cpu) for cpu in range(4)),
        "proc/meminfo": "MemTotal:        7802844 kB",
        "proc/loadavg": "1.10 0.90 0.40 2/512 4242",
        "proc/sys/kernel/hostname": "orin",
        "proc/sys/kernel/osrelease": "5.15.148-tegra",
        "proc/sys/kernel/arch": "aarch64",
        "proc/self/cgroup": "0::/",
        # A text of a device tree ends with a zero byte and no new line.
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.5 LTS"',
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025",
        "etc/nvpmodel.conf": "# a comment\n< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=0 >",
        "var/lib/nvpmodel/status": "pmode:0002",
        "sys/class/devfreq/15340000.vic/cur_freq": 115_200_000,
        "sys/class/devfreq/17000000.gpu/cur_freq": 612_000_000,
        "sys/class/devfreq/17000000.gpu/min_freq": 306_000_000,
        "sys/class/devfreq/17000000.gpu/max_freq": 1_020_000_000,
        "sys/class/hwmon/hwmon0/name": "pwmfan",
        "sys/class/hwmon/hwmon1/name": "ina3221",
        "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
        "sys/class/hwmon/hwmon1/in1_input": 5000,
        "sys/class/hwmon/hwmon1/curr1_input": 2400,
        "sys/class/hwmon/hwmon1/in2_label": "VDD_CPU_GPU_CV",
        "sys/class/hwmon/hwmon1/in2_input": 5000,
        "sys/class/hwmon/hwmon1/curr2_input": 900,
        "sys/class/hwmon/hwmon1/in7_label": "sum of shunt voltages",
        "sys/class/hwmon/hwmon1/in7_input": 10,
        "sys/class/hwmon/hwmon2/name": "soctherm_oc",
        **{f"sys/class/hwmon/hwmon2/oc{number}_event_cnt": 27 * number for number in (1, 2, 3)},
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": 63625,
        "sys/class/thermal/thermal_zone1/type": "gpu-thermal",
        "sys/class/thermal/thermal_zone1/temp": 61250,
        "sys/class/thermal/thermal_zone2/type": "tj-thermal",
        "sys/class/thermal/thermal_zone2/temp": 64000,
        "sys/class/thermal/cooling_device0/type": "pwm-fan",
        "sys/class/thermal/cooling_device0/cur_state": 3,
        "sys/class/thermal/cooling_device1/type": "gpu-throttle-alert",
        "sys/class/thermal/cooling_device1/cur_state": 0,
        "sys/class/thermal/cooling_device2/type": "devfreq-17000000.gpu",
        "sys/class/thermal/cooling_device2/cur_state": 5,
    }
    for cpu in range(4):
        files |= {
            f"{CPU}/cpu{cpu}/topology/physical_package_id": 0,
            f"{CPU}/cpu{cpu}/topology/core_id": cpu,
            f"{CPU}/cpufreq/policy0/scaling_governor": "schedutil",
            f"{CPU}/cpufreq/policy0/scaling_cur_freq": 1_344_000,
            f"{CPU}/cpufreq/policy0/scaling_min_freq": 729_600,
            f"{CPU}/cpufreq/policy0/scaling_max_freq": 1_728_000,
            f"{CPU}/cpufreq/policy0/cpuinfo_max_freq": 1_728_000,
        }
    write(root, {**files, "proc/stat": stat(*[(100, 50, 1000, 0)] * 4)})
    for cpu in range(4):
        (root / f"{CPU}/cpu{cpu}/cpufreq").symlink_to(root / f"{CPU}/cpufreq/policy0")
    return root


@dataclass(frozen=True, slots=True)
class Board:
    """A Jetson as its files show it. The strings are those of real boards, as their owners published them; a T4000's are not known.

    Attributes:
        model: of the device tree.
        compatible: of the device tree, with a space between its texts.
        memory_kib: the memory that the kernel has.
        l4t: the release of Jetson Linux.
        ubuntu: the name of the system.
        python: the version of the system's Python.
        tensorrt: the version of the package python3-libnvinfer.
        cuda: the version of CUDA.
    """

    model: str
    compatible: str
    memory_kib: int
    l4t: str
    ubuntu: str
    python: str
    tensorrt: str
    cuda: str


ORIN_NANO_6 = Board(
    "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    "nvidia,p3768-0000+p3767-0005-super nvidia,p3767-0005 nvidia,tegra234",
    7802844,
    "36.4.3",
    "Ubuntu 22.04.5 LTS",
    "3.10",
    "10.3.0.30-1+cuda12.5",
    "12.6",
)
ORIN_NX_6 = Board(
    "NVIDIA Jetson Orin NX Engineering Reference Developer Kit",
    "nvidia,p3768-0000+p3767-0000 nvidia,p3767-0000 nvidia,tegra234",
    16017124,
    "36.5.2",
    "Ubuntu 22.04.5 LTS",
    "3.10",
    "10.3.0.30-1+cuda12.5",
    "12.6",
)
AGX_ORIN_7 = Board(
    "NVIDIA Jetson AGX Orin Developer Kit",
    "nvidia,p3737-0000+p3701-0005 nvidia,p3701-0005 nvidia,tegra234",
    64285572,
    "39.2.1",
    "Ubuntu 24.04.5 LTS",
    "3.12",
    "10.16.2.10-1+cuda13.2",
    "13.2",
)
THOR_7 = Board(
    "NVIDIA Jetson AGX Thor Developer Kit",
    "nvidia,p4071-0000+p3834-0008 nvidia,p3834-0008 nvidia,tegra264",
    128825804,
    "38.4.0",
    "Ubuntu 24.04.3 LTS",
    "3.12",
    "10.13.3.9-1+cuda13.0",
    "13.0",
)

PROGRAM = "#!/bin/sh\nexit 0"


def jetson(root: Path, board: Board = ORIN_NANO_6) -> Path:
    """A Jetson on which all is installed that a bundle needs: JetPack, its CUDA toolkit, a compiler, venv, swap on a disk, a camera."""
    orin(root)
    release, _, revision = board.l4t.partition(".")
    python, cuda = f"python{board.python}", f"usr/local/cuda-{board.cuda}"
    packages = {"nvidia-l4t-core": f"{board.l4t}-20250107174145", "python3-libnvinfer": board.tensorrt}
    blocks = [
        f"Package: {name}\nStatus: install ok installed\nArchitecture: arm64\nVersion: {version}\n"
        for name, version in packages.items()
    ]
    write(
        root,
        {
            "proc/device-tree/model": f"{board.model}\0",
            "proc/device-tree/compatible": board.compatible.replace(" ", "\0") + "\0",
            "proc/meminfo": f"MemTotal:  {board.memory_kib} kB\nMemAvailable:  {board.memory_kib // 4 * 3} kB\nSwapTotal:  12000000 kB",
            "proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 3611392 0 5\n/swapfile file 8388604 0 -2",
            "proc/net/route": "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
            "enP8p1s0 00000000 0101A8C0 0003 0 0 100 00000000 0 0 0\nenP8p1s0 0001A8C0 00000000 0001 0 0 100 00FFFFFF 0 0 0",
            "etc/os-release": f'PRETTY_NAME="{board.ubuntu}"',
            "etc/nv_tegra_release": f"# R{release} (release), REVISION: {revision}, GCID: 1, BOARD: generic, EABI: aarch64",
            "var/lib/dpkg/status": "\n".join(blocks),
            "etc/passwd": f"root:x:0:0:root:/root:/bin/sh\nowner:x:{os.getuid() or 1000}:1000::/home/owner:/bin/sh",
            "etc/group": "root:x:0:\nvideo:x:44:owner\nowner:x:1000:",
            "dev/video0": "",
            "run/systemd/system/.keep": "",
            f"usr/bin/{python}": PROGRAM,
            "usr/bin/g++": PROGRAM,
            f"usr/lib/{python}/venv/__init__.py": "",
            f"usr/lib/{python}/ensurepip/_bundled/pip-24.0-py3-none-any.whl": "",
            f"usr/lib/{python}/dist-packages/tensorrt/__init__.py": "",
            f"usr/include/{python}/Python.h": "",
            f"{cuda}/bin/nvcc": PROGRAM,
            f"{cuda}/include/cuda.h": "",
        },
    )
    (root / "usr/bin/python3").symlink_to(python)
    (root / "usr/local/cuda").symlink_to(Path(cuda).name)
    for name in (f"usr/bin/{python}", "usr/bin/g++", f"{cuda}/bin/nvcc"):
        (root / name).chmod(0o755)
    return root
