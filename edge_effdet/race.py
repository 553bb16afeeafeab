"""``--backend fastest``: every backend that runs here runs the same graph for some seconds, in turns, and the fastest is kept."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.backends.base import BACKENDS, Available, CompileOptions, get_backend
from edge_effdet.detect import feeds_for_image
from edge_effdet.errors import BackendUnavailable, EdgeEffDetError
from edge_effdet.verify import measure_latency

logger = logging.getLogger("edge_effdet.race")


@dataclass(frozen=True, slots=True)
class Race:
    """How each backend did.

    Attributes:
        winner: the name of the backend with the lowest median.
        rows: a backend each: its version, the precision that it ran in, median and P90 in milliseconds, or why it was ``skipped``.
        graph: in what precision the winner ran, and the SHA-256 of the graph that was given.
    """

    winner: str
    rows: tuple[dict[str, Any], ...]
    graph: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {"winner": self.winner, "graph": self.graph, "backends": list(self.rows)}

    def text(self) -> str:
        """One line for people."""
        times = (f"{row['backend']} {row['median_ms']:.1f} ms" for row in self.rows if "median_ms" in row)
        return f"backend {self.winner} is the fastest here ({', '.join(times)})"


def race_backends(
    graph: Graph,
    options: CompileOptions,
    names: Sequence[str] = tuple(BACKENDS),
    draft: Callable[[str], Graph] | None = None,
) -> Race:
    """Compile a graph with each backend that can run it on this machine, and time them in turns.

    Args:
        graph: what is run, unless there is a ``draft``.
        options: for the compilers.
        names: the backends to try.
        draft: for INT8, the graph as it will be quantized for a backend, as far as its speed depends on that.

    Raises:
        BackendUnavailable: none runs it.
    """
    rows: dict[str, dict[str, Any]] = {}
    image = np.full((*graph.spec.image_size, 3), graph.spec.preprocess.fill_color, np.uint8)
    with tempfile.TemporaryDirectory(prefix="edge-effdet-race-") as folder:
        engines: dict[str, Engine] = {}
        for name in names:
            answer = get_backend(name).probe()
            row = rows[name] = {"backend": name}
            if not isinstance(answer, Available):
                row["skipped"] = answer.reason
                continue
            row["version"] = answer.version
            if not answer.runs_here:
                row["skipped"] = "it compiles here and cannot run here"
                continue
            logger.info("racing: %s", name)
            raced = draft(name) if draft is not None else graph
            row["precision"] = raced.precision
            engine = Engine(Path(folder) / f"{name}{get_backend(name).SUFFIX}", graph.spec, name, raced.precision, {})
            try:
                engine.path.write_bytes(get_backend(name).compile(raced, options))
                # One that fails only when it runs must not end the race of the others.
                with get_backend(name).load(engine) as runner:
                    runner.run(feeds_for_image(runner, image, graph.spec))
            except EdgeEffDetError as error:
                row["skipped"] = str(error)
                continue
            engines[name] = engine
        for name, measured in zip(engines, measure_latency(list(engines.values()), image), strict=True):
            rows[name].update(measured)
    timed = [row for row in rows.values() if "median_ms" in row]
    if not timed:
        reasons = "; ".join(f"{row['backend']}: {row['skipped']}" for row in rows.values())
        raise BackendUnavailable(
            f"No backend runs this graph here ({reasons}); pip install 'edge-effdet[ort]' installs one that runs anywhere."
        )
    winner = min(timed, key=lambda row: row["median_ms"])
    ran = {"precision": winner["precision"], "sha256": graph.sha256}
    return Race(winner["backend"], tuple(rows.values()), ran)
