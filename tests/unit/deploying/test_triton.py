"""The files of a model repository of Triton: what is written, and what is never written over. ``tests/integration/test_triton.py`` has them served."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edge_effdet.artifacts import Engine, Graph, ModelSpec, file_sha256, load_engine
from edge_effdet.artifacts.record import Verdict
from edge_effdet.deploying import triton as module
from edge_effdet.deploying.triton import MARKER, write_triton_repository
from edge_effdet.deploying.triton_config import TritonOptions, parse_batch_sizes
from edge_effdet.errors import InputError, UsageError
from edge_effdet.graph.model import save_graph
from tests.records import make_record, write_record

SPEC = ModelSpec("tiny", (16, 32), ("red cell", 'white "cell"\\', "Zelle\nß"), (1, 2, 7))


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_engine(tmp_path / "engines" / "bccd.int8.onnx")


def make_engine(path: Path, content: bytes = b"an engine", **changes: Any) -> Engine:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    record = make_record(**{"engine": path.name, "engine_sha256": file_sha256(path), "spec": SPEC, **changes})
    write_record(Engine(path, record.spec, record.backend, record.precision, record.engine_sha256, record))
    return load_engine(path)


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., Engine]:
    """``plan(batch, dtype)``: an engine of TensorRT by its record, with a graph of this batch beside it; no GPU ever saw it."""

    def make(batch: int | str = "batch", dtype: ir.DataType = ir.DataType.UINT8, **changes: Any) -> Engine:
        folder = tmp_path / "plans"
        (folder / "graphs").mkdir(parents=True, exist_ok=True)
        graph = make_graph(folder / "graphs" / "bccd.int8.onnx", batch, dtype)
        parents = {"compiled_graph": graph.sha256}
        return make_engine(
            folder / "bccd.int8.plan", b"a plan", backend="tensorrt", precision="int8", backend_version="10.5.0", parents=parents, **changes
        )  # fmt: skip

    return make


def make_graph(path: Path, batch: int | str, dtype: ir.DataType) -> Graph:
    """A graph with the contract's tensors and next to nothing between them."""
    images = ir.Value(name="images", shape=ir.Shape([batch, 3, 16, 32]), type=ir.TensorType(dtype))
    count = ir.node("Shape", [images], {"start": 0, "end": 1})
    count.outputs[0].name = "count"
    weights, nodes, outputs = [], [count], []
    for name, rest, kind in (
        ("boxes", (50, 4), np.float32),
        ("scores", (50,), np.float32),
        ("class_ids", (50,), np.int32),
    ):
        constants = [
            ir.Value(name=f"{name}_{what}", const_value=ir.tensor(np.array(values), name=f"{name}_{what}"))
            for what, values in (("rest", rest), ("zero", kind(0)))
        ]
        shape = ir.node("Concat", [count.outputs[0], constants[0]], {"axis": 0})
        filled = ir.node("Expand", [constants[1], shape.outputs[0]])
        shape.outputs[0].name, filled.outputs[0].name = f"{name}_shape", name
        filled.outputs[0].shape = ir.Shape([batch, *rest])
        filled.outputs[0].type = ir.TensorType(ir.DataType.from_numpy(np.dtype(kind)))
        weights += constants
        nodes += [shape, filled]
        outputs.append(filled.outputs[0])
    graph = ir.Graph([images], outputs, nodes=nodes, initializers=weights, opset_imports={"": 18}, name="tiny")
    model = ir.to_proto(ir.Model(graph, ir_version=10))
    return save_graph(model, path, spec=SPEC, stage="quantized", precision="int8", rewrites={}, parents={}, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> set[str]:
    return {re.sub(r"edge_effdet-.*\.whl", "WHEEL", name) for name in contents(folder)}


def test_what_is_written(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "models")
    assert folder == tmp_path / "models" / "bccd"
    assert names_in(tmp_path / "models") == {
        f"bccd/{name}"
        for name in (
            "config.pbtxt", "labels.txt", "README.txt", MARKER, "environment/WHEEL",
            "1/model.py", "1/bccd.int8.onnx", "1/bccd.int8.onnx.json",
        )
    }  # fmt: skip
    assert load_engine(folder / "1" / "bccd.int8.onnx").sha256 == engine.sha256
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_the_config(engine: Engine, tmp_path: Path):
    options = TritonOptions(
        score_threshold=0.25, threads=2, instances=3, max_batch_size=16, preferred_batch_sizes="4, 8", queue_delay_ms=2.5, run_batch=4
    )  # fmt: skip
    text = (write_triton_repository(engine, tmp_path / "m", options, "cells") / "config.pbtxt").read_text("ascii")
    for line in (
        'name: "cells"', 'backend: "python"', "max_batch_size: 16",
        "dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 2500 }",
        "instance_group [ { kind: KIND_CPU count: 3 } ]",
        '  { name: "IMAGE" data_type: TYPE_STRING dims: [ 1 ] }',
        '  { name: "BOXES" data_type: TYPE_FP32 dims: [ -1, 4 ] },',
        '  { name: "COUNTS" data_type: TYPE_INT32 dims: [ 1 ] }',
    ):  # fmt: skip
        assert line in text.splitlines()
    parameters = dict(re.findall(r'parameters { key: "(\w+)" value: { string_value: "(.*)" } }', text))
    assert parameters["part"] == "detect"
    assert (parameters["threads"], parameters["run_batch"]) == ("2", "4")
    assert (parameters["score_threshold"], parameters["nms_kind"]) == ("0.25", "class-aware")
    assert json.loads(unquoted(parameters["class_names"])) == list(SPEC.class_names)
    assert json.loads(unquoted(parameters["category_ids"])) == [1, 2, 7]
    assert "EXECUTION_ENV_PATH" not in parameters
    assert str(tmp_path) not in text, "no path of this machine"


def unquoted(text: str) -> str:
    return re.sub(rb"\\(\d{3})", lambda found: bytes([int(found[1], 8)]), text.encode()).decode()


def test_labels_have_a_line_for_each_class(engine: Engine, tmp_path: Path):
    labels = (write_triton_repository(engine, tmp_path / "m") / "labels.txt").read_text("utf-8")
    assert labels.splitlines() == ["red cell", 'white "cell"\\', "Zelle ß"]


def test_the_environment(engine: Engine, tmp_path: Path):
    place = "$$TRITON_MODEL_DIRECTORY/environment/packed.tar.gz"
    folder = write_triton_repository(engine, tmp_path / "m", TritonOptions(environment=place))
    assert f'key: "EXECUTION_ENV_PATH" value: {{ string_value: "{place}" }}' in (folder / "config.pbtxt").read_text()
    (wheel,) = (folder / "environment").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        assert "edge_effdet/serving/protocol.py" in archive.namelist(), "which model.py imports"
    readme = (folder / "README.txt").read_text("ascii")
    assert f"environment/{wheel.name}[ort]' 'numpy<2'" in readme
    assert engine.sha256 in readme
    assert "--environment '$$TRITON_MODEL_DIRECTORY/" in readme


def test_what_model_py_imports_is_in_the_wheel(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "m")
    (wheel,) = (folder / "environment").iterdir()
    imported = re.findall(r"^from (edge_effdet[.\w]*) import", (folder / "1" / "model.py").read_text(), re.MULTILINE)
    assert len(imported) > 5
    with zipfile.ZipFile(wheel) as archive:
        there = set(archive.namelist())
    for each in imported:
        path = each.replace(".", "/")
        assert f"{path}.py" in there or f"{path}/__init__.py" in there, each


def test_the_same_again_changes_nothing(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "m")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != MARKER}
    files = contents(folder)
    write_triton_repository(engine, tmp_path / "m")
    assert contents(folder) == files
    assert {path: path.stat().st_mtime_ns for path in before if path.is_file()} == {
        path: when for path, when in before.items() if path.is_file()
    }


def test_other_options_replace_the_config_and_keep_the_version(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "m")
    write_triton_repository(engine, tmp_path / "m", TritonOptions(score_threshold=0.5))
    assert '"score_threshold" value: { string_value: "0.5" }' in (folder / "config.pbtxt").read_text()
    assert not (folder / "2").exists()


def test_another_engine_is_another_version(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "m")
    first = contents(folder / "1")
    other = make_engine(tmp_path / "engines" / "bccd.fp32.onnx", b"another engine")
    write_triton_repository(other, tmp_path / "m")
    assert contents(folder / "1") == first
    assert {path.name for path in (folder / "2").iterdir()} == {"model.py", "bccd.fp32.onnx", "bccd.fp32.onnx.json"}
    # That of the one before, written again, is not the newest one.
    write_triton_repository(engine, tmp_path / "m")
    assert contents(folder / "3") == first


def test_a_version_that_is_asked_for(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "m", TritonOptions(model_version=7))
    assert (folder / "7" / "model.py").is_file()
    write_triton_repository(engine, tmp_path / "m", TritonOptions(model_version=7))
    other = make_engine(tmp_path / "engines" / "bccd.fp32.onnx", b"another engine")
    before = contents(folder)
    with pytest.raises(UsageError, match="a version never changes; give another `model_version`"):
        write_triton_repository(other, tmp_path / "m", TritonOptions(model_version=7, score_threshold=0.7))
    assert contents(folder) == before


def test_what_a_backend_keeps_beside_the_engine_is_no_change(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "m")
    (folder / "1" / "bccd.int8.onnx.runtime_cache").write_bytes(b"compiled")
    write_triton_repository(engine, tmp_path / "m")
    assert not (folder / "2").exists()


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("nowhere")])
def test_what_somebody_else_wrote_is_left_alone(engine: Engine, tmp_path: Path, make: Callable[[Path], object]):
    (tmp_path / "m" / "other").mkdir(parents=True)
    make(tmp_path / "m" / "bccd")
    with pytest.raises(UsageError, match="was not written by deploy"):
        write_triton_repository(engine, tmp_path / "m")
    assert contents(tmp_path / "m") == ({"bccd": b""} if (tmp_path / "m" / "bccd").is_file() else {})
    assert write_triton_repository(engine, tmp_path / "m", name="mine").is_dir()


@pytest.mark.parametrize("name", ["config.pbtxt", "labels.txt", "README.txt"])
def test_what_somebody_changed_is_left_alone(engine: Engine, tmp_path: Path, name: str):
    folder = write_triton_repository(engine, tmp_path / "m")
    with (folder / name).open("a") as stream:
        stream.write("# mine\n")
    before = contents(folder)
    with pytest.raises(UsageError, match=f"{name} was changed since deploy wrote it"):
        write_triton_repository(engine, tmp_path / "m", TritonOptions(score_threshold=0.5))
    assert contents(folder) == before


def test_what_somebody_added_stays(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "m")
    (folder / "warmup").mkdir()
    (folder / "warmup" / "picture.jpg").write_bytes(b"mine")
    write_triton_repository(engine, tmp_path / "m", TritonOptions(score_threshold=0.5))
    assert (folder / "warmup" / "picture.jpg").read_bytes() == b"mine"


def test_a_file_that_was_deleted_comes_back(engine: Engine, tmp_path: Path):
    folder = write_triton_repository(engine, tmp_path / "m")
    before = contents(folder)
    (folder / "config.pbtxt").unlink()
    write_triton_repository(engine, tmp_path / "m")
    assert contents(folder) == before


@pytest.mark.parametrize("end", range(1, 9))
def test_a_call_that_was_killed_can_be_repeated(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: int
):
    """At each file that is written when there is a model already."""
    folder = write_triton_repository(engine, tmp_path / "m")
    other = make_engine(
        tmp_path / "engines" / "bccd.fp32.onnx", b"another engine", spec=replace(SPEC, class_names=("a", "b", "c"))
    )
    count = 0

    def counting(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            nonlocal count
            count += 1
            if count == end:
                raise KeyboardInterrupt
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(module, "_copy", counting(module._copy))
        patch.setattr(module, "write_json", counting(module.write_json))
        with pytest.raises(KeyboardInterrupt):
            write_triton_repository(other, tmp_path / "m")
    assert (folder / "2").is_dir() == (end > 3)
    assert load_engine(folder / "1" / "bccd.int8.onnx").sha256 == engine.sha256
    write_triton_repository(other, tmp_path / "m")
    whole = write_triton_repository(other, tmp_path / "whole")
    assert contents(folder / "2") == contents(whole / "1")
    assert {name: content for name, content in contents(folder).items() if name[0] not in "12"} == {
        name: content for name, content in contents(whole).items() if name[0] != "1"
    }
    assert not list(tmp_path.glob("m/**/.*"))


def test_the_files_of_a_new_model_appear_at_once(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "m").mkdir()

    def stop(*arguments: object) -> None:
        # Triton takes any folder of the repository for a model.
        assert list((tmp_path / "m").iterdir()) == []
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_json", stop)
    with pytest.raises(InputError, match="No space left on device"):
        write_triton_repository(engine, tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engines", "m"]
    assert list((tmp_path / "m").iterdir()) == []


def test_it_is_not_written_over_the_engine(engine: Engine):
    with pytest.raises(UsageError, match="could overwrite"):
        write_triton_repository(engine, engine.path.parent)


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "ä", "x" * 65])
def test_a_name_that_can_be_none(engine: Engine, tmp_path: Path, name: str):
    with pytest.raises(UsageError, match="cannot be the name of a model"):
        write_triton_repository(engine, tmp_path / "m", name=name)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model_version": 0}, "`model_version` 0"),
        ({"max_batch_size": 0}, "`max_batch_size` 0"),
        ({"instances": 0}, "`instances` 0"),
        ({"threads": -1}, "`threads` -1"),
        ({"run_batch": -1}, "`run_batch` -1"),
        ({"queue_delay_ms": -1.0}, "`queue_delay_ms` -1"),
        ({"queue_delay_ms": float("nan")}, "`queue_delay_ms` nan"),
        ({"preferred_batch_sizes": "8,4"}, "`preferred_batch_sizes` 8,4"),
        ({"preferred_batch_sizes": "4,x"}, "`preferred_batch_sizes` 4,x"),
        ({"plan_batch_sizes": ""}, "`plan_batch_sizes` is empty"),
        ({"environment": " "}, "`environment` is empty"),
        ({"score_threshold": 2.0}, "`score_threshold` 2.0"),
    ],
)
def test_options_that_make_no_sense(options: Mapping[str, Any], said: str):
    with pytest.raises(UsageError, match=re.escape(said)):
        TritonOptions(**options)


def test_a_preferred_batch_larger_than_any(engine: Engine, tmp_path: Path):
    with pytest.raises(UsageError, match="`preferred_batch_sizes` has 16 and a batch has 8"):
        write_triton_repository(engine, tmp_path / "m", TritonOptions(preferred_batch_sizes="4,16"))
    assert not list(tmp_path.glob("m/*"))


def test_batch_sizes():
    assert parse_batch_sizes("1, 8,16", "x") == (1, 8, 16)
    assert parse_batch_sizes("", "x") == ()


def test_threads_of_a_gpu(tmp_path: Path):
    engine = make_engine(tmp_path / "engines" / "bccd.onnx", backend="onnxruntime-cuda")
    with pytest.raises(UsageError, match="`threads` means nothing"):
        write_triton_repository(engine, tmp_path / "m", TritonOptions(threads=2))
    folder = write_triton_repository(engine, tmp_path / "m")
    assert "[ort-cuda]" in (folder / "README.txt").read_text()


def test_an_engine_beyond_its_budget_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    gate = Verdict(passed=False, decided_by="drop", max_ap_drop=1.0, budget_was="asked", text="it loses 3 points of AP")
    write_triton_repository(make_engine(tmp_path / "engines" / "bccd.onnx", gate=gate), tmp_path / "m")
    assert "did not pass the accuracy gate when it was built: it loses 3 points of AP" in caplog.text


def test_a_plan_becomes_an_ensemble(plan: Callable[..., Engine], tmp_path: Path):
    folder = write_triton_repository(plan(), tmp_path / "m", TritonOptions(score_threshold=0.4))
    assert names_in(tmp_path / "m") == {
        *(f"bccd/{name}" for name in ("config.pbtxt", "labels.txt", "README.txt", MARKER, "environment/WHEEL", "1/bccd.int8.plan.json")),
        *(f"bccd_{part}/{name}" for part in ("decode", "boxes") for name in ("config.pbtxt", MARKER, "1/model.py", "1/spec.json")),
        *(f"bccd_engine/{name}" for name in ("config.pbtxt", MARKER, "1/model.plan", "1/model.plan.json")),
    }  # fmt: skip
    engine = (tmp_path / "m" / "bccd_engine" / "config.pbtxt").read_text()
    assert "max_batch_size: 8\n" in engine
    assert '{ name: "images" data_type: TYPE_UINT8 dims: [ 3, 16, 32 ] }' in engine
    assert '{ name: "boxes" data_type: TYPE_FP32 dims: [ 50, 4 ] }' in engine
    assert 'kind: KIND_GPU count: 1 profile: [ "0", "1" ]' in engine
    assert (tmp_path / "m" / "bccd_engine" / "1" / "model.plan").read_bytes() == b"a plan"
    boxes = (tmp_path / "m" / "bccd_boxes" / "config.pbtxt").read_text()
    assert '"score_threshold" value: { string_value: "0.4" }' in boxes
    for part in ("decode", "boxes"):
        spec = json.loads((tmp_path / "m" / f"bccd_{part}" / "1" / "spec.json").read_text())
        assert ModelSpec.from_dict(spec) == SPEC
    ensemble = (folder / "config.pbtxt").read_text()
    assert 'platform: "ensemble"' in ensemble
    assert "dynamic_batching" not in ensemble
    assert "no golden check" in (folder / "README.txt").read_text()


def test_the_pixels_have_the_type_that_the_plan_takes(plan: Callable[..., Engine], tmp_path: Path):
    write_triton_repository(plan(dtype=ir.DataType.FLOAT), tmp_path / "m")
    decode = (tmp_path / "m" / "bccd_decode" / "config.pbtxt").read_text()
    assert '"images" data_type: TYPE_FP32' in decode
    assert '"input_dtype" value: { string_value: "float32" }' in decode


def test_a_plan_for_one_picture_a_run(plan: Callable[..., Engine], tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    folder = write_triton_repository(plan(1), tmp_path / "m")
    assert "so Triton makes no batches" in caplog.text
    for each in tmp_path.glob("m/*/config.pbtxt"):
        assert "max_batch_size: 1\n" in each.read_text()
    assert 'profile: [ "0" ]' in (folder.with_name("bccd_engine") / "config.pbtxt").read_text()


def test_plans_that_no_ensemble_can_run(plan: Callable[..., Engine], tmp_path: Path):
    with pytest.raises(UsageError, match="takes 4 pictures a run, never fewer"):
        write_triton_repository(plan(4), tmp_path / "m")
    with pytest.raises(UsageError, match="`max_batch_size` 16 is more than the 8 pictures"):
        write_triton_repository(plan(), tmp_path / "m", TritonOptions(max_batch_size=16))
    with pytest.raises(UsageError, match="suppresses boxes inside"):
        write_triton_repository(plan(nms="efficientnms"), tmp_path / "m")
    engine = plan()
    (engine.path.parent / "graphs" / "bccd.int8.onnx").unlink()
    with pytest.raises(InputError, match="copy the folder graphs of the build along"):
        write_triton_repository(engine, tmp_path / "m")
    assert not list(tmp_path.glob("m/*"))


def test_one_model_of_somebody_else_stops_the_ensemble_as_a_whole(plan: Callable[..., Engine], tmp_path: Path):
    (tmp_path / "m" / "bccd_boxes").mkdir(parents=True)
    with pytest.raises(UsageError, match="bccd_boxes is there already"):
        write_triton_repository(plan(), tmp_path / "m")
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["bccd_boxes"]


def test_all_models_of_an_ensemble_have_the_same_version(plan: Callable[..., Engine], tmp_path: Path):
    write_triton_repository(plan(), tmp_path / "m")
    engine = plan()
    changed = make_engine(
        engine.path,
        b"another plan",
        **{name: getattr(engine.require_record(), name) for name in ("backend", "precision", "parents")},
    )
    write_triton_repository(changed, tmp_path / "m")
    assert {path.name for path in tmp_path.glob("m/*/[0-9]")} == {"1", "2"}
    assert len(list(tmp_path.glob("m/*/2"))) == 4
