"""FP32 graph to FP16 or INT8: ``(graph, QuantizeConfig) -> Graph``. Casts and Q/DQ nodes write the precision into the graph."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

from edge_effdet.artifacts import Graph, refuse_overwrite, require_writable_file, temporary_folder, write_json
from edge_effdet.data.base import Dataset, Sample, samples_sha256
from edge_effdet.data.pictures import read_images
from edge_effdet.errors import GraphError, MissingDependency, UsageError
from edge_effdet.evaluation.accuracy import graph_as_engine
from edge_effdet.evaluation.run import evaluate_engine
from edge_effdet.options import as_path, option
from edge_effdet.quant.calibration import CHOICES, FEWEST_IMAGES, CalibrationImages
from edge_effdet.quant.choose import load_calibration_images, load_manifest_images
from edge_effdet.quant.options import Int8Options
from edge_effdet.quant.placement import choose_convolutions

if TYPE_CHECKING:
    from edge_effdet.quant.int8 import Recipe

logger = logging.getLogger("edge_effdet.quantize")


@dataclass(frozen=True, kw_only=True)
class QuantizeOptions(Int8Options):
    """Which parts of an INT8 graph stay in floating point, and in which precision."""

    keep_high: str = option(
        "", help="comma-separated patterns of convolutions that stay in floating point, besides the final ones"
    )
    high_precision: str = option("fp32", help="the precision of the rest of an INT8 graph", choices=("fp32", "fp16"))

    def int8(self) -> Int8Options:
        """The options that decide ranges and weights; those of this class come into play afterwards."""
        return Int8Options(**{item.name: getattr(self, item.name) for item in fields(Int8Options)})


@dataclass(frozen=True, slots=True)
class Search:
    """How a search finds the convolutions that stay in floating point.

    Attributes:
        samples: labelled images that are neither calibration nor test images, which AP is measured on.
        max_drop: points of AP that may be lost on them.
        target: the machine whose time is to be saved, a key of ``graph.targets.TARGETS``.
    """

    samples: Sequence[Sample]
    max_drop: float
    target: str


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Which images the INT8 ranges are measured on."""

    calibration_data: Path | str | None = option(
        None, help="a data set, or a folder of pictures; INT8 needs its real images, labels do not matter"
    )
    calibration_split: str | None = option(
        None, help="the split of --calibration-data (default: calibration, else train, else everything)"
    )
    calibration_images: int = option(128, help="how many of its images are used")
    calibration_choice: str = option(
        "random",
        help="how the images are chosen: at random with the seed, or so that no image of the data is far from all chosen ones",
        choices=CHOICES,
    )
    calibration_seed: int = option(0, help="seed of the random choice of calibration images")
    calibration_manifest: Path | str | None = option(
        None, help="a manifest that names the images instead, as those in calibration/ do"
    )
    calibration_table: Path | str | None = option(
        None, help="a file of ranges, which is used where it exists, and written where it does not"
    )
    few_images: bool = option(False, help="go on with fewer than 8 images")


@dataclass(frozen=True, kw_only=True)
class QuantizeConfig(CalibrationOptions, QuantizeOptions):
    """All that a quantization is told; every field is a flag of ``python -m edge_effdet.quantize``, which has its help.

    Attributes:
        precision: ``fp16`` or ``int8``. FP16 uses none of the other fields.

    Raises:
        UsageError: a precision or a choice that does not exist.
    """

    precision: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.precision not in ("fp16", "int8"):
            raise UsageError(f"There is no precision {self.precision!r} to quantize to; give fp16 or int8.")


def quantize_graph(graph: str | PathLike[str] | Graph, output: str | PathLike[str], config: QuantizeConfig) -> Graph:
    """Lower the precision of an FP32 graph: FP16 by casts, INT8 by Q/DQ. All that ``quantize`` does on the command line.

    >>> from edge_effdet import QuantizeConfig, quantize_graph
    >>> config = QuantizeConfig(precision="int8", calibration_data="bccd")
    >>> graph = quantize_graph("bccd.onnx", "bccd.int8.onnx", config)
    >>> images = graph.calibration["images"]

    Args:
        graph: an FP32 graph that ``export_checkpoint`` wrote.
        output: the ONNX file.
        config: the precision, and for INT8 the calibration images and how ranges and weights are computed.

    Returns:
        The graph in ``config.precision``. For INT8 its ``calibration`` names the images by hash.

    Raises:
        GraphError: the file is no such graph, or a tensor has no range.
        DataError: the calibration images cannot be read, or are too few.
        UsageError: INT8 without calibration data, or options that leave no convolution in INT8; or the outputs would overwrite what is
            read.
        InputError: the folder of ``output`` cannot be written, or the calibration table belongs to another graph or other images.
        MissingDependency: the packages of the extra ``export`` are not installed.
    """
    try:
        import onnx_ir  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx-ir", "export", "to rewrite graphs") from error
    from edge_effdet.graph.model import load_graph

    if not isinstance(graph, Graph):
        graph = load_graph(Path(graph))
    output = Path(output)
    if config.precision == "fp16":
        refuse_overwrite([output], [graph.path])
        require_writable_file(output)
        return convert_to_fp16(graph, output)
    refuse_calibration_overwrite([output], [graph.path], config)
    require_writable_file(output)
    images = calibration_images_from(calibration_dataset(config), config, graph)
    return quantize_on_images(graph, images, config, output, as_path(config.calibration_table))


def convert_to_fp16(graph: Graph, output: Path) -> Graph:
    """FP32 graph to FP16, by casts in the graph. Raises GraphError where the graph is not FP32."""
    import onnx_ir as ir

    from edge_effdet.graph.model import save_graph
    from edge_effdet.quant.precision import convert_to_half

    require_fp32(graph)
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


def quantize_on_images(
    graph: Graph,
    images: CalibrationImages,
    options: QuantizeOptions,
    output: Path,
    table: Path | None = None,
    search: Search | None = None,
) -> Graph:
    """FP32 graph to INT8 with explicit Q/DQ around the convolutions, whose ranges are measured on real images.

    Each activation tensor has one symmetric scale, and weights have one an output channel, all in FP32. Weights are stored as INT8.

    Args:
        graph: FP32, optimized.
        images: the images that the ranges are measured on.
        options: method, placement and rounding.
        output: the ONNX file.
        table: a file of ranges, used where it exists and written where it does not; None for neither.
        search: finds more convolutions that stay in floating point than ``options.keep_high`` names; None for no search.

    Raises:
        AccuracyGateFailed: the search found no choice within its budget.
        GraphError: the graph is not FP32, or a tensor has no range; the message names the tensor.
        UsageError: the placement leaves no convolution in INT8.
        InputError: the table belongs to another graph or other images.
    """
    recipe = prepare_int8(graph, images, options.int8(), table)
    patterns = [pattern.strip() for pattern in options.keep_high.split(",") if pattern.strip()]
    names = [node.name for node in recipe.model.graph.node if node.op_type == "Conv"]
    quantized, _ = choose_convolutions(names, patterns)
    if search is not None:
        quantized = _search(graph, recipe, quantized, images, options, search, output)
    return save_int8(graph, recipe, quantized, images, options.high_precision, output)


def _search(
    graph: Graph,
    recipe: Recipe,
    candidates: Sequence[str],
    images: CalibrationImages,
    options: QuantizeOptions,
    search: Search,
    output: Path,
) -> list[str]:
    """Search the convolutions that become INT8; writes the search's steps and its result beside ``output``."""
    from edge_effdet.quant.search import draw_placement, placement_table, search_placement
    from edge_effdet.quant.table import table_identity

    recipe = replace(recipe, weights={name: recipe.weights[name] for name in candidates})
    with temporary_folder() as folder:
        reference = evaluate_engine(graph_as_engine(graph), search.samples).AP

        def judge(quantized: Sequence[str]) -> float:
            if not quantized:
                return 0.0
            tried = save_int8(graph, recipe, quantized, images, options.high_precision, folder / "tried.onnx")
            return 100 * (reference - evaluate_engine(graph_as_engine(tried), search.samples).AP)

        identity = {
            **table_identity(graph, images, options.method, options.equalize),
            "options": asdict(options),
            "evaluation_sha256": samples_sha256(search.samples),
            "target": search.target,
        }
        steps, result, picture = search_files(output)
        placement = search_placement(recipe, images, judge, search.max_drop, search.target, steps, identity)
    logger.info("%s", placement_table(placement))
    write_json(result, placement.to_dict())
    if placement.noise:
        draw_placement(placement, picture)
    return placement.quantized


def search_files(output: Path) -> tuple[Path, Path, Path]:
    """What a search writes beside the graph ``output``: its steps, its result, and a picture of it."""
    steps, result, picture = (
        output.with_name(f"{output.name}.{kind}") for kind in ("search.json", "placement.json", "placement.png")
    )
    return steps, result, picture


def draft_int8(graph: Graph, images: CalibrationImages, options: QuantizeOptions, output: Path) -> Graph:
    """Make in seconds an INT8 graph that is as fast as the one of ``quantize_on_images``: speed does not depend on the ranges.

    It is no graph to use, since its ranges are measured on a few images only.
    """
    quick = replace(options, method="max", equalize=False, rounding="nearest", correct_bias=False)
    return quantize_on_images(graph, images.first(FEWEST_IMAGES), quick, output)


def prepare_int8(graph: Graph, images: CalibrationImages, options: Int8Options, table: Path | None = None) -> Recipe:
    """Compute the ranges and the INT8 weights of all convolutions, any of which may then become INT8. See ``quantize_on_images``."""
    from edge_effdet.quant.int8 import make_recipe
    from edge_effdet.quant.table import load_table, save_table, table_identity

    require_fp32(graph)
    known = None
    if table is not None and table.is_file():
        known = load_table(table, table_identity(graph, images, options.method, options.equalize))
    recipe = make_recipe(graph, images, options, known)
    if table is not None and known is None:
        save_table(recipe.table, table)
    return recipe


def save_int8(
    graph: Graph,
    recipe: Recipe,
    quantized: Sequence[str],
    images: CalibrationImages,
    high_precision: str,
    output: Path,
) -> Graph:
    """Write the graph with these convolutions in INT8, and the rest in FP32 or FP16."""
    import onnx
    import onnx_ir as ir

    from edge_effdet.graph.model import save_graph
    from edge_effdet.quant.int8 import apply_recipe
    from edge_effdet.quant.precision import convert_to_half

    model = apply_recipe(recipe, quantized)
    if high_precision == "fp16":
        convert_to_half(model)
    return save_graph(
        onnx.shape_inference.infer_shapes(ir.to_proto(model)),
        output,
        spec=graph.spec,
        stage="quantized",
        precision="int8",
        rewrites=graph.rewrites,
        parents={**graph.parents, "graph": graph.sha256},
        calibration={**images.record(recipe.options.method), "options": asdict(recipe.options)},
    )


def require_fp32(graph: Graph) -> None:
    if graph.precision != "fp32":
        raise GraphError(f"{graph.path} is {graph.precision} already; give the FP32 graph that it was made from.")


def refuse_calibration_overwrite(
    outputs: Sequence[Path], inputs: Sequence[Path | None], options: CalibrationOptions
) -> None:
    """Refuse outputs over inputs, and over what is read to calibrate, before anything is written. See ``refuse_overwrite``.

    Args:
        outputs: what is written, but for the calibration table.
        inputs: what is read, but for what ``options`` name.
        options: name data, manifest and table; a table that is not there yet is written.

    Raises:
        UsageError: names the output and the input.
    """
    table = as_path(options.calibration_table)
    read = [*inputs, as_path(options.calibration_data), as_path(options.calibration_manifest)]
    refuse_overwrite(outputs, [*read, table])
    if table is not None and not table.is_file():
        refuse_overwrite([table], read, "calibration_table")


def calibration_dataset(options: CalibrationOptions) -> Dataset:
    """Read the data set that the options name, or a folder of pictures without labels.

    Raises:
        UsageError: they name none. INT8 is never calibrated on random data.
        DataError: no picture can be read.
    """
    if options.calibration_data is None:
        raise UsageError(
            "INT8 needs real images to measure ranges on, and none were given; add `calibration_data` D with a hundred "
            "images like those of the camera."
        )
    return read_images(Path(options.calibration_data))


def calibration_images_from(dataset: Dataset, options: CalibrationOptions, graph: Graph) -> CalibrationImages:
    """The calibration images that the options choose: of a split of the data set, or those that a manifest names."""
    if options.calibration_manifest is not None:
        images = load_manifest_images(
            as_path(options.calibration_manifest), dataset.all_samples(), graph.spec, options.few_images
        )
        logger.info("calibrating on the %d images of %s", len(images), options.calibration_manifest)
        return images
    split, samples = dataset.choose_split(options.calibration_split, ("calibration", "train"))
    logger.info("calibrating on %d images of %s (split %s)",
                min(options.calibration_images, len(samples)), options.calibration_data, split)  # fmt: skip
    images = load_calibration_images(
        samples,
        graph.spec,
        options.calibration_images,
        options.calibration_seed,
        options.calibration_choice,
        graph,
        options.few_images,
    )
    return replace(images, split=split)
