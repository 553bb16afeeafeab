"""Compare one pass of a head over all pyramid levels with one pass for each level.

python -m benchmarks.heads

A head runs the same convolutions on five levels, and each level has its own batch norm. With the batch norms folded, these are five
pairs of convolutions with weights of their own. One pass over all levels would lay the levels side by side on a canvas, run the shared
pair once without folding, and apply each level's batch norm as two maps over the canvas. The maps also put zeros between the levels
again, where the padding of the next convolution must be. This takes fewer and larger kernels and more memory traffic. Both ways
compute the same, which the script checks.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.latency import open_onnxruntime, open_openvino, positive, summarize_times, time_ways
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.graph.model import IR_VERSION, OPSET

CHANNELS, REPEATS, LEVELS = 64, 3, 5
LARGEST_ERROR = 1e-4


class _Graph:
    """Collects nodes and constants, and writes them as an ONNX file."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}

    def add(self, kind: str, inputs: Sequence[str | np.ndarray], **attributes: Any) -> str:
        names = []
        for value in inputs:
            if isinstance(value, np.ndarray):
                names.append(f"c{len(self.arrays)}")
                self.arrays[names[-1]] = value
            else:
                names.append(value)
        output = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def silu(self, value: str) -> str:
        return self.add("Mul", [value, self.add("Sigmoid", [value])])

    def save(self, path: Path, side: int, outputs: Sequence[str]) -> None:
        sides = [side >> level for level in range(LEVELS)]
        shape = [1, CHANNELS, sum(size * size for size in sides), 1]
        floats = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "heads",
            [helper.make_tensor_value_info("x", floats, shape)],
            [
                helper.make_tensor_value_info(name, floats, [1, CHANNELS, size, size])
                for name, size in zip(outputs, sides, strict=True)
            ],
            [numpy_helper.from_array(array, name) for name, array in self.arrays.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)


def write_graphs(side: int, folder: Path) -> dict[str, Path]:
    """Write a head's repeated convolutions over levels of ``side``, ``side / 2``, … pixels in both ways, and give the files by way."""
    rng = np.random.default_rng(1)
    depthwise = rng.normal(0, 0.3, (REPEATS, CHANNELS, 1, 3, 3)).astype(np.float32)
    pointwise = rng.normal(0, 0.12, (REPEATS, CHANNELS, CHANNELS, 1, 1)).astype(np.float32)
    scale = rng.uniform(0.5, 1.5, (REPEATS, LEVELS, CHANNELS)).astype(np.float32)
    shift = rng.normal(0, 0.2, (REPEATS, LEVELS, CHANNELS)).astype(np.float32)
    sides = [side >> level for level in range(LEVELS)]
    spatial = {"group": CHANNELS, "pads": [1, 1, 1, 1]}

    def split(graph: _Graph) -> list[str]:
        # Both ways cut the same input into levels, which in a network come from five nodes of the BiFPN.
        starts = np.cumsum([0, *(size * size for size in sides)])
        cut = [
            graph.add("Slice", ["x", np.array([begin]), np.array([end]), np.array([2])])
            for begin, end in pairwise(starts)
        ]
        return [
            graph.add("Reshape", [value, np.array([1, CHANNELS, size, size])])
            for value, size in zip(cut, sides, strict=True)
        ]

    separate = _Graph()
    values = split(separate)
    for repeat in range(REPEATS):
        for level, value in enumerate(values):
            factor = scale[repeat, level][:, None, None, None]
            inner = separate.add("Conv", [value, depthwise[repeat]], **spatial)
            values[level] = separate.silu(
                separate.add("Conv", [inner, pointwise[repeat] * factor, shift[repeat, level]])
            )
    separate.save(folder / "separate.onnx", side, values)

    packed = _Graph()
    # The finest level stands on the left and the others below each other on its right, with a row or column of zeros between them.
    tops = np.cumsum([0, *(size + 1 for size in sides[1:-1])])
    places = [(0, 0), *((int(top), side + 1) for top in tops)]
    height, width = max(side, int(tops[-1]) + sides[-1]), side + 1 + sides[1]
    canvas = ""
    for value, (top, left), size in zip(split(packed), places, sides, strict=True):
        pads = np.array([0, 0, top, left, 0, 0, height - top - size, width - left - size])
        padded = packed.add("Pad", [value, pads])
        canvas = packed.add("Add", [canvas, padded]) if canvas else padded
    for repeat in range(REPEATS):
        factors, offsets = (np.zeros((1, CHANNELS, height, width), np.float32) for _ in range(2))
        for level, ((top, left), size) in enumerate(zip(places, sides, strict=True)):
            window = np.s_[0, :, top : top + size, left : left + size]
            factors[window] = scale[repeat, level][:, None, None]
            offsets[window] = shift[repeat, level][:, None, None]
        inner = packed.add("Conv", [canvas, depthwise[repeat]], **spatial)
        mixed = packed.add("Conv", [inner, pointwise[repeat]])
        canvas = packed.silu(packed.add("Add", [packed.add("Mul", [mixed, factors]), offsets]))
    outputs = [
        packed.add("Slice", [canvas, np.array([top, left]), np.array([top + size, left + size]), np.array([2, 3])])
        for (top, left), size in zip(places, sides, strict=True)
    ]
    packed.save(folder / "packed.onnx", side, outputs)
    return {"one pass a level": folder / "separate.onnx", "one pass over all": folder / "packed.onnx"}


def compare_heads(side: int, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time both ways in each runtime: rows of ``summarize_times``. Raises EdgeEffDetError where the ways do not compute the same."""
    sides = [side >> level for level in range(LEVELS)]
    features = np.random.default_rng(0).normal(size=(1, CHANNELS, sum(size * size for size in sides), 1))
    features = features.astype(np.float32)
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        files = write_graphs(side, Path(folder))
        openers = {"onnxruntime": open_onnxruntime, "OpenVINO": open_openvino}
        runs = {
            f"{tool}, {way}": opener(path, threads) for tool, opener in openers.items() for way, path in files.items()
        }
    expected = list(next(iter(runs.values()))(features).values())
    for way, run in runs.items():
        for found, value in zip(run(features).values(), expected, strict=True):
            if not np.abs(found - value).max() <= LARGEST_ERROR * np.abs(value).max():
                raise EdgeEffDetError(
                    f"{way} does not compute what the others do, so its time means nothing; correct benchmarks/heads.py."
                )
    times = time_ways({way: (lambda run=run: run(features)) for way, run in runs.items()}, rounds)
    return [
        {"side": side, **row}
        for row in summarize_times(times, {"per_level_over_this": "onnxruntime, one pass a level"})
    ]


def _run(arguments: argparse.Namespace) -> Result:
    rows = [row for side in arguments.sides for row in compare_heads(side, arguments.threads, arguments.rounds)]
    path = save_result("heads", {"threads": arguments.threads, "channels": CHANNELS, "repeats": REPEATS, "rows": rows})
    shown = [
        (f"{row['side']}", row["way"], f"{row['median_ms']:.2f} ms", f"{row['per_level_over_this']:.2f}")
        for row in rows
    ]
    head = ("finest level", "way", "median", "onnxruntime a level / this")
    return Result(f"{table([head, *shown])}\n\n{path}", {"result": str(path), "rows": rows})


def _side(text: str) -> int:
    if positive(text) < 1 << (LEVELS - 1):
        raise argparse.ArgumentTypeError(f"{text} is too small for {LEVELS} levels; give {1 << (LEVELS - 1)} or more")
    return int(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "heads", "Compare one pass of a head over all levels with one pass for each.", rounds=10, threads=True
    )
    parser.add_argument(
        "--sides",
        type=_side,
        nargs="+",
        default=[64, 40],
        metavar="N",
        help="sides of the finest level (default: 64 40)",
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
