"""The engine of a bundle, built on the device that runs it: compile, compare with the golden pictures, time, write the record.

It runs in the environment that was installed: ``python -m edge_effdet.device.engine --bundle DIR --output DIR``. An engine that finds other objects
here than its graph found on the host is not kept.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import (
    PRECISIONS,
    Engine,
    EngineRecord,
    Graph,
    engine_json_path,
    file_sha256,
    load_engine,
    temporary_folder,
    write_json,
)
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.artifacts.record import Latency
from edge_effdet.backends.base import (
    BACKENDS,
    RUN_LIMIT,
    CompileOptions,
    LoadOptions,
    get_backend,
    load_runner,
    require,
)
from edge_effdet.backends.fingerprint import describe_machine, machine_fingerprint
from edge_effdet.backends.work import Convolution, count_engine
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.device.manifest import Bundle, read_bundle
from edge_effdet.errors import AccuracyGateFailed, BundleError, UsageError
from edge_effdet.options import check_choices, option
from edge_effdet.runtime.golden import Check, check_engine, decode_pictures, draw_pictures, read_golden
from edge_effdet.runtime.latency import Turns, time_runners

logger = logging.getLogger("edge_effdet.device.engine")

TIMED = 20.0
"""Seconds that the timing of an engine may take. A slow processor takes seconds for a run, and somebody waits for the installation."""

DEVICE_RECORD = "device.json"
"""Beside the engine: how the golden check went here, and on which machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBuildOptions:
    """How the engine is built on the device.

    Raises:
        UsageError: a choice that does not exist, or a number that makes no sense.
    """

    precision: str | None = option(None, help="the precision of the engine (default: the bundle's)", choices=PRECISIONS)
    backend: str | None = option(
        None, help="what compiles and runs it (default: the bundle's)", choices=tuple(BACKENDS)
    )
    timing_cache: Path | str | None = option(
        None, help="TensorRT: the file that keeps timings of kernels between builds"
    )
    workspace_mib: int = option(0, help="TensorRT: limit of the builder's scratch memory, 0 for none")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.workspace_mib < 0:
            raise UsageError(f"`workspace_mib` {self.workspace_mib} makes no sense; give 0, for no limit, or more.")


def build_on_device(bundle: Bundle, output: Path, options: DeviceBuildOptions) -> Engine:
    """Build the engine of a bundle for this machine and prove it here.

    Args:
        bundle: whose files were checked.
        output: the folder of the engine, its record and ``DEVICE_RECORD``; it appears when all of them are right, and replaces an earlier one.
        options: how.

    Returns:
        The engine. Its record keeps what the host measured, with what was counted and timed here. The AP is the host's: it is the engine's own
        where the engine is byte for byte the one that the host measured, and else that of its graph.

    Raises:
        BundleError: the bundle has no graph in this precision, or its record does not belong to the graph.
        BackendUnavailable: the backend does not work here.
        GraphError: the backend refuses the graph.
        AccuracyGateFailed: the engine finds other objects here than the graph found on the host.
    """
    backend = options.backend or bundle.manifest.backend
    available = require(backend)
    if not available.runs_here:
        raise UsageError(
            f"{backend} can build an engine here and not run it ({available.device}); give another `backend`."
        )
    graph, record, convolutions = read_graph(bundle, options.precision or bundle.manifest.precision)
    cache = None if options.timing_cache is None else Path(options.timing_cache)
    compiling = CompileOptions(
        workspace_mib=options.workspace_mib, timing_cache=cache if backend == "tensorrt" else None
    )
    logger.info(
        "compiling the %s graph with %s %s for %s",
        graph.precision.upper(),
        backend,
        available.version,
        available.device,
    )
    compiled = get_backend(backend).compile(graph, compiling)
    counted = count_engine(convolutions, compiled.account)
    if counted.warning is not None:
        logger.warning("%s", counted.warning)
    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output.parent) as aside:
        path = aside / "engine" / f"{bundle.manifest.name}.{graph.precision}{get_backend(backend).SUFFIX}"
        path.parent.mkdir()
        path.write_bytes(compiled.content)
        digest = file_sha256(path)
        same = digest == record.engine_sha256 and backend == record.backend
        # onnxruntime tells what it runs by an ONNX model, which takes onnx to read; the same version runs the same file alike.
        told_on_host = compiled.account is None and same and available.version == record.backend_version
        record = replace(
            record,
            engine=path.name,
            engine_sha256=digest,
            backend=backend,
            backend_version=available.version,
            target=available.device,
            proof=record.proof if told_on_host else counted.record(),
            accuracy=record.accuracy
            if same or record.accuracy is None
            else replace(record.accuracy, measured_on="graph"),
            engine_verified=record.engine_verified and same,
            agreement=record.agreement if same else None,
            latency=None,
            race=None,
            parents={**record.parents, "bundle": bundle.sha256},
            built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        engine = Engine(path, record.spec, backend, graph.precision, digest, record)
        check = _check_here(engine)
        engine = replace(engine, record=replace(record, latency=time_here(engine)))
        # Without the digest over its fields that ``record_to_json`` adds: an update may be made by the code of an earlier version, which refuses fields
        # that it does not know. The hash of this file is in ``complete.json``.
        write_json(engine.json_path, to_json(engine.require_record()))
        write_json(path.parent / DEVICE_RECORD, _device_record(engine, check))
        if output.exists():
            # In one step, so that a kill leaves no half of it.
            output.rename(aside / "earlier")
        path.parent.rename(output)
    return replace(engine, path=output / path.name)


def read_graph(bundle: Bundle, precision: str) -> tuple[Graph, EngineRecord, tuple[Convolution, ...]]:
    """A graph of a bundle, the record of the engine that the host built of it, and its convolutions.

    Raises:
        BundleError: there is none in this precision, or the record is damaged or of another graph.
    """
    named = bundle.manifest.graphs.get(precision)
    if named is None:
        raise BundleError(
            f"The bundle has no graph in {precision.upper()}, only in {' and '.join(sorted(bundle.manifest.graphs)).upper()}; give another "
            "`precision`, or make the bundle again."
        )
    path = bundle.path / named.graph
    try:
        record = from_json(EngineRecord, json.loads((bundle.path / named.record).read_text(encoding="utf-8")))
        raw = json.loads((bundle.path / named.layers).read_text(encoding="utf-8"))
        convolutions = tuple(from_json(Convolution, each) for each in raw)
    except (OSError, ValueError, TypeError) as error:
        raise BundleError(
            f"What the bundle says of {path.name} is damaged ({error}); make the bundle again."
        ) from error
    digest = file_sha256(path)
    if record.parents.get("compiled_graph") != digest or record.precision != precision:
        raise BundleError(
            f"The record {named.record} is not of the graph {named.graph} (its SHA-256 differs), so nothing is known of its proof; make the bundle again."
        )
    calibration = {} if record.calibration is None else to_json(record.calibration)
    stage = "optimized" if precision == "fp32" else "quantized"
    graph = Graph(path, record.spec, stage, precision, record.rewrites, record.parents, calibration, digest)
    return graph, record, convolutions


def check_installed(path: Path) -> Check | None:
    """The golden check of an engine that is installed; None where the bundle had no golden pictures.

    Raises:
        EngineError: the engine or its record is missing or damaged.
        BackendUnavailable: the backend does not work here any more.
        AccuracyGateFailed: it finds other objects than its graph found on the host.
    """
    return _check_here(load_engine(path))


def _check_here(engine: Engine) -> Check | None:
    """The golden check. Raises AccuracyGateFailed where it fails."""
    golden = read_golden(engine)
    if golden is None:
        logger.warning(
            "the bundle has no golden pictures, so nothing tells whether the engine finds here what it found on the host"
        )
        return None
    with load_runner(engine, LoadOptions(run_limit=RUN_LIMIT)) as runner:
        check = check_engine(runner, engine, golden)
    if not check.passed:
        here, there = describe_machine(check.here), describe_machine(check.proven_on)
        raise AccuracyGateFailed(
            f"The {engine.precision.upper()} engine finds other objects on this machine ({here}) than its graph found where it was proven "
            f"({there}): on the golden pictures the scores differ by {100 * check.distance:.0f} %, and {100 * check.tolerance:.0f} % are "
            "allowed, so it is not to be used; install another `precision` or `backend`, or make a bundle for this processor."
        )
    logger.info(
        "it finds the same here as on %s: the scores of its %d golden pictures differ by %.1f %%, and %.0f %% are allowed",
        describe_machine(golden.fingerprint), len(golden.pictures), 100 * check.distance, 100 * check.tolerance,
    )  # fmt: skip
    return check


def time_here(engine: Engine, seconds: float = TIMED) -> Latency:
    """Time an engine on this machine, with fewer runs where the usual ones would take longer than ``seconds``."""
    golden = read_golden(engine)
    pictures = decode_pictures(engine, golden) if golden is not None else draw_pictures(engine.spec.image_size, 1)
    # Loaded once for both, which takes seconds on a Jetson; and without the limit of the check, which would be timed too.
    with load_runner(engine) as runner:
        (latency,) = time_runners([runner], [engine.spec], pictures[0], Turns(rounds=1, runs=1, warm_up=1))
        usual = Turns()
        rounds = int(seconds / (latency.median_ms / 1000 * (usual.runs + usual.warm_up)))
        if rounds:
            few = Turns(rounds=min(rounds, usual.rounds))
            (latency,) = time_runners([runner], [engine.spec], pictures[0], few)
    logger.info("a run of the network takes %.2f ms (the median of %d)", latency.median_ms, latency.runs)
    return latency


def _device_record(engine: Engine, check: Check | None) -> dict[str, Any]:
    here = machine_fingerprint(engine.backend)
    return {
        "engine_sha256": engine.sha256,
        "golden": None if check is None else check.to_dict(),
        "latency": to_json(engine.require_record().latency),
        "machine": to_json(here),
        "machine_text": describe_machine(here),
    }


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "device.engine",
        "Build the engine of a bundle for this machine, and keep it if it finds here what its graph found on the host.",
        "python -m edge_effdet.device.engine --bundle bccd-1.0-x86-cpu --output engine",
    )
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="the bundle")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder of the engine")
    add_options(parser, DeviceBuildOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    engine = build_on_device(
        read_bundle(arguments.bundle), arguments.output, options_from(DeviceBuildOptions, arguments)
    )
    record = engine.require_record()
    proof = record.proof
    text = (
        f"{engine.path}: {engine.precision.upper()} by {engine.backend} {record.backend_version}, "
        f"{100 * proof.int8_mac_fraction:.1f} % of the convolutions' work in INT8 (counted on the {proof.counted_on})"
    )
    data = json.loads((engine.path.parent / DEVICE_RECORD).read_text(encoding="utf-8"))
    return Result(text, {"engine": str(engine.path), "record": str(engine_json_path(engine.path)), **data})


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
