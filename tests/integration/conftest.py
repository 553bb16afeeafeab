"""What several integration tests need and is slow to make: graphs of the BCCD checkpoint, once a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_effdet.artifacts import Engine, Graph, write_json
from edge_effdet.backends.arithmetic import FULL_RANGE
from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from edge_effdet.data.base import Dataset, match_classes
from edge_effdet.data.registry import read_dataset
from edge_effdet.graph.export import ExportOptions, export_network, load_source
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.stage import QuantizeOptions, convert_to_fp16, quantize_graph

ASSETS = Path(__file__).parent.parent / "assets"
BCCD_CHECKPOINT = ASSETS / "bccd_lite0.safetensors"
"""Trained by ``python -m edge_effdet.train --data bccd --epochs 60 --flip both``; the command is in its metadata."""


@pytest.fixture(scope="session")
def bccd_graph(tmp_path_factory: pytest.TempPathFactory) -> Graph:
    """The optimized FP32 graph of the BCCD checkpoint."""
    network, spec, parents = load_source(BCCD_CHECKPOINT, None)
    path = tmp_path_factory.mktemp("bccd") / "bccd.fp32.onnx"
    return export_network(network, spec, parents, path, ExportOptions()).graph


@pytest.fixture(scope="session")
def bccd_engine(bccd_graph: Graph) -> Engine:
    """The graph as an onnxruntime engine, with its JSON."""
    engine = compile_engine(
        bccd_graph, "onnxruntime", CompileOptions(), bccd_graph.path.with_name("bccd.fp32.engine.onnx")
    )
    write_json(engine.json_path, engine.record)
    return engine


@pytest.fixture(scope="session")
def bccd_dataset(bccd: Path, bccd_graph: Graph) -> Dataset:
    return match_classes(read_dataset(bccd), bccd_graph.spec)


@pytest.fixture(scope="session")
def bccd_half_graph(bccd_graph: Graph) -> Graph:
    return convert_to_fp16(bccd_graph, bccd_graph.path.with_name("bccd.fp16.onnx"))


@pytest.fixture(scope="session")
def bccd_int8_graph(bccd_graph: Graph, bccd_dataset: Dataset) -> Graph:
    """INT8 with the rest in FP32, calibrated on 32 training images."""
    images = load_calibration_images(bccd_dataset.splits["train"], bccd_graph.spec, 32, seed=0)
    return quantize_graph(bccd_graph, images, QuantizeOptions(), bccd_graph.path.with_name("bccd.int8.onnx"))


@pytest.fixture(scope="session")
def bccd_full_range_graph(bccd_graph: Graph, bccd_dataset: Dataset) -> Graph:
    """INT8 with weight codes up to 127, which is exact only where products are added in 32 bits."""
    images = load_calibration_images(bccd_dataset.splits["train"], bccd_graph.spec, 16, seed=0)
    options = QuantizeOptions(weight_codes=FULL_RANGE, rounding="nearest")
    return quantize_graph(bccd_graph, images, options, bccd_graph.path.with_name("bccd.127.onnx"))
