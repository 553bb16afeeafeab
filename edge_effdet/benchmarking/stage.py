"""Measure engines and write the report: ``(engines, BenchmarkConfig) -> Report``."""

from __future__ import annotations

import base64
import contextlib
import logging
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timezone
from importlib import import_module, metadata
from os import PathLike
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import (
    Engine,
    atomic_output,
    json_text,
    load_engine,
    printable,
    refuse_overwrite,
    require_writable,
)
from edge_effdet.artifacts.reading import to_json
from edge_effdet.backends.base import get_backend
from edge_effdet.benchmarking.advice import advise
from edge_effdet.benchmarking.baseline import (
    BEFORE,
    compare_reports,
    counterpart,
    engines_of,
    kind_of,
    read_report,
    require_same_machine,
)
from edge_effdet.benchmarking.evidence import read_evidence
from edge_effdet.benchmarking.host.machine import describe_machine
from edge_effdet.benchmarking.host.sensors import Sensors
from edge_effdet.benchmarking.load import find_loadgen
from edge_effdet.benchmarking.measure import Lane, look_into_lanes, open_lanes, row_of, sustain_lanes, time_lanes
from edge_effdet.benchmarking.options import BenchmarkConfig
from edge_effdet.benchmarking.peaks import measure_peaks
from edge_effdet.benchmarking.quality import compare_quality, find_differences, measure_quality, reference_row
from edge_effdet.benchmarking.record import Difference, Images, Machine, Report, Row, Settings
from edge_effdet.data.base import Dataset, Sample, match_classes, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError, MissingDependency, UsageError, first_line
from edge_effdet.evaluation.intervals import drop_interval
from edge_effdet.evaluation.run import SCORE_FLOOR, SPLIT_ORDER
from edge_effdet.evaluation.seen import calibrated_on
from edge_effdet.options import as_path
from edge_effdet.runtime.dicom import DICOM_SUFFIXES
from edge_effdet.runtime.golden import draw_pictures, encode_picture, read_golden
from edge_effdet.runtime.images import open_picture

logger = logging.getLogger("edge_effdet.benchmark")

FILES = ("report.html", "report.md", "report.json")

MOST_PICTURES = 64
"""Different pictures that the timed runs go through."""

NEEDED = {"jinja2": "to write the report", "matplotlib": "to draw the report's charts"}


@dataclass(frozen=True, slots=True)
class _Pictures:
    """What is run and judged.

    Attributes:
        described: for the report.
        contents: the contents of the files that the timed runs decode, or the files.
        samples: the labelled images for each engine, by its name; empty without data.
        refused: why AP cannot be measured for an engine, by its name.
        remarks: what has to be known of the AP, a sentence each.
    """

    described: Images
    contents: Sequence[bytes | Path]
    samples: Mapping[str, Sequence[Sample]]
    refused: Mapping[str, str]
    remarks: Sequence[str] = ()


def benchmark_engines(
    engines: str | PathLike[str] | Engine | Sequence[str | PathLike[str] | Engine],
    config: BenchmarkConfig,
    *,
    prepare: str = "",
) -> Report:
    """Time engines in turns, each in a process of its own, judge them, and write the report. All that ``benchmark`` does on the command line.

    >>> from edge_effdet import BenchmarkConfig, benchmark_engines
    >>> report = benchmark_engines("engines/bccd.int8.onnx", BenchmarkConfig(data="bccd", output="measured"))
    >>> verdict, row = report.advice.sentences, report.rows[0]
    >>> median_ms, best_rate = row.scenario("SingleStream").p50_ms.value, row.scenario("Offline").rate.value

    Args:
        engines: one engine or several, opened or as their files.
        config: what is measured, and the folder to write into.
        prepare: a function, as ``module:function``, that each engine's process calls before it loads the engine, as for a backend that
            another package adds to ``BACKENDS``.

    Returns:
        The report, which also stands in ``config.output``. An engine that could not be measured to the end has a row with the reason;
        ``report.comparison.regressions`` lists what got worse than in the baseline.

    Raises:
        EngineError: an engine is missing or damaged, or does not belong to its JSON.
        DataError: the data cannot be read, or its classes are those of no engine.
        UsageError: the report would overwrite what is read, or the baseline is of another machine.
        BackendUnavailable: none of the engines can run here.
        MissingDependency: the packages of the extra ``benchmark`` are not installed.
    """
    opened = _open(engines)
    output, data, old = Path(config.output), as_path(config.data), as_path(config.baseline)
    for package, purpose in {**NEEDED, **({"faster_coco_eval": "to compute COCO metrics"} if data else {})}.items():
        _require_package(package, purpose)
    pictures = _read_pictures(opened, data, config)
    read = [path for _, engine in opened for path in (engine.path, engine.json_path)]
    images = [sample.path for own in pictures.samples.values() for sample in own]
    refuse_overwrite([output / name for name in FILES], [*read, data, old, *images])
    require_writable(output, keep=False)
    machine = describe_machine()
    baseline, same_machine = None, True
    again: list[tuple[str, Engine]] = []
    if old is not None:
        baseline = read_report(old)
        same_machine = require_same_machine(baseline, machine, config.threads, config.any_machine)
        again = engines_of(baseline, opened) if same_machine else []
    notes = [*(f"{name}: {reason}" for name, reason in pictures.refused.items()), *pictures.remarks]
    if data is None:
        notes.append(
            f"No labelled images were given, so AP was not measured; the timed runs decode {_picture_words(pictures.described)}."
        )
    with open_lanes([*opened, *again], pictures.contents, config, prepare) as lanes:
        mine = lanes[: len(opened)]
        errors = [lane.error for lane in mine if lane.error is not None]
        if len(errors) == len(mine):
            raise errors[0]
        with Sensors(ours=lambda: [lane.worker.pid for lane in lanes if lane.worker is not None]) as sensors:
            started = time.perf_counter()
            time_lanes(lanes, config.effort, config.latency_bound)
            _detect(lanes, pictures)
            if config.sustain_seconds:
                sustain_lanes(mine, config.sustain_seconds, sensors)
            # Last, for a profiler that fails must cost no other figure.
            look_into_lanes(mine, config.effort)
            for lane in lanes:
                lane.require_unchanged()
            rows = _judge([row_of(lane, sensors, read_evidence(lane.engine)) for lane in mine], mine, pictures, notes)
            repeated = [] if baseline is None else _repeat(lanes[len(opened) :], mine, rows, baseline, sensors)
            limited = sensors.reading(started).limited
            notes += sensors.missing
        differences = _differences(rows, mine, pictures, config)
    machine = _with_peaks(replace(machine, limits=replace(machine.limits, throttled_share=limited)), opened, rows)
    notes += [
        f"{lane.name}: where the network's time goes is not known: {lane.no_profile}"
        for lane in mine
        if lane.no_profile and lane.error is None
    ]
    comparison = None
    if baseline is not None:
        comparison = compare_reports(baseline, rows, repeated, pictures.described, config, same_machine)
    report = Report(
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        advice=advise(rows, config.max_ap_drop, comparison),
        settings=_settings(config, [engine for _, engine in opened]),
        images=pictures.described,
        machine=machine,
        rows=rows,
        comparison=comparison,
        notes=tuple(notes),
        differences=differences,
    )
    write_report(report, output)
    return report


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.html``, ``report.md`` and ``report.json`` into a folder, which is made where it is missing."""
    from edge_effdet.benchmarking.report.markdown import markdown_text
    from edge_effdet.benchmarking.report.page import page_text

    texts = {
        "report.html": page_text(report),
        "report.md": markdown_text(report),
        "report.json": json_text(to_json(report), indent=2) + "\n",
    }
    # On a full disk none of them is replaced, so that all three are always of one run.
    with contextlib.ExitStack() as stack:
        for name, text in texts.items():
            stack.enter_context(atomic_output(folder / name)).write_text(printable(text), encoding="utf-8")


def _require_package(package: str, purpose: str) -> None:
    try:
        import_module(package)
    except ImportError as error:
        raise MissingDependency(package, "benchmark", purpose) from error


def _open(given: str | PathLike[str] | Engine | Sequence[str | PathLike[str] | Engine]) -> list[tuple[str, Engine]]:
    each = [given] if isinstance(given, str | PathLike | Engine) else list(given)
    if not each:
        raise UsageError("There is no engine to measure; give `engine` one or more.")
    engines = [one if isinstance(one, Engine) else load_engine(Path(one)) for one in each]
    names = [printable(engine.path.name) for engine in engines]
    if len(set(names)) < len(names):
        names = [printable(str(engine.path)) for engine in engines]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"The engine {twice} is given twice; give each engine once.")
    return list(zip(names, engines, strict=True))


def _read_pictures(engines: Sequence[tuple[str, Engine]], data: Path | None, config: BenchmarkConfig) -> _Pictures:
    if data is None:
        return _own_pictures(engines)
    dataset = read_dataset(data, boxes_in=config.boxes_in)
    samples: dict[str, Sequence[Sample]] = {}
    refused: dict[str, DataError] = {}
    split, remarks = "", []
    for name, engine in engines:
        chosen = _samples_for(engine, dataset, config.split)
        if isinstance(chosen, DataError):
            refused[name] = chosen
        else:
            split, samples[name] = chosen
            remarks += calibrated_on(engine, dataset, samples[name])
    if not samples:
        raise next(iter(refused.values()))
    own = next(iter(samples.values()))
    if not any((~sample.ignore).any() for sample in own):
        raise DataError(
            f"None of the {len(own)} images of {data} has a labelled box, so AP is not defined; leave `data` out or give labelled images."
        )
    chosen = [own[index] for index in np.linspace(0, len(own) - 1, min(MOST_PICTURES, len(own))).round().astype(int)]
    timed = [(sample, content) for sample in chosen if (content := _content(sample)) is not None]
    if not timed:
        raise DataError(f"None of the {len(chosen)} images that would be timed can be decoded; check the files.")
    contents = [content for _, content in timed]
    described = Images(
        kind="labelled",
        count=len(contents),
        name=printable(dataset.root.name or str(dataset.root)),
        split=split,
        sha256=samples_sha256(own),
        median_size=_median_size([(sample.height, sample.width) for sample, _ in timed]),
        class_names=tuple(printable(name) for name in dataset.class_names),
    )
    told = {name: f"AP was not measured: {error}" for name, error in refused.items()}
    return _Pictures(described, contents, samples, told, tuple(remarks))


def _samples_for(engine: Engine, dataset: Dataset, split: str | None) -> tuple[str, Sequence[Sample]] | DataError:
    """The split that an engine is judged on and its images, or why the engine cannot be judged on this data."""
    try:
        return match_classes(dataset, engine.spec).choose_judged(split, SPLIT_ORDER)
    except DataError as error:
        return error


def _content(sample: Sample) -> bytes | Path | None:
    """A picture for the timed runs: the content of its file, or the file, where only that can be decoded; None where it cannot be."""
    path = sample.path.resolve()
    try:
        picture = path if path.suffix.lower() in DICOM_SUFFIXES else path.read_bytes()
        open_picture(picture)
    except (OSError, DataError, MissingDependency) as error:
        logger.warning("%s is not among the timed pictures: %s", sample.path, first_line(error))
        return None
    return picture


def _own_pictures(engines: Sequence[tuple[str, Engine]]) -> _Pictures:
    for _, engine in engines:
        golden = read_golden(engine)
        if golden is not None:
            contents = [base64.b64decode(each.jpeg) for each in golden.pictures]
            kind = "golden" if golden.kind == "pictures" else "drawn"
            return _Pictures(
                Images(kind=kind, count=len(contents), median_size=engine.spec.image_size), contents, {}, {}
            )
    spec = engines[0][1].spec
    contents = [encode_picture(picture) for picture in draw_pictures(spec.image_size, 8)]
    return _Pictures(Images(kind="drawn", count=len(contents), median_size=spec.image_size), contents, {}, {})


def _median_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    height, width = np.median(np.array(sizes), axis=0).astype(int).tolist()
    return height, width


def _picture_words(images: Images) -> str:
    size = f"{images.median_size[1]}x{images.median_size[0]} pixels, the size of the network's input, so a camera's picture takes longer to decode"
    what = {"golden": "golden pictures that travel with the engine", "drawn": "drawn pictures"}[images.kind]
    return f"{images.count} {what} of {size}"


def _detect(lanes: Sequence[Lane], pictures: _Pictures) -> None:
    """Run each engine over the labelled images; one of the baseline's over those of an engine here with the same classes."""
    by_classes = {
        lane.engine.spec.class_names: pictures.samples[lane.name] for lane in lanes if lane.name in pictures.samples
    }
    for lane in lanes:
        samples = pictures.samples.get(lane.name) or by_classes.get(lane.engine.spec.class_names)
        if not lane.alive or samples is None or lane.opened is None or lane.name in pictures.refused:
            continue
        answer = lane.ask("detect", samples, seconds=len(samples) * (lane.opened.answer_s + 0.1))
        if answer is not None:
            lane.samples, lane.detections = answer


def _judge(rows: Sequence[Row], lanes: Sequence[Lane], pictures: _Pictures, notes: list[str]) -> tuple[Row, ...]:
    judged: list[Row] = []
    for row, lane in zip(rows, lanes, strict=True):
        quality = None
        if lane.detections is not None:
            try:
                quality = measure_quality(lane.engine, lane.samples, lane.detections)
            except DataError as error:
                notes.append(f"{lane.name}: AP was not measured: {error}")
            lost = len(pictures.samples[lane.name]) - len(lane.samples)
            if lost:
                notes.append(f"{lane.name}: {lost} of the labelled images could not be decoded and are not counted.")
        judged.append(replace(row, quality=quality))
    found = {lane.name: lane.detections for lane in lanes if lane.detections is not None}
    samples = {lane.name: lane.samples for lane in lanes if lane.detections is not None}
    return compare_quality(judged, samples, found, {lane.name: lane.engine.spec.class_names for lane in lanes})


def _repeat(
    lanes: Sequence[Lane], mine: Sequence[Lane], rows: Sequence[Row], baseline: Report, sensors: Sensors
) -> list[Row]:
    """The rows of the baseline's own engines, with the points of AP that each of them lost against its counterpart here."""
    repeated: list[Row] = []
    for lane in lanes:
        row = row_of(lane, sensors, None)
        for now, own in zip(rows, mine, strict=True):
            before = counterpart(kind_of(now), baseline.rows)
            if before is None or before.name + BEFORE != lane.name or now.quality is None or own.detections is None:
                continue
            alike = lane.engine.spec.class_names == own.engine.spec.class_names and len(lane.samples) == len(
                own.samples
            )
            if lane.detections is not None and alike:
                quality = measure_quality(lane.engine, lane.samples, lane.detections)
                interval = drop_interval(own.samples, own.detections, lane.detections, lane.engine.spec.num_classes)
                drop = 100 * (now.quality.AP - quality.AP)
                row = replace(row, quality=replace(quality, reference=now.name, drop=drop, drop_interval=interval))
        repeated.append(row)
    return repeated


def _differences(
    rows: Sequence[Row], lanes: Sequence[Lane], pictures: _Pictures, config: BenchmarkConfig
) -> tuple[Difference, ...]:
    """Of the reference and of the engine that loses most, or is the least precise."""
    by_name = {lane.name: lane for lane in lanes}
    judged = [row for row in rows if row.quality is not None]
    if len(judged) < 2 or not config.pictures:
        return ()
    reference = reference_row(judged)
    others = [row for row in judged if row is not reference and row.quality is not None and row.quality.reference]
    if not others:
        return ()
    order = ("int8", "fp16", "fp32")
    other = min(
        others, key=lambda row: (order.index(row.precision), -(row.quality.drop or 0.0) if row.quality else 0.0)
    )
    # Rows that name a reference have its classes.
    first, second = by_name[reference.name], by_name[other.name]
    assert first.detections is not None and second.detections is not None
    return find_differences(
        first.samples,
        first.engine.spec,
        (first.name, first.detections),
        (second.name, second.detections),
        config.score_threshold,
        config.pictures,
    )


def _with_peaks(machine: Machine, engines: Sequence[tuple[str, Engine]], rows: Sequence[Row]) -> Machine:
    """Measure what the processor reaches at best, where an engine runs on it."""
    threads = [row.threads for row in rows if row.threads and row.skipped is None]
    if not threads or not any(get_backend(engine.backend).TRAITS.on_cpu for _, engine in engines):
        return machine
    return replace(machine, peaks=measure_peaks(max(threads)))


def _settings(config: BenchmarkConfig, engines: Sequence[Engine]) -> Settings:
    return Settings(
        mode=config.mode,
        rounds=config.effort.rounds,
        score_threshold=config.score_threshold,
        quality_threshold=SCORE_FLOOR,
        bound_ms=config.latency_bound,
        driver=find_loadgen()[1],
        threads=config.threads,
        command=_command(config, engines),
        version=metadata.version("edge-effdet"),
    )


def _command(config: BenchmarkConfig, engines: Sequence[Engine]) -> str:
    words = ["python", "-m", "edge_effdet.benchmark"]
    for engine in engines:
        words += ["--engine", str(engine.path)]
    for item in fields(config):
        value = getattr(config, item.name)
        if value == item.default:
            continue
        if item.name == "mode":
            words.append(f"--{value}")
        elif isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{item.name.replace('_', '-')}")
        else:
            words += ["--" + item.name.replace("_", "-"), str(value)]
    return printable(shlex.join(words))
