"""CUDA without a GPU: what is used of cuda-python exists; streams, buffers, timers and graphs on a simulation.

``tests/gpu`` has the same on a GPU.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import sys
import threading

import numpy as np
import pytest

from edge_effdet.backends.base import Unavailable
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.errors import BackendUnavailable

FLOAT32 = np.dtype(np.float32)


def functions_used():
    """Each ``api.name`` in the module's source, with how many results a call of it is unpacked into, or None."""
    used = {}
    for node in ast.walk(ast.parse(inspect.getsource(cuda))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "api":
            used.setdefault(node.attr, None)
        if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Call):
            continue
        names = [part.attr for part in ast.walk(node.value) if isinstance(part, ast.Attribute)]
        called = [name for name in names if name.startswith("cu")]
        if called and isinstance(node.targets[0], ast.Tuple):
            # _call takes the status away.
            used[called[0]] = len(node.targets[0].elts) + isinstance(node.value.func, ast.Name)
    return used


def documented_results(function):
    """How many values a function of cuda-python returns: the entries of its docstring's Returns, which is generated."""
    section = re.split(r"\n\n", function.__doc__.split("Returns\n-------\n")[1])[0]
    return len([line for line in section.splitlines() if not line.startswith(" ")])


def test_all_that_is_used_of_cuda_python_is_in_the_bindings():
    real = importlib.import_module("cuda.bindings.driver")
    used = functions_used()
    used |= dict.fromkeys(("cuGraphLaunch", "cuGraphExecDestroy"))
    assert {"cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate", "CUstream", "CUresult"} <= set(used)
    assert [name for name in used if not hasattr(real, name)] == []
    assert hasattr(real.CUstreamCaptureMode, "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL")
    assert hasattr(real.CUresult, "CUDA_SUCCESS")
    counted = {name: (documented_results(getattr(real, name)), count) for name, count in used.items() if count}
    assert counted == {"cuStreamEndCapture": (2, 2), "cuGraphInstantiate": (2, 2)}
    # A stream's address is all that PyCUDA and cuda-python share, and a null graph is told by its address.
    assert int(real.CUstream(7)) == 7
    assert int(real.CUgraph()) == 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("cuStreamBeginCapture", 2),
        ("cuStreamEndCapture", 1),
        ("cuGraphInstantiate", 2),
        ("cuGraphLaunch", 2),
        ("cuGraphDestroy", 1),
        ("cuGraphExecDestroy", 1),
    ],
)
def test_the_bindings_take_as_many_arguments(name, arguments):
    """An older cuGraphInstantiate took four."""
    signature = inspect.signature(getattr(importlib.import_module("cuda.bindings.driver"), name))
    assert len(signature.parameters) == arguments


def test_probe_without_pycuda(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    answer = cuda.probe_gpu()
    assert isinstance(answer, Unavailable)
    assert "pycuda" in answer.reason
    with pytest.raises(BackendUnavailable, match=r"pycuda.*pip install"):
        cuda.CudaStream()


def test_a_driver_that_does_not_start_is_reported(simulation, monkeypatch):
    def fail():
        raise simulation.driver.Error("cuInit failed: no CUDA-capable device is detected")

    monkeypatch.setattr(simulation.driver, "init", fail)
    answer = cuda.probe_gpu()
    assert isinstance(answer, Unavailable)
    assert "no CUDA-capable device" in answer.reason
    assert "nvidia-smi" in answer.fix


def test_simulated_buffers_grow_and_keep_what_fits(simulation):
    with cuda.CudaStream() as stream, stream.active():
        buffer = stream.new_buffer()
        host = buffer.reserve((2, 3), FLOAT32)
        host[...] = np.arange(6).reshape(2, 3)
        buffer.upload(host, stream)
        host[...] = 0
        buffer.download(host, stream)
        np.testing.assert_array_equal(host, np.arange(6).reshape(2, 3))
        address = buffer.address
        buffer.reserve((1, 3), FLOAT32)
        assert buffer.address == address
        buffer.reserve((9, 3), FLOAT32)
        assert buffer.address != address
        assert len(simulation.driver.memory) == simulation.driver.pinned == 1


def test_simulated_timers_measure_the_stream(simulation):
    with cuda.CudaStream() as stream, stream.active():
        timer = stream.new_timer()
        timer.start()
        timer.stop()
        assert 0 <= timer.milliseconds() < 1000


def make_copy(stream):
    """A buffer of four numbers, its host side, and the work of doubling them by way of the device, for capture."""
    buffer = stream.new_buffer()
    host = buffer.reserve((4,), FLOAT32)

    def work():
        buffer.upload(host, stream)
        buffer.download(host, stream)
        return True

    return buffer, host, work


def test_simulated_graph_does_its_work_at_each_launch(simulation):
    with cuda.CudaStream() as stream, stream.active():
        buffer, host, _ = make_copy(stream)
        host[...] = 1
        graph = stream.capture(lambda: buffer.upload(host, stream) or True)
        assert isinstance(graph, cuda.CudaGraph)
        assert not simulation.driver.memory[buffer.address].content.any()
        for value in (2, 3):
            host[...] = value
            graph.launch()
            np.testing.assert_array_equal(simulation.driver.memory[buffer.address].content.view(np.float32), value)
        assert simulation.graphs.graphs == 0
        stream.discard(graph)
        assert simulation.graphs.executables == 0


@pytest.mark.parametrize("name", ["cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiate"])
def test_simulated_capture_that_fails_says_why_and_leaves_the_stream_usable(simulation, name):
    simulation.graphs.fails = name
    with cuda.CudaStream() as stream, stream.active():
        _, host, work = make_copy(stream)
        answer = stream.capture(work)
        assert isinstance(answer, Unavailable)
        assert name in answer.reason
        assert "CUDA_ERROR_NOT_SUPPORTED" in answer.reason
        host[...] = 5
        assert work()
        np.testing.assert_array_equal(host, 5)


def test_simulated_capture_of_work_that_refuses_or_breaks(simulation):
    with cuda.CudaStream() as stream, stream.active():
        answer = stream.capture(lambda: False)
        assert isinstance(answer, Unavailable)
        assert "refuses" in answer.reason
        with pytest.raises(ZeroDivisionError):
            stream.capture(lambda: bool(1 // 0))
        assert simulation.driver.recording == {}


def test_simulated_capture_without_cuda_python(simulation, monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    with cuda.CudaStream() as stream, stream.active():
        answer = stream.capture(lambda: True)
    assert isinstance(answer, Unavailable)
    assert "cuda-bindings" in answer.fix


def test_simulated_capture_with_a_driver_that_is_too_old(simulation, monkeypatch):
    def fail(stream, mode):
        raise RuntimeError('Function "cuStreamBeginCapture_v2" not found')

    monkeypatch.setattr(simulation.graphs, "cuStreamBeginCapture", fail)
    with cuda.CudaStream() as stream, stream.active():
        answer = stream.capture(lambda: True)
    assert isinstance(answer, Unavailable)
    assert "not found" in answer.reason


def test_simulated_launch_that_fails_is_an_error(simulation):
    with cuda.CudaStream() as stream:
        with stream.active():
            graph = stream.capture(lambda: True)
        simulation.graphs.fails = "cuGraphLaunch"
        with pytest.raises(BackendUnavailable, match=r"cuGraphLaunch: CUDA_ERROR_NOT_SUPPORTED"), stream.active():
            graph.launch()


def test_simulated_errors_wait_for_the_stream_and_free_everything(simulation):
    simulation.driver.capacity = 8
    with pytest.raises(BackendUnavailable, match="memory is full"), cuda.CudaStream() as stream:
        before = simulation.driver.synchronized
        with stream.active():
            stream.new_buffer().reserve((4,), FLOAT32)
    assert simulation.driver.synchronized > before
    stream.close()


def test_simulated_stream_is_used_and_closed_on_other_threads(simulation):
    stream = cuda.CudaStream()
    found = []

    def use():
        with stream.active():
            _, host, work = make_copy(stream)
            host[...] = 7
            found.append(work() and host.tolist())

    for task in (use, stream.close):
        thread = threading.Thread(target=task)
        thread.start()
        thread.join()
    assert found == [[7, 7, 7, 7]]
    assert simulation.driver.retained == 1


def test_simulated_context_is_current_only_inside(simulation):
    with cuda.CudaStream() as stream:
        assert simulation.driver.thread.depth == 0
        with stream.active(), stream.active():
            assert simulation.driver.thread.depth == 2
        assert simulation.driver.thread.depth == 0
