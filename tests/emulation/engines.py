"""Engines as another machine would have proven them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.artifacts.record import Fingerprint
from edge_effdet.backends.base import CompileOptions, Runner
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.building.engine import compile_engine
from edge_effdet.runtime.golden import make_golden
from tests.records import write_record

VNNI = ("avx", "avx2", "avx512_vnni", "avx512bw", "avx512dq", "avx512f", "avx512vl", "f16c", "fma", "sse4_1", "sse4_2")
"""Instruction sets of a server with VNNI, which no processor under QEMU has."""


def write_engine(graph: Graph, backend: str, path: Path, exact: Runner, pictures: Sequence[np.ndarray]) -> Engine:
    """An engine that was proven on a processor that computes INT8 exactly and that none of ``PROCESSORS`` is, so that each checks it.

    Args:
        graph: what is compiled.
        backend: that runs it.
        path: of the engine.
        exact: finds what such a processor finds.
        pictures: the golden ones, uint8 [H, W, 3] in the size of the input.
    """
    engine = compile_engine(graph, backend, CompileOptions(), path)
    proven_on = Fingerprint(backend, machine_fingerprint(backend).version, "x86", VNNI)
    golden = make_golden(exact, graph.spec, pictures, "pictures", graph.precision, proven_on)
    engine = replace(engine, record=replace(engine.require_record(), golden=golden))
    write_record(engine)
    return engine
