"""How large a bundle is, and how long it takes from the archive to the first boxes on a machine with nothing but Python.

python -m benchmarks.deploy --engine engines/bccd.int8.onnx

The archive is unpacked and installed into an empty folder, in an empty environment without a network's index, and one picture is looked at. By hand,
the peer, is what a user would type without a bundle's installer: a virtual environment, the same wheels, the same picture, with the host's own engine.
It checks nothing, builds nothing and keeps no earlier version. Both take turns.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save_result, watch_load
from benchmarks.parser import make_parser
from edge_effdet.artifacts import Engine, engine_json_path, load_engine
from edge_effdet.cli import Result, progress, run_verb, table
from edge_effdet.deploying.options import DeployConfig
from edge_effdet.deploying.stage import make_bundle
from edge_effdet.device.manifest import Bundle, file_sizes
from edge_effdet.runtime.golden import decode_pictures, encode_picture, read_golden

ASKED = {"without wheels, MB": 25.0, "with wheels, MB": 130.0, "to the first boxes, s": 60.0}


def run(command: Sequence[str | Path], home: Path) -> str:
    """Run a command in an empty environment and return what it prints. Raises RuntimeError where it fails."""
    done = subprocess.run(
        [str(each) for each in command],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def install(archive: Path, python: Path, picture: Path, folder: Path) -> dict[str, float]:
    """Seconds from the archive to the first boxes, by the bundle's own installer."""
    marks = [time.perf_counter()]
    shutil.unpack_archive(archive, folder)
    bundle = folder / archive.name.removesuffix(".tar.gz")
    marks.append(time.perf_counter())
    root = folder / "root"
    run([python, bundle / "edge-effdet", "install", "--root", root, "--service", "none"], folder)
    marks.append(time.perf_counter())
    name = json.loads((bundle / "bundle.json").read_text())["name"]
    current = root / name / "current"
    (engine,) = (path for path in (current / "engine").iterdir() if engine_json_path(path).is_file())
    inside = current / "venv" / "bin" / "python"
    found = json.loads(
        run([inside, "-m", "edge_effdet.detect", "--engine", engine, "--source", picture, "--json"], folder)
    )
    marks.append(time.perf_counter())
    if not found["images"][0]["detections"]:
        raise RuntimeError("nothing was found in the picture")
    run(
        [inside, "-c", "import importlib.util as u, sys; sys.exit(any(u.find_spec(n) for n in ('torch', 'onnx')))"],
        folder,
    )
    unpacked, installed, detected = np.diff(marks).tolist()
    return {"unpack": unpacked, "install": installed, "detect": detected}


def by_hand(bundle: Path, engine: Engine, python: Path, picture: Path, folder: Path) -> float:
    """Seconds of a virtual environment, the same wheels and one picture."""
    started = time.perf_counter()
    venv = folder / "venv"
    run([python, "-m", "venv", venv], folder)
    inside = venv / "bin" / "python"
    wheels = ["--no-index", "--find-links", bundle / "wheels", "-r", bundle / "requirements.txt"]
    run([inside, "-m", "pip", "install", "--quiet", *wheels], folder)
    (own,) = (bundle / "wheels").glob("edge_effdet-*.whl")
    run([inside, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", own], folder)
    run([inside, "-m", "edge_effdet.detect", "--engine", engine.path, "--source", picture, "--json"], folder)
    return time.perf_counter() - started


def _megabytes(bundle: Bundle) -> float:
    return sum(file_sizes(bundle.path).values()) / 1e6


def _run(arguments: argparse.Namespace) -> Result:
    engine = load_engine(arguments.engine)
    golden = read_golden(engine)
    if golden is None:
        raise SystemExit("the engine has no golden pictures, of which one is looked at")
    result = watch_load()
    data: dict[str, Any] = {"engine_sha256": engine.sha256, "target": arguments.target, "backend": engine.backend}
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        top = Path(folder)
        picture = top / "picture.jpg"
        picture.write_bytes(encode_picture(decode_pictures(engine, golden)[0]))
        bundles = {}
        for name, wheels in (("without", False), ("with", True)):
            config = DeployConfig(
                target=arguments.target,
                output=top / name,
                backend=engine.backend,
                release="1.0",
                wheels=wheels,
                precision=engine.precision,
            )
            bundles[name] = make_bundle(engine, config)
            data[f"{name} wheels, MB"] = _megabytes(bundles[name])
        archive = bundles["with"].archive
        assert archive is not None
        ours: list[dict[str, float]] = []
        peer: list[float] = []
        for number in progress(range(arguments.rounds), arguments.rounds, "rounds"):
            for way in ("ours", "peer")[:: -1 if number % 2 else 1]:
                with tempfile.TemporaryDirectory(dir=top) as place:
                    if way == "ours":
                        ours.append(install(archive, arguments.python, picture, Path(place)))
                    else:
                        peer.append(by_hand(bundles["with"].path, engine, arguments.python, picture, Path(place)))
    totals = [sum(each.values()) for each in ours]
    data |= {
        "to the first boxes, s": float(np.median(totals)),
        "by hand, s": float(np.median(peer)),
        "parts": ours,
        **result(),
    }
    data["ratio to by hand"] = data["to the first boxes, s"] / data["by hand, s"]
    rows = [("figure", "measured", "asked")]
    rows += [(name, f"{data[name]:.1f}", f"<= {bound:g}") for name, bound in ASKED.items()]
    rows += [
        ("by hand, s", f"{data['by hand, s']:.1f}", "-"),
        ("ours / by hand", f"{data['ratio to by hand']:.2f}", "-"),
    ]
    path = save_result("deploy", data)
    return Result(f"{table(rows)}\n\n{path}", data)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "deploy",
        "The size of a bundle, and the time from the archive to the first boxes.",
        "--engine engines/bccd.int8.onnx",
        rounds=3,
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine of a backend on the CPU")
    parser.add_argument("--target", default="x86-cpu", metavar="T", help="the target of the bundle (default: x86-cpu)")
    parser.add_argument(
        "--python",
        type=Path,
        default=Path(getattr(sys, "_base_executable", sys.executable)),
        metavar="F",
        help="the Python that is there",
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
