"""The engine of a bundle, built where it runs: kept where it finds what its graph found, and refused where it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest

from edge_effdet.artifacts import json_text, load_engine
from edge_effdet.artifacts.reading import to_json
from edge_effdet.artifacts.record import Accuracy, Calibration
from edge_effdet.backends.base import CompileOptions, load_runner
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.building.engine import compile_engine
from edge_effdet.device import engine as device_engine
from edge_effdet.device.engine import DEVICE_RECORD, DeviceBuildOptions, build_on_device, main
from edge_effdet.device.manifest import read_bundle, write_manifest
from edge_effdet.errors import AccuracyGateFailed, BundleError, UsageError
from edge_effdet.quant.proof import list_convolutions
from edge_effdet.runtime import latency
from edge_effdet.runtime.golden import _golden_sha256, make_golden
from tests.bundles import make_manifest
from tests.emulation.small_detector import make_pictures, write_small_detector

ACCURACY = Accuracy(AP=0.4, AP50=0.7, images=9, split="test", measured_on="engine", data_sha256="0" * 64)


@pytest.fixture(autouse=True)
def _few_timed_runs(monkeypatch):
    few = partial(latency.Turns, runs=2, warm_up=1)
    monkeypatch.setattr(latency, "Turns", few)
    monkeypatch.setattr(device_engine, "Turns", few)


@pytest.fixture
def write_bundle(tmp_path):
    """Writes a bundle of the small detector; ``change`` changes the record that the host wrote."""

    def write(change=lambda record: record, name="small"):
        folder = tmp_path / "bundle of möbel"
        for each in ("graphs", "records", "layers", "wheels"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        graph = write_small_detector(folder / "graphs" / "small.int8.onnx", bits=7)
        built = compile_engine(graph, "onnxruntime", CompileOptions(), tmp_path / "host" / "small.int8.onnx")
        with load_runner(built) as runner:
            golden = make_golden(
                runner, graph.spec, make_pictures(), "pictures", "int8", machine_fingerprint("onnxruntime")
            )
        record = replace(built.require_record(), golden=golden, accuracy=ACCURACY, engine_verified=True)
        (folder / "records" / "int8.json").write_text(json_text(to_json(change(record))))
        layers = list_convolutions(ir.from_proto(onnx.load(graph.path)))
        (folder / "layers" / "int8.json").write_text(json.dumps([to_json(each) for each in layers]))
        (folder / "wheels" / "x.whl").write_bytes(b"")
        (folder / "requirements.txt").write_text("")
        manifest = make_manifest(name, wheel="wheels/x.whl")
        write_manifest(folder, manifest)
        return read_bundle(folder)

    return write


def test_an_engine_is_built_checked_and_timed_here(write_bundle, tmp_path):
    bundle, output = write_bundle(), tmp_path / "installed" / "engine"
    built = build_on_device(bundle, output, DeviceBuildOptions())
    engine = load_engine(built.path)
    record = engine.require_record()
    assert engine.path == output / "small.int8.onnx"
    assert record.parents["bundle"] == bundle.sha256
    assert record.latency is not None and record.latency.median_ms > 0
    # Byte for byte what the host measured, so its AP is this engine's.
    assert (record.accuracy.measured_on, record.engine_verified) == ("engine", True)
    # What onnxruntime makes of the graph was read on the host, and it is the same version here.
    assert (record.proof.counted_on, record.proof.int8_mac_fraction) == ("engine", 0.0)
    # The installer of the first release reads the record too, and knows no digest.
    assert "fields_sha256" not in json.loads(engine.json_path.read_text())
    told = json.loads((output / DEVICE_RECORD).read_text())
    assert told["golden"]["passed"] and told["golden"]["distance"] < 0.001
    assert sorted(path.name for path in output.parent.iterdir()) == ["engine"]


def test_another_backend_keeps_the_ap_of_the_graph(write_bundle, tmp_path):
    engine = build_on_device(write_bundle(), tmp_path / "engine", DeviceBuildOptions(backend="openvino"))
    record = engine.require_record()
    assert (record.accuracy.measured_on, record.engine_verified) == ("graph", False)
    assert (record.backend, record.proof.counted_on) == ("openvino", "engine")


def test_another_version_of_onnxruntime_is_not_claimed_to_run_it_alike(write_bundle, tmp_path):
    bundle = write_bundle(lambda record: replace(record, backend_version="1.0"))
    record = build_on_device(bundle, tmp_path / "engine", DeviceBuildOptions()).require_record()
    assert (record.proof.counted_on, record.proof.source) == ("graph", None)


def test_a_second_build_replaces_the_first(write_bundle, tmp_path):
    bundle, output = write_bundle(), tmp_path / "engine"
    build_on_device(bundle, output, DeviceBuildOptions(backend="openvino"))
    build_on_device(bundle, output, DeviceBuildOptions())
    assert load_engine(output / "small.int8.onnx").backend == "onnxruntime"


def lower_scores(record):
    """As a processor would leave it whose sums differ: the golden scores are others."""
    pictures = tuple(
        replace(each, scores=tuple(0.5 * score for score in each.scores)) for each in record.golden.pictures
    )
    golden = replace(record.golden, pictures=pictures)
    return replace(record, golden=replace(golden, sha256=_golden_sha256(golden)))


def test_an_engine_that_finds_other_objects_is_not_kept(write_bundle, tmp_path):
    output = tmp_path / "engine"
    with pytest.raises(
        AccuracyGateFailed, match=r"scores differ by \d+ %, and 10 % are allowed, so it is not to be used"
    ):
        build_on_device(write_bundle(lower_scores), output, DeviceBuildOptions())
    assert not output.exists()
    assert not list(tmp_path.glob(".engine*"))


def test_an_engine_that_was_there_stays_where_the_next_one_fails(write_bundle, tmp_path):
    output = tmp_path / "engine"
    first = build_on_device(write_bundle(), output, DeviceBuildOptions())
    with pytest.raises(AccuracyGateFailed):
        build_on_device(write_bundle(lower_scores), output, DeviceBuildOptions())
    assert load_engine(first.path).sha256 == first.sha256


def test_a_record_of_another_graph_is_refused(write_bundle, tmp_path):
    def of_another(record):
        return replace(record, parents={**record.parents, "compiled_graph": "1" * 64})

    with pytest.raises(BundleError, match="is not of the graph"):
        build_on_device(write_bundle(of_another), tmp_path / "engine", DeviceBuildOptions())


def test_a_precision_that_is_not_there_is_refused(write_bundle, tmp_path):
    with pytest.raises(BundleError, match="no graph in FP32, only in INT8"):
        build_on_device(write_bundle(), tmp_path / "engine", DeviceBuildOptions(precision="fp32"))


def test_calibration_travels_with_the_graph(write_bundle, tmp_path, monkeypatch):
    calibration = Calibration(
        method="max", images=1, split="", choice="", seed=0, manifest_sha256="0" * 64, manifest={"a.jpg": "1" * 64}
    )
    bundle = write_bundle(lambda record: replace(record, calibration=calibration))
    graph, record, _ = device_engine.read_graph(bundle, "int8")
    assert graph.calibration["manifest"] == {"a.jpg": "1" * 64}
    assert record.calibration == calibration


def test_a_limit_below_nothing_is_refused():
    with pytest.raises(UsageError, match="`workspace_mib` -1 makes no sense"):
        DeviceBuildOptions(workspace_mib=-1)


def test_the_command_prints_what_it_built(write_bundle, tmp_path, capsys):
    bundle = write_bundle()
    assert main(["--bundle", str(bundle.path), "--output", str(tmp_path / "engine"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert Path(told["engine"]).is_file() and Path(told["record"]).is_file()
    assert told["golden"]["passed"]


def test_the_command_ends_with_4_where_the_check_fails(write_bundle, tmp_path, capsys):
    bundle = write_bundle(lower_scores)
    assert main(["--bundle", str(bundle.path), "--output", str(tmp_path / "engine")]) == 4
    assert "install another --precision or --backend" in capsys.readouterr().err


def test_a_changed_bundle_is_refused(write_bundle, tmp_path, capsys):
    bundle = write_bundle()
    record = bundle.path / "records" / "int8.json"
    record.write_text(record.read_text().replace('"AP": 0.4', '"AP": 0.9'))
    assert main(["--bundle", str(bundle.path), "--output", str(tmp_path / "engine")]) == 2
    assert "its SHA-256 differs" in capsys.readouterr().err


def test_a_slow_machine_is_timed_with_fewer_runs(write_bundle, tmp_path, monkeypatch):
    monkeypatch.undo()
    engine = build_on_device(write_bundle(), tmp_path / "engine", DeviceBuildOptions())
    usual = latency.Turns()
    assert engine.require_record().latency.runs == usual.rounds * usual.runs
    assert device_engine.time_here(engine, seconds=0.0).runs == 1


def test_an_engine_is_loaded_once_to_be_timed(write_bundle, tmp_path, monkeypatch):
    """TensorRT takes seconds for it on a Jetson. Another time it is loaded for the golden check, whose runs have a limit."""
    loaded = []

    def load(engine, *more):
        loaded.append(engine.path.name)
        return load_runner(engine, *more)

    for module in (device_engine, latency):
        monkeypatch.setattr(module, "load_runner", load)
    build_on_device(write_bundle(), tmp_path / "engine", DeviceBuildOptions())
    assert loaded == ["small.int8.onnx"] * 2
