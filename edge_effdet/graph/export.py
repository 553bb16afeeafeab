"""Checkpoint to optimized ONNX graph: ``(checkpoint, ExportConfig) -> Export``, traced by torch.export and optimized by the rules."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import (
    PRECISIONS,
    Checkpoint,
    Graph,
    ModelSpec,
    Size,
    refuse_overwrite,
    require_writable_file,
    text_sha256,
    write_json,
)
from edge_effdet.errors import GraphError, MissingDependency, UsageError
from edge_effdet.graph.targets import TARGETS
from edge_effdet.models.checkpoint import SourceOptions
from edge_effdet.options import check_choices, option

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import torch

    from edge_effdet.graph.cost import Decision, SeparablePair
    from edge_effdet.graph.report import GraphReport

logger = logging.getLogger("edge_effdet.export")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What the graph takes, computes and gives."""

    input_dtype: str = option(
        "uint8", help="type of the input images, whose values go from 0 to 255", choices=("uint8", "float32")
    )
    batch_size: int = option(1, help="images a run; 0 leaves the batch axis dynamic")
    top_k: int = option(1000, help="candidates that the graph keeps for NMS, at most 3840")
    raw: bool = option(False, help="end at the ten head tensors, without decoding")
    fuse_separable: str = option(
        "keep", help="make one dense convolution of depthwise + pointwise pairs in BiFPN and heads: of none, of all, or of those that "
        "it makes faster on --fuse-target", choices=("keep", "dense", "auto"),
    )  # fmt: skip
    fuse_target: str | None = option(None, help="with auto: the machine to decide for", choices=tuple(TARGETS))
    fuse_precision: str | None = option(
        None, help="with auto: the precision that the graph will run in (default: fp16)", choices=PRECISIONS
    )

    def __post_init__(self) -> None:
        check_choices(self)
        if self.batch_size < 0:
            raise UsageError(f"`batch_size` {self.batch_size} is negative; give 1 or more, or 0 for a dynamic batch.")
        if self.fuse_separable != "auto" and (self.fuse_target or self.fuse_precision):
            raise UsageError(
                "`fuse_target` and `fuse_precision` say what `fuse_separable` auto decides for, and it was not asked for; "
                "add it or leave them out."
            )
        if self.fuse_separable == "auto" and self.fuse_target is None:
            raise UsageError(
                "`fuse_separable` auto depends on the machine that the engine is for; name it with `fuse_target` "
                f"({', '.join(TARGETS)})."
            )


@dataclass(frozen=True, kw_only=True)
class ExportConfig(SourceOptions, ExportOptions):
    """All that an export is told; every field is a flag of ``python -m edge_effdet.export``, which has its help.

    Raises:
        UsageError: a choice that does not exist, or options that contradict each other.
    """

    explain: bool = option(
        False, help="report nodes, rules, MACs and memory traffic by part; write F.report.json and F.report.png"
    )


@dataclass(frozen=True, slots=True)
class Export:
    """A graph and its report.

    Attributes:
        graph: the optimized FP32 graph.
        report: nodes before and after, what each rule did, what each layer costs.
        files: the report as JSON and as a picture, where ``explain`` had them written; else empty.
    """

    graph: Graph
    report: GraphReport
    files: tuple[Path, ...] = ()


def export_checkpoint(
    checkpoint: str | PathLike[str] | Checkpoint | None, output: str | PathLike[str], config: ExportConfig
) -> Export:
    """Trace a trained detector, optimize its graph and write it. All that ``export`` does on the command line.

    >>> from edge_effdet import ExportConfig, export_checkpoint
    >>> export = export_checkpoint("runs/bccd/best.safetensors", "bccd.onnx", ExportConfig())
    >>> nodes, macs = export.report.nodes.total, export.report.total.cost.macs

    Args:
        checkpoint: a .safetensors of ``train_detector``, or effdet's .pth with ``config.model``; None for random weights of
            ``config.model``.
        output: the ONNX file.
        config: input, batch, top-K and fusion of the graph.

    Returns:
        The FP32 graph and its report.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another model.
        UsageError: options that do not fit the checkpoint, or the outputs would overwrite it.
        InputError: the folder of ``output`` cannot be written.
        GraphError: torch could not export the network.
        MissingDependency: the packages of the extra ``export`` are not installed.
    """
    given = checkpoint.path if isinstance(checkpoint, Checkpoint) else checkpoint
    source, output = None if given is None else Path(given), Path(output)
    text, picture = (output.with_name(f"{output.name}.report.{kind}") for kind in ("json", "png"))
    refuse_overwrite([output, text, picture] if config.explain else [output], [source])
    require_writable_file(output)
    network, spec, parents = load_source(source, config.model, config.image_size, config.classes, fusion=config.fusion)
    export = export_network(network, spec, parents, output, config)
    if not config.explain:
        return export
    from edge_effdet.graph.report_picture import draw_report

    write_json(text, export.report.to_dict())
    draw_report(export.report, picture, title=spec.name)
    return replace(export, files=(text, picture))


def export_network(
    network: torch.nn.Module, spec: ModelSpec, parents: Mapping[str, str], output: Path, options: ExportOptions
) -> Export:
    """Trace a network with its pre- and post-processing, optimize the graph and write it.

    Args:
        network: effdet's, as ``create_network(spec)`` builds it, in evaluation mode.
        spec: goes into the file.
        parents: SHA-256 of the file that the network came from, by kind.
        output: the ONNX file.
        options: input type, batch, top-K and fusion.

    Raises:
        UsageError: ``options.top_k`` is out of range.
        GraphError: the exporter failed.
    """
    import onnx_ir as ir

    from edge_effdet.graph.model import save_graph
    from edge_effdet.graph.optimize import optimize_model
    from edge_effdet.graph.report import count_nodes, make_report
    from edge_effdet.models.detector import MAX_TOP_K

    if not 1 <= options.top_k <= MAX_TOP_K:
        raise UsageError(f"`top_k` {options.top_k} is not between 1 and {MAX_TOP_K}, TensorRT's limit; 1000 is usual.")
    dense = _dense_pairs(options)
    model = trace_network(network, spec, options)
    before = count_nodes(model)
    reports = optimize_model(model, dense)
    # A user need not look at what works as well in the form in which it was left; ``explain`` lists it.
    quiet = {"resize_by_scale", "fuse_separable" if options.fuse_separable == "auto" else ""}
    for rule in reports:
        for name, reason in rule.refused:
            level = logging.DEBUG if rule.rule in quiet else logging.WARNING
            logger.log(level, "%s left %s alone: %s", rule.rule, name, reason)
    report = make_report(model, before, reports)
    model.producer_name, model.producer_version = "edge_effdet", None
    proto: onnx.ModelProto = ir.to_proto(model)
    _forget_the_trace(proto)
    graph = save_graph(
        proto,
        output,
        spec=spec,
        stage="optimized",
        precision="fp32",
        rewrites={rule.rule: rule.fired for rule in reports},
        parents=parents,
    )
    return Export(graph, report)


def _dense_pairs(options: ExportOptions) -> Callable[[SeparablePair], Decision | bool] | None:
    """What decides whether a pair becomes a dense convolution; None where all pairs are kept."""
    if options.fuse_separable != "auto":
        return None if options.fuse_separable == "keep" else lambda pair: True
    from edge_effdet.graph.cost import decide

    assert options.fuse_target is not None
    target, precision, batch = options.fuse_target, options.fuse_precision or "fp16", options.batch_size or 1
    return lambda pair: decide(pair, target, precision, batch)


def trace_network(network: torch.nn.Module, spec: ModelSpec, options: ExportOptions) -> ir.Model:
    """The graph as torch.export traces it, before any rule. Raises GraphError where the exporter fails."""
    import onnxscript
    import torch

    from edge_effdet.graph.model import INPUT_NAME, OPSET, OUTPUT_NAMES
    from edge_effdet.models.detector import DetectionModule

    op = onnxscript.opset18

    def divide_indices(numerator: Any, denominator: Any) -> Any:
        # torch's translation of // floors with five more nodes, for negative numbers; indices have none.
        return op.Div(numerator, op.CastLike(denominator, numerator))  # pyright: ignore[reportArgumentType]

    detector = DetectionModule(network, spec, options.top_k, options.raw).eval()
    dtype = torch.uint8 if options.input_dtype == "uint8" else torch.float32
    dynamic = options.batch_size == 0
    # torch.export takes an axis of size 1 for constant, so a dynamic batch is traced with 2.
    images = torch.zeros(options.batch_size or 2, 3, *spec.image_size, dtype=dtype)
    levels = range(spec.anchors.min_level, spec.anchors.max_level + 1)
    names = [f"{kind}_p{level}" for kind in ("classes", "boxes") for level in levels] if options.raw else OUTPUT_NAMES
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                detector,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT_NAME],
                output_names=list(names),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=256)},) if dynamic else None,
                custom_translation_table={torch.ops.aten.floor_divide.default: divide_indices},
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise GraphError(
            f"torch could not export {spec.name} ({error}); please report it with your versions."
        ) from error
    assert program is not None
    return program.model


def _forget_the_trace(model: onnx.ModelProto) -> None:
    """Drop the notes that the exporter makes for its own debugging: source lines and paths of the machine that exported."""
    from edge_effdet.graph.counting import MACS_BEFORE_FUSION

    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key == MACS_BEFORE_FUSION]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "edge_effdet"


def load_source(
    checkpoint: Path | None,
    model: str | None,
    image_size: Size | None = None,
    classes: str | None = None,
    seed: int = 0,
    fusion: str | None = None,
) -> tuple[torch.nn.Module, ModelSpec, dict[str, str]]:
    """The network that the options name, its spec, and the SHA-256 of its parents by kind.

    A checkpoint of another program needs ``model``, and ``classes`` where they are not COCO's. Without a checkpoint ``model`` gets random
    weights, seeded with ``seed``.

    Raises:
        UsageError, CheckpointError: the options do not name one network, or the file does not fit.
    """
    try:
        import effdet  # noqa: F401
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependency("effdet", "export", "to read a checkpoint") from error
    from edge_effdet.models.checkpoint import load_network, open_checkpoint
    from edge_effdet.models.zoo import create_network

    told = SourceOptions(model=model, classes=classes, image_size=image_size, fusion=fusion)
    if checkpoint is not None:
        source = open_checkpoint(checkpoint, told)
        return load_network(source), source.spec, {"checkpoint": source.sha256}
    if model is None:
        raise UsageError("Nothing to export; give `checkpoint` F or `model` NAME.")
    spec = told.spec()
    torch.manual_seed(seed)
    logger.warning("%s has random weights (seed %d): good for looking at graphs, not for finding anything", model, seed)
    return create_network(spec).eval(), spec, {"seed": text_sha256(f"{model} {seed}")}
