"""Load the engines of a folder on the processor that runs this, and write what they compute to a file: ``visit.py FOLDER ANSWERS [plain]``.

With ``plain``, what onnxruntime computes as it comes, too. The Python of the other processor runs it, which has what a device has: no pytest, no onnx and no torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from edge_effdet.artifacts import Engine, load_engine
from edge_effdet.backends.arithmetic import int8_arithmetic
from edge_effdet.backends.base import LoadOptions, load_runner
from edge_effdet.backends.cores import cpu_flags
from edge_effdet.backends.fingerprint import describe_machine, machine_fingerprint
from edge_effdet.errors import EngineError
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.golden import check_engine, read_golden

# Emulated threads wait for each other by spinning.
LOADING = LoadOptions(threads=1, spinning=False)


def visit(folder: Path, plain: bool) -> dict[str, Any]:
    engines = [load_engine(path.with_suffix("")) for path in sorted(folder.glob("*.json"))]
    images = np.load(folder / "images.npy")
    return {
        "flags": sorted(cpu_flags()),
        "backends": {
            name: {
                "fingerprint": describe_machine(machine_fingerprint(name)),
                "saturates": int8_arithmetic(name).saturates,
            }
            for name in sorted({engine.backend for engine in engines})
        },
        "engines": {engine.path.stem: _ask(engine, images, plain) for engine in engines},
    }


def _ask(engine: Engine, images: np.ndarray, plain: bool) -> dict[str, Any]:
    golden = read_golden(engine)
    assert golden is not None
    with load_runner(engine, LOADING) as runner:
        outputs = {name: array.tolist() for name, array in runner.run({"images": images}).items()}
        distance = check_engine(runner, engine, golden).distance
    try:
        with Detector.load(engine, loading=LOADING):
            refusal = ""
    except EngineError as error:
        refusal = str(error)
    answer = {"outputs": outputs, "distance": distance, "refusal": refusal}
    if plain and engine.backend == "onnxruntime":
        answer["plain_outputs"] = _run_plainly(engine.path, images)
    return answer


def _run_plainly(path: Path, images: np.ndarray) -> dict[str, Any]:
    """By onnxruntime as it comes: with the session options that a user of the file would have, but for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return {name: array.tolist() for name, array in zip(names, session.run(names, {"images": images}), strict=True)}


if __name__ == "__main__":
    source, answers = (Path(argument) for argument in sys.argv[1:3])
    answers.write_text(json.dumps(visit(source, sys.argv[3:] == ["plain"])))
