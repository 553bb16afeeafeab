"""Which backend a bundle runs an engine by."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from edge_effdet.artifacts import Engine, ModelSpec
from edge_effdet.deploying.options import DeployConfig
from edge_effdet.deploying.stage import _backend_for


@pytest.mark.parametrize(
    ("built_for", "target", "runs_by", "told"),
    [
        ("openvino", "x86-cpu", "openvino", False),
        ("openvino", "jetson-orin-nano", "tensorrt", True),
        ("onnxruntime", "x86-gpu", "tensorrt", True),
        ("tensorrt-rtx", "x86-gpu", "tensorrt-rtx", False),
        ("tensorrt-rtx", "x86-cpu", "onnxruntime", False),
    ],
)
def test_an_engine_keeps_its_backend_unless_a_gpu_would_be_idle(caplog, tmp_path, built_for, target, runs_by, told):
    engine = Engine(Path("x.onnx"), ModelSpec("tiny", (16, 16), ("thing",), (1,)), built_for, "int8")
    with caplog.at_level(logging.WARNING):
        assert _backend_for(engine, DeployConfig(target=target, output=tmp_path)) == runs_by
    assert ("runs its graph on the GPU" in caplog.text) == told
