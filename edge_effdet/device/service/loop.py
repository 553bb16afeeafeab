"""The service itself: the engine of the installed version on a source of pictures, for as long as the device is on.

One thread watches: it writes the results and the status, answers systemd's watchdog and never waits for a camera or for the engine. Other
threads load the engine and read the source. What goes away comes back: a source that ends, fails or falls silent is opened again after
growing waits. What only a new process can cure, an engine that hangs or a camera whose driver does not answer, ends this one with an error,
and what started it starts it again.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import Engine, engine_json_path, file_sha256, load_engine
from edge_effdet.backends.base import LoadOptions
from edge_effdet.device.service.notify import Notifier
from edge_effdet.device.service.options import ServiceOptions, read_options
from edge_effdet.device.service.processes import process_identity, seconds_since_boot
from edge_effdet.device.service.results import ResultsLog
from edge_effdet.device.service.state_files import open_state_file, require_own_link
from edge_effdet.device.service.status import ServiceStatus, status_path, write_status
from edge_effdet.device.service.temperature import read_heat
from edge_effdet.device.service.watched import Aside, Repeated, SourceReading
from edge_effdet.device.store import STATE, Store, Version
from edge_effdet.errors import DataError, EngineError, InputError, UsageError
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.pipeline import FrameResult, PipelineOptions, loading_for
from edge_effdet.runtime.run import track_frame
from edge_effdet.runtime.sinks import Sink, detections_to_json
from edge_effdet.runtime.sources import _without_password, open_source
from edge_effdet.runtime.tracking import Tracker, make_tracker, refuse_pictures
from edge_effdet.sending.options import make_senders, require_packages
from edge_effdet.sending.report import reports_of

logger = logging.getLogger("edge_effdet.device.service")

RESULTS, SPOOL = "results", "spool"
"""The folders of the results and of what is not sent yet, in the folder of the state."""

TICK = 0.25
"""Seconds between two looks of the thread that watches."""

STATUS_EVERY = 1.0
"""Seconds between two statuses, and between two messages to the watchdog."""

WINDOW = 10.0
"""Seconds over which the rate and the latency are taken."""

LATE = 15.0
"""Seconds without a frame after which the service is not healthy. A picture takes that long on no device that is meant to be used."""

SILENCE = 30.0
"""Seconds after which a camera that sends nothing is opened again; ``runtime.sources`` has tried so itself before. As long as an engine may
take for a frame before the watchdog is left without an answer."""

HANG = 60.0
"""Seconds without any result, with frames under way, after which the engine counts as hung."""

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds before a source is opened again; the wait doubles each time."""

LETTING_GO = 10.0
"""Seconds that a camera gets to end a read: longer than the time limit of a network camera (``sources.SILENCE``)."""

LAST_RUN = 4.0
"""Seconds that a run of the engine gets to end when the service is stopped."""

SENDERS_AGAIN = 30.0
"""Seconds before sending is tried again where its spool could not be written."""

_MOST_RECENT = 20_000
"""Frames of which latencies are kept; at a higher rate the window is shorter."""


def serve(store_folder: Path) -> int:
    """Run the service until SIGTERM or SIGINT: what ``edge-effdet run`` does.

    Args:
        store_folder: the folder of the installation, ``ROOT/NAME``.

    Returns:
        The exit code, 0. See ``run_service`` for the errors.
    """
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        code = run_service(store_folder, read_options(store_folder), stop)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if any(thread.name.startswith("edge-effdet-") for thread in threading.enumerate()):
        # A thread that is inside a library, as one that loads an engine, would end the process with an error when it comes back to an
        # interpreter that is gone.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def run_service(store_folder: Path, options: ServiceOptions, stop: threading.Event) -> int:
    """Detect in all frames of a source, for ever, and write results and status into ``ROOT/NAME/state``.

    Args:
        store_folder: the folder of the installation, ``ROOT/NAME``, whose current version runs.
        options: what it looks at.
        stop: ends it, within the time of one run of the engine.

    Returns:
        0, when it was stopped, or when the source is through and ``options.at_end`` says so.

    Raises:
        UsageError: the options name no source, or a service of this installation runs already.
        InputError: no version is installed, or the state cannot be written.
        EngineError: the engine is damaged, finds other objects than where it was proven, fails, or hangs.
        BackendUnavailable, MissingDependency: what runs the engine or reads the source does not work here.
        DataError: a camera does not answer at all, which only a new process cures.
    """
    if not options.source:
        raise UsageError(
            f"{store_folder / 'config.json'} names no `source`; install again with `source`, or write it there."
        )
    store = Store.at(store_folder.parent, store_folder.name)
    version = _own_version(store) or store.current()
    if version is None:
        raise InputError(f"No version is installed in {store_folder}; run ./edge-effdet install in a bundle.")
    with _alone(store_folder / STATE):
        return _Service(store_folder, version, options, stop).run()


def _own_version(store: Store) -> Version | None:
    """The version whose environment this Python is of: ``current`` may have been switched since it was started."""
    folder = Path(os.path.realpath(sys.prefix)).parent
    version = store.version(folder.name)
    return version if version.folder == folder and version.record is not None else None


@contextlib.contextmanager
def _alone(state: Path) -> Iterator[None]:
    """Refuse a second service of the same installation: both would want the camera, and write the same files."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor = open_state_file(state / "run.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(
            f"{state} cannot be written ({error.strerror}); run this as its owner, for example with sudo."
        ) from error
    try:
        try:
            # The kernel takes the lock away when the process ends, however it ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"The service in {state.parent} runs already; stop it first.") from error
        yield
    finally:
        os.close(descriptor)


def _absolute(options: ServiceOptions, store_folder: Path) -> ServiceOptions:
    """Options whose paths do not depend on the folder that the process was started in."""
    places = {name: getattr(options, name) for name in ("spool", "ca_file")}
    return replace(options, **{name: str(store_folder / place) for name, place in places.items() if place})


class _Service:
    """A run of the service. ``_load`` and ``_note`` are called in other threads, all else in the one that watches."""

    def __init__(self, store_folder: Path, version: Version, options: ServiceOptions, stop: threading.Event) -> None:
        self._options, self._stop, self._version = _absolute(options, store_folder), stop, version
        self._source = _without_password(options.source)
        self._engine: Engine | None = None
        self._loading = LoadOptions()
        self._status_path = status_path(store_folder)
        self._results = ResultsLog(self._status_path.parent / RESULTS, options.results_mib, options.keep_results)
        self._notifier = Notifier()
        self._identity = process_identity(os.getpid()) or ""
        self._started_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._started = seconds_since_boot()
        self._state, self._away = "loading", ""
        self._frames = self._skipped = self._dropped = self._reopened = 0
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, float]] = deque(maxlen=_MOST_RECENT)
        self._last_frame: float | None = None
        self._reading: SourceReading | None = None
        self._abandoned = False
        self._error, self._error_at = "", 0.0
        self._next_status = 0.0
        self._tracker: Tracker | None = None
        self._senders: list[Sink] = []
        self._senders_at: float | None = None
        self._said: dict[str, str] = {}
        self._repeated = Repeated()

    def run(self) -> int:
        logger.info("version %s starts, with %s as its source", self._version.id, self._source)
        sources = logging.getLogger(open_source.__module__)
        sources.addFilter(self._repeated)
        try:
            # At once, so that nobody takes the status of an earlier process for this one's.
            self._tick()
            loading = Aside(self._load, "load")
            if not self._attend(loading):
                self._state = "stopped"
                return 0
            detector: Detector = loading.result()
            self._open_senders()
            # Not later: where systemd waits for a camera that is away, it would end the service and start it again, for ever.
            self._notifier.send(READY=1, STATUS="the engine is loaded")
            self._look(detector)
            # A thread that is still in a run of the engine would lose its memory.
            if not self._abandoned:
                detector.close()
            self._state = "stopped"
            return 0
        except BaseException as error:
            self._state = "failed"
            self._note_error(str(error) or type(error).__name__)
            raise
        finally:
            sources.removeFilter(self._repeated)
            self._notifier.send(STOPPING=1, STATUS=self._state)
            self._results.close()
            for sink in self._senders:
                sink.close()
            self._write_status()

    def _load(self) -> Detector:
        options, path = self._options, self._version.engine
        require_packages(options)
        self._tracker = make_tracker(options)
        self._engine = engine = load_engine(path)
        if file_sha256(engine_json_path(path)) != self._version.require_record().record_sha256:
            raise EngineError(
                f"The record beside {path} is not the one that was written when the engine was proven here (its SHA-256 differs); install the bundle again."
            )
        try:
            source = open_source(options.source)
            refuse_pictures(options, source)
            loading = loading_for(engine.backend, source, PipelineOptions(), options.threads)
        except (DataError, OSError):
            # What may be away is a camera, which is looked at frame by frame.
            loading = LoadOptions(options.threads, 1, spinning=False)
        self._loading = loading
        return Detector.load(
            engine, options=DetectOptions(options.score_threshold), batch_size=options.batch_size, loading=loading
        )

    def _open_senders(self) -> None:
        """Begin to send. A spool that cannot be written, as on a full disk, is tried again later: the service detects meanwhile."""
        assert self._engine is not None
        self._senders_at, problem = None, ""
        folder = self._status_path.parent / SPOOL
        try:
            if folder.is_symlink():
                require_own_link(folder)
            self._senders = make_senders(self._options, self._engine.spec, self._source, folder)
        except (InputError, OSError) as error:
            problem = str(error)
            self._senders_at = time.monotonic() + SENDERS_AGAIN
            self._note_error(problem)
        self._say("sending", problem and f"nothing is sent, and that is tried again: {problem}", "detections are sent")

    def _look(self, detector: Detector) -> None:
        """Read the source until the service is stopped."""
        wait = FIRST_WAIT
        while not self._stop.is_set():
            frames = self._frames
            problem = self._read(detector)
            if self._stop.is_set():
                return
            # A few small pictures are through before anybody has watched.
            self._tick()
            if not problem:
                self._away = ""
                if self._options.at_end == "stop":
                    logger.info("%s is through", self._source)
                    return
                if self._options.at_end == "idle":
                    self._idle()
                    return
                continue
            wait = FIRST_WAIT if self._frames > frames else wait
            self._away = problem
            self._state = "waiting"
            self._note_error(problem)
            self._say("source", f"the source is away, and is opened again until it is back: {problem}")
            until = time.monotonic() + wait
            while not self._stop.wait(TICK) and time.monotonic() < until:
                self._tick()
            wait = min(LONGEST_WAIT, 2 * wait)
            self._reopened += 1

    def _idle(self) -> None:
        self._state = "idle"
        logger.info("%s is through: the service goes on without work", self._source)
        while not self._stop.wait(TICK):
            self._tick()

    def _read(self, detector: Detector) -> str:
        """Read the source to its end, or until it fails or falls silent.

        Returns:
            What happened to it, a sentence; empty at its end, or when the service is stopped.
        """
        # A source that is away stays so until a frame has come.
        self._state = "waiting" if self._away else "running"
        reading = self._reading = SourceReading(self._options.source, detector, self._loading, self._note)
        aside = Aside(reading.run, "read")
        problem = ""
        if not self._attend(aside, lambda: reading.is_silent(SILENCE)):
            if not self._stop.is_set():
                problem = f"It has sent nothing for {SILENCE:.0f} s."
            self._end(reading, aside)
        try:
            if aside.ended.is_set():
                aside.result()
        except (DataError, OSError) as error:
            problem = problem or str(error)
        self._abandoned = not aside.ended.is_set()
        self._reading, self._dropped = None, self._dropped + reading.dropped
        if not problem and not self._stop.is_set() and reading.failed and not reading.done:
            problem = "None of its pictures could be decoded."
        return problem

    def _end(self, reading: SourceReading, aside: Aside) -> None:
        """End a reading, as far as it can be ended in time. Raises DataError where a camera's driver does not let go."""
        reading.close()
        begun = time.monotonic()
        while not aside.ended.is_set() or reading.is_held():
            time.sleep(TICK / 5)
            seconds = time.monotonic() - begun
            if self._stop.is_set():
                if aside.ended.is_set() or seconds > LAST_RUN:
                    return
                continue
            self._tick()
            if reading.is_held() and seconds > LETTING_GO:
                raise DataError(
                    f"The camera {self._source} does not answer, and a process that waits for it cannot open it again, so the service ends here and is "
                    "started anew; look at its cable if this returns."
                )

    def _attend(self, aside: Aside, given_up: Callable[[], bool] = lambda: False) -> bool:
        """Watch while something else works. False where it had not ended when the service was stopped, or it was given up."""
        while not aside.ended.wait(TICK):
            if self._stop.is_set() or given_up():
                return False
            self._tick()
        return True

    def _note(self, found: FrameResult) -> None:
        """Count a frame and keep what was found in it. Another thread calls this."""
        row: dict[str, Any] = {"time": round(time.time(), 3), "boot_s": round(seconds_since_boot(), 3)}
        if found.detections is None:
            self._skipped += 1
            if self._skipped == 1:
                logger.warning("left out a frame, and later ones are only counted: %s", found.problem)
            self._note_error(found.problem)
            self._results.add({**row, "image": found.frame.name, "problem": found.problem})
            self._send(found)
            return
        now = time.monotonic()
        with self._lock:
            self._recent.append((now, 1000 * found.seconds))
        self._frames += 1
        self._last_frame = now
        self._state, self._away = "running", ""
        if self._said.pop("source", ""):
            logger.warning("the source is back")
        if self._reading is not None and self._reading.live:
            self._repeated.forget()
        assert self._engine is not None
        if self._tracker is not None:
            found = track_frame(found, self._tracker)
            assert found.detections is not None
        row |= detections_to_json(found.frame.name, found.detections, self._engine.spec)
        if found.frame.seconds is not None:
            row["seconds"] = round(found.frame.seconds, 3)
        self._results.add(row)
        self._send(found)

    def _send(self, found: FrameResult) -> None:
        for sink in self._senders:
            sink.write(found)

    def _tick(self) -> None:
        now = time.monotonic()
        busy = self._reading.busy_for(now) if self._reading is not None else 0.0
        if now >= self._next_status:
            self._next_status = now + STATUS_EVERY
            self._results.write()
            problem = self._results.problem
            self._say(
                "results",
                problem and f"results are lost, and the service goes on: {problem}",
                "results are written again",
            )
            if problem:
                self._note_error(f"Results cannot be written: {problem}.")
            self._write_status()
            if self._senders_at is not None and now >= self._senders_at:
                self._open_senders()
            # Not while the engine owes a frame for long: then systemd ends a process whose own end hangs as well.
            if busy < SILENCE:
                self._notifier.send(WATCHDOG=1, STATUS=self._summary())
        if busy > HANG:
            raise EngineError(
                f"The engine {self._version.engine.name} has not finished a frame for {busy:.0f} s, so the service ends here and is started anew."
            )

    def _write_status(self) -> None:
        problem = ""
        try:
            write_status(self._status_path, self._status())
        except OSError as error:
            problem = error.strerror or str(error)
        self._say("status", problem and f"the status cannot be written: {problem}", "the status is written again")

    def _status(self) -> ServiceStatus:
        reason = self._why_not_healthy()
        recent = self._recent_frames()
        latencies = sorted(latency for _, latency in recent)
        heat = read_heat()
        engine = self._engine
        boot_less_monotonic = seconds_since_boot() - time.monotonic()
        return ServiceStatus(
            version=self._version.id,
            state=self._state,
            healthy=not reason,
            reason=reason,
            pid=os.getpid(),
            process=self._identity,
            started_at=self._started_at,
            started_s=self._started,
            updated_s=seconds_since_boot(),
            source=self._source,
            engine=self._version.engine.name if engine is not None else "",
            backend=engine.backend if engine is not None else "",
            precision=engine.precision if engine is not None else "",
            frames=self._frames,
            fps=round(self._rate(recent), 2),
            latency_ms_p50=round(statistics.median(latencies), 2) if latencies else None,
            latency_ms_p90=round(latencies[math.ceil(0.9 * len(latencies)) - 1], 2) if latencies else None,
            last_frame_s=None if self._last_frame is None else self._last_frame + boot_less_monotonic,
            dropped=self._dropped + (self._reading.dropped if self._reading is not None else 0),
            skipped=self._skipped,
            reopened=self._reopened,
            results_lost=self._results.lost,
            temperature_c=heat.celsius,
            temperature_of=heat.where,
            last_error=self._error,
            last_error_s=self._error_at if self._error else None,
            sending=tuple(reports_of(self._senders)),
        )

    def _why_not_healthy(self) -> str:
        if self._state == "loading":
            return "the engine is being loaded"
        if self._state == "waiting":
            return f"the source is away: {self._away.rstrip('.')}"
        if self._state in ("stopped", "failed"):
            return f"it has {self._state}" if self._state == "failed" else "it was stopped"
        if self._state == "idle":
            return ""
        if self._last_frame is None:
            return "no frame has come so far"
        late = time.monotonic() - self._last_frame
        return "" if late < LATE else f"no frame has come through for {late:.0f} s"

    def _recent_frames(self) -> list[tuple[float, float]]:
        """When each frame of the last seconds was through, and its latency in milliseconds."""
        since = time.monotonic() - WINDOW
        with self._lock:
            return [each for each in self._recent if each[0] >= since]

    def _rate(self, recent: list[tuple[float, float]]) -> float:
        """Frames a second over the window, or from its first frame on where frames have come for a shorter time."""
        if len(recent) < 2:
            return 0.0
        whole = len(recent) < self._frames and len(recent) < _MOST_RECENT
        seconds = WINDOW if whole else time.monotonic() - recent[0][0]
        return len(recent) / max(seconds, 1e-3)

    def _summary(self) -> str:
        """One line for ``systemctl status``."""
        reason = self._why_not_healthy()
        return reason or f"{self._state}: {self._frames} frames, {self._rate(self._recent_frames()):.1f} a second"

    def _note_error(self, sentence: str) -> None:
        self._error, self._error_at = sentence, seconds_since_boot()

    def _say(self, subject: str, problem: str, over: str = "") -> None:
        """Log a problem when it comes or changes, and once that it is over."""
        before = self._said.get(subject, "")
        if problem == before:
            return
        if problem:
            self._said[subject] = problem
            logger.warning("%s", problem)
        else:
            self._said.pop(subject, None)
            logger.warning("%s", over)
