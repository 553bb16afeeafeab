"""FP32 graph to FP16 or INT8: ``(Graph, calibration images) -> Graph``. Precision is written into the graph, by casts and Q/DQ."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_effdet.artifacts import Graph, ModelSpec, require_writable
from edge_effdet.cli import Result, add_options, make_parser, option, options_from, progress, run_verb
from edge_effdet.data.dataset import Dataset, read_dataset
from edge_effdet.errors import GraphError, MissingDependency, UsageError
from edge_effdet.quant.calibration import CalibrationImages, load_calibration_images
from edge_effdet.quant.placement import EARLY_LAYERS, choose_convolutions

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

logger = logging.getLogger("edge_effdet.quantize")


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    method: str = option("entropy", help="how a range is chosen from what was seen", choices=("entropy", "max"))
    keep_high: str = option(
        ",".join(EARLY_LAYERS), help="comma-separated patterns of convolutions that stay high, besides the final ones"
    )
    high_precision: str = option("fp32", help="what the rest of an INT8 graph runs in", choices=("fp32", "fp16"))


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    calibration_data: Path | None = option(None, help="a data set; INT8 needs its real images, labels do not matter")
    calibration_split: str | None = option(None, help="its split (default: calibration, else train, else everything)")
    calibration_images: int = option(128, help="how many of them, chosen with the seed")
    calibration_seed: int = option(0, help="of the choice")


def convert_graph_to_half(graph: Graph, output: Path) -> Graph:
    """FP32 graph to FP16, by casts in the graph. Raises GraphError where it is not an FP32 graph."""
    import onnx_ir as ir

    from edge_effdet.graph.model import save_graph
    from edge_effdet.quant.precision import convert_to_half

    _require_fp32(graph)
    model = ir.load(str(graph.path))
    convert_to_half(model)
    return save_graph(
        ir.to_proto(model),
        output,
        spec=graph.spec,
        stage="quantized",
        precision="fp16",
        rewrites=graph.rewrites,
        parents={**graph.parents, "graph": graph.sha256},
    )


def quantize_graph(graph: Graph, images: CalibrationImages, options: QuantizeOptions, output: Path) -> Graph:
    """FP32 graph to INT8 with explicit Q/DQ around the convolutions, by ModelOpt, on real images.

    Activations have one symmetric scale a tensor, weights one an output channel, all in FP32. Weights are stored as INT8.

    Args:
        graph: FP32, optimized.
        images: what the ranges are measured on.
        options: method and placement.
        output: the ONNX file.

    Raises:
        GraphError: not an FP32 graph, or a range is not finite; names the tensor.
        UsageError: the placement leaves nothing.
    """
    import onnx
    import onnx_ir as ir

    from edge_effdet.graph.model import load_model, save_graph
    from edge_effdet.quant.precision import convert_to_half

    _require_fp32(graph)
    source = load_model(graph.path)
    names = [node.name for node in source.graph.node if node.op_type == "Conv"]
    patterns = [pattern.strip() for pattern in options.keep_high.split(",") if pattern.strip()]
    quantized, _ = choose_convolutions(names, patterns)
    proto = _insert_qdq(source, images.pixels, quantized, options.method)
    model = ir.from_proto(proto)
    _note_fused_macs(model, source)
    _store_weights_as_int8(model)
    _check_scales(model)
    _warn_of_unquantized(model, quantized)
    if options.high_precision == "fp16":
        convert_to_half(model)
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(model))
    return save_graph(
        proto,
        output,
        spec=graph.spec,
        stage="quantized",
        precision="int8",
        rewrites=graph.rewrites,
        parents={**graph.parents, "graph": graph.sha256},
        calibration=images.record(options.method),
    )


def _note_fused_macs(model: ir.Model, source: onnx.ModelProto) -> None:
    """Carry over what dense convolutions were made of: ModelOpt drops the metadata of nodes."""
    from edge_effdet.graph.fuse_separable import MACS_BEFORE_FUSION

    noted = {
        node.name: entry.value
        for node in source.graph.node
        for entry in node.metadata_props
        if entry.key == MACS_BEFORE_FUSION
    }
    for node in model.graph:
        if node.name in noted:
            node.metadata_props[MACS_BEFORE_FUSION] = noted[node.name]


def _require_fp32(graph: Graph) -> None:
    if graph.precision != "fp32":
        raise GraphError(f"{graph.path} is {graph.precision} already; give the FP32 graph that it was made from.")


def _insert_qdq(model: onnx.ModelProto, pixels: np.ndarray, quantized: Sequence[str], method: str) -> onnx.ModelProto:
    import onnx

    try:
        with _quiet():
            from modelopt.onnx.quantization import quantize
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "nvidia-modelopt", "export", "to quantize") from error

    input_type = model.graph.input[0].type.tensor_type.elem_type
    data = pixels.astype(onnx.helper.tensor_dtype_to_np_dtype(input_type), copy=False)
    feeds: Any = _CalibrationFeeds(model.graph.input[0].name, data)
    _require_single_images(model)
    # ModelOpt writes next to its input.
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        source, target = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, str(source))
        with _quiet():
            quantize(
                str(source),
                quantize_mode="int8",
                calibration_data_reader=feeds,
                calibration_method=method,
                calibration_eps=["cpu"],
                op_types_to_quantize=["Conv"],
                nodes_to_quantize=[f"^{re.escape(name)}$" for name in quantized],
                high_precision_dtype="fp32",
                output_path=str(target),
                log_level="ERROR",
            )
        result = onnx.load(str(target))
    for own, original in zip(
        (*result.graph.input, *result.graph.output), (*model.graph.input, *model.graph.output), strict=True
    ):
        own.CopyFrom(original)
    return result


class _CalibrationFeeds:
    """Images one by one for ONNX Runtime's calibrators, with a progress bar; what CalibrationDataReader asks for."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._feeds = [{name: image[None]} for image in images]
        self.rewind()

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._coming, None)

    def get_first(self) -> dict[str, np.ndarray]:
        return self._feeds[0]

    def rewind(self) -> None:
        self._coming = iter(progress(self._feeds, len(self._feeds), "calibrating"))


def _require_single_images(model: onnx.ModelProto) -> None:
    # A dynamic batch must stay dynamic here: with a 1 in its place ModelOpt folds the shapes that depend on it.
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if batch > 1:
        raise UsageError(
            f"The graph takes batches of {batch}, and calibration runs one image at a time; export it with "
            "--batch-size 1, or 0 for a dynamic batch."
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """ModelOpt and what it imports print to stdout and log to the root; a user's terminal and --json are not for that."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(previous)


def _store_weights_as_int8(model: ir.Model) -> None:
    """Fold each QuantizeLinear of a weight into an INT8 initializer: the same numbers in a quarter of the bytes.

    ``q = clip(round(w / s), -127, 127)``, rounding half to even, as ONNX defines QuantizeLinear; -128 does not occur with
    symmetric scales.
    """
    from edge_effdet.graph.rule import add_initializer, constant, remove_unused, replace_output

    for node in list(model.graph):
        if node.op_type != "QuantizeLinear":
            continue
        weight, scale = constant(node.inputs[0]), constant(node.inputs[1])
        if weight is None or scale is None or node.inputs[0] is None:
            continue
        axis = node.attributes.get_int("axis", 1) % weight.ndim if scale.ndim else 0
        shape = [1] * weight.ndim
        if scale.ndim:
            shape[axis] = -1
        # A filter of zeros has no range; any scale represents it.
        safe = np.where(scale > 0, scale, 1.0).astype(np.float32).reshape(shape if scale.ndim else ())
        codes = np.clip(np.rint(weight / safe), -127, 127).astype(np.int8)
        replace_output(node, add_initializer(model.graph, f"{node.inputs[0].name}_int8", codes))
    remove_unused(model)


def _check_scales(model: ir.Model) -> None:
    from edge_effdet.graph.rule import constant

    for node in model.graph:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        scale = constant(node.inputs[1])
        name = node.inputs[0].name if node.inputs[0] is not None else node.name
        if scale is None or not np.isfinite(scale).all() or scale.dtype != np.float32:
            raise GraphError(
                f"Calibration gave {name} no finite FP32 scale; look at that layer with --explain, or use more images."
            )
        if node.op_type == "QuantizeLinear" and not (scale > 0).all():
            raise GraphError(f"{name} was constant over all calibration images, so it has no range; use other images.")


def _warn_of_unquantized(model: ir.Model, expected: Sequence[str]) -> None:
    """ModelOpt must have quantized just what it was told; a gap would be a silent loss of speed."""
    from edge_effdet.quant.precision import is_quantized

    found = {node.name for node in model.graph if is_quantized(node)}
    missing = [name for name in expected if name not in found]
    if missing:
        logger.warning(
            "ModelOpt left %d of %d convolutions in high precision (first: %s)", len(missing), len(expected), missing[0]
        )


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "quantize",
        "Turn an FP32 graph into FP16, or into INT8 with calibration images.",
        "python -m edge_effdet.quantize --onnx bccd.onnx --int8 --calibration-data bccd --output bccd.int8.onnx",
    )
    parser.add_argument("--onnx", type=Path, required=True, metavar="F", help="a graph that export wrote")
    precision = parser.add_mutually_exclusive_group(required=True)
    precision.add_argument("--fp16", action="store_true", help="casts to FP16")
    precision.add_argument("--int8", action="store_true", help="explicit Q/DQ")
    add_options(parser, CalibrationOptions, QuantizeOptions)
    parser.add_argument("--output", type=Path, required=True, metavar="F", help="the ONNX file to write")
    return parser


def calibration_dataset(options: CalibrationOptions) -> Dataset:
    """The data that the options name. Raises UsageError where they name none: INT8 is never calibrated on random data."""
    if options.calibration_data is None:
        raise UsageError(
            "INT8 needs real images to measure ranges on, and none were given; add --calibration-data D with a hundred "
            "images like those of the camera."
        )
    return read_dataset(options.calibration_data)


def calibration_images_from(dataset: Dataset, options: CalibrationOptions, spec: ModelSpec) -> CalibrationImages:
    """The chosen images of the chosen split."""
    split, samples = dataset.choose_split(options.calibration_split, ("calibration", "train"))
    logger.info("calibrating on %d images of %s (split %s)",
                min(options.calibration_images, len(samples)), options.calibration_data, split)  # fmt: skip
    images = load_calibration_images(samples, spec, options.calibration_images, options.calibration_seed)
    return replace(images, split=split)


def _run(arguments: argparse.Namespace) -> Result:
    try:
        import onnx_ir as ir
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx-ir", "export", "to rewrite graphs") from error
    from edge_effdet.graph.model import load_graph
    from edge_effdet.quant.proof import prove_precision

    graph = load_graph(arguments.onnx)
    require_writable(arguments.output.parent)
    if arguments.fp16:
        result = convert_graph_to_half(graph, arguments.output)
    else:
        calibration = options_from(CalibrationOptions, arguments)
        images = calibration_images_from(calibration_dataset(calibration), calibration, graph.spec)
        result = quantize_graph(graph, images, options_from(QuantizeOptions, arguments), arguments.output)
    proof = prove_precision(ir.load(str(result.path)))
    share = ", ".join(
        f"{100 * proof.fraction(kind):.1f} % {kind.upper()}" for kind in ("int8", "fp16", "fp32") if proof.macs[kind]
    )
    data = {
        "graph": str(result.path),
        "sha256": result.sha256,
        "precision": result.precision,
        "proof": proof.to_dict(),
        "calibration": dict(result.calibration),
    }
    return Result(f"{result.path}: convolution MACs {share}, {result.path.stat().st_size / 1e6:.1f} MB", data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
