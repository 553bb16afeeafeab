"""An installation with a real small engine, as an install leaves it, and pictures to look at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from edge_effdet.artifacts import Engine, Graph, engine_json_path, file_sha256, write_json
from edge_effdet.artifacts.reading import to_json
from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from edge_effdet.device.store import Store, VersionRecord
from tests.emulation.small_detector import make_pictures, write_small_detector
from tests.records import write_record


@pytest.fixture(scope="session")
def small_graph(tmp_path_factory) -> Graph:
    return write_small_detector(tmp_path_factory.mktemp("graph") / "small.int8.onnx", bits=7)


@pytest.fixture
def add_version(small_graph) -> Callable[..., Engine]:
    """Puts a version into a store and switches to it; its environment is the one of the tests, and ``make`` writes its engine into a folder."""

    def compile_small(folder: Path) -> Engine:
        engine = compile_engine(small_graph, "onnxruntime", CompileOptions(), folder / "small.int8.onnx")
        write_record(engine)
        return engine

    def add(store: Store, name: str, make: Callable[[Path], Engine] = compile_small) -> Engine:
        version = store.version(name)
        version.engine_folder.mkdir(parents=True)
        version.venv.symlink_to(sys.prefix)
        engine = make(version.engine_folder)
        record = VersionRecord(
            bundle=name,
            bundle_sha256="0" * 64,
            release=name.split("-")[0],
            precision=engine.precision,
            backend=engine.backend,
            engine=f"engine/{engine.path.name}",
            engine_sha256=engine.sha256,
            record_sha256=file_sha256(engine_json_path(engine.path)),
            signed_by=None,
            keys=(),
        )
        write_json(version.folder / "complete.json", to_json(record))
        store.switch(store.count_up(store.version(name)))
        return engine

    return add


@pytest.fixture
def store(tmp_path, add_version) -> Store:
    store = Store.at(tmp_path / "ort mit möbeln", "small")
    store.create()
    add_version(store, "1.0-aaaa")
    return store


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(make_pictures()):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder
