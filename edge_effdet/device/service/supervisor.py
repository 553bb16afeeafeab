"""What starts the service again where there is no systemd: ``python -m edge_effdet.device.service.supervisor STATE COMMAND…``.

It runs in the background until it is told to end by SIGTERM. It is no part of the command line: ``starting.ProcessService`` starts and stops it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edge_effdet.artifacts import json_text, printable
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.device.service.processes import process_identity, process_owner
from edge_effdet.device.service.state_files import read_state_file, take_state_file

logger = logging.getLogger("edge_effdet.device.service.supervisor")

PID_FILE = "service.pid"
LOG_FILE = "service.log"
_LOG_BYTES, _LOGS = 1 << 20, 3

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before the service is started again; the wait doubles each time, and begins anew after a service that lived for ``LONGEST_WAIT``."""

PATIENCE = 10.0
"""Seconds that a service gets to end in order."""

TICK = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervised:
    """What the pid file holds: two processes, each with what tells it from a later one of its number (``process_identity``).

    Attributes:
        pid, process: the supervisor.
        service_pid, service_process: the service; 0 and empty while none runs.
    """

    pid: int
    process: str
    service_pid: int
    service_process: str


def read_pid_file(state: Path) -> Supervised | None:
    """What a supervisor wrote; None where there is nothing, nothing whole, or nothing that is to be believed.

    Whoever owns the file may name his own processes in it, which he could end himself. Root ends no others for him: the user of the service, who owns the
    folder, could name any.
    """
    try:
        content, owner = read_state_file(state / PID_FILE)
        found = from_json(Supervised, json.loads(content.decode("ascii")))
    except (OSError, ValueError):
        return None
    named = ((found.pid, found.process), (found.service_pid, found.service_process))
    for pid, process in named if owner != 0 else ():
        if pid and process_identity(pid) == process and process_owner(pid) != owner:
            logger.warning(
                "%s names the process %d, which is not of the user who wrote that, so it is not believed",
                state / PID_FILE, pid,
            )  # fmt: skip
            return None
    return found


def end_group(pid: int, process: str, patience: float = PATIENCE) -> None:
    """End a process and all of its group, in order where it does so in time. Nothing happens where the number belongs to another process by
    now."""
    if not pid or process_identity(pid) != process:
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGTERM)
        until = time.monotonic() + patience
        while process_identity(pid) == process and time.monotonic() < until:
            time.sleep(0.05)
        # What it started itself may still be there, as the program that reads a camera.
        os.killpg(pid, signal.SIGKILL)


def supervise(state: Path, command: Sequence[str], begun: Callable[[], object]) -> int:
    """Run a command until it ends without an error, and start it again where it ends with one. SIGTERM ends both.

    Args:
        state: the folder of the pid file and of the log, which holds what the command prints, 4 MiB at most.
        command: the service.
        begun: called when the pid file is written, or another supervisor was found at work.
    """
    state.mkdir(parents=True, exist_ok=True)
    pid_file = take_state_file(state / PID_FILE, os.O_RDWR, 0o644, own=True)
    try:
        fcntl.flock(pid_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        begun()
        return 0
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: stop.set())
    try:
        _write_pid_file(pid_file, 0)
        begun()
        _keep_running(state, command, pid_file, stop)
    finally:
        (state / PID_FILE).unlink(missing_ok=True)
    return 0


def _keep_running(state: Path, command: Sequence[str], pid_file: int, stop: threading.Event) -> None:
    log = _open_log(state)
    wait = FIRST_WAIT
    while not stop.is_set():
        begun = time.monotonic()
        try:
            code = _run(command, pid_file, stop, log)
        except OSError as error:
            log.error("the service cannot be started: %s", error)
            code = 1
        _write_pid_file(pid_file, 0)
        if stop.is_set() or code == 0:
            return
        if time.monotonic() - begun > LONGEST_WAIT:
            wait = FIRST_WAIT
        log.warning("the service ended with code %d; it is started again in %.0f s", code, wait)
        stop.wait(wait)
        wait = min(LONGEST_WAIT, 2 * wait)


def _run(command: Sequence[str], pid_file: int, stop: threading.Event, log: logging.Logger) -> int:
    service = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert service.stdout is not None
    _write_pid_file(pid_file, service.pid)
    copying = threading.Thread(target=_copy, args=(service.stdout, log), daemon=True)
    copying.start()
    while service.poll() is None and not stop.wait(TICK):
        pass
    if service.poll() is None:
        end_group(service.pid, process_identity(service.pid) or "")
    else:
        # What it started itself, as the program that reads a camera, goes with it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)
    code = service.wait()
    # Its last words. Something that left its group could hold the pipe open for ever.
    copying.join(2.0)
    if not copying.is_alive():
        service.stdout.close()
    return code


def _copy(stream: IO[bytes], log: logging.Logger) -> None:
    with contextlib.suppress(ValueError, OSError):
        for line in stream:
            log.info("%s", printable(line.decode(errors="surrogateescape").rstrip("\n")))


class _StateLog(logging.handlers.RotatingFileHandler):
    """A log that is never written through a link."""

    def _open(self) -> Any:
        descriptor = take_state_file(Path(self.baseFilename), os.O_WRONLY | os.O_APPEND)
        return os.fdopen(descriptor, self.mode, encoding=self.encoding, errors=self.errors)


def _open_log(state: Path) -> logging.Logger:
    with contextlib.suppress(OSError):
        handler = _StateLog(state / LOG_FILE, maxBytes=_LOG_BYTES, backupCount=_LOGS, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    # A full disk must not fill the standard error, which nobody reads.
    logging.raiseExceptions = False
    return logger


def _write_pid_file(pid_file: int, service: int) -> None:
    pid = os.getpid()
    found = Supervised(
        pid=pid,
        process=process_identity(pid) or "",
        service_pid=service,
        service_process=(process_identity(service) or "") if service else "",
    )
    # In one write of one length, so that whoever reads it finds the old content or the new one.
    with contextlib.suppress(OSError):
        os.pwrite(pid_file, json_text(to_json(found)).ljust(512).encode("ascii"), 0)


def main(arguments: Sequence[str]) -> int:
    reading, writing = os.pipe()
    if os.fork():
        # What starts this one waits for the first process alone, which waits until the second one has begun.
        os.close(writing)
        return 0 if os.read(reading, 1) else 1
    os.setsid()
    os.close(reading)
    return supervise(Path(arguments[0]), arguments[1:], lambda: os.write(writing, b"b"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
