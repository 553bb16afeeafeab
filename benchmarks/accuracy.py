"""What INT8 costs in AP: ours against what a user would run without us, on the same images in one run.

python -m benchmarks.accuracy --checkpoint tests/assets/bccd_lite0.safetensors --data ../shared/data/bccd --name bccd
python -m benchmarks.accuracy --name quickstart
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from benchmarks.machine import save_result
from benchmarks.peers import modelopt_defaults, onnxruntime_static
from edge_effdet.artifacts import Graph, file_sha256
from edge_effdet.cli import Result, make_parser, run_verb, table
from edge_effdet.data.dataset import Sample, match_classes, read_dataset, samples_sha256
from edge_effdet.evaluate import detect_samples
from edge_effdet.export import ExportOptions, export_network, load_source
from edge_effdet.images import read_image
from edge_effdet.intervals import drop_interval
from edge_effdet.metrics import coco_metrics
from edge_effdet.quant.calibration import CalibrationImages, load_calibration_images
from edge_effdet.quant.proof import prove_precision
from edge_effdet.quantize import QuantizeOptions, convert_graph_to_half, quantize_graph
from edge_effdet.quickstart import quickstart_checkpoint, quickstart_scenes
from edge_effdet.verify import graph_as_engine, measure_latency


def compare(
    graph: Graph, float_graph: Graph, images: CalibrationImages, samples: Sequence[Sample], work: Path
) -> list[dict[str, Any]]:
    """One row a way to quantize ``graph``: AP, share of INT8 MACs, seconds to quantize, milliseconds a run.

    The peers get ``float_graph``, the same with float32 pixels, as a user would export it: onnxruntime's quantizer fails
    on a uint8 input.
    """
    pixels = np.concatenate(list(images)).astype(np.float32)

    def ours(**changes: Any) -> Callable[[Path], object]:
        return lambda path: quantize_graph(graph, images, QuantizeOptions(**changes), path)

    # onnxruntime's go first: ModelOpt patches onnxruntime's quantizer in this process when it runs.
    ways: dict[str, Callable[[Path], object]] = {
        "INT8, onnxruntime MinMax": lambda path: onnxruntime_static.quantize(float_graph.path, pixels, path),
        **{
            f"INT8, onnxruntime {name}, convolutions": lambda path, name=name: onnxruntime_static.quantize(
                float_graph.path, pixels, path, convolutions_only=True, method=name
            )
            for name in ("MinMax", "Entropy", "Percentile")
        },
        "INT8, ModelOpt's defaults": lambda path: modelopt_defaults.quantize(float_graph.path, pixels, path),
        "FP16": lambda path: convert_graph_to_half(graph, path),
        "INT8, ours": ours(),
        "INT8, ours, max": ours(method="max"),
        "INT8, ours, entropy": ours(method="entropy"),
        "INT8, ours, mse": ours(method="mse"),
        "INT8, ours, nearest": ours(rounding="nearest"),
        "INT8, ours, not equalized": ours(equalize=False),
        "INT8, ours, bias corrected": ours(correct_bias=True),
    }
    graphs, seconds = {"FP32": graph}, {"FP32": 0.0}
    for number, (name, quantize) in enumerate(ways.items()):
        path = work / f"{number}.onnx"
        started = time.perf_counter()
        quantize(path)
        seconds[name] = time.perf_counter() - started
        graphs[name] = replace(graph, path=path, sha256=file_sha256(path))
    engines = {name: graph_as_engine(each) for name, each in graphs.items()}
    found = {name: detect_samples(engine, samples) for name, engine in engines.items()}
    metrics = {name: coco_metrics(*pair, graph.spec) for name, pair in found.items()}
    latencies = measure_latency(list(engines.values()), read_image(samples[0].path))
    return [
        {
            "way": name,
            "AP": metrics[name].AP,
            "AP50": metrics[name].AP50,
            "drop": 100 * (metrics["FP32"].AP - metrics[name].AP),
            "drop_interval": drop_interval(found["FP32"][0], found["FP32"][1], found[name][1], graph.spec.num_classes),
            "int8_mac_fraction": count_int8(graphs[name].path),
            "quantize_seconds": round(seconds[name], 1),
            "median_ms": latency["median_ms"],
        }
        for name, latency in zip(engines, latencies, strict=True)
    ]


def count_int8(path: Path) -> float:
    """Share of INT8 MACs; the peers' files come without the shapes that counting needs."""
    model = ir.load(str(path))
    ShapeInferencePass()(model)
    return prove_precision(model).fraction("int8")


def _run(arguments: argparse.Namespace) -> Result:
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        work = Path(folder)
        data = arguments.data or quickstart_scenes(work)
        checkpoint = arguments.checkpoint or quickstart_checkpoint()
        network, spec, parents = load_source(checkpoint, None)
        graph = export_network(network, spec, parents, work / "fp32.onnx", ExportOptions()).graph
        options = ExportOptions(input_dtype="float32")
        float_graph = export_network(network, spec, parents, work / "float32.onnx", options).graph
        dataset = match_classes(read_dataset(data), spec)
        _, calibration = dataset.choose_split(None, ("calibration", "train"))
        _, samples = dataset.choose_split("test", ())
        samples = samples[: arguments.judge or None]
        images = load_calibration_images(calibration, spec, arguments.images, seed=0)
        rows = compare(graph, float_graph, images, samples, work)
    result = {
        "checkpoint_sha256": parents["checkpoint"],
        "calibration": {key: value for key, value in images.record("").items() if key not in ("manifest", "method")},
        "evaluation": {"split": "test", "images": len(samples), "data_sha256": samples_sha256(samples)},
        "rows": rows,
    }
    path = save_result(f"accuracy-{arguments.name}", result)
    shown = [
        (
            row["way"],
            f"{100 * row['AP']:.1f}",
            f"{100 * row['AP50']:.1f}",
            f"{row['drop']:+.2f}",
            "{:+.1f} to {:+.1f}".format(*row["drop_interval"]),
            f"{100 * row['int8_mac_fraction']:.1f} %",
            f"{row['quantize_seconds']:.0f} s",
            f"{row['median_ms']:.1f} ms",
        )
        for row in rows
    ]
    header = ("way", "AP", "AP50", "drop", "95 %", "INT8 MACs", "to quantize", "a run")
    return Result(f"{table([header, *shown])}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "benchmarks", "What INT8 costs in AP, against peers.", "python -m benchmarks.accuracy --name quickstart"
    )
    parser.add_argument("--checkpoint", type=Path, metavar="F", help="default: the shipped model")
    parser.add_argument(
        "--data", type=Path, metavar="D", help="calibrates on train, judges on test; default: its scenes"
    )
    parser.add_argument("--images", type=int, default=64, metavar="N", help="calibration images (default: 64)")
    parser.add_argument("--judge", type=int, default=0, metavar="N", help="only so many test images (default: all)")
    parser.add_argument("--name", required=True, help="of the result file")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
