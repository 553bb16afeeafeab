"""Where boxes are suppressed: refused where the backend cannot, recorded where it can. TensorRT itself needs a GPU."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edge_effdet import build_engine
from edge_effdet.artifacts import Engine, ModelSpec, file_sha256
from edge_effdet.artifacts.record import Accuracy, Latency, Race, Reference
from edge_effdet.backends.base import BACKENDS, Available, Compiled, CompileOptions, get_backend
from edge_effdet.building import chain, summary
from edge_effdet.building import engine as engine_module
from edge_effdet.building.gate import judge, parse_budget
from edge_effdet.building.options import BuildConfig
from edge_effdet.cli import options_from
from edge_effdet.data.base import samples_manifest
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import AccuracyGateFailed, DataError, GraphError, UsageError
from edge_effdet.graph.model import save_graph
from edge_effdet.graph.rules.efficient_nms import PLUGIN
from edge_effdet.quant.stage import QuantizeOptions
from tests.backends import FakeBackend
from tests.records import make_record


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "tensorrt-rtx"])
def test_only_tensorrt_has_the_plugin(tmp_path, capsys, backend):
    words = ["--fp32", "--backend", backend, "--nms", "efficientnms", "--output", str(tmp_path / "engines")]
    assert build_engine.main(words) == 2
    said = capsys.readouterr().err
    assert f"plugin of TensorRT, which {backend} does not have; leave it out" in said
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "engines").exists()


def test_the_plugin_is_not_raced(tmp_path, capsys):
    words = ["--fp32", "--backend", "fastest", "--nms", "efficientnms", "--output", str(tmp_path / "engines")]
    assert build_engine.main(words) == 2
    assert "the fastest backend may be another; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize(
    ("backend", "milliseconds", "vnni", "race", "said", "advised"),
    [
        ("onnxruntime", 9.0, True, False, False, False),
        ("onnxruntime", 30.0, True, False, True, True),
        ("onnxruntime", 30.0, True, True, True, False),
        ("onnxruntime", 30.0, False, False, True, False),
        ("openvino", 30.0, True, True, True, False),
        ("openvino", 30.0, True, False, True, False),
    ],
)
def test_a_cpu_that_gains_nothing_by_int8_is_told_of(
    tmp_path, monkeypatch, backend, milliseconds, vnni, race, said, advised
):
    monkeypatch.setattr(summary, "cpu_has_dot_products", lambda: vnni)
    raced = Race(winner=backend, order=(backend,), precision="int8", graph_sha256="", backends=())
    record = make_record(
        backend=backend,
        precision="int8",
        reference=Reference("", 1, Latency(10.0, 10.0, 30, 1)),
        latency=Latency(milliseconds, milliseconds, 30, 1),
        race=raced if race else None,
    )
    text = "".join(summary._speed_remark(record))
    assert ("check of accuracy" in text) == said
    assert ("`backend` fastest finds out" in text) == advised
    assert ("has no VNNI" in text) == (said and not vnni)


def test_a_draft_that_cannot_be_made_is_raced_in_fp32(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise GraphError("silu_71 was 0 everywhere")

    raced = []
    monkeypatch.setattr(chain, "draft_int8", fail)
    monkeypatch.setattr(chain, "comparison_pictures", lambda job: ([], True))
    monkeypatch.setattr(
        chain, "race_backends", lambda graph, options, draft, **_: raced.append(draft("onnxruntime") is graph)
    )
    job = engine_module.BuildJob(name="tiny", graph=save_detector(tmp_path), output=tmp_path, images=object())
    chain._race(BuildConfig(), job, "int8")
    assert raced == [True]
    assert "raced in FP32, since no draft in INT8 could be made: silu_71" in caplog.text


def test_batch_sizes_ascend(tmp_path, capsys):
    assert chain.parse_batch_sizes("1") == (1,)
    assert chain.parse_batch_sizes("1,4,16") == (1, 4, 16)
    for text in ("0,8", "8,1", "4,4", "1,,8", "two", "-1", ""):
        with pytest.raises(UsageError, match="whole numbers that ascend"):
            CompileOptions(batch_sizes=chain.parse_batch_sizes(text))
    words = ["--fp32", "--batch-sizes", "8,1", "--output", str(tmp_path / "engines")]
    assert build_engine.main(words) == 2 and "write 1,8" in capsys.readouterr().err
    assert not (tmp_path / "engines").exists()


def save_detector(folder):
    """A graph that finds the same two boxes in any picture, with a convolution for the proof to count."""
    found = {
        "boxes": (TensorProto.FLOAT, np.array([[[0, 0, 8, 8], [0, 0, 8, 7]]], np.float32)),
        "scores": (TensorProto.FLOAT, np.array([[0.9, 0.6]], np.float32)),
        "class_ids": (TensorProto.INT32, np.zeros((1, 2), np.int32)),
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
        for name, (_, array) in found.items()
    ]
    proto = helper.make_graph(
        [
            *nodes,
            helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT),
            helper.make_node("Conv", ["x", "w"], ["y"]),
        ],
        "detector",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, 16, 16])],
        [helper.make_tensor_value_info(name, kind, array.shape) for name, (kind, array) in found.items()],
        [numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")],
        value_info=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 16, 16])],
    )
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 18)])
    spec = ModelSpec("tiny", (16, 16), ("thing",), (1,))
    return save_graph(
        model, folder / "tiny.onnx", spec=spec, stage="optimized", precision="fp32", rewrites={}, parents={}
    )


def build(tmp_path, nms, backend="tensorrt"):
    graph = save_detector(tmp_path)
    job = engine_module.BuildJob(name="tiny", graph=graph, output=tmp_path / "engines", nms=nms)
    return engine_module.build_engine(job, "fp32", backend, QuantizeOptions())


def test_the_function_refuses_it_too(tmp_path):
    with pytest.raises(UsageError, match="plugin of TensorRT"):
        build(tmp_path, "efficientnms", backend="onnxruntime")


@pytest.mark.parametrize("nms", ["host", "efficientnms"])
def test_simulated_engine_records_where_boxes_are_suppressed(tmp_path, monkeypatch, nms):
    """A backend that stands for TensorRT: its engine is the graph that it was given."""

    class Simulated(FakeBackend):
        def compile(self, graph, options):
            return Compiled(graph.path.read_bytes())

    orin = Available("10.3.0", "Orin (SM 87)", runs_here=False)
    monkeypatch.setitem(BACKENDS, "tensorrt", Simulated(orin, traits=get_backend("tensorrt").TRAITS))
    engine = build(tmp_path, nms)
    compiled = onnx.load(str(engine.path))
    assert [node.op_type for node in compiled.graph.node].count(PLUGIN) == (nms == "efficientnms")
    record = json.loads(engine.json_path.read_text())
    assert record["nms"] == nms
    assert record["parents"]["compiled_graph"] == file_sha256(engine.path)
    assert record["rewrites"].get("efficient_nms", 0) == (nms == "efficientnms")
    # It tells nothing of its layers, so the graph was counted.
    assert record["proof"]["counted_on"] == "graph" and record["proof"]["source"] is None
    # It never ran, so what it must find on its target is what its graph finds here.
    assert record["golden"]["fingerprint"]["backend"] == "onnxruntime" and record["agreement"] is None
    assert record["golden"]["kind"] == "drawn" and list(record)[-1] == "golden"


class Tries:
    """Stands for ``build_engine`` and the race: engines whose AP drops are given, by precision and backend."""

    def __init__(self, monkeypatch, tmp_path, drops, orders):
        self.drops, self.orders, self.built = drops, orders, []
        self.folder = tmp_path
        for name in {backend for _, backend in drops}:
            monkeypatch.setitem(BACKENDS, name, FakeBackend())
        monkeypatch.setattr(chain, "build_engine", self.build)
        monkeypatch.setattr(chain, "_race", self.race)

    def race(self, config, job, precision):
        order = self.orders[precision]
        if not order:
            raise AccuracyGateFailed("No backend here finds what the FP32 graph finds")
        return Race(winner=order[0], order=order, precision=precision, graph_sha256="", backends=())

    def build(self, job, precision, backend, quantizing, race=None, lowered=None, tried_before=()):
        self.built.append((precision, backend))
        accuracy = Accuracy(
            AP=0.4,
            AP50=0.8,
            images=72,
            split="test",
            measured_on="engine",
            data_sha256="",
            drop=self.drops[precision, backend],
        )
        verdict = judge(accuracy, None, job.budget, tuple(tried_before))
        record = make_record(accuracy=accuracy, gate=verdict, precision=precision, backend=backend)
        return Engine(self.folder / f"x.{precision}.onnx", job.graph.spec, backend, precision, "ab" * 32, record)


DROPS = {
    ("int8", "fast"): 12.0, ("int8", "slow"): 0.1, ("int8", "bad"): 5.0,
    ("fp16", "fast"): 2.0, ("fp16", "slow"): 0.1, ("fp32", "slow"): 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("words", "orders", "tried"),
    [
        ("", {"int8": ("fast", "slow")}, [("int8", "fast"), ("int8", "slow")]),
        ("--max-ap-drop none", {"int8": ("fast", "slow")}, [("int8", "fast")]),
        ("--max-ap-drop 20", {"int8": ("fast", "slow")}, [("int8", "fast")]),
        ("--fall-back", {"int8": ("fast", "bad"), "fp16": ("slow",)}, [("int8", "fast"), ("int8", "bad"), ("fp16", "slow")]),
        ("--fall-back", {"int8": (), "fp16": ("slow",)}, [("fp16", "slow")]),
        ("--fall-back", {"int8": (), "fp16": ("fast",), "fp32": ("slow",)}, [("fp16", "fast"), ("fp32", "slow")]),
    ],
)  # fmt: skip
def test_the_next_is_tried_before_the_build_gives_up(tmp_path, monkeypatch, words, orders, tried):
    tries = Tries(monkeypatch, tmp_path, DROPS, orders)
    arguments = build_engine.make_argument_parser().parse_args(["--int8", *words.split()])
    config = options_from(BuildConfig, arguments)
    job = engine_module.BuildJob(
        name="x", graph=save_detector(tmp_path), output=tmp_path, budget=parse_budget(config.max_ap_drop)
    )
    engine = chain._build_within_budget(job, config, "")
    assert tries.built == tried
    assert (engine.precision, engine.backend) == tried[-1]
    before = engine.record.gate.tried_before
    assert len(before) == len(tried) - 1 + (orders["int8"] == ())
    remarks = "".join(summary._gate_remarks(engine.record, engine.record.gate))
    assert ("in place of what was not right" in remarks) == bool(before)


@pytest.mark.parametrize("orders", [{"int8": ("fast", "bad")}, {"int8": (), "fp16": ("fast",), "fp32": ()}])
def test_a_build_that_finds_none_within_the_budget_says_what_each_lost(tmp_path, monkeypatch, orders):
    Tries(monkeypatch, tmp_path, DROPS, orders)
    config = BuildConfig(fall_back="fp16" in orders)
    job = engine_module.BuildJob(name="x", graph=save_detector(tmp_path), output=tmp_path)
    with pytest.raises(AccuracyGateFailed) as failed:
        chain._build_within_budget(job, config, "")
    said = str(failed.value)
    if orders["int8"]:
        assert "x.int8.onnx was built and is kept, but the gate does not let it pass" in said
        assert "INT8 by fast: it loses 12.00" in said and "INT8 by bad: it loses 5.00" in said
    else:
        assert "x.fp16.onnx was built and is kept" in said
        assert "(INT8: No backend here finds what the FP32 graph finds; FP16 by fast: it loses 2.00" in said
    assert "`max_ap_drop`" in said


def test_the_only_error_of_a_build_stays_what_it_is(tmp_path, monkeypatch):
    def fail(*_):
        raise GraphError("silu_71 was 0 everywhere")

    monkeypatch.setattr(chain, "build_engine", fail)
    job = engine_module.BuildJob(name="x", graph=save_detector(tmp_path), output=tmp_path)
    with pytest.raises(GraphError, match=r"^silu_71 was 0 everywhere$"):
        chain._build_within_budget(job, BuildConfig(), "onnxruntime")


def test_what_cannot_be_built_is_fallen_back_from(tmp_path, monkeypatch):
    tries = Tries(monkeypatch, tmp_path, DROPS, {"int8": ("fast", "slow"), "fp16": ("slow",)})

    def build(job, precision, backend, *rest):
        if precision == "int8":
            raise GraphError(f"{backend} refuses the graph.")
        return tries.build(job, precision, backend, *rest)

    monkeypatch.setattr(chain, "build_engine", build)
    job = engine_module.BuildJob(name="x", graph=save_detector(tmp_path), output=tmp_path)
    engine = chain._build_within_budget(job, BuildConfig(fall_back=True), "")
    assert (engine.precision, engine.backend) == ("fp16", "slow")
    assert engine.record.gate.tried_before == (
        "INT8 by fast: fast refuses the graph",
        "INT8 by slow: slow refuses the graph",
    )


def test_a_graph_that_was_lowered_falls_back_to_nothing():
    config = BuildConfig(fall_back=True)
    for precision, tried in (("fp32", ("int8", "fp16", "fp32")), ("int8", ("int8",))):
        assert chain._precisions(precision, config) == tried


@pytest.mark.parametrize("changes", [{"sha256": "ab" * 32}, {"parents": {"graph": "ab" * 32}}])
def test_a_lowered_graph_whose_file_is_anothers_by_now_is_made_again(tmp_path, monkeypatch, changes):
    """It was replaced after it was read, or before."""
    graph = save_detector(tmp_path)
    job = engine_module.BuildJob(name="x", graph=graph, output=tmp_path / "engines")
    stale = replace(graph, **{"parents": {"graph": graph.sha256}, **changes})
    made = []
    real = engine_module.lower_graph
    monkeypatch.setattr(engine_module, "lower_graph", lambda *given: made.append(given) or real(*given))
    engine = engine_module.build_engine(job, "fp32", "onnxruntime", QuantizeOptions(), lowered=stale)
    assert len(made) == 1 and engine.record.parents["compiled_graph"] == graph.sha256


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"golden": "None"}, "There is no `golden` 'None'; the choices are pictures, drawn, none"),
        ({"golden": None}, "There is no `golden` None"),
        ({"precision": "int4"}, "There is no `precision` 'int4'"),
        ({"high_precision": "bf16"}, "There is no `high_precision` 'bf16'"),
        ({"weight_codes": 300}, "makes no sense in INT8"),
        ({"precision": "fp16", "search": True}, "there is nothing to choose"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(given, said):
    with pytest.raises(UsageError, match=said):
        BuildConfig(**given)


def test_numbers_are_taken_as_numbers():
    assert chain.parse_batch_sizes((1, 8)) == (1, 8)
    assert parse_budget(BuildConfig(max_ap_drop=1.5).max_ap_drop).points == 1.5
    config = BuildConfig()
    assert config.quantizing("openvino").weight_codes == 63 and config.quantizing("tensorrt").weight_codes == 127
    assert (
        config.quantizing("tensorrt").high_precision == "fp16"
        and config.quantizing("openvino").high_precision == "fp32"
    )


def test_of_data_without_splits_the_gate_takes_all_but_what_calibration_had(tmp_path, tiny_voc):
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / name).symlink_to(tiny_voc / name)
    flat = read_dataset(tmp_path, quiet=True)
    assert flat.held_out
    split, samples = chain._judged(flat, BuildConfig(), {})
    assert (split, len(samples)) == ("all", 12)
    split, samples = chain._judged(flat, BuildConfig(), {"elsewhere": "ab" * 32})
    assert (split, len(samples)) == ("all", 12)
    # As calibration chooses from the same folder.
    calibrating = samples_manifest(flat.choose_split(None, ("calibration", "train"))[1])
    split, samples = chain._judged(flat, BuildConfig(), calibrating)
    assert split == "val" and not calibrating.keys() & {sample.image_id for sample in samples}
    with pytest.raises(DataError, match="10 calibration images are also evaluation images"):
        chain._judged(flat, BuildConfig(split="all"), calibrating)
