"""CUDA through PyCUDA: the primary context of GPU 0, one stream, pinned and device memory, events. No TensorRT in it.

Written against PyCUDA's documentation and the source of 2026.1; it has never run on a GPU.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from edge_effdet.backends.base import Unavailable
from edge_effdet.errors import BackendUnavailable, first_line


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as the driver spells it.
        compute_capability: major and minor, (8, 7) for Orin.
    """

    name: str
    compute_capability: tuple[int, int]

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} (SM {major}{minor})"


def probe_gpu() -> Gpu | Unavailable:
    """The first GPU, or why there is none to be had. Never raises, and leaves no context behind."""
    found = _find_driver()
    if isinstance(found, Unavailable):
        return found
    try:
        device = found.Device(0)
        major, minor = device.compute_capability()
        return Gpu(device.name(), (major, minor))
    except found.Error as error:
        return Unavailable(f"the GPU does not answer ({first_line(error)})", "check it with nvidia-smi")


class Buffer:
    """One tensor's memory: pinned on the host and as much on the device. Grows when asked for more, never shrinks."""

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._host: Any = None
        self._device: Any = None

    @property
    def address(self) -> int:
        """Where the tensor lies on the device. Changes when the buffer grows."""
        return int(self._device)

    def reserve(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
        """Make room for a tensor. The result is the pinned host side, valid until the next ``reserve`` or ``free``."""
        size = max(1, math.prod(shape) * dtype.itemsize)
        if self._host is None or self._device is None or self._host.nbytes < size:
            self.free()
            self._host = self._driver.pagelocked_empty(size, np.uint8)
            self._device = self._driver.mem_alloc(size)
        return self._host[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def upload(self, host: np.ndarray, stream: Any) -> None:
        """Start copying what ``reserve`` returned to the device."""
        self._driver.memcpy_htod_async(self._device, host, stream)

    def download(self, host: np.ndarray, stream: Any) -> None:
        """Start copying the device's tensor into what ``reserve`` returned."""
        self._driver.memcpy_dtoh_async(host, self._device, stream)

    def free(self) -> None:
        device, self._device = self._device, None
        host, self._host = self._host, None
        if device is not None:
            device.free()
        if host is not None:
            host.base.free()


class CudaSession:
    """A stream on the primary context of GPU 0, and the buffers that it copies; a context manager that frees them.

    The primary context is the one that TensorRT and torch use too. It is current only inside ``active``, so that a
    session neither disturbs another library on this thread nor depends on the thread that opened it.

    Raises:
        BackendUnavailable: PyCUDA, the driver or the GPU is missing, or CUDA reports an error.
    """

    def __init__(self) -> None:
        driver = _find_driver()
        if isinstance(driver, Unavailable):
            raise BackendUnavailable(f"The GPU cannot be used: {driver.reason}; {driver.fix}.")
        self._driver = driver
        self._buffers: list[Buffer] = []
        self._stream: Any = None
        try:
            self._context: Any = driver.Device(0).retain_primary_context()
        except driver.Error as error:
            raise _translate(driver, error) from error
        try:
            with self.active():
                self._stream = driver.Stream()
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> Any:
        """PyCUDA's stream; its ``handle`` is the address of the CUstream."""
        return self._stream

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current on this thread. Every use of the stream and the buffers belongs inside.

        Raises:
            BackendUnavailable: CUDA reported an error in the block.
        """
        self._context.push()
        try:
            yield
        except BaseException as error:
            # A copy may still be under way to or from memory that the error's handler is about to free or refill.
            if self._stream is not None:
                with contextlib.suppress(self._driver.Error):
                    self._stream.synchronize()
            if isinstance(error, self._driver.Error):
                raise _translate(self._driver, error) from error
            raise
        finally:
            self._context.pop()

    def new_buffer(self) -> Buffer:
        """A buffer that is freed with the session. It holds nothing until its first ``reserve``."""
        self._buffers.append(Buffer(self._driver))
        return self._buffers[-1]

    def record(self) -> Any:
        """An event at the stream's present end."""
        event = self._driver.Event()
        event.record(self._stream)
        return event

    def milliseconds(self, start: Any, end: Any) -> float:
        """The time on the GPU between two recorded events; waits for the second."""
        end.synchronize()
        return float(end.time_since(start))

    def close(self) -> None:
        """Free the buffers and the stream and let go of the context. A second call does nothing."""
        if self._context is None:
            return
        context = self._context
        try:
            with self.active():
                for buffer in self._buffers:
                    buffer.free()
                self._stream = None
        finally:
            self._buffers.clear()
            self._context = None
            context.detach()

    def __enter__(self) -> CudaSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _find_driver() -> Any:
    """The module ``pycuda.driver``, initialised and with a GPU, or Unavailable."""
    install = "run pip install pycuda on a machine with CUDA's toolkit, which it is compiled with"
    try:
        driver = importlib.import_module("pycuda.driver")
    except ModuleNotFoundError as error:
        if error.name == "pycuda":
            return Unavailable("the Python package pycuda is not installed", install)
        return Unavailable(f"the Python package pycuda cannot be loaded ({first_line(error)})", install)
    # A compiled module may fail in any way while it is loaded, and a probe answers all of them.
    except Exception as error:
        return Unavailable(
            f"the Python package pycuda cannot be loaded ({first_line(error)})",
            "install NVIDIA's driver (libcuda.so.1), and reinstall pycuda if CUDA has changed since",
        )
    try:
        driver.init()
        count = driver.Device.count()
    except driver.Error as error:
        return Unavailable(
            f"CUDA does not start ({first_line(error)})",
            "check the driver and the GPU with nvidia-smi, and that a container is given the GPU",
        )
    if count == 0:
        return Unavailable("this machine has no GPU that CUDA can use", "run on a machine with an NVIDIA GPU")
    return driver


def _translate(driver: Any, error: BaseException) -> BackendUnavailable:
    if isinstance(error, driver.MemoryError):
        return BackendUnavailable(
            f"The GPU's memory is full ({first_line(error)}); close other programs on it or use a smaller batch."
        )
    return BackendUnavailable(f"CUDA failed ({first_line(error)}); check the GPU and its driver with nvidia-smi.")
