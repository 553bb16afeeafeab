"""Compare a backend with its graph, and the graph with its FP32 source, tensor by tensor on real images.

The comparison answers three questions. For each of them every layer gets a number: the SQNR over all images,
``10 log10(sum r^2 / sum (g - r)^2)``, where g is the tensor in question and r its reference.

- **Does the backend compute this layer as the graph says?** Each layer is given exact inputs, and its output is compared with that of
  the graph as it is written: onnxruntime on the CPU computes it without any rewriting, an INT8 convolution as a DequantizeLinear and
  a convolution in FP32. A layer parts from the graph where its SQNR is below ``LIMITS_DB``.
- **How far is the engine from the FP32 graph here?** The tensors of a whole run, which carries errors from layer to layer, are
  compared with those of the FP32 graph. The errors are those of quantization and those of the backend.
- **How much of that is quantization?** The graph as it is written is compared with the FP32 graph.

Equalization divides the channels of some tensors by factors (``quant.equalize``), so these tensors differ from the FP32 graph's
without any error. The FP32 graph tells which tensors they are. Each of their channels is multiplied by the factor that brings it
nearest to FP32 in least squares. So an error that only scales a channel cannot be seen against FP32; the first question, which needs
no FP32 graph, shows it.

Showing a tensor keeps a compiler from fusing its layer with the next. With OpenVINO that hides no error, because OpenVINO multiplies
INT8 with the same instructions whatever follows: a lite0 that saturates has 6.0 dB at its heads with all tensors shown and with none.
Whether an error was hidden is measured each time, because the heads of the engine as it is built are compared with FP32 too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edge_effdet.artifacts import Engine, Graph, temporary_folder
from edge_effdet.backends.base import CompileOptions, LoadOptions, Runner, get_backend, load_runner, require
from edge_effdet.cli import progress
from edge_effdet.errors import BackendUnavailable, GraphError, UsageError
from edge_effdet.graph.model import INPUT_NAME, load_model
from edge_effdet.quant.equalize import find_streams
from edge_effdet.quant.placement import is_final
from edge_effdet.quant.probe import ComparedLayer, expose_tensors, find_layers, isolate_layers
from edge_effdet.quant.statistics import as_input
from edge_effdet.quant.tensor_errors import Errors, ErrorSums

LIMITS_DB: Mapping[str, float] = {"f32": 90.0, "f16": 45.0, "bf16": 28.0}
"""The least SQNR of a layer that was given exact inputs, by the type in which everything that is not INT8 is computed.

The limits were measured on an AMD EPYC with AVX2 and without VNNI. ``f32``: with OpenVINO 2026.4 every exact layer of lite0 and D0, in
INT8 and in FP32, had 114 dB or more, and every layer that saturates had between 2 and 75 dB; with onnxruntime every layer had 129 dB
or more. ``f16``, which also stands for TF32 on GPUs: with all tensors and weights rounded to FP16, 52 dB or more were left. ``bf16``:
with all of them rounded to BF16, 30 dB or more were left. No processor with BF16 saturates in INT8."""

CARRIED_DB = 20.0
"""How far below ``LIMITS_DB`` rounding may bring the heads, where it is carried through all layers."""

HIDDEN_DB = 3.0
"""How many decibels an engine's heads may be worse than the graph as it is written, which is twice its error. An exact backend stays
within 1 dB."""


@dataclass(frozen=True, slots=True)
class BackendErrors:
    """The errors of a backend with one graph.

    Attributes:
        backend: the name of the backend.
        arithmetic: the type in which it computes what is not INT8, a key of ``LIMITS_DB``.
        alone: the error of each layer, given exact inputs, against the graph as it is written.
        whole: the errors of the tensors of a whole run against those of the FP32 graph; empty without that graph.
        heads_db: the SQNR at the heads of the engine as it is built, against the FP32 graph; None without that graph.
    """

    backend: str
    arithmetic: str
    alone: Errors
    whole: Errors
    heads_db: float | None

    @property
    def limit_db(self) -> float:
        """The least SQNR of a layer that the backend computes as the graph says."""
        return LIMITS_DB[self.arithmetic]


@dataclass(frozen=True, slots=True)
class LayerComparison:
    """What ``compare_layers`` found.

    Attributes:
        layers: the compared tensors in the order of the graph.
        precision: the precision of the graph.
        images: how many images were looked at.
        subject: the errors of the engine's backend.
        against: the errors of another backend; None where none was asked for.
        between: the error of each layer, given exact inputs, of the engine's backend against the other backend.
        quantization: the errors of the graph as it is written against the FP32 graph; empty without that graph.
        rescaled: the tensors whose channels were rescaled to compare them with FP32.
        heads_db: the SQNR at the heads of the graph as it is written, against the FP32 graph; None without that graph.
    """

    layers: Sequence[ComparedLayer]
    precision: str
    images: int
    subject: BackendErrors
    against: BackendErrors | None
    between: Errors
    quantization: Errors
    rescaled: frozenset[str]
    heads_db: float | None

    @property
    def subjects(self) -> list[BackendErrors]:
        """The errors of the engine's backend, and of the other backend where there is one."""
        return [self.subject] if self.against is None else [self.subject, self.against]

    def parted(self, errors: BackendErrors) -> list[ComparedLayer]:
        """The layers that a backend does not compute as the graph says, in the order of the graph."""
        return [layer for layer in self.layers if errors.alone[layer.tensor].sqnr_db < errors.limit_db]

    @property
    def parted_between(self) -> list[ComparedLayer]:
        """The layers that the two backends compute differently."""
        if self.against is None:
            return []
        limit = min(self.subject.limit_db, self.against.limit_db)
        return [layer for layer in self.layers if self.between[layer.tensor].sqnr_db < limit]

    @property
    def noisiest(self) -> ComparedLayer | None:
        """The layer of the graph as it is written that adds the most noise to that of its sources; None without the FP32 graph."""

        def added(layer: ComparedLayer) -> float:
            brought = [self.quantization[source] for source in layer.sources if source in self.quantization]
            return self.quantization[layer.tensor].noise - max((error.noise for error in brought), default=0.0)

        known = [layer for layer in self.layers if layer.tensor in self.quantization]
        return max(known, key=added, default=None)

    @property
    def hidden_db(self) -> float | None:
        """How many decibels the built engine is worse at the heads than the graph explains, where no layer alone parts; else None."""
        built, written = self.subject.heads_db, self.heads_db
        if built is None or written is None or self.parted(self.subject):
            return None
        expected = min(written, self.subject.limit_db - CARRIED_DB)
        return expected - built if built < expected - HIDDEN_DB else None

    def to_dict(self) -> dict[str, Any]:
        """The comparison for JSON."""
        subjects = self.subjects
        return {
            "precision": self.precision,
            "images": self.images,
            "heads_db": {"graph": self.heads_db, **{each.backend: each.heads_db for each in subjects}},
            "backends": [
                {
                    "backend": each.backend,
                    "arithmetic": each.arithmetic,
                    "limit_db": each.limit_db,
                    "first": next((layer.name for layer in self.parted(each)), None),
                    "parted": [layer.name for layer in self.parted(each)],
                }
                for each in subjects
            ],
            "first_between": next((layer.name for layer in self.parted_between), None),
            "hidden_db": self.hidden_db,
            "noisiest": self.noisiest.name if self.noisiest else None,
            "layers": [self._layer_to_dict(layer) for layer in self.layers],
        }

    def _layer_to_dict(self, layer: ComparedLayer) -> dict[str, Any]:
        tensor, subjects = layer.tensor, self.subjects
        return {
            "name": layer.name,
            "tensor": tensor,
            "kind": layer.kind,
            "largest_weight_code": layer.largest_code,
            "rescaled": tensor in self.rescaled,
            "alone": {each.backend: each.alone[tensor].to_dict() for each in subjects},
            "against_fp32": {each.backend: each.whole[tensor].to_dict() for each in subjects if tensor in each.whole},
            "graph_against_fp32": self.quantization[tensor].to_dict() if tensor in self.quantization else None,
            "between": self.between[tensor].to_dict() if tensor in self.between else None,
        }


def compare_layers(
    graph: Graph,
    backend: str,
    images: Sequence[np.ndarray],
    reference: Graph | None = None,
    against: str | None = None,
) -> LayerComparison:
    """Compare a backend's tensors with those of its graph, of the FP32 graph and of another backend.

    The images are looked at one at a time, so memory holds the tensors of one image a few times, however many images there are.

    Args:
        graph: the graph that the engine was compiled from. Graphs that show their tensors are compiled here for a backend whose
            engine is not the graph itself (TensorRT).
        backend: a name of ``backends.base.BACKENDS``.
        images: uint8 [1, 3, H, W] each, in the size of the graph's input.
        reference: the FP32 graph that ``graph`` was made from; without it nothing is known about quantization.
        against: another backend to compare with.

    Raises:
        UsageError: there is no image, an image has another size, or a backend is compared with itself.
        BackendUnavailable: a backend cannot run here; the message gives the reason.
        GraphError: the FP32 graph is not the source of ``graph``.
    """
    _check(graph, backend, images, against)
    model = load_model(graph.path)
    layers = find_layers(model)
    source = None if reference is None else load_model(reference.path)
    shared = [] if source is None else _shared_tensors(source, layers)
    rescaled = frozenset() if source is None else _rescaled_tensors(graph, source)
    tensors = [layer.tensor for layer in layers]
    # A graph in FP16 that ends at the heads has its last tensors under other names.
    heads = [tensor for tensor in _head_tensors(model, layers) if tensor in shared] or shared[-1:]
    written = _Written(model, tensors)
    full = None if source is None else _Written(source, shared)
    quantization, between = ErrorSums(shared), ErrorSums(tensors if against else [])
    names = [backend] if against is None else [backend, against]
    like = written.run(images[0])
    with contextlib.ExitStack() as stack:
        subjects = [_Subject(name, graph, model, like, shared, heads, stack) for name in names]
        for image in progress(images, len(images), "comparing layers"):
            exact = written.run(image)
            wanted = {} if full is None else full.run(image)
            quantization.add(wanted, exact)
            outcomes = [subject.look(image, exact, wanted) for subject in subjects]
            if against is not None:
                between.add(outcomes[1], outcomes[0])
    found = [subject.errors(rescaled) for subject in subjects]
    return LayerComparison(
        layers=tuple(layers),
        precision=graph.precision,
        images=len(images),
        subject=found[0],
        against=found[1] if against else None,
        between=between.errors(),
        quantization=quantization.errors(rescaled),
        rescaled=rescaled.intersection(shared),
        heads_db=quantization.mean_db(heads),
    )


class _Written:
    """Computes a graph as it is written, in onnxruntime without its rewriting."""

    def __init__(self, model: onnx.ModelProto, tensors: Sequence[str]) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Threads of this session that spin would slow down the other sessions that run in between.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        content = expose_tensors(model, tensors).SerializeToString()
        self._session: Any = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        self._model, self._tensors = model, list(tensors)

    def run(self, image: np.ndarray) -> dict[str, np.ndarray]:
        values = self._session.run(self._tensors, {INPUT_NAME: _as_batch(self._model, image)})
        return dict(zip(self._tensors, values, strict=True))


class _Subject:
    """A backend that runs three forms of a graph: cut at each layer, with all tensors shown, and with only its heads shown."""

    def __init__(
        self,
        backend: str,
        graph: Graph,
        model: onnx.ModelProto,
        like: Mapping[str, np.ndarray],
        shared: Sequence[str],
        heads: Sequence[str],
        stack: contextlib.ExitStack,
    ) -> None:
        """Load the three forms. ``like`` has a value of each tensor; FP32 has the ``shared`` ones, and ``heads`` are some of these."""
        self._backend, self._model, self._heads = backend, model, heads
        cut, self._given = isolate_layers(model, like.keys(), like)
        self._alone = stack.enter_context(_loaded(cut, graph, backend))
        self._arithmetic = _arithmetic(self._alone, backend, model)
        self._sums = ErrorSums(list(like))
        self._runs: list[tuple[Runner, ErrorSums]] = []
        for tensors in (shared, heads) if shared else ():
            runner = stack.enter_context(_loaded(expose_tensors(model, tensors, like), graph, backend))
            self._runs.append((runner, ErrorSums(tensors)))

    def look(
        self, image: np.ndarray, exact: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]
    ) -> Mapping[str, np.ndarray]:
        """Run all forms on an image, add up their errors, and give the tensors that the layers alone made of exact inputs."""
        pixels = {INPUT_NAME: _as_batch(self._model, image)}
        for runner, sums in self._runs:
            sums.add(wanted, _run(runner, pixels, sums.tensors))
        feeds = pixels | {name: given.value(exact[given.tensor]) for name, given in self._given.items()}
        taken = {spec.name for spec in self._alone.inputs}
        alone = _run(self._alone, {name: value for name, value in feeds.items() if name in taken}, self._sums.tensors)
        self._sums.add(exact, alone)
        return alone

    def errors(self, rescaled: frozenset[str]) -> BackendErrors:
        """The errors over all images that were looked at."""
        alone = self._sums.errors()
        if not self._runs:
            return BackendErrors(self._backend, self._arithmetic, alone, {}, None)
        whole, built = (sums for _, sums in self._runs)
        return BackendErrors(self._backend, self._arithmetic, alone, whole.errors(rescaled), built.mean_db(self._heads))


@contextlib.contextmanager
def _loaded(model: onnx.ModelProto, graph: Graph, backend: str) -> Iterator[Runner]:
    """Load a form of a graph; its files are in a temporary folder that is removed with the runner."""
    with temporary_folder() as folder:
        form = replace(graph, path=folder / "form.onnx")
        onnx.save_model(model, str(form.path))
        path = form.path
        if path.suffix != get_backend(backend).SUFFIX:
            path = path.with_suffix(get_backend(backend).SUFFIX)
            path.write_bytes(get_backend(backend).compile(form, CompileOptions()).content)
        # Without a hash of the engine no backend keeps what it compiles for a next start.
        engine = Engine(path, graph.spec, backend, graph.precision)
        with load_runner(engine, LoadOptions(spinning=False)) as runner:
            yield runner


def _run(runner: Runner, feeds: Mapping[str, np.ndarray], tensors: Sequence[str]) -> dict[str, np.ndarray]:
    """The tensors by name, which are the last outputs of a form. One that a runtime merged with another output is found by its place."""
    results = runner.run(feeds)
    names = [spec.name for spec in runner.outputs[-len(tensors) :]]
    return {tensor: results.get(tensor, results[name]) for tensor, name in zip(tensors, names, strict=True)}


def _check(graph: Graph, backend: str, images: Sequence[np.ndarray], against: str | None) -> None:
    if not images:
        raise UsageError("There is no image to compare layers on; give at least one.")
    wanted = (1, 3, *graph.spec.image_size)
    for image in images:
        if image.shape != wanted:
            raise UsageError(
                f"An image to compare layers on is {list(image.shape)} and the graph takes {list(wanted)}; letterbox it "
                "first."
            )
    if against == backend:
        raise UsageError(
            f"The engine is one of {backend} itself, so there is nothing to compare; give another backend."
        )
    for name in (backend, *([against] if against else [])):
        available = require(name)
        if not available.runs_here:
            raise BackendUnavailable(
                f"The backend {name} compiles here and cannot run here ({available.device}), so its tensors cannot be "
                "seen; compare the layers on the target."
            )


def _shared_tensors(source: onnx.ModelProto, layers: Sequence[ComparedLayer]) -> list[str]:
    made = {output for node in source.graph.node for output in node.output}
    shared = [layer.tensor for layer in layers if layer.tensor in made]
    if not shared:
        raise GraphError(
            "The FP32 graph has none of the tensors of the graph to compare, so it is not what that was made from; give the graph "
            "that the engine's JSON names as its parent."
        )
    return shared


def _rescaled_tensors(graph: Graph, source: onnx.ModelProto) -> frozenset[str]:
    """The tensors whose channels equalization divides; none where the graph is not INT8, or says that it was not equalized."""
    options = graph.calibration.get("options", {})
    if graph.precision != "int8" or not options.get("equalize", True):
        return frozenset()
    return frozenset(tensor for stream in find_streams(ir.from_proto(source)) for tensor in stream.tensors)


def _head_tensors(model: onnx.ModelProto, layers: Sequence[ComparedLayer]) -> list[str]:
    """The tensors of the last convolution of each head and level; where no convolution has their names, the last tensor."""
    final = [node for node in model.graph.node if node.op_type == "Conv" and is_final(node.name)]
    taken = {value for node in final for value in node.input}
    last = {node.output[0] for node in final if node.output[0] not in taken}
    return [layer.tensor for layer in layers if layer.tensor in last] or [layers[-1].tensor]


def _arithmetic(runner: Runner, backend: str, model: onnx.ModelProto) -> str:
    """The coarsest type in which the runner computes what is not INT8, a key of ``LIMITS_DB``. A GPU may compute FP32 as TF32."""
    if runner.arithmetic == "bf16":
        return "bf16"
    return "f16" if not get_backend(backend).TRAITS.on_cpu or _has_half(model) else "f32"


def _has_half(model: onnx.ModelProto) -> bool:
    return any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)


def _as_batch(model: onnx.ModelProto, image: np.ndarray) -> np.ndarray:
    """The image in the input's type, repeated to fill the graph's batch."""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1
    return np.repeat(as_input(model, image), batch, axis=0)
