"""Engines for the service: a small real one, and one that a test can slow down."""

from __future__ import annotations

import pytest

from edge_effdet.artifacts import Engine, write_record
from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from tests.emulation.small_detector import write_small_detector


@pytest.fixture(scope="session")
def small_engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Three convolutions in INT8 by onnxruntime, 64 x 64."""
    folder = tmp_path_factory.mktemp("serving")
    graph = write_small_detector(folder / "graph.onnx", bits=7)
    engine = compile_engine(graph, "onnxruntime", CompileOptions(), folder / "small.int8.onnx")
    write_record(engine)
    return engine
