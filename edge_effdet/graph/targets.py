"""The rates and bandwidth of each target, for the cost model in ``cost.py``.

The facts of the hardware (multiprocessors, clock, bandwidth, and what a tensor core does in a clock) are those of ``device.targets``, whose
rows name their sources. From them the rates follow: multiprocessors x cores x operations a clock x clock.

Rates are peaks in TFLOPS or TOPS, where a multiply-accumulate is two operations. They are **dense** rates: the TOPS that NVIDIA
advertises for Ampere and later count structured sparsity, which doubles them and which these networks do not have. A Jetson is taken
to run at the highest clock of its power modes. In a lower mode the rates are lower, a kernel's fixed cost is higher, and the decision
may differ. TensorRT uses TF32 for FP32 from Ampere on. On CUDA cores INT8 is taken to be as fast as FP32; there the rates bound depthwise
convolutions alone, whose time is limited by memory on every target, so they decide nothing.

``efficiency`` and ``launch_us`` of every row are *estimated*. TensorRT reaches a third of the peak with ResNet-50 at INT8 on a T4
(about 5600 images/s of 8.2 GOP against 130 TOPS; MLPerf Inference v0.5, from memory). ``launch_us`` is the part of a kernel's time,
inside a CUDA graph, that does not shrink with its size: about 1 us to hand the kernel out, and 1 to 2 us until its first loads are
back and its last block has ended; more at Orin's lower clock. None of these was measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edge_effdet.device.targets import HARDWARE, MULTIPROCESSORS, Hardware
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

_LAUNCH_US = {(7, 5): 2.5, (8, 7): 3.0, (8, 9): 2.0, (11, 0): 2.5}
_GPU_EFFICIENCY = 0.35

_CPU = Target(
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
)


def _gpu_target(hardware: Hardware) -> Target:
    core = MULTIPROCESSORS[hardware.compute_capability]
    # Multiprocessors x MHz is millions of clocks a second; a millionth of that times operations is TFLOPS.
    clocks = hardware.multiprocessors * hardware.gpu_mhz / 1e6
    fp32 = clocks * core.cuda_cores * 2
    tensor = clocks * core.tensor_cores
    return Target(
        f"{hardware.title} ({hardware.mode}, {hardware.gpu_mhz} MHz)" if hardware.mode else hardware.title,
        compute_capability=hardware.compute_capability,
        multiprocessors=hardware.multiprocessors,
        matrix=Rates(fp32=tensor * core.tf32 if core.tf32 else fp32, fp16=tensor * core.fp16, int8=tensor * core.int8),
        vector=Rates(fp32=fp32, fp16=fp32 * core.vector_fp16, int8=fp32),
        bandwidth=hardware.bandwidth,
        launch_us=_LAUNCH_US[hardware.compute_capability],
        efficiency=_GPU_EFFICIENCY,
        granule=TENSOR_CORES,
        source=f"{hardware.source}. Of its multiprocessors: {core.source}. The rates are derived",
    )


TARGETS: Mapping[str, Target] = {name: _gpu_target(hardware) for name, hardware in HARDWARE.items()} | {"cpu": _CPU}


def get_target(name: str) -> Target:
    """A row of ``TARGETS``. Raises UsageError for an unknown name."""
    if name not in TARGETS:
        raise UsageError(f"There is no target {name!r}, so its speed is unknown; the targets are {', '.join(TARGETS)}.")
    return TARGETS[name]
