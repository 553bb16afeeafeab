"""The runner with the real PyCUDA and cuda-python on the stand-in for NVIDIA's driver, and an engine that adds a half.

Only ``simulated_driver/build.py`` brings these to run; on a GPU ``test_tensorrt_runner`` has the real engines.
"""

from __future__ import annotations

import ctypes
import types
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge_effdet.artifacts import Engine, ModelSpec
from edge_effdet.backends.base import LoadOptions
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.backends.tensorrt.runner import TensorRTRunner
from edge_effdet.errors import InputError
from tests.unit.backends.tensorrt.simulated_cuda import SimulatedContext, SimulatedEngine
from tests.unit.backends.tensorrt.test_runner import TENSORRT, images_of

GPU = cuda.probe_gpu()
if getattr(GPU, "name", "") != "simulated driver":
    pytest.skip("not on the simulated driver", allow_module_level=True)
HALF = np.float32(0.5)


class DriverContext(SimulatedContext):
    """Puts its work on the driver's stream, which records it while the stream is captured."""

    def execute_async_v3(self, handle):
        library = ctypes.CDLL("libcuda.so.1")
        pointers = [ctypes.c_void_p(value) for value in (handle, self.addresses["out"], self.addresses["images"])]
        return library.simulated_add_half(*pointers, ctypes.c_size_t(int(np.prod(self.shape)))) == 0


class DriverEngine(SimulatedEngine):
    def create_execution_context(self, config=None):
        self.configs.append(config)
        self.contexts.append(DriverContext(self))
        return self.contexts[-1]


@pytest.fixture
def load(monkeypatch, tmp_path):
    trt = pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "tiny.engine"
    path.write_bytes(b"good")
    found = Engine(path, ModelSpec("tiny", (2, 2), ("thing",), (1,)), "tensorrt", "fp32", "0" * 64)
    simulated = DriverEngine(None, trt)
    runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda content: simulated)
    monkeypatch.setattr(trt, "Runtime", lambda log: runtime)
    return lambda flavor=TENSORRT, **options: TensorRTRunner(flavor, found, LoadOptions(**options))


def check(runner, batch, start):
    images = images_of(batch, start)
    np.testing.assert_array_equal(runner.run({"images": images})["out"], images + HALF)


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_batches_of_several_sizes(load, cuda_graphs, caplog):
    with caplog.at_level("INFO"), load(cuda_graphs=cuda_graphs, parallel_runs=2, timed=True) as runner:
        for start, batch in enumerate((1, 1, 1, 4, 4, 4, 2, 2, 2, 1, 1)):
            check(runner, batch, start)
            assert 0 <= runner.last_timing.device <= runner.last_timing.end_to_end
        with pytest.raises(InputError):
            check(runner, 5, 0)
        check(runner, 1, 3)
    assert "without a CUDA graph" not in caplog.text


def test_threads_share_an_engine(load):
    with load(parallel_runs=3) as runner, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda start: check(runner, 1 + start % 3, start % 200), range(400)))


def test_a_runner_is_made_used_and_closed_on_different_threads(load):
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        runner = first.submit(load).result()
        second.submit(lambda: [check(runner, 1, start) for start in range(3)]).result()
        check(runner, 1, 9)
        first.submit(runner.close).result()


def test_rtx_keeps_its_cache(load, tmp_path):
    with load(tensorrt_rtx.FLAVOR) as runner:
        check(runner, 1, 0)
    assert (tmp_path / "tiny.engine.runtime_cache").read_bytes() == b"kernels"
