"""``--backend fastest``: the backends that run here and compute right run the same graph for some seconds, in turns, and the fastest wins."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from edge_effdet.artifacts import Detections, Engine, Graph, temporary_folder
from edge_effdet.artifacts.record import Race, RaceEntry
from edge_effdet.backends.base import BACKENDS, Available, CompileOptions, Unavailable, get_backend, load_runner
from edge_effdet.errors import AccuracyGateFailed, BackendUnavailable, EdgeEffDetError
from edge_effdet.evaluation.accuracy import find_in_graph
from edge_effdet.runtime.agreement import find_best, measure_agreement
from edge_effdet.runtime.latency import measure_latency
from edge_effdet.runtime.preprocess import feeds_for_image

logger = logging.getLogger("edge_effdet.building.race")

WRONG = "it computes something else here"
"""How the reason begins for which a backend is left out because of its results."""


def describe_race(race: Race) -> str:
    """A race for people: the times, and who was left out for what it computed."""
    times = (f"{each.backend} {each.latency.median_ms:.1f} ms" for each in race.backends if each.latency is not None)
    wrong = (f"{each.backend}: {each.skipped}" for each in race.backends if (each.skipped or "").startswith(WRONG))
    return "; ".join([f"backend {race.winner} is the fastest here ({', '.join(times)})", *wrong])


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
    entries: dict[str, RaceEntry] = {}
    reference = reference or graph
    expected: dict[str, list[Detections]] = {}

    def exactly(each: Graph) -> list[Detections]:
        if each.sha256 not in expected:
            expected[each.sha256] = find_in_graph(each, pictures)
        return expected[each.sha256]

    image = np.full((*graph.spec.image_size, 3), graph.spec.preprocess.fill_color, np.uint8)
    with temporary_folder() as folder:
        engines: dict[str, Engine] = {}
        for name in names:
            answer = get_backend(name).probe()
            entry = RaceEntry(backend=name)
            if isinstance(answer, Available):
                entry = replace(entry, version=answer.version)
            if isinstance(answer, Unavailable) or not answer.runs_here:
                why = answer.reason if isinstance(answer, Unavailable) else "it compiles here and cannot run here"
                entries[name] = replace(entry, skipped=why)
                continue
            logger.info("racing: %s", name)
            raced = draft(name) if draft is not None else graph
            entry = entries[name] = replace(entry, precision=raced.precision)
            engine = Engine(folder / f"{name}{get_backend(name).SUFFIX}", graph.spec, name, raced.precision)
            try:
                engine.path.write_bytes(get_backend(name).compile(raced, options).content)
                # One that fails only when it runs must not end the race of the others.
                with load_runner(engine) as runner:
                    runner.run(feeds_for_image(runner, image, graph.spec))
                    found = [find_best(runner, graph.spec, picture) for picture in pictures]
                if pictures:
                    title = "the FP32 graph" if reference.precision == "fp32" else "the graph that was given"
                    agreement = measure_agreement(
                        exactly(reference), exactly(raced), found, title, raced.precision, drawn
                    )
                    entry = entries[name] = replace(entry, agreement=agreement)
            except EdgeEffDetError as error:
                entries[name] = replace(entry, skipped=str(error))
                continue
            # What rounding has spoilt is the gate's business: a draft's ranges are quick ones.
            if entry.agreement is not None and not entry.agreement.backend_right:
                entry = entries[name] = replace(entry, skipped=f"{WRONG}: {entry.agreement.text}")
                logger.warning("%s is left out, since %s", name, entry.skipped)
                continue
            engines[name] = engine
        for name, measured in zip(engines, measure_latency(list(engines.values()), image), strict=True):
            entries[name] = replace(entries[name], latency=measured)
    return _decide(graph, tuple(entries.values()))


def _decide(graph: Graph, entries: tuple[RaceEntry, ...]) -> Race:
    order = sorted(
        (each for each in entries if each.latency is not None),
        key=lambda each: each.latency.median_ms if each.latency else 0.0,
    )
    if not order:
        reasons = "; ".join(f"{each.backend}: {each.skipped}" for each in entries)
        if any(each.agreement is not None for each in entries):
            raise AccuracyGateFailed(
                f"No backend here computes the graph as it is written ({reasons}); build in another precision, or name a backend with "
                "`backend`."
            )
        raise BackendUnavailable(
            f"No backend runs this graph here ({reasons}); pip install 'edge-effdet[ort]' installs one that runs anywhere."
        )
    return Race(
        winner=order[0].backend,
        order=tuple(each.backend for each in order),
        precision=order[0].precision or graph.precision,
        graph_sha256=graph.sha256,
        backends=entries,
    )
