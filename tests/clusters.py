"""A Dask cluster of this machine, whose scheduler and workers are processes of their own, as on several machines."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_effdet.evaluation import spread

ROOT = Path(__file__).resolve().parents[1]


class Cluster:
    """A scheduler, and workers of one thread each.

    Attributes:
        file: the scheduler's file, which is an address too.
        scheduler: its process.
        workers: their processes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"
        )
        _wait(self.file.is_file)

    def add(self, *program: str) -> None:
        """Start one more worker, and wait until the scheduler knows it."""
        common = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", "--local-directory")
        self.workers.append(
            self._start(*(program or ("-m", "distributed.cli.dask_worker")), *common, str(self.folder / "work"))
        )
        with spread.connect(str(self.file)) as client:
            client.wait_for_workers(len(self.workers), timeout=60)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with open(self.folder / "log", "ab") as log:
            command = [sys.executable, *arguments, "--scheduler-file", str(self.file)]
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def stop(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


def _wait(ready: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < until, "nothing came up"
        time.sleep(0.05)


@contextlib.contextmanager
def run_cluster(folder: Path, workers: int) -> Iterator[Cluster]:
    """Start a scheduler and so many workers, and end them with the block. ``folder`` is for their files, and made where it is missing."""
    folder.mkdir(exist_ok=True)
    cluster = Cluster(folder)
    try:
        for _ in range(workers):
            cluster.add()
        yield cluster
    finally:
        cluster.stop()
