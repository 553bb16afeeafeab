"""The account of an engine: real engines of a small graph, counted by hand, beside the counts of the graph."""

from __future__ import annotations

import importlib.util
import json
import platform

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edge_effdet.artifacts import Engine, Graph, ModelSpec
from edge_effdet.artifacts.reading import to_json
from edge_effdet.backends import openvino
from edge_effdet.backends.base import Compiled, CompileOptions, LoadOptions, get_backend
from edge_effdet.backends.engine_account import EngineAccount
from edge_effdet.errors import UsageError
from edge_effdet.graph.counting import MACS_BEFORE_FUSION
from edge_effdet.quant.account import account_of, prove_engine
from edge_effdet.quant.precision import convert_to_half

SPEC = ModelSpec("tiny", (16, 16), ("thing",), (1,))
FINAL = "class_net.predict.conv_pw"
STEM = 16 * 16 * 8 * 3 * 9
DEPTHWISE = 16 * 16 * 8 * 9
POINTWISE = 16 * 16 * 16 * 8
TOTAL = STEM + DEPTHWISE + POINTWISE

ON_X86 = platform.machine() in ("x86_64", "AMD64")
BACKENDS = [
    "onnxruntime",
    "openvino",
    pytest.param(
        "tensorrt-rtx",
        marks=pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="TensorRT-RTX is not installed"),
    ),
]


@pytest.fixture
def small_model(bench):
    """A stem and a pointwise convolution in INT8, a depthwise one between them in FP32, and a final convolution in FP32."""

    def convolve(name, source, target, shape, quantized, **attributes):
        weight = np.random.default_rng(len(name)).normal(0, 0.3, shape).astype(np.float32)
        if not quantized:
            return [(name, "Conv", [source, f"{name}.w"], [target], attributes)], {f"{name}.w": weight}
        pair, scales = bench.quantized_input(f"{name}.a", source)
        codes, arrays = bench.quantized_weight(f"{name}.w", weight)
        conv = (name, "Conv", [f"{name}.a_dq", f"{name}.w_dq"], [target], attributes)
        return [*pair, *codes, conv], scales | arrays

    def make(stem=True, depthwise=False, pointwise=True):
        pads = {"pads": [1, 1, 1, 1]}
        parts = [
            convolve("stem", "x", "s", (8, 3, 3, 3), stem, **pads),
            ([("relu", "Relu", ["s"], ["r"], {})], {}),
            convolve("depthwise", "r", "d", (8, 1, 3, 3), depthwise, group=8, **pads),
            convolve("pointwise", "d", "p", (16, 8, 1, 1), pointwise),
            convolve(FINAL, "p", "f", (8, 16, 1, 1), False),
            ([("last", "Sigmoid", ["f"], ["out"], {})], {}),
        ]
        nodes = [node for more, _ in parts for node in more]
        arrays = {name: array for _, more in parts for name, array in more.items()}
        return bench.make_model(nodes, arrays, {"x": ("float32", [1, 3, 16, 16])}, {"out": ("float32", [1, 8, 16, 16])})

    return make


@pytest.fixture
def prove(tmp_path):
    """Compile with a real backend, and give the proof and the backend's account."""

    def of(model, backend):
        path = tmp_path / "tiny.onnx"
        proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
        onnx.save(proto, path)
        options = CompileOptions(target="89") if backend == "tensorrt-rtx" else CompileOptions()
        graph = Graph(path, SPEC, "quantized", "int8", {}, {}, {}, "0" * 64)
        compiled = get_backend(backend).compile(graph, options)
        assert compiled.content
        told = account_of(compiled, graph, backend)
        return prove_engine(ir.from_proto(proto), told), told

    return of


@pytest.mark.parametrize("backend", BACKENDS)
def test_fp32_is_told_of_every_convolution(small_model, prove, backend):
    proof, told = prove(small_model(stem=False, pointwise=False), backend)
    assert proof.macs == {"int8": 0, "fp16": 0, "bf16": 0, "fp32": TOTAL}
    assert {"stem", "depthwise", "pointwise", FINAL} <= set(told.precisions)
    assert (proof.not_named, proof.below_graph, proof.warning) == ((), (), None)
    assert to_json(proof.record())["counted_on"] == "engine"


@pytest.mark.skipif(not ON_X86, reason="OpenVINO chooses other kernels on Arm")
def test_openvino_runs_what_the_graph_says(small_model, prove):
    proof, told = prove(small_model(), "openvino")
    assert told.source.startswith("OpenVINO's execution graph 20")
    assert proof.macs == {"int8": STEM + POINTWISE, "fp16": 0, "bf16": 0, "fp32": DEPTHWISE}
    assert proof.final == {FINAL: "fp32"}
    assert proof.warning is None


def test_tensorrt_rtx_tells_without_a_gpu(small_model, prove):
    pytest.importorskip("tensorrt_rtx")
    proof, told = prove(small_model(), "tensorrt-rtx")
    assert told.source.startswith("TensorRT-RTX's builder log 1.")
    assert proof.macs == {"int8": STEM + POINTWISE, "fp16": 0, "bf16": 0, "fp32": DEPTHWISE}
    assert (proof.final, proof.not_named, proof.warning) == ({FINAL: "fp32"}, (), None)


def test_onnxruntime_leaves_convolutions_in_fp32_and_they_are_named(small_model, prove):
    """onnxruntime fuses a convolution only where its output is quantized too, and those of stem and pointwise are not."""
    proof, told = prove(small_model(depthwise=True), "onnxruntime")
    assert told.source.startswith("onnxruntime's optimized model 1.")
    assert proof.macs == {"int8": DEPTHWISE, "fp16": 0, "bf16": 0, "fp32": STEM + POINTWISE}
    assert proof.below_graph == ("stem", "pointwise")
    assert proof.graph.fraction("int8") == 1
    assert proof.warning is not None
    assert "has stem, pointwise in a higher precision" in proof.warning
    assert f"{100 * DEPTHWISE / TOTAL:.1f} %" in proof.warning


def test_fp16_is_what_tensorrt_rtx_computes_in(small_model, prove):
    pytest.importorskip("tensorrt_rtx")
    model = ir.from_proto(small_model())
    convert_to_half(model)
    proof, _ = prove(model, "tensorrt-rtx")
    assert proof.macs == {"int8": STEM + POINTWISE, "fp16": DEPTHWISE, "bf16": 0, "fp32": 0}
    assert proof.final == {FINAL: "fp16"}


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_fp16_is_what_the_processor_computes_in(small_model, prove, tmp_path, backend):
    model = ir.from_proto(small_model(stem=False, pointwise=False))
    convert_to_half(model)
    proof, _ = prove(model, backend)
    computed = "fp32"
    if backend == "openvino":
        with openvino.load(Engine(tmp_path / "tiny.onnx", SPEC, backend, "fp16"), LoadOptions()) as runner:
            computed = {"f32": "fp32", "f16": "fp16", "bf16": "bf16"}[runner.arithmetic]
    elif not ON_X86:
        pytest.skip("onnxruntime has convolutions in FP16 for some Arm processors")
    assert proof.macs[computed] == TOTAL
    assert proof.graph.fraction("fp16") == 1
    # The processor may compute in another type than FP16. A warning is only about INT8 that was lost.
    assert proof.warning is None


def test_an_engine_whose_backend_does_not_tell_is_counted_on_the_graph(small_model, tmp_path):
    graph = Graph(tmp_path / "tiny.onnx", SPEC, "quantized", "int8", {}, {}, {}, "0" * 64)
    told = account_of(Compiled(b"engine"), graph, "silent")
    assert told is None
    proof = prove_engine(ir.from_proto(small_model()), told)
    assert proof.macs == {"int8": STEM + POINTWISE, "fp16": 0, "bf16": 0, "fp32": DEPTHWISE}
    raw = to_json(proof.record())
    assert (raw["counted_on"], raw["source"], raw["layers_below_graph"]) == ("graph", None, [])
    assert raw["int8_mac_fraction"] == raw["graph_int8_mac_fraction"]
    assert raw["final_convolutions"] == {FINAL: "fp32"}


def test_what_an_account_does_not_name_counts_as_in_the_graph_and_is_listed(small_model):
    proof = prove_engine(ir.from_proto(small_model()), EngineAccount("its word", {"stem": "fp32"}))
    assert proof.macs == {"int8": POINTWISE, "fp16": 0, "bf16": 0, "fp32": STEM + DEPTHWISE}
    assert (proof.below_graph, proof.not_named) == (("stem",), ("depthwise", "pointwise", FINAL))
    assert proof.warning is not None
    assert "its word has stem in a higher precision" in proof.warning


def test_the_final_convolutions_stand_apart_whatever_the_engine_makes_of_them(small_model):
    precisions = {"stem": "int8", "depthwise": "bf16", "pointwise": "int8", FINAL: "int8"}
    proof = prove_engine(ir.from_proto(small_model()), EngineAccount("its word", precisions))
    assert proof.macs == {"int8": STEM + POINTWISE, "fp16": 0, "bf16": DEPTHWISE, "fp32": 0}
    assert to_json(proof.record())["final_convolutions"] == {FINAL: "int8"}


def test_a_fused_convolution_counts_as_the_pair_it_was_made_of(small_model):
    model = ir.from_proto(small_model())
    stem = next(node for node in model.graph if node.name == "stem")
    stem.metadata_props[MACS_BEFORE_FUSION] = "1000"
    assert prove_engine(model, EngineAccount("its word", {"stem": "fp32"})).macs["fp32"] == 1000 + DEPTHWISE


def test_a_warning_names_some_and_the_record_all(small_model):
    model = ir.from_proto(small_model(depthwise=True))
    names = [str(node.name) for node in model.graph if node.op_type == "Conv"]
    proof = prove_engine(model, EngineAccount("its word", dict.fromkeys(names, "fp32")))
    assert proof.warning is not None
    assert proof.warning.endswith("has stem, depthwise, pointwise in a higher precision")
    raw = json.loads(json.dumps(to_json(proof.record())))
    assert raw["layers_below_graph"] == ["stem", "depthwise", "pointwise"]
    assert raw["layers_kept_high_precision"] == []
    assert (raw["int8_mac_fraction"], raw["graph_int8_mac_fraction"]) == (0, 1)
    assert sum(raw[f"{kind}_mac_fraction"] for kind in ("int8", "fp16", "bf16", "fp32")) == pytest.approx(1)


def test_a_target_is_refused_where_there_is_none(small_model, tmp_path):
    onnx.save(small_model(), tmp_path / "tiny.onnx")
    graph = Graph(tmp_path / "tiny.onnx", SPEC, "quantized", "int8", {}, {}, {}, "0" * 64)
    for backend in ("onnxruntime", "openvino"):
        with pytest.raises(UsageError, match="no targets"):
            get_backend(backend).compile(graph, CompileOptions(target="89"))
