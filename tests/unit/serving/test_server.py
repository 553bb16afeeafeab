"""The service under load, and how it ends."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Engine, ModelSpec, file_sha256
from edge_effdet.backends.base import BACKENDS
from edge_effdet.errors import InputError
from edge_effdet.serving import server as module
from edge_effdet.serving.options import EngineOptions, LimitOptions
from tests.backends import BrightBoxRunner, FakeBackend
from tests.emulation.small_detector import make_pictures
from tests.records import make_record
from tests.serving import PATIENCE, RunningServer, png

SPEC = ModelSpec("tiny", (64, 64), ("thing",), (1,))


class GatedRunner(BrightBoxRunner):
    """Waits in each run until a gate is open."""

    def __init__(self) -> None:
        super().__init__(64)
        self.gate = threading.Event()
        self.gate.set()

    def run(self, feeds):
        assert self.gate.wait(PATIENCE)
        return super().run(feeds)


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> GatedRunner:
    runner = GatedRunner()
    monkeypatch.setitem(BACKENDS, "gated", FakeBackend(make_runner=lambda: runner))
    return runner


@pytest.fixture
def gated_engine(runner: GatedRunner, tmp_path: Path) -> Engine:
    path = tmp_path / "gated.fake"
    path.write_bytes(b"engine")
    record = make_record(engine=path.name, backend="gated", spec=SPEC)
    return Engine(path, SPEC, "gated", "fp32", file_sha256(path), record)


def bright(x: int) -> bytes:
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[8:16, x : x + 8] = 255
    return png(picture)


def load(**limits: float) -> LimitOptions:
    return LimitOptions(**limits)


ONE_RUN = EngineOptions(runs=1, threads=1, self_check=False)


def until(is_so) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_the_line_cannot_hold_is_refused_and_all_else_answered(runner, gated_engine):
    with RunningServer(gated_engine, limits=load(queue=3), running=ONE_RUN) as server, ThreadPoolExecutor(12) as pool:
        runner.gate.clear()
        answers = [pool.submit(server.ask, "POST", "/detect", bright(4 * number)) for number in range(12)]
        until(lambda: sum(each.done() for each in answers) == 8)
        runner.gate.set()
        answers = [each.result() for each in answers]
        assert sorted(status for status, *_ in answers) == [200] * 4 + [503] * 8
        for number, (status, headers, content) in enumerate(answers):
            if status == 503:
                assert int(headers["Retry-After"]) >= 1
            else:
                assert f"[{4 * number}.0," in content.decode()
        # There is room again.
        assert server.ask("POST", "/detect", bright(8))[0] == 200
        assert server.service.batcher.inside == 0


def test_pictures_of_several_requests_share_a_run_and_a_bad_one_fails_alone(runner, gated_engine):
    running = EngineOptions(runs=1, threads=1, batch_size=4, self_check=False)
    with (
        RunningServer(gated_engine, limits=load(batch_wait_ms=20), running=running) as server,
        ThreadPoolExecutor(9) as pool,
    ):
        runner.gate.clear()
        bodies = [bright(4 * number) for number in range(8)] + [b"no picture"]
        answers = [pool.submit(server.ask, "POST", "/detect", body) for body in bodies]
        until(lambda: server.service.batcher.inside >= 8)
        runner.gate.set()
        answers = [each.result() for each in answers]
    assert [status for status, *_ in answers] == [200] * 8 + [400]
    for number, (_, _, content) in enumerate(answers[:8]):
        assert f"[{4 * number}.0," in content.decode()
    assert max(runner.runs) > 1
    assert sum(runner.runs) == 8


def test_what_was_accepted_is_answered_before_the_end(runner, gated_engine):
    with RunningServer(gated_engine, running=ONE_RUN) as server, ThreadPoolExecutor(4) as pool:
        runner.gate.clear()
        answers = [pool.submit(server.ask, "POST", "/detect", bright(4 * number)) for number in range(4)]
        until(lambda: server.service.batcher.inside == 4)
        server.stop.set()
        until(server.service.stopping.is_set)
        runner.gate.set()
        assert [each.result()[0] for each in answers] == [200] * 4
        server.end()
        with pytest.raises(ConnectionError):
            server.ask("POST", "/detect", bright(0))


def test_a_client_that_leaves_takes_nothing_with_it(runner, gated_engine):
    with RunningServer(gated_engine, running=ONE_RUN) as server:
        runner.gate.clear()
        connection = server.connect()
        connection.request("POST", "/detect", bright(4))
        until(lambda: server.service.batcher.inside == 1)
        connection.close()
        runner.gate.set()
        until(lambda: server.service.batcher.inside == 0)
        assert server.ask("POST", "/detect", bright(4))[0] == 200


def test_a_client_that_closes_its_side_gets_its_answer(runner, gated_engine):
    with RunningServer(gated_engine, running=ONE_RUN) as server:
        host, port = server.address.removeprefix("http://").split(":")
        body = bright(4)
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
            client.sendall(
                f"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            )
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 200")
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
            client.sendall(b"POST /detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\n1")
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""


def test_an_engine_that_fails_fails_one_request(runner, gated_engine, monkeypatch):
    with RunningServer(gated_engine, running=ONE_RUN) as server:
        monkeypatch.setattr(runner, "run", lambda feeds: 1 / 0)
        status, error = server.error("POST", "/detect", bright(4))
        assert (status, "ZeroDivisionError" in error) == (500, True)
        monkeypatch.undo()
        assert server.ask("POST", "/detect", bright(4))[0] == 200


def test_an_engine_that_hangs_ends_the_service(tmp_path: Path):
    script = textwrap.dedent(
        """
        import sys, threading, time
        from pathlib import Path
        from edge_effdet.artifacts import Engine, file_sha256
        from edge_effdet.backends.base import BACKENDS
        from edge_effdet.serving.options import EngineOptions, LimitOptions, ServeOptions
        from edge_effdet.serving.server import Service, Serving, serve_engine
        from tests.backends import BrightBoxRunner, FakeBackend
        from tests.records import make_record
        from tests.unit.serving.test_server import SPEC, bright

        class Hanging(BrightBoxRunner):
            def run(self, feeds):
                time.sleep(10_000)

        BACKENDS["hanging"] = FakeBackend(make_runner=lambda: Hanging(64))
        path = Path(sys.argv[1]) / "x.fake"
        path.write_bytes(b"engine")
        record = make_record(engine=path.name, backend="hanging", spec=SPEC)
        engine = Engine(path, SPEC, "hanging", "fp32", file_sha256(path), record)
        serving = Serving(ServeOptions("127.0.0.1:0"), LimitOptions(run_seconds=0.3), EngineOptions(1, 1, self_check=False))
        service = Service(engine, serving)

        def ask(address):
            import urllib.request
            threading.Thread(target=lambda: urllib.request.urlopen(address + "/detect", bright(4)), daemon=True).start()

        serve_engine(service, ask)
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "has hung" in done.stderr


def test_a_head_that_does_not_come_or_never_ends_is_given_up(runner, gated_engine, monkeypatch):
    monkeypatch.setattr(module, "HEAD_SECONDS", 0.3)
    with RunningServer(gated_engine, running=ONE_RUN) as server:
        host, port = server.address.removeprefix("http://").split(":")
        for sent in (b"", b"POST /detect HTT", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: "):
            with socket.create_connection((host, int(port)), timeout=PATIENCE) as client:
                client.sendall(sent)
                assert client.recv(1) == b""
        monkeypatch.setattr(module, "HEAD_SECONDS", PATIENCE)
        with socket.create_connection((host, int(port)), timeout=PATIENCE) as client, pytest.raises(ConnectionError):
            client.sendall(b"GET / HTTP/1.1\r\nX: ")
            for _ in range(1000):
                client.sendall(b"x" * 4096)
        assert server.ask("POST", "/detect", bright(4))[0] == 200


def test_an_address_that_is_taken(small_engine):
    with RunningServer(small_engine) as server:
        listen = server.address.removeprefix("http://")
        other = RunningServer(small_engine, listen=listen)
        with pytest.raises(InputError, match="cannot listen"):
            module.serve_engine(other.service)


def test_a_client_without_a_certificate_is_not_let_in(small_engine, tmp_path: Path):
    pytest.importorskip("cryptography")
    import ssl
    import urllib.error
    import urllib.request

    for name in ("service", "client"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"],
            check=True, capture_output=True,
        )  # fmt: skip
    with RunningServer(
        small_engine,
        certificate=tmp_path / "service.pem",
        private_key=tmp_path / "service.key",
        client_authority=tmp_path / "client.pem",
    ) as server:
        assert server.address.startswith("https://")
        context = ssl.create_default_context(cafile=tmp_path / "service.pem")
        with pytest.raises((urllib.error.URLError, ConnectionError, ssl.SSLError)):
            urllib.request.urlopen(f"{server.address}/v2/health/live", context=context, timeout=PATIENCE)
        context.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        picture = png(make_pictures()[0])
        with urllib.request.urlopen(f"{server.address}/detect", picture, context=context, timeout=PATIENCE) as answer:
            assert answer.status == 200


def test_files_of_tls_that_are_none(small_engine, tmp_path: Path):
    (tmp_path / "a").write_text("no certificate")
    other = RunningServer(small_engine, certificate=tmp_path / "a", private_key=tmp_path / "a")
    with pytest.raises(InputError, match="TLS"):
        module.serve_engine(other.service)


def test_a_process_that_may_open_few_files_is_told_before_it_serves():
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(os.devnull, os.O_RDONLY)
    os.close(free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 4, most))
        with pytest.raises(InputError, match=r"^A service needs 16 files open .*ulimit -n 1024\.$"):
            module._require_descriptors()
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 64, most))
        module._require_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
