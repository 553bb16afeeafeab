"""Where outputs go: never over an input or over other results, to a place that is looked at first, and under names of any bytes."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet import __main__ as program
from edge_effdet.artifacts import Engine, file_sha256, load_engine, write_json
from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from edge_effdet.graph.model import load_graph
from edge_effdet.models.checkpoint import save_checkpoint
from edge_effdet.models.zoo import create_network, model_spec
from edge_effdet.quant.calibration import FEWEST_IMAGES, manifest_record
from edge_effdet.quant.choose import load_calibration_images, load_manifest_images
from edge_effdet.quant.stage import CalibrationOptions, calibration_dataset
from tests.records import write_record
from tests.unit.building.test_chain import save_detector
from tests.unit.runtime.test_sources import write_video

Run = Callable[..., tuple[int, str]]

BAD = (b"\xb2\xe2\xca\xd4.jpg", r"\xb2\xe2\xca\xd4.jpg")
"""A file name in GBK, as it is unpacked from an old archive, and how outputs write it."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in ``tmp_path``; gives its exit code and the last line on stderr."""
    monkeypatch.chdir(tmp_path)

    def run_here(command: str) -> tuple[int, str]:
        verb, *words = command.split()
        module = program.module_name(verb) if verb in program.VERBS else f"edge_effdet.{verb}"
        code = importlib.import_module(module).main(words)
        return code, (capsys.readouterr().err.strip().splitlines() or [""])[-1]

    return run_here


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """``e/tiny.fp32.onnx``, an engine that finds a box in any picture, made from ``e/graphs/tiny.fp32.onnx``."""
    graph = save_detector(tmp_path / "made")
    (tmp_path / "e" / "graphs").mkdir(parents=True)
    shutil.move(graph.path, tmp_path / "e" / "graphs" / "tiny.fp32.onnx")
    (tmp_path / "made").rmdir()
    graph = load_graph(tmp_path / "e" / "graphs" / "tiny.fp32.onnx")
    built = compile_engine(graph, "onnxruntime", CompileOptions(), tmp_path / "e" / "tiny.fp32.onnx")
    write_record(built)
    return built


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights for pictures of 64 pixels."""
    spec = model_spec("tf_efficientdet_lite0", ("bar", "disc"), None, (64, 64))
    path = tmp_path_factory.mktemp("trained") / "m.safetensors"
    save_checkpoint(path, create_network(spec).state_dict(), spec, {})
    return path


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, ``m.safetensors``."""
    return Path(shutil.copy(trained, tmp_path))


@pytest.fixture
def data(tiny_voc: Path, tmp_path: Path) -> Path:
    """A labelled data set, ``data``."""
    return Path(shutil.copytree(tiny_voc, tmp_path / "data"))


def draw(path: Path | bytes, size: tuple[int, int] = (32, 24), seed: int = 0) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    with open(path, "wb") as stream:
        Image.fromarray(pixels).save(stream, format="JPEG")


def contents(root: Path) -> dict[Path, str]:
    return {path: file_sha256(path) for path in sorted(root.rglob("*")) if path.is_file()}


def ways(name: str) -> Iterator[str]:
    """Other names of a file ``x/name``."""
    source = Path("x") / name
    yield str(source)
    yield f"x/../x/{name}"
    yield str(source.absolute())
    Path("link").symlink_to("x")
    yield f"link/{name}"
    Path("x", f"link-{name}").symlink_to(source.absolute())
    yield f"x/link-{name}"
    os.link(source, Path("x", f"hard-{name}"))
    yield f"x/hard-{name}"
    yield f"x/{name.upper()}"


@pytest.mark.parametrize(
    "results",
    [
        pytest.param("", marks=pytest.mark.slow),
        "--results json",
        pytest.param("--results none", marks=pytest.mark.slow),
    ],
)
def test_a_video_is_not_overwritten(run: Run, engine: Engine, tmp_path: Path, results: str):
    pytest.importorskip("av")
    (tmp_path / "x").mkdir()
    write_video(tmp_path / "x" / "clip.mp4", "mpeg4", frames=3)
    (tmp_path / "link").symlink_to("x")
    (tmp_path / "clip.mp4").symlink_to("x/clip.mp4")
    before = contents(tmp_path)
    for source, output in (
        ("x/clip.mp4", "x"),
        ("x/clip.mp4", "./x/."),
        (f"{tmp_path}/x/clip.mp4", "x"),
        ("link/clip.mp4", "x"),
        ("x/clip.mp4", "link"),
        ("clip.mp4", "x"),
    ):
        code, said = run(f"detect --engine {engine.path} --source {source} --output {output} {results}")
        assert code == 2
        assert f"would overwrite {source}, which is read; give another --output" in said
    assert contents(tmp_path) == before
    # What does not overwrite it may lie beside it.
    assert run(f"detect --engine {engine.path} --source x/clip.mp4 --output x --no-draw {results}")[0] == 0
    assert file_sha256(tmp_path / "x" / "clip.mp4") == before[tmp_path / "x" / "clip.mp4"]


@pytest.mark.parametrize("verb", ["detect --engine e/tiny.fp32.onnx", "predict --checkpoint m.safetensors"])
def test_pictures_are_not_overwritten(run: Run, engine: Engine, checkpoint: Path, tmp_path: Path, verb: str):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    draw(tmp_path / "x" / "a.jpg")
    (tmp_path / "link").symlink_to("x")
    # A folder of links to pictures: what is annotated would have the names of the pictures themselves.
    (tmp_path / "y" / "a.jpg").symlink_to(tmp_path / "x" / "a.jpg")
    before = contents(tmp_path)
    for source, output in (("x", "x"), ("x/a.jpg", "x"), ("link", "x"), ("x", "link"), ("y", "x"), ("x", "y")):
        assert run(f"{verb} --source {source} --output {output}")[0] == 2
    assert contents(tmp_path) == before
    assert run(f"{verb} --source x --output x/found")[0] == 0
    assert before.items() <= contents(tmp_path).items()


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("quantize --fp16 --onnx {source} --output {output}", "a.onnx"),
        ("quantize --int8 --calibration-data data --onnx {source} --output {output}", "a.onnx"),
        ("export --checkpoint {source} --output {output}", "m.safetensors"),
        ("models.checkpoint {source} {output}", "m.safetensors"),
    ],
)
def test_a_model_is_not_overwritten(
    run: Run, engine: Engine, checkpoint: Path, tmp_path: Path, command: str, name: str
):
    source = {"a.onnx": engine.path, "m.safetensors": checkpoint}[name]
    (tmp_path / "x").mkdir()
    shutil.copy(source, tmp_path / "x" / name)
    digest = file_sha256(source)
    for output in ways(name):
        code, said = run(command.format(source=f"x/{name}", output=output))
        assert code == 2
        assert said.startswith(f"error: Writing {output} would overwrite x/{name}, which is read; give another ")
        assert file_sha256(tmp_path / "x" / name) == digest


def test_a_build_does_not_overwrite_its_graph(run: Run, engine: Engine, tmp_path: Path):
    (tmp_path / "x").mkdir()
    shutil.copy(engine.path, tmp_path / "x" / "z.fp32.onnx")
    before = contents(tmp_path)
    command = "build_engine --onnx x/z.fp32.onnx --fp32 --backend onnxruntime"
    for options in (
        "--output x",
        "--name z --output ./x",
        "--name Z --output x",
        "--timing-cache x/z.fp32.onnx --output y",
    ):
        code, said = run(f"{command} {options}")
        assert (code, "would overwrite x/z.fp32.onnx, which is read" in said) == (2, True), options
    assert "--timing-cache" in said
    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e", "x"]


def test_a_build_reads_the_graph_in_its_own_folder(run: Run, engine: Engine, tmp_path: Path):
    graph = tmp_path / "e" / "graphs" / "tiny.fp32.onnx"
    digest = file_sha256(graph)
    assert run(f"build_engine --onnx {graph} --fp32 --backend onnxruntime --golden none --output e")[0] == 0
    assert file_sha256(graph) == digest
    assert load_engine(engine.path).record is not None


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train --data data --output data/run", "data/run/best.safetensors would be written into data"),
        (
            "evaluate --engine e/tiny.fp32.onnx --data data --output data",
            "data/metrics.json would be written into data",
        ),
        (
            "quantize --int8 --onnx e/tiny.fp32.onnx --calibration-data data --output data/q.onnx",
            "data/q.onnx would be written into data, which is read; give another --output, outside of it",
        ),
        (
            "quantize --int8 --onnx e/tiny.fp32.onnx --calibration-data data --calibration-table data/t.json --output q.onnx",
            "data/t.json would be written into data, which is read; give another --calibration-table, outside of it",
        ),
        (
            "build_engine --int8 --onnx e/tiny.fp32.onnx --calibration-data data --output data/engines",
            "would be written into data",
        ),
        ("build_engine --fp16 --onnx e/tiny.fp32.onnx --eval-data data --output data", "would be written into data"),
        ("verify --engine e/tiny.fp32.onnx --layers --data data --output data/layers", "would be written into data"),
    ],
)
def test_nothing_is_written_into_a_data_set(
    run: Run, engine: Engine, data: Path, tmp_path: Path, command: str, said: str
):
    before = contents(tmp_path)
    code, last = run(command)
    assert code == 2
    assert said in last
    assert contents(tmp_path) == before
    assert not any((data / name).exists() for name in ("run", "engines", "layers"))


def test_training_does_not_overwrite_what_it_starts_from(run: Run, data: Path, trained: Path, tmp_path: Path):
    (tmp_path / "run").mkdir()
    best = Path(shutil.copy(trained, tmp_path / "run" / "best.safetensors"))
    code, said = run("train --data data --checkpoint run/best.safetensors --output run --epochs 1")
    assert (code, "would overwrite run/best.safetensors, which is read" in said) == (2, True)
    assert file_sha256(best) == file_sha256(trained)
    assert [path.name for path in best.parent.iterdir()] == ["best.safetensors"]


def test_results_of_two_videos_of_one_stem_are_both_kept(run: Run, engine: Engine, tmp_path: Path):
    pytest.importorskip("av")
    for number, name in enumerate(("a/plain.mp4", "b/plain.MOV", "c/plain.mp4")):
        (tmp_path / name).parent.mkdir()
        write_video(tmp_path / name, "mpeg4", frames=3 + number)
    command = f"detect --engine {engine.path} --output found --source"
    assert run(f"{command} a/plain.mp4")[0] == run(f"{command} b/plain.MOV")[0] == 0
    names = ["plain.MOV.jsonl", "plain.MOV.mp4", "plain.mp4", "plain.mp4.jsonl"]
    assert sorted(path.name for path in (tmp_path / "found").iterdir()) == names
    for name, frames in (("plain.mp4.jsonl", 3), ("plain.MOV.jsonl", 4)):
        assert len((tmp_path / "found" / name).read_text().splitlines()) == frames
    before = contents(tmp_path / "found")
    code, said = run(f"{command} c/plain.mp4")
    assert code == 2
    assert f"{Path('found', 'plain.mp4.jsonl')} holds the results of a/plain.mp4" in said
    assert contents(tmp_path / "found") == before
    # The same video may be looked at again, whatever it is called.
    assert run(f"{command} ./a/../a/plain.mp4 --no-draw")[0] == 0


@pytest.mark.parametrize("verb", ["detect --engine e/tiny.fp32.onnx", "predict --checkpoint m.safetensors"])
def test_results_of_other_pictures_are_kept(run: Run, engine: Engine, checkpoint: Path, tmp_path: Path, verb: str):
    for number, name in enumerate(("a/x.jpg", "a/y.jpg", "b/x.jpg")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        draw(tmp_path / name, seed=number)
    assert run(f"{verb} --source a/x.jpg --output found")[0] == 0
    # All of them, and the one that is known among them.
    assert run(f"{verb} --source a --output found")[0] == 0
    before = contents(tmp_path / "found")
    for source, lost in (("b", "a/x.jpg"), ("a/y.jpg", "a/x.jpg")):
        code, said = run(f"{verb} --source {source} --output found")
        assert code == 2
        assert (
            f"found/detections.json holds the results of {lost}, which this run would overwrite and does not read"
            in said
        )
    assert contents(tmp_path / "found") == before
    # The folder is emptied and filled, as a camera does.
    (tmp_path / "a" / "x.jpg").unlink()
    assert run(f"{verb} --source a --output found")[0] == 0


@pytest.mark.parametrize(
    ("command", "loads"),
    [
        ("detect --engine e/tiny.fp32.onnx --source x --output {place}", "runtime.detector.Detector.load"),
        ("predict --checkpoint m.safetensors --source x --output {place}", "evaluation.prediction.load_members"),
        ("train --data data --output {place}", "training.stage._train_on_samples"),
        ("evaluate --engine e/tiny.fp32.onnx --data data --output {place}", "evaluation.stage.load_runner"),
        ("evaluate --checkpoint m.safetensors --data data --output {place}", "evaluation.stage.load_members"),
        ("models.checkpoint m.safetensors {place}/half.safetensors", "models.checkpoint.load_network"),
        ("export --checkpoint m.safetensors --output {place}/m.onnx", "graph.export.load_source"),
        ("quantize --fp16 --onnx e/tiny.fp32.onnx --output {place}/q.onnx", "quant.stage.convert_to_fp16"),
        ("build_engine --checkpoint m.safetensors --fp32 --output {place}", "graph.export.load_source"),
        ("verify --engine e/tiny.fp32.onnx --layers --output {place}", "building.verify.load_runner"),
    ],
)
@pytest.mark.parametrize("place", ["file/out", "/proc/nope/out"])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    run: Run,
    engine: Engine,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch,
    command: str,
    loads: str,
    place: str,
):
    if place.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no /proc here")
    (tmp_path / "file").touch()
    (tmp_path / "x").mkdir()
    draw(tmp_path / "x" / "a.jpg")
    before = contents(tmp_path)
    monkeypatch.setattr(f"edge_effdet.{loads}", lambda *_, **__: pytest.fail("it was loaded"))
    code, said = run(command.format(place=place))
    assert code == 2
    assert re.search(rf"Cannot write (into )?{re.escape(place)}", said)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    "command",
    [
        "export --checkpoint m.safetensors --output x",
        "quantize --fp16 --onnx e/tiny.fp32.onnx --output x",
        "models.checkpoint m.safetensors x",
    ],
)
def test_a_folder_is_no_file_to_write(run: Run, engine: Engine, checkpoint: Path, tmp_path: Path, command: str):
    (tmp_path / "x").mkdir()
    code, said = run(command)
    assert (code, "x is a folder and has to be a file" in said) == (2, True)
    assert list((tmp_path / "x").iterdir()) == []


@pytest.fixture
def bad_names(tmp_path: Path) -> Path:
    """Two pictures and one that is damaged, ``x``; the names of two of them are not UTF-8."""
    folder = tmp_path / "x"
    folder.mkdir()
    try:
        draw(os.fsencode(folder) + b"/" + BAD[0])
    except OSError:
        pytest.skip("this file system takes only names that are UTF-8")
    draw(folder / "ok.jpg")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xb2.jpg")).write_text("words")
    return folder


def named(path: Path) -> set[str]:
    """The names of pictures in a file of results."""
    text = path.read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    if isinstance(rows, dict):
        rows = [*rows["images"], *rows.get("skipped", ())]
    return {Path(str(row.get("image", row.get("image_id")))).name for row in rows}


@pytest.mark.parametrize(
    ("results", "file", "expected"),
    [
        ("json", "detections.json", {BAD[1], "ok.jpg", r"\xb2.jpg"}),
        ("jsonl", "detections.jsonl", {BAD[1], "ok.jpg", r"\xb2.jpg"}),
        ("coco", "detections.coco.json", {BAD[1].removesuffix(".jpg"), "ok"}),
    ],
)
def test_detect_goes_on_with_names_that_are_not_utf8(
    run: Run, engine: Engine, bad_names: Path, results: str, file: str, expected: set[str]
):
    for _ in range(2):
        # The second run knows the names in the results of the first.
        code, said = run(f"detect --engine {engine.path} --source x --output found --results {results}")
        assert (code, said) == (0, "1 of 3 images could not be decoded and were left out")
        assert named(Path("found", file)) == expected
    assert os.fsencode("found") + b"/" + BAD[0] in [os.fsencode(path) for path in Path("found").iterdir()]


def test_predict_goes_on_with_names_that_are_not_utf8(run: Run, checkpoint: Path, bad_names: Path):
    assert run("predict --checkpoint m.safetensors --source x --output found")[0] == 0
    assert named(Path("found", "detections.json")) == {BAD[1], "ok.jpg"}


def test_evaluate_and_the_data_check_go_on_with_names_that_are_not_utf8(run: Run, engine: Engine, tmp_path: Path):
    root = os.fsencode(tmp_path / "yolo")
    for split in (b"train", b"val"):
        for kind in (b"images", b"labels"):
            Path(os.fsdecode(root + b"/" + kind + b"/" + split)).mkdir(parents=True)
        try:
            draw(root + b"/images/" + split + b"/" + BAD[0])
        except OSError:
            pytest.skip("this file system takes only names that are UTF-8")
        with open(root + b"/labels/" + split + b"/" + BAD[0].replace(b".jpg", b".txt"), "w") as stream:
            stream.write("0 .5 .5 .2 .2\n9 1 1 1 1\n")
    (tmp_path / "yolo" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [thing]\n")
    assert run("data check yolo")[0] == run("data check yolo --json")[0] == 0
    assert run(f"evaluate --engine {engine.path} --data yolo --output judged")[0] == 0
    metrics = json.loads(Path("judged", "metrics.json").read_text(encoding="utf-8"))
    assert [Path("judged", each["file"]).is_file() for each in metrics["pictures"]] == [True]
    assert BAD[1].removesuffix(".jpg") in metrics["pictures"][0]["image_id"]
    assert named(Path("judged", "detections.json")) == {Path(metrics["pictures"][0]["image_id"]).name}


def test_a_plain_folder_of_pictures_calibrates(tmp_path: Path):
    """Nested folders too; the manifest names the pictures as ever."""
    (tmp_path / "x" / "deep" / "er").mkdir(parents=True)
    draw(tmp_path / "x" / "ok.jpg")
    for number in range(FEWEST_IMAGES):
        draw(tmp_path / "x" / "deep" / "er" / f"{number}.jpg", seed=number)
    samples = calibration_dataset(CalibrationOptions(calibration_data=tmp_path / "x")).all_samples()
    spec = model_spec("tf_efficientdet_lite0", ("bar", "disc"), None, (64, 64))
    images = load_calibration_images(samples, spec, 128, seed=0)
    assert images.manifest.keys() == {"ok.jpg", *(f"deep/er/{number}.jpg" for number in range(FEWEST_IMAGES))}
    write_json(tmp_path / "manifest.json", manifest_record(images, "x"))
    assert load_manifest_images(tmp_path / "manifest.json", samples, spec).manifest == images.manifest
