"""``--backend fastest``: the backends that run here and compute right run the same graph for some seconds, in turns, and the fastest wins."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Engine, Graph
from edge_effdet.backends.base import BACKENDS, Available, CompileOptions, get_backend, load_runner
from edge_effdet.errors import AccuracyGateFailed, BackendUnavailable, EdgeEffDetError
from edge_effdet.evaluation.accuracy import find_in_graph
from edge_effdet.runtime.golden import find_best, measure_agreement
from edge_effdet.runtime.latency import measure_latency
from edge_effdet.runtime.preprocess import feeds_for_image

logger = logging.getLogger("edge_effdet.building.race")

WRONG = "it computes something else here"
"""What a row says of a backend that is left out for its results, before the figures."""


@dataclass(frozen=True, slots=True)
class Race:
    """How each backend did.

    Attributes:
        winner: the name of the backend with the lowest median among those that computed right.
        order: all of those, the fastest first.
        rows: a backend each: its version, the precision that it ran in, ``agreement`` with the FP32 graph, median and P90 in
            milliseconds, or why it was ``skipped``.
        graph: in what precision the winner ran, and the SHA-256 of the graph that was given.
    """

    winner: str
    order: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    graph: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return {"winner": self.winner, "order": list(self.order), "graph": self.graph, "backends": list(self.rows)}

    def text(self) -> str:
        """For people: the times, and who was left out for what it computed."""
        times = (f"{row['backend']} {row['median_ms']:.1f} ms" for row in self.rows if "median_ms" in row)
        wrong = (f"{row['backend']}: {row['skipped']}" for row in self.rows if row.get("skipped", "").startswith(WRONG))
        return "; ".join([f"backend {self.winner} is the fastest here ({', '.join(times)})", *wrong])


def race_backends(
    graph: Graph,
    options: CompileOptions,
    names: Sequence[str] = tuple(BACKENDS),
    draft: Callable[[str], Graph] | None = None,
    pictures: Sequence[np.ndarray] = (),
    reference: Graph | None = None,
    drawn: bool = False,
) -> Race:
    """Compile a graph with each backend that can run it on this machine, compare what they find, and time those that are right in turns.

    Args:
        graph: what is run, unless there is a ``draft``.
        options: for the compilers.
        names: the backends to try.
        draft: for INT8, the graph as it will be quantized for a backend, as far as its speed depends on that.
        pictures: uint8 [H, W, 3] in the size of the network's input, to compare on; without any, nothing is compared.
        reference: the FP32 graph; None for ``graph``.
        drawn: whether the pictures are drawn, on which only a backend's distance from its own graph counts.

    Raises:
        AccuracyGateFailed: some run it, and none computes the graph as it is written.
        BackendUnavailable: none runs it.
    """
    rows: dict[str, dict[str, Any]] = {}
    reference = reference or graph
    expected: dict[str, list[Detections]] = {}

    def exactly(each: Graph) -> list[Detections]:
        if each.sha256 not in expected:
            expected[each.sha256] = find_in_graph(each, pictures)
        return expected[each.sha256]

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
                engine.path.write_bytes(get_backend(name).compile(raced, options).content)
                # One that fails only when it runs must not end the race of the others.
                with load_runner(engine) as runner:
                    runner.run(feeds_for_image(runner, image, graph.spec))
                    found = [find_best(runner, graph.spec, picture) for picture in pictures]
                agreement = None
                if pictures:
                    title = "the FP32 graph" if reference.precision == "fp32" else "the graph that was given"
                    agreement = measure_agreement(
                        exactly(reference), exactly(raced), found, title, raced.precision, drawn
                    )
            except EdgeEffDetError as error:
                row["skipped"] = str(error)
                continue
            if agreement is not None:
                row["agreement"] = agreement.to_dict()
                # What rounding has spoilt is the gate's business: a draft's ranges are quick ones.
                if not agreement.backend_right:
                    row["skipped"] = f"{WRONG}: {agreement.text()}"
                    logger.warning("%s is left out, since %s", name, row["skipped"])
                    continue
            engines[name] = engine
        for name, measured in zip(engines, measure_latency(list(engines.values()), image), strict=True):
            rows[name].update(measured)
    return _decide(graph, rows)


def _decide(graph: Graph, rows: dict[str, dict[str, Any]]) -> Race:
    timed = sorted((row for row in rows.values() if "median_ms" in row), key=lambda row: row["median_ms"])
    if not timed:
        reasons = "; ".join(f"{row['backend']}: {row['skipped']}" for row in rows.values())
        if any("agreement" in row for row in rows.values()):
            raise AccuracyGateFailed(
                f"No backend here computes the graph as it is written ({reasons}); build in another precision, or name a backend with "
                "--backend."
            )
        raise BackendUnavailable(
            f"No backend runs this graph here ({reasons}); pip install 'edge-effdet[ort]' installs one that runs anywhere."
        )
    ran = {"precision": timed[0]["precision"], "sha256": graph.sha256}
    return Race(timed[0]["backend"], tuple(row["backend"] for row in timed), tuple(rows.values()), ran)
