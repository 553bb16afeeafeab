"""AP of an engine beside that of the FP32 graph that it was made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Engine, Graph
from edge_effdet.backends.base import load_runner, require
from edge_effdet.data.base import Sample, samples_sha256
from edge_effdet.evaluation.intervals import drop_interval
from edge_effdet.evaluation.metrics import CocoMetrics, coco_metrics
from edge_effdet.evaluation.run import detect_samples
from edge_effdet.runtime.golden import find_best

FLATTENED = 0.85
"""Of the best score in a picture, on average: below that a threshold chosen at FP32 misses objects."""


@dataclass(frozen=True, slots=True)
class Accuracy:
    """AP of the FP32 graph, where there is one, and of what was built, on the same images.

    Attributes:
        reference: of the FP32 graph.
        built: of the engine, or of the graph that it was compiled from.
        measured_on: which of the two.
        split: of the data.
        data_sha256: of the images and their boxes.
        interval: points of AP lost with a confidence of 95 %, by a bootstrap over the images.
        confidence: how scores are spread before and after; see ``compare_confidence``.
    """

    reference: CocoMetrics | None
    built: CocoMetrics
    measured_on: str
    split: str
    data_sha256: str
    interval: tuple[float, float] | None = None
    confidence: Mapping[str, Any] | None = None

    @property
    def drop(self) -> float | None:
        """Points of AP lost; negative for a gain; None without a reference."""
        return None if self.reference is None else 100 * (self.reference.AP - self.built.AP)

    def to_dict(self) -> dict[str, Any]:
        return {
            "reference_AP": self.reference.AP if self.reference else None,
            "AP": self.built.AP,
            "drop": self.drop,
            "drop_interval": None if self.interval is None else list(self.interval),
            "reference_AP50": self.reference.AP50 if self.reference else None,
            "AP50": self.built.AP50,
            "images": self.built.images,
            "split": self.split,
            "measured_on": self.measured_on,
            "data_sha256": self.data_sha256,
            "confidence": self.confidence,
        }


def measure_accuracy(engine: Engine, reference: Graph, built: Graph, samples: Sequence[Sample], split: str) -> Accuracy:
    """AP of the FP32 graph and of the engine; where the engine cannot run here, of the graph that it was compiled from.

    A ``reference`` that is FP16 or INT8 already is none: its own loss would count as nothing.
    """
    runs_here = require(engine.backend).runs_here
    before = detect_samples(graph_as_engine(reference), samples) if reference.precision == "fp32" else None
    if runs_here:
        after = detect_samples(engine, samples)
    elif before is not None and built.sha256 == reference.sha256:
        after = before
    else:
        after = detect_samples(graph_as_engine(built), samples)
    measured_on, digest = "engine" if runs_here else "graph", samples_sha256(samples)
    readable, found = after
    metrics = coco_metrics(readable, found, engine.spec)
    if before is None:
        return Accuracy(None, metrics, measured_on, split, digest)
    interval = drop_interval(readable, before[1], found, engine.spec.num_classes)
    confidence = compare_confidence(before[1], found)
    reference_metrics = coco_metrics(readable, before[1], engine.spec)
    return Accuracy(reference_metrics, metrics, measured_on, split, digest, interval, confidence)


def compare_confidence(before: Sequence[Detections], after: Sequence[Detections]) -> dict[str, Any]:
    """How scores are spread before and after: INT8 may keep the order, and so the AP, and flatten what a threshold sees.

    Returns:
        ``edges`` of the bins; detections a bin, ``reference`` and ``built``; ``mean_top_score`` of both, over the images with a
        detection above 0.05; ``flattened``: whether it fell below ``FLATTENED`` of what it was.
    """
    edges = np.round(np.linspace(0.05, 1, 20), 2)
    scores = [[found.scores[found.scores >= edges[0]] for found in every] for every in (before, after)]
    counts = [np.histogram(np.concatenate(every), edges)[0].tolist() for every in scores]
    tops = [np.mean([own.max() for own in every if len(own)] or [0.0]) for every in scores]
    return {
        "edges": edges.tolist(),
        "reference": counts[0],
        "built": counts[1],
        "mean_top_score": {"reference": float(tops[0]), "built": float(tops[1])},
        "flattened": bool(tops[1] < FLATTENED * tops[0]),
    }


def graph_as_engine(graph: Graph) -> Engine:
    """A graph run by onnxruntime, as it is."""
    return Engine(graph.path, graph.spec, "onnxruntime", graph.precision, {"engine_sha256": graph.sha256})


def find_in_graph(graph: Graph, pictures: Sequence[np.ndarray]) -> list[Detections]:
    """The best detections of each picture, uint8 [H, W, 3] of the size of the network's input, by onnxruntime, which computes a graph
    as it is written.
    """
    with load_runner(graph_as_engine(graph)) as runner:
        return [find_best(runner, graph.spec, picture) for picture in pictures]
