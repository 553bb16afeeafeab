"""From engines to a report on disk: what stands in it, what is refused, and that nothing is half-written."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image

from edge_effdet import benchmark
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.backends.base import BACKENDS
from edge_effdet.benchmarking import stage
from edge_effdet.benchmarking.baseline import read_report
from edge_effdet.benchmarking.options import BenchmarkConfig
from edge_effdet.benchmarking.record import Report
from edge_effdet.benchmarking.stage import FILES, benchmark_engines
from edge_effdet.errors import BackendUnavailable, DataError, InputError, MissingDependency, UsageError
from tests.bench_backends import make_engine

PREPARE = "tests.bench_backends:prepare"
SCHEMA = Path(__file__).parents[3] / "docs" / "benchmark-report.schema.json"
pytestmark = pytest.mark.usefixtures("standing_in", "no_peaks")


@pytest.fixture
def no_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's peaks take seconds and have tests of their own."""
    monkeypatch.setattr(stage, "measure_peaks", lambda threads: None)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six pictures with a white box each, which the stand-ins find."""
    folder = tmp_path / "data"
    folder.mkdir()
    images, annotations = [], []
    for number in range(6):
        pixels = np.zeros((64, 64, 3), np.uint8)
        pixels[10:50, 10 + number : 40] = 255
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 64, "height": 64})
        box = [10 + number, 10, 30 - number, 40]
        annotations.append(
            {"id": number, "image_id": number, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        )
    labels = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "box"}]}
    (folder / "labels.json").write_text(json.dumps(labels))
    return folder


def run(tmp_path: Path, *backends: str, **options: object) -> Report:
    engines = [make_engine(tmp_path, backend) for backend in backends]
    return benchmark_engines(engines, BenchmarkConfig(output=tmp_path / "report", **options), prepare=PREPARE)


def test_a_report_of_two_engines(tmp_path: Path, data: Path):
    report = run(tmp_path, "even", "slower", data=data, split="all")
    folder = tmp_path / "report"
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    raw = json.loads((folder / "report.json").read_text())
    jsonschema.validate(raw, json.loads(SCHEMA.read_text()))
    assert from_json(Report, raw) == report == read_report(folder / "report.json")
    even, slower = report.rows
    assert report.advice.pick == "even.fp32.fake" == even.name
    # AP and time are those of one file.
    assert even.quality.engine_sha256 == even.engine_sha256 and even.quality.AP == pytest.approx(1, abs=0.05)
    assert slower.quality.drop == pytest.approx(0) and slower.quality.reference == even.name
    assert report.images.kind == "labelled" and report.images.count == even.quality.images == 6
    assert not report.differences
    for name in ("report.html", "report.md"):
        text = (folder / name).read_text()
        assert all(sentence.split(" (")[0].split(",")[0] in text for sentence in report.advice.sentences[:1])
        assert "slower.fp32.fake" in text


def test_without_data_the_report_says_so(tmp_path: Path):
    report = run(tmp_path, "even")
    assert report.rows[0].quality is None and report.images.kind == "drawn"
    assert any("AP was not measured" in note for note in report.notes)
    assert "AP was not measured" in report.advice.sentences[0]


def test_a_row_that_crashed_is_kept_and_the_others_are_complete(tmp_path: Path, data: Path):
    report = run(tmp_path, "even", "crashing", "absent", data=data)
    even, crashing, absent = report.rows
    assert even.skipped is None and even.quality is not None
    assert "SIGABRT" in crashing.skipped and "no such accelerator" in absent.skipped
    assert report.advice.pick == even.name
    page = (tmp_path / "report" / "report.html").read_text()
    assert "SIGABRT" in page and "no such accelerator" in page


def test_where_no_engine_can_run_the_reason_is_raised_and_nothing_is_written(tmp_path: Path):
    with pytest.raises(BackendUnavailable, match="no such accelerator"):
        run(tmp_path, "absent")
    assert not (tmp_path / "report").exists()


def test_the_same_engines_are_no_regression_and_a_slower_one_is(tmp_path: Path, data: Path):
    run(tmp_path, "even", data=data)
    old = tmp_path / "report" / "report.json"
    baseline = tmp_path / "old.json"
    old.rename(baseline)
    # Other programs may take the processors meanwhile; what is planted below is more than they can.
    report = run(tmp_path, "even", data=data, baseline=baseline, max_slowdown=60.0)
    assert report.comparison.changes and not report.comparison.regressions
    assert "nothing got worse" in " ".join(report.advice.sentences)
    # An engine of the same name that takes twice the time.
    engine = make_engine(tmp_path, "slower", name="even")
    config = BenchmarkConfig(output=tmp_path / "report", baseline=baseline, data=data, max_slowdown=20.0)
    slower = benchmark_engines([engine], config, prepare=PREPARE)
    worse = {change.figure: change for change in slower.comparison.regressions}
    assert worse["time of the network, ms (median)"].percent.value == pytest.approx(100, abs=40)
    assert "regression" in " ".join(slower.advice.sentences)


def test_the_baselines_own_engine_runs_again_where_it_is_still_at_its_place(tmp_path: Path, data: Path):
    old = tmp_path / "old"
    old.mkdir()
    engine = make_engine(old, "slower", content=b"engine of before")
    benchmark_engines(engine, BenchmarkConfig(output=old, data=data, split="all"), prepare=PREPARE)
    now = make_engine(tmp_path, "even", name="slower")
    config = BenchmarkConfig(output=tmp_path / "report", data=data, split="all", baseline=old / "report.json")
    report = benchmark_engines(now, config, prepare=PREPARE)
    assert [row.name for row in report.rows] == ["slower.fp32.fake"]
    network = next(change for change in report.comparison.changes if change.figure.startswith("time of the network"))
    # Half of the time.
    assert network.paired and network.percent.value == pytest.approx(-50, abs=25)
    ap = next(change for change in report.comparison.changes if change.figure.startswith("AP"))
    assert ap.paired and ap.percent.value == 0 and not report.comparison.regressions


def test_a_picture_that_cannot_be_decoded_ends_nothing(tmp_path: Path, data: Path):
    picture = data / "3.png"
    picture.write_bytes(picture.read_bytes()[:60])
    report = run(tmp_path, "even", data=data, split="all")
    assert report.rows[0].skipped is None and report.images.count == report.rows[0].quality.images == 5


def test_an_engine_that_crashes_now_is_a_regression(tmp_path: Path):
    run(tmp_path, "even")
    baseline = tmp_path / "old.json"
    (tmp_path / "report" / "report.json").rename(baseline)
    engines = [make_engine(tmp_path, "crashing", name="even"), make_engine(tmp_path, "slower")]
    config = BenchmarkConfig(output=tmp_path / "report", baseline=baseline)
    (worse,) = benchmark_engines(engines, config, prepare=PREPARE).comparison.regressions
    assert worse.figure == "measured to the end" and "SIGABRT" in worse.text


def test_of_times_on_other_pictures_only_the_networks_is_compared(tmp_path: Path, data: Path):
    run(tmp_path, "even")
    baseline = tmp_path / "old.json"
    (tmp_path / "report" / "report.json").rename(baseline)
    comparison = run(tmp_path, "even", data=data, baseline=baseline).comparison
    assert {change.figure for change in comparison.changes} == {"time of the network, ms (median)"}
    assert any("other pictures" in sentence for sentence in comparison.missing)
    with pytest.raises(UsageError, match="`threads`"):
        run(tmp_path, "even", baseline=baseline, threads=1)


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ("time_lanes", "was replaced before it was loaded"),
        ("look_into_lanes", "was changed or removed while it was measured"),
    ],
)
def test_an_engine_that_is_replaced_meanwhile_loses_its_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, said: str
):
    engines = [make_engine(tmp_path, "even"), make_engine(tmp_path, "slower")]
    measure = getattr(stage, last)

    def replaced(*arguments: object) -> None:
        measure(*arguments)
        engines[1].path.write_bytes(b"engine of the night")

    monkeypatch.setattr(stage, last, replaced)
    report = benchmark_engines(engines, BenchmarkConfig(output=tmp_path / "report"), prepare=PREPARE)
    assert report.rows[0].skipped is None and said in report.rows[1].skipped


def test_engines_with_other_classes_are_judged_each_by_itself(tmp_path: Path, data: Path):
    """The second engine calls the box its second class."""
    engine, other = make_engine(tmp_path, "even"), make_engine(tmp_path, "slower")
    spec = replace(engine.spec, class_names=("bird", "box"), category_ids=(1, 2))
    record = replace(other.require_record(), spec=spec)
    other = replace(other, spec=spec, record=record)
    report = benchmark_engines([engine, other], BenchmarkConfig(output=tmp_path / "report", data=data), prepare=PREPARE)
    assert [row.quality.drop for row in report.rows] == [None, None] and not report.differences


def test_the_command_ends_with_4_on_a_regression_and_has_written_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        benchmark, "benchmark_engines", lambda engines, config: benchmark_engines(engines, config, prepare=PREPARE)
    )
    make_engine(tmp_path, "even")
    arguments = ["--engine", str(tmp_path / "even.fp32.fake"), "--output", str(tmp_path / "report")]
    assert benchmark.main([*arguments, "--quick"]) == 0
    assert "even.fp32.fake" in capsys.readouterr().out
    baseline = tmp_path / "old.json"
    (tmp_path / "report" / "report.json").rename(baseline)
    make_engine(tmp_path, "slower", name="even")
    assert benchmark.main([*arguments, "--baseline", str(baseline)]) == 4
    printed = capsys.readouterr()
    assert (
        printed.err.startswith("error: even.fp32.fake, time of") and "beyond the bound" in printed.err.splitlines()[-1]
    )
    assert (tmp_path / "report" / "report.json").is_file()


def test_a_baseline_of_another_machine_is_refused_unless_told(tmp_path: Path):
    run(tmp_path, "even")
    raw = json.loads((tmp_path / "report" / "report.json").read_text())
    raw["machine"]["cpu"]["name"] = "Cortex-A78AE"
    baseline = tmp_path / "old.json"
    baseline.write_text(json.dumps(raw))
    with pytest.raises(UsageError, match=r"another machine .*Cortex-A78AE.*`any_machine`"):
        run(tmp_path, "even", baseline=baseline)
    report = run(tmp_path, "even", baseline=baseline, any_machine=True)
    assert not report.comparison.same_machine and report.comparison.changes


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 9}', '{"format": 1}'])
def test_what_is_no_report_is_refused_before_anything_is_measured(tmp_path: Path, content: str):
    baseline = tmp_path / "old.json"
    baseline.write_text(content)
    with pytest.raises(InputError, match=r"old\.json"):
        run(tmp_path, "even", baseline=baseline)
    assert not (tmp_path / "report").exists()


def test_data_of_other_classes_is_refused_before_anything_is_measured(tmp_path: Path, data: Path):
    text = (data / "labels.json").read_text()
    (data / "labels.json").write_text(
        text.replace('"id": 1, "name": "box"', '"id": 7, "name": "bird"').replace(
            '"category_id": 1', '"category_id": 7'
        )
    )
    with pytest.raises(DataError, match="bird"):
        run(tmp_path, "even", data=data)
    assert not (tmp_path / "report").exists()


def test_the_report_never_overwrites_what_is_read(tmp_path: Path, data: Path):
    baseline = tmp_path / "report" / "report.json"
    run(tmp_path, "even")
    before = baseline.read_bytes()
    with pytest.raises(UsageError, match="overwrite"):
        run(tmp_path, "even", baseline=baseline)
    assert baseline.read_bytes() == before
    with pytest.raises(UsageError, match="`output`"):
        benchmark_engines(make_engine(tmp_path, "even"), BenchmarkConfig(output=data, data=data))


def test_one_engine_given_twice_is_refused(tmp_path: Path):
    engine = make_engine(tmp_path, "even")
    with pytest.raises(UsageError, match="given twice"):
        benchmark_engines([engine, engine.path], BenchmarkConfig(output=tmp_path / "report"))
    with pytest.raises(UsageError, match="`engine`"):
        benchmark_engines([], BenchmarkConfig(output=tmp_path / "report"))


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    with pytest.raises(MissingDependency, match=r"edge-effdet\[benchmark\]"):
        run(tmp_path, "even")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_leaves_the_old_report_whole(tmp_path: Path):
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("this container may not mount")
    try:
        for name in FILES:
            (folder / name).write_text("old")
        report = run(tmp_path, "even")
        # Nothing of it fits, since notes are in all three.
        with pytest.raises(InputError, match="disk full"):
            stage.write_report(replace(report, notes=("x" * 200_000,)), folder)
        assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(FILES, "old")
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_pictures_that_another_process_would_not_find_are_sent(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    """Relative paths work, whatever folder an engine's process has."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3]))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    engine = make_engine(tmp_path, "even")
    monkeypatch.chdir(tmp_path)
    report = benchmark_engines(engine.path.name, BenchmarkConfig(output="report", data="data"), prepare=PREPARE)
    assert report.rows[0].quality is not None
    assert (
        report.settings.command == "python -m edge_effdet.benchmark --engine even.fp32.fake --output report --data data"
    )
    assert to_json(report) and "even" in BACKENDS
