"""NVIDIA's GPUs as NVML shows them, the library below ``nvidia-smi``. The package ``nvidia-ml-py`` brings the module ``pynvml``.

A quantity that a GPU or its driver does not tell is None: the GPU of a Jetson tells few of them.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_effdet.benchmarking.record import GpuDescription

_HOLDS = {
    0x4: "power limit of the GPU",
    0x8: "hardware slowdown of the GPU",
    0x10: "clock of a group of GPUs",
    0x20: "heat of the GPU",
    0x40: "heat of the GPU",
    0x80: "power brake of the GPU",
    0x100: "display clock of the GPU",
    0x200: "board limit of the GPU",
    0x400: "voltage limit of the GPU",
}
"""What holds a clock down, by the bit of nvmlClocksEventReasons in NVIDIA's nvml.h. Bits 0 and 1, an idle GPU and a clock that
somebody has set, hold nothing down."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """What a GPU shows at one moment.

    Attributes:
        mhz: the clock of its processors.
        celsius: its temperature.
        watts: the power that it draws.
        joules: the energy that it has used since the driver was loaded.
        holds: what holds its clock down, for people; None where it does not tell.
    """

    mhz: float | None = None
    celsius: float | None = None
    watts: float | None = None
    joules: float | None = None
    holds: tuple[str, ...] | None = None


def start_nvml(module: Any = None) -> Any:
    """The module ``pynvml`` with NVML started; None where the package, the driver or a GPU is missing. Its ``nvmlShutdown`` ends it.

    Args:
        module: what stands in for ``pynvml``.
    """
    return _start(module)[0]


def why_no_nvml(module: Any = None) -> str:
    """Why this machine's GPUs cannot be asked for although there may be some; empty where they can, or where there is no driver.

    Args:
        module: what stands in for ``pynvml``.
    """
    nvml, why = _start(module)
    if nvml is not None:
        nvml.nvmlShutdown()
    return why


def _start(module: Any) -> tuple[Any, str]:
    """What ``start_nvml`` gives, and what ``why_no_nvml`` does."""
    try:
        nvml = importlib.import_module("pynvml") if module is None else module
    except ImportError:
        return None, "the Python package nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        names = ("NVML_ERROR_LIBRARY_NOT_FOUND", "NVML_ERROR_DRIVER_NOT_LOADED")
        missing = [getattr(nvml, name, None) for name in names]
        return None, "" if getattr(error, "value", None) in missing else f"NVML failed ({error})"
    return nvml, ""


def describe_gpus(module: Any = None) -> tuple[GpuDescription, ...]:
    """The GPUs of this machine, in the order of their bus addresses; none where NVML does not work.

    Args:
        module: what stands in for ``pynvml``.
    """
    nvml = start_nvml(module)
    if nvml is None:
        return ()
    try:
        handles = [
            _ask(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(_ask(nvml, "nvmlDeviceGetCount") or 0)
        ]
        return tuple(_describe(nvml, handle) for handle in handles if handle is not None)
    finally:
        nvml.nvmlShutdown()


class NvmlGpu:
    """The first GPU that this process sees.

    Args:
        nvml: the module, as ``start_nvml`` gives it.
        environment: the environment variables, of which ``CUDA_VISIBLE_DEVICES`` chooses the GPU.
    """

    def __init__(self, nvml: Any, environment: Mapping[str, str] = os.environ) -> None:
        self._nvml = nvml
        self._handle = _first(nvml, environment.get("CUDA_VISIBLE_DEVICES", ""))
        # What is refused once is refused always, and asking in vain costs time at each sample.
        self._questions = {name: ask for name, ask in self._all_questions().items() if ask() is not None}

    def __bool__(self) -> bool:
        return bool(self._questions)

    def read(self) -> GpuState:
        """What it shows now."""
        told = {name: ask() for name, ask in self._questions.items()}
        holds = told.get("holds")
        return GpuState(
            mhz=_scaled(told.get("mhz"), 1),
            celsius=_scaled(told.get("celsius"), 1),
            watts=_scaled(told.get("milliwatts"), 1000),
            joules=_scaled(told.get("millijoules"), 1000),
            holds=None if holds is None else tuple(dict.fromkeys(name for bit, name in _HOLDS.items() if holds & bit)),
        )

    def _all_questions(self) -> dict[str, Callable[[], int | None]]:
        nvml, handle = self._nvml, self._handle
        if handle is None:
            return {}
        # Drivers before 535 know the older name of the two.
        newer = "nvmlDeviceGetCurrentClocksEventReasons"
        reasons = newer if _ask(nvml, newer, handle) is not None else "nvmlDeviceGetCurrentClocksThrottleReasons"
        return {
            "mhz": lambda: _ask(nvml, "nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
            "celsius": lambda: _ask(nvml, "nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
            "milliwatts": lambda: _ask(nvml, "nvmlDeviceGetPowerUsage", handle),
            "millijoules": lambda: _ask(nvml, "nvmlDeviceGetTotalEnergyConsumption", handle),
            "holds": lambda: _ask(nvml, reasons, handle),
        }


def _first(nvml: Any, visible: str) -> Any:
    chosen = visible.split(",")[0].strip()
    if chosen.startswith("GPU-"):
        return _ask(nvml, "nvmlDeviceGetHandleByUUID", chosen)
    return _ask(nvml, "nvmlDeviceGetHandleByIndex", int(chosen) if chosen.isdigit() else 0)


def _describe(nvml: Any, handle: Any) -> GpuDescription:
    cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    capability = _ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle)
    limit = _ask(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
    return GpuDescription(
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle)) or "unknown GPU",
        driver=_text(_ask(nvml, "nvmlSystemGetDriverVersion")),
        # 12060 is 12.6.
        cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        memory_bytes=None if memory is None else int(memory.total),
        compute_capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        power_limit_w=_scaled(limit, 1000),
    )


def _ask(nvml: Any, name: str, *arguments: Any) -> Any:
    """The answer; None where the driver refuses the question, or an old version of the package does not know it."""
    ask = getattr(nvml, name, None)
    try:
        return None if ask is None else ask(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _scaled(value: float | None, divisor: int) -> float | None:
    return None if value is None else value / divisor
