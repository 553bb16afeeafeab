"""Small engines of TensorRT and TensorRT-RTX on a real GPU, against the same arithmetic in NumPy. Skipped where there is none."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from edge_effdet.artifacts import Engine, Graph, ModelSpec, file_sha256
from edge_effdet.backends.base import CompileOptions, LoadOptions, Unavailable
from edge_effdet.backends.tensorrt import builder as tensorrt
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.backends.tensorrt.library import find_module
from edge_effdet.backends.tensorrt.runner import TensorRTRunner
from edge_effdet.errors import EngineError, InputError

GPU = cuda.probe_gpu()
if isinstance(GPU, Unavailable):
    pytest.skip(GPU.reason, allow_module_level=True)
if GPU.name == "simulated driver":
    pytest.skip("an engine needs a GPU", allow_module_level=True)
SPEC = ModelSpec("tiny", (16, 16), ("thing",), (1,))
WEIGHTS = np.random.default_rng(0).integers(-3, 4, (8, 3)).astype(np.float32)


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def flavor(request):
    """Set to build for the GPU that is here, also one that TensorRT-RTX's support matrix lacks."""
    chosen = tensorrt.FLAVOR if request.param == "tensorrt" else tensorrt_rtx.FLAVOR
    if isinstance(module := find_module(chosen), Unavailable):
        pytest.skip(module.reason)
    return dataclasses.replace(chosen, default_target="")


@pytest.fixture
def engine(flavor, tmp_path):
    """``out`` is a 1 x 1 convolution of ``images`` with small whole numbers, exact in TF32 and FP16 too; batches of 1 to 8."""
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    proto = helper.make_graph(
        [
            helper.make_node("Cast", ["images"], ["x"], to=kinds.FLOAT),
            helper.make_node("Conv", ["x", "w"], ["y"]),
            helper.make_node("Relu", ["y"], ["out"]),
        ],
        "tiny",
        [helper.make_tensor_value_info("images", kinds.UINT8, ["batch", 3, 16, 16])],
        [helper.make_tensor_value_info("out", kinds.FLOAT, ["batch", 8, 16, 16])],
        [onnx.numpy_helper.from_array(WEIGHTS[:, :, None, None], "w")],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    graph = Graph(path, SPEC, "optimized", "fp32", {}, {}, {}, "0" * 64)
    built = tmp_path / "tiny.engine"
    built.write_bytes(tensorrt.compile_graph(flavor, graph, CompileOptions(batch_sizes=(1, 8))).content)
    return Engine(built, SPEC, "tensorrt", "fp32", file_sha256(built))


def check(runner, batch, seed):
    images = np.random.default_rng(seed).integers(0, 8, (batch, 3, 16, 16)).astype(np.uint8)
    expected = np.maximum(np.einsum("oc,bchw->bohw", WEIGHTS, images.astype(np.float32)), 0)
    np.testing.assert_array_equal(runner.run({"images": images})["out"], expected)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_batches_of_several_sizes(flavor, engine, cuda_graphs):
    with TensorRTRunner(flavor, engine, LoadOptions(cuda_graphs=cuda_graphs, parallel_runs=2)) as runner:
        for seed, batch in enumerate((1, 1, 1, 8, 8, 8, 3, 3, 1, 1)):
            check(runner, batch, seed)
        with pytest.raises(InputError, match="built for 1 to 8"):
            check(runner, 9, 0)
        check(runner, 1, 0)


def test_threads_share_an_engine(flavor, engine):
    with TensorRTRunner(flavor, engine) as runner, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda seed: check(runner, 1 + seed % 3, seed), range(200)))


def test_the_device_takes_less_than_the_whole(flavor, engine):
    with TensorRTRunner(flavor, engine, LoadOptions(timed=True)) as runner:
        for seed in range(5):
            check(runner, 8, seed)
        timing = runner.last_timing
    assert timing is not None
    assert 0 < timing.device <= timing.device_with_copies <= timing.end_to_end


def test_a_capture_is_really_made(flavor, engine, caplog):
    if flavor.compiles_at_load:
        pytest.skip("TensorRT-RTX captures by itself")
    with caplog.at_level("INFO"), TensorRTRunner(flavor, engine) as runner:
        for seed in range(3):
            check(runner, 1, seed)
    assert "without a CUDA graph" not in caplog.text


def test_compiled_kernels_are_kept(flavor, engine):
    if not flavor.compiles_at_load:
        pytest.skip("TensorRT compiles nothing on the device")
    cache = engine.path.with_name("tiny.engine.runtime_cache")
    for _ in range(2):
        with TensorRTRunner(flavor, engine) as runner:
            check(runner, 1, 0)
        assert cache.stat().st_size > 0


def test_a_damaged_engine_is_refused(flavor, engine):
    engine.path.write_bytes(engine.path.read_bytes()[:1000])
    with pytest.raises(EngineError, match="refuses"):
        TensorRTRunner(flavor, engine)
