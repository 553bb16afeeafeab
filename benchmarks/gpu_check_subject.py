"""What the GPU check runs: a network, its graphs by fusion and precision, pictures, and a measure of how alike two results are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.graph_subjects import Subject
from benchmarks.processes import ROOT
from edge_effdet.artifacts import Graph, ModelSpec, Size
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.quickstart import CALIBRATION_SPLIT, TEST_SPLIT, quickstart_photos
from edge_effdet.runtime.postprocess import detections_from_outputs

if TYPE_CHECKING:
    from edge_effdet.graph.cost import Decision, SeparablePair

CALIBRATION_IMAGES = 16
"""How many images calibrate the INT8 engines. Their speed is measured, and ranges decide about accuracy and not about time."""

COMPARED = 100
"""How many of the best detections of an image are compared, as many as COCO counts."""

NEAR = 0.05
"""How far the corners of two boxes may lie apart where they are the same box, as a share of its longer side."""

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two results are.

    Attributes:
        matched: the share of the reference's best detections that the other result has too, with the same class and all corners
            within ``NEAR``.
        score_error: the largest difference between the scores of matched detections.
    """

    matched: float
    score_error: float


def prepare_graph(subject: Subject, fusion: str, precision: str, work: Path, target: str | None = None) -> Graph:
    """Make the graph with a dynamic batch, unless it is in ``work`` already.

    Args:
        subject: the network.
        fusion: ``keep``, ``dense`` or ``auto``, for the depthwise-separable pairs.
        precision: ``fp32``, ``fp16`` or ``int8``, which is calibrated on the shipped photographs.
        work: a folder that keeps graphs.
        target: the row of ``TARGETS`` that ``auto`` decides for, in FP16.

    Raises:
        EdgeEffDetError: the graph could not be made; the reason went to stderr.
    """
    from edge_effdet.graph.export import ExportOptions, export_network
    from edge_effdet.graph.model import load_graph

    path = work / f"{fusion}.{precision}.onnx"
    if path.is_file():
        return load_graph(path)
    if precision == "fp32":
        options = ExportOptions(
            batch_size=0, fuse_separable=fusion, fuse_target=target, fuse_precision="fp16" if target else None
        )
        return export_network(subject.network, subject.spec, {}, path, options).graph
    source = prepare_graph(subject, fusion, "fp32", work, target)
    words = ["--onnx", str(source.path), f"--{precision}", "--output", str(path)]
    if precision == "int8":
        words += ["--calibration-data", str(quickstart_photos()), "--calibration-split", CALIBRATION_SPLIT]
        words += ["--calibration-images", str(CALIBRATION_IMAGES), "--high-precision", "fp16"]
    done = subprocess.run(
        [sys.executable, "-m", "edge_effdet.quantize", *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise EdgeEffDetError(f"edge_effdet.quantize could not make {path.name}; its own message stands above.")
    return load_graph(path)


def prepare_work(subject: Subject, precisions: Sequence[str], batches: Sequence[int], work: Path) -> None:
    """Make all that the parts need of a CPU, so that no minute of a GPU's time is spent on it: graphs, and what the CPU finds with them.

    Raises:
        EdgeEffDetError: a graph could not be made; the reason went to stderr.
    """
    pictures = read_pictures(subject.spec, max(batches))
    for precision in precisions:
        graph = prepare_graph(subject, "keep", precision, work)
        for batch in batches:
            reference_outputs(graph, pictures[:batch], work)


def read_pictures(spec: ModelSpec, count: int) -> np.ndarray:
    """The first ``count`` of the shipped test photographs with their letterbox, uint8 [count, 3, H, W]."""
    from edge_effdet.data.base import readable_images
    from edge_effdet.data.registry import read_dataset
    from edge_effdet.runtime.preprocess import letterbox

    _, samples = read_dataset(quickstart_photos()).choose_split(TEST_SPLIT, ())
    canvases = [
        letterbox(image, spec.image_size, spec.preprocess)[0].transpose(2, 0, 1)
        for _, image in readable_images(samples[:count])
    ]
    return np.stack(canvases)


def reference_outputs(graph: Graph, pictures: np.ndarray, work: Path) -> Outputs:
    """The outputs of the graph by onnxruntime on the CPU, one picture at a time. They are kept in ``work``."""
    from benchmarks.latency import open_onnxruntime

    path = work / f"{graph.path.stem}.{len(pictures)}.npz"
    if path.is_file():
        with np.load(path) as kept:
            return dict(kept)
    run = open_onnxruntime(graph.path, threads=0)
    parts = [run(picture[None]) for picture in pictures]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(path, **outputs)  # type: ignore[arg-type]
    return outputs


def compare_outputs(reference: Outputs, found: Outputs, compared: int = COMPARED) -> Agreement:
    """Compare the best detections of a reference with another result, whatever their order, since equal scores may come in any order.

    Args:
        reference: boxes float32 [B, K, 4], scores float32 [B, K] and class ids int32 [B, K].
        found: the other result, which may have fewer images.
        compared: how many of the best detections of an image are looked for.
    """
    matched = total = 0
    largest = 0.0
    for index in range(len(found["scores"])):
        scores = reference["scores"][index]
        best = np.argsort(-scores, kind="stable")[:compared]
        # EfficientNMS fills up its rows with scores of -1, which are no detections.
        best = best[scores[best] >= 0]
        boxes = reference["boxes"][index][best]
        apart = np.abs(boxes[:, None] - found["boxes"][index][None]).max(axis=2)
        apart[reference["class_ids"][index][best][:, None] != found["class_ids"][index][None]] = np.inf
        nearest = apart.argmin(axis=1)
        hit = apart[np.arange(len(best)), nearest] <= NEAR * (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        matched, total = matched + int(hit.sum()), total + len(best)
        if hit.any():
            largest = max(largest, float(np.abs(scores[best] - found["scores"][index][nearest])[hit].max()))
    return Agreement(matched / max(total, 1), largest)


def suppress(outputs: Outputs, size: Size, kept: int = COMPARED) -> Outputs:
    """Suppress an engine's candidates as the host does, in the form of EfficientNMS: rows without a detection have the score -1.

    Args:
        outputs: as in ``compare_outputs``.
        size: height and width of the network's input, which the pictures are taken to fill.
        kept: how many detections of an image are kept.
    """
    images = len(outputs["scores"])
    result = {
        "boxes": np.zeros((images, kept, 4), np.float32),
        "scores": np.full((images, kept), -1, np.float32),
        "class_ids": np.zeros((images, kept), np.int32),
    }
    for index in range(images):
        boxes, scores, class_ids = (outputs[name][index] for name in result)
        found = detections_from_outputs(boxes, scores, class_ids, size, size, limit=kept)
        for name, values in result.items():
            values[index, : len(found)] = getattr(found, name)
    return result


def collect_pairs(subject: Subject) -> list[SeparablePair]:
    """The network's pairs of a depthwise and a pointwise convolution, one of each shape, in the order of the graph."""
    from edge_effdet.graph.export import ExportOptions, trace_network
    from edge_effdet.graph.optimize import optimize_model

    found: dict[tuple[object, ...], SeparablePair] = {}

    def note(pair: SeparablePair) -> Decision | bool:
        key = (pair.channels_in, pair.channels_out, pair.kernel, pair.stride, pair.height, pair.width)
        found.setdefault(key, pair)
        return False

    optimize_model(trace_network(subject.network, subject.spec, ExportOptions()), note)
    return list(found.values())
