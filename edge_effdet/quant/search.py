"""Search for the convolutions that have to stay in high precision, so that a detector loses no more AP than is allowed.

0. First all convolutions are tried in INT8. Where the loss is within what is allowed, nothing else is measured.
1. **Sensitivity.** Each convolution alone is set to INT8, and the error of the head tensors is measured over some calibration images:
   noise over signal, averaged over the class and box heads. (The table shows its logarithm, the SQNR.)
2. **Order.** The errors of independent roundings add up, so the error of a choice is about the sum of the errors of its convolutions.
   The time that INT8 saves on a convolution comes from the cost model (``graph.cost``). Choosing which convolutions stay high is then
   a knapsack problem, and its greedy solution keeps those high that have the most noise for each microsecond saved.
   AP would not give an order: what one convolution loses is mostly within the noise of an evaluation. For the most sensitive ones it
   is measured all the same, and shown beside their SQNR.
3. **Judgement.** How many of them stay high is decided by AP on validation images: none, then 1, 2, 4, … until the loss is within
   what is allowed, then by bisection. Each step evaluates a whole graph.

The steps are kept in a file, so that a search that was stopped goes on where it was.
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
from edge_effdet.graph.counting import macs_before_fusion
from edge_effdet.graph.rule import constant
from edge_effdet.graph.targets import get_target
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.int8 import Recipe, apply_recipe
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.statistics import fetch_tensors

logger = logging.getLogger("edge_effdet.quantize")

SENSITIVITY_IMAGES = 8
"""How many calibration images sensitivity is measured on."""
JUDGED_ALONE = 8
"""How many of the most sensitive convolutions have their loss of AP measured."""

Judge = Callable[[Sequence[str]], float]
"""Gives the points of AP that are lost with these convolutions in INT8."""


@dataclass(frozen=True, slots=True)
class SearchedLayer:
    """One convolution that can be INT8.

    Attributes:
        name: the name of its node.
        macs: its multiply-accumulates for one image.
        saved_us: microseconds that INT8 saves against FP16 on the target, by the cost model.
    """

    name: str
    macs: int
    saved_us: float


@dataclass(frozen=True, slots=True)
class Placement:
    """What a search found.

    Attributes:
        layers: all convolutions that can be INT8, in the order of the graph.
        noise: error over signal at the heads with one layer alone in INT8, by its name; empty where all layers can be INT8.
        alone: points of AP lost with one layer alone in INT8, by its name, for the most sensitive layers.
        kept_high: the names of the layers that stay in high precision.
        judged: points of AP lost, by the number of layers kept high, for every number that was tried.
        drop: points of AP that the choice loses on the images that judged it.
        target: the target whose time is to be saved.
    """

    layers: Sequence[SearchedLayer]
    noise: Mapping[str, float]
    alone: Mapping[str, float]
    kept_high: Sequence[str]
    judged: Mapping[int, float]
    drop: float
    target: str

    @property
    def quantized(self) -> list[str]:
        """The names of the layers that become INT8."""
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
    """The steps of a search, which are kept in a file."""

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
    """Find the convolutions that have to stay in high precision for a loss of at most ``max_drop`` points of AP.

    Args:
        recipe: what INT8 makes of each convolution.
        images: the images that sensitivity is measured on.
        judge: evaluates a choice.
        max_drop: points of AP that may be lost.
        target: a key of ``graph.targets.TARGETS``.
        state_path: the file that keeps the steps.
        identity: what the steps belong to: the graph, the images and the options.

    Raises:
        AccuracyGateFailed: no choice that was tried loses so little; the message names the one that loses least.
        InputError: the file holds the steps of another search.
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
            f"convolutions high and loses {state.judged[best]:.2f}: allow that with `max_ap_drop`, or fine-tune the checkpoint "
            "with python -m edge_effdet.train --qat."
        )
    kept = tuple(names[:count])
    return Placement(
        layers, dict(state.noise), dict(state.alone), kept, dict(state.judged), state.judged[count], target
    )


def worst_first(layers: Sequence[SearchedLayer], noise: Mapping[str, float], least_us: float) -> list[str]:
    """The names of the layers by the noise for each microsecond that INT8 saves, the most first.

    Savings below ``least_us``, the fixed cost of a kernel, count as ``least_us``. The cost model is not more exact than that, and
    a layer that saves next to nothing must not come before one that ruins the heads.
    """
    ordered = sorted(layers, key=lambda layer: (-noise[layer.name] / max(layer.saved_us, least_us), layer.name))
    return [layer.name for layer in ordered]


def fewest_kept(drop_with: Callable[[int], float], most: int, max_drop: float) -> int | None:
    """The smallest count whose drop is within ``max_drop``, found by doubling and bisection; None where ``most`` loses more.

    The drop is taken to fall as the count rises. The noise of AP may let a smaller count pass by chance; none is looked for.
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


def list_layers(recipe: Recipe, target: str) -> list[SearchedLayer]:
    """Each convolution that can be INT8, with its work and the time that INT8 saves."""
    machine = get_target(target)
    layers = []
    for node in ir.from_proto(recipe.model).graph:
        if node.name not in recipe.weights:
            continue
        pair = _as_pair(node)
        count = depthwise_us if node.attributes.get_int("group", 1) != 1 else dense_us
        saved = count(pair, machine, "fp16") - count(pair, machine, "int8")
        layers.append(SearchedLayer(str(node.name), macs_before_fusion(node), saved))
    return layers


def decibels(noise: float) -> float:
    """The SQNR in decibels of a noise over signal; 200 at the most, which also stands for no error at all."""
    return min(200.0, -10 * math.log10(noise)) if noise > 0 else 200.0


def placement_table(placement: Placement, rows: int = 20) -> str:
    """The most sensitive layers as a table for people, and the counts that were tried."""
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
    """Draw a PNG: the SQNR of every layer in the network's order, with the layers that stay high in red."""
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
        f"{len(high)} of {len(values)} convolutions stay high (red); AP drop {placement.drop:+.2f} on the images that judged it"
    )
    groups = [layer.name.split(".")[0] + _stage(layer.name) for layer in placement.layers]
    starts = [position for position in range(len(groups)) if position == 0 or groups[position] != groups[position - 1]]
    # The names of narrow groups would lie on each other.
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
    recipe: Recipe, images: CalibrationImages, layers: Sequence[SearchedLayer], state: _State, state_path: Path
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
    """The squared error of each tensor over the variance of its values, averaged over the tensors."""
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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} holds no steps of a search ({type(error).__name__}: {error}); delete it.") from error
    if kept.identity != json.loads(json.dumps(dict(identity))):
        raise InputError(
            f"{path} holds the steps of a search with another graph, other images or other options; delete it, or give another "
            "`output`."
        )
    logger.info("going on with the %d steps of %s", len(kept.noise) + len(kept.alone) + len(kept.judged), path)
    return kept


def _save_state(state: _State, path: Path) -> None:
    steps = {"noise": state.noise, "alone": state.alone, "judged": state.judged}
    write_json(path, {"identity": dict(state.identity), **steps})
