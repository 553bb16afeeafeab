"""What the workers of one test run share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
"""The name of this worker, ``gw0`` for the first; None where there are none."""


def worker_number() -> int:
    """0 for the first worker, and where there are none."""
    return int((WORKER or "gw0").removeprefix("gw"))


def make_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Make a folder once a run: the first worker that needs it fills it, and the others wait until it is complete.

    Args:
        factory: of the worker.
        name: of the folder.
        make: fills the folder, which exists and is empty.

    Returns:
        The folder, which no test changes.
    """
    # Each worker has a folder of its own inside the folder of the run.
    root = factory.getbasetemp().parent if WORKER else factory.getbasetemp()
    folder, complete = root / name, root / f"{name}.complete"
    with FileLock(root / f"{name}.lock"):
        if not complete.exists():
            # What a worker left that failed half-way.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            complete.touch()
    return folder
