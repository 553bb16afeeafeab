"""CUDA through PyCUDA: streams with their buffers and timers; CUDA graphs through cuda-python. No TensorRT in it.

Everything happens in the primary context of GPU 0, which torch and TensorRT use too. It is retained once a process and
current only inside ``primary_context()``, so that this code neither disturbs another library on the same thread nor
depends on the thread that came first. It goes with the process, as torch's does, and not with the last stream: PyCUDA's
``detach`` does nothing on a thread other than the one that retained the context, and on that one it leaves the released
context current (``src/cpp/cuda.hpp`` of 2026.1). What a stream holds is freed with the stream.

PyCUDA has no CUDA graphs. ``CudaStream.capture`` takes them from cuda-python (``cuda.bindings``), whose handles are those of
the same driver, and says why where it cannot.

Written against the documentation and sources of PyCUDA 2026.1 and cuda-python 13.5; ``tests/gpu`` runs it on any CUDA GPU.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import importlib
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np

from edge_effdet.backends.base import Unavailable
from edge_effdet.errors import BackendUnavailable, first_line

NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING. A stream that waits for the legacy default stream, on which torch works, could not be captured
while another thread uses torch."""


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
        return f"{self.name} (SM {self.sm})"

    @property
    def sm(self) -> str:
        """The compute capability without the point, as in ``87``."""
        major, minor = self.compute_capability
        return f"{major}{minor}"


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


class Closable(Protocol):
    def close(self) -> None: ...


@contextlib.contextmanager
def primary_context() -> Iterator[Any]:
    """Make the primary context of GPU 0 current on this thread, and give PyCUDA's driver module.

    Raises:
        BackendUnavailable: PyCUDA, the driver or the GPU is missing, or CUDA reported an error in the block.
    """
    driver = _find_driver()
    if isinstance(driver, Unavailable):
        raise BackendUnavailable(f"The GPU cannot be used: {driver.reason}; {driver.fix}.")
    try:
        context = _retained_context(driver)
        context.push()
        try:
            yield driver
        finally:
            context.pop()
    except driver.Error as error:
        raise _translate(driver, error) from error


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

    def upload(self, host: np.ndarray, stream: CudaStream) -> None:
        """Start copying what ``reserve`` returned to the device."""
        self._driver.memcpy_htod_async(self._device, host, stream.native)

    def download(self, host: np.ndarray, stream: CudaStream) -> None:
        """Start copying the device's tensor into what ``reserve`` returned."""
        self._driver.memcpy_dtoh_async(host, self._device, stream.native)

    def free(self) -> None:
        device, self._device = self._device, None
        host, self._host = self._host, None
        if device is not None:
            device.free()
        if host is not None:
            host.base.free()


class Timer:
    """Two events on a stream. The time between them is the GPU's own, without what the host does meanwhile."""

    def __init__(self, driver: Any, stream: Any) -> None:
        self._stream = stream
        self._start: Any = driver.Event()
        self._stop: Any = driver.Event()

    def start(self) -> None:
        self._start.record(self._stream)

    def stop(self) -> None:
        self._stop.record(self._stream)

    def milliseconds(self) -> float:
        """Between the last ``start`` and the last ``stop``; waits for the second."""
        self._stop.synchronize()
        return float(self._stop.time_since(self._start))

    def free(self) -> None:
        self._start = self._stop = self._stream = None


class CudaGraph:
    """Work of one stream that is launched as a whole. Bound to the addresses and shapes that it was captured with."""

    def __init__(self, api: Any, executable: Any, stream: Any) -> None:
        self._api = api
        self._executable = executable
        self._stream = stream

    def launch(self) -> None:
        """Put the work on the stream. Raises BackendUnavailable where CUDA refuses."""
        _call(self._api, self._api.cuGraphLaunch, self._executable, self._stream)

    def free(self) -> None:
        executable, self._executable = self._executable, None
        if executable is not None:
            self._api.cuGraphExecDestroy(executable)


class CudaStream:
    """A stream of GPU 0, with the buffers, timers and graphs that belong to it; a context manager that frees them all.

    One thread at a time may use it, any thread.

    Raises:
        BackendUnavailable: PyCUDA, the driver or the GPU is missing, or CUDA reports an error.
    """

    def __init__(self) -> None:
        self._owned: list[Buffer | Timer | CudaGraph] = []
        with primary_context() as driver:
            self._driver = driver
            self._native: Any = driver.Stream(NON_BLOCKING)
        close_at_exit(self)

    @property
    def native(self) -> Any:
        """PyCUDA's stream."""
        return self._native

    @property
    def handle(self) -> int:
        """The address of the CUstream, as TensorRT and cuda-python take it."""
        return int(self._native.handle)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current on this thread. Every use of the stream and of what belongs to it is inside.

        Raises:
            BackendUnavailable: CUDA reported an error in the block.
        """
        with primary_context():
            try:
                yield
            except BaseException:
                # A copy may still be under way to or from memory that the error's handler is about to free or refill.
                with contextlib.suppress(self._driver.Error):
                    self._native.synchronize()
                raise

    def new_buffer(self) -> Buffer:
        """A buffer that is freed with the stream. It holds nothing until its first ``reserve``."""
        return self._own(Buffer(self._driver))

    def new_timer(self) -> Timer:
        """A timer that is freed with the stream. Call it inside ``active``."""
        return self._own(Timer(self._driver, self._native))

    def synchronize(self) -> None:
        """Wait until the work on the stream is done. Call it inside ``active``."""
        self._native.synchronize()

    def capture(self, work: Callable[[], bool]) -> CudaGraph | Unavailable:
        """Record what ``work`` puts on the stream, without running it. Call it inside ``active``.

        Args:
            work: puts its work on this stream and nowhere else, and says whether it could. It should have run once
                before, so that whatever allocates on its first run has done so.

        Returns:
            A graph that is freed with the stream, or why there is none; then the stream is as usable as before.
        """
        api = _find_graph_api()
        if isinstance(api, Unavailable):
            return api
        stream = api.CUstream(self.handle)
        # Of this thread only: other threads may allocate meanwhile, and so may torch.
        mode = api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        captured: Any = None
        try:
            _call(api, api.cuStreamBeginCapture, stream, mode)
            try:
                accepted = work()
            finally:
                # Also after an error: a stream that is left capturing takes no other work.
                code, captured = api.cuStreamEndCapture(stream)
            if not accepted:
                return Unavailable("what runs on the stream refuses to be captured", "run it without a CUDA graph")
            _check(api, "cuStreamEndCapture", code)
            (executable,) = _call(api, api.cuGraphInstantiate, captured, 0)
        # cuda-python raises RuntimeError for a function that the driver lacks, as an older one may.
        except (BackendUnavailable, RuntimeError, self._driver.Error) as error:
            return Unavailable(first_line(error), "run it without a CUDA graph")
        finally:
            if captured is not None and int(captured):
                api.cuGraphDestroy(captured)
        return self._own(CudaGraph(api, executable, stream))

    def discard(self, owned: Buffer | Timer | CudaGraph) -> None:
        """Free one thing before the stream is closed. Call it inside ``active``."""
        self._owned.remove(owned)
        owned.free()

    def close(self) -> None:
        """Free all that belongs to the stream, and the stream. A second call does nothing."""
        if self._native is None:
            return
        with self.active():
            with contextlib.suppress(self._driver.Error):
                self._native.synchronize()
            # A graph refers to the buffers that were made before it.
            while self._owned:
                self._owned.pop().free()
            self._native = None

    def __enter__(self) -> CudaStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _own(self, owned: Any) -> Any:
        self._owned.append(owned)
        return owned


def close_at_exit(held: Closable) -> None:
    """Close it when the process ends, should it still be there: before the context goes, and the last one first."""
    _held[id(held)] = held


_held: weakref.WeakValueDictionary[int, Closable] = weakref.WeakValueDictionary()


@functools.cache
def _retained_context(driver: Any) -> Any:
    context = driver.Device(0).retain_primary_context()

    def release() -> None:
        for held in list(_held.values())[::-1]:
            with contextlib.suppress(BackendUnavailable):
                held.close()
        # Left to PyCUDA's destructor, it is released by the call for other contexts, which fails and says so on stderr.
        context.detach()

    atexit.register(release)
    return context


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


def _find_graph_api() -> Any:
    """The module ``cuda.bindings.driver``, or Unavailable."""
    try:
        return importlib.import_module("cuda.bindings.driver")
    # A compiled module may fail in any way while it is loaded.
    except Exception as error:
        return Unavailable(
            f"cuda-python cannot be imported ({first_line(error)})",
            "run pip install cuda-bindings, of the CUDA version that the driver has",
        )


def _call(api: Any, function: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """Call a function of cuda-python and return what follows the status. Raises BackendUnavailable for an error."""
    code, *values = function(*arguments)
    _check(api, function.__name__, code)
    return tuple(values)


def _check(api: Any, name: str, code: Any) -> None:
    if code != api.CUresult.CUDA_SUCCESS:
        raise BackendUnavailable(f"CUDA failed ({name}: {code.name}); check the GPU and its driver with nvidia-smi.")


def _translate(driver: Any, error: BaseException) -> BackendUnavailable:
    if isinstance(error, driver.MemoryError):
        return BackendUnavailable(
            f"The GPU's memory is full ({first_line(error)}); close other programs on it or use a smaller batch."
        )
    return BackendUnavailable(f"CUDA failed ({first_line(error)}); check the GPU and its driver with nvidia-smi.")
