"""Backends that stand in where engines are benchmarked in processes of their own. ``prepare`` puts them into each process."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import Engine, file_sha256
from edge_effdet.artifacts.record import Golden
from edge_effdet.artifacts.spec import ModelSpec
from edge_effdet.backends.base import BACKENDS, Traits, Unavailable
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.benchmarking.options import Effort
from edge_effdet.errors import EngineError
from tests.backends import BrightBoxRunner, FakeBackend
from tests.records import make_record, write_record

SPEC = ModelSpec("tiny", (64, 64), ("box",), (1,))
MILLISECONDS = 2.0

TINY = Effort(
    rounds=5,
    single_s=0.1,
    network_s=0.03,
    pool_rounds=2,
    pool_s=0.1,
    pool_queries=2,
    probes=3,
    probe_s=0.2,
    probe_queries=10,
    tries=1,
    queries=8,
    stages=5,
    profiled=2,
)
"""A measurement of a second or two."""


class SlowRunner(BrightBoxRunner):
    """Takes a known time, and after ``good`` runs something else happens."""

    concurrent = True

    def __init__(self, milliseconds: float = MILLISECONDS, good: int = 1 << 30) -> None:
        super().__init__(64)
        self.milliseconds, self.good = milliseconds, good

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        if len(self.runs) >= self.good:
            self.fail()
        time.sleep(self.milliseconds / 1000)
        return super().run(feeds)

    def fail(self) -> None:
        raise EngineError("the accelerator is gone")


class CrashingRunner(SlowRunner):
    """Ends its process, as a fault in a library does."""

    def fail(self) -> None:
        os.abort()


class FastBackend(FakeBackend):
    """Computes on the CPU, with threads that work at the same time."""

    def __init__(self, make_runner) -> None:
        super().__init__(make_runner=make_runner, traits=Traits(on_cpu=True))


STANDING_IN = {
    "even": FastBackend(SlowRunner),
    "slower": FastBackend(lambda: SlowRunner(2 * MILLISECONDS)),
    "failing": FastBackend(lambda: SlowRunner(good=8)),
    "crashing": FastBackend(lambda: CrashingRunner(good=8)),
    "absent": FakeBackend(answer=Unavailable("there is no such accelerator here", "buy one")),
}


def prepare() -> None:
    """Add the backends to the table, in the process of an engine."""
    BACKENDS.update(STANDING_IN)


def make_engine(
    folder: Path, backend: str, precision: str = "fp32", name: str = "", content: bytes = b"engine"
) -> Engine:
    """An engine of one of these backends, with its JSON; ``prepare`` must have been called."""
    path = folder / f"{name or backend}.{precision}.fake"
    path.write_bytes(content)
    golden = None if backend == "absent" else Golden(kind="none", fingerprint=machine_fingerprint(backend))
    record = make_record(
        engine=path.name,
        engine_sha256=file_sha256(path),
        spec=SPEC,
        backend=backend,
        precision=precision,
        golden=golden,
    )
    engine = Engine(path, SPEC, backend, precision, record.engine_sha256, record)
    write_record(engine)
    return engine
