"""The device side whole, with a real engine: the Python API, the verb's sources and sinks, and what goes wrong on the way."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.runner_process import measure_cold_start, measure_growth
from edge_effdet import detect
from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import LoadOptions
from edge_effdet.errors import EngineError
from edge_effdet.runtime import sources
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.nms import NMS_KINDS
from tests.receivers import WebhookReceiver
from tests.unit.runtime.test_sources import write_video
from tests.unit.runtime.test_tracking import write_clip

ROOT = Path(__file__).parents[2]
CELLS = 8


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn blood cells on pale ground, which the BCCD checkpoint finds: pictures of several sizes, as PNG and JPEG."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:480, :640]
    for number in range(CELLS):
        pixels = rng.normal(205, 4, (480, 640, 3))
        for _ in range(12):
            y, x = rng.uniform(60, 420), rng.uniform(60, 580)
            distance = np.hypot(rows - y, columns - x)
            pixels[distance < 42] = np.array([200, 120, 130]) + rng.normal(0, 4, 3)
        picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        name = f"{number:012}.{'png' if number % 2 else 'jpg'}"
        picture.crop((0, 0, 640 - 20 * number, 480)).save(folder / name)
    return folder


def run(arguments: str, *, limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """The verb in a process of its own, which cannot write a file of more than ``limit`` bytes."""

    def prepare() -> None:
        if limit:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "edge_effdet.detect", *arguments.split()]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, preexec_fn=prepare)


def test_the_api_gives_one_answer_for_files_bytes_and_arrays(bccd_engine: Engine, photos: Path):
    paths = sorted(photos.iterdir())
    with Detector.load(bccd_engine.path) as detector:
        found = detector(paths)
        assert sum(map(len, found)) >= CELLS
        for path, expected in zip(paths, found, strict=True):
            for other in (read_image(path), path.read_bytes()):
                again = detector(other)
                np.testing.assert_array_equal(again.boxes, expected.boxes)
                np.testing.assert_array_equal(again.scores, expected.scores)


def test_eight_threads_on_one_detector_find_the_same(bccd_engine: Engine, photos: Path):
    paths = sorted(photos.iterdir())
    with Detector.load(bccd_engine, loading=LoadOptions(1, 8, spinning=False)) as detector:
        expected = [found.boxes.tobytes() for found in detector(paths)]
        wrong: list[Path] = []

        def work(first: int) -> None:
            for number in range(len(paths)):
                place = (first + number) % len(paths)
                if detector(paths[place]).boxes.tobytes() != expected[place]:
                    wrong.append(paths[place])

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


@pytest.mark.parametrize("kind", NMS_KINDS)
def test_every_kind_of_suppression_finds_the_best_cell_first(kind: str, bccd_engine: Engine, photos: Path):
    path = min(photos.iterdir())
    usual = Detector.load(bccd_engine)(path)
    found = Detector.load(bccd_engine, options=DetectOptions(nms_kind=kind))(path)
    assert found.class_ids[0] == usual.class_ids[0]
    assert found.scores[0] == usual.scores[0]
    np.testing.assert_allclose(found.boxes[0], usual.boxes[0], atol=8)


def test_a_folder_with_all_that_goes_wrong(bccd_engine: Engine, photos: Path, tmp_path: Path):
    folder = tmp_path / "mixed"
    shutil.copytree(photos, folder)
    good = Image.open(min(photos.iterdir()))
    (folder / "empty.jpg").touch()
    (folder / "text.png").write_text("words")
    (folder / "cut.jpg").write_bytes(min(photos.iterdir()).read_bytes()[:9000])
    good.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.asarray(good.convert("L")).astype(np.uint16) << 8).save(folder / "grey16.png")
    good.save(folder / "moving.webp", save_all=True, append_images=[good.rotate(180)])
    good.save(folder / "wrong_name.jpg", format="PNG")
    done = run(f"--engine {bccd_engine.path} --source {folder} --output {tmp_path / 'found'} --json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [Path(row["image"]).name for row in result["skipped"]] == ["cut.jpg", "empty.jpg", "text.png"]
    assert len(result["images"]) == CELLS + 4
    assert "3 of 15 images could not be decoded and were left out" in done.stderr
    assert "moving.webp is animated; only its first frame" in done.stderr
    by_name = {Path(row["image"]).name: row["detections"] for row in result["images"]}
    assert by_name["wrong_name.jpg"] == by_name[min(photos.iterdir()).name]
    assert len(by_name["cmyk.jpg"]) > 0
    assert json.loads((tmp_path / "found" / "detections.json").read_text()) == result
    assert len(list((tmp_path / "found").glob("*.jpg"))) == CELLS + 4


def test_results_as_lines_and_for_cocos_tools(bccd_engine: Engine, photos: Path, tmp_path: Path, capsys):
    arguments = f"--engine {bccd_engine.path} --source {photos} --output {tmp_path} --no-draw --json --results".split()
    assert detect.main([*arguments, "coco"]) == 0
    *lines, summary = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(lines) == summary["images"] == CELLS
    rows = json.loads((tmp_path / "detections.coco.json").read_text())
    assert len(rows) == sum(len(line["detections"]) for line in lines) == sum(summary["objects"].values())
    assert {row["image_id"] for row in rows} <= set(range(CELLS))
    first = lines[0]["detections"][0]["box"]
    assert rows[0]["bbox"] == pytest.approx([first[0], first[1], first[2] - first[0], first[3] - first[1]], abs=0.02)
    assert detect.main([*arguments, "jsonl"]) == 0
    assert (tmp_path / "detections.jsonl").read_text().splitlines() == capsys.readouterr().out.splitlines()[:-1]
    assert not list(tmp_path.glob("*.jpg"))
    assert detect.main([*arguments, "none", "--limit", "3"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 3


def test_a_video_is_annotated_frame_by_frame(bccd_engine: Engine, tmp_path: Path, capsys):
    av = pytest.importorskip("av")
    clip = write_video(tmp_path / "clip.avi", size=(97, 131))
    output = tmp_path / "found"
    assert detect.main(f"--engine {bccd_engine.path} --source {clip} --output {output} --json".split()) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["images"], summary["skipped"], summary["dropped"]) == (12, 0, 0)
    rows = [json.loads(line) for line in (output / "clip.avi.jsonl").read_text().splitlines()]
    assert [row["seconds"] for row in rows] == [round(number / 10, 3) for number in range(12)]
    with av.open(str(output / "clip.avi.mp4")) as container:
        frames = list(container.decode(video=0))
    assert [round(frame.time, 2) for frame in frames] == [round(number / 10, 2) for number in range(12)]
    assert (frames[0].height, frames[0].width) == (98, 132)


def test_a_video_is_followed_and_sent(bccd_engine: Engine, photos: Path, tmp_path: Path, capsys):
    """A picture that drifts, as a video: each cell keeps its number, in the file, in the message and in the summary of what was sent."""
    pytest.importorskip("av")
    pytest.importorskip("trackforge")
    still = read_image(min(photos.iterdir()))
    clip = write_clip(tmp_path / "clip.mp4", [np.roll(still, 3 * step, axis=1) for step in range(12)])
    output = tmp_path / "found"
    with WebhookReceiver() as receiver:
        arguments = f"--engine {bccd_engine.path} --source {clip} --output {output} --json --track --webhook http://127.0.0.1:{receiver.port}/hook"
        assert detect.main(arguments.split()) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["sending"][0]["sent"], summary["sending"][0]["waiting"]) == (12, 0)
    rows = [json.loads(line) for line in (output / "clip.mp4.jsonl").read_text().splitlines()]
    assert [each["detections"] for each in receiver.received] == [row["detections"] for row in rows]
    first, last = (
        {each["track_id"]: each["box"] for each in row["detections"] if "track_id" in each}
        for row in (rows[0], rows[-1])
    )
    moved = [last[number][0] - box[0] for number, box in first.items() if number in last and box[0] < 500]
    assert len(moved) >= 3
    assert np.median(moved) == pytest.approx(33, abs=8)
    assert (tmp_path / "found.spool").is_dir()


def test_pictures_are_not_followed(bccd_engine: Engine, photos: Path, capsys):
    assert detect.main(f"--engine {bccd_engine.path} --source {photos} --track".split()) == 2
    assert "--track" in capsys.readouterr().err


def test_a_camera_that_goes_away_leaves_what_it_saw(bccd_engine: Engine, tmp_path: Path, capsys, monkeypatch):
    pytest.importorskip("av")
    monkeypatch.setattr(sources.Camera.__init__, "__defaults__", (1, 0.01))
    opened = []

    def images():
        opened.append(True)
        if len(opened) > 1:
            raise ConnectionRefusedError(111, "Connection refused")
        yield from (np.full((60, 80, 3), 10 * number, np.uint8) for number in range(3))

    monkeypatch.setattr(sources, "_stream_opener", lambda *_, **__: images)
    output = tmp_path / "found"
    arguments = f"--engine {bccd_engine.path} --source rtsp://me:secret@camera/door --output {output}"
    assert detect.main(arguments.split()) == 2
    said = capsys.readouterr()
    assert "secret" not in said.err + said.out
    assert "The camera rtsp://camera/door went away (Connection refused) and 1 attempts" in said.err.splitlines()[-1]
    assert (output / "camera_door.jsonl").read_text().count("\n") >= 1
    assert (output / "camera_door.mp4").stat().st_size > 0


def test_ctrl_c_keeps_what_was_done(bccd_engine: Engine, photos: Path, tmp_path: Path):
    folder = tmp_path / "many"
    folder.mkdir()
    source = sorted(photos.iterdir())
    for number in range(400):
        (folder / f"{number:04}{source[number % CELLS].suffix}").symlink_to(source[number % CELLS])
    output = tmp_path / "found"
    arguments = f"--engine {bccd_engine.path} --source {folder} --output {output} --no-draw --results jsonl --json"
    command = [sys.executable, "-m", "edge_effdet.detect", *arguments.split()]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background with the signal ignored, tests too, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        said = process.stderr.read()
    assert process.returncode == 130, said
    assert "what was done is kept" in said
    assert "Traceback" not in said
    lines = (output / "detections.jsonl").read_text().splitlines(keepends=True)
    assert lines[0] == first
    assert 1 <= len(lines) < 400
    assert [json.loads(line)["image"][-8:-4] for line in lines] == [f"{number:04}" for number in range(len(lines))]
    assert [path.name for path in output.iterdir()] == ["detections.jsonl"]


def test_a_full_disk_costs_the_pictures_and_not_the_results(bccd_engine: Engine, photos: Path, tmp_path: Path):
    done = run(
        f"--engine {bccd_engine.path} --source {photos} --output {tmp_path / 'found'} --max-detections 1", limit=6_000
    )
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        .splitlines()[-1]
        .startswith(f"error: {CELLS} of {CELLS} annotated pictures could not be written")
    )
    assert len(json.loads((tmp_path / "found" / "detections.json").read_text())["images"]) == CELLS
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["detections.json"]


def test_a_full_disk_that_holds_no_results_is_one_sentence(bccd_engine: Engine, photos: Path, tmp_path: Path):
    arguments = (
        f"--engine {bccd_engine.path} --source {photos} --output {tmp_path / 'found'} --no-draw --score-threshold 0"
    )
    for results in ("json", "jsonl", "coco"):
        done = run(f"{arguments} --results {results}", limit=12_000)
        assert done.returncode == 2
        last = done.stderr.strip().splitlines()[-1]
        assert last.startswith("error: Writing") and last.endswith("is the disk full?"), last
        assert list((tmp_path / "found").iterdir()) == []


def test_an_engine_whose_json_disagrees(bccd_engine: Engine, tmp_path: Path):
    engine = tmp_path / "engine.onnx"
    shutil.copy(bccd_engine.path, engine)
    with pytest.raises(EngineError, match=r"has no engine\.onnx\.json"):
        Detector.load(engine)
    record = json.loads(bccd_engine.json_path.read_text())
    record["spec"]["image_size"] = [512, 512]
    engine.with_name("engine.onnx.json").write_text(json.dumps(record))
    with pytest.raises(EngineError, match="its fields are not those"):
        Detector.load(engine)
    # Without a digest, as earlier versions wrote it, the graph's own description shows the edit.
    del record["fields_sha256"]
    engine.with_name("engine.onnx.json").write_text(json.dumps(record))
    with pytest.raises(EngineError, match=r"describe different models \(they differ in image_size\)"):
        Detector.load(engine)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--iou-threshold 2", "--iou-threshold"),
        ("--max-detections 0", "--max-detections"),
        ("--batch-size 4", "takes 1 image a run"),
        ("--limit -1", "--limit"),
        ("--runs -1", "--runs"),
        ("--threads -1", "--threads -1 makes no sense"),
    ],
)
def test_options_that_make_no_sense(option: str, said: str, bccd_engine: Engine, photos: Path, tmp_path: Path, capsys):
    output = tmp_path / "found"
    assert detect.main(f"--engine {bccd_engine.path} --source {photos} --output {output} {option}".split()) == 2
    assert said in capsys.readouterr().err
    assert not output.exists()


def test_a_start_loads_nothing_of_the_host_side(bccd_engine: Engine, photos: Path):
    """And is measured: the benchmark gives the figures."""
    measured = measure_cold_start(bccd_engine.path, min(photos.iterdir()), 1)
    assert 0 < measured["median_seconds"]
    assert measured["peak_mb"] < 300


def test_memory_does_not_grow(bccd_engine: Engine, photos: Path):
    """In short; a picture that is kept would cost 36 MB here. ``benchmarks.runner_process`` does it for 20,000."""
    assert measure_growth(bccd_engine.path, min(photos.iterdir()), 100, 40)["growth_mb"] < 5


def test_the_python_of_the_guide_runs(bccd_engine: Engine, photos: Path, tmp_path: Path):
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "bccd.fp32.onnx").symlink_to(bccd_engine.path)
    (tmp_path / "engines" / "bccd.fp32.onnx.json").symlink_to(bccd_engine.json_path)
    (tmp_path / "photos").mkdir()
    shutil.copy(min(photos.iterdir()), tmp_path / "photos" / "a.jpg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "runner.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        assert len(block.strip().splitlines()) <= 10
        command = [sys.executable, "-c", block]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "RBC 0." in done.stdout or "objects in" in done.stdout
