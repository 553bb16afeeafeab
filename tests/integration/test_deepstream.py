"""Real graphs with float32 pixels, and the parser of a folder for DeepStream on what they find in real pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Graph
from edge_effdet.backends.arithmetic import FULL_RANGE
from edge_effdet.backends.base import CompileOptions, LoadOptions
from edge_effdet.backends.onnxruntime import OnnxRuntimeRunner
from edge_effdet.backends.tensorrt import rtx as tensorrt_rtx
from edge_effdet.deploying.deepstream import DeepStreamOptions, write_deepstream
from edge_effdet.graph.export import ExportOptions, export_network, load_source
from edge_effdet.graph.float_input import write_float_input
from edge_effdet.graph.model import load_graph
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.golden import draw_pictures
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.preprocess import images_to_batch, letterbox
from tests.deepstream import Frame, assert_same, build_parser, compiler, expected_objects
from tests.integration.conftest import BCCD_CHECKPOINT, quantize_quickly
from tests.records import make_record

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no g++ or make")


@pytest.fixture(scope="session")
def tensorrt_graph(bccd_graph, bccd_part, make_graph) -> Graph:
    """INT8 as it is made for TensorRT: the rest in FP16, and weight codes up to 127."""
    return make_graph(
        "bccd.tensorrt",
        lambda path: quantize_quickly(bccd_graph, bccd_part, path, high_precision="fp16", weight_codes=FULL_RANGE),
    )


@pytest.fixture(scope="module")
def pictures(bccd) -> list[np.ndarray]:
    """Photographs of blood cells, 480 x 640."""
    stems = (bccd / "ImageSets" / "Main" / "test.txt").read_text().split()[:12]
    return [read_image(bccd / "JPEGImages" / f"{stem}.jpg") for stem in stems]


def run_graph(graph: Graph, pixels: np.ndarray) -> dict[str, np.ndarray]:
    with OnnxRuntimeRunner(graph.path, LoadOptions()) as runner:
        assert runner.inputs[0].dtype == pixels.dtype
        return dict(runner.run({"images": pixels}))


def assert_same_bits(graph: Graph, changed: Graph, pixels: np.ndarray) -> None:
    before, after = run_graph(graph, pixels), run_graph(changed, pixels.astype(np.float32))
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert array.tobytes() == after[name].tobytes(), name


@pytest.mark.data
@pytest.mark.parametrize("name", ["bccd_graph", "bccd_half_graph", "bccd_int8_graph", "tensorrt_graph"])
def test_float_pixels_change_no_bit_in_any_precision(name, request, pictures, tmp_path):
    graph = request.getfixturevalue(name)
    changed = write_float_input(graph, tmp_path / "float.onnx")
    assert (changed.precision, changed.parents["graph"]) == (graph.precision, graph.sha256)
    spec = graph.spec
    for picture in pictures[:3]:
        canvas, _ = letterbox(picture, spec.image_size, spec.preprocess)
        assert_same_bits(graph, changed, images_to_batch([canvas]))


def test_float_pixels_change_no_bit_in_drawn_pictures(bccd_graph, tmp_path):
    changed = write_float_input(bccd_graph, tmp_path / "float.onnx")
    for picture in draw_pictures(bccd_graph.spec.image_size, 2):
        assert_same_bits(bccd_graph, changed, images_to_batch([picture]))


@pytest.mark.data
def test_tensorrt_rtx_builds_the_graph_with_float_pixels(tensorrt_graph, tmp_path):
    """Nothing here runs it, but the network is as strongly typed as TensorRT's."""
    changed = write_float_input(tensorrt_graph, tmp_path / "float.onnx")
    compiled = tensorrt_rtx.compile(changed, CompileOptions())
    usual = tensorrt_rtx.compile(tensorrt_graph, CompileOptions())
    assert compiled.account is not None and usual.account is not None
    assert compiled.account.precisions == usual.account.precisions


def write_folder(graph: Graph, folder: Path, frame: tuple[int, int]) -> Path:
    record = make_record(engine="bccd.onnx", spec=graph.spec, precision=graph.precision)
    options = DeepStreamOptions(frame_width=frame[0], frame_height=frame[1])
    return write_deepstream(graph, record, folder, options)


@needs_compiler
@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("bccd_graph", 0.05),
        ("tensorrt_graph", 0.3),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in (("bccd_graph", 0.3), ("tensorrt_graph", 0.05))),
    ],
)
def test_the_parser_finds_what_the_detector_finds(name, threshold, request, pictures, tmp_path):
    graph = request.getfixturevalue(name)
    spec = graph.spec
    folder = write_folder(graph, tmp_path / "ds", (640, 480))
    parser = build_parser(folder, (640, 480))
    changed = load_graph(folder / f"bccd.{graph.precision}.onnx")
    outputs = []
    with OnnxRuntimeRunner(changed.path, LoadOptions()) as runner:
        for picture in pictures:
            canvas, _ = letterbox(picture, spec.image_size, spec.preprocess)
            found = runner.run({"images": images_to_batch([canvas]).astype(np.float32)})
            outputs.append({name: array[0] for name, array in found.items()})
    thresholds = [threshold] * spec.num_classes
    objects, told = parser([Frame.of(each, spec.image_size, thresholds) for each in outputs])
    assert told == ""
    for own, each in zip(objects, outputs, strict=True):
        assert_same(own, expected_objects(each, (480, 640), spec.image_size, threshold))
    assert sum(len(own.scores) for own in objects) > 100
    # And end to end, against the detector with the graph of bytes, in pixels of the photograph as nvinfer scales them.
    scale = spec.image_size[1] / 640
    with (
        OnnxRuntimeRunner(graph.path, LoadOptions()) as runner,
        Detector(runner, spec, DetectOptions(threshold)) as detector,
    ):
        for own, picture in zip(objects, pictures, strict=True):
            expected = detector(picture)
            solid = (expected.boxes[:, 2:] > expected.boxes[:, :2]).all(axis=1)
            assert own.class_ids.tolist() == expected.class_ids[solid].tolist()
            assert own.scores.tolist() == expected.scores[solid].tolist()
            corners = np.concatenate([own.boxes[:, :2], own.boxes[:, :2] + own.boxes[:, 2:]], axis=1) / scale
            np.testing.assert_allclose(corners, expected.boxes[solid], atol=1e-3)


@pytest.mark.slow
@needs_compiler
def test_a_dynamic_batch(tmp_path):
    network, spec, parents = load_source(BCCD_CHECKPOINT, None)
    graph = export_network(network, spec, parents, tmp_path / "x.onnx", ExportOptions(batch_size=0)).graph
    record = make_record(engine="bccd.onnx", spec=spec)
    folder = write_deepstream(graph, record, tmp_path / "ds", DeepStreamOptions(streams=4))
    changed = load_graph(folder / "bccd.fp32.onnx")
    pixels = images_to_batch(draw_pictures(spec.image_size, 3))
    assert_same_bits(graph, changed, pixels)
    # Each picture of a batch is a call of its own.
    outputs = run_graph(changed, pixels.astype(np.float32))
    frames = [
        Frame.of({name: array[row] for name, array in outputs.items()}, spec.image_size, [0.01] * spec.num_classes)
        for row in range(3)
    ]
    objects, told = build_parser(folder)(frames)
    assert told == ""
    for row, own in enumerate(objects):
        each = {name: array[row] for name, array in outputs.items()}
        assert_same(own, expected_objects(each, spec.image_size, spec.image_size, 0.01))
    assert sum(len(own.scores) for own in objects)
