"""The shipped model, as ``make engine`` builds it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_effdet import build_engine, detect, export, quickstart
from edge_effdet.data.base import Dataset
from edge_effdet.data.registry import read_dataset
from edge_effdet.graph.model import load_graph
from edge_effdet.runtime.images import image_size
from tests.integration.conftest import ASSETS

ROOT = Path(__file__).parents[2]
SOME = {"train": 16, "test": 24}
"""Fewer photographs than ``make engine`` takes."""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture
def proof(output: Path, printed: str) -> Path:
    """The engine's JSON; how the engine's own name ends is up to the backend that was the fastest."""
    (found,) = output.glob("quickstart.int8.*.json")
    return found


@pytest.fixture(scope="module")
def printed(output: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    lines: list[str] = []
    photos = some_photos(tmp_path_factory.mktemp("photos"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        patch.setattr(quickstart, "PHOTOS", photos)
        words = ["--int8", "--backend", "fastest", "--fall-back", "--calibration-images", str(SOME["train"])]
        assert build_engine.main([*words, "--max-ap-drop", "3", "--output", str(output)]) == 0
    return "\n".join(lines)


def some_photos(folder: Path) -> Path:
    """The shipped photographs with shorter lists."""
    for name in ("JPEGImages", "Annotations"):
        (folder / name).symlink_to(quickstart.PHOTOS / name)
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for split, count in SOME.items():
        names = (quickstart.PHOTOS / "ImageSets" / "Main" / f"{split}.txt").read_text().split()
        (lists / f"{split}.txt").write_text("\n".join(names[:count]))
    return folder


@pytest.fixture(scope="module")
def photos() -> Dataset:
    return read_dataset(quickstart.quickstart_photos())


def test_the_shipped_graph_is_that_of_the_checkpoint(tmp_path: Path):
    """Whoever has the checkpoint gets the same graph from it by the command of the model card."""
    assert (
        export.main(["--checkpoint", str(ASSETS / "bccd_lite0.safetensors"), "--output", str(tmp_path / "own.onnx")])
        == 0
    )
    own, shipped = load_graph(tmp_path / "own.onnx"), load_graph(quickstart.quickstart_graph())
    assert own.spec == shipped.spec and own.parents["checkpoint"] == shipped.parents["checkpoint"]
    first, second = (onnx.load(graph.path).graph for graph in (own, shipped))
    assert [node.op_type for node in first.node] == [node.op_type for node in second.node]
    for one, other in zip(first.initializer, second.initializer, strict=True):
        np.testing.assert_allclose(
            onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other), rtol=1e-4, atol=1e-6
        )


def test_what_is_shipped_is_small_and_has_its_licence():
    size = sum(path.stat().st_size for path in quickstart.quickstart_photos().rglob("*") if path.is_file())
    assert size < 8_000_000 and quickstart.quickstart_graph().stat().st_size < 14_000_000
    assert (quickstart.quickstart_photos() / "LICENSE").read_text().startswith("MIT License")


def test_the_photographs_are_those_of_the_manifests(photos: Dataset):
    """``calibration/bccd.json`` names those that calibrate, and ``calibration/bccd-test.json`` those that judge, with their hashes."""
    from edge_effdet.data.base import samples_manifest

    for split, name in (("train", "bccd.json"), ("test", "bccd-test.json")):
        manifest = json.loads((ROOT / "calibration" / name).read_text())
        assert samples_manifest(photos.splits[split]) == manifest["images"] and manifest["count"] == len(
            photos.splits[split]
        )


def test_make_engine_builds_a_proven_int8_engine(output: Path, printed: str, proof: Path):
    record = json.loads(proof.read_text())
    assert record["accuracy"]["images"] == SOME["test"] and record["accuracy"]["split"] == "test"
    assert record["gate"]["passed"]
    counted = record["proof"]
    assert counted["graph_int8_mac_fraction"] >= 0.95 and counted["counted_on"] == "engine"
    # onnxruntime leaves convolutions in FP32 around their Q/DQ pairs, and its account says so.
    assert counted["int8_mac_fraction"] >= 0.95 or record["backend"] == "onnxruntime"
    assert record["calibration"]["images"] == SOME["train"]
    assert record["accuracy"]["reference_AP"] > 0.35
    for heading in ("precision", "backend", "size", "AP", "AP drop", "MACs in INT8", "median latency"):
        assert heading in printed
    assert "INT8" in printed and "FP32" in printed
    slower = record["latency"]["median_ms"] >= record["reference"]["latency"]["median_ms"]
    assert ("check of accuracy" in printed) == slower
    assert min(image_size(output / "quickstart.int8.jpg")) >= 480


def test_the_commands_that_it_ends_with_can_be_typed(output: Path, printed: str, capsys: pytest.CaptureFixture[str]):
    commands = [shlex.split(line) for line in printed.splitlines() if " -m edge_effdet." in line]
    assert [words[2].rpartition(".")[2] for words in commands] == ["detect", "benchmark", "deploy"]
    words = commands[0]
    photo = min(Path(words[words.index("--source") + 1]).iterdir())
    words[words.index("--source") + 1] = str(photo)
    assert detect.main([*words[3:], "--json"]) == 0
    (picture,) = json.loads(capsys.readouterr().out)["images"]
    assert {item["class"] for item in picture["detections"]} <= {"RBC", "WBC", "Platelets"} and picture["detections"]
    assert list((output / "found").glob(f"{photo.stem}*"))


def test_the_proof_names_the_calibration_photographs(proof: Path, photos: Dataset):
    manifest = json.loads(proof.read_text())["calibration"]["manifest"]
    assert set(manifest) <= {sample.image_id for sample in photos.splits["train"]} and len(manifest) == SOME["train"]
