"""AP of an engine beside that of the FP32 graph that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edge_effdet.artifacts import Detections, Engine, Graph
from edge_effdet.artifacts.record import Accuracy, Confidence, MeanTopScore
from edge_effdet.backends.base import load_runner, require
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.data.base import Sample, samples_sha256
from edge_effdet.evaluation.intervals import drop_interval
from edge_effdet.evaluation.metrics import coco_metrics
from edge_effdet.evaluation.run import detect_samples
from edge_effdet.runtime.agreement import find_best

FLATTENED = 0.85
"""Least share of the mean top score that must be left. Below it, a score threshold that was chosen for FP32 misses objects."""


def measure_accuracy(engine: Engine, reference: Graph, built: Graph, samples: Sequence[Sample], split: str) -> Accuracy:
    """Measure the AP of the FP32 graph and of the engine, or, where the engine cannot run here, of the graph that it was compiled from.

    A ``reference`` that is FP16 or INT8 already is not measured, because what it has lost itself would not be counted.

    Args:
        engine: the compiled engine.
        reference: the graph before its precision was lowered.
        built: the graph that the engine was compiled from.
        samples: labelled images, with class ids of the engine's spec.
        split: name of their split, for the record.
    """
    runs_here = require(engine.backend).runs_here
    before = detect_samples(graph_as_engine(reference), samples) if reference.precision == "fp32" else None
    if runs_here:
        after = detect_samples(engine, samples)
    elif before is not None and built.sha256 == reference.sha256:
        after = before
    else:
        after = detect_samples(graph_as_engine(built), samples)
    readable, found = after
    metrics = coco_metrics(readable, found, engine.spec)
    accuracy = Accuracy(
        AP=metrics.AP,
        AP50=metrics.AP50,
        images=metrics.images,
        split=split,
        measured_on="engine" if runs_here else "graph",
        data_sha256=samples_sha256(samples),
        machine=machine_fingerprint(engine.backend if runs_here else "onnxruntime"),
    )
    if before is None:
        return accuracy
    expected = coco_metrics(readable, before[1], engine.spec)
    return replace(
        accuracy,
        reference_AP=expected.AP,
        reference_AP50=expected.AP50,
        drop=100 * (expected.AP - metrics.AP),
        drop_interval=drop_interval(readable, before[1], found, engine.spec.num_classes),
        confidence=compare_confidence(before[1], found),
    )


def compare_confidence(before: Sequence[Detections], after: Sequence[Detections]) -> Confidence:
    """How scores are spread before and after: INT8 may keep the order, and so the AP, and flatten what a threshold sees.

    Args:
        before: what the FP32 graph found in each image.
        after: what was built found.
    """
    edges = np.round(np.linspace(0.05, 1, 20), 2)
    scores = [[found.scores[found.scores >= edges[0]] for found in every] for every in (before, after)]
    reference, built = (tuple(np.histogram(np.concatenate(every), edges)[0].tolist()) for every in scores)
    tops = [float(np.mean([own.max() for own in every if len(own)] or [0.0])) for every in scores]
    return Confidence(
        tuple(edges.tolist()), reference, built, MeanTopScore(tops[0], tops[1]), tops[1] < FLATTENED * tops[0]
    )


def graph_as_engine(graph: Graph) -> Engine:
    """An engine of onnxruntime, which runs the graph's own file."""
    return Engine(graph.path, graph.spec, "onnxruntime", graph.precision, graph.sha256)


def find_in_graph(graph: Graph, pictures: Sequence[np.ndarray]) -> list[Detections]:
    """The best detections of a graph in each picture, by onnxruntime, which computes a graph as it is written.

    Args:
        graph: with detections as outputs.
        pictures: uint8 [H, W, 3] each, in the size of the network's input.
    """
    with load_runner(graph_as_engine(graph)) as runner:
        return [find_best(runner, graph.spec, picture) for picture in pictures]
