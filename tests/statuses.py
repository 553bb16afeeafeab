"""What tests of the service share: a status as a healthy service of this process would write it, and waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from edge_effdet.device.service.processes import process_identity, seconds_since_boot
from edge_effdet.device.service.status import ServiceStatus

PATIENCE = 60.0
"""Seconds after which what is waited for will not come any more."""


def wait(is_so: Callable[[], Any]) -> Any:
    """Wait until a call gives something true, and return that."""
    end = time.monotonic() + PATIENCE
    while not (found := is_so()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def make_status(**changes: Any) -> ServiceStatus:
    now = seconds_since_boot()
    values: dict[str, Any] = {
        "version": "1.0-aaaa",
        "state": "running",
        "healthy": True,
        "reason": "",
        "pid": os.getpid(),
        "process": process_identity(os.getpid()),
        "started_at": "1970-01-01T00:00:09+00:00",
        "started_s": now - 100,
        "updated_s": now,
        "source": "/dev/video0",
        "engine": "small.int8.onnx",
        "backend": "onnxruntime",
        "precision": "int8",
        "frames": 10,
        "fps": 12.5,
        "latency_ms_p50": 40.0,
        "latency_ms_p90": 55.5,
        "last_frame_s": now,
        "dropped": 2,
        "skipped": 1,
        "reopened": 0,
        "results_lost": 0,
        "temperature_c": 51.25,
        "temperature_of": "tj-thermal",
        "last_error": "",
        "last_error_s": None,
    }
    return ServiceStatus(**{**values, **changes})
