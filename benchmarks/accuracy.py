"""Measure what INT8 costs in AP, time and memory: ours against what a user would run without us, on the same images in one run.

python -m benchmarks.accuracy --checkpoint tests/assets/bccd_lite0.safetensors --data ../shared/data/bccd --name bccd

NNCF is among the peers where it is installed (``pip install -e .[peers]``).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.peers import modelopt_defaults, nncf_defaults, onnxruntime_static
from benchmarks.peers.plain_onnxruntime import PlainRunner
from benchmarks.processes import cost_of, run_module
from edge_effdet.artifacts import Graph, file_sha256
from edge_effdet.backends.arithmetic import EXACT_EVERYWHERE, FULL_RANGE
from edge_effdet.backends.base import Available, get_backend
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.data.base import Sample, match_classes, samples_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.evaluation.accuracy import graph_as_engine
from edge_effdet.evaluation.intervals import drop_interval
from edge_effdet.evaluation.metrics import coco_metrics
from edge_effdet.evaluation.run import detect_samples, run_over_samples
from edge_effdet.graph.export import ExportOptions, export_network, load_source
from edge_effdet.graph.model import load_graph
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.proof import prove_precision
from edge_effdet.quant.stage import QuantizeOptions, convert_to_fp16, quantize_on_images
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.latency import measure_latency

OURS = "INT8, ours"
TO_127 = ", weights to 127"
FULL = f"{OURS}{TO_127}"
OPENVINO = ", by OpenVINO"
PLAIN = ", by plain onnxruntime"
Quantize = Callable[[Graph, Path, CalibrationImages, Path], object]
"""Takes our graph, the same graph with float32 pixels, the calibration images, and the file to write."""


def ours(**changes: Any) -> Quantize:
    """Our INT8 with these changes of ``QuantizeOptions``."""
    return lambda graph, _, images, path: quantize_on_images(graph, images, QuantizeOptions(**changes), path)


def peer(quantize: Callable[..., object], **options: Any) -> Quantize:
    """The INT8 of another tool. It gets a graph with float32 pixels, because onnxruntime's quantizer fails on a uint8 input."""

    def call(_: Graph, float_graph: Path, images: CalibrationImages, path: Path) -> None:
        quantize(float_graph, np.concatenate(list(images)).astype(np.float32), path, **options)

    return call


WAYS: dict[str, Quantize] = {
    "FP16": lambda graph, _, __, path: convert_to_fp16(graph, path),
    OURS: ours(),
    FULL: ours(weight_codes=FULL_RANGE),
    "INT8, ours, max": ours(method="max"),
    "INT8, ours, entropy": ours(method="entropy"),
    "INT8, ours, mse": ours(method="mse"),
    "INT8, ours, nearest": ours(rounding="nearest"),
    "INT8, ours, not equalized": ours(equalize=False),
    "INT8, ours, bias corrected": ours(correct_bias=True),
    "INT8, ModelOpt's defaults": peer(modelopt_defaults.quantize),
    "INT8, NNCF's defaults": peer(nncf_defaults.quantize),
    "INT8, onnxruntime MinMax": peer(onnxruntime_static.quantize),
    **{
        f"INT8, onnxruntime {name}, convolutions": peer(
            onnxruntime_static.quantize, convolutions_only=True, method=name
        )
        for name in ("MinMax", "Entropy", "Percentile")
    },
}


def compare(
    graphs: Mapping[str, Graph], costs: Mapping[str, Any], samples: Sequence[Sample], by_others: Sequence[str]
) -> list[dict[str, Any]]:
    """Measure the graphs of all ways.

    Our onnxruntime runner, which computes INT8 exactly on any processor, runs all of them. OpenVINO, where it is installed, and
    onnxruntime with its default options also run those in ``by_others``, in the arithmetic of this processor.

    Args:
        graphs: the graph of each way, the FP32 one first.
        costs: what it cost to make them, as ``cost_of`` gives it.
        samples: the images that AP is measured on.
        by_others: the ways that other runners run too.

    Returns:
        One row a way: AP, the points lost against the first way with their interval, the share of INT8 MACs, milliseconds a run.
    """
    engines = {name: graph_as_engine(each) for name, each in graphs.items()}
    files = dict(graphs)
    if isinstance(get_backend("openvino").probe(), Available):
        files |= {f"{name}{OPENVINO}": graphs[name] for name in by_others}
        engines |= {f"{name}{OPENVINO}": replace(engines[name], backend="openvino") for name in by_others}
    found = {name: detect_samples(engine, samples) for name, engine in engines.items()}
    latencies = dict(zip(engines, measure_latency(list(engines.values()), read_image(samples[0].path)), strict=True))
    (readable, reference), spec = next(iter(found.values())), next(iter(graphs.values())).spec
    for name in by_others:
        files[f"{name}{PLAIN}"] = graphs[name]
        with PlainRunner(graphs[name].path) as runner:
            found[f"{name}{PLAIN}"] = run_over_samples(runner, samples, spec)
    before = coco_metrics(readable, reference, spec)
    rows = []
    for name, (_, after) in found.items():
        metrics, latency = coco_metrics(readable, after, spec), latencies.get(name)
        rows.append(
            {
                "way": name,
                "AP": metrics.AP,
                "AP50": metrics.AP50,
                "drop": 100 * (before.AP - metrics.AP),
                "drop_interval": drop_interval(readable, reference, after, spec.num_classes),
                "int8_mac_fraction": count_int8(files[name].path),
                "to_quantize": costs.get(name),
                "median_ms": None if latency is None else latency.median_ms,
                "arithmetic": None if latency is None else latency.arithmetic,
            }
        )
    return rows


def count_int8(path: Path) -> float:
    """The share of the MACs in INT8, 0 to 1. The peers' files lack the shapes that counting needs, so these are inferred first."""
    model = ir.load(str(path))
    ShapeInferencePass()(model)
    return prove_precision(model).fraction("int8")


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.one:
        graph = load_graph(arguments.work / "fp32.onnx")
        images = calibration_images(arguments.data, graph, arguments.images)
        codes = FULL_RANGE if arguments.one == FULL else EXACT_EVERYWHERE
        high = {"keep_high": arguments.keep_high, "weight_codes": codes}
        call = ours(**high) if arguments.keep_high else WAYS[arguments.one]
        output = arguments.work / "out.onnx"
        list(images.first(2))
        return Result("", cost_of(lambda: call(graph, arguments.work / "float32.onnx", images, output)))
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        work = Path(folder)
        data = arguments.data.resolve()
        graph = export_graphs(arguments.checkpoint, work)
        images = calibration_images(data, graph, arguments.images)
        samples = _test_samples(data, graph)
        jobs = [(way, work, []) for way in WAYS if not arguments.only or way in (*arguments.only, OURS)]
        high = f"{OURS}, high: {arguments.keep_high}"
        if arguments.keep_high:
            jobs.append((high, work, ["--keep-high", arguments.keep_high]))
            if FULL in (arguments.only or WAYS):
                jobs.append((f"{high}{TO_127}", work, ["--keep-high", arguments.keep_high]))
        if arguments.qat:
            export_graphs(arguments.qat, work / "qat")
            jobs.append((f"{OURS}, after QAT", work / "qat", []))
        graphs, costs, refused = {"FP32": graph}, {}, {}
        shared = ["--data", data, "--images", arguments.images]
        for number, (way, own, extra) in enumerate(jobs):
            base = way if way in WAYS else FULL if way.endswith(TO_127) else OURS
            try:
                costs[way] = run_module("benchmarks.accuracy", ["--one", base, "--work", own, *extra, *shared])
            except EdgeEffDetError as error:
                # That a peer fails is a finding, and the text below the table says so.
                refused[way] = str(error)
                continue
            path = (own / "out.onnx").rename(work / f"{number}.onnx")
            graphs[way] = replace(graph, path=path, sha256=file_sha256(path))
        rows = compare(
            graphs,
            costs,
            samples,
            [way for way in ("FP32", "FP16", OURS, FULL, high, f"{high}{TO_127}") if way in graphs],
        )
        calibration = {key: value for key, value in images.record("").items() if key not in ("manifest", "method")}
    result = {
        "checkpoint_sha256": graph.parents["checkpoint"],
        "calibration": calibration,
        "evaluation": {"split": "test", "images": len(samples), "data_sha256": samples_sha256(samples)},
        "rows": rows,
        "refused": refused,
    }
    saved = save_result("accuracy", result, arguments.name)
    header = ("way", "AP", "AP50", "drop", "95 %", "INT8 MACs", "to quantize", "memory", "a run")
    text = table([header, *map(_cells, rows)])
    text += "".join(f"\n{way} failed: {why}" for way, why in refused.items())
    return Result(f"{text}\n\n{saved}", result)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    cost = row["to_quantize"]
    return (
        row["way"],
        f"{100 * row['AP']:.1f}",
        f"{100 * row['AP50']:.1f}",
        f"{row['drop']:+.2f}",
        "{:+.2f} to {:+.2f}".format(*row["drop_interval"]),
        f"{100 * row['int8_mac_fraction']:.1f} %",
        f"{cost['seconds']:.0f} s" if cost else "",
        f"{cost['peak_mb_over_idle']} MB" if cost else "",
        f"{row['median_ms']:.1f} ms" if row["median_ms"] else "",
    )


def export_graphs(checkpoint: Path, work: Path) -> Graph:
    """Export a checkpoint as ``fp32.onnx``, which is returned, and as ``float32.onnx`` with float32 pixels for the peers."""
    network, spec, parents = load_source(checkpoint, None)
    floats = ExportOptions(input_dtype="float32")
    work.mkdir(exist_ok=True)
    export_network(network, spec, parents, work / "float32.onnx", floats)
    return export_network(network, spec, parents, work / "fp32.onnx", ExportOptions()).graph


def calibration_images(data: Path, graph: Graph, count: int) -> CalibrationImages:
    """``count`` images of the split ``calibration`` or ``train`` of a data set."""
    dataset = match_classes(read_dataset(data, quiet=True), graph.spec)
    _, samples = dataset.choose_split(None, ("calibration", "train"))
    return load_calibration_images(samples, graph.spec, count, seed=0)


def _test_samples(data: Path, graph: Graph) -> Sequence[Sample]:
    return match_classes(read_dataset(data, quiet=True), graph.spec).choose_split("test", ())[1]


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "accuracy",
        "Measure what INT8 costs in AP, against peers.",
        "--checkpoint tests/assets/bccd_lite0.safetensors --data bccd --name bccd",
        checkpoint="the model",
        data="the data set: train calibrates, test is measured",
        name="accuracy",
        required=("checkpoint", "data"),
    )
    parser.add_argument("--images", type=int, default=64, metavar="N", help="calibration images (default: 64)")
    parser.add_argument(
        "--keep-high", metavar="P", help="patterns of convolutions that one more way of ours keeps high"
    )
    parser.add_argument(
        "--qat", type=Path, metavar="F", help="a checkpoint of train --qat, which one more way of ours quantizes"
    )
    parser.add_argument(
        "--only", nargs="+", choices=tuple(WAYS), metavar="WAY", help="the ways to measure besides ours (default: all)"
    )
    parser.add_argument("--one", choices=tuple(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
