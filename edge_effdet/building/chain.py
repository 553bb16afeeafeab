"""The chain, from a checkpoint or a graph to the engine that is proven and within its budget."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path

from edge_effdet.artifacts import Engine, Graph, atomic_output, refuse_overwrite, require_writable, temporary_folder
from edge_effdet.artifacts.record import Race, Verdict
from edge_effdet.backends.base import BACKENDS, CompileOptions, choose_automatically, require
from edge_effdet.building.engine import (
    BuildJob,
    build_engine,
    comparison_pictures,
    engine_files,
    lower_graph,
    lowered_path,
    require_nms,
    suppressing_path,
)
from edge_effdet.building.gate import Budget, parse_budget
from edge_effdet.building.options import BuildConfig, ExportChoices
from edge_effdet.building.race import describe_race, race_backends
from edge_effdet.data.base import Dataset, Sample, match_classes, samples_manifest
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import (
    AccuracyGateFailed,
    EdgeEffDetError,
    EngineError,
    GraphError,
    MissingDependency,
    UsageError,
)
from edge_effdet.options import as_path
from edge_effdet.quant.calibration import refuse_overlap
from edge_effdet.quant.stage import (
    QuantizeOptions,
    Search,
    calibration_dataset,
    calibration_images_from,
    draft_int8,
    refuse_calibration_overwrite,
    search_files,
)
from edge_effdet.quickstart import CALIBRATION_SPLIT, PHOTOS, TEST_SPLIT, quickstart_graph, quickstart_photos

logger = logging.getLogger("edge_effdet.build_engine")


GATE_SPLIT_ORDER = ("val", "test")


FALL_BACK = {"int8": ("fp16", "fp32"), "fp16": ("fp32",), "fp32": ()}


def parse_batch_sizes(text: str | Sequence[int]) -> tuple[int, ...]:
    """``1,8`` to (1, 8). Raises UsageError for anything but whole numbers; that they ascend, ``CompileOptions`` sees to."""
    if not isinstance(text, str):
        return tuple(text)
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise UsageError(f"`batch_sizes` {text} are no whole numbers that ascend; write 1,8, for example.")
    return tuple(map(int, words))


def build(source: str | PathLike[str] | Graph | None, config: BuildConfig) -> Engine:
    """Build an engine and prove it: export, optimize, quantize, compile, measure, judge. All that ``build_engine`` does on the command
    line.

    >>> from edge_effdet import BuildConfig, Detector, build
    >>> engine = build("runs/bccd/best.safetensors", BuildConfig(calibration_data="bccd", eval_data="bccd"))  # doctest: +SKIP
    >>> found = Detector.load(engine)("photo.jpg")  # doctest: +SKIP

    Args:
        source: a checkpoint (.safetensors, or effdet's .pth with ``config.model``), an ONNX graph of ``export`` or ``quantize``, or None
            for the shipped model and its photographs.
        config: what to build, and of what.

    Returns:
        The engine, written into ``config.output`` with its JSON, and within the budget.

    Raises:
        UsageError: options that contradict each other or the source, or the outputs would overwrite what is read.
        InputError: the source or the data cannot be used.
        MissingDependency: the packages of the host side are not installed.
        BackendUnavailable: the backend does not work here.
        AccuracyGateFailed: no engine was within the budget; what was built is kept and named.
    """
    try:
        import onnx_ir  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx-ir", "export", "to build engines") from error

    compiling = CompileOptions(
        config.target, config.workspace_mib, as_path(config.timing_cache), parse_batch_sizes(config.batch_sizes)
    )
    fastest = config.backend == "fastest"
    backend = "" if fastest else _choose_backend(config.backend)
    require_nms(config.nms, config.backend if fastest else backend)
    budget = parse_budget(config.max_ap_drop)
    own_model = source is not None
    if budget.asked and budget.points is not None and config.eval_data is None and own_model:
        raise UsageError("`max_ap_drop` needs labelled images to measure AP on; add `eval_data` D.")
    if config.search and (budget.points is None or (config.eval_data is None and own_model)):
        raise UsageError("`search` needs a budget and labelled images; add `max_ap_drop` X and `eval_data` D.")
    given, name = _given_graph(source, config)
    _refuse_overwrite(source, name, given if own_model else None, config, backend)
    require_writable(Path(config.output))
    graph = given or _export_source(source, name, config)
    _refuse_lowered(graph, config, budget)
    if not own_model:
        graph = _keep_beside(graph, lowered_path(Path(config.output), name, "fp32"))
        config = _complete_quickstart(config)
    job = _prepare(name, graph, config, compiling, budget)
    return _build_within_budget(job, config, backend)


def _refuse_lowered(graph: Graph, config: BuildConfig, budget: Budget) -> None:
    """Raises UsageError for a graph that cannot become what is wanted, or that has nothing to lose AP against."""
    if graph.precision not in ("fp32", config.precision):
        raise UsageError(
            f"{graph.path} is {graph.precision} already, so it cannot become {config.precision}; give the FP32 graph."
        )
    if budget.asked and budget.points is not None and graph.precision != "fp32":
        raise UsageError(
            f"{graph.path} is {graph.precision} already, so there is no FP32 graph here to lose AP against; leave "
            "`max_ap_drop` out, or give the FP32 graph."
        )


def _prepare(name: str, graph: Graph, config: BuildConfig, compiling: CompileOptions, budget: Budget) -> BuildJob:
    """Read the images, and see that what calibrates does not judge."""
    images = dataset = None
    if config.eval_data is not None:
        # Of the shipped photographs a reader has nothing to learn.
        shipped = Path(config.eval_data) == PHOTOS
        dataset = read_dataset(Path(config.eval_data), boxes_in=config.boxes_in, quiet=shipped)
    if config.precision == "int8" and graph.precision == "fp32":
        shared = dataset if as_path(config.calibration_data) == as_path(config.eval_data) else None
        images = calibration_images_from(shared or calibration_dataset(config), config, graph)
    manifest = images.manifest if images is not None else graph.calibration.get("manifest", {})
    evaluation = None if dataset is None else _judged(match_classes(dataset, graph.spec), config, manifest)
    search = _search_options(config, budget, dataset, graph, evaluation)
    if search is not None:
        refuse_overlap(manifest, samples_manifest(search.samples))
    return BuildJob(
        name=name,
        graph=graph,
        output=Path(config.output),
        images=images,
        evaluation=evaluation,
        compiling=compiling,
        nms=config.nms,
        calibration_table=as_path(config.calibration_table),
        search=search,
        golden=config.golden,
        budget=budget,
    )


def _judged(dataset: Dataset, config: BuildConfig, manifest: Mapping[str, str]) -> tuple[str, Sequence[Sample]]:
    """The split that the gate judges on, and its images, none of which calibrates.

    Data without splits are taken whole; where calibration took its images of them too, it left a part, and the gate takes that.
    """
    split, samples = dataset.choose_judged(config.split, GATE_SPLIT_ORDER)
    judged = samples_manifest(samples) if manifest else {}
    if dataset.held_out and config.split is None and set(manifest.values()) & set(judged.values()):
        split, samples = dataset.choose_split("val", ())
        judged = samples_manifest(samples)
    refuse_overlap(manifest, judged)
    return split, samples


def _given_graph(source: str | PathLike[str] | Graph | None, config: BuildConfig) -> tuple[Graph | None, str]:
    """The graph that is given, None for a checkpoint, and the name of what is built."""
    from edge_effdet.graph.model import load_graph, require_detections

    path = _source_path(source)
    if path.suffix != ".onnx":
        default = path.resolve().parent.name if path.stem in ("best", "last") else path.stem
        return None, config.name or default
    exporting = [item.name for item in fields(ExportChoices)]
    given = [f"`{name}`" for name in exporting if getattr(config, name) is not None]
    if given:
        raise UsageError(f"{given[0]} says how to export, and {path} is exported already; leave it out.")
    graph = source if isinstance(source, Graph) else load_graph(path)
    require_detections(graph)
    return graph, config.name or path.name.split(".")[0]


def _source_path(source: str | PathLike[str] | Graph | None) -> Path:
    """The file of what is built; the shipped graph where nothing is given."""
    if isinstance(source, Graph):
        return source.path
    if source is not None:
        return Path(source)
    return quickstart_graph()


def _refuse_overwrite(
    source: str | PathLike[str] | Graph | None, name: str, given: Graph | None, config: BuildConfig, backend: str
) -> None:
    """Raises UsageError where a file of the build would be written over one that it reads.

    A graph in ``graphs`` of the output folder may be read, and is so when another engine is built from it.
    """
    output, precision = Path(config.output), given.precision if given is not None else "fp32"
    files = [] if given is not None else [lowered_path(output, name, "fp32")]
    for tried in _precisions(precision, config):
        if tried not in ("fp32", precision):
            lowered = lowered_path(output, name, tried)
            files += [lowered, *(search_files(lowered) if config.search else ())]
        if config.nms == "efficientnms":
            files.append(suppressing_path(output, name, tried))
        for each in (backend,) if backend else BACKENDS:
            files += engine_files(output, name, tried, each)
    read = [_source_path(source), as_path(config.eval_data)]
    refuse_calibration_overwrite(files, read, config)
    cache = as_path(config.timing_cache)
    if cache is not None:
        data = (
            as_path(config.calibration_data),
            as_path(config.calibration_manifest),
            as_path(config.calibration_table),
        )
        refuse_overwrite([cache], [*read, *data], "timing_cache")


def _export_source(source: str | PathLike[str] | Graph | None, name: str, config: BuildConfig) -> Graph:
    """The FP32 graph of a checkpoint."""
    from edge_effdet.graph.export import ExportOptions, export_network, load_source

    network, spec, parents = load_source(
        _source_path(source), config.model, config.image_size, config.classes, fusion=config.fusion
    )
    logger.info("exporting %s", spec.name)
    options = ExportOptions(
        batch_size=1 if config.batch_size is None else config.batch_size,
        fuse_separable=config.fuse_separable or "keep",
        fuse_target=config.fuse_target,
        fuse_precision=config.precision if config.fuse_separable == "auto" else None,
    )
    return export_network(network, spec, parents, lowered_path(Path(config.output), name, "fp32"), options).graph


def _keep_beside(shipped: Graph, path: Path) -> Graph:
    """A copy of the shipped graph where a checkpoint's would be, so that ``deploy`` finds it beside the engine."""
    with atomic_output(path) as temporary:
        shutil.copyfile(shipped.path, temporary)
    return replace(shipped, path=path)


def _complete_quickstart(config: BuildConfig) -> BuildConfig:
    """The shipped model is calibrated and judged on the shipped photographs, unless others are given."""
    if config.calibration_data is None:
        config = replace(config, calibration_data=quickstart_photos(), calibration_split=CALIBRATION_SPLIT)
    if config.eval_data is None:
        config = replace(config, eval_data=quickstart_photos(), split=TEST_SPLIT)
    return config


def _build_within_budget(job: BuildJob, config: BuildConfig, backend: str) -> Engine:
    """The first engine that the gate lets pass: of the backends in the order of the race, then in the precisions to fall back to.

    Raises:
        AccuracyGateFailed: none passed.
    """
    tries = _Tries(job, config)
    for precision in _precisions(job.graph.precision, config):
        race, order = None, (backend,)
        if not backend:
            try:
                race = _race(config, job, precision)
            except (AccuracyGateFailed, GraphError, EngineError) as error:
                tries.note(f"{precision.upper()}: {error}", error)
                continue
            order = race.order
            logger.info("%s", describe_race(race))
        for name in order:
            if tries.failed:
                logger.warning("building %s with %s instead: %s", precision.upper(), name, tries.failed[-1])
            engine = tries.build(precision, name, race)
            if engine is not None and _verdict(engine).passed:
                return engine
    raise tries.give_up()


def _precisions(given: str, config: BuildConfig) -> tuple[str, ...]:
    """What is tried from a graph of the precision ``given``. A graph that was lowered already cannot become anything else."""
    can_fall_back = config.fall_back and given == "fp32"
    return (config.precision, *(FALL_BACK[config.precision] if can_fall_back else ()))


class _Tries:
    """What was built so far and why it did not pass.

    Attributes:
        failed: a clause for each try.
    """

    def __init__(self, job: BuildJob, config: BuildConfig) -> None:
        self._job, self._config = job, config
        self._lowered: dict[tuple[str, QuantizeOptions], Graph] = {}
        self._engine: Engine | None = None
        self._error: EdgeEffDetError | None = None
        self.failed: list[str] = []

    def build(self, precision: str, backend: str, race: Race | None) -> Engine | None:
        """An engine, with its verdict noted; None where it could not be built, with the reason noted."""
        from edge_effdet.graph.model import load_graph

        job, options = self._job, self._config.quantizing(backend)
        key = (precision, options)
        try:
            engine = build_engine(job, precision, backend, options, race, self._lowered.get(key), self.failed)
        except (AccuracyGateFailed, GraphError, EngineError) as error:
            self.note(f"{precision.upper()} by {backend}: {error}", error)
            return None
        self._engine = engine
        self.note(f"{precision.upper()} by {backend}: {_verdict(engine).text}")
        # FP32, and a graph that was given in this precision, are not lowered: a file of that name is of another build.
        lowered = lowered_path(job.output, job.name, precision)
        if precision not in ("fp32", job.graph.precision) and lowered.is_file():
            self._lowered[key] = load_graph(lowered)
        return engine

    def note(self, text: str, error: EdgeEffDetError | None = None) -> None:
        self.failed.append(text.rstrip("."))
        self._error = error or self._error

    def give_up(self) -> EdgeEffDetError:
        """The error that says what was tried; the only one that there was, where nothing else was tried."""
        if self._engine is None and self._error is not None and len(self.failed) == 1:
            return self._error
        config, precision = self._config, self._config.precision
        remedy = "calibrate on more images, fine-tune with python -m edge_effdet.train --qat, build in fp16"
        if precision != "int8":
            remedy = "try another backend"
        elif config.search:
            split = config.search_split or "val"
            remedy = f"give the search a smaller budget than the gate's (it kept its own on {split}), {remedy}"
        else:
            remedy = f"let `search` find the layers that have to stay high, {remedy}"
        kept = "No engine was built"
        if self._engine is not None:
            kept = f"{self._engine.path} was built and is kept, but the gate does not let it pass"
        return AccuracyGateFailed(
            f"{kept} ({'; '.join(self.failed)}); {remedy}, or move the budget with `max_ap_drop`."
        )


def _verdict(engine: Engine) -> Verdict:
    verdict = engine.require_record().gate
    assert verdict is not None
    return verdict


def _race(config: BuildConfig, job: BuildJob, precision: str) -> Race:
    """Race the backends with the graph in the precision that is to be built."""
    graph, images = job.graph, job.images
    pictures, drawn = comparison_pictures(job)
    with temporary_folder() as folder:
        if precision == "fp16" and graph.precision == "fp32":
            half = lower_graph(graph, "fp16", None, QuantizeOptions(), folder / "fp16.onnx")
            return race_backends(half, job.compiling, pictures=pictures, reference=graph, drawn=drawn)
        if precision == "fp32" or images is None:
            return race_backends(graph, job.compiling, pictures=pictures, drawn=drawn)
        drafts: dict[tuple[str, int], Graph] = {}

        def draft(backend: str) -> Graph:
            options = config.quantizing(backend)
            key = (options.high_precision, options.weight_codes)
            if key not in drafts:
                path = folder / f"{options.high_precision}-{options.weight_codes}.onnx"
                try:
                    drafts[key] = draft_int8(graph, images, options, path)
                except GraphError as error:
                    # A tensor may be 0 on the draft's few images and not on all of them.
                    logger.warning("%s is raced in FP32, since no draft in INT8 could be made: %s", backend, error)
                    drafts[key] = graph
            return drafts[key]

        return race_backends(graph, job.compiling, draft=draft, pictures=pictures, drawn=drawn)


def _search_options(
    config: BuildConfig,
    budget: Budget,
    dataset: Dataset | None,
    graph: Graph,
    evaluation: tuple[str, Sequence[Sample]] | None,
) -> Search | None:
    """What a search is judged by: labelled images that the gate does not measure on, where the data has them."""
    if not config.search:
        return None
    # Refused where they are missing, before anything was read.
    assert budget.points is not None and dataset is not None and evaluation is not None
    split, samples = match_classes(dataset, graph.spec).choose_split(config.search_split, ("val",))
    if "all" in (split, evaluation[0]) or split == evaluation[0]:
        logger.warning(
            "the search is judged by the images of the gate (split %s), so that the gate's drop flatters; judge by `split` test",
            evaluation[0],
        )
        samples = evaluation[1]
    logger.info("searching on %d images (split %s)", len(samples), split)
    return Search(samples, budget.points, config.search_target)


def _choose_backend(name: str) -> str:
    if name != "auto":
        require(name)
        return name
    chosen, passed_over = choose_automatically()
    reason = f" ({'; '.join(passed_over)})" if passed_over else ""
    logger.info("backend %s, chosen automatically%s", chosen, reason)
    return chosen
