"""What the GPU check runs: a network, its graphs by fusion and precision, pictures, and how alike two results are."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.graph_subjects import Subject, read_subject
from edge_effdet.artifacts import Graph, ModelSpec, Size
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.runtime.postprocess import detections_from_outputs

if TYPE_CHECKING:
    from edge_effdet.graph.cost import Decision, SeparablePair

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION_IMAGES = 16
"""For INT8 engines whose speed is measured: ranges decide about accuracy, not about time."""

COMPARED = 100
"""Detections an image, the best first, as COCO counts them."""

NEAR = 0.05
"""Corners of one box lie so near each other, as a share of its longer side."""

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How alike two results are.

    Attributes:
        matched: share of the reference's best detections that the other has too: same class, all corners ``NEAR``.
        score_error: largest difference of the scores of matched detections.
    """

    matched: float
    score_error: float


def load_subject(text: str) -> Subject:
    """The network of ``--model``. See ``graph_subjects.read_subject``."""
    return read_subject(text)


def prepare_graph(subject: Subject, fusion: str, precision: str, work: Path, target: str | None = None) -> Graph:
    """The graph with a dynamic batch, made unless it is in ``work`` already.

    Args:
        subject: the network.
        fusion: ``keep``, ``dense`` or ``auto``, for the depthwise-separable pairs.
        precision: ``fp32``, ``fp16`` or ``int8``; the last is calibrated on the shipped synthetic scenes.
        work: a folder.
        target: a row of ``TARGETS`` to decide for, with ``auto``, for FP16.

    Raises:
        EdgeEffDetError: the graph could not be made; its own message went to stderr.
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
        words += ["--calibration-data", str(_scenes(work)), "--calibration-split", "calibration"]
        words += ["--calibration-images", str(CALIBRATION_IMAGES), "--high-precision", "fp16"]
    done = subprocess.run(
        [sys.executable, "-m", "edge_effdet.quantize", *words], cwd=ROOT, stdout=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise EdgeEffDetError(f"edge_effdet.quantize could not make {path.name}; its own message stands above.")
    return load_graph(path)


def read_pictures(spec: ModelSpec, count: int, work: Path) -> np.ndarray:
    """Letterboxed test scenes, uint8 [count, 3, H, W]."""
    from edge_effdet.data.base import readable_images
    from edge_effdet.data.registry import read_dataset
    from edge_effdet.runtime.preprocess import letterbox

    _, samples = read_dataset(_scenes(work)).choose_split("test", ())
    canvases = [
        letterbox(image, spec.image_size, spec.preprocess)[0].transpose(2, 0, 1)
        for _, image in readable_images(samples[:count])
    ]
    return np.stack(canvases)


def reference_outputs(graph: Graph, pictures: np.ndarray, work: Path) -> Outputs:
    """The same graph by onnxruntime on the CPU, one picture at a time; kept in ``work``."""
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
    """How much of the reference's best detections another result has.

    The order is left out of it: equal scores may come in any. Both hold boxes float32 [B, K, 4], scores float32 [B, K]
    and class ids int32 [B, K]; ``reference`` may have more images.
    """
    matched = total = 0
    largest = 0.0
    for index in range(len(found["scores"])):
        scores = reference["scores"][index]
        best = np.argsort(-scores, kind="stable")[:compared]
        # What EfficientNMS pads its rows with is no detection.
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
    """What the host would keep of an engine's candidates, as EfficientNMS leaves it: padded with scores of -1.

    ``size`` is the network's input; the pictures are taken to fill it.
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
    """The network's depthwise-separable pairs, one of each shape, in the order of the graph."""
    from edge_effdet.graph.export import ExportOptions, trace_network
    from edge_effdet.graph.optimize import optimize_model

    found: dict[tuple[object, ...], SeparablePair] = {}

    def note(pair: SeparablePair) -> Decision | bool:
        key = (pair.channels_in, pair.channels_out, pair.kernel, pair.stride, pair.height, pair.width)
        found.setdefault(key, pair)
        return False

    optimize_model(trace_network(subject.network, subject.spec, ExportOptions()), note)
    return list(found.values())


def _scenes(work: Path) -> Path:
    from edge_effdet.quickstart import quickstart_scenes

    return quickstart_scenes(work)
