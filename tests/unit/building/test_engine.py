"""A build that is killed leaves the earlier engine or the new one, and the next build removes what else it left."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from edge_effdet.artifacts import engine_json_path, waiting_record_path
from edge_effdet.building.engine import engine_files

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
