"""The benchmark of the graph optimizer counts right, leaves out graphs that compute other numbers, and compares the same work."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks import graph_subjects, latency
from benchmarks.graph import (
    MODELS,
    OPENVINO,
    compare_latency,
    compare_layers,
    count_layers,
    count_tool_nodes,
    describe_model,
    largest_error,
    main,
    measure_subject,
)
from benchmarks.graph_subjects import (
    KEEP,
    RAW,
    Skipped,
    Subject,
    attempt,
    make_graphs,
    read_subject,
)
from benchmarks.peers.effdet_photo import make_predictor
from benchmarks.peers.simplifiers import ONNXRUNTIME, SIMPLIFIERS
from edge_effdet.errors import EdgeEffDetError, GraphError
from edge_effdet.models.zoo import model_spec
from edge_effdet.runtime.preprocess import letterbox

SIDE, CHANNELS = 16, 4


def write_tiny(path: Path, scale: float = 1.0, side: int = SIDE) -> Path:
    """Pixels, a convolution, its SiLU, a gate as in squeeze and excitation, an Identity: uint8 [1, 3, side, side] in."""
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Conv", ["pixels", "weight"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"]),
        helper.make_node("Mul", ["s", "c"], ["silu"]),
        helper.make_node("GlobalAveragePool", ["silu"], ["mean"]),
        helper.make_node("Sigmoid", ["mean"], ["gate"]),
        helper.make_node("Mul", ["silu", "gate"], ["gated"]),
        helper.make_node("Identity", ["gated"], ["out"]),
    ]
    weight = np.random.default_rng(0).normal(0, 0.01 * scale, (CHANNELS, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, side, side])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, CHANNELS, side, side])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, str(path))
    return path


def graph_of(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    return helper.make_model(helper.make_graph(list(nodes), "nodes", [], []))


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (1, 3, SIDE, SIDE), np.uint8)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.onnx")


def test_a_silu_counts_as_one_and_a_gate_as_two(tiny: Path) -> None:
    count = count_tool_nodes(onnx.load_model(str(tiny)))
    assert [count[key] for key in ("nodes", "silu", "counted", "foreign")] == [8, 1, 7, 0]
    assert count["kinds"]["Sigmoid"] == count["kinds"]["Mul"] == 2


@pytest.mark.parametrize("order", [("x", "s"), ("s", "x")])
def test_a_silu_is_found_in_either_order(order: tuple[str, str]) -> None:
    nodes = [helper.make_node("Sigmoid", ["x"], ["s"]), helper.make_node("Mul", order, ["y"])]
    assert count_tool_nodes(graph_of(*nodes))["counted"] == 1
    read_twice = helper.make_node("Relu", ["s"], ["z"])
    assert count_tool_nodes(graph_of(*nodes, read_twice))["counted"] == 3


def test_constants_do_not_count_and_foreign_nodes_are_told() -> None:
    constant = helper.make_node("Constant", [], ["one"], value_float=1.0)
    fused = helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft")
    count = count_tool_nodes(graph_of(constant, fused, helper.make_node("Relu", ["y"], ["z"])))
    assert (count["nodes"], count["foreign"]) == (2, 1)
    assert count["kinds"] == {"com.microsoft.QuickGelu": 1, "Relu": 1}


def test_each_simplifier_keeps_what_the_graph_computes(tiny: Path, images: np.ndarray, tmp_path: Path) -> None:
    expected = latency.open_onnxruntime(tiny, 1)(images)
    for number, (name, simplify) in enumerate(SIMPLIFIERS.items()):
        path = tmp_path / f"{number}.onnx"
        try:
            simplify(tiny, path)
        except ImportError:
            # onnxsim is no dependency. Where it is missing, the benchmark says that it was left out.
            assert name == "onnxsim"
            continue
        assert largest_error(latency.open_onnxruntime(path, 1)(images), expected) < 1e-6
        count = count_tool_nodes(onnx.load_model(str(path)))
        assert count["counted"] < 7 and (count["foreign"] > 0) == (name == ONNXRUNTIME), name


def test_simplifiers_print_nothing_into_the_json(tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for number, simplify in enumerate(SIMPLIFIERS.values()):
        attempt(lambda simplify=simplify, number=number: simplify(tiny, tmp_path / f"{number}.onnx"))
    assert capfd.readouterr().out == ""


def test_a_tool_that_fails_is_left_out_with_its_reason(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small graph stands in for the exporter's trace, which takes most of a minute."""

    def fail(source: Path, output: Path) -> None:
        raise ModuleNotFoundError("No module named 'no_such_tool'")

    monkeypatch.setattr(graph_subjects, "trace_network", lambda network, spec, options: ir.load(str(tiny)))
    monkeypatch.setattr(graph_subjects, "our_options", dict)
    monkeypatch.setattr(graph_subjects, "SIMPLIFIERS", {"broken": fail, ONNXRUNTIME: SIMPLIFIERS[ONNXRUNTIME]})
    subject = Subject(torch.nn.Identity(), model_spec("tf_efficientdet_lite0", ("disc",)))
    files, seconds, skipped = make_graphs(subject, tmp_path)
    assert list(files) == list(seconds) == [RAW, ONNXRUNTIME] and all(path.is_file() for path in files.values())
    assert skipped == {"broken": "ModuleNotFoundError: No module named 'no_such_tool'"}
    assert attempt(lambda: 3) == 3 and isinstance(attempt(lambda: int("x")), Skipped)


def test_latency_compares_equal_graphs_and_leaves_others_out(tiny: Path, images: np.ndarray, tmp_path: Path) -> None:
    wrong, missing = write_tiny(tmp_path / "wrong.onnx", scale=1.1), tmp_path / "missing.onnx"
    files = {RAW: tiny, KEEP: tiny, "wrong": wrong, "missing": missing, ONNXRUNTIME: missing}
    rows = {row["way"]: row for row in compare_latency(files, images, threads=1, rounds=2)}
    assert list(rows) == [RAW, KEEP, OPENVINO, "missing", "wrong"]
    assert rows[KEEP]["keep_over_this"] == 1 and rows[RAW]["keep_over_this"] > 0
    assert rows[OPENVINO]["largest_relative_error"] < 1e-3
    assert "differ" in rows["wrong"]["skipped"] and rows["wrong"]["largest_relative_error"] > 1e-3
    assert "median_ms" not in rows["missing"] and rows["missing"]["largest_relative_error"] is None
    with pytest.raises(EdgeEffDetError, match="unoptimized"):
        compare_latency({RAW: missing}, images, threads=1, rounds=1)


def test_errors_are_relative_and_a_missing_tensor_is_one() -> None:
    expected = {"a": np.array([0.0, 100.0]), "b": np.array([1.0])}
    assert largest_error({"a": np.array([1.0, 100.0]), "b": np.array([1.0])}, expected) == pytest.approx(0.01)
    assert largest_error({"a": expected["a"]}, expected) == float("inf")
    assert not largest_error({"a": np.array([np.nan, 0]), "b": np.array([1.0])}, expected) <= 1


def test_times_of_ways_are_milliseconds_by_round_and_run() -> None:
    times = latency.time_ways({"quick": lambda: None, "slow": lambda: time.sleep(0.005)}, rounds=2, runs=3)
    assert list(times) == ["quick", "slow"] and all(own.shape == (2, 3) for own in times.values())
    assert times["slow"].min() >= 5 > np.median(times["quick"])


def test_ratios_are_of_turns_of_one_round() -> None:
    # The machine was three times as slow in the second of three rounds, for both ways.
    times = {
        "ours": np.array([[1.0, 1, 1], [3, 3, 3], [1, 1, 1]]),
        "peer": np.array([[2.0, 2, 9], [6, 6, 6], [2, 2, 2]]),
    }
    peer = latency.summarize_times(times, {"ours_over_this": "ours"})[1]
    assert peer["ours_over_this"] == 0.5 and peer["median_ms"] == 2 and peer["p90_ms"] == pytest.approx(6.6)


def test_layers_are_counted_without_a_gpu(tiny: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    spec = model_spec("tf_efficientdet_lite0", ("disc",))
    raw, broken = compare_layers({RAW: tiny, KEEP: tmp_path / "missing.onnx"}, spec, "89")
    assert raw["network_kinds"]["convolution"] == 1 and raw["network_layers"] == sum(raw["network_kinds"].values())
    assert 0 < raw["engine_layers"] <= raw["network_layers"]
    assert "skipped" in broken
    with pytest.raises(GraphError):
        count_layers(tmp_path / "missing.onnx", spec, "89")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return read_subject("tf_efficientdet_lite0@128")


def test_a_random_network_is_no_fresh_one(subject: Subject) -> None:
    assert subject.title == "tf_efficientdet_lite0, 128x128 px" and not subject.network.training
    again = read_subject("tf_efficientdet_lite0@128").network.state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in subject.network.state_dict().items())
    with torch.inference_mode():
        class_levels, _ = subject.network(torch.randn(1, 3, 128, 128))
    scores = torch.cat([level.flatten() for level in class_levels]).sigmoid()
    assert 0.3 < scores.median() < 0.7 and scores.unique().numel() > 0.5 * scores.numel()


def test_fusion_weights_differ_and_none_drops_an_edge() -> None:
    network = read_subject("tf_efficientdet_d0@128").network
    weights = torch.cat([tensor for name, tensor in network.named_parameters() if name.endswith("edge_weights")])
    assert len(weights) == 57 and weights.min() > 0 and weights.unique().numel() == 57


def test_a_subject_is_a_name_or_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EdgeEffDetError):
        read_subject("tf_efficientdet_lite9@128")
    with pytest.raises(EdgeEffDetError):
        read_subject(str(tmp_path / "none.safetensors"))
    assert all("@" in name for name in MODELS)


def test_effdet_predicts_in_pixels_of_the_original(subject: Subject) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    canvas, scale = letterbox(photo, subject.spec.image_size, subject.spec.preprocess)
    found = make_predictor(subject.network, subject.spec)(canvas, scale, (100, 200))
    assert 0 < len(found) <= 100 and found.boxes.min() >= 0
    assert found.boxes[:, ::2].max() > 128 and (found.boxes <= [[200.01, 100.01] * 2]).all()
    assert found.class_ids.min() >= 0 and found.class_ids.max() < subject.spec.num_classes


def test_the_tables_show_what_was_measured_and_what_was_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small graphs stand in for those of a traced network, and their pictures are larger."""
    tiny = write_tiny(tmp_path / "larger.onnx", side=64)
    made = ({RAW: tiny, KEEP: tiny}, {RAW: 0.5, KEEP: 0.25}, {"onnxsim": "ModuleNotFoundError: none"})
    monkeypatch.setattr("benchmarks.graph.make_graphs", lambda subject, work: made)
    subject = Subject(torch.nn.Identity(), model_spec("tf_efficientdet_lite0", ("disc",), image_size=(64, 64)))
    arguments = argparse.Namespace(layers=False, target="89", threads=1, rounds=1)
    result = measure_subject(subject, arguments, tmp_path)
    text = describe_model(result)
    assert "onnxsim was left out: ModuleNotFoundError" in text and KEEP in text and "keep/this" in text
    result["latency"][-1] = {"way": OPENVINO, "skipped": "it is missing"}
    result["layers"] = [
        {"graph": RAW, "network_layers": 91, "engine_layers": None},
        {"graph": KEEP, "skipped": "no target"},
    ]
    text = describe_model(result)
    for said in ("91", f"{OPENVINO} was left out: it is missing", f"{KEEP} was left out: no target"):
        assert said in text, said


def test_bad_numbers_are_refused_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for flags in (["--rounds", "0"], ["--threads", "-1"]):
        with pytest.raises(SystemExit):
            main(flags)
    assert main(["--models", "tf_efficientdet_lite9"]) == 2
    assert "lite9" in capsys.readouterr().err
