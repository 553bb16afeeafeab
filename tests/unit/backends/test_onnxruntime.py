"""Sessions on a graph that is small enough to make here: threads, several callers, bound memory, and no silent fallback."""

from __future__ import annotations

import os
import subprocess
import sys
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


def test_each_layer_is_timed_in_each_run(engine: Engine):
    found = onnxruntime.profile(engine, LoadOptions(threads=1), {"images": images(1)}, 4)
    assert [(layer.kind, layer.precision) for layer in found.layers] == [("Cast", "int8"), ("Add", "fp32")]
    assert all(len(layer.milliseconds) == 4 for layer in found.layers)
    assert found.optimized is not None
    names = {node.name for node in onnx.load_from_string(found.optimized).graph.node}
    assert {layer.name for layer in found.layers} <= names | {"Cast_0", "Add_1"}
    assert [path.name for path in engine.path.parent.iterdir()] == ["double.onnx"]


def test_a_profile_of_what_does_not_run_is_an_error(engine: Engine):
    with pytest.raises(EngineError, match="cannot profile"):
        onnxruntime.profile(engine, LoadOptions(), {"images": images(1).astype(np.float32)}, 1)


def test_the_first_runs_do_not_count_in_a_profile():
    def node(name: str, start: int, duration: int) -> dict:
        arguments = {"op_name": name.title(), "input_type_shape": [{"float16": [1]}, {"int8": [1]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": duration, "args": arguments}

    def run(start: int) -> dict:
        return {"cat": "Session", "name": "model_run", "ts": start, "dur": 100}

    events = [run(0), node("conv", 10, 90), run(200), node("conv", 210, 2000), node("add", 220, 500), run(400)]
    events += [node("conv", 410, 1000), node("conv", 420, 3000), node("add", 430, 500)]
    conv, add = onnxruntime.layers_from_events(events, warm_up=1)
    assert (conv.name, conv.kind, conv.precision, conv.milliseconds) == ("conv", "Conv", "fp16", (2.0, 4.0))
    assert (add.name, add.milliseconds) == ("add", (0.5, 0.5))


def test_the_profiler_of_a_gpu_is_not_believed(engine: Engine):
    found = onnxruntime_cuda.profile(engine, LoadOptions(), {"images": images(1)}, 1)
    assert isinstance(found, Unavailable) and "start a layer" in found.reason


def test_importing_it_writes_nothing_and_tells_nobody(tmp_path: Path):
    """Its own import leaves an id and a database in the home folder, for events that it sends to Microsoft."""
    code = "from edge_effdet.backends.base import get_backend\nprint(get_backend('onnxruntime').probe().version)"
    environment = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ort.__version__), done.stderr
    assert list(tmp_path.iterdir()) == []
