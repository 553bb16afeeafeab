"""The main job: checkpoint or graph to an engine that is proven: export, optimize, quantize, compile, verify."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from edge_effdet.backends.base import BACKENDS, CompileOptions, choose_automatically, get_backend, require
from edge_effdet.backends.runtime_cache import SUFFIX as RUNTIME_CACHE
from edge_effdet.cli import Result, add_options, make_parser, option, options_from, run_verb, table
from edge_effdet.data.dataset import (
    Dataset,
    Sample,
    match_classes,
    read_dataset,
    readable_images,
    samples_manifest,
)
from edge_effdet.errors import AccuracyGateFailed, GraphError, MissingDependency, UsageError
from edge_effdet.graph.targets import TARGETS
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
from edge_effdet.verify import cpu_has_vnni, graph_as_engine, measure_accuracy, measure_latency, save_example

logger = logging.getLogger("edge_effdet.build_engine")

GATE_SPLIT_ORDER = ("val", "test")
NMS_PLACES = ("host", "efficientnms")
HALF_BY_NATURE = ("tensorrt", "tensorrt-rtx")
"""Backends on which what is not INT8 runs in FP16: a GPU gains by it, a CPU only loses."""


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
    max_ap_drop: float | None = option(None, help="points of AP that may be lost; more ends with exit code 4")
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

    from edge_effdet.quant.proof import prove_precision

    available = require(backend)
    content = get_backend(backend).compile(graph, options)
    proof = prove_precision(ir.load(str(graph.path)))
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


def summary_table(engine: Engine) -> str:
    """The engine for people, below the FP32 graph that it is compared with."""
    record = engine.record
    accuracy, proof, reference = record["accuracy"], record["proof"], record["reference"]

    def row(
        precision: str, backend: str, size: int, ap: str, drop: str, share: float, latency: dict[str, Any] | None
    ) -> Any:
        speed = f"{latency['median_ms']:.1f} ms" if latency else "does not run here"
        return precision, backend, f"{size / 1e6:.1f} MB", ap, drop, f"{100 * share:.1f} %", speed

    none = "not measured"
    rows = [("precision", "backend", "size", "AP", "AP drop", "MACs in INT8", "median latency")]
    if reference is not None:
        before = f"{100 * accuracy['reference_AP']:.1f}" if accuracy else none
        rows.append(row("FP32", "onnxruntime", reference["bytes"], before, "-", 0.0, reference["latency"]))
    drop = f"{accuracy['drop']:+.2f}" if accuracy and accuracy["drop"] is not None else none
    after = (f"{100 * accuracy['AP']:.1f}", drop) if accuracy else (none, none)
    share = proof["int8_mac_fraction"]
    size = engine.path.stat().st_size
    rows.append(row(engine.precision.upper(), engine.backend, size, *after, share, record["latency"]))
    return table(rows)


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
    name: str,
    graph: Graph,
    precision: str,
    backend: str,
    compiling: CompileOptions,
    quantizing: QuantizeOptions,
    images: CalibrationImages | None,
    evaluation: tuple[str, Sequence[Sample]] | None,
    output: Path,
    nms: str = "host",
    calibration_table: Path | None = None,
    search: Search | None = None,
) -> Engine:
    """Lower, compile, measure, and write ``<name>.<precision>.<ext>`` and its JSON into ``output``.

    Args:
        name: of the files.
        graph: FP32, or already of ``precision``.
        precision: ``fp32``, ``fp16`` or ``int8``.
        backend: a name of ``backends.base.BACKENDS``.
        compiling, quantizing: options of those stages.
        images: calibration images, for INT8 from an FP32 graph.
        evaluation: the split's name and labelled samples to measure AP on, or None.
        output: a folder.
        calibration_table, search: see ``quantize_graph``.
        nms: one of ``NMS_PLACES``.
    """
    require_nms(nms, backend)
    require_writable(output)
    path = output / f"{name}.{precision}{get_backend(backend).SUFFIX}"
    lowered = output / "graphs" / f"{name}.{precision}.onnx"
    built = lower_graph(graph, precision, images, quantizing, lowered, calibration_table, search)
    compiled = built
    if nms == "efficientnms":
        from edge_effdet.graph.efficient_nms import attach_efficient_nms

        compiled = attach_efficient_nms(built, output / "graphs" / f"{name}.{precision}.efficientnms.onnx")
    logger.info("compiling %s with %s", precision.upper(), backend)
    # Compiled and measured aside: a build that fails or is interrupted leaves neither an engine without its JSON nor
    # an earlier engine without its own.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=output) as aside:
        engine = compile_engine(compiled, backend, compiling, Path(aside) / path.name, nms)
        engine = _verify(engine, graph, built, evaluation)
        # A JSON of an earlier build must not stand beside the new engine, should this build be killed in between.
        engine_json_path(path).unlink(missing_ok=True)
        # That of an earlier engine, which another backend would never replace, goes; that of this one comes along.
        kept, cache = (each.with_name(path.name + RUNTIME_CACHE) for each in (engine.path, path))
        cache.unlink(missing_ok=True)
        os.replace(engine.path, path)
        if kept.exists():
            os.replace(kept, cache)
    engine = replace(engine, path=path)
    write_json(engine.json_path, engine.record)
    if evaluation is not None:
        shown = engine if require(backend).runs_here else graph_as_engine(built)
        save_example(shown, evaluation[1], path.with_suffix(".jpg"))
    return engine


def _verify(engine: Engine, graph: Graph, built: Graph, evaluation: tuple[str, Sequence[Sample]] | None) -> Engine:
    """Fill in the parts of the record that are measured."""
    changes: dict[str, Any] = {}
    runs_here = require(engine.backend).runs_here
    if evaluation is not None:
        split, samples = evaluation
        logger.info("measuring AP before and after on %d images (split %s)", len(samples), split)
        changes["accuracy"] = measure_accuracy(engine, graph, built, samples, split).to_dict()
        changes["measured_on"] = changes["accuracy"]["measured_on"]
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
    return replace(engine, record={**engine.record, **changes})


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
    parser.set_defaults(high_precision=None)
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
    if gate.max_ap_drop is not None and gate.eval_data is None and own_model:
        raise UsageError("--max-ap-drop needs labelled images to measure AP on; add --eval-data D.")
    if gate.search and gate.max_ap_drop is None:
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
    if gate.max_ap_drop is not None and graph.precision != "fp32":
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
    search = _search_options(gate, dataset, graph, evaluation)
    if search is not None:
        refuse_overlap(manifest, samples_manifest(search.samples))
    race = None
    if fastest:
        race = _race(arguments, graph, images, compiling)
        backend = race.winner
        logger.info("%s", race.text())
    engine = build_engine(
        name,
        graph,
        arguments.precision,
        backend,
        compiling,
        _quantizing(arguments, backend),
        images,
        evaluation,
        output,
        backend_options.nms,
        calibration.calibration_table,
        search,
    )
    if race is not None:
        engine = replace(engine, record={**engine.record, "race": race.to_dict()})
        write_json(engine.json_path, engine.record)
    _apply_gate(engine, gate)
    # The record names the file beside it; a script wants to find it.
    return Result(_report(engine), {**engine.record, "engine": str(engine.path)})


def _quantizing(arguments: argparse.Namespace, backend: str) -> QuantizeOptions:
    options = options_from(QuantizeOptions, arguments)
    # None where it was not given.
    return replace(options, high_precision=options.high_precision or ("fp16" if backend in HALF_BY_NATURE else "fp32"))


def _race(
    arguments: argparse.Namespace, graph: Graph, images: CalibrationImages | None, compiling: CompileOptions
) -> Race:
    """Race the backends with the graph in the precision that is to be built."""
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        if arguments.precision == "fp16":
            half = lower_graph(graph, "fp16", None, QuantizeOptions(), Path(folder) / "fp16.onnx")
            return race_backends(half, compiling)
        if images is None:
            return race_backends(graph, compiling)
        drafts: dict[str, Graph] = {}

        def draft(backend: str) -> Graph:
            options = _quantizing(arguments, backend)
            if options.high_precision not in drafts:
                path = Path(folder) / f"{options.high_precision}.onnx"
                try:
                    drafts[options.high_precision] = draft_int8(graph, images, options, path)
                except GraphError as error:
                    # A tensor may be 0 on the draft's few images and not on all of them.
                    logger.warning("%s is raced in FP32, since no draft in INT8 could be made: %s", backend, error)
                    drafts[options.high_precision] = graph
            return drafts[options.high_precision]

        return race_backends(graph, compiling, draft=draft)


def _search_options(
    gate: GateOptions,
    dataset: Dataset | None,
    graph: Graph,
    evaluation: tuple[str, Sequence[Sample]] | None,
) -> Search | None:
    """What a search is judged by: labelled images that the gate does not measure on, where the data has them."""
    if not gate.search:
        return None
    # Refused where they are missing, before anything was read.
    assert gate.max_ap_drop is not None and dataset is not None and evaluation is not None
    split, samples = match_classes(dataset, graph.spec).choose_split(gate.search_split, ("val",))
    if split in ("all", evaluation[0]):
        logger.warning(
            "the search is judged by the images of the gate (split %s), so that the gate's drop flatters; judge by --split test",
            evaluation[0],
        )
        samples = evaluation[1]
    logger.info("searching on %d images (split %s)", len(samples), split)
    return Search(samples, gate.max_ap_drop, gate.search_target)


def _choose_backend(name: str) -> str:
    if name != "auto":
        require(name)
        return name
    chosen, passed_over = choose_automatically()
    reason = f" ({'; '.join(passed_over)})" if passed_over else ""
    logger.info("backend %s, chosen automatically%s", chosen, reason)
    return chosen


def _apply_gate(engine: Engine, gate: GateOptions) -> None:
    accuracy: Mapping[str, Any] | None = engine.record["accuracy"]
    if gate.max_ap_drop is None or accuracy is None or accuracy["drop"] <= gate.max_ap_drop:
        return
    remedy = "let --search find the layers that have to stay high"
    if gate.search:
        remedy = f"give the search a smaller budget than the gate's (it kept its own on {gate.search_split or 'val'})"
    raise AccuracyGateFailed(
        f"{engine.path} was built and is kept, but it loses {accuracy['drop']:.2f} points of AP "
        f"({100 * accuracy['reference_AP']:.1f} to {100 * accuracy['AP']:.1f}) and --max-ap-drop allows "
        f"{gate.max_ap_drop:g}; {remedy}, calibrate on more images, fine-tune with train --qat, or use --fp16."
    )


def _report(engine: Engine) -> str:
    lines = [summary_table(engine), "", f"engine   {engine.path}", f"proof    {engine.json_path}"]
    picture = engine.path.with_suffix(".jpg")
    if engine.record["accuracy"]:
        lines.append(f"picture  {picture}")
    lines.extend(_accuracy_remarks(engine))
    lines.extend(_arithmetic_remark(engine))
    lines.extend(_speed_remark(engine))
    if not engine.record["accuracy"]:
        lines.append("\nNo accuracy was measured; add --eval-data D with labelled images.")
    if not engine.record["latency"]:
        source = ": the AP above is that of the graph it was compiled from" if engine.record["accuracy"] else ""
        lines.append(
            f"\nThe engine cannot run on this machine, so it is unproven{source}. On the target, run "
            f"python -m edge_effdet.evaluate --engine {engine.path.name} --data D."
        )
    return "\n".join(lines)


def _accuracy_remarks(engine: Engine) -> list[str]:
    """How sure the drop is, and whether scores were flattened."""
    accuracy: Mapping[str, Any] = engine.record["accuracy"] or {}
    lines = []
    # An FP32 engine is its own reference, and always drops by 0.
    if accuracy.get("drop_interval") and engine.precision != "fp32":
        low, high = accuracy["drop_interval"]
        noise = "; 0 is among them, so it is inside the noise of these images" if low <= 0 <= high else ""
        lines.append(
            f"\nThe AP drop of {accuracy['drop']:+.2f} is known to within {low:+.2f} and {high:+.2f} (95 %, {accuracy['images']} "
            f"images{noise})."
        )
    if (accuracy.get("confidence") or {}).get("flattened"):
        tops = accuracy["confidence"]["mean_top_score"]
        lines.append(
            f"\nScores were flattened: the best one in a picture is {tops['built']:.2f} on average and was "
            f"{tops['reference']:.2f} at FP32; lower your threshold, or keep the class head high with --keep-high 'class_net.*'."
        )
    return lines


def _arithmetic_remark(engine: Engine) -> list[str]:
    """In what the processor computed, where the graph says FP16 and it has BF16 or no half precision."""
    arithmetic = (engine.record["latency"] or {}).get("arithmetic")
    what = "what is not INT8" if engine.precision == "int8" else "FP16"
    if arithmetic == "bf16":
        return [
            f"\nThis processor has BF16 in place of FP16: {engine.backend} computed {what} in it, as measured above."
        ]
    if arithmetic == "f32" and engine.precision == "fp16":
        return [f"\nThis processor has no half precision: {engine.backend} computed FP16 in FP32, which is no faster."]
    return []


def _speed_remark(engine: Engine) -> list[str]:
    """What a person must know before reading the latency of INT8 on a CPU that gains nothing by it."""
    if engine.backend not in ("onnxruntime", "openvino") or engine.precision != "int8":
        return []
    reference, latency = engine.record["reference"], engine.record["latency"]
    if reference is None or latency["median_ms"] < reference["latency"]["median_ms"]:
        return []
    vnni = cpu_has_vnni()
    advice = ""
    if engine.backend == "onnxruntime" and vnni and "race" not in engine.record:
        advice = " OpenVINO may run it faster: --backend fastest finds out."
    return [
        f"\n{engine.backend} runs INT8 no faster than onnxruntime runs FP32 on this CPU, {'though' if vnni else 'and'} it has "
        f"{'' if vnni else 'no '}VNNI instructions. Here the build is a check of accuracy, not a gain in speed. The gain is on "
        f"the GPU that the graph is for.{advice}"
    ]


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
