"""One engine: lower, compile, measure, judge: ``(graph, options) -> Engine``."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import (
    Engine,
    EngineRecord,
    Graph,
    atomic_output,
    engine_json_path,
    file_sha256,
    has_sha256,
    replace_engine,
    require_writable,
    temporary_folder,
    waiting_record_path,
)
from edge_effdet.artifacts.reading import from_json
from edge_effdet.artifacts.record import Agreement, Calibration, Golden, Race, Reference
from edge_effdet.backends.base import CompileOptions, get_backend, load_runner, require
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.backends.runtime_cache import SUFFIX as RUNTIME_CACHE
from edge_effdet.backends.runtime_cache import runtime_cache_path
from edge_effdet.building.example import save_example
from edge_effdet.building.gate import Budget, judge
from edge_effdet.data.base import (
    Sample,
    readable_images,
)
from edge_effdet.errors import GraphError, InputError, UsageError
from edge_effdet.evaluation.accuracy import find_in_graph, graph_as_engine, measure_accuracy
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.stage import (
    QuantizeOptions,
    Search,
    convert_to_fp16,
    quantize_on_images,
)
from edge_effdet.runtime.agreement import find_best, measure_agreement
from edge_effdet.runtime.golden import draw_pictures, make_golden
from edge_effdet.runtime.latency import measure_latency
from edge_effdet.runtime.preprocess import letterbox

logger = logging.getLogger("edge_effdet.build_engine")


CANDIDATES = 8
"""Pictures that are looked at, of which those with most objects become the golden ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """What is built, whichever backend and precision it is tried with.

    Attributes:
        name: of the files.
        graph: FP32, or already in the precision that is built.
        output: a folder.
        images: calibration images, for INT8 from an FP32 graph.
        evaluation: the split's name and labelled samples to measure AP on, or None.
        compiling: options for the compiler.
        nms: one of ``building.options.NMS_PLACES``.
        calibration_table, search: see ``quantize_on_images``.
        golden: one of ``golden.KINDS``.
        budget: points of AP that may be lost.
    """

    name: str
    graph: Graph
    output: Path
    images: CalibrationImages | None = None
    evaluation: tuple[str, Sequence[Sample]] | None = None
    compiling: CompileOptions = field(default_factory=CompileOptions)
    nms: str = "host"
    calibration_table: Path | None = None
    search: Search | None = None
    golden: str = "pictures"
    budget: Budget = field(default_factory=Budget)


def lower_graph(
    graph: Graph,
    precision: str,
    images: CalibrationImages | None,
    options: QuantizeOptions,
    output: Path,
    table: Path | None = None,
    search: Search | None = None,
) -> Graph:
    """FP32 graph to the precision wanted; FP32 is returned as it is."""
    if precision == "fp32" or graph.precision == precision:
        return graph
    if precision == "fp16":
        return convert_to_fp16(graph, output)
    assert images is not None
    return quantize_on_images(graph, images, options, output, table, search)


def require_nms(nms: str, backend: str) -> None:
    """Raises UsageError where the backend has no such suppression."""
    if nms == "efficientnms" and (backend == "fastest" or not get_backend(backend).TRAITS.suppresses):
        why = "and the fastest backend may be another" if backend == "fastest" else f"which {backend} does not have"
        raise UsageError(
            f"`nms` efficientnms is a plugin of TensorRT, {why}; leave it out, and the boxes are suppressed on the host, or "
            "give `backend` tensorrt on a machine that has it."
        )


def compile_engine(graph: Graph, backend: str, options: CompileOptions, path: Path, nms: str = "host") -> Engine:
    """Compile a graph, write the engine atomically, and describe it; the caller writes the JSON when it is complete.

    Raises:
        BackendUnavailable: the backend does not work here.
        GraphError: it refuses the graph.
    """
    import onnx_ir as ir

    from edge_effdet.quant.account import account_of, prove_engine

    available = require(backend)
    compiled = get_backend(backend).compile(graph, options)
    proof = prove_engine(ir.load(str(graph.path)), account_of(compiled, graph, backend))
    if proof.warning is not None:
        logger.warning("%s", proof.warning)
    with atomic_output(path) as temporary:
        temporary.write_bytes(compiled.content)
    digest = file_sha256(path)
    record = EngineRecord(
        engine=path.name,
        engine_sha256=digest,
        spec=graph.spec,
        backend=backend,
        backend_version=available.version,
        target=options.target or get_backend(backend).TRAITS.default_target or available.device,
        precision=graph.precision,
        nms=nms,
        proof=proof.record(),
        calibration=_calibration(graph),
        rewrites=dict(graph.rewrites),
        parents={**graph.parents, "compiled_graph": graph.sha256},
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    return Engine(path, graph.spec, backend, graph.precision, digest, record)


def _calibration(graph: Graph) -> Calibration | None:
    if not graph.calibration:
        return None
    try:
        return from_json(Calibration, graph.calibration)
    except ValueError as error:
        raise GraphError(
            f"What {graph.path} says of its calibration is damaged ({error}); quantize the FP32 graph again."
        ) from error


def build_engine(
    job: BuildJob,
    precision: str,
    backend: str,
    quantizing: QuantizeOptions,
    race: Race | None = None,
    lowered: Graph | None = None,
    tried_before: Sequence[str] = (),
) -> Engine:
    """Lower, compile, measure, judge, and write ``<name>.<precision>.<ext>`` and its JSON into the job's folder.

    Args:
        job: what is built.
        precision: ``fp32``, ``fp16`` or ``int8``.
        backend: a name of ``backends.base.BACKENDS``.
        quantizing: how INT8 is made.
        race: why this backend, for the record.
        lowered: the graph in this precision, where an earlier try with the same options made it; made again where its file is another's
            by now.
        tried_before: what did not pass before, a clause each, for the record.

    Returns:
        The engine, whose record says under ``gate`` whether it may be used.

    Raises:
        InputError: another build replaced a graph meanwhile, so what was measured need not belong together.
    """
    require_nms(job.nms, backend)
    require_writable(job.output)
    graph = job.graph
    path = engine_path(job.output, job.name, precision, backend)
    if lowered is not None and not (
        lowered.parents.get("graph") == graph.sha256 and has_sha256(lowered.path, lowered.sha256)
    ):
        lowered = None
    built = lowered or lower_graph(
        graph,
        precision,
        job.images,
        quantizing,
        lowered_path(job.output, job.name, precision),
        job.calibration_table,
        job.search,
    )
    compiled = built
    if job.nms == "efficientnms":
        from edge_effdet.graph.rules.efficient_nms import attach_efficient_nms

        compiled = attach_efficient_nms(built, suppressing_path(job.output, job.name, precision))
    logger.info("compiling %s with %s", precision.upper(), backend)
    # Compiled, measured and judged aside: until all is known of the new engine, the earlier one stays.
    with temporary_folder(job.output) as aside:
        try:
            engine = _verify(compile_engine(compiled, backend, job.compiling, aside / path.name, job.nms), job, built)
        finally:
            _require_unchanged(graph, built, compiled)
        record = engine.require_record()
        verdict = judge(record.accuracy, record.agreement, job.budget, tuple(tried_before))
        kept, cache = (each.with_name(path.name + RUNTIME_CACHE) for each in (engine.path, path))
        engine = replace_engine(replace(engine, record=replace(record, gate=verdict, race=race)), path)
        # That of an earlier engine, which another backend would never replace, goes; that of this one comes along where it is read.
        if kept.exists() and runtime_cache_path(engine) == cache:
            os.replace(kept, cache)
        else:
            cache.unlink(missing_ok=True)
    if job.evaluation is not None:
        shown = engine if require(backend).runs_here else graph_as_engine(built)
        save_example(shown, job.evaluation[1], _example_path(path))
    return engine


def _require_unchanged(*graphs: Graph) -> None:
    """Raises InputError where another build replaced a graph. It is no GraphError, for another backend or precision is not the way out."""
    for each in graphs:
        if not has_sha256(each.path, each.sha256):
            raise InputError(
                f"{each.path} was replaced while an engine was built from it, it seems by another build; build again, one after the other or each "
                "into an `output` of its own."
            )


def engine_path(output: Path, name: str, precision: str, backend: str) -> Path:
    """The engine in the folder of a build."""
    return output / f"{name}.{precision}{get_backend(backend).SUFFIX}"


def lowered_path(output: Path, name: str, precision: str) -> Path:
    """Where a build keeps the graph in this precision."""
    return output / "graphs" / f"{name}.{precision}.onnx"


def suppressing_path(output: Path, name: str, precision: str) -> Path:
    """Where a build keeps the graph with suppression inside."""
    return output / "graphs" / f"{name}.{precision}.efficientnms.onnx"


def engine_files(output: Path, name: str, precision: str, backend: str) -> list[Path]:
    """An engine and what is written beside it: its record, under both of its names, what its runtime keeps, the annotated example."""
    path = engine_path(output, name, precision, backend)
    records = [engine_json_path(path), waiting_record_path(path)]
    return [path, *records, path.with_name(path.name + RUNTIME_CACHE), _example_path(path)]


def _example_path(engine: Path) -> Path:
    return engine.with_suffix(".jpg")


def _verify(engine: Engine, job: BuildJob, built: Graph) -> Engine:
    """Fill in the parts of the record that are measured."""
    record, graph, evaluation = engine.require_record(), job.graph, job.evaluation
    runs_here = require(engine.backend).runs_here
    if evaluation is not None:
        split, samples = evaluation
        logger.info("measuring AP before and after on %d images (split %s)", len(samples), split)
        accuracy = measure_accuracy(engine, graph, built, samples, split)
        record = replace(record, accuracy=accuracy, engine_verified=runs_here)
    image = _any_image(evaluation, engine)
    timed = {"engine": engine} if runs_here else {}
    if built.sha256 != graph.sha256:
        timed["reference"] = graph_as_engine(graph)
    latencies = dict(zip(timed, measure_latency(list(timed.values()), image), strict=True))
    record = replace(record, latency=latencies.get("engine"))
    if "reference" in timed:
        reference = Reference(graph.sha256, graph.path.stat().st_size, latencies["reference"])
        record = replace(record, reference=reference)
    agreement, golden = _look_at_pictures(engine, job, built, runs_here)
    return replace(engine, record=replace(record, agreement=agreement, golden=golden))


def _look_at_pictures(engine: Engine, job: BuildJob, built: Graph, runs_here: bool) -> tuple[Agreement | None, Golden]:
    """Whether the engine finds what its graph finds, and the golden pictures that it carries to other machines."""
    compared, drawn = comparison_pictures(job)
    shown = engine if runs_here else graph_as_engine(built)
    agreement, kind, why = None, job.golden, ""
    if kind == "pictures" and drawn:
        kind = "drawn"
    images = draw_pictures(engine.spec.image_size, CANDIDATES) if kind == "drawn" and not drawn else compared
    with load_runner(shown) as runner:
        if runs_here:
            title = "the FP32 graph" if job.graph.precision == "fp32" else "the graph that was given"
            exact = find_in_graph(built, compared)
            reference = find_in_graph(job.graph, compared) if job.graph.sha256 != built.sha256 else exact
            found = [find_best(runner, engine.spec, picture) for picture in compared]
            agreement = measure_agreement(reference, exact, found, title, engine.precision, drawn)
            if not agreement.backend_right and kind != "none":
                # What a backend gets wrong here must not become what other machines are measured by.
                why, kind = "the engine does not find what its graph finds", "none"
        fingerprint = machine_fingerprint(shown.backend)
        golden = make_golden(runner, engine.spec, images, kind, engine.precision, fingerprint)
    return agreement, replace(golden, why=why) if why else golden


def comparison_pictures(job: BuildJob) -> tuple[list[np.ndarray], bool]:
    """What engines are compared on, uint8 [H, W, 3] in the size of the network's input, and whether it is drawn.

    A few calibration images, or else evaluation images, letterboxed; drawn pictures where there are neither.
    """
    photos = photographs(job)
    return (photos, False) if photos else (draw_pictures(job.graph.spec.image_size, CANDIDATES), True)


def photographs(job: BuildJob) -> list[np.ndarray]:
    """A few calibration images, or else evaluation images, letterboxed: uint8 [H, W, 3] in the size of the network's input."""
    if job.images is not None:
        samples: Sequence[Sample] = job.images.first(CANDIDATES).samples
    else:
        samples = job.evaluation[1][:CANDIDATES] if job.evaluation is not None else ()
    spec = job.graph.spec
    return [letterbox(image, spec.image_size, spec.preprocess)[0] for _, image in readable_images(samples)]


def _any_image(evaluation: tuple[str, Sequence[Sample]] | None, engine: Engine) -> np.ndarray:
    for _, image in readable_images(evaluation[1] if evaluation else ()):
        return image
    # Latency does not depend on what the pixels show, but for NMS, which is not timed.
    return np.full((*engine.spec.image_size, 3), engine.spec.preprocess.fill_color, np.uint8)
