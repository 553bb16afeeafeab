"""The simulation in place of PyCUDA, cuda-python and what TensorRT-RTX would read from a file."""

import atexit
import importlib
import sys
import types

import pytest

from edge_effdet.backends.tensorrt import cuda
from tests.unit.backends.tensorrt.simulated_cuda import SimulatedDriver, SimulatedEngine, SimulatedGraphs


@pytest.fixture
def simulation(monkeypatch):
    """Fails at the end where something on the simulated GPU was not freed."""
    trt = pytest.importorskip("tensorrt_rtx")
    driver = SimulatedDriver()
    graphs = SimulatedGraphs(driver, importlib.import_module("cuda.bindings.driver"))
    engine = SimulatedEngine(driver, trt)
    monkeypatch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", graphs)
    runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda content: engine if content == b"good" else None)
    monkeypatch.setattr(trt, "Runtime", lambda log: runtime)
    at_exit = []
    monkeypatch.setattr(atexit, "register", at_exit.append)
    yield types.SimpleNamespace(driver=driver, graphs=graphs, engine=engine, runtime=runtime, at_exit=at_exit)
    cuda._retained_context.cache_clear()
    engine.contexts.clear()
    assert (driver.pushed, driver.pinned, driver.memory) == (0, 0, {})
    assert (driver.streams, driver.events, graphs.graphs, graphs.executables) == (0, 0, 0, 0)
    if driver.retained:
        for release in at_exit:
            release()
    assert driver.retained == 0
