"""An engine behind HTTP, from loading it to the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from edge_effdet.artifacts import Engine, json_text
from edge_effdet.backends.base import LoadOptions, get_backend, load_runner
from edge_effdet.errors import EngineError, InputError
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.pipeline import loading_for_many
from edge_effdet.runtime.sinks import Sink
from edge_effdet.serving.app import make_app
from edge_effdet.serving.batching import Batcher
from edge_effdet.serving.guard import Guard
from edge_effdet.serving.live import Live
from edge_effdet.serving.metrics import Metrics
from edge_effdet.serving.options import EngineOptions, LimitOptions, ServeOptions

logger = logging.getLogger("edge_effdet.serve")

HEAD_SECONDS = 10.0
"""Seconds in which the head of a request has to arrive, counted from the connection or from the answer before it."""

KEEP_SECONDS = 30
"""Seconds for which a connection without a request stays open."""

MOST_HEAD = 65_536
"""Bytes of the head of a request."""

MOST_CONNECTIONS = 1024

SEND_BUFFER = 262_144
"""Bytes that the kernel holds of answers to one connection: some frames of a live view."""

GONE_MS = 20_000
"""Milliseconds without an answer to what was sent after which a client's network counts as gone."""

_WATCH_EVERY = 0.5


@dataclass(frozen=True, slots=True)
class Serving:
    """All that a service is told.

    Attributes:
        listening: where it listens and who may use it.
        limits: how much it takes on.
        engine: how the engine runs.
        detection: thresholds and suppression.
    """

    listening: ServeOptions = field(default_factory=ServeOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    engine: EngineOptions = field(default_factory=EngineOptions)
    detection: DetectOptions = field(default_factory=DetectOptions)


_WATCHED = (
    ("frames", "number", "Frames of the source that were looked at."),
    ("dropped_frames", "dropped", "Frames that were too old when their turn came."),
    ("frames_per_second", "rate", "Frames a second over the last seconds."),
    ("latency_milliseconds", "latency_ms", "Median from the arrival of a frame to its boxes over the last seconds."),
)
"""What is shown of the source: a name, its key in ``Live.state``, and a text."""


def _number(value: float | None) -> float:
    """A value for Prometheus, which has NaN for what nobody measured."""
    return math.nan if value is None else value


class Service:
    """A loaded engine with what serves it; a context manager.

    Attributes:
        engine: the engine.
        name: the model's name in the protocol.
        options, limits: what the service was told.
        detector: the loaded engine.
        batcher: the line of pictures.
        guard: who is let in.
        metrics: what is counted.
        live: the source that is watched; None without one.
        stopping: set when the service ends, which ends streams.
        abandoned: whether a thread was still inside a camera's driver when the service was closed; ``cli.run_verb`` ends the process all the same.
    """

    def __init__(
        self,
        engine: Engine,
        serving: Serving,
        source: str | None = None,
        sinks: Sequence[Sink] = (),
        tracker: Any = None,
    ) -> None:
        """Load the engine.

        Args:
            engine: an engine that ``build`` made.
            serving: what the service is told.
            source: a camera, a stream, a video or a folder that is watched; None for none.
            sinks: where its detections go.
            tracker: gives its objects ids (``runtime.tracking``); None for none.

        Raises:
            EngineError, BackendUnavailable, UsageError: as ``Detector.load``.
            InputError: the token cannot be read.
        """
        self.engine, self.options, self.limits = engine, serving.listening, serving.limits
        self.name = self.options.name or re.sub(r"[^\w.-]", "_", engine.path.name.split(".")[0])
        self.guard = Guard(self.options, self.limits.request_rate)
        self.metrics = Metrics(engine, self.name)
        self.stopping = threading.Event()
        self.abandoned = False
        self._closing = contextlib.ExitStack()
        with contextlib.ExitStack() as opening:
            loading, alone = _loadings(engine.backend, serving.engine, self.limits.run_seconds)
            self.detector = opening.enter_context(
                Detector.load(
                    engine,
                    options=serving.detection,
                    batch_size=serving.engine.batch_size,
                    loading=loading,
                    self_check=serving.engine.self_check,
                )
            )
            sooner = None
            if alone is not None:
                # The golden check is passed, which says nothing of how many threads there are.
                runner = load_runner(engine, alone)
                sooner = opening.enter_context(
                    Detector(runner, engine.spec, serving.detection, serving.engine.batch_size)
                )
            runs = loading.parallel_runs
            self.batcher = Batcher(
                self.detector,
                runs,
                self.limits.queue,
                self.limits.batch_wait_ms / 1000,
                sooner,
                int(1e6 * self.limits.max_megapixels),
                self.metrics.note_run,
            )
            opening.callback(self.batcher.close)
            self.live = None if source is None else Live(self.detector, source, loading, sinks, tracker)
            self._closing = opening.pop_all()
        if self.live is not None:
            self.live.start()
        self.metrics.watch(
            "waiting_pictures", "Pictures that are taken on and not answered.", lambda: self.batcher.inside
        )
        self.metrics.watch("most_pictures", "Pictures that are taken on at most.", lambda: self.batcher.capacity)
        if self.live is not None:
            watched = self.live
            self.metrics.watch_sinks(sinks)
            for name, key, text in _WATCHED:
                self.metrics.watch(f"source_{name}", text, lambda key=key: _number(watched.state()[key]))

    def is_live(self) -> bool:
        """Whether the service works; where it does not, only a new process helps."""
        return self.batcher.usable

    def is_ready(self) -> bool:
        """Whether the service takes on pictures."""
        return self.is_live() and not self.stopping.is_set()

    def note_request(self, method: str, path: str, route: str, status: int, seconds: float, client: str) -> None:
        """Count a request and write its line into the log."""
        self.metrics.requests.labels(route, str(status)).inc()
        # A stream lasts for as long as somebody looks at it.
        if route != "/live.mjpeg":
            self.metrics.request_seconds.labels(route).observe(seconds)
        if self.options.log == "json":
            row = {
                "time": round(time.time(), 3), "client": client, "method": method, "path": path[:200], "status": status,
                "milliseconds": round(1000 * seconds, 2),
            }  # fmt: skip
            logger.info("%s", json_text(row, ascii_only=True))
        elif self.options.log == "text":
            logger.info("%s %s %s %d %.1f ms", client, method, ascii(path[:200])[1:-1], status, 1000 * seconds)

    def close(self) -> None:
        """End the threads and free the engine, unless a thread does not come back from a camera (``abandoned``)."""
        self.stopping.set()
        with contextlib.ExitStack() as closing:
            closing.callback(self._close_engine)
            if self.live is not None:
                self.live.close()

    def _close_engine(self) -> None:
        self.abandoned = self.live is not None and self.live.abandoned
        if not self.abandoned:
            self._closing.close()

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def serve_engine(
    service: Service, started: Callable[[str], None] = lambda address: None, stop: threading.Event | None = None
) -> None:
    """Answer requests until SIGTERM or SIGINT, or until ``stop`` is set; then finish what was accepted.

    Args:
        service: a loaded engine; it is closed in the end.
        started: called with the address, as in http://127.0.0.1:8080, when the service listens.
        stop: for a caller that runs this in a thread of its own, where signals do not arrive.

    Raises:
        InputError: the address is taken or not this machine's, a file of TLS cannot be used, or this process may open too few files.

    A run of the engine that does not end ends the process, with the exit code of ``EngineError``.
    """
    # It warns of each request that cannot be read, of which anybody can send any number.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    with service:
        _require_descriptors()
        server = _Server(_configuration(service), service, stop or threading.Event(), started)
        with _listen(service.options) as listening:
            server.run([listening])
        if not service.is_live():
            # The thread that is inside the engine cannot be ended, and closing the engine would wait for it.
            logger.error("%s", _HUNG.format(service.limits.run_seconds))
            logging.shutdown()
            os._exit(EngineError.exit_code)


def _require_descriptors() -> None:
    """Raises InputError where the limit of open files is nearly reached: the library below asyncio ends a process that cannot open its own."""
    opened: list[int] = []
    try:
        while len(opened) < _DESCRIPTORS:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise InputError(
            f"A service needs {_DESCRIPTORS} files open beside what it reads, and this process may not have so many ({error.strerror}); raise the "
            "limit, as by ulimit -n 1024."
        ) from error
    finally:
        for each in opened:
            os.close(each)


def _configuration(service: Service) -> uvicorn.Config:
    """What uvicorn is told. Raises InputError where a file of TLS cannot be used."""
    options = service.options
    host, port = options.address
    try:
        config = uvicorn.Config(
            make_app(service),
            host=host,
            port=port,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            # Else any client on this machine could be whoever it says, and have a rate of its own each time.
            proxy_headers=False,
            timeout_keep_alive=KEEP_SECONDS,
            timeout_graceful_shutdown=max(1, math.ceil(service.limits.drain_seconds)),
            backlog=MOST_CONNECTIONS,
            ssl_certfile=options.certificate,
            ssl_keyfile=options.private_key,
            ssl_ca_certs=None if options.client_authority is None else str(options.client_authority),
            ssl_cert_reqs=ssl.CERT_NONE if options.client_authority is None else ssl.CERT_REQUIRED,
        )
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise InputError(
            f"The files of TLS cannot be used ({error}); give a certificate, its key and an authority as PEM."
        ) from error
    return config


def _listen(options: ServeOptions) -> socket.socket:
    """A socket that listens; uvicorn would end the process where it cannot. Raises InputError."""
    host, port = options.address
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=MOST_CONNECTIONS)
    except OSError as error:
        raise InputError(
            f"The service cannot listen on {options.listen} ({error.strerror or error}); free the port, or give another `listen`."
        ) from error
    # Connections inherit both. What the kernel holds for a viewer who reads slowly is how far behind the viewer sees the camera, and a viewer whose
    # network is gone would keep its place for a quarter of an hour.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, GONE_MS)
    return listening


_DESCRIPTORS = 16
"""Files that are open while a service starts, with its first connections."""

_HUNG = "error: The engine has computed one picture for more than {:g} s, so it has hung, and the service ends; start it again."


def _loadings(backend: str, options: EngineOptions, run_limit: float) -> tuple[LoadOptions, LoadOptions | None]:
    """How the engine is loaded for many requests, and for one alone where that is another way."""
    many = replace(loading_for_many(backend, options.threads), run_limit=run_limit, spinning=False)
    if options.runs or options.threads or not get_backend(backend).TRAITS.on_cpu or many.parallel_runs == 1:
        return replace(many, parallel_runs=options.runs or many.parallel_runs), None
    return many, LoadOptions(spinning=False, run_limit=run_limit)


class _Server(uvicorn.Server):
    """uvicorn's server, which ends when the service is told to, with an exit code of ours."""

    def __init__(
        self, config: uvicorn.Config, service: Service, stop: threading.Event, started: Callable[[str], None]
    ) -> None:
        super().__init__(config)
        self._service, self._stop, self._started = service, stop, started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises a signal again after the end, which would end the process as if nothing had been finished.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, *_: object) -> None:
        if self._service.stopping.is_set():
            # The second time, somebody will not wait.
            self.force_exit = True
        self._service.stopping.set()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        (listening,) = sockets or [self.servers[0].sockets[0]]
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        self._started(f"http{'s' if self.config.is_ssl else ''}://{host}:{listening.getsockname()[1]}")
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._watching.cancel()
        await super().shutdown(sockets)

    async def _watch(self) -> None:
        """End the service where it is told to, or where a run of the engine does not end."""
        service = self._service
        while True:
            await asyncio.sleep(_WATCH_EVERY)
            if self._stop.is_set():
                self._end()
            if not service.is_live():
                self.should_exit = self.force_exit = True


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on what comes before the application: connections, the bytes of a head, and the time for it."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._head, self._reading = 0, False
        self._timer = self.loop.call_later(HEAD_SECONDS, self.timeout_keep_alive_handler)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        # What is left of a body whose request was answered early is read and dropped, until the connection's time is over: a client that still sends
        # would not see the answer before a connection that was closed.
        if not self._reading:
            self._head += len(data)
            if self._head > MOST_HEAD + len(data):
                self.transport.abort()
                return
        super().data_received(data)

    def eof_received(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Answer a client that has sent all and says so by closing its side; uvicorn would drop the answer."""
        cycle = self.cycle
        # Not a stream, which only a write would tell that nobody reads it any more.
        waits = cycle is not None and not cycle.response_started and not cycle.more_body and self.scheme == "http"
        if waits:
            self.cycle.keep_alive = False
        return waits

    def on_header(self, name: bytes, value: bytes) -> None:
        # Counted here too: what follows a body in chunks are headers again.
        self._head += len(name) + len(value)
        if self._head > 2 * MOST_HEAD:
            raise ValueError("the head is too long")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head, self._reading = 0, True
        self._timer.cancel()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        more = bool(self.pipeline)
        super().on_response_complete()
        self._timer.cancel()
        if not more:
            self._timer = self.loop.call_later(KEEP_SECONDS + HEAD_SECONDS, self.timeout_keep_alive_handler)
