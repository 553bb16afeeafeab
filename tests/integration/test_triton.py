"""A model repository on a real tritonserver: what it answers is what ``Detector`` finds, in whatever company and whatever else goes wrong.

Needs the folder that ``tests/triton_install.sh`` makes. Without it these tests are skipped; with ``EDGE_EFFDET_REQUIRE_TRITON=1`` they fail.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from edge_effdet.artifacts import Detections, Engine, Graph, file_sha256, load_engine
from edge_effdet.artifacts.record import Fingerprint
from edge_effdet.backends.base import CompileOptions
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.building.engine import compile_engine
from edge_effdet.deploying.triton import write_triton_repository
from edge_effdet.deploying.triton_config import TritonOptions
from edge_effdet.graph.model import save_graph
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.golden import draw_pictures, encode_picture, make_golden
from edge_effdet.serving.protocol import pack_detections
from tests.backends import BrightBoxRunner
from tests.emulation.small_detector import GRID, SIZE, make_pictures, write_small_detector
from tests.once import make_once
from tests.records import write_record
from tests.triton import Answer, TritonInstallation, TritonServer, run_client, running_server

CLIENTS = 8
STAND_IN = Path(__file__).parents[1] / "triton_stand_in.py"


@pytest.fixture(scope="session")
def installation() -> TritonInstallation:
    found = TritonInstallation.find()
    if found is None:
        reason = "no tritonserver; run tests/triton_install.sh"
        if os.environ.get("EDGE_EFFDET_REQUIRE_TRITON") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return found


@pytest.fixture(scope="session")
def cells_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The small detector of ``tests/emulation``, which finds something in each cell of a grid, with a dynamic batch; its graph is beside it."""
    return write_cells_engine(tmp_path_factory, "cells", biased=True)


@pytest.fixture(scope="session")
def other_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Another detector of that kind, which finds other scores."""
    return write_cells_engine(tmp_path_factory, "others", biased=False)


def write_cells_engine(factory: pytest.TempPathFactory, name: str, biased: bool) -> Engine:
    def write(folder: Path) -> None:
        fixed = write_small_detector(folder / "fixed.onnx", 7, biased)
        graph = with_dynamic_batch(fixed, folder / "graphs" / f"{name}.onnx")
        engine = compile_engine(graph, "onnxruntime", CompileOptions(), folder / f"{name}.int8.onnx")
        record = engine.require_record()
        write_record(
            replace(engine, record=replace(record, parents={**record.parents, "compiled_graph": graph.sha256}))
        )

    return load_engine(make_once(factory, f"{name}_engine", write) / f"{name}.int8.onnx")


def with_dynamic_batch(graph: Graph, path: Path) -> Graph:
    model = onnx.load(str(graph.path))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]
    model.graph.output.remove(next(each for each in model.graph.output if each.name == "features"))
    arrays = {each.name: each for each in model.graph.initializer}
    arrays["flat"].CopyFrom(numpy_helper.from_array(np.array([-1, GRID * GRID]), "flat"))
    nodes = [node for node in model.graph.node if node.op_type != "Identity"]
    nodes.append(helper.make_node("Shape", ["images"], ["batch_"], name="batch_", start=0, end=1))
    for name, rest in (("boxes", [GRID * GRID, 4]), ("class_ids", [GRID * GRID])):
        model.graph.initializer.append(numpy_helper.from_array(np.array(rest), f"{name}_rest"))
        nodes.append(
            helper.make_node("Concat", ["batch_", f"{name}_rest"], [f"{name}_shape"], name=f"{name}_shape", axis=0)
        )
        nodes.append(helper.make_node("Expand", [f"{name}_", f"{name}_shape"], [name], name=name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path.parent.mkdir()
    model = onnx.shape_inference.infer_shapes(model)
    return save_graph(model, path, spec=graph.spec, stage="quantized", precision="int8", rewrites={}, parents={})


@pytest.fixture(scope="session")
def pictures() -> list[bytes]:
    """Files of several sizes and formats."""
    found = [encode_picture(picture) for picture in make_pictures(6)]
    for size, kind in (((300, 200), "PNG"), ((90, 400), "JPEG"), ((33, 17), "BMP"), ((64, 64), "PNG")):
        stream = io.BytesIO()
        Image.fromarray(make_pictures(1)[0]).resize(size).convert("L" if kind == "BMP" else "RGB").save(stream, kind)
        found.append(stream.getvalue())
    return found


@dataclass(frozen=True, slots=True)
class Served:
    """A server, and the repository that it was started on."""

    server: TritonServer
    repository: Path
    home: Path


@pytest.fixture(scope="module")
def served(
    installation: TritonInstallation, cells_engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """One server for the module; no model is loaded."""
    repository, home = tmp_path_factory.mktemp("repository"), tmp_path_factory.mktemp("server")
    options = TritonOptions(queue_delay_ms=20.0)
    (wheel,) = (write_triton_repository(cells_engine, repository, options, "first") / "environment").glob("*.whl")
    venv = installation.make_venv(home / "venv", wheel)
    # The configs are complete; to complete them Triton would start each model of Python once more.
    with running_server(installation, repository, home, venv, "--disable-auto-complete-config") as server:
        yield Served(server, repository, home)


@pytest.fixture
def serve(served: Served, cells_engine: Engine, request: pytest.FixtureRequest) -> Iterator[Callable[..., str]]:
    """``serve(engine, **options)``: the name of a model of the test's own, which is loaded; it is unloaded after the test."""
    name = request.node.name.replace("[", ".").replace("]", "").removeprefix("test_")[:60]

    def make(engine: Engine = cells_engine, load: bool = True, **options: object) -> str:
        write_triton_repository(engine, served.repository, TritonOptions(**{"queue_delay_ms": 20.0, **options}), name)
        if load:
            served.server.load(name)
        return name

    yield make
    served.server.unload(name)


def detect(engine: Engine, pictures: list[bytes], **options: object) -> list[Detections]:
    with Detector.load(engine, options=DetectOptions(**options)) as detector:
        return detector(pictures)


def assert_same(answer: Answer, found: list[Detections]) -> None:
    assert not answer.error
    assert answer.outputs is not None
    expected = pack_detections(found)
    assert set(answer.outputs) == set(expected)
    for name, array in expected.items():
        given = answer.outputs[name]
        assert given.dtype == array.dtype, name
        np.testing.assert_array_equal(given, array, name)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_it_answers_what_a_detector_finds(served, serve, cells_engine, pictures, protocol):
    answers = served.server.infer(serve(), pictures, protocol)
    expected = detect(cells_engine, pictures)
    assert sum(len(found) for found in expected) > 100
    for answer, found in zip(answers, expected, strict=True):
        assert_same(answer, [found])


def test_a_real_network(served, serve, bccd_engine):
    """EfficientDet-Lite0 of the BCCD data set, with a low threshold, since the pictures are drawn."""
    drawn = [encode_picture(picture) for picture in draw_pictures((240, 320), 6)]
    answers = served.server.infer(serve(bccd_engine, score_threshold=0.02), drawn, clients=3)
    expected = detect(bccd_engine, drawn, score_threshold=0.02)
    assert sum(len(found) for found in expected) > 10
    for answer, found in zip(answers, expected, strict=True):
        assert_same(answer, [found])


@pytest.mark.parametrize(("protocol", "run_batch"), [("http", 0), ("grpc", 0), ("http", 4)])
def test_eight_clients_at_once(served, serve, cells_engine, pictures, protocol, run_batch):
    name = serve(run_batch=run_batch)
    many = pictures * 12
    answers = served.server.infer(name, many, protocol, clients=CLIENTS)
    expected = detect(cells_engine, pictures) * 12
    for answer, found in zip(answers, expected, strict=True):
        assert_same(answer, [found])
    batches = served.server.batches(name)
    assert sum(size * count for size, count in batches.items()) == len(many)
    assert max(batches) > 1, "no two requests were ever put together"
    assert max(batches) <= 8


def test_several_pictures_in_one_request(served, serve, cells_engine, pictures):
    """What is found of one is padded to the number of what is found of the other."""
    (answer,) = served.server.infer(serve(score_threshold=0.55), [pictures[:4]])
    expected = detect(cells_engine, pictures[:4], score_threshold=0.55)
    assert len({len(found) for found in expected}) > 1
    assert_same(answer, expected)


def test_nothing_is_found(served, serve, pictures):
    for protocol in ("http", "grpc"):
        (answer,) = served.server.infer(serve(score_threshold=1.0), pictures[:1], protocol)
        assert not answer.error
        assert answer.outputs["COUNTS"].tolist() == [[0]]
        assert answer.outputs["BOXES"].shape == (1, 0, 4)
        assert answer.outputs["SCORES"].shape == (1, 0)


@pytest.mark.parametrize("run_batch", [0, 4])
def test_a_bad_picture_fails_its_own_request_alone(served, serve, cells_engine, pictures, run_batch):
    name = serve(run_batch=run_batch)
    bad = {
        3: (b"not a picture", "not an image"),
        7: (b"", "The picture is empty"),
        12: (pictures[0][:-200], "truncated"),
    }
    sent = [bad[number][0] if number in bad else pictures[number % len(pictures)] for number in range(24)]
    answers = served.server.infer(name, sent, clients=CLIENTS)
    expected = detect(cells_engine, pictures)
    for number, answer in enumerate(answers):
        if number in bad:
            assert answer.outputs is None
            assert bad[number][1] in answer.error
            assert "Traceback" not in answer.error
        else:
            assert_same(answer, [expected[number % len(pictures)]])
    assert max(served.server.batches(name)) > 1


def test_a_bad_picture_among_others_of_its_request(served, serve, pictures):
    first, second = served.server.infer(serve(), [[pictures[0], b"", pictures[1]], pictures[:2]])
    assert "The picture is empty" in first.error
    assert not second.error


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_parameters_of_a_request(served, serve, cells_engine, pictures, protocol):
    name = serve()
    for given in ({"score_threshold": "0.55", "max_detections": 3}, {"score_threshold": 0.55, "max_detections": "2"}):
        answers = served.server.infer(name, pictures, protocol, parameters=given)
        typed = {key: (float if key == "score_threshold" else int)(value) for key, value in given.items()}
        for answer, found in zip(answers, detect(cells_engine, pictures, **typed), strict=True):
            assert_same(answer, [found])
    for given, said in (
        ({"score_threshold": "high"}, "score_threshold is 'high' and no number"),
        ({"score_threshold": "1.5"}, "score_threshold 1.5 is not between 0 and 1"),
        ({"max_detections": 0}, "max_detections 0 makes no sense"),
        ({"max_detections": "2.5"}, "no whole number"),
    ):
        (answer,) = served.server.infer(name, pictures[:1], protocol, parameters=given)
        assert said in answer.error
        assert "`" not in answer.error


def test_clients_learn_the_classes(served, serve):
    parameters = served.server.ask(f"/v2/models/{serve()}/config")["parameters"]
    assert json.loads(parameters["class_names"]["string_value"]) == ["thing"]
    assert json.loads(parameters["category_ids"]["string_value"]) == [1]


def test_unload_and_load_again(served, serve, cells_engine, pictures):
    name = serve()
    served.server.unload(name)
    (answer,) = served.server.infer(name, pictures[:1])
    assert answer.error
    served.server.load(name)
    (answer,) = served.server.infer(name, pictures[:1])
    assert_same(answer, detect(cells_engine, pictures[:1]))


def test_a_new_version_takes_the_place_of_the_one_before(served, serve, cells_engine, other_engine, pictures):
    name = serve()
    assert served.server.ask(f"/v2/models/{name}")["versions"] == ["1"]
    serve()
    assert served.server.ask(f"/v2/models/{name}")["versions"] == ["1"], "what did not change is no new version"
    serve(other_engine)
    assert served.server.ask(f"/v2/models/{name}")["versions"] == ["2"]
    (answer,) = served.server.infer(name, pictures[:1])
    (before,), (found,) = detect(cells_engine, pictures[:1]), detect(other_engine, pictures[:1])
    assert not np.array_equal(before.scores, found.scores)
    assert_same(answer, [found])
    # The version before is still there; it is what is loaded where the new one goes.
    shutil.rmtree(served.repository / name / "2")
    served.server.load(name)
    (answer,) = served.server.infer(name, pictures[:1])
    assert_same(answer, [before])


def test_a_changed_engine_is_refused(served, serve, cells_engine):
    name = serve(load=False)
    path = served.repository / name / "1" / cells_engine.path.name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match="its SHA-256 differs"):
        served.server.load(name)
    assert served.server.states(name) == {"UNAVAILABLE"}


def test_an_engine_without_its_json_is_refused(served, serve, cells_engine):
    name = serve(load=False)
    (served.repository / name / "1" / f"{cells_engine.path.name}.json").unlink()
    with pytest.raises(RuntimeError, match="has 0 engines with their JSON"):
        served.server.load(name)


def test_an_engine_that_finds_other_objects_here_is_refused(served, serve, cells_engine, tmp_path):
    """Its golden pictures were looked at on another kind of machine, where something else was found."""
    elsewhere = Fingerprint("onnxruntime", machine_fingerprint("onnxruntime").version, "x86", ("avx512_vnni",))
    golden = make_golden(BrightBoxRunner(SIZE), cells_engine.spec, make_pictures(), "pictures", "int8", elsewhere)
    path = Path(shutil.copy(cells_engine.path, tmp_path / "other.int8.onnx"))
    write_record(replace(cells_engine, path=path, record=replace(cells_engine.require_record(), golden=golden)))
    with pytest.raises(RuntimeError, match="finds other objects on this machine"):
        serve(load_engine(path))


def test_an_environment_of_its_own(installation, cells_engine, pictures, tmp_path):
    """A virtual environment that the config names, while the server's own Python has nothing of what the model imports."""
    options = TritonOptions(environment=str(tmp_path / "environment"))
    folder = write_triton_repository(cells_engine, tmp_path / "repository", options, "cells")
    (wheel,) = (folder / "environment").glob("*.whl")
    installation.make_venv(tmp_path / "environment", wheel)
    subprocess.run([installation.python, "-m", "venv", "--without-pip", str(tmp_path / "empty")], check=True)
    with running_server(installation, folder.parent, tmp_path, tmp_path / "empty") as server:
        server.load("cells")
        (answer,) = server.infer("cells", pictures[:1])
        assert_same(answer, detect(cells_engine, pictures[:1]))
        write_triton_repository(cells_engine, tmp_path / "repository", TritonOptions(), "without")
        with pytest.raises(RuntimeError, match="No module named"):
            server.load("without")


def test_another_numpy_than_that_of_the_backend_is_refused(installation, cells_engine, tmp_path):
    """Else the server would load the model, and its process would end at the first request. The tests' own NumPy is a newer one."""
    own = Path(np.__file__).parent
    version = subprocess.run([installation.python, "-V"], check=True, capture_output=True, text=True).stdout.split()[1]
    if version.split(".")[:2] != list(map(str, sys.version_info[:2])) or np.__version__.startswith("1."):
        pytest.skip("the NumPy of the tests is for another Python than the server's, or an old one")
    folder = write_triton_repository(cells_engine, tmp_path / "repository", TritonOptions(), "cells")
    venv = installation.make_venv(tmp_path / "venv", next((folder / "environment").glob("*.whl")))
    (packages,) = venv.glob("lib/python3.*/site-packages")
    for each in (own, own.with_name("numpy.libs")):
        (packages / each.name).symlink_to(each)
    refusal = pytest.raises(RuntimeError, match=f"does not work with NumPy {re.escape(np.__version__)}")
    with running_server(installation, folder.parent, tmp_path, venv) as server, refusal:
        server.load("cells")


@pytest.fixture(scope="session")
def plan(cells_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """An engine that says of itself that it is TensorRT's, with the graph that it was compiled from. Its content is no plan."""

    def write(folder: Path) -> None:
        (folder / "graphs").mkdir()
        shutil.copy(cells_engine.path.parent / "graphs" / "cells.onnx", folder / "graphs")
        path = folder / "cells.int8.plan"
        path.write_bytes(b"a plan")
        record = replace(
            cells_engine.require_record(), engine=path.name, engine_sha256=file_sha256(path), backend="tensorrt",
            backend_version="10.5.0", target="Orin (SM 8.7)",
        )  # fmt: skip
        write_record(Engine(path, record.spec, "tensorrt", "int8", record.engine_sha256, record))

    return load_engine(make_once(tmp_path_factory, "simulated_plan", write) / "cells.int8.plan")


def test_an_ensemble_answers_like_the_model_of_python(installation, served, cells_engine, plan, pictures):
    """No GPU is here, so a model of Python stands in for TensorRT between the other two: the ends and the ensemble are as they are written."""
    folder = write_triton_repository(plan, served.repository, TritonOptions(queue_delay_ms=20.0, score_threshold=0.4))
    name, middle = folder.name, served.repository / f"{folder.name}_engine"
    text = (middle / "config.pbtxt").read_text()
    stood_in = text.replace('platform: "tensorrt_plan"\ndefault_model_filename: "model.plan"', 'backend: "python"')
    stood_in = stood_in.replace('kind: KIND_GPU count: 1 profile: [ "0", "1" ]', "kind: KIND_CPU count: 1")
    assert stood_in.count("python") == 1
    assert "KIND_GPU" not in stood_in
    (middle / "config.pbtxt").write_text(stood_in)
    shutil.copy(STAND_IN, middle / "1" / "model.py")
    shutil.copy(cells_engine.path, middle / "1" / "model.onnx")
    served.server.load(name)
    try:
        expected = detect(cells_engine, pictures, score_threshold=0.4)
        for protocol in ("http", "grpc"):
            answers = served.server.infer(name, pictures * 4, protocol, clients=CLIENTS)
            for answer, found in zip(answers, expected * 4, strict=True):
                assert_same(answer, [found])
        assert max(served.server.batches(f"{name}_engine")) > 1
        bad = served.server.infer(name, [pictures[0], b"", pictures[1]], clients=3)
        assert [bool(answer.error) for answer in bad] == [False, True, False]
        assert "The picture is empty" in bad[1].error
        (answer,) = served.server.infer(name, [pictures[:3]], parameters={"max_detections": 2})
        assert_same(answer, detect(cells_engine, pictures[:3], score_threshold=0.4, max_detections=2))
        (answer,) = served.server.infer(name, pictures[:1], parameters={"score_threshold": "1.0"})
        assert_same(answer, detect(cells_engine, pictures[:1], score_threshold=1.0))
    finally:
        for each in (name, f"{name}_decode", f"{name}_engine", f"{name}_boxes"):
            served.server.unload(each)


def test_the_configs_are_what_triton_reads(installation, cells_engine, plan, tmp_path):
    """By the message that NVIDIA's client brings. The plan's is the one that no server here can load."""
    write_triton_repository(
        cells_engine, tmp_path / "one", TritonOptions(preferred_batch_sizes="4,8", instances=2), "m"
    )
    write_triton_repository(plan, tmp_path / "four", TritonOptions(max_batch_size=6))
    files = sorted(tmp_path.glob("*/*/config.pbtxt"))
    configs = json.loads(run_client(installation, tmp_path, "check", *files))
    by_name = {config["name"]: config for config in configs}
    assert set(by_name) == {"m", "cells", "cells_decode", "cells_engine", "cells_boxes"}
    assert by_name["m"]["dynamic_batching"] == {"preferred_batch_size": [4, 8], "max_queue_delay_microseconds": "1000"}
    assert by_name["m"]["instance_group"] == [{"count": 2, "kind": "KIND_CPU"}]
    engine = by_name["cells_engine"]
    assert (engine["platform"], engine["default_model_filename"]) == ("tensorrt_plan", "model.plan")
    assert engine["max_batch_size"] == 6
    assert engine["input"] == [{"name": "images", "data_type": "TYPE_UINT8", "dims": ["3", "64", "64"]}]
    assert engine["output"] == [
        {"name": "boxes", "data_type": "TYPE_FP32", "dims": ["64", "4"]},
        {"name": "scores", "data_type": "TYPE_FP32", "dims": ["64"]},
        {"name": "class_ids", "data_type": "TYPE_INT32", "dims": ["64"]},
    ]
    assert engine["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "profile": ["0", "1"]}]
    steps = by_name["cells"]["ensemble_scheduling"]["step"]
    assert [step["model_name"] for step in steps] == ["cells_decode", "cells_engine", "cells_boxes"]
    assert by_name["cells"]["output"] == by_name["cells_boxes"]["output"] == by_name["m"]["output"]
    assert by_name["cells"]["input"] == by_name["m"]["input"]
