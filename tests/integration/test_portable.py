"""An engine that is right where it was built is right, or refused, where it is taken.

Half of these tests need a processor on which OpenVINO's INT8 saturates (x86 without VNNI) to show what is wrong; on others they show
that the same files are right there. ``tests/emulation`` runs other processors.
"""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.peers.plain_onnxruntime import PlainRunner
from edge_effdet import build_engine, detect, evaluate, verify
from edge_effdet.artifacts import Engine, Graph, load_engine
from edge_effdet.artifacts.record import Fingerprint
from edge_effdet.backends.arithmetic import EXACT_EVERYWHERE, FULL_RANGE, int8_arithmetic
from edge_effdet.backends.base import CompileOptions, load_runner
from edge_effdet.building.engine import CANDIDATES, compile_engine
from edge_effdet.data.base import Dataset, readable_images
from edge_effdet.errors import EngineError
from edge_effdet.evaluation.accuracy import find_in_graph
from edge_effdet.runtime.agreement import TOLERANCES, detection_distance, find_best
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.golden import draw_pictures, encode_picture, make_golden
from edge_effdet.runtime.preprocess import letterbox
from tests.integration.conftest import QUICK
from tests.records import write_record

SATURATES = int8_arithmetic("openvino").saturates
WITH_VNNI = Fingerprint("openvino", "2026.4.1", "x86", ("avx2", "avx512_vnni", "avx512f"))


@pytest.fixture(scope="module")
def photographs(bccd_graph: Graph, bccd_dataset: Dataset) -> list[np.ndarray]:
    spec = bccd_graph.spec
    images = readable_images(bccd_dataset.splits["train"][:3])
    return [letterbox(image, spec.image_size, spec.preprocess)[0] for _, image in images]


def as_built_with_vnni(graph: Graph, photographs: list[np.ndarray], folder: Path) -> Engine:
    """The engine as a machine with VNNI builds it for OpenVINO: its golden detections are those of exact arithmetic."""
    engine = compile_engine(graph, "openvino", CompileOptions(), folder / "moved.int8.onnx")
    with load_runner(replace(engine, backend="onnxruntime")) as runner:
        golden = make_golden(runner, graph.spec, photographs, "pictures", "int8", WITH_VNNI)
    write_record(replace(engine, record=replace(engine.require_record(), golden=golden)))
    return load_engine(engine.path)


def largest_code(path: Path) -> int:
    weights = (onnx.numpy_helper.to_array(each) for each in onnx.load(str(path)).graph.initializer)
    return max(int(np.abs(each.astype(int)).max()) for each in weights if each.dtype == np.int8)


@pytest.mark.data
def test_weights_keep_to_the_codes_that_were_asked_for(bccd_int8_graph: Graph, bccd_full_range_graph: Graph):
    assert largest_code(bccd_int8_graph.path) == EXACT_EVERYWHERE
    assert largest_code(bccd_full_range_graph.path) == FULL_RANGE


@pytest.mark.data
def test_an_engine_with_seven_bits_of_weights_may_be_moved(
    bccd_int8_graph: Graph, photographs: list[np.ndarray], tmp_path: Path
):
    engine = as_built_with_vnni(bccd_int8_graph, photographs, tmp_path)
    with Detector.load(engine) as detector:
        assert len(detector(photographs[0]))


@pytest.mark.data
def test_an_engine_that_saturates_where_it_is_taken_is_refused(
    bccd_full_range_graph: Graph, photographs: list[np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    engine = as_built_with_vnni(bccd_full_range_graph, photographs, tmp_path)
    if not SATURATES:
        Detector.load(engine).close()
        return
    with pytest.raises(EngineError, match=r"finds other objects on this machine .*INT8 sums saturate"):
        Detector.load(engine)
    source = tmp_path / "photo.png"
    from PIL import Image

    Image.fromarray(photographs[0]).save(source)
    words = ["--engine", str(engine.path), "--source", str(source)]
    assert detect.main(words) == 2
    said = capsys.readouterr()
    assert "finds other objects" in said.err and not said.out
    assert detect.main([*words, "--no-self-check"]) == 0
    assert "without its golden check, as asked" in capsys.readouterr().err
    assert verify.main(["--engine", str(engine.path)]) == 4
    said = capsys.readouterr()
    assert "FAILED" in said.out and "--layers shows in which layer" in said.err


@pytest.mark.data
def test_evaluation_goes_through_the_check_too(
    bccd_full_range_graph: Graph,
    photographs: list[np.ndarray],
    bccd_part: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    if not SATURATES:
        pytest.skip("OpenVINO's INT8 is exact on this processor")
    engine = as_built_with_vnni(bccd_full_range_graph, photographs, tmp_path)
    assert evaluate.main(["--engine", str(engine.path), "--data", str(bccd_part)]) == 2
    assert "finds other objects" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.data
def test_a_wrong_backend_does_not_win_the_race(
    bccd_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = (
        f"--onnx {bccd_graph.path} --int8 --backend fastest --name x --output {tmp_path} --json --weight-codes 127 "
        f"--calibration-data {bccd_part} {QUICK}"
    )
    assert build_engine.main(arguments.split()) == 0
    said = capsys.readouterr()
    record = json.loads(said.out)
    (row,) = (row for row in record["race"]["backends"] if row["backend"] == "openvino")
    assert (row["skipped"] is not None) == SATURATES
    if SATURATES:
        assert (
            "computes something else here: on 8 pictures its scores differ" in row["skipped"]
            and record["backend"] == "onnxruntime"
        )
        assert "openvino is left out" in said.err
    assert record["gate"]["passed"] and record["gate"]["decided_by"] == "agreement"
    assert "jpeg" not in said.out, "the golden pictures fill the screen"


@pytest.mark.data
def test_a_wrong_engine_ends_the_build_with_4(
    bccd_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = (
        f"--onnx {bccd_graph.path} --int8 --backend openvino --name x --output {tmp_path} --weight-codes 127 "
        f"--calibration-data {bccd_part} {QUICK}"
    )
    # Without labels, by what it finds in calibration pictures.
    code = build_engine.main(arguments.split())
    assert code == (4 if SATURATES else 0)
    assert ("scores differ from those of its own graph, computed exactly," in capsys.readouterr().err) == SATURATES
    assert (tmp_path / "x.int8.onnx").is_file()
    assert build_engine.main([*arguments.split(), "--max-ap-drop", "none"]) == 0
    said = capsys.readouterr()
    record = json.loads((tmp_path / "x.int8.onnx.json").read_text())
    assert record["gate"]["max_ap_drop"] is None and record["gate"]["budget_was"] == "asked"
    assert record["agreement"]["right"] != SATURATES
    # What is wrong here must not become what other machines are measured by.
    assert record["golden"]["kind"] == ("none" if SATURATES else "pictures")
    assert "a budget of none lets any engine pass" in said.out


@pytest.mark.data
def test_other_programs_compute_our_graph_right(bccd_int8_graph: Graph, photographs: list[np.ndarray]):
    """onnxruntime with its default options, which fuses INT8 convolutions that saturate without VNNI."""
    exact = find_in_graph(bccd_int8_graph, photographs)
    with PlainRunner(bccd_int8_graph.path) as runner:
        found = [find_best(runner, bccd_int8_graph.spec, picture) for picture in photographs]
    assert detection_distance(exact, found) <= TOLERANCES["int8"]


@pytest.mark.data
@pytest.mark.parametrize("kind", ["drawn", pytest.param("none", marks=pytest.mark.slow)])
def test_private_pictures_stay_at_home(
    bccd_int8_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
):
    arguments = (
        f"--onnx {bccd_int8_graph.path} --int8 --backend onnxruntime --name x --output {tmp_path} --golden {kind} "
        f"--eval-data {bccd_part} --split val"
    )
    assert build_engine.main(arguments.split()) == 0
    said = capsys.readouterr().out
    assert ("drawn pictures are in the JSON" in said) == (kind == "drawn") and "pictures given" not in said
    engine = load_engine(tmp_path / "x.int8.onnx")
    assert engine.record.golden.kind == kind
    assert bool(engine.record.golden.pictures) == (kind == "drawn")
    drawn = {encode_picture(picture) for picture in draw_pictures(engine.spec.image_size, CANDIDATES)}
    assert {base64.b64decode(each.jpeg) for each in engine.record.golden.pictures} <= drawn
    assert verify.main(["--engine", str(engine.path), "--json"]) == 0
    checked = json.loads(capsys.readouterr().out)["golden"]
    assert checked is None if kind == "none" else checked["passed"]


@pytest.mark.data
def test_verify_measures_and_rewrites_nothing(
    bccd_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = f"--onnx {bccd_graph.path} --fp32 --backend onnxruntime --name x --output {tmp_path} --eval-data {bccd_part} --split test"
    assert build_engine.main(arguments.split()) == 0
    engine = tmp_path / "x.fp32.onnx"
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert verify.main(["--engine", str(engine), "--data", str(bccd_part), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    record = load_engine(engine).record
    assert said["accuracy"]["AP"] == pytest.approx(record.accuracy.AP) and said["accuracy"]["passed"] is True
    assert said["accuracy"]["split"] == "test" and said["golden"]["distance"] < 1e-3, "rounding in the record shows"
    assert record.accuracy.machine.backend == "onnxruntime"
    assert verify.main(["--engine", str(engine), "--data", str(bccd_part), "--split", "val"]) == 0
    assert "other images" in capsys.readouterr().out
    # An engine that was proven to be better than it is here.
    path = engine.with_name(engine.name + ".json")
    record = json.loads(path.read_text())
    record["accuracy"]["AP"] += 0.02
    # As an earlier version wrote it; with the digest it would not be read.
    del record["fields_sha256"]
    path.write_text(json.dumps(record))
    assert verify.main(["--engine", str(engine), "--data", str(bccd_part)]) == 4
    assert "AP here and had" in capsys.readouterr().err
    path.write_bytes(before[path])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert verify.main(["--engine", str(engine), "--against", "openvino"]) == 2
    assert "add --layers" in capsys.readouterr().err
