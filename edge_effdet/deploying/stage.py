"""The stage of ``deploy``: ``(source, config) -> Bundle``."""

from __future__ import annotations

import base64
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from os import PathLike
from pathlib import Path

from edge_effdet.artifacts import (
    Engine,
    EngineRecord,
    Graph,
    atomic_folder,
    json_text,
    refuse_overwrite,
    require_writable,
)
from edge_effdet.artifacts.reading import to_json
from edge_effdet.artifacts.record import Accuracy
from edge_effdet.backends.base import RUN_LIMIT, LoadOptions, get_backend, load_runner
from edge_effdet.building.chain import build
from edge_effdet.building.options import BuildConfig
from edge_effdet.building.verify import find_compiled_graph, find_graph
from edge_effdet.deploying.archive import require_compression, write_archive
from edge_effdet.deploying.containers import write_containers
from edge_effdet.deploying.deepstream import DeepStreamOptions, write_deepstream
from edge_effdet.deploying.options import ARCHIVES, DeployConfig
from edge_effdet.deploying.requirements import choose_packages, write_target_requirements
from edge_effdet.deploying.signing import read_public_keys, read_secret_key, sign_file
from edge_effdet.deploying.wheel import write_device_wheel
from edge_effdet.device.manifest import (
    ENTRY,
    SUMS,
    Bundle,
    BundledGraph,
    Manifest,
    read_bundle,
    require_name,
    write_manifest,
)
from edge_effdet.device.signature import check_signature
from edge_effdet.device.targets import get_target
from edge_effdet.errors import InputError, MissingDependency, UsageError
from edge_effdet.options import as_path
from edge_effdet.runtime.golden import make_golden, read_golden

logger = logging.getLogger("edge_effdet.deploy")

BUILD_FOLDER = "build"
"""In the output folder: the engines that the host built of the bundle's graphs, with which the graphs were measured."""


@dataclass(frozen=True, slots=True)
class ProvenGraph:
    """A graph for the bundle, and the record of the engine that the host built of it."""

    graph: Graph
    record: EngineRecord


def make_bundle(source: str | PathLike[str] | Graph | Engine | None, config: DeployConfig) -> Bundle:
    """Make a bundle for a device: all that ``deploy`` does on the command line.

    Args:
        source: an engine that ``build`` made, whose folder still has its graphs; a checkpoint, or a graph of ``export`` or ``quantize``; None for the
            shipped model.
        config: what for, and of what.

    Returns:
        The bundle, read back and checked: the folder ``<name>-<release>-<target>`` in ``config.output``, and beside it its archive.

    Raises:
        UsageError: options that contradict each other or the source, or the bundle exists already.
        InputError: the source, the data or a key cannot be used, or the requirements could not be fetched.
        MissingDependency: a package of the host side is not installed.
        AccuracyGateFailed: no engine was within the budget; what was built is kept and named.
    """
    try:
        import onnx_ir  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx-ir", "export", "to make bundles") from error
    output, target = Path(config.output), get_target(config.target)
    if isinstance(source, Engine) and config.backend is None:
        config = replace(config, backend=_backend_for(source, config))
    # Keys are read before minutes of work, and the release is chosen once: it is a time where none was given.
    key = None if config.sign is None else read_secret_key(Path(config.sign))
    trusted = () if config.trust is None else read_public_keys(Path(config.trust))
    refuse_overwrite([output], [as_path(config.sign), as_path(config.trust)])
    release = config.chosen_release
    require_compression(config.archive)
    require_writable(output)
    if config.name is not None:
        _free_path(output, config.name, release, config.target)
    packages = choose_packages(target, config.chosen_backend, config.python, config.wheels, config.video)
    graphs, precision = _prove(source, config)
    chosen = graphs[precision]
    name = config.name or require_name(chosen.record.engine.split(".")[0])
    path = _free_path(output, name, release, config.target)
    with atomic_folder(path) as folder:
        bundled = {each: _write_graph(folder, name, graph) for each, graph in graphs.items()}
        wheel = write_device_wheel(folder / "wheels")
        complete = write_target_requirements(folder, packages)
        manifest = Manifest(
            name=name,
            release=release,
            created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            made_by=metadata.version("edge-effdet"),
            target=config.target,
            backend=config.chosen_backend,
            precision=precision,
            graphs=bundled,
            wheel=wheel.relative_to(folder).as_posix(),
            requirements="requirements.txt",
            complete=complete,
            trusted_keys=trusted,
        )
        write_containers(folder, manifest)
        entry = folder / ENTRY
        shutil.copyfile(Path(__file__).parent / "files" / ENTRY, entry)
        entry.chmod(0o755)
        (folder / "README.txt").write_text(_readme(manifest, chosen.record), encoding="ascii")
        write_manifest(folder, manifest)
        if key is not None:
            sign_file(folder / SUMS, key)
        folder.chmod(0o755)
    archive = None
    if config.archive != "none":
        archive = write_archive(path, config.archive)
        if key is not None:
            sign_file(archive, key)
    signed_by = None if key is None else check_signature(path / SUMS, path / f"{SUMS}.minisig", [key.public])
    return replace(read_bundle(path, signed_by), archive=archive)


def _backend_for(engine: Engine, config: DeployConfig) -> str:
    """What runs an engine on the device: the backend that it was proven by, unless that would leave the device's GPU idle."""
    first, *others = get_target(config.target).backends
    if engine.backend == first:
        return first
    if engine.backend in others and get_backend(first).TRAITS.on_cpu == get_backend(engine.backend).TRAITS.on_cpu:
        return engine.backend
    if engine.backend in others:
        logger.warning(
            "%s was built for %s; %s runs its graph on the GPU by %s, and checks and times it there (`backend` %s would run it on the processor)",
            engine.path.name, engine.backend, config.target, first, engine.backend,
        )  # fmt: skip
    return first


def _free_path(output: Path, name: str, release: str, target: str) -> Path:
    """Where a bundle is written. Raises UsageError where it, or an archive of it, is there already."""
    path = output / f"{name}-{release}-{target}"
    for each in (path, *(path.with_name(f"{path.name}.tar.{kind}") for kind in ARCHIVES[:-1])):
        if each.exists():
            raise UsageError(
                f"{each} is there already, and a release never changes; give another `release`, or remove it."
            )
    return path


def make_deepstream_folder(
    source: str | PathLike[str] | Graph | Engine | None, config: DeployConfig, options: DeepStreamOptions
) -> Path:
    """Make a folder for DeepStream of the graph that a bundle would install: ``deploy --format deepstream``.

    Args:
        source, config: as for ``make_bundle``; what concerns wheels, archives and signatures is left out of account.
        options: what the pipeline is like.

    Returns:
        The folder ``<name>-<target>-deepstream`` in ``config.output``.

    Raises:
        As ``make_bundle``.
    """
    output = Path(config.output)
    if "tensorrt" not in get_target(config.target).backends:
        raise UsageError(f"DeepStream runs TensorRT, which {config.target} does not have; give a `target` with a GPU.")
    require_writable(output)
    graphs, precision = _prove(source, config)
    chosen = graphs[precision]
    name = config.name or require_name(chosen.record.engine.split(".")[0])
    return write_deepstream(chosen.graph, chosen.record, output / f"{name}-{config.target}-deepstream", options)


def _prove(
    source: str | PathLike[str] | Graph | Engine | None, config: DeployConfig
) -> tuple[Mapping[str, ProvenGraph], str]:
    """The graphs of the bundle by precision, and the precision that is installed by default."""
    if isinstance(source, Engine):
        engine = source
        built = find_compiled_graph(engine)
        if built is None:
            raise InputError(
                f"The graph that {engine.path} was compiled from is not beside it, and a device compiles its own engine of it; copy the folder "
                "graphs of the build along, or give the checkpoint."
            )
        if engine.require_record().nms != "host":
            raise UsageError(f"{engine.path} suppresses boxes inside, which bundles do not; build it with `nms` host.")
        rest = config.quantizing(config.chosen_backend).high_precision
        if engine.precision == "int8" and rest == "fp16" and get_backend(engine.backend).TRAITS.rest == "fp32":
            logger.warning(
                "the rest of %s is FP32, as suits %s; made from the checkpoint it would be FP16, which is faster on %s",
                engine.path.name, engine.backend, config.target,
            )  # fmt: skip
        if engine.backend in ("tensorrt", "tensorrt-rtx"):
            # What an engine of a GPU finds is no measure for another GPU, and its record is not of the graph.
            engine = build(built, _plain(config, built.precision, _prover(config), engine.path.name.split(".")[0]))
    else:
        engine = build(source, config.building(Path(config.output) / BUILD_FOLDER, config.precision, _prover(config)))
        built = find_compiled_graph(engine)
        assert built is not None
    proven = {engine.precision: ProvenGraph(built, engine.require_record())}
    if engine.precision != "fp32":
        exact = find_graph(engine, built.parents.get("graph"))
        if exact is None and isinstance(source, Graph | str | PathLike):
            exact = find_graph(
                replace(engine, path=Path(source.path if isinstance(source, Graph) else source)),
                built.parents.get("graph"),
            )
        if exact is None:
            logger.warning(
                "the FP32 graph is not beside %s, so the bundle has the %s one alone and the device cannot fall back to FP32",
                engine.path.name, engine.precision.upper(),
            )  # fmt: skip
        else:
            proven["fp32"] = _prove_exact(exact, engine, config)
    return proven, engine.precision


def _prover(config: DeployConfig) -> str:
    """What runs a graph on the host: the device's backend where that computes on a CPU, else onnxruntime, which computes a graph as it is written."""
    backend = config.chosen_backend
    return backend if get_backend(backend).TRAITS.on_cpu else "onnxruntime"


def _plain(config: DeployConfig, precision: str, backend: str, name: str) -> BuildConfig:
    """How a graph becomes an engine as it is."""
    return BuildConfig(
        precision=precision, backend=backend, name=name, output=Path(config.output) / BUILD_FOLDER, golden=config.golden
    )


def _prove_exact(graph: Graph, engine: Engine, config: DeployConfig) -> ProvenGraph:
    """The FP32 graph that an engine was made from, on the golden pictures of that engine and with the AP that it was compared with."""
    record = engine.require_record()
    exact = build(graph, _plain(config, "fp32", _prover(config), engine.path.name.split(".")[0]))
    found, accuracy = exact.require_record(), record.accuracy
    golden = read_golden(engine)
    if golden is not None:
        with load_runner(exact, LoadOptions(run_limit=RUN_LIMIT)) as runner:
            fingerprint = (found.golden or golden).fingerprint
            pictures = [base64.b64decode(each.jpeg) for each in golden.pictures]
            kept = make_golden(runner, exact.spec, pictures, golden.kind, "fp32", fingerprint)
        found = replace(found, golden=kept)
    if accuracy is not None and accuracy.reference_AP is not None and accuracy.reference_AP50 is not None:
        # Measured together with the engine's, by onnxruntime on this very graph.
        measured = Accuracy(
            AP=accuracy.reference_AP,
            AP50=accuracy.reference_AP50,
            images=accuracy.images,
            split=accuracy.split,
            measured_on="graph",
            data_sha256=accuracy.data_sha256,
        )
        found = replace(found, accuracy=measured)
    return ProvenGraph(graph, found)


def _write_graph(folder: Path, name: str, proven: ProvenGraph) -> BundledGraph:
    """Copy a graph into the bundle and write what is known of it."""
    import onnx_ir as ir

    from edge_effdet.quant.proof import list_convolutions

    precision = proven.graph.precision
    bundled = BundledGraph(
        graph=f"graphs/{name}.{precision}.onnx", record=f"records/{precision}.json", layers=f"layers/{precision}.json"
    )
    for each in (bundled.graph, bundled.record, bundled.layers):
        (folder / each).parent.mkdir(exist_ok=True)
    shutil.copyfile(proven.graph.path, folder / bundled.graph)
    record = json_text(to_json(proven.record), indent=2)
    (folder / bundled.record).write_text(record + "\n", encoding="utf-8")
    layers = [to_json(each) for each in list_convolutions(ir.load(str(proven.graph.path)))]
    (folder / bundled.layers).write_text(json.dumps(layers, indent=1) + "\n", encoding="utf-8")
    return bundled


def _readme(manifest: Manifest, record: EngineRecord) -> str:
    lines = [
        f"{manifest.name} {manifest.release}: an object detector for {get_target(manifest.target).title}",
        "",
        f"Made by edge_effdet {manifest.made_by}. The engine is built on the device, in {manifest.precision.upper()} by {manifest.backend}.",
        "",
        "    sha256sum -c SHA256SUMS                 see that the bundle arrived whole",
        "    ./edge-effdet install --dry-run         see what an installation would do",
        "    sudo ./edge-effdet install --source /dev/video0",
        "    sudo ./edge-effdet status",
        "    sudo ./edge-effdet rollback             back to the version before",
        "",
    ]
    if not manifest.complete:
        lines += ["The device needs a network: the packages in requirements.txt are not in this bundle.", ""]
    return "\n".join(lines)
