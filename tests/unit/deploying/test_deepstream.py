"""The folder for DeepStream, and the parser in it, which a program calls as nvinfer does. nvinfer itself is not here."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Graph, ModelSpec, file_sha256
from edge_effdet.deploying.deepstream import DeepStreamOptions, labels_for_nvinfer, write_deepstream
from edge_effdet.errors import BundleError, EngineError, GraphError, UsageError
from edge_effdet.graph.float_input import RULE, write_float_input
from edge_effdet.graph.model import load_graph, save_graph
from edge_effdet.runtime.postprocess import detections_from_outputs
from tests.deepstream import HALF, INT32, Frame, Layer, assert_same, build_parser, compiler, expected_objects
from tests.records import make_record

SIZE = (64, 96)
SPEC = ModelSpec("tiny", SIZE, ("a", "b", "c"), (1, 2, 3))
RECORD = make_record(engine="tiny.fp32.onnx", spec=SPEC)

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no g++ or make")


def write_graph(path: Path, batch=1, kind=TensorProto.UINT8, outputs=("boxes", "scores", "class_ids")) -> Graph:
    """A graph that shows in its outputs which pixels it got: per column of the picture their sum over channels and rows."""
    columns = SIZE[1]
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], name="cast_pixels", to=TensorProto.FLOAT),
        helper.make_node("Add", ["pixels", "shift"], ["centered"], name="center"),
        helper.make_node("ReduceSum", ["centered", "sides"], ["sums"], name="sum", keepdims=0),
        helper.make_node("Sigmoid", ["sums"], [outputs[1]], name="squash"),
        helper.make_node("Cast", ["sums"], [outputs[2]], name="ids", to=TensorProto.INT32),
        helper.make_node("Unsqueeze", ["sums", "last"], ["column"], name="widen"),
        helper.make_node("Concat", ["column"] * 4, [outputs[0]], name="four", axis=2),
    ]
    weights = {"shift": np.float32([[[[-0.25]]]]), "sides": np.int64([1, 2]), "last": np.int64([2])}
    axis = batch or "batch"
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", kind, [axis, 3, *SIZE])],
        [
            helper.make_tensor_value_info(outputs[0], TensorProto.FLOAT, [axis, columns, 4]),
            helper.make_tensor_value_info(outputs[1], TensorProto.FLOAT, [axis, columns]),
            helper.make_tensor_value_info(outputs[2], TensorProto.INT32, [axis, columns]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    parents = {"checkpoint": "cd" * 32, "graph": "ef" * 32}
    return save_graph(model, path, spec=SPEC, stage="quantized", precision="fp32", rewrites={"x": 2}, parents=parents)


@pytest.fixture
def graph(tmp_path) -> Graph:
    return write_graph(tmp_path / "tiny.onnx")


def run(path: Path, pixels: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": pixels})


def pixels_of(seed: int, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (batch, 3, *SIZE), np.uint8)


@pytest.mark.parametrize("batch", [1, 0])
def test_float_pixels_give_the_same_bits(tmp_path, batch):
    graph = write_graph(tmp_path / "tiny.onnx", batch)
    changed = write_float_input(graph, tmp_path / "float.onnx")
    pixels = pixels_of(0, batch=batch or 3)
    for before, after in zip(run(graph.path, pixels), run(changed.path, pixels.astype(np.float32)), strict=True):
        assert before.tobytes() == after.tobytes() and before.dtype == after.dtype
    model = onnx.load(changed.path)
    assert model.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert [node.op_type for node in model.graph.node].count("Cast") == 1
    # It says what it was made from, and keeps the rest.
    assert changed == load_graph(changed.path)
    assert changed.parents == {"checkpoint": "cd" * 32, "graph": graph.sha256}
    assert changed.rewrites == {"x": 2, RULE: 1}
    assert (changed.spec, changed.stage, changed.precision) == (SPEC, "quantized", "fp32")
    again = write_float_input(changed, tmp_path / "again.onnx")
    assert again.rewrites[RULE] == 0
    assert onnx.load(again.path).graph == model.graph


def test_a_graph_that_uses_its_bytes_otherwise_is_refused(graph, tmp_path):
    model = onnx.load(graph.path)
    model.graph.node.append(helper.make_node("Cast", ["images"], ["half"], name="other", to=TensorProto.FLOAT16))
    other = tmp_path / "other.onnx"
    onnx.save(model, other)
    with pytest.raises(GraphError, match="uses its input images before it is cast from uint8 to float32"):
        write_float_input(load_graph(other), tmp_path / "float.onnx")
    assert not (tmp_path / "float.onnx").exists()
    bytes_of_sign = write_graph(tmp_path / "int8.onnx", kind=TensorProto.INT8)
    with pytest.raises(GraphError, match="cannot take float32 instead"):
        write_float_input(bytes_of_sign, tmp_path / "float.onnx")


def read_config(folder: Path) -> configparser.ConfigParser:
    # GLib's key files know no comments behind a value.
    config = configparser.ConfigParser(comment_prefixes=("#",), inline_comment_prefixes=None, delimiters=("=",))
    config.optionxform = str
    config.read(folder / "config_infer_primary.txt", encoding="utf-8")
    return config


KEYS = {
    "gie-unique-id", "process-mode", "network-type", "gpu-id", "model-engine-file", "network-mode", "batch-size", "infer-dims",
    "network-input-order", "output-blob-names", "net-scale-factor", "model-color-format", "maintain-aspect-ratio", "symmetric-padding",
    "scaling-filter", "num-detected-classes", "labelfile-path", "custom-lib-path", "parse-bbox-func-name", "cluster-mode",
    "crop-objects-to-roi-boundary",
}  # fmt: skip
"""Keys that ``gstnvinfer_property_parser.h`` of DeepStream 9.1 knows. nvinfer only warns of one that is misspelled, and goes on without it."""


def test_what_is_in_the_folder(graph, tmp_path):
    folder = write_deepstream(graph, RECORD, tmp_path / "out" / "ds")
    assert folder == tmp_path / "out" / "ds"
    assert sorted(path.name for path in folder.iterdir()) == [
        "Makefile", "README.txt", "config_infer_primary.txt", "effdet_parser.cpp", "labels.txt", "record.json", "tiny.fp32.onnx",
    ]  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["ds"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    for path in folder.iterdir():
        if path.suffix != ".onnx":
            assert not re.search(r"@[A-Z_]+@", path.read_text(encoding="utf-8")), path.name
    kept = load_graph(folder / "tiny.fp32.onnx")
    assert kept.parents["graph"] == graph.sha256
    assert json.loads((folder / "record.json").read_text())["engine"] == "tiny.fp32.onnx"
    assert (folder / "labels.txt").read_text() == "a\nb\nc\n"


def test_the_configuration(graph, tmp_path):
    folder = write_deepstream(graph, RECORD, tmp_path / "ds", DeepStreamOptions(score_threshold=0.45))
    config = read_config(folder)
    assert config.sections() == ["property", "class-attrs-all"]
    known = dict(config["property"])
    assert set(known) == KEYS
    assert known["infer-dims"] == "3;64;96"
    assert known["num-detected-classes"] == "3"
    assert known["output-blob-names"].split(";") == ["boxes", "scores", "class_ids"]
    assert (known["maintain-aspect-ratio"], known["symmetric-padding"]) == ("1", "0")
    assert (known["net-scale-factor"], known["model-color-format"], known["cluster-mode"]) == ("1", "0", "4")
    assert known["crop-objects-to-roi-boundary"] == "1"
    # Another engine than the one that was built as it should be must never come about by itself.
    assert "onnx-file" not in known and known["model-engine-file"] == "tiny.fp32.engine"
    assert dict(config["class-attrs-all"]) == {"pre-cluster-threshold": "0.45"}
    for key in ("custom-lib-path", "labelfile-path"):
        assert "/" not in known[key]
    makefile = (folder / "Makefile").read_text()
    assert f"PARSER := {known['custom-lib-path']}\n" in makefile
    assert f"ENGINE := {known['model-engine-file']}\n" in makefile
    assert f"bool {known['parse-bbox-func-name']}(" in (folder / "effdet_parser.cpp").read_text()


def test_frames_that_differ_in_size(graph, tmp_path):
    options = DeepStreamOptions(frame_width=0, frame_height=0)
    folder = write_deepstream(graph, RECORD, tmp_path / "ds", options)
    assert "FRAME_WIDTH ?= 0\n" in (folder / "Makefile").read_text()
    readme = (folder / "README.txt").read_text()
    assert "frames of any size" in readme and "width=0" not in readme
    usual = write_deepstream(graph, RECORD, tmp_path / "usual", DeepStreamOptions(frame_width=1280, frame_height=720))
    assert "FRAME_WIDTH ?= 1280\nFRAME_HEIGHT ?= 720\n" in (usual / "Makefile").read_text()
    assert (usual / "README.txt").read_text().count("width=1280 height=720") == 3


def dry_run(folder: Path, goal: str) -> str:
    done = subprocess.run(["make", "-n", "-C", str(folder), goal], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_compiler
def test_the_engine_is_built_strongly_typed(tmp_path):
    graph = write_graph(tmp_path / "tiny.onnx", batch=0)
    folder = write_deepstream(graph, RECORD, tmp_path / "ds", DeepStreamOptions(streams=4))
    expected = (
        "/usr/src/tensorrt/bin/trtexec --onnx=tiny.fp32.onnx --saveEngine=tiny.fp32.engine --stronglyTyped --skipInference "
        "--minShapes=images:1x3x64x96 --optShapes=images:4x3x64x96 --maxShapes=images:4x3x64x96"
    )
    assert expected in dry_run(folder, "engine")
    assert expected in (folder / "README.txt").read_text()
    assert read_config(folder)["property"]["batch-size"] == "4"
    still = write_deepstream(write_graph(tmp_path / "one.onnx"), RECORD, tmp_path / "one")
    assert "Shapes" not in dry_run(still, "engine")


@needs_compiler
def test_make_runs_trtexec_and_leaves_no_half_engine(graph, tmp_path):
    folder = write_deepstream(graph, RECORD, tmp_path / "with a space")
    # It takes the place of the program that only a device has, and writes what it was told.
    trtexec = tmp_path / "trtexec"
    trtexec.write_text(
        '#!/bin/sh\nfor each in "$@"; do case $each in --saveEngine=*) echo "$@" > "${each#*=}";; esac; done\nexit $CODE\n'
    )
    trtexec.chmod(0o755)

    def build(code: int) -> int:
        command = ["make", "-C", str(folder), "engine", f"TRTEXEC={trtexec}"]
        return subprocess.run(command, capture_output=True, env={**os.environ, "CODE": str(code)}).returncode

    assert build(1) != 0
    assert not (folder / "tiny.fp32.engine").exists()
    assert build(0) == 0
    told = (folder / "tiny.fp32.engine").read_text().split()
    assert told == ["--onnx=tiny.fp32.onnx", "--saveEngine=tiny.fp32.engine", "--stronglyTyped", "--skipInference"]


def test_what_does_not_fit_is_refused(graph, tmp_path):
    with pytest.raises(UsageError, match="takes batches of 1 and `streams` is 2; make the graph with `batch_size` 0"):
        write_deepstream(graph, RECORD, tmp_path / "ds", DeepStreamOptions(streams=2))
    with pytest.raises(UsageError, match="suppresses boxes inside, and here the parser does"):
        write_deepstream(graph, make_record(engine="x.engine", nms="efficientnms"), tmp_path / "ds")
    raw = write_graph(tmp_path / "raw.onnx", outputs=("classes_p3", "boxes_p3", "ids"))
    with pytest.raises(GraphError, match="export it without `raw`"):
        write_deepstream(raw, RECORD, tmp_path / "ds")
    with pytest.raises(BundleError, match="cannot be the name"):
        write_deepstream(graph, make_record(engine="my model.onnx"), tmp_path / "ds")
    assert not (tmp_path / "ds").exists()
    assert not list(tmp_path.glob(".*"))


def test_nothing_is_written_over(graph, tmp_path):
    write_deepstream(graph, RECORD, tmp_path / "ds")
    before = {path: file_sha256(path) for path in (tmp_path / "ds").iterdir()}
    with pytest.raises(UsageError, match="is there already, and nothing is written over it"):
        write_deepstream(graph, RECORD, tmp_path / "ds")
    assert {path: file_sha256(path) for path in (tmp_path / "ds").iterdir()} == before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"frame_width": 0}, "Frames of 0 x 1080"),
        ({"frame_width": -1}, "Frames of -1 x 1080"),
        ({"streams": 0}, "`streams` 0 is not between 1 and 1024"),
        ({"streams": 1025}, "nvinfer's limit"),
        ({"score_threshold": 1.5}, "not between 0 and 1"),
        ({"score_threshold": float("nan")}, "not between 0 and 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, reason):
    with pytest.raises(UsageError, match=reason):
        DeepStreamOptions(**changes)


def parse_labels(text: str) -> list[list[str]]:
    """As ``InferPostprocessor::parseLabelsFile`` of nvinfer does it."""
    return [line.split(";") for line in text.split("\n") if line]


def test_each_class_keeps_its_label():
    names = ("plain", "with; semicolons;", "", "two\nlines\r\n", " ", "Zelle ü")
    labels = labels_for_nvinfer(names)
    assert labels == ["plain", "with, semicolons,", "class 2", "two lines", "class 4", "Zelle ü"]
    assert parse_labels("".join(f"{label}\n" for label in labels)) == [[label] for label in labels]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("deepstream")
    return write_deepstream(write_graph(root / "tiny.onnx"), RECORD, root / "ds")


@pytest.fixture(scope="module")
def parser(folder):
    return build_parser(folder)


def make_outputs(seed: int, count: int = 60) -> dict[str, np.ndarray]:
    """Boxes in heaps, a third of which reaches beyond the picture, with scores of which some are the same."""
    rng = np.random.default_rng(seed)
    centers = rng.uniform(-10, 110, (6, 2))[rng.integers(0, 6, count)] + rng.normal(0, 4, (count, 2))
    sides = rng.uniform(0, 40, (count, 2))
    boxes = np.concatenate([centers - sides / 2, centers + sides / 2], axis=1).astype(np.float32)
    scores = np.sort(rng.integers(0, 40, count).astype(np.float32) / 40)[::-1].copy()
    return {"boxes": boxes, "scores": scores, "class_ids": rng.integers(0, 3, count).astype(np.int32)}


@needs_compiler
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.0, 0.3, 0.5]))
def test_the_parser_finds_what_the_runtime_finds(parser, seed, threshold):
    cases = [make_outputs(seed + number, count) for number, count in enumerate((0, 1, 7, 60, 300))]
    found, told = parser([Frame.of(outputs, SIZE, [threshold] * 3) for outputs in cases])
    assert told == ""
    for objects, outputs in zip(found, cases, strict=True):
        assert_same(objects, expected_objects(outputs, SIZE, SIZE, threshold))


@needs_compiler
@pytest.mark.parametrize("original", [(480, 640), (1080, 1920), (1000, 333), (7, 5)])
def test_boxes_are_clipped_to_the_picture(folder, original):
    parser = build_parser(folder, (original[1], original[0]))
    cases = [make_outputs(seed, 100) for seed in range(20)]
    found, told = parser([Frame.of(outputs, SIZE, [0.1] * 3) for outputs in cases])
    assert told == ""
    for objects, outputs in zip(found, cases, strict=True):
        assert_same(objects, expected_objects(outputs, original, SIZE, 0.1))
    assert sum(len(objects.scores) for objects in found) > 100


@needs_compiler
def test_it_compiles_for_deepstream_before_9(folder):
    parser = build_parser(folder, (0, 0), "-DBEFORE_ROTATION")
    outputs = make_outputs(5)
    ((objects,), _) = parser([Frame.of(outputs, SIZE, [0.3] * 3)])
    assert_same(objects, expected_objects(outputs, SIZE, SIZE, 0.3))


@needs_compiler
def test_each_class_has_a_threshold_of_its_own(parser):
    outputs = make_outputs(1)
    thresholds = (0.2, 0.9, 0.5)
    ((objects,), _) = parser([Frame.of(outputs, SIZE, thresholds)])
    enough = outputs["scores"] >= np.array(thresholds, np.float32)[outputs["class_ids"]]
    assert_same(objects, expected_objects({name: array[enough] for name, array in outputs.items()}, SIZE, SIZE, 0.0))
    assert len(objects.scores)


@needs_compiler
def test_no_more_than_a_hundred(parser):
    count = 3840
    corners = np.stack([np.arange(count) % 95, np.arange(count) // 95 % 63], axis=1).astype(np.float32)
    boxes = np.concatenate([corners, corners + np.float32(0.5)], axis=1)
    outputs = {"boxes": boxes, "scores": np.full(count, 0.5, np.float32), "class_ids": np.zeros(count, np.int32)}
    ((objects,), _) = parser([Frame.of(outputs, SIZE, [0.3] * 3)])
    assert_same(objects, expected_objects(outputs, SIZE, SIZE, 0.3))
    assert len(objects.scores) == 100


def break_box(outputs, value):
    outputs["boxes"].flat[-1] = value


def break_score(outputs, value):
    outputs["scores"][-1] = value


def invert(outputs, _):
    outputs["boxes"][-1] = [50, 10, 20, 30]


def take_class_away(outputs, value):
    outputs["class_ids"][7] = value


@needs_compiler
@pytest.mark.parametrize(
    ("spoil", "value"),
    [
        *((break_box, value) for value in (np.nan, np.inf, -np.inf)),
        *((break_score, value) for value in (np.nan, np.inf, 1.01)),
        (invert, None),
        *((take_class_away, value) for value in (-1, -(2**31))),
    ],
)
def test_numbers_that_are_no_boxes_give_no_object_and_a_message(parser, spoil, value):
    good, bad = make_outputs(2), make_outputs(2)
    spoil(bad, value)
    frames = [Frame.of(outputs, SIZE, [0.0] * 3) for outputs in (bad, good, bad)]
    (first, second, third), told = parser(frames)
    assert (first.understood, len(first.scores), third.understood, len(third.scores)) == (True, 0, True, 0)
    assert len(second.scores)
    assert told.count("numbers that are no boxes") == 1
    # The runtime refuses them too.
    with pytest.raises(EngineError):
        detections_from_outputs(*bad.values(), SIZE, SIZE, num_classes=3)


@needs_compiler
def test_rows_that_an_engine_leaves_empty_are_none(parser):
    outputs = make_outputs(6)
    for name, value in (("boxes", 0), ("scores", -1), ("class_ids", -1)):
        outputs[name][40:] = value
    ((objects,), told) = parser([Frame.of(outputs, SIZE, [0.0] * 3)])
    assert told == ""
    assert_same(objects, expected_objects(outputs, SIZE, SIZE, 0.0))


@needs_compiler
def test_huge_boxes_and_other_classes(parser):
    outputs = make_outputs(3)
    outputs["boxes"][::3] *= np.float32(1e30)
    outputs["boxes"][::3].sort(axis=1)
    outputs["boxes"][1::9] = np.float32([-1, -1, 1, 1]) * np.finfo(np.float32).max
    outputs["class_ids"][::4] = [3, 2**31 - 1, 91] * 5
    ((objects,), told) = parser([Frame.of(outputs, SIZE, [0.0] * 3)])
    assert objects.understood and told == ""
    assert (objects.boxes >= 0).all() and (objects.boxes[:, 2:] > 0).all()
    assert (objects.boxes[:, 0] + objects.boxes[:, 2] <= SIZE[1]).all()
    known = outputs["class_ids"] < 3
    assert_same(objects, expected_objects({name: array[known] for name, array in outputs.items()}, SIZE, SIZE, 0.0))
    assert len(objects.scores)


@needs_compiler
def test_fewer_classes_may_be_configured(parser):
    outputs = make_outputs(4)
    ((objects,), _) = parser([Frame.of(outputs, SIZE, [0.0])])
    assert set(objects.class_ids.tolist()) == {0}


FRAME = Frame.of(make_outputs(0), SIZE, [0.0] * 3)
HALVES = make_outputs(0)["scores"].astype(np.float16)


@needs_compiler
@pytest.mark.parametrize(
    "frame",
    [
        Frame(FRAME.layers[:2], SIZE, FRAME.thresholds),
        Frame(FRAME.layers[1:], SIZE, FRAME.thresholds),
        Frame((), SIZE, FRAME.thresholds),
        FRAME.replaced("boxes", name=""),
        FRAME.replaced("scores", name="score"),
        FRAME.replaced("scores", array=None),
        FRAME.replaced("scores", array=HALVES, kind=HALF),
        FRAME.replaced("boxes", kind=INT32),
        FRAME.replaced("class_ids", kind=0),
        FRAME.replaced("boxes", dims=(240,)),
        FRAME.replaced("boxes", dims=(4, 60)),
        FRAME.replaced("boxes", dims=(60, 3)),
        FRAME.replaced("boxes", dims=(61, 4)),
        FRAME.replaced("boxes", dims=(1, 60, 4)),
        FRAME.replaced("scores", dims=()),
        FRAME.replaced("scores", dims=(2**32 - 1,)),
        FRAME.replaced("class_ids", dims=(59,)),
        Frame(FRAME.layers, (0, 96), FRAME.thresholds),
        Frame(FRAME.layers, (64, 0), FRAME.thresholds),
        Frame(FRAME.layers, SIZE, FRAME.thresholds, classes=4),
        Frame(FRAME.layers, SIZE, (), classes=3),
    ],
)
def test_other_outputs_are_refused(parser, frame):
    (refused, taken), told = parser([frame, FRAME])
    assert (refused.understood, len(refused.scores)) == (False, 0)
    assert taken.understood and len(taken.scores)
    assert told.startswith("edge_effdet: ") and told.count("\n") == 1


@needs_compiler
def test_the_sanitizers_would_see_an_access_beyond_a_tensor(folder, tmp_path):
    """All layers agree on more candidates than there are, which the parser cannot know."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy", symlinks=True))
    parser = build_parser(copy)
    lying = FRAME.replaced("boxes", dims=(90, 4)).replaced("scores", dims=(90,)).replaced("class_ids", dims=(90,))
    with pytest.raises(AssertionError, match="heap-buffer-overflow"):
        parser([lying])


def test_a_layer_is_described_as_nvinfer_does_it():
    layer = Layer.of("boxes", np.zeros((2, 4), np.float32))
    assert (layer.kind, layer.dims) == (0, (2, 4))
