"""The networks of the benchmarks, and the graphs that the exporter, the simplifiers and our optimizer make of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from benchmarks.peers.simplifiers import SIMPLIFIERS
from edge_effdet.artifacts import ModelSpec
from edge_effdet.cli import parse_size
from edge_effdet.errors import first_line
from edge_effdet.graph.export import ExportOptions, export_network, load_source, trace_network

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

RAW, KEEP, DENSE = "torch.export, unoptimized", "ours, keep", "ours, dense"

CLASS_LOGITS, BOX_CODES = 2.0, 0.5
"""Standard deviations that the outputs of random heads are scaled to, so that scores lie well apart and boxes are about as large as
their anchors."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """Why something is not in the comparison."""

    reason: str


@dataclass(frozen=True, slots=True)
class Subject:
    """A network in evaluation mode, and its spec."""

    network: torch.nn.Module
    spec: ModelSpec

    @property
    def title(self) -> str:
        height, width = self.spec.image_size
        return f"{self.spec.name}, {height}x{width} px"


def read_subject(text: str, seed: int = 0) -> Subject:
    """The network that a text names.

    Args:
        text: ``NAME``, ``NAME@512`` or ``NAME@384x640`` for random weights, or the path of a checkpoint that ends in .safetensors.
        seed: the seed of the random weights.

    Raises:
        UsageError, CheckpointError: the text names no network.
    """
    from edge_effdet.models.zoo import model_spec

    if text.endswith(".safetensors"):
        network, spec, _ = load_source(Path(text), None)
        return Subject(network.eval(), spec)
    name, _, size = text.partition("@")
    spec = model_spec(name, image_size=parse_size(size) if size else None)
    return Subject(random_network(spec, seed), spec)


def random_network(spec: ModelSpec, seed: int) -> torch.nn.Module:
    """A network with random statistics, biases and fusion weights, in evaluation mode.

    A network as it is initialised would hide errors: its fusion weights are all equal, its batch norms are the identity, and beside
    the large bias of its heads no error shows. Fusion weights stay above 0, because a weight below 0 drops an edge and its nodes. The
    heads' outputs are scaled, because the order of detections would be random if all scores were rounded to 1.
    """
    import torch

    from edge_effdet.models.bifpn import is_edge_weight
    from edge_effdet.models.zoo import create_network

    torch.manual_seed(seed)
    network: Any = create_network(spec).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    for part in (network.fpn, network.class_net, network.box_net):
        for module in part.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight)
    network.class_net.predict.conv_pw.bias.data.zero_()
    for name, parameter in network.named_parameters():
        if is_edge_weight(name):
            parameter.data.uniform_(0.2, 1.5)
    _scale_heads(network, spec)
    return network


def _scale_heads(network: Any, spec: ModelSpec) -> None:
    import torch

    with torch.inference_mode():
        class_levels, box_levels = network(torch.randn(1, 3, *spec.image_size))
    heads = ((network.class_net, class_levels, CLASS_LOGITS), (network.box_net, box_levels, BOX_CODES))
    for head, levels, wanted in heads:
        head.predict.conv_pw.weight.data *= wanted / torch.cat([level.flatten() for level in levels]).std()


def our_options() -> dict[str, ExportOptions]:
    """The options that each of our graphs is exported with, by the graph's name."""
    return {name: ExportOptions(raw=True, fuse_separable=how) for name, how in ((KEEP, "keep"), (DENSE, "dense"))}


def make_graphs(subject: Subject, work: Path) -> tuple[dict[str, Path], dict[str, float], dict[str, str]]:
    """Make the graphs of one network: as the exporter traced it, as each simplifier leaves that, and as our optimizer leaves it.

    Returns:
        By the graph's name: the files, the seconds that it took to make them, and the reasons why others could not be made.
    """
    import onnx_ir as ir

    raw = work / "raw.onnx"

    def trace() -> None:
        ir.save(trace_network(subject.network, subject.spec, ExportOptions(raw=True)), raw)

    def export(path: Path, options: ExportOptions) -> None:
        export_network(subject.network, subject.spec, {}, path, options)

    files, seconds, skipped = {RAW: raw}, {RAW: _seconds(trace)}, {}
    for number, (name, simplify) in enumerate(SIMPLIFIERS.items()):
        path = work / f"simplified-{number}.onnx"
        taken = attempt(lambda simplify=simplify, path=path: _seconds(lambda: simplify(raw, path)))
        if isinstance(taken, Skipped):
            skipped[name] = taken.reason
        else:
            files[name], seconds[name] = path, taken
    for number, (name, options) in enumerate(our_options().items()):
        files[name] = work / f"ours-{number}.onnx"
        seconds[name] = _seconds(lambda path=files[name], options=options: export(path, options))
    return files, seconds, skipped


def attempt(action: Callable[[], T]) -> T | Skipped:
    """The result of another tool, or the reason why it failed."""
    try:
        return action()
    except Exception as error:  # each tool raises exceptions of its own
        return Skipped(f"{type(error).__name__}: {first_line(error)}")


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
