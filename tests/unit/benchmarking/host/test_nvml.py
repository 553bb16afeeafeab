"""GPUs by NVML, with a stand-in for its module."""

from __future__ import annotations

import pytest

from edge_effdet.benchmarking.host.nvml import GpuState, NvmlGpu, describe_gpus, start_nvml
from edge_effdet.benchmarking.record import GpuDescription
from tests.simulated_nvml import H200, ORIN, SimulatedNvml


def test_without_a_driver_there_are_no_gpus():
    assert start_nvml(SimulatedNvml(H200, works=False)) is None
    assert describe_gpus(SimulatedNvml(H200, works=False)) == ()
    assert describe_gpus(SimulatedNvml()) == ()


def test_what_the_gpu_of_a_jetson_refuses_is_none():
    assert describe_gpus(SimulatedNvml(ORIN)) == (GpuDescription(name="Orin (nvgpu)", driver="540.4.0"),)
    gpu = NvmlGpu(start_nvml(SimulatedNvml(ORIN)), {})
    assert not gpu and gpu.read() == GpuState()


def test_units():
    gpu = NvmlGpu(start_nvml(SimulatedNvml(H200)), {})
    assert gpu.read() == GpuState(mhz=1980, celsius=41, watts=120, joules=5000, holds=())


@pytest.mark.parametrize(
    ("bits", "holds"),
    [
        (0, ()),
        # An idle GPU, and a clock that somebody has set.
        (0x1 | 0x2, ()),
        (0x1 | 0x4, ("power limit of the GPU",)),
        (0x8 | 0x20 | 0x40, ("hardware slowdown of the GPU", "heat of the GPU")),
    ],
)
def test_what_holds_a_clock_down(bits: int, holds):
    nvml = SimulatedNvml({**H200, "nvmlDeviceGetCurrentClocksEventReasons": bits})
    assert NvmlGpu(nvml, {}).read().holds == holds


def test_an_older_driver_knows_the_older_name():
    old = {**H200, "nvmlDeviceGetCurrentClocksEventReasons": None, "nvmlDeviceGetCurrentClocksThrottleReasons": 0x4}
    assert NvmlGpu(SimulatedNvml(old), {}).read().holds == ("power limit of the GPU",)


def test_a_refused_question_is_not_asked_again():
    nvml = SimulatedNvml({**H200, "nvmlDeviceGetTotalEnergyConsumption": None})
    gpu = NvmlGpu(nvml, {})
    before = len(nvml.asked)
    assert gpu.read().joules is None
    assert "nvmlDeviceGetTotalEnergyConsumption" not in nvml.asked[before:]


@pytest.mark.parametrize(
    ("visible", "mhz"), [("", 1980), ("0", 1980), ("1,0", 1000), ("GPU-1", 1000), ("7", None), ("MIG-x", 1980)]
)
def test_the_gpu_is_the_first_that_cuda_may_use(visible: str, mhz):
    nvml = SimulatedNvml(H200, {**H200, "nvmlDeviceGetClockInfo": 1000})
    assert NvmlGpu(nvml, {"CUDA_VISIBLE_DEVICES": visible}).read().mhz == mhz
