"""Stand-ins for a backend and a runner. A test puts one into ``BACKENDS``, where all code finds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.backends.base import (
    Available,
    Compiled,
    CompileOptions,
    LoadOptions,
    ProfiledRuns,
    Runner,
    TensorSpec,
    Traits,
    Unavailable,
)

HERE = Available("1", "a processor")


class BrightBoxRunner(Runner):
    """Returns the box around all white pixels, as an engine with a batch of ``batch`` (-1: any)."""

    def __init__(self, side: int, batch: int = -1, score: float = 0.8) -> None:
        self.inputs = (TensorSpec("images", (batch, 3, side, side), np.dtype(np.uint8)),)
        self.outputs = (
            TensorSpec("boxes", (batch, 1, 4), np.dtype(np.float32)),
            TensorSpec("scores", (batch, 1), np.dtype(np.float32)),
            TensorSpec("class_ids", (batch, 1), np.dtype(np.int32)),
        )
        self.batch, self.score = batch, score
        self.runs: list[int] = []

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        pixels = feeds["images"]
        assert self.batch in (-1, len(pixels))
        self.runs.append(len(pixels))
        boxes = np.zeros((len(pixels), 1, 4), np.float32)
        for index, picture in enumerate(pixels):
            rows, columns = np.nonzero(picture[0] > 127)
            if len(rows):
                boxes[index, 0] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        shape = (len(pixels), 1)
        return {
            "boxes": boxes,
            "scores": np.full(shape, self.score, np.float32),
            "class_ids": np.zeros(shape, np.int32),
        }


class FakeBackend:
    """A backend whose engines are files that begin with ``engine``.

    Args:
        answer: what it says of this machine.
        make_runner: what a loaded engine is.
        traits: what is true of it everywhere.
    """

    SUFFIX = ".fake"

    def __init__(
        self,
        answer: Available | Unavailable = HERE,
        make_runner: Callable[[], Runner] = lambda: BrightBoxRunner(64),
        traits: Traits | None = None,
    ) -> None:
        self.answer, self.make_runner = answer, make_runner
        self.TRAITS = traits or Traits(on_cpu=True)
        self.compiled: list[Graph] = []

    def probe(self) -> Available | Unavailable:
        return self.answer

    def compile(self, graph: Graph, options: CompileOptions) -> Compiled:
        self.compiled.append(graph)
        return Compiled(b"engine")

    def load(self, engine: Engine, options: LoadOptions) -> Runner:
        assert engine.path.read_bytes().startswith(b"engine")
        return self.make_runner()

    def profile(
        self, engine: Engine, options: LoadOptions, feeds: Mapping[str, np.ndarray], runs: int
    ) -> ProfiledRuns | Unavailable:
        return Unavailable("a stand-in has no layers", "use a backend")
