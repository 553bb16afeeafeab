"""From trained checkpoints to predictions and a report, on photographs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edge_effdet import evaluate, predict
from edge_effdet.artifacts import Checkpoint
from edge_effdet.evaluation.members import InferenceOptions, load_members, predict_image, predict_images
from edge_effdet.models.checkpoint import load_network, open_checkpoint, save_checkpoint
from edge_effdet.models.detector import DetectionModule
from edge_effdet.models.runner import TorchRunner
from edge_effdet.runtime.detector import detect_image
from edge_effdet.runtime.images import read_image
from tests.integration.conftest import BCCD_CHECKPOINT

pytestmark = pytest.mark.data
COUNT = 4


@pytest.fixture(scope="module")
def photos(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for stem in (bccd / "ImageSets" / "Main" / "test.txt").read_text().split()[:COUNT]:
        shutil.copy(bccd / "JPEGImages" / f"{stem}.jpg", folder)
    return folder


@pytest.fixture(scope="module")
def small_bccd(bccd: Path, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small_bccd")
    stems = [path.stem for path in sorted(photos.iterdir())]
    for folder, suffix in (("Annotations", ".xml"), ("JPEGImages", ".jpg")):
        (root / folder).mkdir()
        for stem in stems:
            shutil.copy(bccd / folder / f"{stem}{suffix}", root / folder)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """The same weights at another image size, as a second model."""
    first = open_checkpoint(BCCD_CHECKPOINT)
    path = tmp_path_factory.mktemp("larger") / "larger.safetensors"
    return save_checkpoint(path, load_network(first).state_dict(), replace(first.spec, image_size=(384, 384)), {})


@pytest.fixture(scope="module")
def images(photos: Path) -> list[np.ndarray]:
    return [read_image(path) for path in sorted(photos.iterdir())]


def test_one_checkpoint_predicts_what_detect_image_finds_and_batches_change_nothing(images: list[np.ndarray]):
    _, members = load_members([BCCD_CHECKPOINT], "cpu")
    expected = [detect_image(members[0].runner, image, members[0].spec, 0.3) for image in images]
    assert sum(map(len, expected)) > 20
    for batch_size in (1, 3):
        found = predict_images(members, images, 0.3, InferenceOptions(batch_size=batch_size))
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_array_equal(ours.class_ids, theirs.class_ids)
            np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
            np.testing.assert_allclose(ours.boxes, theirs.boxes, atol=1e-2)


def test_a_checkpoint_fused_with_itself_finds_the_same(images: list[np.ndarray]):
    _, members = load_members([BCCD_CHECKPOINT], "cpu")
    alone = predict_image(members, images[0], 0.5)
    twice = predict_image(members * 2, images[0], 0.5)
    assert 0 < len(twice) <= len(alone)
    np.testing.assert_allclose(twice.scores[0], alone.scores[0], atol=1e-5)
    np.testing.assert_allclose(twice.boxes[0], alone.boxes[0], atol=1e-2)


@torch.inference_mode()
def test_head_tensors_that_someone_has_already_are_decoded_as_the_whole_detector_would():
    checkpoint = open_checkpoint(BCCD_CHECKPOINT)
    detector = DetectionModule(load_network(checkpoint), checkpoint.spec).eval()
    pixels = torch.randint(0, 256, (2, 3, *checkpoint.spec.image_size), dtype=torch.uint8)
    class_levels, box_levels = detector.network(detector.normalise(pixels))
    for ours, whole in zip(detector.decode(class_levels, box_levels), detector(pixels), strict=True):
        torch.testing.assert_close(ours, whole, rtol=0, atol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_network_runs_where_it_is_and_may_be_moved(images: list[np.ndarray]):
    checkpoint = open_checkpoint(BCCD_CHECKPOINT)
    network = load_network(checkpoint)
    runner = TorchRunner(network, checkpoint.spec)
    on_cpu = detect_image(runner, images[0], checkpoint.spec, 0.5)
    network.cuda()
    on_gpu = detect_image(runner, images[0], checkpoint.spec, 0.5)
    assert len(on_gpu) == len(on_cpu)
    np.testing.assert_allclose(on_gpu.scores, on_cpu.scores, atol=5e-3)


def test_predict_writes_pictures_and_json_and_skips_what_is_no_picture(photos: Path, tmp_path: Path, capsys):
    source, output = tmp_path / "source", tmp_path / "found"
    shutil.copytree(photos, source)
    (source / "words.jpg").write_text("words")
    command = ["--checkpoint", str(BCCD_CHECKPOINT), "--source", str(source), "--output", str(output), "--json"]
    assert predict.main([*command, "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    assert "words.jpg is not an image" in captured.err and "1 of 5 images could not be decoded" in captured.err
    assert json.loads((output / "detections.json").read_text()) == printed
    assert [Path(entry["image"]).name for entry in printed["images"]] == sorted(path.name for path in photos.iterdir())
    first = printed["images"][0]["detections"][0]
    assert set(first) == {"box", "score", "class", "class_id", "category_id"} and first["score"] >= 0.3
    assert len(list(output.glob("*.jpg"))) == COUNT


def test_only_what_is_no_picture_ends_with_2(tmp_path: Path, capsys):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("words")
    command = ["--checkpoint", str(BCCD_CHECKPOINT), "--source", str(tmp_path), "--output", str(tmp_path / "found")]
    assert predict.main([*command, "--device", "cpu"]) == 2
    assert "None of the images could be decoded" in capsys.readouterr().err
    assert not (tmp_path / "found").exists()


def test_checkpoints_of_two_sizes_and_mirrored_views_are_judged_together(
    larger: Checkpoint, small_bccd: Path, tmp_path: Path, capsys
):
    both = ["--checkpoint", str(BCCD_CHECKPOINT), "--checkpoint", str(larger.path), "--device", "cpu"]
    output = tmp_path / "judged"
    command = [*both, "--data", str(small_bccd), "--tta", "horizontal", "--output", str(output), "--pictures", "2"]
    assert evaluate.main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [entry["sha256"] for entry in printed["checkpoints"]] == [file.sha256 for file in _opened(larger)]
    assert "checkpoint_sha256" not in printed
    assert printed["images"] == COUNT and printed["AP50"] > 0.6
    counts = np.array(json.loads((output / "metrics.json").read_text())["confusion"]["counts"])
    assert counts[:3].sum() == sum(printed["boxes_per_class"].values())
    assert len(list((output / "pictures").iterdir())) == 2


def _opened(second: Checkpoint) -> list[Checkpoint]:
    return [open_checkpoint(BCCD_CHECKPOINT), second]


def test_checkpoints_of_other_classes_are_refused_by_name(larger: Checkpoint, photos: Path, tmp_path: Path, capsys):
    names = (*larger.spec.class_names[:-1], "Spores")
    path = tmp_path / "other.safetensors"
    save_checkpoint(path, load_network(larger).state_dict(), replace(larger.spec, class_names=names), {})
    command = ["--checkpoint", str(BCCD_CHECKPOINT), "--checkpoint", str(path), "--source", str(photos)]
    assert predict.main(command) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"and 'Spores' in {path}" in last


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_gpu_that_is_not_there_is_exit_code_3(photos: Path, capsys):
    command = ["--checkpoint", str(BCCD_CHECKPOINT), "--source", str(photos), "--device", "cuda"]
    assert predict.main(command) == 3
    assert "no CUDA device" in capsys.readouterr().err
