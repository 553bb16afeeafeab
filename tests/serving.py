"""A service that answers for real, in a thread, and requests to it."""

from __future__ import annotations

import http.client
import io
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from edge_effdet.serving.options import EngineOptions, LimitOptions, ServeOptions
from edge_effdet.serving.server import Service, Serving, serve_engine
from tests.emulation.small_detector import write_small_detector
from tests.records import write_record

PATIENCE = 60.0
"""Seconds after which what is waited for will not come any more."""


def build_small_engine(folder: Path) -> Engine:
    """Three convolutions in INT8 by onnxruntime, 64 x 64, with their JSON."""
    graph = write_small_detector(folder / "graph.onnx", bits=7)
    engine = compile_engine(graph, "onnxruntime", CompileOptions(), folder / "small.int8.onnx")
    write_record(engine)
    return engine


class RunningServer:
    """``serve_engine`` in a thread, on a free port of the loopback.

    Attributes:
        service: the service.
        address: as in http://127.0.0.1:40001.
    """

    def __init__(
        self,
        engine: Engine,
        source: str | None = None,
        limits: LimitOptions | None = None,
        running: EngineOptions | None = None,
        **listening: Any,
    ) -> None:
        listening = {"listen": "127.0.0.1:0", "log": "off", **listening}
        serving = Serving(ServeOptions(**listening), limits or LimitOptions(), running or EngineOptions())
        self.service = Service(engine, serving, source)
        self.address = ""
        self.stop = threading.Event()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            serve_engine(self.service, self._note, self.stop)
        finally:
            self._started.set()

    def _note(self, address: str) -> None:
        self.address = address
        self._started.set()

    def __enter__(self) -> RunningServer:
        self._thread.start()
        assert self._started.wait(PATIENCE)
        assert self.address
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        self.stop.set()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=PATIENCE)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of the answer to one request."""
        connection = self.connect()
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def ask_json(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """The object that is answered with status 200."""
        status, _, content = self.ask(method, path, body, headers)
        assert status == 200, content
        return json.loads(content)

    def error(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        """Status and sentence of an answer that is an error."""
        status, _, content = self.ask(method, path, body, headers)
        assert status >= 400
        return status, json.loads(content)["error"]


def png(picture: np.ndarray) -> bytes:
    """A picture uint8 [height, width, 3] as a file."""
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, format="PNG")
    return stream.getvalue()
