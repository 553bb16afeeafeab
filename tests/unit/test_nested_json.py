"""JSON in JSON, deeper than Python reads, and pipes that nobody writes to, in each file that a user gives: a sentence that names the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_effdet.artifacts import engine_json_path, load_engine
from edge_effdet.benchmarking.baseline import read_report
from edge_effdet.errors import InputError
from edge_effdet.models.zoo import model_spec
from edge_effdet.quant.choose import load_manifest_images
from edge_effdet.quant.table import load_table
from edge_effdet.runtime.sinks import _named_in

DEEP = "[" * 200_000

READERS: dict[str, Callable[[Path], Any]] = {
    "report": read_report,
    "manifest": lambda path: load_manifest_images(path, (), model_spec("tf_efficientdet_lite0")),
    "table": lambda path: load_table(path, {}),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", [DEEP, f'{{"images": {DEEP}', f'{{"format": {DEEP}'])
@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_nested_without_end_is_named(tmp_path, kind, content):
    path = tmp_path / "given.json"
    path.write_text(content)
    with pytest.raises(InputError, match=r"given\.json is n"):
        READERS[kind](path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["report", "manifest"])
def test_a_pipe_is_not_waited_for(tmp_path, kind):
    path = tmp_path / "given.json"
    os.mkfifo(path)
    with pytest.raises(InputError, match=r"given\.json is "):
        READERS[kind](path)


def test_a_record_and_earlier_results_too(tmp_path):
    engine = tmp_path / "x.onnx"
    engine.write_bytes(b"x")
    engine_json_path(engine).write_text(DEEP)
    with pytest.raises(InputError, match=r"x\.onnx\.json is not an engine description"):
        load_engine(engine)
    (tmp_path / "detections.json").write_text(f'{{"images": {DEEP}')
    assert list(_named_in(tmp_path / "detections.json", True)) == []


def test_what_a_run_left_to_be_resumed_too(tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    resume = pytest.importorskip("edge_effdet.training.resume")
    content = {resume._METADATA_KEY: DEEP}
    safetensors.save_file({"a": np.zeros(1, np.float32)}, tmp_path / resume.FILE_NAME, metadata=content)
    with pytest.raises(InputError, match="not a whole file to resume from"):
        resume.load_progress(tmp_path)
