"""In which precision OpenVINO computes: what the graph says, as far as the processor can."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import openvino as ov
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Engine, ModelSpec, file_sha256
from edge_effdet.backends import openvino, openvino_cache
from edge_effdet.backends.base import LoadOptions
from edge_effdet.errors import EngineError

SPEC = ModelSpec("tf_efficientdet_lite0", (8, 8), ("thing",), (1,))
CAPABILITIES = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def engine_with(tmp_path: Path, dtype: type) -> Engine:
    """A convolution of images uint8 [1, 3, 8, 8] in FP32 or FP16, and its engine."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weights = np.random.default_rng(0).normal(size=(16, 3, 3, 3)).astype(dtype)
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=kind),
        helper.make_node("Conv", ["x", "w"], ["y"]),
        helper.make_node("Cast", ["y"], ["out"], to=TensorProto.FLOAT),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, 8, 8])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 16, 6, 6])
    graph = helper.make_graph(nodes, "conv", [images], [out], [numpy_helper.from_array(weights, "w")])
    path = tmp_path / "conv.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return Engine(path, SPEC, "openvino", "fp16" if dtype is np.float16 else "fp32", file_sha256(path))


def test_fp32_stays_fp32_on_a_processor_with_bf16(tmp_path: Path):
    engine = engine_with(tmp_path, np.float32)
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 8, 8), np.uint8)
    weights = numpy_helper.to_array(onnx.load(engine.path).graph.initializer[0])
    windows = np.lib.stride_tricks.sliding_window_view(images[0].astype(np.float32), (3, 3), axis=(1, 2))
    with openvino.load(engine, LoadOptions()) as runner:
        assert runner.arithmetic == "f32"
        np.testing.assert_allclose(
            runner.run({"images": images})["out"][0],
            np.einsum("cyxij,ocij->oyx", windows, weights),
            rtol=1e-4,
            atol=1e-3,
        )


def test_fp16_is_computed_in_what_the_processor_has(tmp_path: Path):
    expected = "f16" if "FP16" in CAPABILITIES else "bf16" if "BF16" in CAPABILITIES else "f32"
    with openvino.load(engine_with(tmp_path, np.float16), LoadOptions()) as runner:
        assert runner.arithmetic == expected


def start(engine: Engine) -> tuple[np.ndarray, bool]:
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 8, 8), np.uint8)
    with openvino.load(engine, LoadOptions(1, 2)) as runner:
        return runner.run({"images": images})["out"], runner.was_compiled


def test_the_next_start_loads_what_was_compiled(tmp_path: Path):
    engine = engine_with(tmp_path, np.float32)
    (first, cold), (second, warm) = start(engine), start(engine)
    assert (cold, warm) == (False, True)
    np.testing.assert_array_equal(second, first)
    assert {path.name for path in tmp_path.iterdir()} == {"conv.onnx", "conv.onnx.runtime_cache"}


@pytest.mark.parametrize("damage", ["cut", "emptied", "changed", "zeros"])
def test_what_is_damaged_is_compiled_again(damage: str, tmp_path: Path):
    engine = engine_with(tmp_path, np.float32)
    first, _ = start(engine)
    cache = tmp_path / "conv.onnx.runtime_cache"
    content = bytearray(cache.read_bytes())
    if damage == "changed":
        content[-1] ^= 1
    if damage == "zeros":
        content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    cache.write_bytes({"cut": content[: len(content) // 2], "emptied": b""}.get(damage, bytes(content)))
    again, warm = start(engine)
    assert not warm
    np.testing.assert_array_equal(again, first)
    assert start(engine)[1], "it was not replaced"


def test_what_belongs_to_another_engine_or_processor_is_compiled_again(tmp_path: Path):
    engine = engine_with(tmp_path, np.float32)
    start(engine)
    assert not start(replace(engine, sha256="cd" * 32))[1]
    core = ov.Core()
    flags = [frozenset(text.split()) for text in ("avx2", "avx2 avx512_vnni", "asimddp", "")]
    found = [openvino_cache.identity(core, "CPU", "ab", each) for each in flags]
    assert len(set(found)) == 4
    assert openvino_cache.identity(core, "CPU", "ab", flags[0]) == found[0]
    assert openvino_cache.identity(core, "CPU", "cd", flags[0]) not in found


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_model_from_the_cache_computes_in_the_same_type(dtype: type, tmp_path: Path):
    engine = engine_with(tmp_path, dtype)
    types = []
    for warm in (False, True):
        with openvino.load(engine, LoadOptions()) as runner:
            assert runner.was_compiled == warm
            types.append(runner.arithmetic)
    assert types[0] == types[1]


def test_what_was_compiled_of_another_file_is_not_kept_for_this_engine(tmp_path: Path):
    """A build replaced the engine after its hash was taken. Kept, it would run in this engine's place for good, once that is put back."""
    start(replace(engine_with(tmp_path, np.float32), sha256="ab" * 32))
    assert [path.name for path in tmp_path.iterdir()] == ["conv.onnx"]


def test_an_engine_without_a_hash_leaves_no_file(tmp_path: Path):
    start(replace(engine_with(tmp_path, np.float32), sha256=""))
    assert [path.name for path in tmp_path.iterdir()] == ["conv.onnx"]


def test_a_cache_that_cannot_be_written_is_worth_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    engine = engine_with(tmp_path, np.float32)
    # No folder can be made inside a file; as root, permissions would not do.
    (tmp_path / "file").write_text("")
    with openvino.OpenVinoRunner(engine.path, LoadOptions(), engine.sha256, tmp_path / "file" / "cache") as runner:
        assert runner.run({"images": np.zeros((1, 3, 8, 8), np.uint8)})["out"].shape == (1, 16, 6, 6)
    assert "not kept for the next start" in caplog.text


class Processor:
    """A core of a processor that this machine may not have."""

    def __init__(self, *capabilities: str) -> None:
        self.capabilities = capabilities

    def get_property(self, device: str, name: str) -> list[str]:
        assert (device, name) == ("CPU", "OPTIMIZATION_CAPABILITIES")
        return list(self.capabilities)


@pytest.mark.parametrize(
    ("dtype", "capabilities", "expected"),
    [
        (np.float16, ("BF16", "FP32", "FP16"), "f16"),
        (np.float16, ("BF16", "FP32"), "bf16"),
        (np.float16, ("FP32", "INT8"), "f32"),
        (np.float32, ("BF16", "FP32", "FP16"), "f32"),
    ],
)
def test_fp16_is_preferred_to_bf16(tmp_path: Path, dtype: type, capabilities: tuple[str, ...], expected: str):
    model = ov.Core().read_model(engine_with(tmp_path, dtype).path)
    assert openvino._arithmetic(Processor(*capabilities), model) == expected


def test_each_layer_is_timed_and_the_cache_is_left_alone(tmp_path: Path):
    engine = engine_with(tmp_path, np.float32)
    first, _ = start(engine)
    kept = (tmp_path / "conv.onnx.runtime_cache").read_bytes()
    images = np.random.default_rng(1).integers(0, 256, (1, 3, 8, 8), np.uint8)
    found = openvino.profile(engine, LoadOptions(threads=1), {"images": images}, 4)
    assert found.source.startswith("OpenVINO's performance counters")
    (conv,) = [layer for layer in found.layers if "Convolution" in layer.kind]
    assert conv.precision == "fp32" and conv.nodes
    assert all(len(layer.milliseconds) == 4 and min(layer.milliseconds) >= 0 for layer in found.layers)
    assert (tmp_path / "conv.onnx.runtime_cache").read_bytes() == kept
    again, warm = start(engine)
    assert warm
    np.testing.assert_array_equal(again, first)


def test_a_profile_of_what_does_not_run_is_an_error(tmp_path: Path):
    with pytest.raises(EngineError, match="cannot profile"):
        openvino.profile(
            engine_with(tmp_path, np.float32), LoadOptions(), {"images": np.zeros((1, 5, 8, 8), np.uint8)}, 1
        )


class CountingRequest:
    """A request whose counters are the mean over all runs, in whole microseconds, as OpenVINO's are; the first run is a slow one."""

    def __init__(self) -> None:
        self.runs = 0

    def infer(self, feeds: dict, share_inputs: bool) -> None:
        self.runs += 1

    def get_profiling_info(self) -> list:
        mean = (1000 + 100 * (self.runs - 1)) // self.runs
        executed, skipped = SimpleNamespace(name="EXECUTED"), SimpleNamespace(name="NOT_RUN")
        return [
            SimpleNamespace(node_name="conv", status=executed, real_time=timedelta(microseconds=mean)),
            SimpleNamespace(node_name="fused", status=skipped, real_time=timedelta()),
        ]


def test_the_slow_first_run_is_taken_out_of_the_mean():
    model = SimpleNamespace(create_infer_request=CountingRequest)
    times = openvino._time_layers(model, {})
    assert times == {"conv": pytest.approx(0.1, abs=0.002)}


@pytest.mark.parametrize(("cores", "pinned"), [(1, True), (2, False)])
def test_a_process_that_leaves_cores_to_others_binds_no_thread(cores: int, pinned: bool, tmp_path: Path, monkeypatch):
    """Two processes whose threads are bound would share the first core."""
    monkeypatch.setattr(openvino, "usable_cores", lambda: cores)
    model, _ = openvino._compiled(engine_with(tmp_path, np.float32).path, LoadOptions(threads=1))
    assert model.get_property("ENABLE_CPU_PINNING") is pinned


def test_importing_it_writes_nothing_and_tells_nobody(tmp_path: Path):
    """Its own import would leave an id in the home folder and send an event, unless an environment says that it is a CI's."""
    code = (
        "import sys\nfrom edge_effdet.backends.base import get_backend\nprint(get_backend('openvino').probe().version)\n"
        "import openvino.tools.ovc.telemetry_utils as told\nprint(told.tm.__name__, 'openvino_telemetry' in sys.modules)\n"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**kept, "HOME": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "openvino.tools.ovc.telemetry_stub False"
    assert list(tmp_path.iterdir()) == []
