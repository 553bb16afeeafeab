"""``edge-effdet VERB …`` and ``python -m edge_effdet VERB …``: the same code as ``python -m edge_effdet.VERB …``."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from edge_effdet.cli import Result, make_parser, run_verb, version_text
from edge_effdet.errors import UsageError

VERBS = {
    "data": "look a data set over: what is in it and what is wrong with it",
    "train": "fine-tune a detector on labelled images",
    "predict": "find objects in images with one checkpoint or several, fused",
    "export": "checkpoint to optimized ONNX graph",
    "quantize": "FP32 graph to FP16, or to INT8 with calibration images",
    "build_engine": "checkpoint or graph to a compiled engine, proven",
    "verify": "see that an engine finds on this machine what it found where it was proven",
    "detect": "find objects in images with an engine",
    "serve": "answer pictures with boxes over HTTP, and show a camera in a page",
    "evaluate": "COCO metrics of an engine or of checkpoints, and where they go wrong",
    "benchmark": "how fast and how good engines are on this machine, as a report",
    "deploy": "make a bundle that builds, proves and runs itself on a device",
    "device": "install a bundle on this device, run it, update it, take it back",
}

_HELP = ("-h", "--help")
_VERSION = "--version"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code; without one, or with ``--help``, list them."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    first = arguments[0] if arguments else "--help"
    # The verbs are module names; people write build-engine as often as build_engine.
    verb = first if first.startswith("-") else first.replace("-", "_")
    if verb in VERBS and _is_here(verb):
        return importlib.import_module(module_name(verb)).main(arguments[1:])
    return run_verb(make_parser("", "", ""), lambda _: _without_a_verb(first, verb), [])


def _without_a_verb(first: str, verb: str) -> Result:
    """What the program itself has to say. Raises UsageError where it lacks the verb."""
    if first in _HELP:
        usage = ["usage: edge-effdet VERB [options]", "       edge-effdet --version", ""]
        return Result("\n".join([*usage, *(f"  {name:<14}{text}" for name, text in VERBS.items() if _is_here(name))]))
    if first == _VERSION:
        return Result(version_text())
    if verb in VERBS:
        raise UsageError(
            f"{first} is not in the part of edge-effdet that a device has; run it where the whole package is installed."
        )
    nearest = difflib.get_close_matches(verb, [*VERBS, *_HELP, _VERSION], n=1, cutoff=0)[0]
    raise UsageError(
        f"edge-effdet has no verb {first!r}; the nearest that it has is {nearest}, and edge-effdet --help lists all."
    )


def _is_here(verb: str) -> bool:
    """Whether the verb is installed: the wheel in a bundle has the device's alone."""
    return find_spec(f"edge_effdet.{verb}") is not None


def module_name(verb: str) -> str:
    """The module whose ``main`` a verb runs; one that is a package keeps it where ``python -m`` looks."""
    return f"edge_effdet.{verb}.__main__" if verb in ("data", "device") else f"edge_effdet.{verb}"


if __name__ == "__main__":
    sys.exit(main())
