"""An evaluation spread over the workers of a Dask cluster: ``(address, assignment, samples) -> (samples, detections)``.

Each worker loads the detector once and is given a few pictures at a time. The detector and the pictures are read by their paths, from
folders that all machines see; hashes show that all of them see the same files. A worker keeps nothing that is needed later: a result is
fetched as soon as it is there, and the pictures of a worker that died are given to another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import queue
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import Detections, Engine, file_sha256, load_engine
from edge_effdet.backends.base import LoadOptions, get_backend, load_runner
from edge_effdet.cli import count_of, progress
from edge_effdet.data.base import Sample
from edge_effdet.errors import (
    BackendUnavailable,
    EdgeEffDetError,
    InputError,
    MissingDependency,
    UsageError,
    first_line,
)
from edge_effdet.evaluation.members import InferenceOptions, Member, chunks, load_members
from edge_effdet.evaluation.run import detect_batch, keep_readable
from edge_effdet.models.checkpoint import SourceOptions
from edge_effdet.runtime.golden import require_same_results

logger = logging.getLogger("edge_effdet.evaluate")

PACKAGE = "edge-effdet"

CONNECT_SECONDS = 20
"""How long a scheduler has to answer."""

_FILE_SECONDS = 2
"""How long a scheduler that starts has to write its file."""

WORKERS_SECONDS = 120
"""How long a cluster may be without any worker, at the start and later on."""

LOOK_SECONDS = 2
"""While no task ends, whether there are still workers is looked at so often."""

MOST_IMAGES = 16
"""The most pictures of a task. A task costs the cluster about two milliseconds, and a picture takes ten or more."""

TASKS_A_THREAD = 8
"""As many tasks or more for each thread, so that the workers finish at about the same time."""

Place = tuple[str, str]
"""A worker's address and the name of its machine."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What each worker loads, and how it detects.

    Attributes:
        files: SHA-256 of each file by its path: an engine and its JSON, or one or more checkpoints.
        is_engine: whether these are an engine's.
        inference: views, batch size, and where checkpoints run.
        told: which model checkpoints of other programs hold.
        self_check: whether an engine's golden check is made.
        version: of edge-effdet.
    """

    files: Mapping[str, str]
    is_engine: bool
    inference: InferenceOptions
    told: SourceOptions
    self_check: bool
    version: str


@dataclass(frozen=True, slots=True)
class _Part:
    """A task's result: what was found in each of its pictures, or why the worker cannot take part.

    Attributes:
        place: the worker.
        answers: what ``detect_batch`` gives.
        sha256s: the hash of each picture's file, empty where there is none.
        said: what was warned of when the detector was loaded.
        fault: why the worker cannot take part, and the exit code of that error; None where it can.
    """

    place: Place
    answers: tuple[Detections | str, ...] = ()
    sha256s: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    fault: tuple[str, int] | None = None


def assign_engine(engine: Engine, inference: InferenceOptions, self_check: bool) -> Assignment:
    """Let the workers load an engine, whose files they find at the same path."""
    files = {str(engine.path.absolute()): engine.sha256}
    files[str(engine.json_path.absolute())] = file_sha256(engine.json_path)
    return Assignment(files, True, _plain(InferenceOptions, inference), SourceOptions(), self_check, _version())


def assign_checkpoints(paths: Sequence[Path], inference: InferenceOptions, told: SourceOptions) -> Assignment:
    """Let the workers load checkpoints, which they find at the same paths, and run them in torch."""
    files = {str(path.absolute()): file_sha256(path) for path in paths}
    return Assignment(files, False, _plain(InferenceOptions, inference), _plain(SourceOptions, told), True, _version())


def detect_on_cluster(
    address: str, assignment: Assignment, samples: Sequence[Sample], label: str = "evaluating"
) -> tuple[list[Sample], list[Detections]]:
    """What ``run_members_over_samples`` gives, computed by the workers of a cluster.

    Args:
        address: see ``connect``.
        assignment: what the workers load.
        samples: whose pictures all machines find at the same paths.
        label: of the progress bar.

    Returns:
        The samples that could be decoded, in their order, and the detections in each.

    Raises:
        DataError: no picture could be decoded.
        InputError: a worker does not see a file, or sees another one.
        BackendUnavailable: the cluster cannot be reached or has no worker, or a worker lacks something; the message names the worker.
        UsageError, MissingDependency: see ``connect``.
    """
    paths = [str(sample.path.absolute()) for sample in samples]
    answers: list[Detections | str] = [""] * len(samples)
    with connect(address) as client:
        threads = wait_for_workers(client)
        check_workers(client, assignment.files)
        logger.info("the pictures are spread over %s", count_of(len(threads), "worker"))
        numbers = list(
            chunks(range(len(paths)), _images_a_task(len(paths), sum(threads.values()), assignment.inference))
        )
        tasks = [client.submit(_detect_part, assignment, [paths[each] for each in own], pure=False) for own in numbers]
        places = dict(zip((task.key for task in tasks), numbers, strict=True))
        try:
            for number, answer in progress(_answers(client, tasks, places, paths), len(paths), label):
                answers[number] = answer
        finally:
            _forget(client, assignment)
    return keep_readable(samples, answers)


@contextlib.contextmanager
def connect(address: str) -> Iterator[Any]:
    """Connect to the scheduler of a Dask cluster, by a ``Client``; at the end of the block the cluster forgets what was asked of it.

    Args:
        address: as the scheduler prints it, ``tcp://10.0.0.1:8786``, or the file that it wrote for ``--scheduler-file``.

    Raises:
        UsageError: it is no address.
        BackendUnavailable: nothing answers there.
        MissingDependency: Dask is not installed.
    """
    try:
        from distributed import Client
        from distributed.comm.addressing import parse_address, parse_host_port
        from distributed.comm.registry import get_backend as get_transport
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "distributed", "dask", "to use a Dask cluster") from error
    try:
        place = _read_scheduler_file(Path(address)) if Path(address).is_file() else address
        # Asked to connect to what is no address, a client tries for a minute and then ends in a traceback.
        scheme, host_and_port = parse_address(place)
        get_transport(scheme)
        if scheme in ("tcp", "tls", "ws", "wss"):
            parse_host_port(host_and_port)
        client = Client(place, timeout=CONNECT_SECONDS, set_as_default=False)
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"`dask` {address} is neither the address of a Dask scheduler nor its scheduler file ({first_line(error)}); give what the "
            "scheduler prints, as tcp://10.0.0.1:8786."
        ) from error
    except (OSError, RuntimeError) as error:
        raise BackendUnavailable(
            f"No Dask scheduler answers at {address} within {CONNECT_SECONDS} s; start one with dask scheduler, and see that this "
            "machine reaches its port."
        ) from error
    # Dask logs tracebacks of what becomes one sentence here.
    own = logging.getLogger("distributed.client")
    level = own.level
    own.setLevel(logging.CRITICAL)
    try:
        with client:
            yield client
    finally:
        own.setLevel(level)


def _read_scheduler_file(path: Path) -> str:
    """The address in a scheduler file. A scheduler that starts writes it bit by bit, so half of one is read again for a moment.

    Raises:
        ValueError, TypeError, KeyError: it is none.
    """
    end = time.monotonic() + _FILE_SECONDS
    while True:
        try:
            return str(json.loads(path.read_text("utf-8"))["address"])
        except ValueError:
            if time.monotonic() > end:
                raise
        time.sleep(_FILE_SECONDS / 20)


def wait_for_workers(client: Any) -> dict[str, int]:
    """The number of threads of each worker, by its address. A cluster that grows with its work is given some, to start the first worker.

    Raises:
        BackendUnavailable: there is no worker within ``WORKERS_SECONDS``.
    """
    if not client.nthreads():
        logger.info("waiting for a worker of the cluster")
        wanted = client.submit(int, pure=False)
        try:
            client.wait_for_workers(1, timeout=WORKERS_SECONDS)
        except (TimeoutError, asyncio.TimeoutError) as error:  # two classes before Python 3.11
            raise _no_workers() from error
        finally:
            wanted.release()
    return dict(client.nthreads())


def results(client: Any, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """Each task with its result or its exception, in the order in which they end.

    Raises:
        BackendUnavailable: the scheduler is gone, or there has been no worker for ``WORKERS_SECONDS``.
    """
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    waiting = 0
    for task in tasks:
        task.add_done_callback(done.put)
        waiting += 1
    last_seen = time.monotonic()
    while waiting:
        with contextlib.suppress(queue.Empty):
            task = done.get(timeout=LOOK_SECONDS)
            if task.status == "cancelled":
                raise _lost()
            try:
                result = task.exception() if task.status == "error" else task.result(timeout=LOOK_SECONDS)
            except (TimeoutError, asyncio.TimeoutError):  # two classes before Python 3.11
                # The worker that had the result died before it was fetched, so Dask gives the task to another one.
                task.add_done_callback(done.put)
            except CancelledError:
                raise _lost() from None
            else:
                waiting -= 1
                last_seen = time.monotonic()
                yield task, result
                continue
        if client.status != "running":
            raise _lost()
        if client.nthreads():
            last_seen = time.monotonic()
        elif time.monotonic() - last_seen > WORKERS_SECONDS:
            raise _no_workers()


def reason_of(error: BaseException) -> str:
    """Why a task failed, as a clause for a sentence."""
    # KilledWorker tells how often in a paragraph.
    if type(error).__name__ == "KilledWorker":
        return "each worker that tried it died; a worker that takes more memory than its limit is killed, and the workers' logs tell why"
    return f"{type(error).__name__}: {first_line(error)}"


def _answers(
    client: Any, tasks: Sequence[Any], places: Mapping[str, Sequence[int]], paths: Sequence[str]
) -> Iterator[tuple[int, Detections | str]]:
    """The number of each picture with what was found in it, as the tasks end."""
    said: set[str] = set()
    for task, part in results(client, tasks):
        numbers = places[task.key]
        if isinstance(part, BaseException):
            raise BackendUnavailable(
                f"The pictures from {paths[numbers[0]]} on were not judged, because {reason_of(part)}."
            )
        task.release()
        if part.fault is not None:
            text, exit_code = part.fault
            raise (BackendUnavailable if exit_code == BackendUnavailable.exit_code else InputError)(text)
        for message in part.said:
            if message not in said:
                logger.warning("%s: %s", _named(part.place), message)
        said.update(part.said)
        for number, answer, sha256 in zip(numbers, part.answers, part.sha256s, strict=True):
            if sha256 != _hash(paths[number]):
                raise InputError(_differs(part.place, paths[number], sha256))
            yield number, answer


def _images_a_task(images: int, threads: int, options: InferenceOptions) -> int:
    """Whole batches, so that no picture runs in a batch of another composition than in a serial run."""
    wanted = max(1, min(MOST_IMAGES, images // (TASKS_A_THREAD * max(1, threads))))
    return -(-wanted // options.batch_size) * options.batch_size


def check_workers(client: Any, files: Mapping[str, str], module: str = "edge_effdet") -> None:
    """Refuse workers that cannot take part.

    Args:
        client: see ``connect``.
        files: the SHA-256 of each file that the workers read, by its path.
        module: what they import to do their tasks.

    Raises:
        BackendUnavailable: a worker has another Python, no such module, or another version of this package; the message names the worker.
        InputError: a worker does not see a file, or sees another one.
    """
    versions, own = client.get_versions(), _version()
    here = _python(versions["client"])
    for address, found in versions["workers"].items():
        # What follows runs there as bytecode, which differs between versions of Python.
        if found and _python(found) != here:
            raise BackendUnavailable(
                f"The worker {address} runs Python {_python(found)} and this machine {here}; start the workers with Python {here} and "
                f"edge-effdet {own}."
            )

    def look(module: str, paths: Sequence[str]) -> tuple[str, str | None, bool, dict[str, str]]:
        # Inside a function, so that it travels as code: a worker without edge_effdet could not import it.
        import hashlib
        import importlib.util
        import pathlib
        import socket
        from importlib import metadata

        try:
            version = metadata.version("edge-effdet")
        except metadata.PackageNotFoundError:
            version = None
        try:
            there = importlib.util.find_spec(module) is not None
        except ImportError:
            there = False
        files = [pathlib.Path(path) for path in paths]
        hashes = {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()}
        return socket.gethostname(), version, there, hashes

    for address, answer in client.run(look, module, list(files), on_error="return").items():
        if isinstance(answer, OSError):
            # It is gone since, and Dask knows.
            continue
        if isinstance(answer, BaseException):
            raise BackendUnavailable(f"The worker {address} cannot take part: {reason_of(answer)}; look at its log.")
        host, version, there, seen = answer
        _require_version((address, host), version, own)
        if not there:
            raise BackendUnavailable(
                f"{_named((address, host))} cannot import {module}; start the workers in the folder that holds it."
            )
        _require_files((address, host), seen, files)


def _require_version(place: Place, version: str | None, wanted: str) -> None:
    if version is None:
        raise BackendUnavailable(
            f"{_named(place)} has no edge_effdet; install edge-effdet {wanted} there, with the extras that it needs here."
        )
    if version != wanted:
        raise BackendUnavailable(
            f"{_named(place)} has edge-effdet {version} and this machine {wanted}; install the same version on both."
        )


def _require_files(place: Place, seen: Mapping[str, str], files: Mapping[str, str]) -> None:
    for path, sha256 in files.items():
        if seen.get(path) != sha256:
            raise InputError(_differs(place, path, seen.get(path, "")))


def _differs(place: Place, path: str, sha256: str) -> str:
    what = "sees another file (its SHA-256 differs)" if sha256 else "sees no file"
    return (
        f"{_named(place)} {what} at {path}; the workers read the detector and the pictures by their paths, so put them into a "
        "folder that all machines share."
    )


def _named(place: Place) -> str:
    address, host = place
    return f"The worker {address} on {host}"


def _no_workers() -> BackendUnavailable:
    return BackendUnavailable(
        f"The Dask cluster has had no worker for {WORKERS_SECONDS} s; start some with dask worker and the scheduler's address."
    )


def _lost() -> BackendUnavailable:
    return BackendUnavailable(
        "The Dask scheduler is gone, and the results that were still missing with it; start it again, see in its log why it ended, "
        "and give the command again."
    )


def _python(found: Mapping[str, Any]) -> str:
    return ".".join(found["host"]["python"].split(".")[:2])


def _version() -> str:
    return metadata.version(PACKAGE)


def _plain(cls: type[Any], options: Any) -> Any:
    """The fields of ``cls`` alone: options of a subclass would make another assignment of the same work."""
    return cls(**{item.name: getattr(options, item.name) for item in fields(cls)})


def _hash(path: str) -> str:
    return file_sha256(Path(path)) if Path(path).is_file() else ""


# What follows runs in the workers.


@dataclass(slots=True)
class _Loaded:
    """A detector in a worker.

    Attributes:
        members: the engine, or the checkpoints.
        turn: held while it runs, where it takes one run at a time.
        said: what was warned of when it was loaded.
    """

    members: list[Member]
    turn: contextlib.AbstractContextManager[object]
    said: tuple[str, ...]


_LOADED: dict[tuple[str, str], _Loaded] = {}
"""The detectors of this process, by the worker's address and ``repr`` of the assignment: a process may hold several workers."""

_LOADING = threading.Lock()


def _detect_part(assignment: Assignment, paths: Sequence[str]) -> _Part:
    """The task: detect in some pictures, with the detector that this worker has loaded or loads now."""
    import socket

    from distributed import get_worker

    worker = get_worker()
    place = (worker.address, socket.gethostname())
    try:
        loaded = _load_once(place, assignment, worker.state.nthreads)
        answers: list[Detections | str] = []
        for batch in chunks(map(Path, paths), assignment.inference.batch_size):
            answers += detect_batch(loaded.members, batch, assignment.inference, loaded.turn)
    except EdgeEffDetError as error:
        # Not all errors can be pickled, and on the way the worker's name would be lost.
        text = str(error)
        return _Part(
            place, fault=(text if text.startswith(_named(place)) else f"{_named(place)}: {text}", error.exit_code)
        )
    return _Part(place, tuple(answers), tuple(map(_hash, paths)), loaded.said)


def _load_once(place: Place, assignment: Assignment, threads: int) -> _Loaded:
    key = (place[0], repr(assignment))
    with _LOADING:
        if key not in _LOADED:
            _LOADED[key] = _load(place, assignment, threads)
        return _LOADED[key]


def _load(place: Place, assignment: Assignment, threads: int) -> _Loaded:
    """Load the detector, once this worker is known to see the same files and to have the same version.

    Raises:
        BackendUnavailable, InputError: something differs here, or is missing.
    """
    _require_version(place, _version(), assignment.version)
    _require_files(place, {path: _hash(path) for path in assignment.files}, assignment.files)
    paths = [Path(path) for path in assignment.files]
    with _listening() as said:
        if assignment.is_engine:
            engine = load_engine(paths[0])
            # Several runs of one thread each finish more pictures than one run of all threads.
            cpu = get_backend(engine.backend).TRAITS.on_cpu
            runner = load_runner(engine, LoadOptions(1, threads, spinning=False) if cpu else LoadOptions())
            require_same_results(runner, engine, wanted=assignment.self_check)
            members = [Member(runner, engine.spec)]
        else:
            _, members = load_members(paths, assignment.inference.device, assignment.told)
            _use_threads(threads)
    concurrent = all(member.runner.concurrent for member in members)
    return _Loaded(members, contextlib.nullcontext() if concurrent else threading.Lock(), tuple(said))


def _use_threads(threads: int) -> None:
    """Let torch compute with the worker's threads: Dask starts its workers with one for each library."""
    import torch

    torch.set_num_threads(threads)


@contextlib.contextmanager
def _listening() -> Iterator[list[str]]:
    """The warnings of this package while the block runs, which the user would not see in a worker's log."""
    listener = _Listener(logging.WARNING)
    package = logging.getLogger("edge_effdet")
    package.addHandler(listener)
    try:
        yield listener.said
    finally:
        package.removeHandler(listener)


class _Listener(logging.Handler):
    """Keeps messages."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _forget(client: Any, assignment: Assignment) -> None:
    """Let the workers drop the detector. Whatever goes wrong here costs memory in a worker and nothing else."""
    if client.status != "running":
        # It would be waited for.
        return
    with contextlib.suppress(Exception):
        client.run(_drop, repr(assignment), on_error="ignore")


def _drop(assignment: str) -> None:
    # Not closed: a task of this evaluation, or of another one with the same detector, may be running. With the last of them it goes.
    for key in [key for key in _LOADED if key[1] == assignment]:
        del _LOADED[key]
