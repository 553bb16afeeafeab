"""The main job on real images, from the graph of a checkpoint to a proven engine."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import openvino as ov
import pytest

from edge_effdet import build_engine, detect, evaluate
from edge_effdet.artifacts import Graph, file_sha256, load_engine
from edge_effdet.backends import openvino
from edge_effdet.backends.base import CompileOptions, LoadOptions
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.data.base import Dataset
from edge_effdet.evaluation.accuracy import graph_as_engine
from edge_effdet.evaluation.run import evaluate_engine
from edge_effdet.runtime.images import image_size
from tests import tolerances
from tests.integration.conftest import BCCD_CHECKPOINT, PART, quantize_quickly


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, bccd_graph: Graph, bccd: Path) -> Path:
    """An INT8 engine of the BCCD checkpoint, judged on all 72 test images."""
    output = tmp_path_factory.mktemp("engines")
    arguments = (
        f"--onnx {bccd_graph.path} --int8 --backend onnxruntime --name bccd --output {output} "
        f"--calibration-data {bccd} --calibration-images 16 --eval-data {bccd} --split test --max-ap-drop 1.5"
    )
    assert build_engine.main(arguments.split()) == 0
    return output / "bccd.int8.onnx"


@pytest.mark.data
def test_int8_keeps_its_accuracy_and_proves_it(built: Path):
    record = json.loads(built.with_name(built.name + ".json").read_text())
    assert record["accuracy"]["images"] == 72
    assert record["accuracy"]["reference_AP50"] >= 0.75
    assert record["accuracy"]["drop"] <= 1.5
    assert record["accuracy"]["measured_on"] == "engine" and record["engine_verified"]
    assert record["proof"]["graph_int8_mac_fraction"] == 1.0 and record["proof"]["counted_on"] == "engine"
    assert record["proof"]["layers_kept_high_precision"] == []
    low, high = record["accuracy"]["drop_interval"]
    assert low < record["accuracy"]["drop"] < high
    assert record["accuracy"]["confidence"]["flattened"] is False
    assert set(record["proof"]["final_convolutions"].values()) == {"fp32"}
    assert record["calibration"]["images"] == 16 and len(record["calibration"]["manifest_sha256"]) == 64
    assert record["parents"]["checkpoint"] == file_sha256(BCCD_CHECKPOINT)
    assert record["engine_sha256"] == file_sha256(built)
    assert built.with_suffix(".jpg").is_file()


@pytest.mark.data
def test_evaluate_reads_the_same_ap_from_the_engine_file(built: Path, bccd: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate.main(["--engine", str(built), "--data", str(bccd), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    record = load_engine(built).record
    assert printed["AP"] == pytest.approx(record.accuracy.AP)
    assert printed["engine_sha256"] == record.engine_sha256
    assert {"AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "images"} <= printed.keys()
    assert (printed["images"], printed["split"]) == (72, "test")


@pytest.mark.data
def test_detect_a_folder_with_a_truncated_picture(
    built: Path, bccd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    source = tmp_path / "photos"
    source.mkdir()
    whole = (bccd / "JPEGImages" / "BloodImage_00007.jpg").read_bytes()
    (source / "a.jpg").write_bytes(whole)
    (source / "b.jpg").write_bytes(whole[: len(whole) // 2])
    assert detect.main(["--engine", str(built), "--source", str(source), "--output", str(tmp_path / "found")]) == 0
    said = capsys.readouterr().err
    assert "b.jpg" in said and "1 of 2 images" in said
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    (picture,) = found["images"]
    assert any(item["class"] == "WBC" and item["score"] > 0.5 for item in picture["detections"])
    assert image_size(tmp_path / "found" / "a.jpg") == (480, 640)


@pytest.mark.data
def test_a_changed_engine_is_refused(built: Path, bccd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    changed = tmp_path / built.name
    content = bytearray(built.read_bytes())
    content[len(content) // 2] ^= 1
    changed.write_bytes(content)
    changed.with_name(changed.name + ".json").write_text(built.with_name(built.name + ".json").read_text())
    image = bccd / "JPEGImages" / "BloodImage_00007.jpg"
    assert detect.main(["--engine", str(changed), "--source", str(image)]) == 2
    assert "SHA-256" in capsys.readouterr().err
    changed.with_name(changed.name + ".json").unlink()
    assert detect.main(["--engine", str(changed), "--source", str(image)]) == 2
    assert "has no" in capsys.readouterr().err


@pytest.mark.data
def test_too_large_a_drop_ends_with_4_and_keeps_the_engine(
    bccd_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    # FP32 is its own reference, so its drop is 0: more than the -1 that is allowed here.
    arguments = (
        f"--onnx {bccd_graph.path} --fp32 --backend onnxruntime --name x --output {tmp_path} "
        f"--eval-data {bccd_part} --max-ap-drop=-1"
    )
    assert build_engine.main(arguments.split()) == 4
    assert "x.fp32.onnx was built and is kept" in capsys.readouterr().err
    load_engine(tmp_path / "x.fp32.onnx")


@pytest.mark.data
def test_a_search_judges_by_another_split_and_keeps_its_steps(
    bccd_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = tmp_path / "table.json"
    arguments = (
        f"--onnx {bccd_graph.path} --int8 --backend onnxruntime --name x --output {tmp_path} --calibration-data {bccd_part} "
        f"--calibration-images 8 --calibration-table {table} --rounding nearest --eval-data {bccd_part} --split test --search"
    )
    assert build_engine.main(f"{arguments} --max-ap-drop none".split()) == 2
    assert "--search needs a budget" in capsys.readouterr().err
    assert build_engine.main(f"{arguments} --max-ap-drop 20 --fp16".replace(" --int8", "").split()) == 2
    assert "there is nothing to choose here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert build_engine.main(f"{arguments} --max-ap-drop 20".split()) == 0
    said = capsys.readouterr()
    assert f"searching on {PART} images (split val)" in said.err and "all convolutions can be INT8" in said.err
    steps = json.loads((tmp_path / "graphs" / "x.int8.onnx.search.json").read_text())
    assert steps["identity"]["evaluation_sha256"] and list(steps["judged"]) == ["0"]
    assert json.loads(table.read_text())["identity"]["graph_sha256"] == bccd_graph.sha256
    assert build_engine.main(f"{arguments} --max-ap-drop 20 --method max".split()) == 2
    assert "was measured for another method" in capsys.readouterr().err


@pytest.mark.data
def test_a_graph_that_is_int8_already_is_no_reference_for_itself(
    bccd_int8_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = f"--onnx {bccd_int8_graph.path} --int8 --backend onnxruntime --name x --output {tmp_path} --json"
    assert build_engine.main(f"{arguments} --eval-data {bccd_part} --max-ap-drop 1".split()) == 2
    assert "no FP32 graph here to lose AP against" in capsys.readouterr().err
    assert build_engine.main(f"{arguments} --eval-data {bccd_part} --split train".split()) == 2
    assert "are also evaluation images" in capsys.readouterr().err
    assert not list(tmp_path.glob("x.*"))
    assert build_engine.main(f"{arguments} --eval-data {bccd_part}".split()) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert accuracy["AP"] > 0.3 and accuracy["reference_AP"] is None and accuracy["drop"] is None


@pytest.mark.data
def test_openvino_agrees_with_onnxruntime(bccd_graph: Graph, bccd_dataset: Dataset, tmp_path: Path):
    assert openvino.compile(bccd_graph, CompileOptions()).content == bccd_graph.path.read_bytes()
    engine = graph_as_engine(bccd_graph)
    samples = bccd_dataset.splits["test"][:12]
    first = evaluate_engine(engine, samples)
    second = evaluate_engine(replace(engine, backend="openvino"), samples)
    assert second.AP == pytest.approx(first.AP, abs=tolerances.AP_OTHER_RUNTIME)


@pytest.mark.data
def test_fp16_graph_keeps_the_ap(bccd_graph: Graph, bccd_half_graph: Graph, bccd_dataset: Dataset):
    samples = bccd_dataset.splits["test"][:24]
    full = evaluate_engine(graph_as_engine(bccd_graph), samples)
    half = evaluate_engine(graph_as_engine(bccd_half_graph), samples)
    assert half.AP == pytest.approx(full.AP, abs=tolerances.AP_FP16)


@pytest.mark.data
def test_openvino_keeps_the_ap_in_the_half_precision_of_the_processor(
    bccd_graph: Graph, bccd_half_graph: Graph, bccd_dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    samples = bccd_dataset.splits["test"][:24]
    full = evaluate_engine(graph_as_engine(bccd_graph), samples)
    half = evaluate_engine(replace(graph_as_engine(bccd_half_graph), backend="openvino"), samples)
    assert half.AP == pytest.approx(full.AP, abs=tolerances.AP_BF16)
    arguments = f"--onnx {bccd_half_graph.path} --fp16 --backend openvino --name half --output {tmp_path}"
    assert build_engine.main(arguments.split()) == 0
    said = capsys.readouterr().out
    arithmetic = json.loads((tmp_path / "half.fp16.onnx.json").read_text())["latency"]["arithmetic"]
    capabilities = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert arithmetic == ("f16" if "FP16" in capabilities else "bf16" if "BF16" in capabilities else "f32")
    with openvino.load(load_engine(tmp_path / "half.fp16.onnx"), LoadOptions()) as runner:
        assert runner.was_compiled, "what was compiled while measuring did not come along"
        assert runner.arithmetic == arithmetic
    assert ("has BF16 in place of FP16" in said) == (arithmetic == "bf16")
    assert ("has no half precision" in said) == (arithmetic == "f32")


@pytest.mark.data
def test_openvino_runs_every_quantized_convolution_in_int8(bccd_int8_graph: Graph):
    """As its own account of what it compiled says, and not only the graph."""
    model = ov.Core().compile_model(str(bccd_int8_graph.path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = Counter()
    for node in model.get_runtime_model().get_ops():
        told = {name: value.astype(str) for name, value in node.get_rt_info().items()}
        if "Convolution" in told.get("layerType", ""):
            ran["int8" if told["runtimePrecision"] in ("i8", "u8") else told["runtimePrecision"]] += 1
    convolutions = [node for node in onnx.load(bccd_int8_graph.path).graph.node if node.op_type == "Conv"]
    high = [node for node in convolutions if ".predict." in node.name]
    assert ran == {"int8": len(convolutions) - len(high), "f32": len(high)}


@pytest.mark.data
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_rtx_builds_without_a_gpu(
    precision: str, bccd_graph: Graph, bccd_half_graph: Graph, bccd_int8_graph: Graph
):
    graph = {"fp32": bccd_graph, "fp16": bccd_half_graph, "int8": bccd_int8_graph}[precision]
    together = tensorrt_rtx.compile(graph, CompileOptions(target="80+86+89+120")).content
    turing = tensorrt_rtx.compile(graph, CompileOptions(target="75")).content
    assert len(together) > 1_000_000 and len(turing) > 1_000_000
    assert together != turing


@pytest.mark.data
def test_an_engine_that_cannot_run_here_says_so(
    bccd_half_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    if tensorrt_rtx.probe().runs_here:  # type: ignore[union-attr]
        pytest.skip("a GPU is here, so the engine runs")
    arguments = (
        f"--onnx {bccd_half_graph.path} --fp16 --backend tensorrt-rtx --target 89 --name ahead --output {tmp_path} "
        f"--eval-data {bccd_part} --split test --json"
    )
    assert build_engine.main(arguments.split()) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["accuracy"]["measured_on"] == "graph"
    assert printed["engine_verified"] is False and printed["latency"] is None
    assert printed["target"] == "89" and printed["backend"] == "tensorrt-rtx"
    assert printed["proof"]["fp16_mac_fraction"] == 1.0
    assert (
        detect.main(["--engine", str(tmp_path / "ahead.fp16.engine"), "--source", str(bccd_part / "JPEGImages")]) == 3
    )
    assert "error: " in capsys.readouterr().err


@pytest.mark.data
def test_int8_graph_with_fp16_around_it_builds_and_detects_the_same(
    bccd_graph: Graph, bccd_int8_graph: Graph, bccd_dataset: Dataset, bccd_part: Path, tmp_path: Path
):
    mixed = quantize_quickly(bccd_graph, bccd_part, tmp_path / "mixed.onnx", high_precision="fp16")
    samples = bccd_dataset.splits["test"][:24]
    one = evaluate_engine(graph_as_engine(bccd_int8_graph), samples)
    two = evaluate_engine(graph_as_engine(mixed), samples)
    assert two.AP == pytest.approx(one.AP, abs=tolerances.AP_INT8_REST_IN_FP16)
    assert len(tensorrt_rtx.compile(mixed, CompileOptions(target="89")).content) > 1_000_000
