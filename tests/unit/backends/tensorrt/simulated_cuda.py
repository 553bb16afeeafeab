"""What stands for PyCUDA, cuda-python and a loaded engine where there is no GPU: memory is NumPy's, all that is held is counted.

Work on a stream is done at once, or, while the stream is captured, recorded and done at each launch of the graph.
"""

from __future__ import annotations

import threading
import time
import types

import numpy as np


class SimulatedDriver(types.ModuleType):
    """Stands for ``pycuda.driver``."""

    class Error(Exception):
        pass

    class MemoryError(Error):  # noqa: A001 - PyCUDA's name
        pass

    def __init__(self):
        super().__init__("pycuda.driver")
        self.memory = {}
        self.thread = threading.local()
        self.pushed = self.retained = self.pinned = self.allocations = self.streams = self.events = (
            self.synchronized
        ) = 0
        self.capacity = 1 << 30
        self.recording = {}
        self.lock = threading.RLock()
        self.Device = lambda index: SimulatedDevice(self)
        self.Device.count = lambda: 1

    def init(self):
        pass

    def require_current(self):
        assert getattr(self.thread, "depth", 0) > 0, "the context is not current on this thread"

    def put(self, stream, work):
        """Do a piece of work, or record it where the stream is being captured."""
        self.require_current()
        if stream.handle in self.recording:
            self.recording[stream.handle].append(work)
        else:
            work()

    def Stream(self, flags=0):  # noqa: N802 - PyCUDA's name
        assert flags == 1, "a blocking stream cannot be captured beside torch's"
        return SimulatedStream(self)

    def Event(self):  # noqa: N802 - PyCUDA's name
        return SimulatedEvent(self)

    def pagelocked_empty(self, size, dtype):
        self.require_current()
        self.pinned += 1
        return SimulatedPinned(self, size).view()

    def mem_alloc(self, size):
        self.require_current()
        if size > self.capacity:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return SimulatedMemory(self, size)

    def memcpy_htod_async(self, device, host, stream):
        source = host.reshape(-1).view(np.uint8)
        self.put(stream, lambda: np.copyto(device.content[: source.nbytes], source))

    def memcpy_dtoh_async(self, host, device, stream):
        target = host.reshape(-1).view(np.uint8)
        self.put(stream, lambda: np.copyto(target, device.content[: target.nbytes]))


class SimulatedDevice:
    def __init__(self, driver):
        self.driver = driver

    def name(self):
        return "simulated"

    def compute_capability(self):
        return 8, 6

    def retain_primary_context(self):
        self.driver.retained += 1
        return self

    def detach(self):
        self.driver.retained -= 1

    def push(self):
        with self.driver.lock:
            self.driver.pushed += 1
        self.driver.thread.depth = getattr(self.driver.thread, "depth", 0) + 1

    def pop(self):
        with self.driver.lock:
            self.driver.pushed -= 1
        self.driver.thread.depth -= 1


class SimulatedStream:
    def __init__(self, driver):
        driver.require_current()
        with driver.lock:
            driver.streams += 1
            self.handle = 7 + driver.allocations + driver.streams
        self.driver = driver

    def synchronize(self):
        self.driver.require_current()
        self.driver.synchronized += 1

    def __del__(self):
        self.driver.streams -= 1


class SimulatedEvent:
    def __init__(self, driver):
        driver.require_current()
        driver.events += 1
        self.driver, self.at = driver, None

    def record(self, stream):
        self.driver.put(stream, lambda: setattr(self, "at", time.perf_counter()))

    def synchronize(self):
        assert self.at is not None

    def time_since(self, start):
        return 1000 * (self.at - start.at)

    def __del__(self):
        self.driver.events -= 1


class SimulatedPinned(np.ndarray):
    def __new__(cls, driver, size):
        array = np.empty(size, np.uint8).view(cls)
        array.driver = driver
        return array

    def __array_finalize__(self, source):
        self.driver = getattr(source, "driver", None)

    def free(self):
        self.driver.require_current()
        self.driver.pinned -= 1


class SimulatedMemory:
    def __init__(self, driver, size):
        self.driver, self.content = driver, np.zeros(size, np.uint8)
        with driver.lock:
            driver.allocations += 1
            self.address = driver.allocations << 20
            driver.memory[self.address] = self

    def __int__(self):
        return self.address

    def free(self):
        self.driver.require_current()
        del self.driver.memory[self.address]


class SimulatedGraphs(types.ModuleType):
    """Stands for ``cuda.bindings.driver``. ``fails`` names a function that is to fail."""

    def __init__(self, driver, real):
        super().__init__("cuda.bindings.driver")
        self.driver, self.fails = driver, ""
        self.graphs = self.executables = self.launches = 0
        self.CUresult, self.CUstream, self.CUstreamCaptureMode = real.CUresult, real.CUstream, real.CUstreamCaptureMode

    def code(self, name):
        self.driver.require_current()
        return self.CUresult.CUDA_ERROR_NOT_SUPPORTED if name == self.fails else self.CUresult.CUDA_SUCCESS

    def cuStreamBeginCapture(self, stream, mode):  # noqa: N802 - CUDA's name
        assert mode == self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        code = self.code("cuStreamBeginCapture")
        if code == self.CUresult.CUDA_SUCCESS:
            self.driver.recording[int(stream)] = []
        return (code,)

    def cuStreamEndCapture(self, stream):  # noqa: N802 - CUDA's name
        recorded, code = self.driver.recording.pop(int(stream)), self.code("cuStreamEndCapture")
        if code != self.CUresult.CUDA_SUCCESS:
            return code, 0
        self.graphs += 1
        return code, SimulatedGraph(recorded)

    def cuGraphInstantiate(self, graph, flags):  # noqa: N802 - CUDA's name
        assert flags == 0
        code = self.code("cuGraphInstantiate")
        if code == self.CUresult.CUDA_SUCCESS:
            self.executables += 1
        return code, SimulatedGraph(graph.recorded)

    def cuGraphLaunch(self, executable, stream):  # noqa: N802 - CUDA's name
        code = self.code("cuGraphLaunch")
        self.launches += 1
        for work in executable.recorded:
            work()
        return (code,)

    def cuGraphDestroy(self, graph):  # noqa: N802 - CUDA's name
        self.graphs -= 1
        return (self.code(""),)

    def cuGraphExecDestroy(self, executable):  # noqa: N802 - CUDA's name
        self.executables -= 1
        return (self.code(""),)


class SimulatedGraph:
    def __init__(self, recorded):
        self.recorded = recorded

    def __int__(self):
        return 1


class SimulatedEngine:
    """Stands for a deserialized engine: ``out`` is ``images`` + 0.5. ``ranges`` are the batches of its profiles.

    A profiler is told of ``layers``, milliseconds by name, after each run; the inspector gives ``information``.
    """

    num_io_tensors = 2

    def __init__(self, driver, trt):
        self.driver, self.trt = driver, trt
        self.ranges = [(1, 1, 4)]
        self.shape = (-1, 3, 2, 2)
        self.contexts = []
        self.most_contexts = 99
        self.fails = self.uncapturable = False
        self.seconds = 0.0
        self.running = self.most_running = 0
        self.configs = []
        self.layers = {}
        self.information = '{"Layers": []}'

    @property
    def num_optimization_profiles(self):
        return len(self.ranges)

    def create_execution_context(self, config=None):
        self.driver.require_current()
        if len(self.contexts) >= self.most_contexts:
            return None
        self.configs.append(config)
        self.contexts.append(SimulatedContext(self))
        return self.contexts[-1]

    def create_engine_inspector(self):
        self.driver.require_current()
        return types.SimpleNamespace(
            get_engine_information=lambda form: {self.trt.LayerInformationFormat.JSON: self.information}[form]
        )

    def create_runtime_config(self):
        return SimulatedRuntimeConfig(self)

    def get_tensor_name(self, index):
        return ("images", "out")[index]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name == "images" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return self.trt.DataType.UINT8 if name == "images" else self.trt.DataType.FLOAT

    def get_tensor_shape(self, name):
        return self.trt.Dims(self.shape)

    def get_tensor_profile_shape(self, name, index):
        return [self.trt.Dims((batch, *self.shape[1:])) for batch in self.ranges[index]]


class SimulatedContext:
    def __init__(self, engine):
        self.engine, self.shape, self.addresses = engine, engine.shape, {}
        self.active_optimization_profile = 0
        self.profiler = None

    def set_optimization_profile_async(self, index, handle):
        self.active_optimization_profile = index
        return True

    def get_tensor_shape(self, name):
        return self.engine.trt.Dims(self.shape)

    def set_input_shape(self, name, shape):
        smallest, _, largest = self.engine.ranges[self.active_optimization_profile]
        self.shape = shape
        return smallest <= shape[0] <= largest

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle):
        engine, driver = self.engine, self.engine.driver
        if engine.fails or (engine.uncapturable and handle in driver.recording):
            return False
        images, out = (driver.memory[self.addresses[name]] for name in ("images", "out"))
        count = int(np.prod(self.shape))

        def work():
            with driver.lock:
                engine.running += 1
                engine.most_running = max(engine.most_running, engine.running)
            time.sleep(engine.seconds)
            values = images.content[:count].astype(np.float32) + np.float32(0.5)
            out.content[: 4 * count] = values.view(np.uint8)
            with driver.lock:
                engine.running -= 1
            for name, milliseconds in engine.layers.items() if self.profiler is not None else ():
                self.profiler.report_layer_time(name, milliseconds)

        driver.put(types.SimpleNamespace(handle=handle), work)
        return True


class SimulatedRuntimeConfig:
    """Stands for TensorRT-RTX's IRuntimeConfig and IRuntimeCache; a cache holds what was compiled, here the word kernels."""

    def __init__(self, engine):
        self.engine, self.cache, self.cuda_graph_strategy = engine, None, None

    def create_runtime_cache(self):
        return self

    def set_runtime_cache(self, cache):
        self.cache = cache
        return True

    def deserialize(self, content):
        return content == b"kernels"

    def serialize(self):
        return b"kernels"
