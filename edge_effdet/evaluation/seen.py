"""Whether a detector has seen the images that it is judged on: it was trained or calibrated on them, and is better there than elsewhere."""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path

from edge_effdet.artifacts import Checkpoint, Engine
from edge_effdet.data.base import Dataset, Sample, match_classes, samples_manifest, samples_sha256
from edge_effdet.errors import DataError


def calibrated_on(engine: Engine, dataset: Dataset, samples: Sequence[Sample]) -> tuple[str, ...]:
    """A sentence where an engine was calibrated on some of the images, by the hashes of their files, or may have been trained on them.

    Args:
        engine: its record names the images that it was calibrated on, and none that its checkpoint was trained on.
        dataset: the data that they are of.
        samples: those that the engine is judged on.
    """
    calibration = engine.record.calibration if engine.record is not None else None
    seen: set[Path] = set()
    if calibration is not None:
        known, digests = set(calibration.manifest.values()), samples_manifest(samples)
        seen = {sample.path for sample in samples if digests.get(sample.image_id) in known}
    return _remark(seen, samples, "calibrated", engine.path.name, dataset)


def trained_on(checkpoints: Sequence[Checkpoint], dataset: Dataset, samples: Sequence[Sample]) -> tuple[str, ...]:
    """A sentence for each checkpoint that was trained on some of the images, or may have been.

    A checkpoint holds one hash over all images that it was trained on, so that this is known where they are a split or folds of the data.

    Args:
        checkpoints: those that are judged.
        dataset: the data as they were read, without a fold.
        samples: those that the checkpoints are judged on.
    """
    paths = {sample.path for sample in samples}
    remarks: tuple[str, ...] = ()
    for checkpoint in checkpoints:
        train = _training_images(checkpoint, dataset)
        seen = {sample.path for sample in train} & paths
        # Files are hashed only where it matters.
        if seen and checkpoint.provenance.get("data_sha256") != samples_sha256(train):
            seen = set()
        remarks += _remark(seen, samples, "trained", str(checkpoint.path), dataset)
    return remarks


def _training_images(checkpoint: Checkpoint, dataset: Dataset) -> tuple[Sample, ...]:
    """What the data would have given to the training of a checkpoint, by the fold and the split that it names."""
    fold, split = checkpoint.provenance.get("fold"), (checkpoint.provenance.get("splits") or {}).get("train")
    try:
        data = match_classes(dataset if fold is None else dataset.with_fold(fold), checkpoint.spec)
        return data.choose_split(split, ())[1] if split else ()
    except DataError:
        return ()


def _remark(seen: Set[Path], samples: Sequence[Sample], did: str, name: str, dataset: Dataset) -> tuple[str, ...]:
    held = {sample.path for sample in dataset.splits["val"]} if dataset.held_out else set()
    if seen:
        advice = "judge on other images" if not held or seen & held else "give `split` val to judge on the others"
        return (
            f"{len(seen)} of these {len(samples)} images {did} {name}, so that the figures are too good; {advice}.",
        )
    if held and any(sample.path not in held for sample in samples):
        return (
            f"If {name} was trained on images of {dataset.root}, which nothing tells, the figures are too good; give `split` val to judge on "
            "those that training holds out.",
        )
    return ()
