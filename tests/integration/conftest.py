"""What several integration tests need and is slow to make, once a run: graphs of the BCCD checkpoint, and a part of its data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from edge_effdet.artifacts import Engine, Graph, load_engine
from edge_effdet.backends.arithmetic import FULL_RANGE
from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from edge_effdet.data.base import Dataset, match_classes
from edge_effdet.data.registry import read_dataset
from edge_effdet.graph.export import ExportOptions, export_network, load_source
from edge_effdet.graph.model import load_graph
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.stage import QuantizeOptions, convert_to_fp16, quantize_on_images
from edge_effdet.runtime import latency
from tests.networks import traced_once
from tests.once import make_once
from tests.records import write_record

ASSETS = Path(__file__).parent.parent / "assets"
BCCD_CHECKPOINT = ASSETS / "bccd_lite0.safetensors"
"""Trained by ``python -m edge_effdet.train --data bccd --epochs 60 --flip both``; the command is in its metadata."""


QUICK = "--method max --rounding nearest --calibration-images 8"
"""INT8 in seconds, for tests that need an INT8 engine and not the best one."""

PART = 12
"""Number of images in each split of ``bccd_part``."""

MakeGraph = Callable[[str, Callable[[Path], object]], Graph]


# By module, so that they are gone again in the tests of other folders.
@pytest.fixture(scope="module", autouse=True)
def _few_timed_runs() -> Iterator[None]:
    """No test needs a latency that another measurement would give again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "Turns", partial(latency.Turns, rounds=2, runs=2, warm_up=1))
        yield


@pytest.fixture(scope="module", autouse=True)
def _traced_once() -> Iterator[None]:
    """The tests of a module export the same network several times."""
    with traced_once():
        yield


@pytest.fixture(scope="session")
def make_graph(tmp_path_factory: pytest.TempPathFactory) -> MakeGraph:
    """``make_graph(name, write)``: the graph that ``write`` writes to a path, written by one worker."""

    def make(name: str, write: Callable[[Path], object]) -> Graph:
        folder = make_once(tmp_path_factory, name, lambda folder: write(folder / f"{name}.onnx"))
        return load_graph(folder / f"{name}.onnx")

    return make


@pytest.fixture(scope="session")
def bccd_graph(make_graph: MakeGraph) -> Graph:
    """The optimized FP32 graph of the BCCD checkpoint."""

    def write(path: Path) -> None:
        network, spec, parents = load_source(BCCD_CHECKPOINT, None)
        export_network(network, spec, parents, path, ExportOptions())

    return make_graph("bccd.fp32", write)


@pytest.fixture(scope="session")
def bccd_engine(bccd_graph: Graph, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """The graph as an onnxruntime engine, with its JSON."""

    def write(folder: Path) -> None:
        write_record(compile_engine(bccd_graph, "onnxruntime", CompileOptions(), folder / "bccd.fp32.engine.onnx"))

    return load_engine(make_once(tmp_path_factory, "bccd_engine", write) / "bccd.fp32.engine.onnx")


@pytest.fixture(scope="session")
def bccd_dataset(bccd: Path, bccd_graph: Graph) -> Dataset:
    return match_classes(read_dataset(bccd), bccd_graph.spec)


@pytest.fixture(scope="session")
def bccd_part(bccd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first images of each split, for tests in which it does not matter how good an AP is or how well it is known."""

    def make(root: Path) -> None:
        lists = root / "ImageSets" / "Main"
        for folder in (root / "Annotations", root / "JPEGImages", lists):
            folder.mkdir(parents=True)
        for split in ("train", "val", "test"):
            stems = (bccd / "ImageSets" / "Main" / f"{split}.txt").read_text().split()[:PART]
            (lists / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
            for stem in stems:
                for file in (f"Annotations/{stem}.xml", f"JPEGImages/{stem}.jpg"):
                    (root / file).symlink_to((bccd / file).resolve())

    return make_once(tmp_path_factory, "bccd_part", make)


@pytest.fixture(scope="session")
def bccd_half_graph(bccd_graph: Graph, make_graph: MakeGraph) -> Graph:
    return make_graph("bccd.fp16", lambda path: convert_to_fp16(bccd_graph, path))


def quantize_quickly(graph: Graph, data: Path, path: Path, **options: object) -> Graph:
    """INT8 as ``QUICK`` makes it, calibrated on training images."""
    images = load_calibration_images(read_dataset(data).splits["train"], graph.spec, 8, seed=0)
    return quantize_on_images(graph, images, QuantizeOptions(method="max", rounding="nearest", **options), path)


@pytest.fixture(scope="session")
def bccd_int8_graph(bccd_graph: Graph, bccd_part: Path, make_graph: MakeGraph) -> Graph:
    """INT8 with the rest in FP32."""
    return make_graph("bccd.int8", lambda path: quantize_quickly(bccd_graph, bccd_part, path))


@pytest.fixture(scope="session")
def bccd_full_range_graph(bccd_graph: Graph, bccd_part: Path, make_graph: MakeGraph) -> Graph:
    """INT8 with weight codes up to 127, which is exact only where products are added in 32 bits."""
    return make_graph("bccd.127", lambda path: quantize_quickly(bccd_graph, bccd_part, path, weight_codes=FULL_RANGE))
