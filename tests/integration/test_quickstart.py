"""The shipped model, as ``make engine`` builds it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_effdet import build_engine, detect, quickstart
from edge_effdet.data.registry import read_dataset
from edge_effdet.data.synthetic import write_scenes
from edge_effdet.data.synthetic_shapes import CLASS_NAMES
from edge_effdet.models.checkpoint import open_checkpoint
from edge_effdet.runtime.images import image_size

SCENES = {"calibration": 16, "test": 64}
"""Fewer than ``make engine`` draws."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture
def proof(output: Path, printed: str) -> Path:
    """The engine's JSON; how the engine's own name ends is up to the backend that was the fastest."""
    (found,) = output.glob("quickstart.int8.*.json")
    return found


@pytest.fixture(scope="module")
def printed(output: Path) -> str:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        patch.setattr(quickstart, "SCENES", SCENES)
        assert build_engine.main(["--int8", "--backend", "fastest", "--fall-back", "--output", str(output)]) == 0
    return "\n".join(lines)


def test_the_shipped_checkpoint_is_small_and_says_how_it_was_made():
    checkpoint = open_checkpoint(quickstart.quickstart_checkpoint())
    assert checkpoint.path.stat().st_size <= 8_000_000
    assert checkpoint.spec.name == "tf_efficientdet_lite0" and checkpoint.spec.class_names == CLASS_NAMES
    assert checkpoint.provenance["command"].startswith("python -m edge_effdet.train --data")
    assert 0 < checkpoint.provenance["val"]["AP"] < 1


def test_make_engine_builds_a_proven_int8_engine(output: Path, printed: str, proof: Path):
    record = json.loads(proof.read_text())
    assert record["accuracy"]["images"] == SCENES["test"] and record["accuracy"]["split"] == "test"
    assert record["accuracy"]["drop"] <= 1.0 and record["gate"]["passed"]
    proof = record["proof"]
    counted = record["proof"]
    assert counted["graph_int8_mac_fraction"] >= 0.95 and counted["counted_on"] == "engine"
    # onnxruntime leaves convolutions in FP32 around their Q/DQ pairs, and its account says so.
    assert counted["int8_mac_fraction"] >= 0.95 or record["backend"] == "onnxruntime"
    assert record["calibration"]["images"] == SCENES["calibration"]
    assert record["accuracy"]["reference_AP"] > 0.15
    for heading in ("precision", "backend", "size", "AP", "AP drop", "MACs in INT8", "median latency"):
        assert heading in printed
    assert "INT8" in printed and "FP32" in printed
    slower = record["latency"]["median_ms"] >= record["reference"]["latency"]["median_ms"]
    assert ("check of accuracy" in printed) == slower
    assert min(image_size(output / "quickstart.int8.jpg")) >= 480


def test_the_engine_finds_objects_in_a_scene(output: Path, proof: Path, capsys: pytest.CaptureFixture[str]):
    (scene,) = output.glob("scenes-*/test/000000.jpg")
    assert detect.main(["--engine", str(proof.with_suffix("")), "--source", str(scene), "--json"]) == 0
    (picture,) = json.loads(capsys.readouterr().out)["images"]
    assert {item["class"] for item in picture["detections"]} <= set(CLASS_NAMES)


def test_the_proof_names_the_calibration_scenes(output: Path, proof: Path):
    record = json.loads(proof.read_text())
    (scenes,) = output.glob("scenes-*")
    assert set(record["calibration"]["manifest"]) == names_of(scenes)


def test_the_manifest_names_the_calibration_scenes(tmp_path: Path):
    manifest = json.loads((Path(__file__).parents[2] / "calibration" / "quickstart.json").read_text())
    count = quickstart.SCENES["calibration"]
    write_scenes(tmp_path, {"calibration": count}, quickstart.SCENES_SEED)
    assert manifest["images"].keys() == names_of(tmp_path)
    assert manifest["count"] == count


def names_of(scenes: Path) -> set[str]:
    """The names of the calibration scenes of a data set, as manifests have them."""
    return {sample.image_id for sample in read_dataset(scenes).splits["calibration"]}
