"""Whether a detector has seen the images that it is judged on: it was trained or calibrated on them, and is better there than elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from edge_effdet.artifacts import Checkpoint, Engine
from edge_effdet.data.base import Dataset, Sample, samples_manifest, samples_sha256


def calibrated_on(engine: Engine, dataset: Dataset, samples: Sequence[Sample]) -> tuple[str, ...]:
    """A sentence where an engine was calibrated on some of the images, by the hashes of their files; else nothing.

    Args:
        engine: its record names the images that it was calibrated on.
        dataset: the data, for the advice.
        samples: those that the engine is judged on.
    """
    calibration = engine.record.calibration if engine.record is not None else None
    if calibration is None:
        return ()
    seen = set(calibration.manifest.values())
    count = sum(digest in seen for digest in samples_manifest(samples).values())
    return _remark(count, len(samples), f"calibrated {engine.path.name}", dataset)


def trained_on(
    checkpoints: Sequence[Checkpoint], dataset: Dataset, split: str, samples: Sequence[Sample]
) -> tuple[str, ...]:
    """A sentence for each checkpoint that was trained on some of the images; else nothing.

    A checkpoint holds one hash over all images that it was trained on, so that this is known where they are a split of the data.

    Args:
        checkpoints: those that are judged.
        dataset: the data, with class ids of the checkpoints' spec.
        split: the split that they are judged on; ``all`` for everything.
        samples: its images.
    """
    remarks: tuple[str, ...] = ()
    for checkpoint in checkpoints:
        name = (checkpoint.provenance.get("splits") or {}).get("train", "")
        # Images of another split were not trained on.
        train = dataset.splits.get(name, ()) if split in ("all", name) else ()
        if train and checkpoint.provenance.get("data_sha256") == samples_sha256(train):
            shared = {sample.path for sample in train} & {sample.path for sample in samples}
            remarks += _remark(len(shared), len(samples), f"trained {checkpoint.path.name}", dataset)
    return remarks


def _remark(count: int, total: int, did: str, dataset: Dataset) -> tuple[str, ...]:
    if not count:
        return ()
    advice = "give `split` val to judge on the others" if dataset.held_out else "judge on other images"
    return (f"{count} of these {total} images {did}, so that the figures are too good; {advice}.",)
