"""The examples in the docstrings of the stages run as they stand there, one after the other, on twelve drawn pictures."""

from __future__ import annotations

import doctest
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import edge_effdet
from edge_effdet import EvaluateConfig, QuantizeConfig, evaluate_detector, quantize_graph
from edge_effdet.artifacts import Checkpoint, Engine, Graph
from edge_effdet.benchmarking.baseline import read_report
from edge_effdet.benchmarking.options import EFFORTS
from tests.bench_backends import TINY

DOCS = Path(__file__).parents[2] / "docs"
STAGES = (
    "train_detector",
    "export_checkpoint",
    "quantize_graph",
    "build",
    "evaluate_detector",
    "predict_files",
    "benchmark_engines",
)


def examples_of(stage: str) -> list[doctest.Example]:
    """The examples in the docstring of a public function; those that doctest is told to skip are among them."""
    examples = doctest.DocTestParser().get_examples(getattr(edge_effdet, stage).__doc__)
    for example in examples:
        example.options.clear()
    return examples


@pytest.fixture(scope="module")
def folder(tiny_voc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data and the photos that the examples name."""
    root = tmp_path_factory.mktemp("library")
    shutil.copytree(tiny_voc, root / "bccd")
    (root / "photos").mkdir()
    pictures = sorted((tiny_voc / "JPEGImages").glob("*.jpg"))
    for picture in pictures[:2]:
        shutil.copy(picture, root / "photos")
    shutil.copy(pictures[0], root / "photo.jpg")
    return root


@pytest.fixture(scope="module")
def assigned(folder: Path) -> dict[str, dict[str, Any]]:
    """The variables of each example after it ran; each finds the files of those before it."""
    names: dict[str, dict[str, Any]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(EFFORTS, "quick", TINY)
        for stage in STAGES:
            names[stage] = {}
            test = doctest.DocTest(examples_of(stage), names[stage], stage, None, 0, None)
            # It raises where an example fails or gives something else than stands below it.
            doctest.DebugRunner().run(test, clear_globs=False)
            names[stage] = test.globs
    return names


def test_training_returns_the_best_checkpoint(assigned: dict[str, dict[str, Any]], folder: Path):
    best, ap = assigned["train_detector"]["best"], assigned["train_detector"]["ap"]
    assert isinstance(best, Checkpoint) and set(best.spec.class_names) == {"bar", "disc"} and 0 <= ap <= 1
    assert best.path == Path("runs/bccd/best.safetensors") and (folder / best.path).is_file()
    command = best.provenance["command"]
    assert command.startswith("python -m edge_effdet.train --data bccd --output runs/bccd ") and "--epochs 1" in command


def test_export_and_quantization_return_graphs(assigned: dict[str, dict[str, Any]]):
    found = assigned["export_checkpoint"]
    assert isinstance(found["export"].graph, Graph) and found["export"].graph.precision == "fp32"
    assert found["nodes"] > 100 and found["macs"] > 1e6
    quantized = assigned["quantize_graph"]["graph"]
    assert isinstance(quantized, Graph) and quantized.precision == "int8"
    assert quantized.parents["graph"] == found["export"].graph.sha256
    assert assigned["quantize_graph"]["images"] == 8


def test_build_returns_an_engine(assigned: dict[str, dict[str, Any]]):
    engine = assigned["build"]["engine"]
    assert isinstance(engine, Engine) and engine.precision == "int8"


def test_an_evaluation_holds_numbers_and_leaves_a_report(assigned: dict[str, dict[str, Any]], folder: Path):
    judged = assigned["evaluate_detector"]["judged"]
    assert judged.metrics.images == len(judged.detections) == 2 and judged.subject["split"] == "test"
    assert set(assigned["evaluate_detector"]["by_class"]) == {"bar", "disc"}
    written = json.loads((folder / "judged" / "metrics.json").read_text())
    assert judged.to_dict().items() <= written.items()


def test_predictions_are_by_file(assigned: dict[str, dict[str, Any]], folder: Path):
    assert list(assigned["predict_files"]["counts"]) == ["scene_00.jpg", "scene_01.jpg"]
    assert {path.name for path in (folder / "seen").iterdir()} == {"scene_00.jpg", "scene_01.jpg", "detections.json"}


def test_a_benchmark_returns_the_report_that_it_writes(assigned: dict[str, dict[str, Any]], folder: Path):
    found = assigned["benchmark_engines"]
    assert found["report"] == read_report(folder / "measured" / "report.json")
    row = found["row"]
    assert row.skipped is None and row.engine_sha256 == assigned["build"]["engine"].sha256
    assert found["median_ms"] > 0 and found["best_rate"] > 0 and found["report"].machine.peaks is not None
    # The same file, judged by another stage.
    judged = assigned["evaluate_detector"]["judged"]
    assert row.quality is not None and row.quality.images == judged.metrics.images
    assert row.profile is not None and row.profile.macs_matched > 0.95


def test_artifacts_stand_in_for_their_files(
    assigned: dict[str, dict[str, Any]], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    config = EvaluateConfig(split="val", device="cpu")
    engine, best = assigned["build"]["engine"], assigned["train_detector"]["best"]
    assert evaluate_detector(engine, "bccd", config).subject["engine_sha256"] == engine.sha256
    by_file = evaluate_detector(str(engine.path), folder / "bccd", config)
    assert by_file.subject["engine_sha256"] == engine.sha256
    one, alone = (evaluate_detector(source, "bccd", config) for source in (best, [best.path]))
    assert one.to_dict() == alone.to_dict() and one.subject["checkpoint_sha256"] == best.sha256
    graph = assigned["export_checkpoint"]["export"].graph
    half = quantize_graph(graph, tmp_path / "half.onnx", QuantizeConfig(precision="fp16"))
    assert half.precision == "fp16" and half.spec == best.spec


@pytest.mark.parametrize("stage", STAGES)
def test_the_page_on_python_shows_the_same_examples(stage: str):
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    for example in examples_of(stage):
        assert example.source.split("  # doctest")[0].strip() in page
