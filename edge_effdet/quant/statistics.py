"""Statistics of a graph's tensors over calibration images, one image at a time.

There are two passes over the images. In the first, the graph itself computes three numbers of each tensor: its smallest, largest and
mean value. The second, which histograms and the rounding of weights need, fetches the tensors and looks at a random part of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edge_effdet.artifacts import Graph
from edge_effdet.backends.onnxruntime import UNWANTED_OPTIMIZERS
from edge_effdet.cli import progress
from edge_effdet.data.base import Sample, readable_images
from edge_effdet.errors import GraphError
from edge_effdet.graph.model import INPUT_NAME
from edge_effdet.quant.calibration import CalibrationImages, letterboxed
from edge_effdet.quant.ranges import BINS

SAMPLED_VALUES = 16384
"""How many values of a tensor are looked at for each image. More change no range by much (benchmarks/calibration.py) and take longer
than the network itself."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The smallest and the largest value of a tensor over all images."""

    smallest: float
    largest: float

    @property
    def absolute(self) -> float:
        """The largest absolute value."""
        return max(-self.smallest, self.largest)


def measure_extents(model: onnx.ModelProto, images: CalibrationImages, tensors: Sequence[str]) -> dict[str, Extent]:
    """Measure the smallest and the largest value of each tensor over all images.

    Args:
        model: the graph.
        images: the images to look at.
        tensors: the names of the tensors.

    Raises:
        GraphError: a tensor is not finite, or has one value only; the message names it.
    """
    outputs: list[tuple[str, str]] = []
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    kinds = ("ReduceMin", "ReduceMax", "ReduceMean")
    del probed.graph.output[:]
    for position, tensor in enumerate(tensors):
        for kind in kinds:
            name = f"edge_effdet_{kind}_{position}"
            probed.graph.node.append(onnx.helper.make_node(kind, [tensor], [name], keepdims=0))
            probed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []))
            outputs.append((tensor, kind))
    session = open_session(probed)
    names = [output.name for output in probed.graph.output]
    lowest = dict.fromkeys(tensors, np.inf)
    highest = dict.fromkeys(tensors, -np.inf)
    for image in progress(images, len(images), "measuring ranges"):
        values = session.run(names, {INPUT_NAME: as_input(probed, image)})
        for (tensor, kind), value in zip(outputs, values, strict=True):
            number = float(value)
            # ReduceMin and ReduceMax may pass over a NaN. ReduceMean does not, so it is measured too.
            if not np.isfinite(number):
                raise GraphError(
                    f"{tensor} is not finite on a calibration image, so it has no range; the checkpoint has diverged: train it "
                    "again."
                )
            if kind == "ReduceMin":
                lowest[tensor] = min(lowest[tensor], number)
            elif kind == "ReduceMax":
                highest[tensor] = max(highest[tensor], number)
    extents = {tensor: Extent(lowest[tensor], highest[tensor]) for tensor in tensors}
    for tensor, extent in extents.items():
        if extent.smallest == extent.largest:
            raise GraphError(
                f"{tensor} was {extent.largest:g} everywhere over all calibration images, so it has no range; give other images."
            )
    return extents


def measure_histograms(
    model: onnx.ModelProto, images: CalibrationImages, extents: Mapping[str, Extent], sampled: int = SAMPLED_VALUES
) -> dict[str, np.ndarray]:
    """Count the absolute values other than 0 of each tensor in bins from 0 to its largest absolute value.

    Args:
        model: the graph.
        images: the images to look at.
        extents: what ``measure_extents`` gave, by the tensor's name.
        sampled: how many values of a tensor are counted for each image; 0 for all values.

    Returns:
        The counts, int64 [BINS], by the tensor's name.
    """
    histograms = {tensor: np.zeros(BINS, np.int64) for tensor in extents}
    for number, values in enumerate(fetch_tensors(model, images, list(extents))):
        generator = np.random.default_rng(number)
        for tensor, value in values.items():
            seen = np.abs(sample_values(value, sampled, generator))
            seen = seen[seen > 0]
            bins = np.minimum(seen * (BINS / extents[tensor].absolute), BINS - 1).astype(np.int64)
            histograms[tensor] += np.bincount(bins, minlength=BINS)
    return histograms


def sample_values(value: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """About ``count`` values of an array, flat: every n-th from a random first one, where n is odd, so that no column is preferred."""
    flat = value.reshape(-1)
    if not count or len(flat) <= count:
        return flat
    step = (len(flat) // count) | 1
    return flat[int(generator.integers(step)) :: step]


def fetch_tensors(
    model: onnx.ModelProto, images: Iterable[np.ndarray], tensors: Sequence[str], label: str = "looking at tensors"
) -> Iterator[dict[str, np.ndarray]]:
    """Run a graph on images and give, one image at a time, the values of the tensors by name.

    Args:
        model: the graph.
        images: uint8 [1, 3, H, W] each.
        tensors: the names of the tensors.
        label: the label of the progress bar.
    """
    probed = onnx.ModelProto()
    probed.CopyFrom(model)
    del probed.graph.output[:]
    for tensor in tensors:
        probed.graph.output.append(onnx.helper.make_tensor_value_info(tensor, onnx.TensorProto.FLOAT, None))
    session = open_session(probed)
    total = len(images) if isinstance(images, CalibrationImages) else 0
    for image in progress(images, total, label):
        yield dict(zip(tensors, session.run(list(tensors), {INPUT_NAME: as_input(probed, image)}), strict=True))


def backbone_features(graph: Graph, samples: Sequence[Sample]) -> tuple[list[Sample], np.ndarray]:
    """The samples that can be decoded, and for each the backbone's last tensor averaged over positions, float32 [N, channels]."""
    model = onnx.load_model(str(graph.path))
    last = [node for node in model.graph.node if node.op_type == "Conv" and node.name.startswith("backbone.")][-1]
    kept: list[Sample] = []

    def pixels() -> Iterator[np.ndarray]:
        for sample, image in progress(readable_images(samples), len(samples), "choosing images"):
            kept.append(sample)
            yield letterboxed(image, graph.spec)

    tensor = last.output[0]
    rows = [values[tensor].mean(axis=(0, 2, 3)) for values in fetch_tensors(model, pixels(), [tensor])]
    return kept, np.array(rows, np.float32)


def open_session(model: onnx.ModelProto) -> Any:
    """A session that runs a graph in onnxruntime on the CPU."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=UNWANTED_OPTIMIZERS
    )


def as_input(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    """The image in the type that the graph takes."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)
    return image.astype(dtype, copy=False)


def input_tensors(model: ir.Model, convolutions: Sequence[str]) -> dict[str, str]:
    """The name of the tensor that each of these convolutions takes, by the convolution's name."""
    wanted = set(convolutions)
    found: dict[str, str] = {}
    for node in model.graph:
        if node.op_type == "Conv" and node.name in wanted:
            assert node.inputs[0] is not None and node.inputs[0].name is not None
            found[str(node.name)] = node.inputs[0].name
    return found
