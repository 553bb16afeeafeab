"""Stands in for ``pynvml`` where there is no NVIDIA driver: the names and units of nvidia-ml-py 12.535 and later."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

H200 = {
    "nvmlDeviceGetName": "NVIDIA H200",
    "nvmlSystemGetDriverVersion": "570.86.15",
    "nvmlSystemGetCudaDriverVersion_v2": 12080,
    "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=150754820096, used=0, free=150754820096),
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetEnforcedPowerLimit": 700_000,
    "nvmlDeviceGetClockInfo": 1980,
    "nvmlDeviceGetTemperature": 41,
    "nvmlDeviceGetPowerUsage": 120_000,
    "nvmlDeviceGetTotalEnergyConsumption": 5_000_000,
    "nvmlDeviceGetCurrentClocksEventReasons": 0,
    "nvmlDeviceGetCurrentClocksThrottleReasons": 0,
}
"""What a GPU of a server answers to each question."""

ORIN = {"nvmlDeviceGetName": b"Orin (nvgpu)", "nvmlSystemGetDriverVersion": b"540.4.0"}
"""What the GPU of a Jetson with JetPack 6 answers: nothing that can be measured, and texts as older versions of the package have them."""


class SimulatedNvml:
    """A driver with some GPUs, each of which answers what its table says and refuses all else.

    Attributes:
        gpus: the tables; they may be changed while it runs.
        started: how often it was started and not ended.
        asked: the names of the functions that were called.
    """

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: Mapping[str, Any], works: bool = True) -> None:
        self.gpus = [dict(gpu) for gpu in gpus]
        self.works = works
        self.started = 0
        self.asked: list[str] = []

    def nvmlInit(self):  # noqa: N802
        if not self.works:
            raise self.NVMLError("Driver Not Loaded")
        self.started += 1

    def nvmlShutdown(self):  # noqa: N802
        self.started -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int):  # noqa: N802
        if not 0 <= index < len(self.gpus):
            raise self.NVMLError("Invalid Argument")
        return index

    def nvmlDeviceGetHandleByUUID(self, uuid: str):  # noqa: N802
        return int(uuid.removeprefix("GPU-"))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml"):
            raise AttributeError(name)

        def ask(*arguments: int):
            self.asked.append(name)
            table = self.gpus[arguments[0] if arguments else 0]
            if table.get(name) is None:
                raise self.NVMLError("Not Supported")
            return table[name]

        return ask
