"""What Prometheus reads of the service at ``/metrics``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector

from edge_effdet.artifacts import Engine
from edge_effdet.device.service.temperature import read_heat
from edge_effdet.runtime.sinks import Sink
from edge_effdet.sending.report import reports_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Bounds of the histograms, in seconds."""


class Metrics:
    """Counters of one service."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._registry = CollectorRegistry()
        prefix: dict[str, Any] = {"namespace": "edge_effdet", "registry": self._registry}
        self.requests = Counter("requests", "Requests that were answered.", ["route", "status"], **prefix)
        self.request_seconds = Histogram(
            "request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            **prefix,
        )
        self.stage_seconds = Histogram(
            "stage_seconds", "Parts of the time of a picture that was looked at.", ["stage"], buckets=_SECONDS, **prefix
        )
        self.batch_pictures = Histogram(
            "batch_pictures", "Pictures in a run of the engine.", buckets=(1, 2, 4, 8, 16, 32), **prefix
        )
        self.refused = Counter(
            "refused", "Requests that were refused before the engine, by reason.", ["reason"], **prefix
        )
        self.unreadable = Counter("unreadable", "Pictures that could not be decoded.", **prefix)
        built = Gauge(
            "engine_info", "The engine; always 1.", ["name", "file", "backend", "precision", "sha256"], **prefix
        )
        built.labels(name, engine.path.name, engine.backend, engine.precision, engine.sha256).set(1)
        Gauge("start_time_seconds", "When the service was started, in Unix seconds.", **prefix).set(time.time())
        ProcessCollector(registry=self._registry)
        self._registry.register(_Heat())

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a value that is looked up whenever somebody asks for it."""
        Gauge(name, text, namespace="edge_effdet", registry=self._registry).set_function(value)

    def watch_sinks(self, sinks: Sequence[Sink]) -> None:
        """Show what became of the messages of sinks that send over a wire."""
        self._registry.register(_Messages(sinks))

    def note_run(self, pictures: int, seconds: Sequence[Mapping[str, float]]) -> None:
        """Count a run of the engine with the seconds of its pictures by stage."""
        self.batch_pictures.observe(pictures)
        for each in seconds:
            for stage, value in each.items():
                self.stage_seconds.labels(stage).observe(value)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self._registry)


class _Messages:
    """Messages by receiver and by what became of them."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(
            "edge_effdet_messages",
            "Messages since the start by what became of them, and those that wait.",
            labels=["to", "state"],
        )
        for report in reports_of(self._sinks):
            for state in ("sent", "waiting", "dropped", "refused", "lost"):
                family.add_metric([report.to, state], getattr(report, state))
        yield family


class _Heat:
    """The temperature of the machine; no sample where it shows none."""

    def collect(self) -> Iterable[Metric]:
        heat = read_heat()
        family = GaugeMetricFamily(
            "edge_effdet_temperature_celsius", "The hottest thermal zone of the machine.", labels=["zone"]
        )
        if heat.celsius is not None:
            family.add_metric([heat.where], heat.celsius)
        yield family
