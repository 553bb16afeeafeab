"""``edge-effdet VERB …`` and ``python -m edge_effdet VERB …``: the same code as ``python -m edge_effdet.VERB …``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

VERBS = {
    "data": "look a data set over: what is in it and what is wrong with it",
    "train": "fine-tune a detector on labelled images",
    "predict": "find objects in images with one checkpoint or several, fused",
    "export": "checkpoint to optimized ONNX graph",
    "quantize": "FP32 graph to FP16, or to INT8 with calibration images",
    "build_engine": "checkpoint or graph to a compiled engine, proven",
    "verify": "see that an engine finds on this machine what it found where it was proven",
    "detect": "find objects in images with an engine",
    "evaluate": "COCO metrics of an engine or of checkpoints, and where they go wrong",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return its exit code; without one, list them."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0].replace("-", "_") if arguments else ""
    if verb in VERBS:
        return importlib.import_module(module_name(verb)).main(arguments[1:])
    lines = ["usage: edge-effdet VERB [options]", "", *(f"  {name:<14}{text}" for name, text in VERBS.items())]
    print("\n".join(lines), file=sys.stdout if verb in ("", "__help", "_h") else sys.stderr)
    return 0 if verb in ("", "__help", "_h") else 2


def module_name(verb: str) -> str:
    """The module whose ``main`` a verb runs; one that is a package keeps it where ``python -m`` looks."""
    return "edge_effdet.data.__main__" if verb == "data" else f"edge_effdet.{verb}"


if __name__ == "__main__":
    sys.exit(main())
