"""What tests of sending share: frames, a real mosquitto that can go away, an HTTP server that answers as it is told, and certificates."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.runtime.pipeline import FrameResult
from edge_effdet.runtime.sources import Frame

SPEC = ModelSpec("tiny", (64, 64), ("cat", "dog"), (1, 18))

PATIENCE = 60.0
"""Seconds after which what is waited for will not come any more."""


def make_frame(number: int, objects: int = 1, track_ids: Sequence[int] | None = None) -> FrameResult:
    """Frame ``number`` of a camera, with boxes that differ from frame to frame."""
    corner = np.arange(objects, dtype=np.float32)[:, None] + number
    boxes = np.concatenate([corner, corner, corner + 10, corner + 20], axis=1)
    detections = Detections(
        boxes,
        np.linspace(0.9, 0.4, objects, dtype=np.float32),
        np.arange(objects, dtype=np.int32) % 2,
        None if track_ids is None else np.array(track_ids, np.int32),
    )
    picture = np.zeros((48, 64, 3), np.uint8)
    return FrameResult(Frame(f"camera#{number}", picture, number / 10, time.perf_counter()), detections, "", None, 0.01)


def wait_for(is_so: Callable[[], Any], what: Callable[[], Any] = lambda: None) -> Any:
    """Wait until a call gives something true, and return that."""
    end = time.monotonic() + PATIENCE
    while not (found := is_so()):
        assert time.monotonic() < end, what()
        time.sleep(0.02)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def mosquitto_or_skip(name: str = "mosquitto") -> str:
    """The path of a program of Debian's package ``mosquitto``.

    Skips where it is missing; with ``EDGE_EFFDET_REQUIRE_MOSQUITTO=1`` fails.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if found is None:
        reason = f"no {name}; install Debian's package mosquitto"
        if os.environ.get("EDGE_EFFDET_REQUIRE_MOSQUITTO") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


class Broker:
    """A real mosquitto on a port of its own, which can go away and come back. It remembers sessions and messages meanwhile."""

    def __init__(self, folder: Path, *lines: str) -> None:
        self.program, self.port = mosquitto_or_skip(), free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self._config, self._process = folder / "mosquitto.conf", None
        # Started by root it would become another user, who cannot read what is in this folder.
        head = [f"listener {self.port} 127.0.0.1", "user root", "persistence true", f"persistence_location {folder}/"]
        settled = (
            lines if any(line.startswith("allow_anonymous") for line in lines) else ("allow_anonymous true", *lines)
        )
        self._config.write_text("\n".join([*head, "autosave_interval 0", "log_dest none", *settled]) + "\n")

    def start(self) -> Broker:
        self._process = subprocess.Popen([self.program, "-c", str(self._config)], stderr=subprocess.DEVNULL)

        def answers() -> bool:
            assert self._process is not None and self._process.poll() is None, "mosquitto has ended"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        wait_for(answers)
        return self

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE)
            self._process = None

    def __enter__(self) -> Broker:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


class Subscriber:
    """Collects what arrives below a topic, through a session that outlives its connection and the broker's.

    Attributes:
        messages: topic, content and whether it was retained, in the order of arrival.
    """

    def __init__(self, port: int, topic: str = "#", user: tuple[str, str] | None = None) -> None:
        paho = pytest.importorskip("paho.mqtt.client")
        self.messages: list[tuple[str, Any, bool]] = []
        self._subscribed = threading.Event()
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="tests", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        if user is not None:
            self._client.username_pw_set(*user)
        self._client.on_connect = lambda *_: self._client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = lambda _, __, message: self.messages.append(
            (message.topic, json.loads(message.payload), bool(message.retain))
        )
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(PATIENCE)

    def of(self, topic: str) -> list[Any]:
        """What arrived in a topic."""
        return [content for name, content, _ in list(self.messages) if name == topic]

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@dataclass
class Answer:
    """What the HTTP server answers to a request.

    Attributes:
        status: of the answer.
        headers: of the answer.
        slowly: send a byte now and then, in the head or after it, and never end.
        hang_up: close the connection in place of an answer.
        then_close: close the connection after the answer without having said so.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    slowly: str = ""
    hang_up: bool = False
    then_close: bool = False


class WebhookReceiver:
    """A real HTTP server that notes what it gets, and answers with 200 where ``answer`` says nothing else.

    Attributes:
        requests: path, headers and content of each request, in the order of arrival.
        answer: called with the content of each request.
    """

    def __init__(self, answer: Callable[[Any], Answer] = lambda _: Answer(), tls: Any = None) -> None:
        self.requests: list[tuple[str, dict[str, str], Any]] = []
        self.answer = answer
        self._over = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                receiver.requests.append((self.path, dict(self.headers), content))
                answer = receiver.answer(content)
                if answer.hang_up:
                    self.close_connection = True
                    return
                if answer.slowly:
                    self.close_connection = True
                    with contextlib.suppress(OSError):
                        rest = b"\r\n\r\n" if answer.slowly == "content" else b""
                        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000" + rest)
                        while not receiver._over.wait(0.05):
                            self.wfile.write(b".")
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "2")
                self.end_headers()
                self.wfile.write(b"ok")
                self.close_connection = self.close_connection or answer.then_close

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()

    @property
    def received(self) -> list[Any]:
        """All messages, in the order of arrival."""
        return [message for _, _, content in list(self.requests) for message in content]

    def __enter__(self) -> WebhookReceiver:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass(frozen=True)
class Certificates:
    """Files, PEM: an authority, and what it certifies for 127.0.0.1; and another authority that certifies nothing."""

    authority: Path
    certificate: Path
    key: Path
    stranger: Path


def make_certificates(folder: Path) -> Certificates:
    """Made by openssl; skips without it."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    folder.mkdir(parents=True, exist_ok=True)

    def run(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "3650")
    for name in ("authority", "stranger"):
        run(*new, "-x509", "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    run(*new[:-2], "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    run(
        *("x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial"),
        *("-days", "3650", "-extfile", "names", "-out", "server.pem"),
    )
    return Certificates(*(folder / name for name in ("authority.pem", "server.pem", "server.key", "stranger.pem")))


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
