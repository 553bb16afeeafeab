"""Bad input: one sentence, the documented exit code, nothing half-written. Each case runs a verb as a user would."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edge_effdet import build_engine, detect, evaluate, export, quantize
from edge_effdet.artifacts import Engine, Graph
from tests.integration.conftest import BCCD_CHECKPOINT
from tests.scenes import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes of other classes than blood cells; too few to calibrate on."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"train": 4, "val": 2}, seed=2, side=96)
    return root


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of files that are not what their names say."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    content = BCCD_CHECKPOINT.read_bytes()
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "short.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "text.onnx").write_text("not a graph")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.json").write_text("")
    node = helper.make_node("Relu", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    onnx.save(helper.make_model(helper.make_graph([node], "g", value[:1], value[1:])), folder / "foreign.onnx")
    (folder / "file").write_text("a file, not a folder")
    return folder


def fails(main, arguments: str, code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == code
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and said in lines[0], lines


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nowhere.safetensors", "There is no checkpoint"),
        ("empty.safetensors", "not a whole safetensors file"),
        ("short.safetensors", "not a whole safetensors file"),
    ],
)
@pytest.mark.parametrize("verb", [export, build_engine])
def test_checkpoints(verb, file: str, said: str, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    precision = "--fp32" if verb is build_engine else ""
    output = tmp_path / "out" if verb is build_engine else tmp_path / "out" / "x.onnx"
    fails(verb.main, f"--checkpoint {damaged / file} {precision} --output {output}", 2, said, capsys)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("nowhere.onnx", "There is no ONNX file"),
        ("empty.onnx", "not a whole ONNX file"),
        ("text.onnx", "not a whole ONNX file"),
        ("foreign.onnx", "was not exported by edge_effdet"),
    ],
)
def test_graphs(file: str, said: str, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "out.onnx"
    fails(quantize.main, f"--onnx {damaged / file} --fp16 --output {output}", 2, said, capsys)
    fails(build_engine.main, f"--onnx {damaged / file} --fp16 --output {tmp_path / 'out'}", 2, said, capsys)
    assert not output.exists()


def test_int8_without_images(bccd_graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "out.onnx"
    fails(quantize.main, f"--onnx {bccd_graph.path} --int8 --output {output}", 2, "INT8 needs real images", capsys)
    fails(
        build_engine.main,
        f"--onnx {bccd_graph.path} --int8 --backend onnxruntime --output {tmp_path / 'engines'}",
        2,
        "INT8 needs real images",
        capsys,
    )
    assert not output.exists() and not list(tmp_path.rglob("*.int8.*"))


def test_int8_with_too_few_images(bccd_graph: Graph, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "out.onnx"
    arguments = f"--onnx {bccd_graph.path} --int8 --calibration-data {scenes} --output {output}"
    fails(quantize.main, arguments, 2, "Only 4 calibration images", capsys)
    fails(quantize.main, f"{arguments} --calibration-images 2", 2, "too few", capsys)
    assert not output.exists()


@pytest.mark.data
def test_calibration_images_that_are_evaluation_images(
    bccd_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = (
        f"--onnx {bccd_graph.path} --int8 --backend onnxruntime --output {tmp_path / 'engines'} --eval-data {bccd_part} "
        f"--split val --calibration-data {bccd_part} --calibration-split val --calibration-images 8"
    )
    fails(build_engine.main, arguments, 2, "8 calibration images are also evaluation images", capsys)


def test_classes_that_the_model_does_not_know(scenes: Path, capsys: pytest.CaptureFixture[str]):
    fails(evaluate.main, f"--checkpoint {BCCD_CHECKPOINT} --data {scenes}", 2, "which the model does not know", capsys)


def test_class_lists_that_do_not_match(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = f"--checkpoint {BCCD_CHECKPOINT} --classes a,b --output {tmp_path / 'x.onnx'}"
    fails(export.main, arguments, 2, "has 3 classes", capsys)


def test_unknown_model_backend_and_target(bccd_graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    fails(export.main, f"--model efficientdet_d99 --output {tmp_path / 'x.onnx'}", 2, "no model named", capsys)
    graph = f"--onnx {bccd_graph.path} --fp32 --output {tmp_path / 'engines'}"
    fails(build_engine.main, f"{graph} --backend tensorrt-rtx --target 33", 2, "33", capsys)
    fails(build_engine.main, f"{graph} --backend onnxruntime --target 89", 2, "no targets", capsys)
    fails(build_engine.main, f"{graph} --batch-size 4", 2, "--batch-size says how to export", capsys)
    with pytest.raises(SystemExit) as exit_:
        build_engine.main(f"{graph} --backend toaster".split())
    assert exit_.value.code == 2
    assert not list(tmp_path.rglob("*.engine*")) and not list((tmp_path / "engines").glob("*.onnx*"))


def test_a_backend_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from edge_effdet.backends.base import Available
    from edge_effdet.backends.tensorrt import builder as tensorrt

    if isinstance(tensorrt.probe(), Available):
        pytest.skip("TensorRT is installed here")
    arguments = f"--checkpoint {BCCD_CHECKPOINT} --fp16 --backend tensorrt --output {tmp_path / 'engines'}"
    fails(build_engine.main, arguments, 3, "tensorrt is not available", capsys)
    assert not (tmp_path / "engines").exists()


def test_an_output_folder_that_cannot_be_made(damaged: Path, capsys: pytest.CaptureFixture[str]):
    inside_a_file = damaged / "file" / "engines"
    fails(
        build_engine.main, f"--checkpoint {BCCD_CHECKPOINT} --fp32 --output {inside_a_file}", 2, "Cannot write", capsys
    )
    fails(export.main, f"--checkpoint {BCCD_CHECKPOINT} --output {inside_a_file / 'x.onnx'}", 2, "Cannot write", capsys)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "There is no image or folder"),
        ("empty.jpg", "is empty"),
        ("text.jpg", "is not an image"),
    ],
)
def test_sources(
    source: str, said: str, bccd_engine: Engine, damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    engine = bccd_engine.path
    fails(detect.main, f"--engine {engine} --source {damaged / source} --output {tmp_path / 'found'}", 2, said, capsys)
    assert not (tmp_path / "found").exists()
    fails(detect.main, f"--engine {damaged / 'empty.onnx'} --source {damaged}", 2, "has no empty.onnx.json", capsys)
    fails(detect.main, f"--engine {engine} --source {damaged} --score-threshold 3", 2, "between 0 and 1", capsys)


@pytest.mark.parametrize("data", ["nowhere", "empty.json", "file"])
def test_data(data: str, damaged: Path, capsys: pytest.CaptureFixture[str]):
    assert evaluate.main(f"--checkpoint {BCCD_CHECKPOINT} --data {damaged / data}".split()) == 2
    assert "error: " in capsys.readouterr().err
