"""Judge an engine or checkpoints on labelled pictures: ``(engine or checkpoints, data, EvaluateConfig) -> Evaluation``.

An engine is judged by the very file that is deployed; checkpoints run in torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import Checkpoint, Engine, load_engine, refuse_overwrite, require_writable
from edge_effdet.backends.base import load_runner
from edge_effdet.data.base import Dataset, Sample, match_classes, samples_sha256
from edge_effdet.data.frames import LabelOptions
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import UsageError
from edge_effdet.evaluation.members import (
    InferenceOptions,
    Member,
    describe_checkpoints,
    load_members,
    open_checkpoints,
)
from edge_effdet.evaluation.report import FILES, coco_result_list, own_category_ids, write_evaluation
from edge_effdet.evaluation.run import FOLD_SPLIT_ORDER, SPLIT_ORDER, Evaluation, evaluate_members, judge_detections
from edge_effdet.evaluation.seen import calibrated_on, trained_on
from edge_effdet.evaluation.spread import assign_checkpoints, assign_engine, detect_on_cluster
from edge_effdet.models.checkpoint import SourceOptions, is_checkpoint
from edge_effdet.options import as_path, option
from edge_effdet.runtime.golden import require_same_results

logger = logging.getLogger("edge_effdet.evaluate")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(InferenceOptions, SourceOptions, LabelOptions):
    """Which labelled images the detector is judged on, and what is written. Every field is a flag of ``python -m edge_effdet.evaluate``.

    Raises:
        UsageError: a number that makes no sense, or a choice that does not exist.
    """

    split: str | None = option(None, help="the split (default: test, else val, else everything; with --fold val)")
    fold: int | None = option(None, help="judge on the images of this fold")
    output: Path | str | None = option(
        None, help="write metrics, detections, the confusion matrix and pictures of the worst images into this folder"
    )
    pictures: int = option(24, help="write at most so many pictures")
    self_check: bool = option(
        True, help="on a machine of another kind than the engine was proven on, see first that it finds the same there"
    )
    dask: str | None = option(
        None,
        help="spread the images over the workers of the Dask cluster whose scheduler has this address, as tcp://10.0.0.1:8786, or "
        "wrote this scheduler file",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pictures < 0:
            raise UsageError(f"`pictures` {self.pictures} makes no sense; give 0 or more.")


Source = str | PathLike[str] | Engine | Checkpoint | Sequence[str | PathLike[str] | Checkpoint]
"""An engine or a checkpoint, opened or as its file, or several checkpoints. What a file is, its content says."""


def evaluate_detector(source: Source, data: str | PathLike[str], config: EvaluateConfig) -> Evaluation:
    """Measure how good a detector is on labelled images. All that ``evaluate`` does on the command line.

    >>> from edge_effdet import EvaluateConfig, evaluate_detector
    >>> judged = evaluate_detector("runs/bccd/best.safetensors", "bccd", EvaluateConfig(split="test", output="judged"))
    >>> ap, by_class = judged.metrics.AP, judged.metrics.per_class

    Args:
        source: an engine, a checkpoint, or several checkpoints of the same classes, whose detections are fused. A checkpoint of another
            program, such as effdet's .pth, needs ``config.model``, and ``config.classes`` where they are not COCO's.
        data: labelled images, of any format that ``read_dataset`` knows.
        config: split, views and batch size, and the folder to write into.

    Returns:
        COCO's metrics, the confusion matrix, and the detections in each picture.

    Raises:
        EngineError, CheckpointError: the engine or a checkpoint cannot be used, or the engine finds other objects on this machine than
            where it was proven.
        DataError: the data cannot be read, or has no labelled box.
        UsageError: the checkpoints have different classes, or the outputs would overwrite the data or what is judged.
        BackendUnavailable: the engine's backend, or the device, is not here; or the cluster cannot be used, and then the message names the
            worker.
        InputError: a worker of the cluster does not see a file, or sees another one.
        MissingDependency: the packages of the extra ``eval`` or ``dask``, or those that run checkpoints, are not installed.
    """
    if isinstance(source, str | PathLike):
        path = Path(source)
        source = [path] if is_checkpoint(path) else load_engine(path)
    elif isinstance(source, Checkpoint):
        source = [source]
    told = [item.name for item in fields(SourceOptions) if getattr(config, item.name) is not None]
    if told and isinstance(source, Engine):
        raise UsageError(f"`{told[0]}` says what a checkpoint holds, and an engine says that itself; leave it out.")
    whole = read_dataset(Path(data), boxes_in=config.boxes_in)
    dataset = whole if config.fold is None else whole.with_fold(config.fold)
    output = as_path(config.output)
    if output is not None:
        if isinstance(source, Engine):
            models = [source.path, source.json_path]
        else:
            models = [each.path if isinstance(each, Checkpoint) else Path(each) for each in source]
        pictures = (sample.path for sample in dataset.all_samples())
        refuse_overwrite([output / name for name in FILES], [Path(data), *models, *pictures])
        require_writable(output, keep=False)
    subject: dict[str, Any]
    if isinstance(source, Engine):
        spec, subject = source.spec, {"engine": str(source.path), "engine_sha256": source.sha256}
        # An engine with a dynamic batch takes the batch sizes that it was built for, which its record does not name; a batch of one
        # image always fits.
        config = replace(config, batch_size=1)
    else:
        source = open_checkpoints(source, config)
        spec, subject = source[0].spec, {"checkpoints": describe_checkpoints(source)}
        if len(source) == 1:
            subject["checkpoint_sha256"] = source[0].sha256
    matched = match_classes(dataset, spec)
    split, samples = matched.choose_judged(config.split, SPLIT_ORDER if config.fold is None else FOLD_SPLIT_ORDER)
    logger.info("evaluating on %d images of %s (split %s)", len(samples), dataset.root, split)
    evaluation = _evaluate(source, samples, config)
    subject = {"split": split, "data_sha256": samples_sha256(samples), "tta": config.tta, **subject}
    if isinstance(source, Engine):
        remarks = calibrated_on(source, matched, samples)
    else:
        remarks = trained_on(source, whole, samples)
    evaluation = replace(evaluation, subject=subject, remarks=remarks)
    if output is not None:
        _write(evaluation, dataset, matched, output, config.pictures)
    return evaluation


def _evaluate(source: Engine | Sequence[Checkpoint], samples: Sequence[Sample], config: EvaluateConfig) -> Evaluation:
    """Run the detector over samples whose class ids are those of its spec, here or on a cluster."""
    if config.dask is not None:
        if isinstance(source, Engine):
            spec, assignment = source.spec, assign_engine(source, config, config.self_check)
        else:
            spec, assignment = source[0].spec, assign_checkpoints([each.path for each in source], config, config)
        return judge_detections(*detect_on_cluster(config.dask, assignment, samples), spec)
    if not isinstance(source, Engine):
        _, members = load_members(source, config.device, config)
        return evaluate_members(members, samples, config)
    with load_runner(source) as runner:
        require_same_results(runner, source, wanted=config.self_check)
        return evaluate_members([Member(runner, source.spec)], samples, config)


def _write(evaluation: Evaluation, original: Dataset, matched: Dataset, output: Path, pictures: int) -> None:
    """Write the report, in which ids are those of the data set as it was read and not those of the model."""
    results = coco_result_list(evaluation, own_category_ids(original, matched), numbers=original.kind == "coco")
    left_out = sum(map(len, evaluation.detections)) - len(results)
    if left_out:
        logger.warning("%d detections of classes that the data set does not have are not in detections.json", left_out)
    write_evaluation(evaluation, results, output, pictures)
