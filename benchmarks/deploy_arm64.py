"""Install, verify, update, roll back and detect on 64-bit Arm: a bundle in Debian's arm64 root, whose programs QEMU runs.

python -m benchmarks.deploy_arm64 --engine engines/bccd.int8.onnx --output /var/tmp/arm64

It needs root, Debian's mmdebstrap and arch-test, and the emulators of tests/emulation/install.sh, whose QEMU 10 it registers with the kernel
(binfmt_misc) until it ends. What is found in each picture is compared with what the same engine finds on this machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.artifacts import Detections, Engine, load_engine
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.deploying.options import DeployConfig
from edge_effdet.deploying.stage import make_bundle
from edge_effdet.errors import InputError
from edge_effdet.runtime.agreement import TOLERANCES, detection_distance
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.golden import decode_pictures, encode_picture, read_golden

PACKAGES = "base-files,base-passwd,coreutils,dash,python3,python3-venv,libstdc++6,ca-certificates,openssl"
MAGIC = (
    r"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00:"
    r"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"
)
"""The head of an executable for 64-bit Arm, and which of its bits matter, as in QEMU's ``qemu-binfmt-conf.sh``."""

BINFMT = Path("/proc/sys/fs/binfmt_misc")
NAME = "edge-effdet-arm64"
FLAGS = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"


def make_root(root: Path) -> None:
    """Debian 12 for 64-bit Arm, unpacked without running one of its programs. Raises InputError where a program is missing."""
    if (root / "usr/bin/python3").exists():
        return
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        raise InputError(
            "This needs root and Debian's mmdebstrap and arch-test; install them with apt-get and run it as root."
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    command = ["mmdebstrap", "--arch=arm64", "--variant=extract", f"--include={PACKAGES}", "bookworm", str(root)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    # What the packages' scripts would have made.
    for name in ("proc", "dev", "root", "tmp", "opt"):
        (root / name).mkdir(exist_ok=True)
    shell = root / "bin/sh"
    if not shell.is_symlink() and not shell.exists():
        shell.symlink_to("dash")


def write_processor(root: Path, cores: int = 2) -> None:
    """The kernel's files of an Orin's processor, which onnxruntime and OpenVINO read; without them they would read an x86's and end."""
    folder = root / "sys/devices/system/cpu"
    files: dict[Path, str] = {folder / name: f"0-{cores - 1}\n" for name in ("possible", "present", "online")}
    for core in range(cores):
        own = folder / f"cpu{core}"
        files |= {
            own / "regs/identification/midr_el1": "0x00000000410fd421\n",
            own / "topology/physical_package_id": "0\n",
            own / "topology/core_id": f"{core}\n",
            own / "topology/core_cpus_list": f"{core}\n",
            own / "topology/thread_siblings_list": f"{core}\n",
            own / "topology/package_cpus_list": f"0-{cores - 1}\n",
            own / "topology/core_siblings_list": f"0-{cores - 1}\n",
            own / "topology/thread_siblings": f"{1 << core:x}\n",
            own / "topology/core_cpus": f"{1 << core:x}\n",
            own / "topology/core_siblings": f"{(1 << cores) - 1:x}\n",
            own / "cpufreq/cpuinfo_max_freq": "1984000\n",
            own / "cpufreq/base_frequency": "1984000\n",
        }
        (own / "cache/index0").mkdir(parents=True, exist_ok=True)
    files |= {
        root / "sys/devices/system/node/online": "0\n",
        root / "sys/devices/system/node/node0/cpulist": f"0-{cores - 1}\n",
    }
    files[root / "cpuinfo"] = "".join(
        f"processor\t: {core}\nBogoMIPS\t: 62.50\nFeatures\t: {FLAGS}\nCPU implementer\t: 0x41\nCPU architecture: 8\n"
        "CPU variant\t: 0x0\nCPU part\t: 0xd42\nCPU revision\t: 1\n\n"
        for core in range(cores)
    )
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@contextlib.contextmanager
def emulated(root: Path, emulator: Path) -> Iterator[None]:
    """Let the kernel run Arm's programs by the emulator, and give the root its /proc and /dev, until the block ends."""
    if not (BINFMT / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(BINFMT)], check=True)
    if (BINFMT / NAME).exists():
        (BINFMT / NAME).write_text("-1")
    # F: the kernel opens the emulator now, so that it need not lie in the root.
    (BINFMT / "register").write_text(f":{NAME}:M::{MAGIC}:{emulator}:F")
    mounts = [
        ["-t", "proc", "proc", root / "proc"],
        ["--bind", root / "cpuinfo", root / "proc/cpuinfo"],
        ["--bind", "/dev", root / "dev"],
    ]
    done: list[Path] = []
    try:
        for each in mounts:
            subprocess.run(["mount", *map(str, each)], check=True)
            done.append(Path(each[-1]))
        yield
    finally:
        for place in reversed(done):
            subprocess.run(["umount", "--lazy", str(place)], check=False)
        (BINFMT / NAME).write_text("-1")


def run_there(root: Path, command: Sequence[str | Path], code: int = 0) -> tuple[str, float]:
    """Run a program in the root; returns what it prints and the seconds. Raises RuntimeError where it ends with another code."""
    started = time.perf_counter()
    done = subprocess.run(
        # On one core: threads under emulation wait for each other by spinning.
        ["/usr/bin/taskset", "-c", "0", "/usr/sbin/chroot", str(root), *map(str, command)],
        env={"PATH": "/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != code:
        raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout + ("" if code == 0 else done.stderr), time.perf_counter() - started


def _found(text: str) -> list[Detections]:
    images = json.loads(text)["images"]
    return [
        Detections(
            np.array([each["box"] for each in image["detections"]], np.float32).reshape(-1, 4),
            np.array([each["score"] for each in image["detections"]], np.float32),
            np.array([each["class_id"] for each in image["detections"]], np.int32),
        )
        for image in images
    ]


def _run(arguments: argparse.Namespace) -> Result:
    engine = load_engine(arguments.engine)
    golden = read_golden(engine)
    if golden is None:
        raise InputError(
            "The engine has no golden pictures, in which boxes are compared; build it with `golden` pictures."
        )
    emulator = arguments.emulators / "qemu-aarch64"
    if not emulator.is_file():
        raise InputError(f"There is no emulator at {emulator}; run tests/emulation/install.sh.")
    arguments.output.mkdir(parents=True, exist_ok=True)
    root = arguments.output.resolve() / "root"
    make_root(root)
    write_processor(root)
    place = root / "deliveries"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    for number, picture in enumerate(decode_pictures(engine, golden)):
        (place / f"{number}.jpg").write_bytes(encode_picture(picture))
    pictures = sorted(place.glob("*.jpg"))
    bundles = []
    for release in ("1.0", "1.1"):
        config = DeployConfig(
            target="arm64-cpu",
            output=arguments.output / "bundles" / release,
            name="arm64",
            backend=engine.backend,
            release=release,
            python="3.11",
            wheels=True,
            archive="none",
            precision=engine.precision,
        )
        shutil.rmtree(config.output, ignore_errors=True)
        bundle = make_bundle(engine, config)
        shutil.copytree(bundle.path, place / bundle.path.name)
        bundles.append(Path("/deliveries") / bundle.path.name)
    shutil.rmtree(root / "opt/edge-effdet", ignore_errors=True)
    seconds: dict[str, float] = {}
    python, installed = "/usr/bin/python3", "/opt/edge-effdet/arm64/edge-effdet"
    with emulated(root, emulator.resolve()):
        first = [python, bundles[0] / "edge-effdet", "install", "--service", "none", "--threads", "1"]
        _, seconds["install 1.0"] = run_there(root, first)
        _, seconds["verify"] = run_there(root, ["/bin/sh", installed, "verify"])
        current = root / "opt/edge-effdet/arm64/current"
        found, seconds["detect"] = run_there(root, _detect(root, current, pictures))
        _, seconds["update to 1.1"] = run_there(
            root, [python, bundles[1] / "edge-effdet", "install", "--service", "none", "--threads", "1"]
        )
        updated = current.resolve().name
        _, seconds["rollback"] = run_there(root, ["/bin/sh", installed, "rollback"])
        rolled_back = current.resolve().name
        refused, _ = run_there(
            root, [python, bundles[0] / "edge-effdet", "install", "--root", "/deliveries", "--service", "none"], code=2
        )
    if not (updated.startswith("1.1-") and rolled_back.startswith("1.0-")):
        raise RuntimeError(f"the update led to {updated} and the rollback to {rolled_back}")
    there = _found(found)
    here = _find_here(engine, pictures)
    data: dict[str, Any] = {
        "engine_sha256": engine.sha256,
        "backend": engine.backend,
        "precision": engine.precision,
        "pictures": len(pictures),
        "distance": detection_distance(here, there),
        "allowed": TOLERANCES[engine.precision],
        "largest_score_difference": max(_score_differences(here, there), default=0.0),
        "boxes": [len(each) for each in there],
        "seconds_emulated": seconds,
        "refusal": refused.strip().splitlines()[-1],
    }
    data["equal"] = data["distance"] <= data["allowed"]
    rows = [("under emulation", "s"), *((name, f"{value:.0f}") for name, value in seconds.items())]
    path = save_result("deploy-arm64", data, f"{engine.backend}-{engine.precision}")
    verdict = "within" if data["equal"] else "NOT within"
    text = f"the scores of {len(pictures)} pictures differ by {100 * data['distance']:.1f} %, {verdict} the {100 * data['allowed']:.0f} % allowed"
    return Result(f"{table(rows)}\n\n{text}\n{path}", data)


def _detect(root: Path, current: Path, pictures: Sequence[Path]) -> list[str | Path]:
    engine = next(path for path in (current / "engine").iterdir() if path.with_name(path.name + ".json").is_file())
    inside = [Path("/") / each.relative_to(root) for each in (current / "venv/bin/python", engine, pictures[0].parent)]
    return [
        inside[0],
        "-m",
        "edge_effdet.detect",
        "--engine",
        inside[1],
        "--source",
        inside[2],
        "--threads",
        "1",
        "--json",
    ]


def _find_here(engine: Engine, pictures: Sequence[Path]) -> list[Detections]:
    with Detector.load(engine) as detector:
        return detector([str(each) for each in pictures])


def _score_differences(here: Sequence[Detections], there: Sequence[Detections]) -> list[float]:
    """Between the scores of each picture in their order, as far as both lists reach."""
    return [
        float(np.abs(one.scores[:count] - other.scores[:count]).max())
        for one, other in zip(here, there, strict=True)
        if (count := min(len(one), len(other)))
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "deploy_arm64",
        "A bundle in an emulated 64-bit Arm root.",
        "--engine engines/bccd.int8.onnx --output /var/tmp/arm64",
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine of a backend on the CPU")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help="the folder of the root and the bundles; a root that is there is used again",
    )
    default = Path(os.environ.get("EDGE_EFFDET_EMULATION") or Path.home() / ".cache/edge_effdet-emulation")
    parser.add_argument(
        "--emulators",
        type=Path,
        default=default,
        metavar="DIR",
        help="where tests/emulation/install.sh put the emulators",
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
