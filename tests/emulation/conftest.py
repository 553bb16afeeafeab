"""Processors that this machine is not: Python under QEMU's user-mode emulation, as ``install.sh`` puts it into a folder.

An x86 one runs this very interpreter with all that is installed for it, an arm64 one Debian's with the wheels of a device.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_effdet.backends.cores import usable_cores
from tests.emulation.engines import write_engine
from tests.emulation.small_detector import ExactRunner, make_pictures, write_small_detector
from tests.once import make_once, worker_number

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Processor:
    """What runs a Python program.

    Attributes:
        emulator: QEMU's file in the folder; empty for this machine itself.
        model: of the processor, as QEMU names it.
    """

    emulator: str = ""
    model: str = ""

    def command(self, folder: Path) -> list[str]:
        if not self.emulator:
            return [sys.executable]
        emulator = [str(folder / self.emulator), "-cpu", self.model]
        if "x86_64" in self.emulator:
            return [*emulator, sys.executable]
        # Files that exist below this root are opened there.
        root = folder / "arm64"
        return [*emulator, "-L", str(root), str(root / "usr" / "bin" / "python3.11")]

    def import_path(self) -> str:
        return f"{ROOT}:/opt/device" if "aarch64" in self.emulator else str(ROOT)


PROCESSORS: Mapping[str, Processor] = {
    "host": Processor(),
    # SSE4.2; without AVX.
    "nehalem": Processor("qemu-x86_64", "Nehalem"),
    # AVX2; what QEMU lacks of the others is transactional memory.
    "haswell": Processor("qemu-x86_64", "Haswell-noTSX"),
    # Dot products, as the cores of an Orin have.
    "arm64": Processor("qemu-aarch64", "cortex-a76"),
    # SVE, which this version computes wrongly.
    "arm64-wrong": Processor("qemu-aarch64-7", "max"),
}

Visit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def emulators() -> Path:
    """The folder of ``install.sh``.

    Skips where it is missing; with ``EDGE_EFFDET_REQUIRE_EMULATION=1``, which ``.ci/run`` sets, fails.
    """
    folder = Path(os.environ.get("EDGE_EFFDET_EMULATION") or Path.home() / ".cache" / "edge_effdet-emulation")
    if not (folder / "version").is_file():
        reason = f"no emulators at {folder}; run tests/emulation/install.sh"
        if os.environ.get("EDGE_EFFDET_REQUIRE_EMULATION") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def visit(emulators: Path, tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """``visit(processor, folder, *arguments)``: what ``visit.py`` answers there of the engines in a folder, which stays as it is."""

    def run(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
        processor = PROCESSORS[name]
        # A copy, since OpenVINO keeps what it compiled beside the engine.
        place = Path(shutil.copytree(folder, tmp_path_factory.mktemp(name) / "engines"))
        answers = place.with_name("answers.json")
        finished = subprocess.run(
            [
                *processor.command(emulators),
                str(Path(__file__).with_name("visit.py")),
                str(place),
                str(answers),
                *arguments,
            ],
            env={
                "PATH": os.defpath,
                "HOME": str(place.parent),
                "XDG_CACHE_HOME": str(place.parent / "cache"),
                "PYTHONPATH": processor.import_path(),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, f"on {name}: {finished.stderr[-2000:]}"
        return json.loads(answers.read_text())

    return run


@pytest.fixture(scope="session")
def small_engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Engines of the small detector for each backend, with weights of 7 and of 8 bits, and an image."""
    graphs = tmp_path_factory.mktemp("graphs")

    def make(folder: Path) -> None:
        pictures = make_pictures()
        np.save(folder / "images.npy", pictures[0].transpose(2, 0, 1)[None])
        for bits, biased in ((7, True), (8, True), (8, False)):
            name = f"{bits}-bits{'' if biased else '-no-bias'}"
            graph = write_small_detector(graphs / f"{name}.onnx", bits, biased)
            for backend in ("onnxruntime", "openvino"):
                if biased or backend == "onnxruntime":
                    write_engine(graph, backend, folder / f"{backend}-{name}.onnx", ExactRunner(biased), pictures)

    return make_once(tmp_path_factory, "small_engines", make)


@pytest.fixture(scope="session")
def small_answers(
    visit: Visit, small_engines: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What the small engines compute on each processor. As many processors are asked at a time as there are cores."""

    def ask(name: str) -> dict[str, Any]:
        def make(folder: Path) -> None:
            (folder / "answers.json").write_text(json.dumps(visit(name, small_engines, "plain")))

        return json.loads((make_once(tmp_path_factory, f"small-{name}", make) / "answers.json").read_text())

    # Two workers start at the two ends and meet in the middle, so that neither waits for long.
    names = list(PROCESSORS)[:: -1 if worker_number() % 2 else 1]
    with ThreadPoolExecutor(usable_cores()) as pool:
        return dict(zip(names, pool.map(ask, names), strict=True))
