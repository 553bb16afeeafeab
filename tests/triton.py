"""A real tritonserver, as ``triton_install.sh`` puts it into a folder, and requests to it by NVIDIA's client in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CLIENT = Path(__file__).with_name("triton_client.py")
START_SECONDS = 60
STOP_SECONDS = 30


@dataclass(frozen=True, slots=True)
class TritonInstallation:
    """The folder that ``triton_install.sh`` makes."""

    folder: Path

    @classmethod
    def find(cls) -> TritonInstallation | None:
        """``$EDGE_EFFDET_TRITON``, or ``~/.cache/edge_effdet-triton``; None where it was not made."""
        folder = Path(os.environ.get("EDGE_EFFDET_TRITON") or Path.home() / ".cache" / "edge_effdet-triton")
        return cls(folder) if (folder / "version").is_file() else None

    @property
    def python(self) -> str:
        """The interpreter whose version the server's Python backend has."""
        return (self.folder / "base").read_text().splitlines()[0]

    def make_venv(self, folder: Path, wheel: Path | None = None) -> Path:
        """Make a virtual environment with all that is installed beside the server, and with edge_effdet where there is a wheel of it.

        Returns:
            The folder.
        """
        subprocess.run([self.python, "-m", "venv", "--without-pip", str(folder)], check=True)
        (packages,) = folder.glob("lib/python3.*/site-packages")
        (packages / "beside-the-server.pth").write_text(f"{self.folder / 'python'}\n")
        if wheel is not None:
            shutil.unpack_archive(wheel, packages, "zip")
        return folder

    def variables(self, home: Path, venv: Path | None = None) -> dict[str, str]:
        """The variables with which the server, its models and its clients find their libraries.

        Args:
            home: what is written into caches lies there.
            venv: the environment of the server's models, which their Python finds by the PATH: it heeds no PYTHONPATH.
        """
        library = (self.folder / "base").read_text().splitlines()[1]
        kept = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
        return {
            **kept,
            "PATH": f"{venv / 'bin' if venv else Path(self.python).parent}:{os.defpath}",
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / "cache"),
            "LD_LIBRARY_PATH": f"{self.folder / 'python' / 'nvidia_pytriton.libs'}:{library}",
            "PYTHONPATH": str(self.folder / "python"),
            "PYTHONDONTWRITEBYTECODE": "1",
        }


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request.

    Attributes:
        outputs: by name; None where it failed.
        error: what the server said; empty where it answered.
    """

    outputs: Mapping[str, np.ndarray] | None
    error: str


class TritonServer:
    """A server that runs.

    Attributes:
        installation: where its programs are.
        http, grpc: the addresses that it listens at.
        log: the file that it writes its log into.
    """

    def __init__(self, installation: TritonInstallation, home: Path, http: str, grpc: str, log: Path) -> None:
        self.installation, self.http, self.grpc, self.log = installation, http, grpc, log
        self._home = home
        self._calls = 0

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON at a path of its HTTP interface, None where it answers nothing; by POST where there is a body. Raises RuntimeError with what it said."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(f"http://{self.http}{path}", data), timeout=120) as got:
                return json.loads(got.read() or b"null")
        except urllib.error.HTTPError as error:
            said = error.read().decode()
            raise RuntimeError(json.loads(said)["error"] if said.startswith("{") else f"{error.code} {said}") from error

    def load(self, model: str) -> None:
        """Load a model, or load it again. Raises RuntimeError with the server's reason."""
        self.ask(f"/v2/repository/models/{model}/load", {})

    def unload(self, model: str) -> None:
        """Unload a model, and wait until it is gone."""
        self.ask(f"/v2/repository/models/{model}/unload", {})
        until = time.monotonic() + STOP_SECONDS
        while self.states(model) - {"UNAVAILABLE"}:
            assert time.monotonic() < until, f"{model} was not unloaded"
            time.sleep(0.05)

    def states(self, model: str) -> set[str]:
        """The states of a model's versions."""
        listed = self.ask("/v2/repository/index", {})
        return {each.get("state", "") for each in listed if each["name"] == model}

    def batches(self, model: str) -> dict[int, int]:
        """How often a batch of each size was run, over all versions."""
        sizes: dict[int, int] = {}
        for version in self.ask(f"/v2/models/{model}/stats")["model_stats"]:
            for each in version["batch_stats"]:
                sizes[each["batch_size"]] = sizes.get(each["batch_size"], 0) + each["compute_infer"]["count"]
        return sizes

    def infer(
        self,
        model: str,
        pictures: Sequence[bytes | Sequence[bytes]],
        protocol: str = "http",
        clients: int = 1,
        parameters: Mapping[str, Any] | None = None,
    ) -> list[Answer]:
        """Send a request for each entry, a picture or several.

        Args:
            model: its name.
            pictures: the content of picture files.
            protocol: ``http`` or ``grpc``.
            clients: how many send at the same time.
            parameters: of each request.
        """
        self._calls += 1
        place = self._home / f"request-{self._calls}"
        place.mkdir()
        groups = [[each] if isinstance(each, bytes) else list(each) for each in pictures]
        flat = [picture for group in groups for picture in group]
        for number, picture in enumerate(flat):
            (place / str(number)).write_bytes(picture)
        told = {
            "address": self.http if protocol == "http" else self.grpc,
            "protocol": protocol,
            "model": model,
            "sizes": [len(group) for group in groups],
            "clients": clients,
            "parameters": parameters,
        }
        (place / "request.json").write_text(json.dumps(told))
        run_client(self.installation, self._home, "infer", place)
        errors = json.loads((place / "errors.json").read_text())
        with np.load(place / "outputs.npz") as arrays:
            outputs: list[dict[str, np.ndarray]] = [{} for _ in groups]
            for key in arrays.files:
                number, _, name = key.partition(".")
                outputs[int(number)][name] = arrays[key]
        return [Answer(None if error else found, error) for found, error in zip(outputs, errors, strict=True)]


def run_client(installation: TritonInstallation, home: Path, *words: str | Path) -> str:
    """Run ``triton_client.py`` and give what it prints."""
    done = subprocess.run(
        [installation.python, str(CLIENT), *map(str, words)],
        env=installation.variables(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@contextlib.contextmanager
def running_server(
    installation: TritonInstallation, repository: Path, home: Path, venv: Path, *flags: str
) -> Iterator[TritonServer]:
    """A server on free ports of this machine alone, until the block ends; by default one that loads no model before it is told to.

    Args:
        installation: where its programs are.
        repository: the models.
        home: an empty folder for what it writes.
        venv: the environment of its models.
        flags: further ones; ``--model-control-mode`` among them takes the place of the default.

    Raises:
        RuntimeError: it did not start.
    """
    ports = free_ports(2)
    control = (
        [] if any(flag.startswith("--model-control-mode") for flag in flags) else ["--model-control-mode=explicit"]
    )
    command = [
        str(installation.folder / "python" / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        f"--backend-directory={installation.folder / 'backends'}",
        *("--http-address=127.0.0.1", f"--http-port={ports[0]}", "--grpc-address=127.0.0.1", f"--grpc-port={ports[1]}"),
        "--allow-metrics=false",
        "--exit-timeout-secs=10",
        *control,
        *flags,
    ]
    log = home / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=installation.variables(home, venv), stdout=stream, stderr=subprocess.STDOUT, cwd=home
        )
    server = TritonServer(installation, home, f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}", log)
    try:
        _wait_until_ready(server, process)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(server: TritonServer, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError, RuntimeError):
            server.ask("/v2/health/ready")
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start: {server.log.read_text()[-3000:]}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
