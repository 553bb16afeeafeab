"""The machines that a bundle can be for: GPUs and modules, the JetPack releases that run on them, and the targets of ``deploy``.

Other rooms take hardware facts from here and write none down again. Each row names where its facts come from. Some are less certain, and
the row says so: *from memory* was not looked up again, *derived* was worked out from other figures of the row, and *as boards report* was
read in several published logs of such boards and not in a document of NVIDIA. Where a row names a document, some of its figures were read in
pages that quote it. Nothing here was measured by this project.

Four facts decide much elsewhere:

- An engine belongs to the GPU and to the version of TensorRT that built it, so it is built on the device.
- TensorRT on a Jetson is JetPack's own, which apt installs for the system's Python. The one that pip fetches is made for servers.
- A module's clock depends on its power mode. ``MAXN_SUPER`` is there where the board was flashed with the configuration for it.
- DLAs are listed and not used. TensorRT 10.7 was the last of the 10s that supports them, 11.0 to 11.3 support none, and 11.4.1 supports
  those of AGX Orin on JetPack 7.2.2 or later (TensorRT 11.4.1, *Working with DLA*).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_effdet.errors import UsageError

PYTHONS = ("3.10", "3.11", "3.12", "3.13")
"""The versions of Python that the device side runs on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Multiprocessor:
    """What one streaming multiprocessor does in a clock, where a multiply-accumulate is two operations. Tensor cores are counted dense: the
    rates that NVIDIA advertises count structured sparsity, which doubles them.

    Attributes:
        cuda_cores: how many CUDA cores it has, each with one FP32 multiply-accumulate a clock.
        tensor_cores: how many tensor cores it has.
        fp16: operations of one tensor core a clock with FP16 operands and FP32 sums.
        int8: operations of one tensor core a clock with INT8 operands.
        tf32: operations of one tensor core a clock in TF32; 0 where it has none.
        vector_fp16: how many times as fast FP16 is on CUDA cores as FP32.
        source: where the figures come from.
    """

    cuda_cores: int
    tensor_cores: int
    fp16: int
    int8: int
    tf32: int
    vector_fp16: int
    source: str


MULTIPROCESSORS: Mapping[tuple[int, int], Multiprocessor] = {
    (7, 5): Multiprocessor(
        cuda_cores=64,
        tensor_cores=8,
        fp16=128,
        int8=256,
        tf32=0,
        vector_fp16=2,
        source="NVIDIA Turing GPU Architecture whitepaper, from memory: 64 FP16 multiply-accumulates a tensor core and clock",
    ),
    (8, 7): Multiprocessor(
        cuda_cores=128,
        tensor_cores=4,
        fp16=512,
        int8=1024,
        tf32=256,
        vector_fp16=2,
        source="NVIDIA Jetson AGX Orin Series technical brief v1.2 (16 SMs, 64 tensor cores, 170 sparse INT8 TOPS of the GPU at 1.3 GHz); "
        "FP16 on CUDA cores from memory",
    ),
    (8, 9): Multiprocessor(
        cuda_cores=128,
        tensor_cores=4,
        fp16=128,
        int8=512,
        tf32=64,
        vector_fp16=1,
        source="NVIDIA Ada GPU Architecture whitepaper v2, appendix on the RTX 4090: GeForce cards add FP16 products in FP32 at half the rate "
        "of the chip",
    ),
    (11, 0): Multiprocessor(
        cuda_cores=128,
        tensor_cores=4,
        fp16=2048,
        int8=4096,
        tf32=1024,
        vector_fp16=2,
        source="derived: 2070 sparse FP4 TFLOPS of a T5000, an eighth of which is FP16 dense, over 20 SMs at 1575 MHz; INT8 as fast as FP8 and "
        "TF32 half of FP16, from memory. NVIDIA advertises 96 tensor cores for a T5000, which are those of all 24 SMs of the chip",
    ),
}
"""By compute capability."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A GPU, or a Jetson module with one.

    Attributes:
        title: the name for people.
        compute_capability: major and minor number, which NVIDIA calls the SM version.
        multiprocessors: how many streaming multiprocessors are in use.
        gpu_mhz: the highest clock of the GPU, in ``mode`` where there is one.
        mode: the power mode that allows this clock; empty for a card.
        memory_gb: the memory in GB; a Jetson's GPU and processor share it.
        bandwidth: the peak bandwidth of memory, GB/s.
        family: ``orin`` or ``thor``; empty for a card.
        dla: how many deep learning accelerators it has. Nothing here uses them.
        model: what ``/proc/device-tree/model`` has in it on such a board.
        parts: the part numbers of the module that ``/proc/device-tree/compatible`` has.
        source: where the figures come from.
    """

    title: str
    compute_capability: tuple[int, int]
    multiprocessors: int
    gpu_mhz: int
    mode: str = ""
    memory_gb: int
    bandwidth: float
    family: str = ""
    dla: int = 0
    model: str = ""
    parts: tuple[str, ...] = ()
    source: str


_NANO_SOURCE = "NVIDIA Jetson Orin Nano Series data sheet, DS-11105-001 (CUDA and tensor cores, memory); "
_NX_SOURCE = (
    "NVIDIA Jetson Orin NX Series data sheet (CUDA and tensor cores, DLAs, memory); power modes of JetPack 6.2 "
    "(nvpmodel_p3767_0001_super.conf of the 8 GB module: 1173 MHz and 4 of 8 TPCs, which are 8 SMs); "
)
_AGX_SOURCE = "NVIDIA Jetson AGX Orin Series technical brief v1.2 and NVIDIA's table of modules; "
_PARTS_SOURCE = "part numbers as in L4T's device trees"

HARDWARE: Mapping[str, Hardware] = {
    "orin-nano-8gb": Hardware(
        title="Jetson Orin Nano 8 GB",
        compute_capability=(8, 7),
        multiprocessors=8,
        gpu_mhz=1020,
        mode="MAXN_SUPER",
        memory_gb=8,
        bandwidth=102.4,
        family="orin",
        model="Orin Nano",
        parts=("p3767-0003", "p3767-0005"),
        source=_NANO_SOURCE
        + "Jetson Orin Nano Super Developer Kit data sheet (67 sparse TOPS, 1020 MHz, 102 GB/s); "
        + _PARTS_SOURCE,
    ),
    "orin-nano-4gb": Hardware(
        title="Jetson Orin Nano 4 GB",
        compute_capability=(8, 7),
        multiprocessors=4,
        gpu_mhz=1020,
        mode="MAXN_SUPER",
        memory_gb=4,
        bandwidth=51.2,
        family="orin",
        model="Orin Nano",
        parts=("p3767-0004",),
        source=_NANO_SOURCE
        + "power modes of JetPack 6.2 (nvpmodel_p3767_0004_super.conf: 1020 MHz, 2 of 8 TPCs, memory at 3199 MHz as in the 8 GB module, whose bus is twice "
        "as wide); 34 sparse TOPS agree; " + _PARTS_SOURCE,
    ),
    "orin-nx-16gb": Hardware(
        title="Jetson Orin NX 16 GB",
        compute_capability=(8, 7),
        multiprocessors=8,
        gpu_mhz=1173,
        mode="MAXN_SUPER",
        memory_gb=16,
        bandwidth=102.4,
        family="orin",
        dla=2,
        model="Orin NX",
        parts=("p3767-0000", "p3767-0002"),
        source=_NX_SOURCE + "157 sparse TOPS, of which the GPU has 77; 918 MHz without super mode; " + _PARTS_SOURCE,
    ),
    "orin-nx-8gb": Hardware(
        title="Jetson Orin NX 8 GB",
        compute_capability=(8, 7),
        multiprocessors=8,
        gpu_mhz=1173,
        mode="MAXN_SUPER",
        memory_gb=8,
        bandwidth=102.4,
        family="orin",
        dla=1,
        model="Orin NX",
        parts=("p3767-0001",),
        source=_NX_SOURCE + "117 sparse TOPS, of which the GPU has 77; 765 MHz without super mode; " + _PARTS_SOURCE,
    ),
    "agx-orin-64gb": Hardware(
        title="Jetson AGX Orin 64 GB",
        compute_capability=(8, 7),
        multiprocessors=16,
        gpu_mhz=1300,
        mode="MAXN",
        memory_gb=64,
        bandwidth=204.8,
        family="orin",
        dla=2,
        model="AGX Orin",
        parts=("p3701-0005", "p3701-0000"),
        source=_AGX_SOURCE
        + "275 sparse TOPS, of which the GPU has 170; p3701-0000 is the first developer kit, whose GPU is the same and whose "
        "memory is 32 GB; " + _PARTS_SOURCE,
    ),
    "agx-orin-32gb": Hardware(
        title="Jetson AGX Orin 32 GB",
        compute_capability=(8, 7),
        multiprocessors=14,
        gpu_mhz=1300,
        mode="MAXN_SUPER of JetPack 7.2",
        memory_gb=32,
        bandwidth=204.8,
        family="orin",
        dla=2,
        model="AGX Orin",
        parts=("p3701-0004",),
        source=_AGX_SOURCE
        + "1792 CUDA cores (nvpmodel_p3701_0004.conf: 7 of 8 TPCs); 241 sparse TOPS with JetPack 7.2 (release notes of Jetson Linux 39.2), of which 92 are the DLAs'; "
        "930 MHz and 200 TOPS before; " + _PARTS_SOURCE,
    ),
    "agx-orin-industrial": Hardware(
        title="Jetson AGX Orin Industrial 64 GB",
        compute_capability=(8, 7),
        multiprocessors=16,
        gpu_mhz=1200,
        mode="MAXN",
        memory_gb=64,
        bandwidth=204.8,
        family="orin",
        dla=2,
        model="AGX Orin",
        parts=("p3701-0008",),
        source=_AGX_SOURCE + "1.2 GHz; 248 sparse TOPS, of which the GPU has 156; " + _PARTS_SOURCE,
    ),
    "thor": Hardware(
        title="Jetson AGX Thor T5000",
        compute_capability=(11, 0),
        multiprocessors=20,
        gpu_mhz=1575,
        mode="MAXN",
        memory_gb=128,
        bandwidth=273,
        family="thor",
        model="Thor",
        parts=("p3834-0008",),
        source="NVIDIA Jetson Thor Series Modules data sheet (2560 CUDA cores, 128 GB at 273 GB/s); 20 SMs, 1575 MHz and no DLA as boards "
        "report; p3834-0008 in the device tree of Linux",
    ),
    "thor-t4000": Hardware(
        title="Jetson Thor T4000",
        compute_capability=(11, 0),
        multiprocessors=12,
        gpu_mhz=1530,
        mode="MAXN",
        memory_gb=64,
        bandwidth=273,
        family="thor",
        model="Thor",
        parts=("p3834-0000",),
        source="NVIDIA's announcement of the T4000 with JetPack 7.1 (1536 CUDA cores, 64 GB at 273 GB/s, 1200 sparse FP4 TFLOPS); the clock is "
        "derived from these; no DLA, as in the T5000; p3834-0000 in meta-tegra",
    ),
    "t4": Hardware(
        title="Tesla T4",
        compute_capability=(7, 5),
        multiprocessors=40,
        gpu_mhz=1590,
        memory_gb=16,
        bandwidth=320,
        source="NVIDIA T4 Tensor Core GPU data sheet (8.1 / 65 / 130, 320 GB/s). At 70 W it seldom holds its boost clock",
    ),
    "rtx-4090": Hardware(
        title="GeForce RTX 4090",
        compute_capability=(8, 9),
        multiprocessors=128,
        gpu_mhz=2520,
        memory_gb=24,
        bandwidth=1008,
        source="NVIDIA Ada GPU Architecture whitepaper v2, appendix on the RTX 4090",
    ),
}
"""By the name that ``graph.targets`` offers too. Of modules of one kind, the larger one comes first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JetPack:
    """A release of JetPack.

    Attributes:
        version: its number.
        l4t: the releases of Jetson Linux that it has, as ``board.read_l4t`` tells them.
        ubuntu: the release of Ubuntu below it.
        python: Ubuntu's Python, for which TensorRT's package is made.
        cuda: the version of CUDA.
        cudnn: the version of cuDNN.
        tensorrt: the version of TensorRT that apt installs.
        families: the modules that it runs on: ``orin``, ``thor``, ``xavier``.
        unsupported: why edge_effdet does not run on it; empty where it does.
        source: where the facts come from.
    """

    version: str
    l4t: tuple[str, ...]
    ubuntu: str
    python: str
    cuda: str
    cudnn: str
    tensorrt: str
    families: tuple[str, ...]
    unsupported: str = ""
    source: str


_ARCHIVE = "NVIDIA's JetPack archive"


def _jetpack_5(version: str, l4t: str, tensorrt: str, cudnn: str) -> JetPack:
    return JetPack(
        version=version,
        l4t=(l4t,),
        ubuntu="20.04",
        python="3.8",
        cuda="11.4",
        cudnn=cudnn,
        tensorrt=tensorrt,
        families=("xavier", "orin"),
        unsupported="its Python is 3.8 and its TensorRT 8",
        source=f"{_ARCHIVE}; versions of the libraries partly from memory",
    )


def _jetpack_6(version: str, *l4t: str, source: str) -> JetPack:
    return JetPack(
        version=version,
        l4t=l4t,
        ubuntu="22.04",
        python="3.10",
        cuda="12.6",
        cudnn="9.3",
        tensorrt="10.3",
        families=("orin",),
        source=source,
    )


def _jetpack_7(
    version: str, *l4t: str, cuda: str, cudnn: str, tensorrt: str, families: tuple[str, ...], source: str
) -> JetPack:
    return JetPack(
        version=version,
        l4t=l4t,
        ubuntu="24.04",
        python="3.12",
        cuda=cuda,
        cudnn=cudnn,
        tensorrt=tensorrt,
        families=families,
        source=source,
    )


_THOR_ONLY, _BOTH = ("thor",), ("orin", "thor")
_TABLE = (
    _jetpack_5("5.0.2", "35.1.0", "8.4.1", "8.4.1"),
    _jetpack_5("5.1", "35.2.1", "8.5.2", "8.6.0"),
    _jetpack_5("5.1.1", "35.3.1", "8.5.2", "8.6.0"),
    _jetpack_5("5.1.2", "35.4.1", "8.5.2", "8.6.0"),
    _jetpack_5("5.1.3", "35.5.0", "8.5.2", "8.6.0"),
    _jetpack_5("5.1.4", "35.6.0", "8.5.2", "8.6.0"),
    _jetpack_5("5.1.5", "35.6.1", "8.5.2", "8.6.0"),
    JetPack(
        version="6.0",
        l4t=("36.3.0",),
        ubuntu="22.04",
        python="3.10",
        cuda="12.2",
        cudnn="8.9",
        tensorrt="8.6",
        families=("orin",),
        unsupported="its TensorRT is 8.6, which has no strongly typed networks",
        source=f"{_ARCHIVE}; versions of the libraries from memory",
    ),
    _jetpack_6(
        "6.1",
        "36.4.0",
        source=f"{_ARCHIVE}; Torch-TensorRT's page on JetPack 6.1 (CUDA 12.6, TensorRT 10.3, cuDNN 9.3)",
    ),
    _jetpack_6("6.2", "36.4.3", source=f"{_ARCHIVE}; the libraries of 6.1"),
    _jetpack_6(
        "6.2.1",
        "36.4.4",
        "36.4.7",
        source=f"{_ARCHIVE}; 36.4.7 is its update by apt, as boards report, on which large allocations of the GPU fail",
    ),
    _jetpack_6("6.2.2", "36.5.0", source=f"{_ARCHIVE}; the libraries as boards report"),
    _jetpack_6("6.2.3", "36.5.2", source=f"{_ARCHIVE}; the libraries as boards report"),
    _jetpack_7(
        "7.0",
        "38.2.0",
        "38.2.1",
        cuda="13.0",
        cudnn="9.12",
        tensorrt="10.13",
        families=_THOR_ONLY,
        source=f"{_ARCHIVE}; cuDNN as boards report",
    ),
    _jetpack_7(
        "7.1",
        "38.4.0",
        cuda="13.0",
        cudnn="9.12",
        tensorrt="10.13",
        families=_THOR_ONLY,
        source=f"{_ARCHIVE}; the libraries (10.13.3, 9.12.0) as boards report",
    ),
    _jetpack_7(
        "7.2",
        "39.2.0",
        cuda="13.2",
        cudnn="9.20",
        tensorrt="10.16",
        families=_BOTH,
        source=f"{_ARCHIVE}; release notes of Jetson Linux 39.2; the libraries (10.16.2.10) as boards report, cuDNN that of 7.2.1",
    ),
    _jetpack_7(
        "7.2.1",
        "39.2.1",
        cuda="13.2",
        cudnn="9.20",
        tensorrt="10.16",
        families=_BOTH,
        source=f"{_ARCHIVE}; the libraries (10.16.2.10, 9.20.0) as boards report",
    ),
    _jetpack_7(
        "7.2.2",
        "39.2.2",
        cuda="13.2",
        cudnn="9.20",
        tensorrt="10.16",
        families=_BOTH,
        source="named by the documentation of TensorRT 11.4.1, which may be installed on it; its Jetson Linux and its libraries are inferred from "
        "those of 7.2.1",
    ),
)

JETPACKS: Mapping[str, JetPack] = {row.version: row for row in _TABLE}
"""By version, oldest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeployTarget:
    """What a bundle can be made for.

    Attributes:
        name: its key in ``TARGETS``.
        title: the name for people.
        machine: the processor's architecture, as ``platform.machine()`` tells it.
        backends: what can run an engine there; the first one where nothing else is said.
        pythons: the versions of Python that such systems have, for which wheels are fetched.
        system_packages: whether the virtual environment has to see the system's Python packages, because TensorRT is among them.
        modules: keys of ``HARDWARE``; empty for a machine that is no Jetson.
        jetpacks: keys of ``JETPACKS`` on which it works.
        compiled: packages that have no wheel for it, which ``tensorrt`` needs and pip compiles on the device.
    """

    name: str
    title: str
    machine: str
    backends: tuple[str, ...]
    pythons: tuple[str, ...]
    system_packages: bool = False
    modules: tuple[str, ...] = ()
    jetpacks: tuple[str, ...] = ()
    compiled: tuple[str, ...] = ()

    @property
    def is_jetson(self) -> bool:
        """Whether it is a Jetson, which has Jetson Linux and JetPack."""
        return bool(self.modules)


ON_CPU = ("onnxruntime", "openvino")
"""Backends that need no GPU. ``Traits.on_cpu`` says the same, in modules that need NumPy; a test holds the two together."""

_ON_JETSON = ("tensorrt", *ON_CPU)
_ORIN_JETPACKS = tuple(row.version for row in _TABLE if "orin" in row.families and not row.unsupported)
_THOR_JETPACKS = tuple(row.version for row in _TABLE if "thor" in row.families)


def _jetson(name: str, title: str, modules: tuple[str, ...], jetpacks: tuple[str, ...]) -> DeployTarget:
    return DeployTarget(
        name=name,
        title=title,
        machine="aarch64",
        backends=_ON_JETSON,
        pythons=tuple(dict.fromkeys(JETPACKS[version].python for version in jetpacks)),
        system_packages=True,
        modules=modules,
        jetpacks=jetpacks,
        compiled=("pycuda",),
    )


TARGETS: Mapping[str, DeployTarget] = {
    target.name: target
    for target in (
        _jetson("jetson-orin-nano", "Jetson Orin Nano", ("orin-nano-8gb", "orin-nano-4gb"), _ORIN_JETPACKS),
        _jetson("jetson-orin-nx", "Jetson Orin NX", ("orin-nx-16gb", "orin-nx-8gb"), _ORIN_JETPACKS),
        _jetson(
            "jetson-agx-orin",
            "Jetson AGX Orin",
            ("agx-orin-64gb", "agx-orin-32gb", "agx-orin-industrial"),
            _ORIN_JETPACKS,
        ),
        _jetson("jetson-thor", "Jetson Thor", ("thor", "thor-t4000"), _THOR_JETPACKS),
        DeployTarget(
            name="x86-gpu",
            title="x86-64 computer with an NVIDIA GPU",
            machine="x86_64",
            backends=("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", *ON_CPU),
            pythons=PYTHONS,
            compiled=("pycuda",),
        ),
        DeployTarget(
            name="arm64-cpu",
            title="64-bit Arm computer",
            machine="aarch64",
            backends=ON_CPU,
            pythons=PYTHONS,
        ),
        DeployTarget(
            name="x86-cpu",
            title="x86-64 computer",
            machine="x86_64",
            backends=ON_CPU,
            pythons=PYTHONS,
        ),
    )
}
"""The targets of ``deploy`` by name."""


def get_target(name: str) -> DeployTarget:
    """A target of ``deploy``. Raises UsageError for an unknown name."""
    if name not in TARGETS:
        raise UsageError(f"There is no target {name!r}; the targets are {', '.join(TARGETS)}.")
    return TARGETS[name]


def find_jetpack(l4t: str) -> JetPack | None:
    """The release of JetPack that has a release of Jetson Linux, such as 36.4.3; None for one that is not listed."""
    return next((row for row in _TABLE if l4t in row.l4t), None)
