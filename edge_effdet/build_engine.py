"""The main job: checkpoint or graph to an engine that is proven: export, optimize, quantize, compile, verify."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import (
    Engine,
    Graph,
    atomic_output,
    engine_json_path,
    file_sha256,
    require_writable,
    write_json,
)
from edge_effdet.backends.arithmetic import portable_weight_codes
from edge_effdet.backends.base import BACKENDS, CompileOptions, choose_automatically, get_backend, require
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.backends.runtime_cache import SUFFIX as RUNTIME_CACHE
from edge_effdet.cli import Result, add_options, make_parser, option, options_from, run_verb
from edge_effdet.data.dataset import (
    Dataset,
    Sample,
    match_classes,
    read_dataset,
    readable_images,
    samples_manifest,
)
from edge_effdet.errors import AccuracyGateFailed, GraphError, MissingDependency, UsageError
from edge_effdet.gate import DEFAULT_BUDGET, Budget, judge, parse_budget
from edge_effdet.golden import KINDS, draw_pictures, find_best, make_golden, measure_agreement, without_pictures
from edge_effdet.graph.targets import TARGETS
from edge_effdet.measure import find_in_graph, graph_as_engine, measure_accuracy, measure_latency, save_example
from edge_effdet.preprocess import letterbox
from edge_effdet.quant.calibration import CalibrationImages, refuse_overlap
from edge_effdet.quantize import (
    CalibrationOptions,
    QuantizeOptions,
    Search,
    calibration_dataset,
    calibration_images_from,
    convert_graph_to_half,
    draft_int8,
    quantize_graph,
)
from edge_effdet.race import Race, race_backends
from edge_effdet.summary import build_report

logger = logging.getLogger("edge_effdet.build_engine")

GATE_SPLIT_ORDER = ("val", "test")
NMS_PLACES = ("host", "efficientnms")
CANDIDATES = 8
"""Pictures that are looked at, of which those with most objects become the golden ones."""

FALL_BACK = {"int8": ("fp16", "fp32"), "fp16": ("fp32",), "fp32": ()}
HALF_BY_NATURE = ("tensorrt", "tensorrt-rtx")
"""Backends on which what is not INT8 runs in FP16: a GPU gains by it, a CPU only loses."""


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
        nms: one of ``NMS_PLACES``.
        calibration_table, search: see ``quantize_graph``.
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


@dataclass(frozen=True, slots=True)
class BackendOptions:
    backend: str = option("auto", help="what compiles and runs the engine", choices=("auto", "fastest", *BACKENDS))
    target: str = option("", help="tensorrt-rtx: SM versions, as in 86+89+120")
    workspace_mib: int = option(0, help="TensorRT: limit of the builder's scratch memory, 0 for none")
    timing_cache: Path | None = option(None, help="TensorRT: a file that keeps the timings of kernels between builds")
    batch_sizes: str = option(
        "1,8", help="TensorRT, with --batch-size 0: what it is tuned for, the last being the most"
    )
    nms: str = option("host", help="where boxes are suppressed; efficientnms is TensorRT's plugin", choices=NMS_PLACES)


@dataclass(frozen=True, slots=True)
class GateOptions:
    eval_data: Path | None = option(None, help="labelled images to measure the AP on, before and after")
    split: str | None = option(None, help="their split (default: val, else test, else everything)")
    max_ap_drop: str | None = option(
        None,
        help=f"points of AP that may be lost (default: {DEFAULT_BUDGET}), or none; an engine that surely loses more ends with exit code 4",
    )
    fall_back: bool = option(
        False, help="where no backend keeps the loss within that, build FP16 instead, and FP32 after it"
    )
    golden: str = option(
        "pictures",
        help="what travels with the engine to check it on other machines: three calibration pictures, drawn ones, or none",
        choices=KINDS,
    )
    search: bool = option(
        False, help="with --int8: find the convolutions that have to stay high for a loss within --max-ap-drop"
    )
    search_split: str | None = option(None, help="whose AP the search looks at (default: val); never the gate's own")
    search_target: str = option("orin-nano-8gb", help="whose time the search saves", choices=tuple(TARGETS))


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
        return convert_graph_to_half(graph, output)
    assert images is not None
    return quantize_graph(graph, images, options, output, table, search)


def parse_batch_sizes(text: str) -> tuple[int, ...]:
    """``1,8`` to (1, 8). Raises UsageError for anything but whole numbers; that they ascend, ``CompileOptions`` sees to."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"--batch-sizes {text} are no whole numbers that ascend; write 1,8, for example.")
    return tuple(map(int, words))


def require_nms(nms: str, backend: str) -> None:
    """Raises UsageError where the backend has no such suppression."""
    if nms == "efficientnms" and backend != "tensorrt":
        why = "and the fastest backend may be another" if backend == "fastest" else f"which {backend} does not have"
        raise UsageError(
            f"--nms efficientnms is a plugin of TensorRT, {why}; leave it out, and the boxes are suppressed on the host, or "
            "give --backend tensorrt on a machine that has it."
        )


def compile_engine(graph: Graph, backend: str, options: CompileOptions, path: Path, nms: str = "host") -> Engine:
    """Compile a graph, write the engine atomically, and describe it; the caller writes the JSON when it is complete.

    Raises:
        BackendUnavailable: the backend does not work here.
        GraphError: it refuses the graph.
    """
    import onnx_ir as ir

    from edge_effdet.quant.account import compile_with_account, prove_engine

    available = require(backend)
    content, account = compile_with_account(graph, backend, options)
    proof = prove_engine(ir.load(str(graph.path)), account)
    if proof.warning is not None:
        logger.warning("%s", proof.warning)
    with atomic_output(path) as temporary:
        temporary.write_bytes(content)
    target = options.target or getattr(get_backend(backend), "DEFAULT_TARGET", available.device)
    record = {
        "format": 1,
        "spec": graph.spec.to_dict(),
        "engine": path.name,
        "engine_sha256": file_sha256(path),
        "backend": backend,
        "backend_version": available.version,
        "target": target,
        "precision": graph.precision,
        "nms": nms,
        "proof": proof.to_dict(),
        "calibration": dict(graph.calibration),
        "accuracy": None,
        "measured_on": None,
        "engine_verified": False,
        "latency": None,
        "reference": None,
        "rewrites": dict(graph.rewrites),
        "parents": {**graph.parents, "compiled_graph": graph.sha256},
        "built_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return Engine(path, graph.spec, backend, graph.precision, record)


def _source_graph(arguments: argparse.Namespace, output: Path) -> tuple[str, Graph]:
    """The name of what is built and its FP32 graph, exported unless it is given."""
    from edge_effdet.export import ExportOptions, export_network, load_source
    from edge_effdet.graph.model import load_graph, require_detections

    if arguments.onnx is not None:
        if arguments.checkpoint is not None:
            raise UsageError("Both --checkpoint and --onnx were given; give one of them.")
        exporting = ("model", "classes", "image_size", "fusion", "batch_size", "fuse_separable", "fuse_target")
        given = [f"--{name.replace('_', '-')}" for name in exporting if getattr(arguments, name) is not None]
        if given:
            raise UsageError(f"{given[0]} says how to export, and {arguments.onnx} is exported already; leave it out.")
        graph = load_graph(arguments.onnx)
        require_detections(graph)
        return arguments.name or arguments.onnx.name.split(".")[0], graph
    checkpoint = arguments.checkpoint
    if checkpoint is None:
        from edge_effdet.quickstart import quickstart_checkpoint

        checkpoint = quickstart_checkpoint()
    network, spec, parents = load_source(
        checkpoint, arguments.model, arguments.image_size, arguments.classes, fusion=arguments.fusion
    )
    default = checkpoint.resolve().parent.name if checkpoint.stem in ("best", "last") else checkpoint.stem
    name = arguments.name or default
    logger.info("exporting %s", spec.name)
    options = ExportOptions(
        batch_size=1 if arguments.batch_size is None else arguments.batch_size,
        fuse_separable=arguments.fuse_separable or "keep",
        fuse_target=arguments.fuse_target,
        fuse_precision=arguments.precision if arguments.fuse_separable == "auto" else None,
    )
    export = export_network(network, spec, parents, output / "graphs" / f"{name}.fp32.onnx", options)
    return name, export.graph


def _complete_quickstart(
    calibration: CalibrationOptions, gate: GateOptions, output: Path
) -> tuple[CalibrationOptions, GateOptions]:
    from edge_effdet.quickstart import quickstart_scenes

    scenes = None
    if calibration.calibration_data is None:
        scenes = quickstart_scenes(output)
        calibration = replace(calibration, calibration_data=scenes, calibration_split="calibration")
    if gate.eval_data is None:
        # The model was chosen on its val scenes; test is the split that nothing has seen.
        gate = replace(gate, eval_data=scenes or quickstart_scenes(output), split="test")
    return calibration, gate


def build_engine(
    job: BuildJob,
    precision: str,
    backend: str,
    quantizing: QuantizeOptions,
    race: Race | None = None,
    lowered: Graph | None = None,
) -> Engine:
    """Lower, compile, measure, judge, and write ``<name>.<precision>.<ext>`` and its JSON into the job's folder.

    Args:
        job: what is built.
        precision: ``fp32``, ``fp16`` or ``int8``.
        backend: a name of ``backends.base.BACKENDS``.
        quantizing: how INT8 is made.
        race: why this backend, for the record.
        lowered: the graph in this precision, where an earlier try with the same options made it already.

    Returns:
        The engine, whose record says under ``gate`` whether it may be used.
    """
    require_nms(job.nms, backend)
    require_writable(job.output)
    graph = job.graph
    path = job.output / f"{job.name}.{precision}{get_backend(backend).SUFFIX}"
    built = lowered or lower_graph(
        graph, precision, job.images, quantizing, lowered_path(job, precision), job.calibration_table, job.search
    )
    compiled = built
    if job.nms == "efficientnms":
        from edge_effdet.graph.efficient_nms import attach_efficient_nms

        compiled = attach_efficient_nms(built, job.output / "graphs" / f"{job.name}.{precision}.efficientnms.onnx")
    logger.info("compiling %s with %s", precision.upper(), backend)
    # Compiled and measured aside: a build that fails or is interrupted leaves neither an engine without its JSON nor
    # an earlier engine without its own.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=job.output) as aside:
        engine = compile_engine(compiled, backend, job.compiling, Path(aside) / path.name, job.nms)
        engine = _verify(engine, job, built)
        # A JSON of an earlier build must not stand beside the new engine, should this build be killed in between.
        engine_json_path(path).unlink(missing_ok=True)
        # That of an earlier engine, which another backend would never replace, goes; that of this one comes along.
        kept, cache = (each.with_name(path.name + RUNTIME_CACHE) for each in (engine.path, path))
        cache.unlink(missing_ok=True)
        os.replace(engine.path, path)
        if kept.exists():
            os.replace(kept, cache)
    record = {**engine.record, "gate": judge(engine.record, job.budget).to_dict()}
    if race is not None:
        record["race"] = race.to_dict()
    # The golden pictures are long, and a person reads from the top.
    record["golden"] = record.pop("golden")
    engine = replace(engine, path=path, record=record)
    write_json(engine.json_path, engine.record)
    if job.evaluation is not None:
        shown = engine if require(backend).runs_here else graph_as_engine(built)
        save_example(shown, job.evaluation[1], path.with_suffix(".jpg"))
    return engine


def lowered_path(job: BuildJob, precision: str) -> Path:
    """Where the graph in this precision is kept."""
    return job.output / "graphs" / f"{job.name}.{precision}.onnx"


def _verify(engine: Engine, job: BuildJob, built: Graph) -> Engine:
    """Fill in the parts of the record that are measured."""
    changes: dict[str, Any] = {}
    graph, evaluation = job.graph, job.evaluation
    runs_here = require(engine.backend).runs_here
    runner_backend = engine.backend if runs_here else "onnxruntime"
    if evaluation is not None:
        split, samples = evaluation
        logger.info("measuring AP before and after on %d images (split %s)", len(samples), split)
        accuracy = measure_accuracy(engine, graph, built, samples, split)
        changes["accuracy"] = {**accuracy.to_dict(), "machine": machine_fingerprint(runner_backend).to_dict()}
        changes["measured_on"] = accuracy.measured_on
        changes["engine_verified"] = runs_here
    image = _any_image(evaluation, engine)
    timed = {"engine": engine} if runs_here else {}
    if built.sha256 != graph.sha256:
        timed["reference"] = graph_as_engine(graph)
    latencies = dict(zip(timed, measure_latency(list(timed.values()), image), strict=True))
    changes["latency"] = latencies.get("engine")
    if "reference" in timed:
        size = graph.path.stat().st_size
        changes["reference"] = {"sha256": graph.sha256, "bytes": size, "latency": latencies["reference"]}
    changes |= _look_at_pictures(engine, job, built, runs_here)
    return replace(engine, record={**engine.record, **changes})


def _look_at_pictures(engine: Engine, job: BuildJob, built: Graph, runs_here: bool) -> dict[str, Any]:
    """Whether the engine finds what its graph finds, and the golden pictures that it carries to other machines."""
    photos = photographs(job)
    shown = engine if runs_here else graph_as_engine(built)
    kind = job.golden if job.golden != "pictures" or photos else "drawn"
    images = draw_pictures(engine.spec.image_size, CANDIDATES) if kind == "drawn" else photos
    changes: dict[str, Any] = {}
    with get_backend(shown.backend).load(shown) as runner:
        found = [find_best(runner, engine.spec, picture) for picture in photos] if runs_here else []
        fingerprint = machine_fingerprint(shown.backend)
        changes["golden"] = make_golden(runner, engine.spec, images, kind, engine.precision, fingerprint)
    if found:
        title = "the FP32 graph" if job.graph.precision == "fp32" else "the same graph, computed exactly"
        exact = find_in_graph(built, photos)
        reference = find_in_graph(job.graph, photos) if job.graph.sha256 != built.sha256 else exact
        changes["agreement"] = measure_agreement(reference, exact, found, title).to_dict()
    return changes


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


def make_argument_parser() -> argparse.ArgumentParser:
    from edge_effdet.export import add_source_options

    parser = make_parser(
        "build_engine",
        "Build an engine and prove it: export, optimize, quantize, compile, verify.",
        "python -m edge_effdet.build_engine --checkpoint runs/bccd/best.safetensors --int8 \\\n"
        "      --calibration-data bccd --eval-data bccd --output engines",
    )
    add_source_options(parser)
    parser.add_argument("--onnx", type=Path, metavar="F", help="a graph of export or quantize, instead of a checkpoint")
    precision = parser.add_mutually_exclusive_group(required=True)
    for name in ("fp32", "fp16", "int8"):
        precision.add_argument(
            f"--{name}", dest="precision", action="store_const", const=name, help=f"build in {name.upper()}"
        )
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a run; 0 for a dynamic batch (default: 1)")
    parser.add_argument("--fuse-separable", choices=("keep", "dense", "auto"), help="as in export (default: keep)")
    parser.add_argument("--fuse-target", choices=tuple(TARGETS), help="as in export, for auto")
    add_options(parser, BackendOptions, CalibrationOptions, QuantizeOptions, GateOptions)
    # Only a build knows which backend will run the rest of the graph.
    parser.set_defaults(high_precision=None, weight_codes=None)
    parser.add_argument("--name", metavar="NAME", help="of the files (default: the checkpoint's)")
    parser.add_argument("--output", type=Path, default=Path("engines"), metavar="DIR", help="folder (default: engines)")
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    try:
        import onnx_ir  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx-ir", "export", "to build engines") from error

    backend_options = options_from(BackendOptions, arguments)
    compiling = CompileOptions(
        backend_options.target,
        backend_options.workspace_mib,
        backend_options.timing_cache,
        parse_batch_sizes(backend_options.batch_sizes),
    )
    fastest = backend_options.backend == "fastest"
    backend = "" if fastest else _choose_backend(backend_options.backend)
    require_nms(backend_options.nms, backend_options.backend if fastest else backend)
    calibration, gate = options_from(CalibrationOptions, arguments), options_from(GateOptions, arguments)
    own_model = arguments.checkpoint is not None or arguments.onnx is not None
    budget = parse_budget(gate.max_ap_drop)
    if budget.asked and budget.points is not None and gate.eval_data is None and own_model:
        raise UsageError("--max-ap-drop needs labelled images to measure AP on; add --eval-data D.")
    if gate.search and (budget.points is None or (gate.eval_data is None and own_model)):
        raise UsageError("--search needs a budget and labelled images; add --max-ap-drop X and --eval-data D.")
    if gate.search and arguments.precision != "int8":
        raise UsageError("--search chooses what becomes INT8, and there is nothing to choose here; leave it out.")
    output: Path = arguments.output
    require_writable(output)
    name, graph = _source_graph(arguments, output)
    if graph.precision not in ("fp32", arguments.precision):
        raise UsageError(
            f"{graph.path} is {graph.precision} already, so it cannot become {arguments.precision}; give the FP32 graph."
        )
    if budget.asked and budget.points is not None and graph.precision != "fp32":
        raise UsageError(
            f"{graph.path} is {graph.precision} already, so there is no FP32 graph here to lose AP against; leave "
            "--max-ap-drop out, or give the FP32 graph."
        )
    if not own_model:
        calibration, gate = _complete_quickstart(calibration, gate, output)
    evaluation = None
    images = None
    dataset = read_dataset(gate.eval_data) if gate.eval_data is not None else None
    if dataset is not None:
        evaluation = match_classes(dataset, graph.spec).choose_split(gate.split, GATE_SPLIT_ORDER)
    if arguments.precision == "int8" and graph.precision == "fp32":
        shared = dataset if calibration.calibration_data == gate.eval_data else None
        images = calibration_images_from(shared or calibration_dataset(calibration), calibration, graph)
    manifest = images.manifest if images is not None else graph.calibration.get("manifest", {})
    if evaluation is not None and manifest:
        refuse_overlap(manifest, samples_manifest(evaluation[1]))
    search = _search_options(gate, budget, dataset, graph, evaluation)
    if search is not None:
        refuse_overlap(manifest, samples_manifest(search.samples))
    job = BuildJob(
        name=name,
        graph=graph,
        output=output,
        images=images,
        evaluation=evaluation,
        compiling=compiling,
        nms=backend_options.nms,
        calibration_table=calibration.calibration_table,
        search=search,
        golden=gate.golden,
        budget=budget,
    )
    engine = _build_within_budget(job, arguments, backend, gate)
    # The record names the file beside it; a script wants to find it.
    return Result(build_report(engine), {**without_pictures(engine.record), "engine": str(engine.path)})


def _build_within_budget(job: BuildJob, arguments: argparse.Namespace, backend: str, gate: GateOptions) -> Engine:
    """The first engine that the gate lets pass: of the backends in the order of the race, then in the precisions to fall back to.

    Raises:
        AccuracyGateFailed: none passed.
    """
    from edge_effdet.graph.model import load_graph

    failed: list[str] = []
    lowered: dict[tuple[str, QuantizeOptions], Graph] = {}
    engine: Engine | None = None
    precisions = (arguments.precision, *(FALL_BACK[arguments.precision] if gate.fall_back else ()))
    for precision in precisions:
        race, order = None, (backend,)
        if not backend:
            try:
                race = _race(arguments, job, precision)
            except AccuracyGateFailed as error:
                failed.append(str(error))
                continue
            order = race.order
            logger.info("%s", race.text())
        for name in order:
            if failed:
                logger.warning("building %s with %s instead: %s", precision.upper(), name, failed[-1])
            options = _quantizing(arguments, name)
            engine = build_engine(job, precision, name, options, race, lowered.get((precision, options)))
            if engine.record["gate"]["passed"]:
                return _with_history(engine, failed)
            failed.append(f"{precision.upper()} by {name}: {engine.record['gate']['text']}")
            if lowered_path(job, precision).is_file():
                lowered[precision, options] = load_graph(lowered_path(job, precision))
    remedy = "let --search find the layers that have to stay high"
    if gate.search:
        remedy = f"give the search a smaller budget than the gate's (it kept its own on {gate.search_split or 'val'})"
    kept = f"{engine.path} was built and is kept, but it is not within the budget" if engine else "No engine was built"
    raise AccuracyGateFailed(
        f"{kept} ({'; '.join(failed)}); {remedy}, calibrate on more images, fine-tune with train --qat, use --fp16, or move the "
        "budget with --max-ap-drop."
    )


def _with_history(engine: Engine, failed: Sequence[str]) -> Engine:
    """Write into the record what was tried before and did not pass."""
    if not failed:
        return engine
    engine = replace(engine, record={**engine.record, "gate": {**engine.record["gate"], "tried_before": list(failed)}})
    record = dict(engine.record)
    record["golden"] = record.pop("golden")
    write_json(engine.json_path, record)
    return engine


def _quantizing(arguments: argparse.Namespace, backend: str) -> QuantizeOptions:
    given = argparse.Namespace(**vars(arguments))
    # None where it was not given: the backend decides.
    given.high_precision = given.high_precision or ("fp16" if backend in HALF_BY_NATURE else "fp32")
    given.weight_codes = portable_weight_codes(backend) if given.weight_codes is None else given.weight_codes
    return options_from(QuantizeOptions, given)


def _race(arguments: argparse.Namespace, job: BuildJob, precision: str) -> Race:
    """Race the backends with the graph in the precision that is to be built."""
    graph, images, pictures = job.graph, job.images, photographs(job)
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        if precision == "fp16":
            half = lower_graph(graph, "fp16", None, QuantizeOptions(), Path(folder) / "fp16.onnx")
            return race_backends(half, job.compiling, pictures=pictures, reference=graph)
        if precision == "fp32" or images is None:
            return race_backends(graph, job.compiling, pictures=pictures)
        drafts: dict[tuple[str, int], Graph] = {}

        def draft(backend: str) -> Graph:
            options = _quantizing(arguments, backend)
            key = (options.high_precision, options.weight_codes)
            if key not in drafts:
                path = Path(folder) / f"{options.high_precision}-{options.weight_codes}.onnx"
                try:
                    drafts[key] = draft_int8(graph, images, options, path)
                except GraphError as error:
                    # A tensor may be 0 on the draft's few images and not on all of them.
                    logger.warning("%s is raced in FP32, since no draft in INT8 could be made: %s", backend, error)
                    drafts[key] = graph
            return drafts[key]

        return race_backends(graph, job.compiling, draft=draft, pictures=pictures)


def _search_options(
    gate: GateOptions,
    budget: Budget,
    dataset: Dataset | None,
    graph: Graph,
    evaluation: tuple[str, Sequence[Sample]] | None,
) -> Search | None:
    """What a search is judged by: labelled images that the gate does not measure on, where the data has them."""
    if not gate.search:
        return None
    # Refused where they are missing, before anything was read.
    assert budget.points is not None and dataset is not None and evaluation is not None
    split, samples = match_classes(dataset, graph.spec).choose_split(gate.search_split, ("val",))
    if split in ("all", evaluation[0]):
        logger.warning(
            "the search is judged by the images of the gate (split %s), so that the gate's drop flatters; judge by --split test",
            evaluation[0],
        )
        samples = evaluation[1]
    logger.info("searching on %d images (split %s)", len(samples), split)
    return Search(samples, budget.points, gate.search_target)


def _choose_backend(name: str) -> str:
    if name != "auto":
        require(name)
        return name
    chosen, passed_over = choose_automatically()
    reason = f" ({'; '.join(passed_over)})" if passed_over else ""
    logger.info("backend %s, chosen automatically%s", chosen, reason)
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
