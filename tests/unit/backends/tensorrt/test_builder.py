"""Building with TensorRT and TensorRT-RTX: engines are built by the real TensorRT-RTX."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import logging
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Engine, Graph, ModelSpec
from edge_effdet.backends.base import Available, CompileOptions, LoadOptions, Unavailable
from edge_effdet.backends.tensorrt import builder as tensorrt
from edge_effdet.backends.tensorrt import context as tensorrt_context
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.backends.tensorrt import engine as tensorrt_engine
from edge_effdet.backends.tensorrt import library as tensorrt_library
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.backends.tensorrt import runtime_cache as tensorrt_runtime_cache
from edge_effdet.errors import (
    BackendUnavailable,
    EdgeEffDetError,
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
    assert len(tensorrt_rtx.compile(make_conv_graph(tmp_path), CompileOptions(target=target)).content) > 10_000


def test_no_target_is_the_default_target(tmp_path):
    graph = make_conv_graph(tmp_path)
    assert tensorrt.parse_target(tensorrt_rtx.FLAVOR, trt, "") == ("86", "89", "120")
    sizes = {
        target: len(tensorrt_rtx.compile(graph, CompileOptions(target=target)).content)
        for target in ("", tensorrt_rtx.TRAITS.default_target, "86")
    }
    assert sizes[""] == sizes[tensorrt_rtx.TRAITS.default_target] != sizes["86"]


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
    assert tensorrt_rtx.compile(graph, dataclasses.replace(ONE_GPU, batch_sizes=(1, 4), workspace_mib=64))


@pytest.mark.parametrize("batch_sizes", [(), (0, 1, 8), (2, 1, 8), (1, 9, 8), (1, 1, 8)])
def test_batch_sizes_must_ascend(batch_sizes):
    with pytest.raises(UsageError, match="do not ascend"):
        dataclasses.replace(ONE_GPU, batch_sizes=batch_sizes)


def test_each_batch_size_gets_a_profile_that_starts_after_the_one_before(tmp_path):
    builder = trt.Builder(trt.Logger())
    network = builder.create_network()
    network.add_input("images", trt.float32, (-1, 3, 8, 8))
    config = builder.create_builder_config()
    added = []

    class Config:
        def add_optimization_profile(self, profile) -> int:
            added.append([tuple(shape) for shape in profile.get_shape("images")])
            return config.add_optimization_profile(profile)

    tensorrt._add_profiles(builder, network, Config(), (1, 4, 8), None)
    assert [[shape[0] for shape in shapes] for shapes in added] == [[1, 1, 1], [2, 4, 4], [5, 8, 8]]
    assert config.num_optimization_profiles == 3


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
        tensorrt_rtx.load(Engine(tmp_path / "any.engine", SPEC, "tensorrt-rtx", "fp32"), LoadOptions())


def test_importing_the_backends_loads_neither_torch_nor_tensorrt():
    code = (
        "import sys, edge_effdet.backends.tensorrt.builder, edge_effdet.backends.tensorrt.rtx\n"
        "print([m for m in ('torch', 'onnx', 'tensorrt', 'tensorrt_rtx', 'pycuda') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Of each module, by the name that a variable or attribute has there, the class of the bindings that it holds.
CLASSES = {
    tensorrt: {
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
        "tensor": "ITensor",
    },
    tensorrt_engine: {
        "_runtime": "Runtime",
        "_engine": "ICudaEngine",
        "config": "IRuntimeConfig",
        "strategy": "CudaGraphStrategy",
    },
    tensorrt_context: {"_native": "IExecutionContext"},
    tensorrt_runtime_cache: {"_cache": "IRuntimeCache", "cache": "IRuntimeCache", "config": "IRuntimeConfig"},
}


def names_used(module):
    """Each ``holder.attribute`` in the module's source."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute):
            holder = node.value
            yield holder.id if isinstance(holder, ast.Name) else getattr(holder, "attr", ""), node.attr


def holders(module):
    """What each word in the module stands for in the bindings."""
    found = {"trt": trt, "_trt": trt} | {name: getattr(trt, of) for name, of in CLASSES.get(module, {}).items()}
    enumerations = ("MemoryPoolType", "TensorIOMode", "ComputeCapability", "EngineInvalidityDiagnostics")
    return found | {name: getattr(trt, name) for name in enumerations}


def documented_signatures(function):
    """Of each overload the names of its arguments but self, and how many of them must be given: from pybind's docstring."""
    name = function.__name__
    for arguments in re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", function.__doc__, re.MULTILINE):
        # Commas within brackets are part of a type.
        parts = re.split(r", (?![^\[<(]*[\]>)])", arguments)
        own = [part for part in parts if part and not part.startswith("self")]
        yield [part.split(":")[0] for part in own], sum(" = " not in part for part in own)


def calls(module):
    """Each ``holder.method(…)`` in the module's source, with the number of positional arguments and the names of the others."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            holder = node.func.value
            if any(isinstance(argument, ast.Starred) for argument in node.args):
                continue
            name = holder.id if isinstance(holder, ast.Name) else getattr(holder, "attr", "")
            yield name, node.func.attr, len(node.args), [keyword.arg for keyword in node.keywords]


@pytest.mark.parametrize(
    ("module", "least"),
    [(tensorrt, 12), (tensorrt_engine, 8), (tensorrt_context, 5), (tensorrt_runtime_cache, 4)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_calls_fit_the_signatures_of_the_bindings(module, least):
    checked = 0
    for holder, name, given, keywords in calls(module):
        function = getattr(holders(module).get(holder), name, None)
        signatures = list(documented_signatures(function)) if function is not None and function.__doc__ else []
        if not signatures:
            continue
        fitting = [
            names
            for names, required in signatures
            if required <= given + len(keywords) <= len(names) and set(keywords) <= set(names[given:])
        ]
        assert fitting, f"{holder}.{name} is given {given} and {keywords}, and takes {signatures}"
        checked += 1
    assert checked >= least


@pytest.mark.parametrize(
    ("module", "least"),
    [(tensorrt, 30), (tensorrt_engine, 20), (tensorrt_context, 6), (tensorrt_runtime_cache, 4), (tensorrt_library, 2)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_all_that_is_used_of_tensorrt_is_in_the_bindings(module, least):
    used = set(names_used(module))
    found = holders(module)
    # The same word also names a Python exception, an answer of ours and our own cache's methods.
    used -= {("error", "name"), ("error", "strerror"), ("trt", "reason"), ("trt", "fix")}
    used -= {("_cache", "attach"), ("_cache", "save")} if module is tensorrt_engine else set()
    checked = [(holder, name) for holder, name in used if holder in found]
    assert len(checked) >= least, checked
    assert [pair for pair in checked if not hasattr(found[pair[0]], pair[1])] == []


@pytest.mark.parametrize(("capability", "runs_here"), [((8, 6), True), ((9, 0), False)])
def test_rtx_runs_on_the_gpus_that_it_knows(monkeypatch, capability, runs_here):
    monkeypatch.setattr(cuda, "probe_gpu", lambda: cuda.Gpu("simulated", capability))
    assert tensorrt_rtx.probe().runs_here == runs_here
