"""The rates and bandwidth of each target, for the cost model in ``cost.py``.

Rates are peaks in TFLOPS or TOPS, where a multiply-accumulate is two operations. They are **dense** rates: the TOPS that NVIDIA
advertises for Ampere and later count structured sparsity, which doubles them and which these networks do not have. A Jetson is taken
to run at the highest clock of its power modes. In a lower mode the rates are lower, a kernel's fixed cost is higher, and the decision
may differ.

Each row names the document behind its figures. Three kinds of figures are less certain than a data sheet:

- *Derived* figures are multiprocessors x operations per clock x clock. The INT8 rate of a tensor core of Ampere, Ada or Turing is
  twice its FP16 rate. TF32, which TensorRT uses for FP32 from Ampere on, has half the FP16 rate; Turing has no TF32. Orin's GPU
  (SM 87) does 1024 INT8 operations per clock and tensor core, which agrees with the 170 sparse TOPS that its technical brief states.
- Figures *from memory* were not looked up again: the bandwidth of Orin NX and Thor, Thor's TF32 and INT8 rates (INT8 is taken to be
  as fast as FP8), and the FP16 rate of CUDA cores on Orin and Thor, taken to be twice the FP32 rate. The last one bounds depthwise
  convolutions alone, whose time at FP16 is limited by memory on every target, so it decides nothing.
- *Estimated* are ``efficiency`` and ``launch_us`` of every row. TensorRT reaches a third of the peak with ResNet-50 at INT8 on a T4
  (about 5600 images/s of 8.2 GOP against 130 TOPS; MLPerf Inference v0.5, from memory). ``launch_us`` is the part of a kernel's time,
  inside a CUDA graph, that does not shrink with its size: about 1 us to hand the kernel out, and 1 to 2 us until its first loads are
  back and its last block has ended; more at Orin's lower clock. None of these was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_effdet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Rates:
    """One number for each precision."""

    fp32: float
    fp16: float
    int8: float

    def at(self, precision: str) -> float:
        """The number of ``fp32``, ``fp16`` or ``int8``."""
        return {"fp32": self.fp32, "fp16": self.fp16, "int8": self.int8}[precision]


@dataclass(frozen=True, slots=True)
class Target:
    """A machine as the cost model sees it.

    Attributes:
        title: the name of the machine for people.
        compute_capability: the GPU's compute capability, major and minor; None for a CPU.
        multiprocessors: how many streaming multiprocessors the GPU has, or how many cores the CPU.
        matrix: the peak rate of dense and pointwise convolutions, TFLOPS or TOPS: of tensor cores where they support the precision.
        vector: the peak rate of depthwise convolutions, TFLOPS or TOPS: of CUDA cores.
        bandwidth: the peak bandwidth of memory, GB/s.
        launch_us: the fixed time of a kernel, microseconds.
        efficiency: the share of ``matrix`` and ``vector`` that convolutions of this size reach.
        granule: the multiple to which a kernel pads the number of channels.
        source: where the figures come from.
    """

    title: str
    compute_capability: tuple[int, int] | None
    multiprocessors: int
    matrix: Rates
    vector: Rates
    bandwidth: float
    launch_us: float
    efficiency: float
    granule: Rates
    source: str


TENSOR_CORES = Rates(fp32=4, fp16=8, int8=32)
"""The channels that TensorRT's vectorized formats pad to: FP16 ``channel % 8 == 0``, INT8 ``NC/32HW32``; four TF32 numbers fill 16 bytes."""

TARGETS: Mapping[str, Target] = {
    "orin-nano-8gb": Target(
        "Jetson Orin Nano 8 GB (MAXN SUPER, 1020 MHz)",
        compute_capability=(8, 7),
        multiprocessors=8,
        matrix=Rates(fp32=8.4, fp16=16.7, int8=33.4),
        vector=Rates(fp32=2.1, fp16=4.2, int8=2.1),
        bandwidth=102,
        launch_us=3.0,
        efficiency=0.35,
        granule=TENSOR_CORES,
        source="NVIDIA Jetson Orin Nano Series data sheet, DS-11105-001 (1024 CUDA and 32 tensor cores, 20 dense INT8 TOPS at "
        "625 MHz, 68 GB/s); Jetson Orin Nano Super Developer Kit data sheet (67 sparse TOPS, 1020 MHz, 102 GB/s); rest derived",
    ),
    "orin-nx-16gb": Target(
        "Jetson Orin NX 16 GB (918 MHz)",
        compute_capability=(8, 7),
        multiprocessors=8,
        matrix=Rates(fp32=7.5, fp16=15.0, int8=30.1),
        vector=Rates(fp32=1.9, fp16=3.8, int8=1.9),
        bandwidth=102,
        launch_us=3.0,
        efficiency=0.35,
        granule=TENSOR_CORES,
        source="NVIDIA Jetson Orin NX Series data sheet (100 sparse TOPS, of which the GPU has 60 and the DLAs, unused here, the "
        "rest); CUDA's deviceQuery of one (8 SMs, 918 MHz); rest derived",
    ),
    "agx-orin-64gb": Target(
        "Jetson AGX Orin 64 GB (MAXN, 1300 MHz)",
        compute_capability=(8, 7),
        multiprocessors=16,
        matrix=Rates(fp32=21.3, fp16=42.6, int8=85),
        vector=Rates(fp32=5.3, fp16=10.6, int8=5.3),
        bandwidth=204.8,
        launch_us=3.0,
        efficiency=0.35,
        granule=TENSOR_CORES,
        source="NVIDIA Jetson AGX Orin Series technical brief v1.2 (16 SMs, 64 tensor cores, 5.3 FP32 TFLOPS, 170 sparse INT8 "
        "TOPS of the GPU, 204.8 GB/s); rest derived",
    ),
    "thor": Target(
        "Jetson AGX Thor T5000 (1575 MHz)",
        compute_capability=(11, 0),
        multiprocessors=20,
        matrix=Rates(fp32=129, fp16=258, int8=517),
        vector=Rates(fp32=8.1, fp16=16.1, int8=8.1),
        bandwidth=273,
        launch_us=2.5,
        efficiency=0.35,
        granule=TENSOR_CORES,
        source="NVIDIA Jetson Thor Series Modules data sheet (2560 CUDA cores, 2070 sparse FP4 TFLOPS, an eighth of which is FP16 "
        "dense); 20 SMs as its driver reports; rest derived or from memory",
    ),
    "t4": Target(
        "Tesla T4",
        compute_capability=(7, 5),
        multiprocessors=40,
        matrix=Rates(fp32=8.1, fp16=65, int8=130),
        vector=Rates(fp32=8.1, fp16=16.2, int8=8.1),
        bandwidth=320,
        launch_us=2.5,
        efficiency=0.35,
        granule=TENSOR_CORES,
        source="NVIDIA T4 Tensor Core GPU data sheet (8.1 / 65 / 130, 320 GB/s); CUDA C++ Programming Guide, table of arithmetic "
        "throughput (FP16 on CUDA cores at twice FP32 for 7.x). At 70 W it seldom holds its boost clock",
    ),
    "rtx-4090": Target(
        "GeForce RTX 4090",
        compute_capability=(8, 9),
        multiprocessors=128,
        matrix=Rates(fp32=82.6, fp16=165.2, int8=660.6),
        vector=Rates(fp32=82.6, fp16=82.6, int8=82.6),
        bandwidth=1008,
        launch_us=2.0,
        efficiency=0.35,
        granule=TENSOR_CORES,
        source="NVIDIA Ada GPU Architecture whitepaper v2, appendix on the RTX 4090 (FP16 with FP32 accumulation, dense)",
    ),
    "cpu": Target(
        "two cores with AVX2 or AVX-512, without VNNI",
        compute_capability=None,
        multiprocessors=2,
        matrix=Rates(fp32=0.176, fp16=0.176, int8=0.176),
        vector=Rates(fp32=0.176, fp16=0.176, int8=0.176),
        bandwidth=20,
        launch_us=5.0,
        efficiency=0.6,
        granule=Rates(fp32=16, fp16=16, int8=16),
        source="a 2048 x 2048 matrix product measured on two AVX-512 cores; onnxruntime computes FP16 as FP32 there; INT8 taken as "
        "FP32, though a convolution alone is up to twice as fast and a network with its Q/DQ slower; rest estimated. CPUs "
        "differ, so decide() measures on a CPU, and this row is for comparison",
    ),
}


def get_target(name: str) -> Target:
    """A row of ``TARGETS``. Raises UsageError for an unknown name."""
    if name not in TARGETS:
        raise UsageError(f"There is no target {name!r}, so its speed is unknown; the targets are {', '.join(TARGETS)}.")
    return TARGETS[name]
