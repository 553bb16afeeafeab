"""Which convolutions stay in high precision, so that a detector loses no more AP than it may: found, not guessed.

0. All of them in INT8 is tried first. Where that will do, nothing else is measured.
1. **Sensitivity.** Each convolution alone is set to INT8, and the error at the head tensors is measured over some calibration
   images: noise over signal, summed over class and box heads. (Its logarithm is the SQNR that the table shows.)
2. **Order.** Errors of independent roundings add, so the error of a choice is about the sum of its members'. What INT8 saves is
   the time of the cost model (``graph.cost``). To keep high those with the most noise a microsecond is the greedy solution of
   that knapsack: the best one at each of its own steps.
   AP alone would order them badly: one layer's is mostly within the noise of an evaluation. That of the most sensitive ones is
   measured all the same, and shown beside their SQNR.
3. **Judgement.** How many of them have to stay is decided by AP on validation images: none, then 1, 2, 4, … until the loss is
   within what is allowed, then by halves. Each step is a whole evaluation of a whole graph.

Steps are kept in a file, so that a search that was stopped goes on where it was.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edge_effdet.artifacts import write_json
from edge_effdet.cli import progress, table
from edge_effdet.errors import AccuracyGateFailed, InputError
from edge_effdet.graph.cost import SeparablePair, dense_us, depthwise_us
from edge_effdet.graph.rule import constant
from edge_effdet.graph.targets import get_target
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.int8 import Recipe, apply_recipe
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.proof import macs_before_fusion
from edge_effdet.quant.statistics import fetch_tensors

logger = logging.getLogger("edge_effdet.quantize")

SENSITIVITY_IMAGES = 8
JUDGED_ALONE = 8

Judge = Callable[[Sequence[str]], float]
"""From the convolutions in INT8 to the points of AP lost."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One convolution that can be INT8.

    Attributes:
        name: of the node.
        macs: multiply-accumulates, one image.
        saved_us: microseconds that INT8 saves against FP16 on the target, by the cost model.
    """

    name: str
    macs: int
    saved_us: float


@dataclass(frozen=True, slots=True)
class Placement:
    """What a search found.

    Attributes:
        layers: in the order of the graph.
        noise: error over signal at the heads with that layer alone in INT8; empty where all of them could be.
        alone: points of AP lost with that layer alone in INT8, of the most sensitive ones.
        kept_high: names.
        judged: layers kept high to points of AP lost, of all that was tried.
        drop: points of AP that the choice loses, on the images that judged it.
        target: that the times are of.
    """

    layers: Sequence[Layer]
    noise: Mapping[str, float]
    alone: Mapping[str, float]
    kept_high: Sequence[str]
    judged: Mapping[int, float]
    drop: float
    target: str

    @property
    def quantized(self) -> list[str]:
        high = set(self.kept_high)
        return [layer.name for layer in self.layers if layer.name not in high]

    def to_dict(self) -> dict[str, Any]:
        high = set(self.kept_high)
        return {
            "target": self.target,
            "drop": self.drop,
            "judged": {str(count): drop for count, drop in sorted(self.judged.items())},
            "layers": [
                {
                    "name": layer.name,
                    "macs": layer.macs,
                    "saved_us": layer.saved_us,
                    "sqnr_db": decibels(self.noise[layer.name]) if self.noise else None,
                    "drop_alone": self.alone.get(layer.name),
                    "precision": "high" if layer.name in high else "int8",
                }
                for layer in self.layers
            ],
        }


@dataclass(slots=True)
class _State:
    """What is kept between runs."""

    identity: Mapping[str, Any]
    noise: dict[str, float] = field(default_factory=dict)
    alone: dict[str, float] = field(default_factory=dict)
    judged: dict[int, float] = field(default_factory=dict)


def search_placement(
    recipe: Recipe,
    images: CalibrationImages,
    judge: Judge,
    max_drop: float,
    target: str,
    state_path: Path,
    identity: Mapping[str, Any],
) -> Placement:
    """The convolutions that have to stay high for a loss of at most ``max_drop`` points.

    Args:
        recipe: of the graph.
        images: that sensitivity is measured on.
        judge: evaluates a choice.
        max_drop: points of AP.
        target: a key of ``graph.targets.TARGETS``.
        state_path: where steps are kept.
        identity: what they belong to.

    Raises:
        AccuracyGateFailed: the budget cannot be met; says the nearest that can.
        InputError: the kept steps belong to something else.
    """
    state = _load_state(state_path, identity)
    layers = list_layers(recipe, target)
    names = [layer.name for layer in layers]

    def drop_with(count: int) -> float:
        if count not in state.judged:
            state.judged[count] = judge(names[count:])
            logger.info("with %d of %d convolutions kept high: drop %+.2f", count, len(names), state.judged[count])
            _save_state(state, state_path)
        return state.judged[count]

    if drop_with(0) > max_drop:
        _measure_noise(recipe, images.first(SENSITIVITY_IMAGES), layers, state, state_path)
        _judge_alone(judge, state, state_path)
        names = worst_first(layers, state.noise, get_target(target).launch_us)
    count = fewest_kept(drop_with, len(names) - 1, max_drop)
    if count is None:
        best = min(state.judged, key=lambda tried: (state.judged[tried], tried))
        raise AccuracyGateFailed(
            f"No choice that was tried loses at most {max_drop:g} points of AP; the nearest keeps {best} of {len(names)} "
            f"convolutions high and loses {state.judged[best]:.2f}: allow that with --max-ap-drop, or fine-tune the checkpoint "
            "with train --qat."
        )
    kept = tuple(names[:count])
    return Placement(
        layers, dict(state.noise), dict(state.alone), kept, dict(state.judged), state.judged[count], target
    )


def worst_first(layers: Sequence[Layer], noise: Mapping[str, float], least_us: float) -> list[str]:
    """Names by noise a microsecond that INT8 saves, the most first.

    Savings below ``least_us``, the fixed cost of a kernel, count as that: the model knows time no better, and a layer that saves next
    to nothing is still worth less than one that ruins the heads.
    """
    ordered = sorted(layers, key=lambda layer: (-noise[layer.name] / max(layer.saved_us, least_us), layer.name))
    return [layer.name for layer in ordered]


def fewest_kept(drop_with: Callable[[int], float], most: int, max_drop: float) -> int | None:
    """The least count whose drop is within ``max_drop``, by doubling and halving; None where not even ``most`` is.

    A drop is taken to fall with the count. It does so but for the noise of AP; a smaller count that would do by luck is not
    looked for.
    """
    if drop_with(0) <= max_drop:
        return 0
    low, high = 0, 1
    while high < most and drop_with(high) > max_drop:
        low, high = high, min(2 * high, most)
    if drop_with(high) > max_drop:
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if drop_with(middle) <= max_drop else (middle, high)
    return high


def list_layers(recipe: Recipe, target: str) -> list[Layer]:
    """Each convolution that can be INT8, with what it computes and what INT8 saves."""
    machine = get_target(target)
    layers = []
    for node in ir.from_proto(recipe.model).graph:
        if node.name not in recipe.weights:
            continue
        pair = _as_pair(node)
        count = depthwise_us if node.attributes.get_int("group", 1) != 1 else dense_us
        saved = count(pair, machine, "fp16") - count(pair, machine, "int8")
        layers.append(Layer(str(node.name), macs_before_fusion(node), saved))
    return layers


def decibels(noise: float) -> float:
    """SQNR of an error over signal; that of no error at all is given as 200."""
    return min(200.0, -10 * math.log10(noise)) if noise > 0 else 200.0


def placement_table(placement: Placement, rows: int = 20) -> str:
    """The most sensitive layers for people, and what was tried."""
    high = set(placement.kept_high)
    tried = ", ".join(f"{count} kept high: {drop:+.2f}" for count, drop in sorted(placement.judged.items()))
    if not placement.noise:
        return f"points of AP lost with {tried}; all convolutions can be INT8, so the search looked no further"
    worst = sorted(placement.layers, key=lambda layer: -placement.noise[layer.name])[:rows]
    lines = [("layer", "SQNR at the heads", "AP lost", "MACs", "INT8 saves", "kept")]
    for layer in worst:
        sqnr = f"{decibels(placement.noise[layer.name]):.1f} dB"
        kept = "high" if layer.name in high else "INT8"
        lost = f"{placement.alone[layer.name]:+.2f}" if layer.name in placement.alone else ""
        lines.append((layer.name, sqnr, lost, f"{layer.macs / 1e6:.1f} M", f"{layer.saved_us:.2f} us", kept))
    return f"each layer alone in INT8:\n\n{table(lines)}\n\npoints of AP lost with {tried}"


def draw_placement(placement: Placement, path: Path) -> None:
    """SQNR of every layer in the network's order, and what stays high, as a PNG."""
    from matplotlib.figure import Figure

    from edge_effdet.artifacts import atomic_output

    high = set(placement.kept_high)
    values = [decibels(placement.noise[layer.name]) for layer in placement.layers]
    colors = ["tab:red" if layer.name in high else "tab:blue" for layer in placement.layers]
    figure = Figure(figsize=(12, 5), layout="constrained")
    axes = figure.subplots()
    axes.bar(range(len(values)), np.minimum(values, 80), color=colors, width=0.9)
    axes.set_ylabel("SQNR at the heads, dB (that layer alone in INT8)")
    axes.set_title(
        f"{len(high)} of {len(values)} convolutions stay high (red); AP drop {placement.drop:+.2f} on the images that judged"
    )
    groups = [layer.name.split(".")[0] + _stage(layer.name) for layer in placement.layers]
    starts = [position for position in range(len(groups)) if position == 0 or groups[position] != groups[position - 1]]
    # Names of groups that are too narrow for one would be written over each other.
    wide = [
        start for start, end in zip(starts, [*starts[1:], len(groups)], strict=True) if end - start >= len(groups) / 60
    ]
    axes.set_xticks(wide, [groups[position] for position in wide], rotation=60, ha="right", fontsize=8)
    axes.set_xlim(-1, len(values))
    with atomic_output(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _stage(name: str) -> str:
    parts = name.split(".")
    if parts[0] == "backbone" and len(parts) > 2 and parts[1] == "blocks":
        return f" {parts[2]}"
    return f" {parts[2]}" if parts[0] == "fpn" and parts[1] == "cell" else " inputs" if parts[0] == "fpn" else ""


def _measure_noise(
    recipe: Recipe, images: CalibrationImages, layers: Sequence[Layer], state: _State, state_path: Path
) -> None:
    heads = head_tensors(recipe)
    missing = [layer.name for layer in layers if layer.name not in state.noise]
    if not missing:
        return
    canvases = list(images)
    expected = list(fetch_tensors(recipe.model, canvases, heads))
    started = time.monotonic()
    for position, name in enumerate(progress(missing, len(missing), "sensitivity")):
        found = fetch_tensors(ir.to_proto(apply_recipe(recipe, [name])), canvases, heads)
        state.noise[name] = relative_error(expected, found)
        if position == 0:
            minutes = (time.monotonic() - started) * len(missing) / 60
            logger.info("measuring the sensitivity of %d convolutions: about %.1f minutes", len(missing), minutes)
        if position % 16 == 15 or name == missing[-1]:
            _save_state(state, state_path)


def _judge_alone(judge: Judge, state: _State, state_path: Path) -> None:
    worst = sorted(state.noise, key=lambda name: (-state.noise[name], name))[:JUDGED_ALONE]
    missing = [name for name in worst if name not in state.alone]
    for name in progress(missing, len(missing), "AP of the most sensitive"):
        state.alone[name] = judge([name])
        _save_state(state, state_path)


def head_tensors(recipe: Recipe) -> list[str]:
    """The outputs of the last convolution of each head and level."""
    final = [node for node in recipe.model.graph.node if node.op_type == "Conv" and is_final(node.name)]
    taken = {value for node in final for value in node.input}
    return [node.output[0] for node in final if node.output[0] not in taken]


def relative_error(expected: Sequence[Mapping[str, np.ndarray]], found: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Squared error over the variance of each tensor's values, averaged over the tensors."""
    errors: dict[str, float] = {}
    signals: dict[str, float] = {}
    for one, other in zip(expected, found, strict=True):
        for name, values in one.items():
            errors[name] = errors.get(name, 0.0) + float(np.square(values - other[name]).sum())
            signals[name] = signals.get(name, 0.0) + float(np.square(values - values.mean()).sum())
    return float(np.mean([errors[name] / max(signals[name], 1e-30) for name in errors]))


def _as_pair(node: ir.Node) -> SeparablePair:
    weight, shape = constant(node.inputs[1]), node.outputs[0].shape
    assert weight is not None and shape is not None
    groups = node.attributes.get_int("group", 1) or 1
    strides = node.attributes.get_ints("strides", (1, 1)) or (1, 1)
    return SeparablePair(
        name=str(node.name),
        channels_in=weight.shape[1] * groups,
        channels_out=weight.shape[0],
        kernel=(weight.shape[2], weight.shape[3]),
        stride=(strides[0], strides[1]),
        height=int(shape[2]),  # type: ignore[arg-type]
        width=int(shape[3]),  # type: ignore[arg-type]
    )


def _load_state(path: Path, identity: Mapping[str, Any]) -> _State:
    if not path.is_file():
        return _State(identity)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        kept = _State(
            dict(raw["identity"]),
            {str(name): float(value) for name, value in raw["noise"].items()},
            {str(name): float(drop) for name, drop in raw["alone"].items()},
            {int(count): float(drop) for count, drop in raw["judged"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} holds no steps of a search ({type(error).__name__}: {error}); delete it.") from error
    if kept.identity != json.loads(json.dumps(dict(identity))):
        raise InputError(
            f"{path} holds the steps of a search with another graph, other images or other options; delete it, or give another "
            "--output."
        )
    logger.info("going on with the %d steps of %s", len(kept.noise) + len(kept.alone) + len(kept.judged), path)
    return kept


def _save_state(state: _State, path: Path) -> None:
    steps = {"noise": state.noise, "alone": state.alone, "judged": state.judged}
    write_json(path, {"identity": dict(state.identity), **steps})
