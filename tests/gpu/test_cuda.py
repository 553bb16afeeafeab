"""``backends.cuda`` on a real GPU, with the real PyCUDA and cuda-python; nothing of TensorRT. Skipped where there is none."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge_effdet.backends.base import Unavailable
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.errors import BackendUnavailable

GPU = cuda.probe_gpu()
if isinstance(GPU, Unavailable):
    pytest.skip(GPU.reason, allow_module_level=True)

FLOAT32 = np.dtype(np.float32)


def copy_through(stream, values):
    """``values`` to the GPU and back."""
    buffer = stream.new_buffer()
    host = buffer.reserve(values.shape, values.dtype)
    host[...] = values
    buffer.upload(host, stream)
    stream.synchronize()
    host[...] = 0
    buffer.download(host, stream)
    stream.synchronize()
    return host.copy()


def free_memory():
    with cuda.primary_context() as driver:
        return driver.mem_get_info()[0]


def test_values_survive_the_way_to_the_gpu_and_back():
    values = np.random.default_rng(0).normal(size=(3, 5, 7)).astype(np.float32)
    with cuda.CudaStream() as stream, stream.active():
        np.testing.assert_array_equal(copy_through(stream, values), values)
        np.testing.assert_array_equal(copy_through(stream, np.arange(9, dtype=np.uint8)), np.arange(9))


def test_a_buffer_grows():
    with cuda.CudaStream() as stream, stream.active():
        buffer = stream.new_buffer()
        for count in (4, 1, 4000):
            host = buffer.reserve((count,), FLOAT32)
            host[...] = count
            buffer.upload(host, stream)
            buffer.download(host, stream)
            stream.synchronize()
            assert (host == count).all()


def test_a_timer_measures_a_large_copy():
    with cuda.CudaStream() as stream, stream.active():
        timer, buffer = stream.new_timer(), stream.new_buffer()
        host = buffer.reserve((1 << 24,), FLOAT32)
        timer.start()
        buffer.upload(host, stream)
        timer.stop()
        # 64 MiB would need more than a terabyte a second for less.
        assert 0.05 < timer.milliseconds() < 1000


def test_a_graph_copies_what_is_there_at_each_launch():
    with cuda.CudaStream() as stream, stream.active():
        source = stream.new_buffer()
        host = source.reserve((1000,), FLOAT32)
        back = np.zeros(0)

        def work():
            source.upload(host, stream)
            source.download(host, stream)
            return True

        work()
        stream.synchronize()
        graph = stream.capture(work)
        assert isinstance(graph, cuda.CudaGraph), graph
        for value in (1, 2, 3):
            host[...] = value
            graph.launch()
            stream.synchronize()
            back = host.copy()
            assert (back == value).all()
        stream.discard(graph)


def test_work_that_cannot_be_captured_leaves_the_stream_usable():
    with cuda.CudaStream() as stream, stream.active():
        answer = stream.capture(lambda: bool(stream.synchronize()) or True)
        assert isinstance(answer, Unavailable)
        values = np.arange(6, dtype=np.float32)
        np.testing.assert_array_equal(copy_through(stream, values), values)
        assert isinstance(stream.capture(lambda: False), Unavailable)
        np.testing.assert_array_equal(copy_through(stream, values), values)


def test_several_threads_have_streams_at_a_time():
    def use(number):
        with cuda.CudaStream() as stream, stream.active():
            values = np.full(10_000, number, np.float32)
            return all(np.array_equal(copy_through(stream, values), values) for _ in range(20))

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(use, range(32)))


def test_a_stream_moves_between_threads():
    stream = cuda.CudaStream()
    found = []

    def use():
        with stream.active():
            found.append(copy_through(stream, np.arange(3, dtype=np.float32)).tolist())

    for task in (use, use, stream.close):
        thread = threading.Thread(target=task)
        thread.start()
        thread.join()
    assert found == [[0, 1, 2]] * 2


def test_everything_is_freed():
    with cuda.CudaStream() as stream, stream.active():
        copy_through(stream, np.zeros(1, np.float32))
    before = free_memory()
    for _ in range(20):
        with cuda.CudaStream() as stream, stream.active():
            stream.new_timer()
            buffer = stream.new_buffer()
            host = buffer.reserve((1 << 24,), FLOAT32)
            stream.capture(lambda buffer=buffer, host=host, stream=stream: buffer.upload(host, stream) or True)
    # Twenty of them would be 1.3 GB.
    assert before - free_memory() < 1 << 26


def test_too_much_memory_is_an_error_that_leaves_the_gpu_usable():
    with cuda.CudaStream() as stream:
        # Reserving on the host as well would take the machine down; only the device's part is asked for.
        with pytest.raises(BackendUnavailable), stream.active(), cuda.primary_context() as driver:
            driver.mem_alloc(1 << 45)
        with stream.active():
            assert copy_through(stream, np.ones(2, np.float32)).tolist() == [1, 1]


def test_torch_works_beside_it_on_the_same_thread():
    torch = pytest.importorskip("torch")
    if GPU.name == "simulated driver":
        pytest.skip("torch needs more of a driver than is simulated")
    if not torch.cuda.is_available():
        pytest.skip("torch finds no GPU")
    tensor = torch.arange(5, device="cuda")
    with cuda.CudaStream() as stream, stream.active():
        buffer = stream.new_buffer()
        host = buffer.reserve((5,), FLOAT32)
        host[...] = 2
        # torch works on the legacy stream, from another thread too, while this one is captured.
        other = ThreadPoolExecutor(1)
        graph = stream.capture(
            lambda: buffer.upload(host, stream) or other.submit(lambda: int((tensor * 2).sum())).result() == 20
        )
        other.shutdown()
        assert isinstance(graph, cuda.CudaGraph), graph
        assert int((tensor + 1).sum()) == 15
    assert int(tensor.sum()) == 10
