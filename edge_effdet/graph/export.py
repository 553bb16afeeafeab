"""Checkpoint to optimized ONNX graph: ``(network, spec) -> Graph``."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import FUSIONS, PRECISIONS, Graph, ModelSpec, Size, text_sha256
from edge_effdet.errors import GraphError, MissingDependency, UsageError
from edge_effdet.graph.targets import TARGETS
from edge_effdet.options import option

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir
    import torch

    from edge_effdet.graph.cost import Decision, SeparablePair
    from edge_effdet.graph.report import GraphReport

logger = logging.getLogger("edge_effdet.export")


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What a .pth, which does not describe itself, is."""

    model: str | None = option(
        None, help="the architecture of a .pth; export without a checkpoint gives it seeded random weights"
    )
    classes: str | None = option(None, help="class names of a .pth, separated by commas (default: COCO's)")
    image_size: Size | None = option(None, help="with --model: N or HxW, multiples of 32")
    fusion: str | None = option(
        None, help="with --model: the BiFPN's fusion (default: the model's own)", choices=FUSIONS
    )


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the graph takes, computes and gives."""

    input_dtype: str = option(
        "uint8", help="type of the input images, whose values go from 0 to 255", choices=("uint8", "float32")
    )
    batch_size: int = option(1, help="images a run; 0 leaves the batch axis dynamic")
    top_k: int = option(1000, help="candidates that the graph keeps for NMS, at most 3840")
    raw: bool = option(False, help="end at the ten head tensors, without decoding")
    fuse_separable: str = option(
        "keep", help="depthwise + pointwise pairs of BiFPN and heads as one dense convolution: none, all, or those that are "
        "faster on --fuse-target", choices=("keep", "dense", "auto"),
    )  # fmt: skip
    fuse_target: str | None = option(None, help="with auto: the machine to decide for", choices=tuple(TARGETS))
    fuse_precision: str | None = option(None, help="with auto: what it will run in (default: fp16)", choices=PRECISIONS)


@dataclass(frozen=True, slots=True)
class Export:
    """A graph, and what its report says: nodes before and after, what each rule did, what each layer costs."""

    graph: Graph
    report: GraphReport


def export_network(
    network: torch.nn.Module, spec: ModelSpec, parents: Mapping[str, str], output: Path, options: ExportOptions
) -> Export:
    """Trace a network with its pre- and post-processing, optimize the graph and write it.

    Args:
        network: effdet's, as ``create_network(spec)`` builds it, in evaluation mode.
        spec: goes into the file.
        parents: SHA-256 of what the network came from.
        output: the ONNX file.
        options: input type, batch, top-K.

    Raises:
        UsageError: options that do not fit.
        GraphError: the exporter failed.
    """
    import onnx_ir as ir

    from edge_effdet.graph.model import save_graph
    from edge_effdet.graph.optimize import optimize_model
    from edge_effdet.graph.report import count_nodes, make_report
    from edge_effdet.models.detector import MAX_TOP_K

    if not 1 <= options.top_k <= MAX_TOP_K:
        raise UsageError(f"--top-k {options.top_k} is not between 1 and {MAX_TOP_K}, TensorRT's limit; 1000 is usual.")
    if options.batch_size < 0:
        raise UsageError(f"--batch-size {options.batch_size} is negative; give 1 or more, or 0 for a dynamic batch.")
    dense = _dense_pairs(options)
    model = trace_network(network, spec, options)
    before = count_nodes(model)
    reports = optimize_model(model, dense)
    # What stays in a form that works as well needs nobody's attention; --explain lists it.
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
    target, precision = options.fuse_target, options.fuse_precision or "fp16"
    if options.fuse_separable != "auto":
        if target or options.fuse_precision:
            raise UsageError(
                "--fuse-target and --fuse-precision say what --fuse-separable auto decides for, and it was not asked for; add "
                "it or leave them out."
            )
        return None if options.fuse_separable == "keep" else lambda pair: True
    if target is None:
        raise UsageError(
            "--fuse-separable auto depends on the machine that the engine is for; name it with --fuse-target "
            f"({', '.join(TARGETS)})."
        )
    from edge_effdet.graph.cost import decide

    batch = options.batch_size or 1
    return lambda pair: decide(pair, target, precision, batch)


def trace_network(network: torch.nn.Module, spec: ModelSpec, options: ExportOptions) -> ir.Model:
    """The graph as torch.export traces it, before any rule. Raises GraphError where the exporter fails."""
    import onnxscript
    import torch

    from edge_effdet.graph.model import INPUT_NAME, OPSET, OUTPUT_NAMES
    from edge_effdet.models.detector import Detector

    op = onnxscript.opset18

    def divide_indices(numerator: Any, denominator: Any) -> Any:
        # torch's translation of // floors with five more nodes, for negative numbers; indices have none.
        return op.Div(numerator, op.CastLike(denominator, numerator))  # pyright: ignore[reportArgumentType]

    detector = Detector(network, spec, options.top_k, options.raw).eval()
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
    """Drop what the exporter notes for its own debugging: source lines and paths of the machine that exported."""
    from edge_effdet.graph.rules.fuse_separable import MACS_BEFORE_FUSION

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
    """The network that the options name, its spec and its parents.

    A ``.safetensors`` needs nothing else; effdet's ``.pth`` needs ``model``, and ``classes`` where they are not COCO's; a
    name alone gives seeded random weights.

    Raises:
        UsageError, CheckpointError: the options do not name one network, or the file does not fit.
    """
    try:
        import effdet  # noqa: F401
        import torch
    except ModuleNotFoundError as error:
        raise MissingDependency("effdet", "export", "to read a checkpoint") from error
    from edge_effdet.artifacts import file_sha256
    from edge_effdet.models.checkpoint import is_effdet_file, load_effdet_pth, load_network, open_checkpoint
    from edge_effdet.models.zoo import create_network, model_spec

    names = tuple(name.strip() for name in classes.split(",")) if classes else None
    if checkpoint is not None and not is_effdet_file(checkpoint):
        source = open_checkpoint(checkpoint)
        if model not in (None, source.spec.name):
            raise UsageError(f"{checkpoint} is a {source.spec.name}, not a {model}; leave --model out.")
        if names not in (None, source.spec.class_names):
            raise UsageError(
                f"{checkpoint} has {source.spec.num_classes} classes ({', '.join(source.spec.class_names[:5])}…) and "
                f"--classes names {len(names or ())}; leave --classes out."
            )
        if image_size not in (None, source.spec.image_size):
            raise UsageError(f"{checkpoint} was trained at {source.spec.image_size}; leave --image-size out.")
        if fusion not in (None, source.spec.fusion):
            raise UsageError(f"{checkpoint} sums its BiFPN's inputs by {source.spec.fusion}; leave --fusion out.")
        return load_network(source), source.spec, {"checkpoint": source.sha256}
    if model is None:
        raise UsageError("A .pth does not say which model it is; give --model NAME too." if checkpoint else
                         "Nothing to export; give --checkpoint F or --model NAME.")  # fmt: skip
    spec = model_spec(model, names, image_size=image_size, fusion=fusion)
    if checkpoint is not None:
        return load_effdet_pth(checkpoint, spec), spec, {"checkpoint": file_sha256(checkpoint)}
    torch.manual_seed(seed)
    logger.warning("%s has random weights (seed %d): good for looking at graphs, not for finding anything", model, seed)
    return create_network(spec).eval(), spec, {"seed": text_sha256(f"{model} {seed}")}
