"""An evaluation over a Dask cluster, whose scheduler and workers are processes of their own, as on several machines."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_effdet import EvaluateConfig, evaluate, evaluate_detector
from edge_effdet.artifacts import Engine, ModelSpec, file_sha256, load_engine, write_json
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import BackendUnavailable, InputError, MissingDependency, UsageError
from edge_effdet.evaluation import spread
from edge_effdet.evaluation.members import InferenceOptions
from tests.clusters import Cluster, run_cluster
from tests.records import make_record, write_record

pytest.importorskip("distributed")

PICTURES = 60
WITHOUT_PACKAGE = """
import sys
from importlib import metadata
real = metadata.version
def version(name):
    if name == "edge-effdet":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version, sys.modules["edge_effdet"] = version, None
from distributed.cli.dask_worker import main
main()
"""
"""Starts a worker in whose environment this package is not installed."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers, which no test kills."""
    with run_cluster(tmp_path_factory.mktemp("cluster"), 2) as cluster:
        yield cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Two workers of a test's own."""
    with run_cluster(tmp_path / "cluster", 2) as own:
        yield own


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finds one disc in each picture, whose score is the mean brightness, so that no two pictures have the same."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    constants = {
        "boxes": np.array([[[0, 0, 32, 32]]], np.float32),
        "class_ids": np.array([[0]], np.int32),
        "white": np.array(255, np.float32),
        "axes": np.array([1, 2, 3], np.int64),
    }
    nodes = [
        helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(array))
        for name, array in constants.items()
    ]
    nodes += [
        helper.make_node("Cast", ["images"], ["pixels"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "white"], ["share"]),
        helper.make_node("Unsqueeze", ["share", "one"], ["scores"]),
    ]
    nodes.insert(0, helper.make_node("Constant", [], ["one"], value=onnx.numpy_helper.from_array(np.array([1]))))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", types.UINT8, [1, 3, 64, 64])],
        [
            helper.make_tensor_value_info("boxes", types.FLOAT, [1, 1, 4]),
            helper.make_tensor_value_info("scores", types.FLOAT, [1, 1]),
            helper.make_tensor_value_info("class_ids", types.INT32, [1, 1]),
        ],
    )
    path = tmp_path_factory.mktemp("engine") / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    spec = ModelSpec("tiny", (64, 64), ("disc",), (1,))
    record = make_record(spec=spec, engine=path.name, engine_sha256=file_sha256(path))
    write_record(Engine(path, spec, record.backend, record.precision, record.engine_sha256, record))
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Grey pictures of as many shades with a disc each, and one that breaks off after its size."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    for number in range(1, PICTURES + 1):
        shade = np.full((64, 64, 3), 60 + 3 * number, np.uint8)
        Image.fromarray(shade).save(root / "images" / f"{number}.png")
    torn = root / "images" / "7.png"
    torn.write_bytes(torn.read_bytes()[:60])
    numbers = range(1, PICTURES + 1)
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, 20 + n % 20, 32], "area": 1} for n in numbers]
    content = {
        "images": [{"id": n, "file_name": f"{n}.png", "height": 64, "width": 64} for n in numbers],
        "annotations": [{**box, "iscrowd": 0} for box in boxes],
        "categories": [{"id": 1, "name": "disc"}],
    }
    write_json(root / "annotations" / "instances_test.json", content)
    return root


def spread_over(cluster: Cluster, engine: Path, data: Path) -> Any:
    return evaluate_detector(engine, data, EvaluateConfig(dask=str(cluster.file)))


def same(one: Any, other: Any) -> bool:
    """Whether two evaluations found the same in the same pictures in the same order."""
    names = ("boxes", "scores", "class_ids")
    pairs = list(zip(one.detections, other.detections, strict=True))
    equal = all(np.array_equal(getattr(a, name), getattr(b, name)) for a, b in pairs for name in names)
    paths = [[sample.path for sample in each.samples] for each in (one, other)]
    return equal and paths[0] == paths[1] and one.to_dict() == other.to_dict()


def test_the_report_is_that_of_a_serial_run(shared: Cluster, engine: Path, data: Path, tmp_path: Path, caplog):
    command = ["--engine", str(engine), "--data", str(data), "--pictures", "0", "--output"]
    assert evaluate.main([*command, str(tmp_path / "serial")]) == 0
    with spread.connect(str(shared.file)) as client:
        address = client.scheduler.address
    assert evaluate.main([*command, str(tmp_path / "spread"), "--dask", address]) == 0
    for name in ("metrics.json", "detections.json", "confusion.txt"):
        assert (tmp_path / "spread" / name).read_bytes() == (tmp_path / "serial" / name).read_bytes()
    rows = json.loads((tmp_path / "spread" / "detections.json").read_text())
    assert [row["image_id"] for row in rows] == [number for number in range(1, PICTURES + 1) if number != 7]


def test_warnings_of_the_workers_reach_the_user(shared: Cluster, engine: Path, data: Path, caplog):
    with caplog.at_level(logging.WARNING, "edge_effdet"):
        spread_over(shared, engine, data)
    said = [record.getMessage() for record in caplog.records]
    assert any("carries no golden pictures" in text and "The worker tcp://" in text for text in said)
    assert any(text.startswith("skipped an image") and "7.png" in text for text in said)
    assert "1 image could not be decoded and were left out" in said


def test_a_worker_that_is_killed_loses_nothing(cluster: Cluster, engine: Path, data: Path, monkeypatch):
    monkeypatch.setattr(spread, "MOST_IMAGES", 1)
    ended = spread.results

    def kill_in_the_middle(client, tasks):
        for number, each in enumerate(ended(client, tasks)):
            if number == 5:
                cluster.workers[0].kill()
                cluster.workers[0].wait()
            yield each

    monkeypatch.setattr(spread, "results", kill_in_the_middle)
    found = spread_over(cluster, engine, data)
    assert cluster.workers[0].returncode is not None
    assert same(found, evaluate_detector(engine, data, EvaluateConfig()))


@pytest.mark.parametrize(("who", "reason"), [("workers", "has had no worker"), ("scheduler", "scheduler is gone")])
def test_a_cluster_that_is_lost_is_one_sentence(
    who: str, reason: str, cluster: Cluster, engine: Path, data: Path, monkeypatch
):
    monkeypatch.setattr(spread, "MOST_IMAGES", 1)
    monkeypatch.setattr(spread, "WORKERS_SECONDS", 1)
    monkeypatch.setattr(spread, "LOOK_SECONDS", 0.2)
    ended = spread.results

    def kill_in_the_middle(client, tasks):
        for each in ended(client, tasks):
            for process in cluster.workers if who == "workers" else [cluster.scheduler]:
                process.kill()
                process.wait()
            yield each

    monkeypatch.setattr(spread, "results", kill_in_the_middle)
    with pytest.raises(BackendUnavailable, match=reason):
        spread_over(cluster, engine, data)


def test_a_cluster_without_workers_is_waited_for_and_then_refused(
    tmp_path: Path, engine: Path, data: Path, monkeypatch
):
    monkeypatch.setattr(spread, "WORKERS_SECONDS", 1)
    with (
        run_cluster(tmp_path / "empty", 0) as empty,
        pytest.raises(BackendUnavailable, match="start some with dask worker"),
    ):
        spread_over(empty, engine, data)


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1", "udp://127.0.0.1:8786"])
def test_what_is_no_address_is_refused_at_once(address: str, engine: Path, data: Path):
    with pytest.raises(UsageError, match=f"`dask` {address} is neither the address of a Dask scheduler"):
        evaluate_detector(engine, data, EvaluateConfig(dask=address))


def test_a_file_that_no_scheduler_wrote_is_no_address(engine: Path, data: Path):
    with pytest.raises(UsageError, match=r"tiny\.onnx\.json is neither"):
        evaluate_detector(engine, data, EvaluateConfig(dask=f"{engine}.json"))


def test_a_file_that_a_scheduler_is_writing_is_read_again(tmp_path: Path):
    path = tmp_path / "scheduler.json"
    path.write_bytes(b"")
    writing = threading.Timer(0.3, path.write_text, ['{"address": "tcp://127.0.0.1:8786"}'])
    writing.start()
    try:
        assert spread._read_scheduler_file(path) == "tcp://127.0.0.1:8786"
    finally:
        writing.join()


def test_a_scheduler_that_does_not_answer(engine: Path, data: Path, monkeypatch):
    monkeypatch.setattr(spread, "CONNECT_SECONDS", 1)
    # Nothing may listen on port 1 but a service of the system.
    with pytest.raises(BackendUnavailable, match=r"No Dask scheduler answers at tcp://127\.0\.0\.1:1 within 1 s"):
        evaluate_detector(engine, data, EvaluateConfig(dask="tcp://127.0.0.1:1"))


def test_without_dask_the_extra_is_named(engine: Path, data: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingDependency, match=r"edge-effdet\[dask\]"):
        evaluate_detector(engine, data, EvaluateConfig(dask="tcp://127.0.0.1:1"))


@pytest.mark.parametrize("where", ["before", "in a task"])
@pytest.mark.parametrize(
    ("change", "kind", "reason"),
    [
        (
            "hash",
            InputError,
            r"on \S+ sees another file \(its SHA-256 differs\) at .*tiny\.onnx; .*folder that all machines share",
        ),
        ("path", InputError, r"on \S+ sees no file at /nowhere/tiny\.onnx"),
        (
            "version",
            BackendUnavailable,
            r"on \S+ has edge-effdet \S+ and this machine 99; install the same version on both",
        ),
    ],
)
def test_a_worker_that_differs_is_refused_by_name(
    where: str, change: str, kind: type[Exception], reason: str, shared: Cluster, engine: Path, data: Path, monkeypatch
):
    """Whether the worker was there at the start, or came later and finds out itself."""
    found = load_engine(engine)
    assignment = spread.assign_engine(found, InferenceOptions(batch_size=1), True)
    files = {
        "hash": {str(engine): "00" * 32},
        "path": {"/nowhere/tiny.onnx": found.sha256},
        "version": dict(assignment.files),
    }[change]
    assignment = replace(assignment, files=files, version="99" if change == "version" else assignment.version)
    if where == "in a task":
        monkeypatch.setattr(spread, "check_workers", lambda client, files: None)
    elif change == "version":
        monkeypatch.setattr(spread, "_version", lambda: "99")
    samples = read_dataset(data).splits["test"]
    with pytest.raises(kind, match=r"^The worker tcp://127\.0\.0\.1:\d+ " + reason):
        spread.detect_on_cluster(str(shared.file), assignment, samples)


def test_a_picture_that_is_another_one_there_is_refused(shared: Cluster, engine: Path, data: Path, monkeypatch):
    hashed = spread._hash
    # This process sees another picture 9 than the workers.
    monkeypatch.setattr(spread, "_hash", lambda path: "00" * 32 if path.endswith("9.png") else hashed(path))
    with pytest.raises(InputError, match=r"The worker tcp://\S+ on \S+ sees another file .* at .*9\.png"):
        spread_over(shared, engine, data)


def test_a_worker_without_the_package_is_refused_by_name(tmp_path: Path, engine: Path, data: Path):
    with run_cluster(tmp_path / "bare", 0) as bare:
        bare.add("-c", WITHOUT_PACKAGE)
        with pytest.raises(BackendUnavailable, match=r"^The worker tcp://\S+ on \S+ has no edge_effdet; install"):
            spread_over(bare, engine, data)


def test_a_worker_that_cannot_import_its_task_is_refused_by_name(shared: Cluster):
    with (
        spread.connect(str(shared.file)) as client,
        pytest.raises(
            BackendUnavailable, match=r"^The worker tcp://\S+ on \S+ cannot import benchmarks\.none; start the"
        ),
    ):
        spread.check_workers(client, {}, "benchmarks.none")


@pytest.mark.slow
def test_checkpoints_run_there_too(shared: Cluster, tiny_voc: Path, tmp_path: Path):
    torch = pytest.importorskip("torch")
    from edge_effdet.models.checkpoint import save_checkpoint
    from edge_effdet.models.zoo import create_network, model_spec

    torch.manual_seed(0)
    spec = model_spec("tf_efficientdet_lite0", ("disc", "bar"), image_size=(64, 64))
    path = tmp_path / "random.safetensors"
    save_checkpoint(path, create_network(spec).state_dict(), spec, {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        serial = evaluate_detector(path, tiny_voc, EvaluateConfig(split="all", batch_size=2))
    finally:
        torch.set_num_threads(threads)
    assert sum(map(len, serial.detections)) > 0
    found = evaluate_detector(path, tiny_voc, EvaluateConfig(split="all", batch_size=2, dask=str(shared.file)))
    assert same(found, serial)
