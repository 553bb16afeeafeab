"""TensorRT and TensorRT-RTX. Engines are built by the real TensorRT-RTX; what needs a GPU runs on a simulation."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import logging
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Engine, Graph, ModelSpec
from edge_effdet.backends import cuda, tensorrt, tensorrt_rtx
from edge_effdet.backends.base import Available, CompileOptions, Unavailable
from edge_effdet.errors import (
    BackendUnavailable,
    EdgeEffDetError,
    EngineError,
    GraphError,
    InputError,
    UsageError,
)

trt = pytest.importorskip("tensorrt_rtx")

SPEC = ModelSpec("tiny", (16, 16), ("thing",), (1,))
ONE_GPU = CompileOptions(target="86")
WEIGHTS = np.random.default_rng(0).normal(size=(8, 3, 3, 3)).astype(np.float32)


def make_graph(folder, nodes, initializers, batch=1, opset=17, shape=(3, 16, 16), output=(8, 16, 16)):
    """A file whose uint8 input is ``images`` and whose float32 output is ``out``."""
    proto = helper.make_graph(
        [helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT, name="cast"), *nodes],
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, *shape])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, *output])],
        initializers,
    )
    path = folder / "tiny.onnx"
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), path)
    return wrap(path)


def wrap(path):
    return Graph(path, SPEC, "optimized", "fp32", {}, {}, {}, "0" * 64)


def make_conv_graph(folder, **options):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Relu", ["y"], ["out"]),
    ]
    return make_graph(folder, nodes, [numpy_helper.from_array(WEIGHTS, "w")], **options)


def make_int8_graph(folder):
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "wscale", "wzero"], ["wd"], axis=0),
        helper.make_node("Conv", ["xd", "wd"], ["out"], pads=[1, 1, 1, 1], name="conv"),
    ]
    arrays = {
        "scale": np.float32(2),
        "zero": np.int8(0),
        "wq": np.clip(WEIGHTS * 40, -127, 127).astype(np.int8),
        "wscale": np.full(8, 1 / 40, np.float32),
        "wzero": np.zeros(8, np.int8),
    }
    return make_graph(folder, nodes, [numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items()])


def make_bfloat16_graph(folder):
    nodes = [
        helper.make_node("Cast", ["x"], ["b"], to=TensorProto.BFLOAT16),
        helper.make_node("Conv", ["b", "w"], ["y"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Cast", ["y"], ["out"], to=TensorProto.FLOAT),
    ]
    weights = helper.make_tensor("w", TensorProto.BFLOAT16, WEIGHTS.shape, WEIGHTS.ravel())
    return make_graph(folder, nodes, [weights], opset=22)


@pytest.mark.parametrize("target", ["", "75", "86", "86+89+120", "120+121"])
def test_builds_for_each_target_without_a_gpu(tmp_path, target):
    assert len(tensorrt_rtx.compile(make_conv_graph(tmp_path), CompileOptions(target=target))) > 10_000


def test_no_target_is_the_default_target(tmp_path):
    graph = make_conv_graph(tmp_path)
    assert tensorrt.parse_target(tensorrt_rtx.FLAVOR, trt, "") == ("86", "89", "120")
    sizes = {
        target: len(tensorrt_rtx.compile(graph, CompileOptions(target=target)))
        for target in ("", tensorrt_rtx.DEFAULT_TARGET, "86")
    }
    assert sizes[""] == sizes[tensorrt_rtx.DEFAULT_TARGET] != sizes["86"]


@pytest.mark.parametrize("target", ["87", "86+90", "ampere", "86+", "SM86", "CURRENT"])
def test_an_unknown_target_names_the_known_ones(tmp_path, target):
    with pytest.raises(UsageError, match=r"75, 80, 86, 89, 120"):
        tensorrt_rtx.compile(make_conv_graph(tmp_path), CompileOptions(target=target))


def test_a_repeated_target_is_built_once():
    assert tensorrt.parse_target(tensorrt_rtx.FLAVOR, trt, "86 + 89+86") == ("86", "89")


def test_turing_with_others_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        tensorrt.parse_target(tensorrt_rtx.FLAVOR, trt, "75+86")
    assert "build 75 apart" in caplog.text


def test_a_mix_that_the_builder_refuses_is_to_be_built_apart(tmp_path):
    graph = make_bfloat16_graph(tmp_path)
    assert tensorrt_rtx.compile(graph, CompileOptions(target="86+89"))
    with pytest.raises(UsageError, match=r"75\+86 in one engine.*build 75 apart"):
        tensorrt_rtx.compile(graph, CompileOptions(target="75+86"))


def test_tensorrt_takes_no_target():
    with pytest.raises(UsageError, match="this machine only"):
        tensorrt.parse_target(tensorrt.FLAVOR, trt, "87")


def test_builds_int8_with_float32_scales(tmp_path):
    assert tensorrt_rtx.compile(make_int8_graph(tmp_path), ONE_GPU)


def test_builds_a_dynamic_batch(tmp_path):
    graph = make_conv_graph(tmp_path, batch="batch")
    assert tensorrt_rtx.compile(graph, dataclasses.replace(ONE_GPU, batch_sizes=(1, 2, 4), workspace_mib=64))


@pytest.mark.parametrize("batch_sizes", [(0, 1, 8), (2, 1, 8), (1, 9, 8)])
def test_batch_sizes_must_ascend(tmp_path, batch_sizes):
    graph = make_conv_graph(tmp_path, batch="batch")
    with pytest.raises(UsageError, match="do not ascend"):
        tensorrt_rtx.compile(graph, dataclasses.replace(ONE_GPU, batch_sizes=batch_sizes))


def test_only_the_batch_may_be_dynamic(tmp_path):
    with pytest.raises(GraphError, match="only its first axis"):
        tensorrt_rtx.compile(make_conv_graph(tmp_path, shape=(3, "height", 16)), ONE_GPU)


@pytest.mark.parametrize("content", [b"", b"this is no graph", b"\x08\x08\x12\x7fcut"])
def test_a_file_that_is_no_graph_is_named(tmp_path, content):
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(GraphError, match=r"broken\.onnx"):
        tensorrt_rtx.compile(wrap(tmp_path / "broken.onnx"), ONE_GPU)


def test_a_missing_graph_is_named(tmp_path):
    with pytest.raises(GraphError, match="no graph at"):
        tensorrt_rtx.compile(wrap(tmp_path / "absent.onnx"), ONE_GPU)


def test_a_node_that_the_parser_refuses_is_named(tmp_path):
    graph = make_graph(tmp_path, [helper.make_node("Det", ["x"], ["out"], name="the_odd_one")], [])
    with pytest.raises(GraphError, match=r"node 1 of tiny\.onnx, Det 'the_odd_one' \(UNSUPPORTED") as caught:
        tensorrt_rtx.compile(graph, ONE_GPU)
    assert "\n" not in str(caught.value)
    assert "cudaError" not in str(caught.value)


def test_a_failed_build_gives_the_builders_reason(tmp_path):
    node = helper.make_node("TopK", ["x", "k"], ["out", "index"], name="top", axis=2)
    count = numpy_helper.from_array(np.array([4000]), "k")
    graph = make_graph(tmp_path, [node], [count], shape=(1, 5000), output=(1, 4000))
    with pytest.raises(EdgeEffDetError, match="3840"):
        tensorrt_rtx.compile(graph, CompileOptions())


def test_rtx_keeps_no_timing_cache(tmp_path):
    with pytest.raises(UsageError, match="no timing cache"):
        tensorrt_rtx.compile(make_conv_graph(tmp_path), CompileOptions(timing_cache=tmp_path / "cache"))


def test_the_timing_cache_is_written(tmp_path):
    """Reading it again needs a GPU: without one the bindings take no cache."""
    flavor = dataclasses.replace(tensorrt_rtx.FLAVOR, has_timing_cache=True)
    options = dataclasses.replace(ONE_GPU, timing_cache=tmp_path / "folder" / "timing.cache")
    tensorrt.compile_graph(flavor, make_conv_graph(tmp_path), options)
    assert options.timing_cache.stat().st_size > 0
    assert [file.name for file in options.timing_cache.parent.iterdir()] == ["timing.cache"]


def test_a_damaged_timing_cache_is_refused_and_kept(tmp_path):
    flavor = dataclasses.replace(tensorrt_rtx.FLAVOR, has_timing_cache=True)
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"damaged")
    with pytest.raises(InputError, match="delete it"):
        tensorrt.compile_graph(flavor, make_conv_graph(tmp_path), dataclasses.replace(ONE_GPU, timing_cache=cache))
    assert cache.read_bytes() == b"damaged"


def test_probe_of_rtx_builds_without_a_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    answer = tensorrt_rtx.probe()
    assert answer == Available(trt.__version__, answer.device, runs_here=False)
    assert "pycuda" in answer.device


def test_probe_without_tensorrt(monkeypatch):
    flavor = dataclasses.replace(tensorrt.FLAVOR, module="tensorrt_that_is_absent")
    assert tensorrt.probe_flavor(flavor) == Unavailable(
        "the Python package tensorrt_that_is_absent is not installed", tensorrt.FLAVOR.install
    )
    with pytest.raises(BackendUnavailable, match="JetPack"):
        tensorrt.compile_graph(flavor, wrap(Path("any.onnx")), CompileOptions())


@pytest.mark.parametrize(
    "source", ["import tensorrt_libs_absent", "raise OSError('libnvinfer.so.10: cannot open')", "pass"]
)
def test_probe_of_a_package_that_does_not_load(tmp_path, monkeypatch, source):
    (tmp_path / "tensorrt_broken.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt_broken", raising=False)
    answer = tensorrt.probe_flavor(dataclasses.replace(tensorrt.FLAVOR, module="tensorrt_broken"))
    assert isinstance(answer, Unavailable)
    assert "cannot be loaded" in answer.reason


@pytest.mark.parametrize(
    ("version", "works"),
    [("8.5.2.2", False), ("10.2.0", False), ("10.3.0", True), ("10.16.1", True), ("11.4.1.3", True), ("12.0", False)],
)
def test_versions_of_tensorrt(monkeypatch, version, works):
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__=version))
    monkeypatch.setattr(cuda, "probe_gpu", lambda: cuda.Gpu("Orin", (8, 7)))
    answer = tensorrt.probe()
    assert isinstance(answer, Available) == works
    if works:
        assert answer == Available(version, "Orin (SM 87)")
    else:
        assert "10.3 to 11.x" in answer.reason


def test_tensorrt_without_a_gpu_is_unavailable(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    answer = tensorrt.probe()
    assert isinstance(answer, Unavailable)
    assert "pycuda" in answer.reason


def test_a_graph_is_not_loaded_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendUnavailable, match="pycuda"):
        tensorrt_rtx.load(Engine(tmp_path / "any.engine", SPEC, "tensorrt-rtx", "fp32", {}))


def test_importing_the_backends_loads_neither_torch_nor_tensorrt():
    code = (
        "import sys, edge_effdet.backends.tensorrt, edge_effdet.backends.tensorrt_rtx\n"
        "print([m for m in ('torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'pycuda') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# By the name that a variable or attribute has in tensorrt.py, the class of the bindings that it holds.
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "tensor": "ITensor",
    "_runtime": "Runtime",
    "_engine": "ICudaEngine",
    "_context": "IExecutionContext",
}


def names_used(module):
    """Each ``holder.attribute`` in the module's source."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute):
            holder = node.value
            yield holder.id if isinstance(holder, ast.Name) else getattr(holder, "attr", ""), node.attr


def test_all_that_is_used_of_tensorrt_is_in_the_bindings():
    used = set(names_used(tensorrt))
    found = {"trt": trt, "_trt": trt} | {name: getattr(trt, of) for name, of in CLASSES.items()}
    found |= {name: getattr(trt, name) for name in ("MemoryPoolType", "TensorIOMode", "ComputeCapability")}
    # The same word also names a Python exception and an answer of ours.
    used -= {("error", "name"), ("error", "strerror"), ("trt", "reason"), ("trt", "fix")}
    checked = [(holder, name) for holder, name in used if holder in found]
    assert len(checked) > 40
    assert [pair for pair in checked if not hasattr(found[pair[0]], pair[1])] == []


class SimulatedDriver(types.ModuleType):
    """Stands for ``pycuda.driver`` where there is no GPU: device memory is NumPy's, and all that is held is counted."""

    class Error(Exception):
        pass

    class MemoryError(Error):  # noqa: A001 - PyCUDA's name
        pass

    def __init__(self):
        super().__init__("pycuda.driver")
        self.memory = {}
        self.depth = self.retained = self.pinned = self.allocations = 0
        self.capacity = 1 << 30
        self.Device = lambda index: SimulatedDevice(self)
        self.Device.count = lambda: 1

    def init(self):
        pass

    def Stream(self):  # noqa: N802 - PyCUDA's name
        assert self.depth == 1
        return types.SimpleNamespace(handle=7, synchronize=lambda: None)

    def pagelocked_empty(self, size, dtype):
        self.pinned += 1
        return SimulatedPinned(self, size).view()

    def mem_alloc(self, size):
        assert self.depth == 1
        if size > self.capacity:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        return SimulatedMemory(self, size)

    def memcpy_htod_async(self, device, host, stream):
        device.content[: host.nbytes] = host.reshape(-1).view(np.uint8)

    def memcpy_dtoh_async(self, host, device, stream):
        host.reshape(-1).view(np.uint8)[:] = device.content[: host.nbytes]


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

    def push(self):
        self.driver.depth += 1

    def pop(self):
        self.driver.depth -= 1

    def detach(self):
        assert self.driver.depth == 0
        self.driver.retained -= 1


class SimulatedPinned(np.ndarray):
    def __new__(cls, driver, size):
        array = np.empty(size, np.uint8).view(cls)
        array.driver = driver
        return array

    def __array_finalize__(self, source):
        self.driver = getattr(source, "driver", None)

    def free(self):
        self.driver.pinned -= 1


class SimulatedMemory:
    def __init__(self, driver, size):
        self.driver, self.content = driver, np.zeros(size, np.uint8)
        driver.allocations += 1
        self.address = driver.allocations << 20
        driver.memory[self.address] = self

    def __int__(self):
        return self.address

    def free(self):
        del self.driver.memory[self.address]


class SimulatedEngine:
    """Stands for a deserialized engine and its context: ``out`` is ``images`` + 0.5, for batches of 1 to 4."""

    num_io_tensors = 2

    def __init__(self, driver):
        self.driver, self.shape, self.addresses = driver, None, {}
        self.fails = False

    def create_execution_context(self):
        return self

    def get_tensor_name(self, index):
        return ("images", "out")[index]

    def get_tensor_mode(self, name):
        return trt.TensorIOMode.INPUT if name == "images" else trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return trt.DataType.UINT8 if name == "images" else trt.DataType.FLOAT

    def get_tensor_shape(self, name):
        return trt.Dims(self.shape or (-1, 3, 2, 2))

    def get_tensor_profile_shape(self, name, index):
        return [trt.Dims((batch, 3, 2, 2)) for batch in (1, 1, 4)]

    def set_input_shape(self, name, shape):
        self.shape = shape
        return shape[0] <= 4

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def execute_async_v3(self, handle):
        assert handle == 7
        images, out = (self.driver.memory[self.addresses[name]].content for name in ("images", "out"))
        count = int(np.prod(self.shape))
        out[: 4 * count] = (images[:count].astype(np.float32) + np.float32(0.5)).view(np.uint8)
        return not self.fails


@pytest.fixture
def simulation(monkeypatch):
    """The simulated driver and engine in place of PyCUDA and of what TensorRT-RTX would read from a file."""
    driver = SimulatedDriver()
    engine = SimulatedEngine(driver)
    monkeypatch.setitem(sys.modules, "pycuda", types.ModuleType("pycuda"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    runtime = types.SimpleNamespace(deserialize_cuda_engine=lambda content: engine if content == b"good" else None)
    monkeypatch.setattr(trt, "Runtime", lambda log: runtime)
    yield types.SimpleNamespace(driver=driver, engine=engine)
    assert (driver.depth, driver.retained, driver.pinned, driver.memory) == (0, 0, 0, {})


def write_engine(folder, content=b"good"):
    path = folder / "tiny.engine"
    path.write_bytes(content)
    return Engine(path, SPEC, "tensorrt-rtx", "fp32", {"backend_version": "1.2.0", "target": "120"})


def test_simulated_runs_grow_the_buffers_and_free_them(tmp_path, simulation):
    with tensorrt_rtx.load(write_engine(tmp_path)) as runner:
        assert [(spec.name, spec.shape, spec.dtype) for spec in (*runner.inputs, *runner.outputs)] == [
            ("images", (-1, 3, 2, 2), np.uint8),
            ("out", (-1, 3, 2, 2), np.float32),
        ]
        results = []
        for batch in (1, 4, 2):
            images = np.arange(batch * 12, dtype=np.uint8).reshape(batch, 3, 2, 2)
            results.append((images, runner.run({"images": images})["out"]))
            assert len(simulation.driver.memory) == simulation.driver.pinned == 2
        for images, out in results:
            np.testing.assert_array_equal(out, images + np.float32(0.5))
    runner.close()


def test_simulated_run_takes_what_is_not_contiguous(tmp_path, simulation):
    images = np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3).transpose(0, 3, 1, 2)[..., ::2]
    with tensorrt_rtx.load(write_engine(tmp_path)) as runner:
        np.testing.assert_array_equal(runner.run({"images": images})["out"], images + np.float32(0.5))


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "takes images"),
        ({"images": np.zeros((1, 3, 2, 2), np.float32)}, "not float32"),
        ({"images": np.zeros((1, 3, 2, 4), np.uint8)}, r"not uint8 \[1, 3, 2, 4\]"),
        ({"images": np.zeros((3, 2, 2), np.uint8)}, r"not uint8 \[3, 2, 2\]"),
        ({"images": np.zeros((5, 3, 2, 2), np.uint8)}, "batch of 5 .* built for 1 to 4"),
    ],
)
def test_simulated_run_refuses_feeds_that_do_not_fit(tmp_path, simulation, feeds, message):
    with tensorrt_rtx.load(write_engine(tmp_path)) as runner, pytest.raises(InputError, match=message):
        runner.run(feeds)


def test_simulated_errors_free_everything(tmp_path, simulation):
    simulation.engine.fails = True
    feeds = {"images": np.zeros((1, 3, 2, 2), np.uint8)}
    with pytest.raises(EngineError, match="could not be run"), tensorrt_rtx.load(write_engine(tmp_path)) as runner:
        runner.run(feeds)
    simulation.driver.capacity = 20
    with pytest.raises(BackendUnavailable, match="memory is full"), tensorrt_rtx.load(write_engine(tmp_path)) as runner:
        runner.run(feeds)


def test_simulated_refusal_names_the_versions_and_frees_everything(tmp_path, simulation):
    with pytest.raises(
        EngineError, match=rf"{trt.__version__} on simulated \(SM 86\) refuses .* 1\.2\.0 built for 120"
    ):
        tensorrt_rtx.load(write_engine(tmp_path, b"foreign"))


@pytest.mark.parametrize(("capability", "runs_here"), [((8, 6), True), ((9, 0), False)])
def test_rtx_runs_on_the_gpus_that_it_knows(monkeypatch, capability, runs_here):
    monkeypatch.setattr(cuda, "probe_gpu", lambda: cuda.Gpu("simulated", capability))
    assert tensorrt_rtx.probe().runs_here == runs_here
