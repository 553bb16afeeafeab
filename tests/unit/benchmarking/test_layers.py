"""Layers of small engines, timed by the real profilers, and the work that is counted for them."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Engine, ModelSpec
from edge_effdet.backends.base import BACKENDS, LayerRun, ProfiledRuns, Traits
from edge_effdet.benchmarking.layers import profile_engine
from edge_effdet.benchmarking.record import LayerTime, Profile
from edge_effdet.graph.model import save_graph
from tests.backends import FakeBackend
from tests.records import make_record

SIDE, CHANNELS, WIDE = 32, 16, 24
SPEC = ModelSpec("tf_efficientdet_lite0", (SIDE, SIDE), ("thing",), (1,))
HALF = SIDE // 2
MACS = {
    "stem": HALF**2 * CHANNELS * 3 * 9,
    "depthwise": HALF**2 * CHANNELS * 9,
    "pointwise": HALF**2 * WIDE * CHANNELS,
}
NUMBERS = {
    "stem": 3 * SIDE**2 + CHANNELS * 3 * 9 + CHANNELS * HALF**2,
    "depthwise": 2 * CHANNELS * HALF**2 + CHANNELS * 9,
    "pointwise": (CHANNELS + WIDE) * HALF**2 + CHANNELS * WIDE,
}


def make_model(batch: int | str, int8: bool) -> onnx.ModelProto:
    """Images uint8 [B, 3, 32, 32] through a stem with a clip, a depthwise and a pointwise convolution, and a product behind them."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (CHANNELS, 3, 3, 3), "depthwise": (CHANNELS, 1, 3, 3), "pointwise": (WIDE, CHANNELS, 1, 1)}
    arrays = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) / 9 for name, shape in shapes.items()}
    arrays |= {"low": np.float32(0), "high": np.float32(6), "two": np.float32(2)}
    taken: dict[str, str] = dict(zip(shapes, ("x", "clipped", "d"), strict=True))
    nodes = [helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT, name="cast")]
    if int8:
        arrays |= {"scale": np.float32(0.05), "zero": np.int8(0)}
        for name, source in taken.items():
            codes = np.clip(np.rint(arrays.pop(f"{name}.weight") / 0.01), -63, 63).astype(np.int8)
            arrays |= {
                f"{name}_codes": codes,
                f"{name}_scale": np.full(len(codes), 0.01, np.float32),
                f"{name}_zero": np.zeros(len(codes), np.int8),
            }
            weight = [f"{name}_{part}" for part in ("codes", "scale", "zero")]
            nodes += [
                helper.make_node("DequantizeLinear", weight, [f"{name}.weight"], axis=0, name=f"{name}_dq"),
                helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{source}_q"], name=f"{source}_q"),
                helper.make_node(
                    "DequantizeLinear", [f"{source}_q", "scale", "zero"], [f"{source}_d"], name=f"{source}_dq"
                ),
            ]
            taken[name] = f"{source}_d"
    nodes += [
        helper.make_node("Conv", [taken["stem"], "stem.weight"], ["s"], name="stem", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["s", "low", "high"], ["clipped"], name="clip"),
        helper.make_node(
            "Conv", [taken["depthwise"], "depthwise.weight"], ["d"], name="depthwise", pads=[1] * 4, group=CHANNELS
        ),
        helper.make_node("Conv", [taken["pointwise"], "pointwise.weight"], ["p"], name="pointwise"),
        helper.make_node("Mul", ["p", "two"], ["out"], name="double"),
    ]
    # Q/DQ of a tensor comes after what makes it.
    order, known = [], {"images", *arrays}
    while nodes:
        ready = next(node for node in nodes if known.issuperset(node.input))
        nodes.remove(ready)
        order.append(ready)
        known.update(ready.output)
    graph = helper.make_graph(
        order,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [batch, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, WIDE, HALF, HALF])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def make_engine(folder: Path, backend: str, batch: int | str = 1, int8: bool = False) -> Engine:
    path = folder / "small.onnx"
    onnx.save(make_model(batch, int8), path)
    return Engine(path, SPEC, backend, "int8" if int8 else "fp32")


def images(batch: int = 1) -> dict[str, np.ndarray]:
    return {"images": np.random.default_rng(1).integers(0, 256, (batch, 3, SIDE, SIDE), np.uint8)}


def profile(engine: Engine, batch: int = 1) -> Profile:
    found, reason = profile_engine(engine, 1, images(batch), 3, 1.5)
    assert found is not None and reason == ""
    return found


def computing(found: Profile) -> dict[str, LayerTime]:
    """The layer of each convolution."""
    layers = {node: layer for layer in found.layers for node in layer.nodes}
    assert sum(len(layer.nodes) for layer in found.layers) == len(layers)
    return layers


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(("batch", "axis"), [(1, 1), (2, "batch")])
def test_layers_lead_back_to_convolutions(tmp_path: Path, backend: str, batch: int, axis: int | str):
    found = profile(make_engine(tmp_path, backend, axis), batch)
    layers = computing(found)
    assert {name: layer.macs for name, layer in layers.items()} == {name: batch * macs for name, macs in MACS.items()}
    assert found.macs_matched == 1.0
    assert {layer.precision for layer in layers.values()} == {"fp32"}
    if batch == 1:
        assert {name: layer.bytes for name, layer in layers.items()} == {name: 4 * own for name, own in NUMBERS.items()}
    assert found.network_ms == 1.5
    assert found.sum_ms == pytest.approx(sum(layer.median_ms for layer in found.layers)) and found.sum_ms > 0
    assert all(layer.median_ms >= 0 for layer in found.layers)
    assert all(layer.macs == layer.bytes == 0 for layer in found.layers if not layer.nodes)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_int8_moves_a_byte_for_each_number(tmp_path: Path, backend: str):
    found = profile(make_engine(tmp_path, backend, int8=True))
    layers = computing(found)
    assert found.macs_matched == 1.0
    assert "int8" in {layer.precision for layer in layers.values()}
    for name, layer in layers.items():
        assert layer.bytes == NUMBERS[name] * {"int8": 1, "fp32": 4}[layer.precision]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_what_does_not_run_has_no_profile_and_a_reason(tmp_path: Path, backend: str):
    engine = make_engine(tmp_path, backend)
    engine.path.write_bytes(b"words")
    found, reason = profile_engine(engine, 1, images(), 3, 1.5)
    assert found is None and "small.onnx" in reason


def test_a_backend_that_cannot_tell_says_why(tmp_path: Path):
    found, reason = profile_engine(make_engine(tmp_path, "onnxruntime-cuda"), 0, images(), 3, 1.5)
    assert found is None and "on the GPU" in reason and "Nsight" in reason


def test_without_onnx_there_are_times_and_no_work(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    found = profile(make_engine(tmp_path, "onnxruntime"))
    assert found.sum_ms > 0 and found.macs_matched == 0.0
    assert all(layer.macs == layer.bytes == 0 and layer.nodes == () for layer in found.layers)
    assert "no multiply-accumulates: the Python package onnx_ir is not installed" in caplog.text


class Telling(FakeBackend):
    """A backend as TensorRT: the engine is no graph, and its layers name the graph's nodes."""

    def __init__(self, *layers: LayerRun) -> None:
        super().__init__(traits=Traits(on_cpu=False))
        self.layers = layers

    def profile(self, engine, options, feeds, runs):
        assert options.threads == 0
        return ProfiledRuns("a stand-in", self.layers)


def layer(name: str, milliseconds: float, *nodes: str) -> LayerRun:
    return LayerRun(name=name, kind="conv", precision="fp16", milliseconds=(9.0, milliseconds, 0.0), nodes=nodes)


def make_compiled(folder: Path, parent: str | None = None) -> Engine:
    """An engine of the stand-in, with a graph beside it whose hash its record names, or another one."""
    (folder / "graphs").mkdir()
    graph = save_graph(
        make_model(1, False),
        folder / "graphs" / "small.onnx",
        spec=SPEC,
        stage="optimized",
        precision="fp32",
        rewrites={},
        parents={},
    )
    path = folder / "small.engine"
    path.write_bytes(b"engine")
    record = make_record(backend="telling", parents={"compiled_graph": parent or graph.sha256})
    return Engine(path, SPEC, "telling", "fp16", "0" * 64, record)


def test_fused_convolutions_are_summed_and_one_of_several_layers_counts(tmp_path: Path, monkeypatch):
    layers = (layer("a", 1.0, "stem", "clip"), layer("b", 3.0, "stem", "depthwise"), layer("c", 0.5))
    monkeypatch.setitem(BACKENDS, "telling", Telling(*layers))
    found = profile(make_compiled(tmp_path))
    assert [each.nodes for each in found.layers] == [(), ("stem", "depthwise"), ()]
    assert [each.macs for each in found.layers] == [0, MACS["stem"] + MACS["depthwise"], 0]
    assert found.layers[1].bytes == 2 * (NUMBERS["stem"] + NUMBERS["depthwise"])
    assert found.sum_ms == 4.5
    assert found.macs_matched == pytest.approx(1 - MACS["pointwise"] / sum(MACS.values()))


def test_a_graph_that_is_not_the_engines_counts_nothing(tmp_path: Path, monkeypatch, caplog):
    monkeypatch.setitem(BACKENDS, "telling", Telling(layer("a", 1.0, "stem")))
    with caplog.at_level(logging.WARNING):
        found = profile(make_compiled(tmp_path, "cd" * 32))
    assert (found.layers[0].macs, found.layers[0].nodes, found.macs_matched) == (0, (), 0.0)
    assert "the graph that it was compiled from is not beside it" in caplog.text


def test_names_that_no_convolution_has_are_not_matched(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(BACKENDS, "telling", Telling(layer("a", 1.0, "another", "clip")))
    found = profile(make_compiled(tmp_path))
    assert (found.layers[0].macs, found.layers[0].nodes, found.macs_matched) == (0, (), 0.0)
