"""``build_engine --backend fastest``, with the backends that are installed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_effdet import build_engine
from edge_effdet.artifacts import Graph
from edge_effdet.backends.base import BACKENDS
from edge_effdet.runtime.detector import Detector
from tests.integration.conftest import QUICK


def test_the_winner_is_built_and_the_race_is_in_its_json(
    bccd_graph: Graph, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = f"--onnx {bccd_graph.path} --fp32 --backend fastest --name x --output {tmp_path} --json"
    assert build_engine.main(arguments.split()) == 0
    said = capsys.readouterr()
    path = Path(json.loads(said.out)["engine"])
    assert path.parent == tmp_path
    record = json.loads(path.with_name(path.name + ".json").read_text())
    race = record["race"]
    assert record["backend"] == race["winner"]
    assert (race["precision"], race["graph_sha256"]) == ("fp32", bccd_graph.sha256)
    rows = {row["backend"]: row for row in race["backends"]}
    assert set(rows) == set(BACKENDS)
    assert all((row["skipped"] is None) != (row["latency"] is None) for row in rows.values())
    timed = {name: row["latency"]["median_ms"] for name, row in rows.items() if row["latency"]}
    assert {"onnxruntime", "openvino"} <= set(timed)
    assert min(timed, key=lambda name: timed[name]) == race["winner"]
    assert f"backend {race['winner']} is the fastest here" in said.err
    # The record that is written last is the one whose hash is checked.
    with Detector.load(path) as detector:
        assert detector.spec == bccd_graph.spec


@pytest.mark.slow
@pytest.mark.data
def test_int8_is_raced_as_int8(bccd_graph: Graph, bccd_part: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = (
        f"--onnx {bccd_graph.path} --int8 --backend fastest --name x --output {tmp_path} --json "
        f"--calibration-data {bccd_part} {QUICK}"
    )
    assert build_engine.main(arguments.split()) == 0
    record = json.loads(capsys.readouterr().out)
    race = record["race"]
    assert (race["precision"], race["graph_sha256"]) == ("int8", bccd_graph.sha256)
    timed = {row["backend"]: row["latency"]["median_ms"] for row in race["backends"] if row["latency"]}
    assert {"onnxruntime", "openvino"} <= set(timed)
    assert record["backend"] == race["winner"] == min(timed, key=lambda name: timed[name])
    assert record["proof"]["graph_int8_mac_fraction"] == 1.0
    # The drafts that were raced are gone.
    assert {path.name for path in (tmp_path / "graphs").iterdir()} == {"x.int8.onnx"}
