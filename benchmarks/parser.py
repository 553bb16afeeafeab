"""The flags that several benchmarks share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks.latency import positive
from edge_effdet import cli


def make_parser(
    module: str,
    description: str,
    example: str = "",
    *,
    models: Sequence[str] = (),
    rounds: int = 0,
    threads: bool = False,
    checkpoint: str = "",
    data: str = "",
    name: str = "",
    required: Collection[str] = (),
) -> argparse.ArgumentParser:
    """A parser with the flags of every verb, and those of these that a benchmark asks for.

    Args:
        module: the module below ``benchmarks`` that is started.
        description: what it measures.
        example: the flags of an example.
        models: the default of ``--models``; empty for no such flag.
        rounds: the default of ``--rounds``; 0 for no such flag.
        threads: whether there is a flag ``--threads``, whose default are the cores that this process may use.
        checkpoint: the help of ``--checkpoint``; empty for no such flag.
        data: the help of ``--data``; empty for no such flag.
        name: what the names of the result files begin with; empty for no flag ``--name``.
        required: ``checkpoint`` or ``data``, where there is no default.
    """
    command = f"python -m benchmarks.{module}"
    parser = cli.make_parser("", description, f"{command} {example}".strip(), prog=command)
    if models:
        shown = f"NAME@SIZE with random weights, or a .safetensors (default: {' '.join(models)})"
        parser.add_argument("--models", nargs="+", default=list(models), metavar="M", help=shown)
    if rounds:
        shown = f"turns of each way (default: {rounds})"
        parser.add_argument("--rounds", type=positive, default=rounds, metavar="N", help=shown)
    if threads:
        cores = len(os.sched_getaffinity(0))
        shown = f"threads of each way (default: {cores})"
        parser.add_argument("--threads", type=positive, default=cores, metavar="N", help=shown)
    if checkpoint:
        parser.add_argument("--checkpoint", type=Path, required="checkpoint" in required, metavar="F", help=checkpoint)
    if data:
        parser.add_argument("--data", type=Path, required="data" in required, metavar="D", help=data)
    if name:
        shown = f"the name of the result file, after {name}-"
        parser.add_argument("--name", default="", help=shown)
    return parser
