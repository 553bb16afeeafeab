"""A build that is killed leaves the earlier engine or the new one, two builds at once are told apart, and what a runtime compiled is kept where it is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from edge_effdet.artifacts import Engine, Graph, engine_json_path, file_sha256, load_engine, waiting_record_path
from edge_effdet.backends.base import BACKENDS, LoadOptions, Runner
from edge_effdet.backends.runtime_cache import SUFFIX, runtime_cache_path
from edge_effdet.building import engine as module
from edge_effdet.building.engine import BuildJob, build_engine, engine_files, lowered_path
from edge_effdet.errors import EngineError, InputError
from edge_effdet.graph.model import load_graph, save_graph
from edge_effdet.quant.stage import QuantizeOptions
from tests.backends import FakeBackend
from tests.unit.building.test_chain import save_detector

HERE = Path(__file__).parents[3]


def test_a_build_is_killed_before_its_engine_and_before_its_record_get_their_names(tmp_path: Path):
    command = [sys.executable, "-m", "tests.kills", "build_engines", tmp_path]
    done = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True)
    first, before_engine, before_record, last = json.loads(done.stdout)
    assert [each["graph"] for each in (first, before_engine, before_record, last)] == [0, 0, 2, 1]
    whole = ["tiny.fp32.onnx", "tiny.fp32.onnx.json"]
    assert first["there"] == last["there"] == whole
    for killed in (before_engine, before_record):
        assert killed["there"][1:] == [*whole, "tiny.fp32.onnx.json.new"] and killed["there"][0].startswith(".edge")


def test_the_files_of_an_engine_are_those_that_a_build_writes(tmp_path: Path):
    files = engine_files(tmp_path, "x", "int8", "openvino")
    path = tmp_path / "x.int8.onnx"
    assert {path, engine_json_path(path), waiting_record_path(path)} < set(files)


@pytest.fixture
def graphs(tmp_path: Path) -> tuple[Graph, Graph]:
    """Two detectors of one form whose weights differ."""
    first = save_detector(tmp_path)
    model = onnx.load(first.path)
    weight = model.graph.initializer[0]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) + 1, weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    return first, load_graph(tmp_path / "other.onnx")


def build(graph: Graph, output: Path, backend: str = "onnxruntime") -> Engine:
    """As from a checkpoint: the FP32 graph is in the output folder."""
    path = lowered_path(output, "tiny", "fp32")
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(graph.path, path)
    job = BuildJob(name="tiny", graph=replace(graph, path=path), output=output, golden="none")
    return build_engine(job, "fp32", backend, QuantizeOptions())


@pytest.mark.parametrize("fails", [False, True])
def test_a_graph_that_another_build_replaces_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: tuple[Graph, Graph], fails: bool
):
    """Also where the other graph ends the build with an error, which would be taken for a backend's."""
    output, real = tmp_path / "engines", module.compile_engine

    def compile_later(*given: Any) -> Engine:
        monkeypatch.setattr(module, "compile_engine", real)
        build(graphs[1], output)
        if fails:
            raise EngineError("it was replaced before it was loaded")
        return real(*given)

    monkeypatch.setattr(module, "compile_engine", compile_later)
    with pytest.raises(InputError, match=r"tiny\.fp32\.onnx was replaced while an engine was built from it") as refused:
        build(graphs[0], output)
    assert not isinstance(refused.value, EngineError)
    there = load_engine(output / "tiny.fp32.onnx")
    assert there.require_record().parents["compiled_graph"] == there.sha256 == graphs[1].sha256


def test_the_hash_of_a_graph_is_of_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: tuple[Graph, Graph]
):
    """And not of what another build has put there since."""
    path = lowered_path(tmp_path, "tiny", "fp32")
    rename = os.replace

    def rename_twice(old: Path, new: Path) -> None:
        rename(old, new)
        path.write_bytes(b"of another build")

    monkeypatch.setattr(os, "replace", rename_twice)
    model = onnx.load(graphs[0].path)
    saved = save_graph(model, path, spec=graphs[0].spec, stage="optimized", precision="fp32", rewrites={}, parents={})
    assert saved.sha256 == graphs[0].sha256 == file_sha256(graphs[0].path)


@pytest.mark.parametrize("mode", [0o700, 0o775])
def test_what_a_runtime_compiled_is_kept_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graphs: tuple[Graph, Graph], mode: int
):
    """In a folder that others can write into, as with a mask of 002, nobody reads it."""

    class Compiling(FakeBackend):
        def load(self, engine: Engine, options: LoadOptions) -> Runner:
            cache = runtime_cache_path(engine)
            assert cache is not None
            cache.write_bytes(b"compiled")
            return super().load(engine, options)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(BACKENDS, "compiling", Compiling())
    output = tmp_path / "engines"
    output.mkdir()
    output.chmod(mode)
    # Of the engine before.
    (output / f"tiny.fp32.fake{SUFFIX}").write_bytes(b"another")
    engine = build(graphs[0], output, "compiling")
    beside = engine.path.with_name(engine.path.name + SUFFIX)
    assert (beside == runtime_cache_path(engine)) == beside.exists() == (mode == 0o700)
    assert not beside.exists() or beside.read_bytes() == b"compiled"
