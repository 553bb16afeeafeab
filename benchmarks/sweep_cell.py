"""One cell of a sweep: build an engine, time it in turns with the FP32 graph by onnxruntime, and judge it where there is data."""

from __future__ import annotations

import errno
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import summarize_times, time_ways
from benchmarks.machine import describe_machine, watch_load
from edge_effdet.artifacts import Engine, Graph, Size, text_sha256
from edge_effdet.artifacts.reading import to_json
from edge_effdet.backends.base import LoadOptions, load_runner
from edge_effdet.backends.cores import usable_cores
from edge_effdet.data.base import Dataset, match_classes, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError, EdgeEffDetError, first_line
from edge_effdet.evaluation.run import SPLIT_ORDER, evaluate_engine
from edge_effdet.runtime.golden import draw_pictures
from edge_effdet.runtime.preprocess import feeds_for_image

REFERENCE = ("fp32", "onnxruntime")
"""The precision and the backend of the cell that all cells of a model and a size take turns with."""

CALIBRATION_SPLITS = ("calibration", "train")

_ONE_AT_A_TIME = threading.Lock()
"""A worker of Dask with several threads is given as many cells, which would disturb each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is measured, and all that decides the result but for the machine.

    Attributes:
        model: a name of ``models.zoo``, whose weights are then random with seed 0; or the path of a checkpoint.
        image_size: height and width; None for a checkpoint's own.
        precision: ``fp32``, ``fp16`` or ``int8``.
        backend: a name of ``backends.base.BACKENDS``.
        turns: rounds, timed runs of a turn, and runs before them.
        threads: of a run; 0 for the cores that the process may use.
        checkpoint_sha256: the hash of the checkpoint; empty for random weights.
        data: labelled images that AP is measured on; empty for none.
        data_sha256: the hash over the images of its split for tests and their boxes.
        calibration_images: how many images INT8 is calibrated on, of the split for training; 0 for eight of the shipped photographs, which are
            enough to know how fast it is.
        quantize: other options of ``QuantizeOptions``.
    """

    model: str
    image_size: Size | None
    precision: str
    backend: str
    turns: tuple[int, int, int]
    threads: int = 0
    checkpoint_sha256: str = ""
    data: str = ""
    data_sha256: str = ""
    calibration_images: int = 0
    quantize: Mapping[str, Any]

    @property
    def title(self) -> str:
        """For people."""
        size = "" if self.image_size is None else f" at {self.image_size[0]}x{self.image_size[1]} px"
        return f"{Path(self.model).name}{size}, {self.precision.upper()}, {self.backend}"

    def key(self, **more: Any) -> str:
        """A hash of what decides the result, with ``more`` of it. Where the files lie does not."""
        content = {**asdict(self), "model": Path(self.model).name, "data": Path(self.data).name, **more}
        return text_sha256(json.dumps(content, sort_keys=True))[:16]


class DiskFull(EdgeEffDetError):
    """Nothing more can be written, so no other cell can be measured either."""


def measure_cell(cell: Cell, work: Path) -> dict[str, Any]:
    """Build, time and judge.

    Args:
        cell: what is measured.
        work: a folder that keeps the graphs for the other cells of the model.

    Returns:
        The row of the cell, for JSON. One that cannot be measured has ``skipped``, the reason, and no figures.

    Raises:
        DiskFull: the disk is full.
    """
    started, load = time.perf_counter(), watch_load()
    row: dict[str, Any] = {"cell": to_json(asdict(cell)), "title": cell.title}
    try:
        row |= _measure(cell, work)
    except Exception as error:  # each backend raises exceptions of its own
        if _is_disk_full(error):
            raise DiskFull(f"The disk is full ({first_line(error)}); make room, and give the command again.") from error
        known = isinstance(error, EdgeEffDetError)
        row["skipped"] = first_line(error) if known else f"{type(error).__name__}: {first_line(error)}"
    return {
        **row,
        "seconds": round(time.perf_counter() - started, 1),
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "machine": {**describe_machine(), **load()},
    }


def measure_on_worker(cell: Cell) -> dict[str, Any]:
    """The task of a Dask worker: a cell with all threads of the worker, one at a time, in the worker's own folder."""
    from distributed import get_worker

    worker = get_worker()
    threads = cell.threads or worker.state.nthreads
    with _ONE_AT_A_TIME:
        row = measure_cell(replace(cell, threads=threads), Path(worker.local_directory) / "sweep")
    return {**row, "worker": worker.address}


def _measure(cell: Cell, work: Path) -> dict[str, Any]:
    from benchmarks.run import make_engine

    work.mkdir(parents=True, exist_ok=True)
    dataset = _read(cell)
    stem = _graph_stem(cell)
    plain = _kept(work / f"{stem}.fp32.onnx", partial(_export, cell))
    lowered = plain
    if cell.precision != "fp32":
        lowered = _kept(work / f"{stem}.{cell.precision}.onnx", partial(_lower, cell, plain, dataset))
    engine = make_engine(lowered, cell.backend, work / f"{cell.key()}.onnx")
    calls = [engine]
    if (cell.precision, cell.backend) != REFERENCE:
        calls.append(make_engine(plain, "onnxruntime", work / f"{stem}.reference.onnx"))
    try:
        times = _time(calls, cell)
        accuracy = None if dataset is None else _judge(engine, dataset)
        record = engine.require_record()
        return {
            "model": engine.spec.name,
            "image_size": list(engine.spec.image_size),
            "precision": cell.precision,
            "backend": cell.backend,
            "backend_version": record.backend_version,
            "threads": cell.threads or usable_cores(),
            **times,
            "engine_sha256": engine.sha256,
            "engine_bytes": engine.path.stat().st_size,
            "int8_mac_fraction": record.proof.int8_mac_fraction,
            "accuracy": accuracy,
        }
    finally:
        for built in calls:
            # With its JSON, and with what its runtime keeps for the next start.
            for path in work.glob(f"{built.path.name}*"):
                path.unlink(missing_ok=True)


def _time(engines: list[Engine], cell: Cell) -> dict[str, Any]:
    """The network alone at batch 1, in milliseconds, and how many times as fast as the reference it is in the same rounds."""
    rounds, runs, warm_up = cell.turns
    picture = draw_pictures(engines[0].spec.image_size, 1)[0]
    runners = [load_runner(engine, LoadOptions(threads=cell.threads)) for engine in engines]
    try:
        feeds = [feeds_for_image(runner, picture, engines[0].spec) for runner in runners]
        calls = [partial(runner.run, feed) for runner, feed in zip(runners, feeds, strict=True)]
        times = time_ways(dict(zip(("cell", "reference"), calls, strict=False)), rounds, runs, warm_up)
    finally:
        for runner in runners:
            runner.close()
    # The reference's own cell is compared with itself.
    reference = list(times)[-1]
    row = summarize_times(times, {"times_as_fast": reference})[0]
    return {
        **{name: row[name] for name in ("median_ms", "p90_ms", "times_as_fast", "milliseconds")},
        "reference_ms": float(np.median(times[reference])),
        "arithmetic": runners[0].arithmetic,
    }


def _judge(engine: Engine, dataset: Dataset) -> dict[str, Any]:
    split, samples = match_classes(dataset, engine.spec).choose_split(None, SPLIT_ORDER)
    metrics = evaluate_engine(engine, samples)
    return {"AP": metrics.AP, "AP50": metrics.AP50, "images": metrics.images, "split": split}


def _read(cell: Cell) -> Dataset | None:
    """The data, which on a worker may be another copy. Raises DataError where it is not the same."""
    if not cell.data:
        return None
    dataset = read_dataset(Path(cell.data))
    if hash_data(dataset) != cell.data_sha256:
        raise DataError(
            f"{cell.data} holds other images or boxes here than where the sweep was started; copy it again."
        )
    return dataset


def hash_data(dataset: Dataset) -> str:
    """The hash over the images that AP is measured on and their boxes, with the class numbers of the data set itself."""
    return samples_sha256(dataset.choose_split(None, SPLIT_ORDER)[1])


def _graph_stem(cell: Cell) -> str:
    """The same for all cells that share their graphs."""
    same = [cell.image_size, cell.checkpoint_sha256, cell.data_sha256, cell.calibration_images, {**cell.quantize}]
    return f"{Path(cell.model).stem}-{text_sha256(json.dumps(same, sort_keys=True))[:8]}"


def _kept(path: Path, make: Callable[[Path], Graph]) -> Graph:
    """The graph that an earlier cell made, or made now."""
    from edge_effdet.graph.model import load_graph

    return load_graph(path) if path.is_file() else make(path)


def _export(cell: Cell, path: Path) -> Graph:
    from benchmarks.graph_subjects import read_subject
    from edge_effdet.graph.export import ExportOptions, export_network

    named = cell.model
    if cell.image_size is not None:
        named += "@{}x{}".format(*cell.image_size)
    subject = read_subject(named)
    parents = {"checkpoint": cell.checkpoint_sha256} if cell.checkpoint_sha256 else {}
    return export_network(subject.network, subject.spec, parents, path, ExportOptions()).graph


def _lower(cell: Cell, graph: Graph, dataset: Dataset | None, path: Path) -> Graph:
    from benchmarks.run import draft_on_photos
    from edge_effdet.quant.choose import load_calibration_images
    from edge_effdet.quant.stage import QuantizeOptions, convert_to_fp16, quantize_on_images

    if cell.precision == "fp16":
        return convert_to_fp16(graph, path)
    options = QuantizeOptions(**cell.quantize)
    if dataset is not None and cell.calibration_images:
        _, samples = dataset.choose_split(None, CALIBRATION_SPLITS)
        images = load_calibration_images(samples, graph.spec, cell.calibration_images, seed=0)
        return quantize_on_images(graph, images, options, path)
    return draft_on_photos(graph, options, path)


def _is_disk_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False
