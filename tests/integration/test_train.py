"""A short training run on drawn scenes: what it writes, that it learns, that a seed gives the same weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edge_effdet import evaluate, train
from edge_effdet.models.checkpoint import open_checkpoint
from tests.scenes import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"train": 16, "val": 4}, seed=1)
    return root


def run(scenes: Path, output: Path, extra: str = "") -> int:
    return train.main(
        f"--data {scenes} --output {output} --image-size 64 --epochs 5 --batch-size 4 --learning-rate 0.003 --workers 0 {extra}".split()
    )


@pytest.fixture(scope="module")
def trained(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("trained")
    assert run(scenes, output) == 0
    return output


def test_writes_checkpoints_that_describe_themselves(trained: Path, scenes: Path):
    best = open_checkpoint(trained / "best.safetensors")
    assert best.spec.name == "tf_efficientdet_lite0" and best.spec.image_size == (64, 64)
    assert best.spec.class_names == ("box", "cross", "disc")
    assert best.provenance["splits"] == {"train": "train", "val": "val"}
    assert best.provenance["schedule"]["epochs"] == 5 and best.provenance["val"]["images"] == 4
    assert open_checkpoint(trained / "last.safetensors").provenance["epoch"] == 5
    assert evaluate.main(["--checkpoint", str(best.path), "--data", str(scenes), "--split", "val"]) == 0


def test_the_loss_falls(trained: Path):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    # Twenty updates; by how much it falls depends on the processor's rounding (0.79 to 0.81 of the first here).
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert "AP50" in rows[-1]


def test_the_same_seed_gives_the_same_weights_with_any_number_of_workers(trained: Path, scenes: Path, tmp_path: Path):
    assert run(scenes, tmp_path, "--workers 2") == 0
    first, second = load_file(trained / "last.safetensors"), load_file(tmp_path / "last.safetensors")
    assert first.keys() == second.keys()
    # Sums over threads may change their order; a different sample or augmentation would differ by far more.
    assert max(float(np.abs(first[name] - second[name]).max()) for name in first) < 1e-3


def test_refuses_to_choose_on_training_images(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert run(scenes, tmp_path / "out", "--val-split train") == 2
    assert "stand in both" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ("--split nothing", "has no split 'nothing'"),
        ("--model tf_efficientdet_lite9", "did you mean"),
        ("--image-size 100", "multiples of 32"),
        ("--checkpoint nowhere.safetensors", "There is no checkpoint"),
        ("--aspect-ratios 1x1,tall", "no list of width x height"),
        ("--anchor-scale -1", "no size"),
        ("--fold 2", "has no folds"),
        ("--precision fp16 --device cpu", "bf16 or fp32"),
        ("--qat", "--checkpoint"),
    ],
)
def test_bad_options_end_with_2_and_write_nothing(
    extra: str, said: str, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(scenes, tmp_path / "out", extra) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()[-1]) < 600
    assert not list(tmp_path.rglob("*.safetensors"))


def test_leaves_curves_samples_and_a_log(trained: Path):
    for name in ("curves.png", "samples.png"):
        assert (trained / name).stat().st_size > 10_000
    assert list((trained / "tensorboard").iterdir())
    row = json.loads((trained / "metrics.jsonl").read_text().splitlines()[-1])
    assert {"loss", "class_loss", "box_loss", "val_loss", "AP", "AP50", "learning_rate"} <= row.keys()
    assert 0 <= row["data_wait_share"] <= 1
    assert open_checkpoint(trained / "best_loss.safetensors").provenance["val_loss"] == min(
        json.loads(line)["val_loss"] for line in (trained / "metrics.jsonl").read_text().splitlines()
    )


@pytest.mark.parametrize("fusion", [pytest.param("softmax", marks=pytest.mark.slow), "unbounded"])
def test_trains_another_fusion_and_says_so(fusion: str, scenes: Path, tmp_path: Path):
    assert run(scenes, tmp_path, f"--epochs 1 --fusion {fusion} --mosaic 0.5 --accumulate 2") == 0
    assert open_checkpoint(tmp_path / "best.safetensors").spec.fusion == fusion


def test_takes_suggested_anchors(scenes: Path, tmp_path: Path):
    assert run(scenes, tmp_path, "--epochs 1 --anchor-scale 3.5 --aspect-ratios 1x1,2x0.5") == 0
    best = open_checkpoint(tmp_path / "best.safetensors")
    assert best.spec.anchors.anchor_scale == 3.5 and best.spec.anchors.aspect_ratios == ((1.0, 1.0), (2.0, 0.5))
    assert evaluate.main(["--checkpoint", str(best.path), "--data", str(scenes), "--split", "val"]) == 0


def test_starts_from_effdets_own_file_and_refuses_code_in_it(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import pathlib
    import pickle

    import torch

    from edge_effdet.models.zoo import create_network, model_spec

    torch.manual_seed(0)
    coco = create_network(model_spec("tf_efficientdet_lite0", image_size=(64, 64)))
    torch.save(coco.state_dict(), tmp_path / "coco.pth")
    start = f"--checkpoint {tmp_path / 'coco.pth'} --epochs 1"
    assert run(scenes, tmp_path / "out", f"{start} --model tf_efficientdet_lite0") == 0
    assert open_checkpoint(tmp_path / "out" / "best.safetensors").spec.num_classes == 3
    assert run(scenes, tmp_path / "other", start) == 2
    assert "give --model NAME" in capsys.readouterr().err

    class Evil:
        def __reduce__(self) -> object:
            return pathlib.Path.touch, (tmp_path / "ran",)

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Evil(), protocol=2))
    assert run(scenes, tmp_path / "other", f"--checkpoint {tmp_path / 'evil.pth'} --model tf_efficientdet_lite0") == 2
    assert "contains pickled code (getattr), which may do anything and is not run" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not list((tmp_path / "other").glob("*.safetensors"))


def test_stops_early(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    # A rate at which nothing is learned.
    assert run(scenes, tmp_path, "--epochs 6 --learning-rate 1e-12 --patience 2 --backbone random") == 0
    assert "stopped early" in capsys.readouterr().err
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.slow
def test_fine_tunes_with_fake_quantizers_and_exports_as_ever(trained: Path, scenes: Path, tmp_path: Path):
    from edge_effdet import export

    start = trained / "best.safetensors"
    words = f"--data {scenes} --checkpoint {start} --qat --epochs 1 --batch-size 4 --workers 0 --output {tmp_path}"
    assert train.main(words.split()) == 0
    tuned = open_checkpoint(tmp_path / "best.safetensors")
    assert tuned.provenance["qat"]["format"] == "int8" and len(tuned.provenance["qat"]["ranges"]) > 100
    assert tuned.provenance["started_from"]["checkpoint_sha256"] == open_checkpoint(start).sha256
    before, after = load_file(start), load_file(tuned.path)
    assert before.keys() == after.keys()
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    assert export.main(f"--checkpoint {tuned.path} --output {tmp_path / 'tuned.onnx'}".split()) == 0


def test_one_broken_image_does_not_end_a_run(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import shutil

    broken = tmp_path / "scenes"
    shutil.copytree(scenes, broken)
    victim = min((broken / "train").glob("*.jpg"))
    # The header stays, so that only decoding finds out.
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 3])
    assert run(broken, tmp_path / "out", "--epochs 2") == 0
    error = capsys.readouterr().err
    assert error.count("skipped an image") == 1 and victim.name in error
