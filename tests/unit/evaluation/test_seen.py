"""Data without splits are judged whole, and what the detector has seen of them before is told."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from edge_effdet.artifacts import Checkpoint, Engine, ModelSpec
from edge_effdet.artifacts.record import Calibration
from edge_effdet.data.base import Dataset, manifest_sha256, samples_manifest, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError
from edge_effdet.evaluation.run import SPLIT_ORDER
from edge_effdet.evaluation.seen import calibrated_on, trained_on
from tests.records import make_record

SPEC = ModelSpec("tiny", (64, 64), ("bar", "disc"), (1, 2))


@pytest.fixture
def flat(tmp_path: Path, tiny_voc: Path) -> Dataset:
    """The twelve pictures of ``tiny_voc`` without their lists of splits."""
    for name in ("Annotations", "JPEGImages"):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / name).symlink_to(tiny_voc / name)
    return read_dataset(tmp_path / "flat", quiet=True)


def engine_calibrated_on(samples) -> Engine:
    manifest = samples_manifest(samples)
    calibration = Calibration(
        method="max", images=len(manifest), split="train", choice="random", seed=0,
        manifest_sha256=manifest_sha256(manifest), manifest=manifest,
    )  # fmt: skip
    return Engine(Path("x.onnx"), SPEC, "onnxruntime", "int8", "ab" * 32, make_record(calibration=calibration))


def checkpoint_of(samples, split: str = "train") -> Checkpoint:
    provenance = {"data_sha256": samples_sha256(samples), "splits": {"train": split, "val": "val"}}
    return Checkpoint(Path("best.safetensors"), SPEC, provenance, "cd" * 32)


def unknown(checkpoint: Checkpoint) -> Checkpoint:
    """A checkpoint that does not tell what it was trained on, as another program's."""
    return replace(checkpoint, provenance={})


def test_data_without_splits_are_judged_whole_and_trained_in_part(flat: Dataset, tiny_voc: Path):
    split, samples = flat.choose_judged(None, SPLIT_ORDER)
    assert (flat.held_out, split, len(samples)) == (True, "all", 12)
    assert [len(flat.choose_split(None, (name,))[1]) for name in ("train", "val")] == [10, 2]
    assert flat.choose_judged("val", SPLIT_ORDER) == ("val", flat.splits["val"])
    with pytest.raises(DataError, match="has no split 'test'"):
        flat.choose_judged("test", SPLIT_ORDER)
    given = read_dataset(tiny_voc, quiet=True)
    assert not given.held_out and given.choose_judged(None, SPLIT_ORDER) == ("test", given.splits["test"])


def test_the_images_that_a_checkpoint_was_trained_on_are_counted(flat: Dataset):
    own = checkpoint_of(flat.splits["train"])
    (remark,) = trained_on([own], flat, flat.all_samples())
    assert remark == (
        "10 of these 12 images trained best.safetensors, so that the figures are too good; give `split` val to judge on the others."
    )
    assert trained_on([own], flat, flat.splits["val"]) == ()
    assert len(trained_on([own], flat, flat.splits["train"])) == 1


def test_who_was_trained_on_every_image_is_not_sent_to_those_that_others_hold_out(flat: Dataset):
    own = checkpoint_of(flat.all_samples(), "all")
    for samples in (flat.all_samples(), flat.splits["val"]):
        (remark,) = trained_on([own], flat, samples)
        assert remark.startswith(f"{len(samples)} of these {len(samples)} images trained")
        assert remark.endswith("judge on other images.")


def test_where_nothing_tells_what_was_trained_on_it_is_said_what_would_be_held_out(flat: Dataset):
    engine = Engine(Path("x.onnx"), SPEC, "onnxruntime", "fp32", "ab" * 32, make_record())
    # As of a folder that has got pictures since.
    other = checkpoint_of(flat.splits["train"][1:])
    for judge in (partial(calibrated_on, engine), partial(trained_on, [other]), partial(trained_on, [unknown(other)])):
        (remark,) = judge(flat, flat.all_samples())
        assert "was trained on images of" in remark and "give `split` val" in remark
        assert judge(flat, flat.splits["val"]) == ()


def test_the_split_that_a_checkpoint_was_trained_on_is_told_too(tiny_voc: Path):
    data = read_dataset(tiny_voc, quiet=True)
    own = checkpoint_of(data.splits["train"])
    (remark,) = trained_on([own], data, data.splits["train"])
    assert remark.startswith("8 of these 8 images trained") and remark.endswith("judge on other images.")
    assert trained_on([own, unknown(own)], data, data.splits["test"]) == ()
    assert trained_on([unknown(own)], data, data.all_samples()) == ()


def test_a_split_that_another_one_holds_is_told(tiny_voc: Path):
    data = read_dataset(tiny_voc, quiet=True)
    trainval = data.splits["train"] + data.splits["val"]
    data = replace(data, splits={**data.splits, "trainval": trainval})
    (remark,) = trained_on([checkpoint_of(trainval, "trainval")], data, data.splits["val"])
    assert remark.startswith("2 of these 2 images trained")


def test_the_folds_that_a_checkpoint_was_trained_on_are_told(tiny_voc: Path):
    samples = read_dataset(tiny_voc, quiet=True).all_samples()
    folds = {f"fold{fold}": samples[fold::3] for fold in range(3)}
    data = replace(read_dataset(tiny_voc, quiet=True), splits=folds)
    own = checkpoint_of(data.with_fold(0).splits["train"])
    own = replace(own, provenance={**own.provenance, "fold": 0})
    (remark,) = trained_on([own], data, data.all_samples())
    assert remark.startswith("8 of these 12 images trained")
    (remark,) = trained_on([own], data, data.with_fold(1).splits["val"])
    assert remark.startswith("4 of these 4 images trained")
    assert trained_on([own], data, data.with_fold(0).splits["val"]) == ()


def test_the_images_that_calibrated_an_engine_are_counted(flat: Dataset):
    engine = engine_calibrated_on(flat.splits["train"][:4])
    (remark,) = calibrated_on(engine, flat, flat.all_samples())
    assert remark.startswith("4 of these 12 images calibrated x.onnx, so that ") and "`split` val" in remark
    assert calibrated_on(engine, flat, flat.splits["val"]) == ()
