"""How the service is: the file that it writes about once a second, and what ``status`` prints."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import json_text, printable
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.cli import Result, count_of, table
from edge_effdet.device.service.processes import process_identity, seconds_since_boot
from edge_effdet.device.service.state_files import open_state_file, read_state_file
from edge_effdet.device.store import STATE, Store
from edge_effdet.device.version import Version
from edge_effdet.errors import InputError, NotHealthy
from edge_effdet.sending.report import SendReport

STATUS_FORMAT = 1
"""The format of ``status.json`` that this version writes, and the only one that it reads. It stays, with its fields: whoever updates by the installed
version, or goes back to it, waits with one version's code for the status of another, and the first release refuses fields that it does not know."""

STATUS = "status.json"

SENDING = "sending.json"
"""Beside it: how sending goes, which the first release knew nothing of."""

STALE = 5.0
"""Seconds without a new status after which the process that writes it hangs."""

_READS, _PAUSE = 3, 0.02
"""So often a status is read, with so many seconds between, before it counts as damaged: on a full disk it is not replaced as a whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceStatus:
    """How the service is. All times but ``started_at`` are ``seconds_since_boot``, for the wall clock of a device may be wrong.

    Attributes:
        format: ``STATUS_FORMAT``.
        version: the id of the version that runs.
        state: ``loading``, ``running``, ``waiting`` (for a source that is away), ``idle`` (all pictures are through), ``stopped`` or
            ``failed``.
        healthy: whether it does what it is there for.
        reason: why not, in a sentence without its end; empty where it is healthy.
        pid: the process.
        process: what tells it from a later process of that number (``process_identity``).
        started_at: the wall clock when it started, ISO 8601.
        started_s: when it started.
        updated_s: when this was written.
        source: what it looks at, without a password.
        engine: the engine's file name.
        backend, precision: of the engine.
        frames: frames in which was looked, since the start.
        fps: of them a second, over the last ten seconds.
        latency_ms_p50, latency_ms_p90: milliseconds from the arrival of a frame to its detections, over the last ten seconds; None where
            there was none.
        last_frame_s: when the last one was through; None before the first.
        dropped: frames of a camera that were too old when their turn came.
        skipped: frames that could not be decoded.
        reopened: how often the source was opened again after it had gone.
        results_lost: lines of results that could not be written.
        temperature_c: of the hottest thermal zone, degrees Celsius; None where none shows any.
        temperature_of: the name of the zone, or why there is no temperature.
        last_error: the last thing that went wrong, a sentence; empty where nothing did.
        last_error_s: when that was.
        sending: how sending goes to each receiver.
    """

    format: int = STATUS_FORMAT
    version: str
    state: str
    healthy: bool
    reason: str
    pid: int
    process: str
    started_at: str
    started_s: float
    updated_s: float
    source: str
    engine: str
    backend: str
    precision: str
    frames: int
    fps: float
    latency_ms_p50: float | None
    latency_ms_p90: float | None
    last_frame_s: float | None
    dropped: int
    skipped: int
    reopened: int
    results_lost: int
    temperature_c: float | None
    temperature_of: str
    last_error: str
    last_error_s: float | None
    sending: tuple[SendReport, ...] = ()

    @property
    def alive(self) -> bool:
        """Whether the process that wrote this is still there."""
        return process_identity(self.pid) == self.process

    @property
    def age(self) -> float:
        """Seconds since it was written; without meaning after a restart of the machine, when the process is not ``alive``."""
        return seconds_since_boot() - self.updated_s


def status_path(store_folder: Path) -> Path:
    """Where the service of an installation writes its status."""
    return store_folder / STATE / STATUS


def write_status(path: Path, status: ServiceStatus) -> None:
    """Replace the status as a whole. Where there is no room for a new file, it is written over the old one, which has room already.

    It is not brought to the disk at once, as other files are: after a power cut it tells nothing that is still true, and a memory card
    would wear.

    Raises:
        OSError: neither could be done.
    """
    raw = to_json(status)
    sending = raw.pop("sending")
    _replace(path, raw)
    if sending or path.with_name(SENDING).exists():
        _replace(path.with_name(SENDING), {"process": status.process, "sending": sending})


def _replace(path: Path, raw: Any) -> None:
    content = (json_text(raw, indent=1) + "\n").encode()
    new = path.with_name(f".{path.name}.new")
    try:
        new.unlink(missing_ok=True)
        with os.fdopen(open_state_file(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb") as stream:
            stream.write(content)
        os.replace(new, path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        with os.fdopen(open_state_file(path, os.O_RDWR), "r+b") as stream:
            stream.write(content)
            stream.truncate()


def read_status(store_folder: Path) -> ServiceStatus | None:
    """The status that the service of an installation wrote last, be the service still there or not; None where there is none that can be read.

    Raises:
        InputError: this user may not read it.
    """
    path = status_path(store_folder)
    for _ in range(_READS):
        found = _read_once(path)
        if not isinstance(found, Exception):
            return found
        time.sleep(_PAUSE)
    return None


def _read_once(path: Path) -> ServiceStatus | Exception | None:
    """The status, None where there is none for this version to read, or what speaks for a second look."""
    try:
        raw = json.loads(read_state_file(path)[0].decode("utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no object")
        if raw.get("format") != STATUS_FORMAT:
            return None
        return from_json(ServiceStatus, {**raw, "sending": _read_sending(path.with_name(SENDING), raw.get("process"))})
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise InputError(f"{path} cannot be read by this user; run this with sudo.") from error
    except (OSError, ValueError) as error:
        return error


def _read_sending(path: Path, process: str | None) -> list[Any]:
    """How a process said that sending goes; nothing where it said nothing of that."""
    try:
        raw = json.loads(read_state_file(path)[0].decode("utf-8"))
        return list(raw["sending"]) if raw["process"] == process else []
    except (OSError, ValueError, TypeError, KeyError):
        return []


def judge(status: ServiceStatus | None) -> str:
    """Why a service is not healthy, a sentence without its end; empty where it is."""
    if status is None:
        return "it has written no status, so it has not started"
    if not status.alive:
        if status.state == "stopped":
            return "it was stopped"
        return f"its process {status.pid} has ended{f': {_within(status.last_error)}' if status.last_error else ''}"
    if status.age > STALE:
        return f"its status is {status.age:.0f} s old, so its process {status.pid} hangs"
    return "" if status.healthy else status.reason


def describe_service(store: Store, running: bool | None = None) -> Result:
    """What ``status`` prints: the service, and the versions that are installed.

    Args:
        store: of the installation.
        running: whether what starts the service says that it runs; None where nobody was asked.

    Returns:
        The service, a line for each thing, and a table of the versions; for machines ``service``, None where it never ran, and ``versions``.
        ``healthy`` is there in any case. Where it is not healthy ``failure`` says so, with which the command ends.
    """
    status = read_status(store.folder)
    reason = judge(status)
    current, versions, cut_off = store.current(), store.versions(), store.cut_off()
    data: dict[str, Any] = {
        "name": store.name,
        "store": str(store.folder),
        "current": None if current is None else current.id,
        "running": status is not None and status.alive,
        "started_by_manager": running,
        "healthy": not reason,
        "reason": reason,
        "service": None if status is None else to_json(status),
        "versions": [_version_data(each, current) for each in versions],
        "cut_off": cut_off,
    }
    rows = [("service", store.name), ("healthy", f"no: {reason}" if reason else "yes")]
    if status is not None:
        rows += _service_rows(status)
        if status.alive and current is not None and status.version != current.id:
            rows.append(
                ("note", f"the installed version is {current.id}, and the service has not been started again since")
            )
    if cut_off:
        rows.append(("cut off", cut_off))
    installed = [("version", "release", "precision", "state"), *(_version_row(each, current) for each in versions)]
    parts = [_aligned(rows), table(installed) if versions else f"no version is installed in {store.folder}"]
    failure = NotHealthy(f"The service of {store.name} is not healthy: {reason}.") if reason else None
    return Result("\n\n".join(parts), data, failure)


def _aligned(rows: Sequence[tuple[str, str]]) -> str:
    """Names and what they stand for, all to the left: in a table those that begin with a digit would stand to the right."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {printable(' '.join(value.split()))}" for name, value in rows)


def _service_rows(status: ServiceStatus) -> list[tuple[str, str]]:
    latency = "none in the last seconds"
    if status.latency_ms_p50 is not None and status.latency_ms_p90 is not None:
        latency = f"{status.latency_ms_p50:.1f} ms median, {status.latency_ms_p90:.1f} ms P90"
    heat = f"not known: {status.temperature_of}"
    if status.temperature_c is not None:
        heat = f"{status.temperature_c:.1f} °C ({status.temperature_of})"
    now = seconds_since_boot()
    rows = [
        ("state", status.state if status.alive else f"not running (last: {status.state})"),
        ("version", status.version),
        ("process", f"{status.pid}, for {_duration(now - status.started_s)}" if status.alive else "none"),
        ("source", status.source),
        (
            "engine",
            f"{status.engine} ({status.precision.upper()} by {status.backend})" if status.engine else "not loaded",
        ),
        ("frames", f"{status.frames}, {status.fps:.1f} a second"),
        ("latency", latency),
        ("temperature", heat),
        ("dropped", f"{status.dropped} too old, {status.skipped} unreadable"),
        ("source lost", count_of(status.reopened, "time")),
        ("results lost", count_of(status.results_lost, "line")),
        *(("sending", f"{each.text()}{f' ({each.problem})' if each.problem else ''}") for each in status.sending),
    ]
    error = "none"
    if status.last_error:
        error = status.last_error
        if status.alive and status.last_error_s is not None:
            error = f"{_duration(now - status.last_error_s)} ago: {error}"
    return [*rows, ("last error", error)]


def _version_data(version: Version, current: Version | None) -> dict[str, Any]:
    record = version.record
    return {
        "id": version.id,
        "release": None if record is None else record.release,
        "precision": None if record is None else record.precision,
        "backend": None if record is None else record.backend,
        "signed_by": None if record is None else record.signed_by,
        "complete": record is not None,
        "current": current is not None and current.id == version.id,
        "order": version.standing.order,
        "good": version.standing.good,
        "bad": version.standing.bad,
    }


def _version_row(version: Version, current: Version | None) -> Sequence[str]:
    words = ["current"] if current is not None and current.id == version.id else []
    if version.record is None:
        return version.id, "", "", "not whole"
    if version.standing.bad is not None:
        words.append(f"bad: {version.standing.bad}")
    elif version.standing.good:
        words.append("good")
    elif version.standing.order:
        words.append("not proven")
    return version.id, version.record.release, version.record.precision, ", ".join(words) or "not used so far"


def _duration(seconds: float) -> str:
    """``42 s``, ``3 min``, ``5 h``, ``9 d``: enough to tell how long ago something was."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _within(sentence: str) -> str:
    """A sentence as a part of another one."""
    return printable(sentence).rstrip(".")
