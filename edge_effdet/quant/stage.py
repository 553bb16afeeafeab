"""FP32 graph to FP16 or INT8: ``(Graph, calibration images) -> Graph``. Precision is written into the graph, by casts and Q/DQ."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_effdet.artifacts import Graph, write_json
from edge_effdet.data.base import Dataset, Sample, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import GraphError, UsageError
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
    """Which parts of an INT8 graph stay in floating point, and in which."""

    keep_high: str = option("", help="comma-separated patterns of convolutions that stay high, besides the final ones")
    high_precision: str = option("fp32", help="what the rest of an INT8 graph runs in", choices=("fp32", "fp16"))

    def int8(self) -> Int8Options:
        """Without what is decided after the ranges and weights."""
        return Int8Options(**{item.name: getattr(self, item.name) for item in fields(Int8Options)})


@dataclass(frozen=True, slots=True)
class Search:
    """What a search for the convolutions that stay high is judged by.

    Attributes:
        samples: labelled images that are neither calibration nor test images.
        max_drop: points of AP that may be lost on them.
        target: a key of ``graph.targets.TARGETS``: whose time is to be saved.
    """

    samples: Sequence[Sample]
    max_drop: float
    target: str


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """Which images the INT8 ranges are measured on."""

    calibration_data: Path | str | None = option(
        None, help="a data set; INT8 needs its real images, labels do not matter"
    )
    calibration_split: str | None = option(
        None, help="the split of --calibration-data (default: calibration, else train, else everything)"
    )
    calibration_images: int = option(128, help="how many of its images are used")
    calibration_choice: str = option(
        "random",
        help="how the images are chosen: at random with the seed, or so that none is far from all of them",
        choices=CHOICES,
    )
    calibration_seed: int = option(0, help="seed of the random choice of calibration images")
    calibration_manifest: Path | str | None = option(
        None, help="a manifest of calibration/ that names the images instead"
    )
    calibration_table: Path | str | None = option(None, help="ranges to use again, or where to keep them")
    few_images: bool = option(False, help="go on with fewer than 8 images")


def convert_to_fp16(graph: Graph, output: Path) -> Graph:
    """FP32 graph to FP16, by casts in the graph. Raises GraphError where it is not an FP32 graph."""
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


def quantize_graph(
    graph: Graph,
    images: CalibrationImages,
    options: QuantizeOptions,
    output: Path,
    table: Path | None = None,
    search: Search | None = None,
) -> Graph:
    """FP32 graph to INT8 with explicit Q/DQ around the convolutions, on real images.

    Activations have one symmetric scale a tensor, weights one an output channel, all in FP32. Weights are stored as INT8.

    Args:
        graph: FP32, optimized.
        images: what the ranges are measured on.
        options: method, placement and rounding.
        output: the ONNX file.
        table: a file of ranges, used where it exists and written where it does not; None for neither.
        search: finds out which convolutions stay high, besides those of ``options.keep_high``; None for no others.

    Raises:
        AccuracyGateFailed: the search found no choice within its budget.
        GraphError: not an FP32 graph, or a tensor has no range; names the tensor.
        UsageError: the placement leaves nothing.
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
    """The convolutions that become INT8; writes ``<output>.search.json`` with its steps, ``.placement.json`` and ``.png``."""
    from edge_effdet.quant.search import draw_placement, placement_table, search_placement
    from edge_effdet.quant.table import table_identity

    recipe = replace(recipe, weights={name: recipe.weights[name] for name in candidates})
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        reference = evaluate_engine(graph_as_engine(graph), search.samples).AP

        def judge(quantized: Sequence[str]) -> float:
            if not quantized:
                return 0.0
            tried = save_int8(graph, recipe, quantized, images, options.high_precision, Path(folder) / "tried.onnx")
            return 100 * (reference - evaluate_engine(graph_as_engine(tried), search.samples).AP)

        identity = {
            **table_identity(graph, images, options.method, options.equalize),
            "options": asdict(options),
            "evaluation_sha256": samples_sha256(search.samples),
            "target": search.target,
        }
        steps = output.with_name(f"{output.name}.search.json")
        placement = search_placement(recipe, images, judge, search.max_drop, search.target, steps, identity)
    logger.info("%s", placement_table(placement))
    write_json(output.with_name(f"{output.name}.placement.json"), placement.to_dict())
    if placement.noise:
        draw_placement(placement, output.with_name(f"{output.name}.placement.png"))
    return placement.quantized


def draft_int8(graph: Graph, images: CalibrationImages, options: QuantizeOptions, output: Path) -> Graph:
    """An INT8 graph as fast as the one that ``quantize_graph`` makes without a search, in seconds: speed does not depend on the
    ranges.
    """
    quick = replace(options, method="max", equalize=False, rounding="nearest", correct_bias=False)
    return quantize_graph(graph, images.first(FEWEST_IMAGES), quick, output)


def prepare_int8(graph: Graph, images: CalibrationImages, options: Int8Options, table: Path | None = None) -> Recipe:
    """What INT8 makes of each convolution, for any choice of them. See ``quantize_graph``."""
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


def calibration_dataset(options: CalibrationOptions) -> Dataset:
    """The data that the options name. Raises UsageError where they name none: INT8 is never calibrated on random data."""
    if options.calibration_data is None:
        raise UsageError(
            "INT8 needs real images to measure ranges on, and none were given; add --calibration-data D with a hundred "
            "images like those of the camera."
        )
    return read_dataset(as_path(options.calibration_data))


def calibration_images_from(dataset: Dataset, options: CalibrationOptions, graph: Graph) -> CalibrationImages:
    """The chosen images of the chosen split, or those of the manifest."""
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
