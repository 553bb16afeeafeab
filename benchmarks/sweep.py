"""Sweep over models, image sizes, precisions and backends: build, time and judge each cell, and draw AP over latency.

python -m benchmarks.sweep benchmarks/suites/zoo.toml
python -m benchmarks.sweep benchmarks/suites/zoo.toml --dask tcp://10.0.0.1:8786

Each cell that is done is a file of its own below ``--output``, named by a hash of what decides it: the suite's entry, the checkpoint, the
data, the versions and the processor. The same command goes on where an earlier one stopped, and a suite that was changed measures what is
new. A cell that cannot be measured is kept with the reason. With a cluster each worker measures a cell at a time, with all of its threads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from itertools import product
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import tomllib

from benchmarks.machine import describe_machine, save_result
from benchmarks.parser import make_parser
from benchmarks.processes import ROOT
from benchmarks.sweep_cell import REFERENCE, Cell, DiskFull, hash_data, measure_cell, measure_on_worker
from benchmarks.sweep_picture import describe_sweep, draw_pareto
from edge_effdet.artifacts import PRECISIONS, file_sha256, require_writable, write_json
from edge_effdet.artifacts.reading import to_json
from edge_effdet.backends.base import BACKENDS
from edge_effdet.cli import Result, count_of, parse_size, run_verb
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import InputError, UsageError
from edge_effdet.evaluation.spread import check_workers, connect, reason_of, results, wait_for_workers

logger = logging.getLogger("edge_effdet.benchmarks.sweep")

SUITE_KEYS = frozenset(
    [
        "title",
        "precisions",
        "backends",
        "leave_out",
        "rounds",
        "runs",
        "warm_up",
        "threads",
        "published",
        "data",
        "calibration_images",
        "quantize",
        "model",
    ]
)
MODEL_KEYS = frozenset(["name", "checkpoint", "sizes", "published_ap"])


def read_suite(path: Path) -> dict[str, Any]:
    """A suite as it is written. Raises UsageError where something is missing or unknown in it, InputError where it is no TOML."""
    try:
        suite = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give a TOML file of benchmarks/suites.") from error
    except ValueError as error:
        raise InputError(f"{path} is no TOML ({error}); mend it, or give a file of benchmarks/suites.") from error
    models = suite.get("model", [])
    faults = [f"it has no {key}" for key in ("title", "precisions", "backends", "model") if not suite.get(key)]
    faults += [f"there is no key {key}" for key in sorted(suite.keys() - SUITE_KEYS)]
    faults += [f"a model has no key {key}" for model in models for key in sorted(model.keys() - MODEL_KEYS)]
    faults += [f"there is no precision {name}" for name in suite.get("precisions", []) if name not in PRECISIONS]
    faults += [f"there is no backend {name}" for name in suite.get("backends", []) if name not in BACKENDS]
    for model in models:
        if ("name" in model) == ("checkpoint" in model):
            faults.append("a model has either a name or a checkpoint")
        elif "name" in model and not model.get("sizes"):
            faults.append(f"{model['name']} has no sizes")
        elif "checkpoint" in model and "sizes" in model:
            faults.append(f"{model['checkpoint']} has a size of its own, and no others")
        if "published_ap" in model and len(model["published_ap"]) != len(model.get("sizes", [])):
            faults.append("published_ap has an AP in points for each size, since it holds for that size only")
        elif "published_ap" in model and "published" not in suite:
            faults.append("an AP is published somewhere: [published] has its source and its data")
    if faults:
        raise UsageError(f"The suite {path} cannot be used: {'; '.join(dict.fromkeys(faults))}; mend it.")
    return suite


def list_cells(suite: Mapping[str, Any]) -> list[Cell]:
    """The cells of a suite, model by model and size by size, the one of ``REFERENCE`` first.

    Raises:
        InputError, DataError: a checkpoint or the data cannot be read.
        UsageError: a size is none.
    """
    turns = (suite.get("rounds", 3), suite.get("runs", 5), suite.get("warm_up", 2))
    left_out = {tuple(pair.split()) for pair in suite.get("leave_out", [])}
    data, data_sha256 = "", ""
    if suite.get("data"):
        folder = _find_data(suite["data"])
        data, data_sha256 = str(folder), hash_data(read_dataset(folder))
    cells = []
    for model in suite["model"]:
        common: dict[str, Any] = {"turns": turns, "threads": suite.get("threads", 0)}
        common["quantize"] = suite.get("quantize", {})
        if "checkpoint" in model:
            path = Path(model["checkpoint"])
            if not path.is_file():
                raise InputError(
                    f"There is no checkpoint at {path}; start the sweep in the folder that it is relative to."
                )
            common |= {"model": str(path.absolute()), "checkpoint_sha256": file_sha256(path)}
            common |= {"data": data, "data_sha256": data_sha256}
            common["calibration_images"] = suite.get("calibration_images", 0)
        else:
            common["model"] = model["name"]
        pairs = sorted(product(suite["precisions"], suite["backends"]), key=lambda pair: pair != REFERENCE)
        for size in model.get("sizes", [None]):
            image_size = None if size is None else parse_size(str(size))
            cells += [
                Cell(image_size=image_size, precision=precision, backend=backend, **common)
                for precision, backend in pairs
                if (precision, backend) not in left_out
            ]
    return cells


def sweep(cells: Sequence[Cell], folder: Path, address: str | None = None, retry: bool = False) -> list[dict[str, Any]]:
    """Measure the cells that ``folder`` does not hold yet.

    Args:
        cells: what is measured.
        folder: keeps a file a cell in ``cells/``, and graphs in ``work/``.
        address: of the scheduler of a Dask cluster; None to measure here.
        retry: whether cells that could not be measured earlier are tried again.

    Returns:
        The row of each cell, in their order.

    Raises:
        DiskFull, InputError: a file cannot be written; what is done is kept.
        UsageError, BackendUnavailable, MissingDependency: the cluster cannot be used.
    """
    require_writable(folder)
    rows: dict[int, dict[str, Any]] = {}
    paths = [_cell_path(cell, folder, address) for cell in cells]
    for number, path in enumerate(paths):
        row = _read_row(path)
        if row is not None and not (retry and "skipped" in row):
            rows[number] = row
    missing = [number for number in range(len(cells)) if number not in rows]
    logger.info("%s, of which %d are to be measured", count_of(len(cells), "cell"), len(missing))
    if not missing:
        return [rows[number] for number in range(len(cells))]
    left = _TimeLeft([cells[number] for number in missing])
    todo = [(number, cells[number]) for number in missing]
    with contextlib.ExitStack() as closing:
        # Told to end, a generator ends its process or leaves its cluster.
        measured = (
            _measure_here(todo, (folder / "work").absolute()) if address is None else _measure_there(todo, address)
        )
        closing.callback(measured.close)
        for number, row in measured:
            # All that decides it is in the name of the file.
            write_json(paths[number], row)
            rows[number] = row
            said = _summary(row)
            logger.info(
                "[%d/%d] %s: %s; %s", len(rows), len(cells), cells[number].title, said, left.after(cells[number])
            )
    return [rows[number] for number in range(len(cells))]


def _measure_here(todo: Sequence[tuple[int, Cell]], work: Path) -> Generator[tuple[int, dict[str, Any]]]:
    """Each cell's number and row. A process of its own measures them, so that a crash costs one cell."""
    process = None
    try:
        for number, cell in todo:
            process = process or _Process()
            row = process.measure(cell, work)
            if row is None:
                row = {"cell": to_json(cell), "title": cell.title, "skipped": process.how_it_ended()}
                process = None
            yield number, row
    finally:
        if process is not None:
            process.end()


def _measure_there(todo: Sequence[tuple[int, Cell]], address: str) -> Generator[tuple[int, dict[str, Any]]]:
    """Each cell's number and row, as the workers of the cluster finish them."""
    with connect(address) as client:
        threads = wait_for_workers(client)
        files = {cell.model: cell.checkpoint_sha256 for _, cell in todo if cell.checkpoint_sha256}
        check_workers(client, files, "benchmarks.sweep_cell")
        logger.info("the cells are spread over %s", count_of(len(threads), "worker"))
        tasks = {client.submit(measure_on_worker, cell, pure=False): (number, cell) for number, cell in todo}
        for task, row in results(client, list(tasks)):
            number, cell = tasks[task]
            if isinstance(row, DiskFull):
                raise row
            if isinstance(row, BaseException):
                row = {"cell": to_json(cell), "title": cell.title, "skipped": reason_of(row)}
            yield number, row


class _Process:
    """The process that measures cells, one after the other."""

    def __init__(self) -> None:
        self._end, other = multiprocessing.Pipe()
        # multiprocessing's own processes would import the program that started this one.
        code = f"from benchmarks.sweep import serve; serve({other.fileno()})"
        self._process = subprocess.Popen([sys.executable, "-c", code], pass_fds=[other.fileno()], cwd=ROOT)
        other.close()

    def measure(self, cell: Cell, work: Path) -> dict[str, Any] | None:
        """The row of a cell; None where the process ended before it was done. Raises what ``measure_cell`` raises."""
        try:
            self._end.send((cell, work))
            answer = self._end.recv()
        except (EOFError, OSError):
            return None
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def how_it_ended(self) -> str:
        """Why a process that ended by itself did so."""
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"its process ended ({name}{', perhaps for want of memory' if name == 'SIGKILL' else ''})"

    def end(self) -> None:
        self._end.close()
        self._process.terminate()
        self._process.wait()


def serve(descriptor: int) -> None:
    """Measure what comes through a pipe, until its other end is closed."""
    end = Connection(descriptor)
    # Ctrl-C reaches all processes of the terminal; the sweep ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What each build says of its engine is in the row, or does not matter for an engine that is thrown away.
    logging.getLogger("edge_effdet").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    # Either of them: the sweep is gone.
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            cell, work = end.recv()
            try:
                answer: Any = measure_cell(cell, work)
            except DiskFull as error:
                answer = error
            end.send(answer)


class _TimeLeft:
    """How long the rest of a sweep takes, by the pixels of its inputs and the seconds of the cells so far."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self._left = list(cells)
        self._started = time.monotonic()
        self._done = 0.0

    def after(self, cell: Cell) -> str:
        """For people, when this cell is done."""
        self._left.remove(cell)
        if not self._left:
            return "all done"
        self._done += _pixels(cell)
        seconds = (time.monotonic() - self._started) / self._done * sum(map(_pixels, self._left))
        return f"about {seconds / 60:.0f} min left" if seconds > 90 else f"about {seconds:.0f} s left"


def _pixels(cell: Cell) -> float:
    # A checkpoint's size is in its file, and all cells of it have the same.
    height, width = cell.image_size or (320, 320)
    return height * width


def _cell_path(cell: Cell, folder: Path, address: str | None) -> Path:
    machine = describe_machine()
    where: dict[str, Any] = {"processor": machine["processor"], "cores": machine["cores"]} if address is None else {}
    return folder / "cells" / f"{cell.key(packages=machine['packages'], python=machine['python'], **where)}.json"


def _read_row(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({error}); delete it, and it is measured again.") from error


def _summary(row: Mapping[str, Any]) -> str:
    if "skipped" in row:
        return f"skipped, because {row['skipped']}"
    accuracy = f", AP {100 * row['accuracy']['AP']:.1f}" if row.get("accuracy") else ""
    return f"{row['median_ms']:.1f} ms{accuracy}"


def _find_data(name: str) -> Path:
    """A path as it is, or below the folder that ``EDGE_EFFDET_DATA`` names."""
    paths = [Path(name), Path(os.environ.get("EDGE_EFFDET_DATA", "")) / name]
    found = next((path for path in paths if path.exists()), None)
    if found is None:
        raise InputError(
            f"There is no {name} here, nor in the folder that EDGE_EFFDET_DATA names; set that to the folder of the data."
        )
    return found.absolute()


def gather(suite: Mapping[str, Any], cells: Sequence[Cell], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of a sweep, for JSON: each row with the AP that it may be shown at, and whose AP that is."""
    published = {
        (model["name"], parse_size(str(size))): ap
        for model in suite["model"]
        for size, ap in zip(model.get("sizes", []), model.get("published_ap", []), strict=False)
    }
    shown = []
    for cell, row in zip(cells, rows, strict=True):
        ap: dict[str, Any] | None = None
        if row.get("accuracy"):
            ap = {"points": 100 * row["accuracy"]["AP"], "kind": "measured", "data": Path(cell.data).name}
        elif cell.image_size is not None and (cell.model, cell.image_size) in published:
            ap = {
                "points": published[cell.model, cell.image_size],
                "kind": "published, not measured",
                **suite["published"],
            }
            # The weights are random, so what a lower precision costs is not known.
            ap["of"] = "fp32"
        shown.append({**row, "ap": ap})
    return {"title": suite["title"], "timed": "the network alone, batch 1, milliseconds", "cells": shown}


def _run(arguments: argparse.Namespace) -> Result:
    suite = read_suite(arguments.suite)
    cells = list_cells(suite)
    output = arguments.output or Path("runs") / "sweep" / arguments.suite.stem
    rows = sweep(cells, output, arguments.dask, arguments.retry)
    result = gather(suite, cells, rows)
    path = save_result("sweep", result, arguments.suite.stem)
    picture = path.with_suffix(".svg")
    draw_pareto(result, picture)
    return Result(f"{describe_sweep(result)}\n\n{path}\n{picture}", {"result": str(path), "picture": str(picture)})


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "sweep", "Measure a suite of models, image sizes, precisions and backends.", "benchmarks/suites/zoo.toml"
    )
    parser.add_argument("suite", type=Path, help="a TOML file of benchmarks/suites")
    parser.add_argument(
        "--dask", metavar="ADDRESS", help="measure on the workers of the Dask cluster whose scheduler has this address"
    )
    parser.add_argument(
        "--output", type=Path, metavar="D", help="keeps what is measured (default: runs/sweep/ and the suite's name)"
    )
    parser.add_argument("--retry", action="store_true", help="try cells again that could not be measured")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
