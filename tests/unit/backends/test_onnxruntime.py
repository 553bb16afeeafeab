"""Sessions on a graph that is small enough to make here: threads, several callers, bound memory, and no silent fallback."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from edge_effdet.artifacts import Engine, ModelSpec
from edge_effdet.backends import onnxruntime, onnxruntime_cuda, openvino
from edge_effdet.backends.base import Available, LoadOptions, Unavailable, load_runner
from edge_effdet.backends.onnxruntime_cuda import BoundRunner
from edge_effdet.errors import BackendUnavailable, EngineError

SPEC = ModelSpec("tf_efficientdet_lite0", (8, 8), ("thing",), (1,))


@pytest.fixture(params=[1, "batch"])
def engine(tmp_path: Path, request) -> Engine:
    """images uint8 [B, 3, 8, 8] to twice their values in float32."""
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["float"] * 2, ["out"]),
    ]
    shape = [request.param, 3, 8, 8]
    values = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, shape),
        helper.make_tensor_value_info("out", TensorProto.FLOAT, shape),
    ]
    graph = helper.make_graph(nodes, "double", values[:1], values[1:])
    path = tmp_path / "double.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return Engine(path, SPEC, "onnxruntime", "fp32")


def images(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, 3, 8, 8), np.uint8)


@pytest.mark.parametrize("backend", [onnxruntime, openvino])
@pytest.mark.parametrize("options", [LoadOptions(), LoadOptions(1, 2, spinning=False)])
def test_callers_at_once_get_their_own_results(engine: Engine, backend, options: LoadOptions):
    with backend.load(engine, options) as runner, ThreadPoolExecutor(8) as pool:
        assert runner.concurrent
        results = list(pool.map(lambda seed: runner.run({"images": images(seed)})["out"], range(64)))
    for seed, found in enumerate(results):
        np.testing.assert_array_equal(found, 2.0 * images(seed))


def test_bound_memory_gives_what_a_run_gives_and_results_are_the_callers(engine: Engine):
    """On the CPU: the same code as on the GPU, which is not here."""
    session = ort.InferenceSession(str(engine.path), providers=["CPUExecutionProvider"])
    with BoundRunner(session, "cpu") as runner:
        first = runner.run({"images": images(1)})["out"]
        np.testing.assert_array_equal(runner.run({"images": images(2)})["out"], 2.0 * images(2))
        np.testing.assert_array_equal(first, 2.0 * images(1))
        if runner.inputs[0].shape[0] < 0:
            np.testing.assert_array_equal(runner.run({"images": images(3, 4)})["out"], 2.0 * images(3, 4))


@pytest.mark.skipif(isinstance(onnxruntime_cuda.probe(), Available), reason="onnxruntime has CUDA here")
def test_without_cuda_it_is_said_and_a_fallback_is_an_error(engine: Engine):
    assert isinstance(onnxruntime_cuda.probe(), Unavailable)
    with pytest.raises(BackendUnavailable, match="the one for CPUs; run pip uninstall onnxruntime"):
        load_runner(Engine(engine.path, SPEC, "onnxruntime-cuda", "fp32"))
    with pytest.raises(EngineError, match="CUDA"):
        onnxruntime_cuda.load(engine, LoadOptions())


def test_a_file_that_is_no_graph_is_named(tmp_path: Path):
    (tmp_path / "x.onnx").write_bytes(b"words")
    for backend in (onnxruntime, openvino):
        with pytest.raises(EngineError, match=r"x\.onnx"):
            backend.load(Engine(tmp_path / "x.onnx", SPEC, "onnxruntime", "fp32"), LoadOptions())
