"""How often no working version is left after an installation, an update or a rollback was killed.

python -m benchmarks.deploy_kills --bundle bccd-1.0-x86-cpu --update bccd-1.1-x86-cpu

Each operation is killed by SIGKILL at a random moment, again and again, and then run to its end. After each kill ``edge-effdet verify`` of what is installed
has to pass, which holds every file against its hash and runs the engine on the golden pictures. Every other kill ends the installer alone, whose programs
may then go on, and the others all of its processes at once, as a power cut does; what a power cut does to the disk is not tested.

With ``--chroot`` all of it happens in another root, such as the arm64 one that ``benchmarks/deploy_arm64.py`` makes, whose programs ``--emulator`` runs. There
``python -m tests.bundles`` makes bundles that take minutes and not an hour for each operation.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.deploy_arm64 import emulated
from benchmarks.latency import positive
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.device.manifest import Bundle, read_bundle
from edge_effdet.device.steps import LOG_FILE
from edge_effdet.device.store import CURRENT, LOG, ROLLBACK
from edge_effdet.errors import InputError

TRIES = 4
"""Kills of one operation, before it is run to its end."""

PATIENCE = 60
"""Seconds in which the next run is tried again while a program of the killed one still holds the lock."""

_BUSY = "is at work on"
_STEP = re.compile(r" INFO (\w+): ")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the commands run.

    Attributes:
        work: a folder for this run, as the commands name it.
        outside: the same folder, as this process names it.
        launcher: what stands before a command.
        python: the Python of the commands.
        environment: of the commands; None for this process's.
    """

    work: Path
    outside: Path
    launcher: tuple[str, ...]
    python: str
    environment: Mapping[str, str] | None = None

    def start(self, *command: str | Path) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        words = [*self.launcher, *map(str, command)]
        return subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env=self.environment,
        )  # fmt: skip

    def run(self, *command: str | Path) -> tuple[int, str, str]:
        """Run a command to its end: its exit code, and what it printed."""
        process = self.start(*command)
        printed, errors = process.communicate()
        return process.returncode, printed, errors


@dataclass(slots=True)
class Tally:
    """What was counted."""

    kills: int = 0
    without: int = 0
    stuck: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    failures: list[dict[str, Any]] = field(default_factory=list)


class Trial:
    """One root, from nothing to an update and back."""

    def __init__(self, place: Place, first: Bundle, second: Bundle, number: int) -> None:
        self.place, self.first, self.name = place, first, first.manifest.name
        self.root = place.work / f"root {number}"
        self.store = place.outside / self.root.name / self.name
        entries = {"install": first, "update": second, "rollback": second}
        settings = ("--root", self.root, "--service", "none")
        self.commands = {
            operation: (place.python, place.work / f"bundle {bundle.id}" / "edge-effdet", verb, *settings)
            for operation, bundle in entries.items()
            for verb in ["rollback" if operation == "rollback" else "install"]
        }

    def kill(self, operation: str, after: float, all_of_it: bool) -> str | None:
        """Run an operation and kill it after some seconds. Returns None where it was still at work, else what was wrong; empty for nothing."""
        process = self.place.start(*self.commands[operation])
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, errors = process.communicate(timeout=after)
            return "" if process.returncode == 0 else f"exit code {process.returncode}: {errors[-500:]}"
        (os.killpg if all_of_it else os.kill)(process.pid, signal.SIGKILL)
        # Not communicate, which waits for the programs too that hold the pipes.
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        return None

    def finish(self, operation: str) -> str:
        """Run an operation to its end. Returns what is wrong; empty where it ends well."""
        if operation == "rollback" and self.is_rolled_back:
            # It was killed when all was done, and another one would go further back.
            return ""
        until = time.monotonic() + PATIENCE
        while True:
            code, _, errors = self.place.run(*self.commands[operation])
            if code == 0:
                return ""
            if _BUSY not in errors or time.monotonic() > until:
                return f"exit code {code}: {errors[-500:]}"
            time.sleep(0.5)

    def verify(self) -> str:
        """What is wrong with what is installed; empty where it works."""
        code, _, errors = self.place.run(self.root / self.name / "edge-effdet", "verify", "--json")
        return "" if code == 0 else f"exit code {code}: {errors[-500:]}"

    @property
    def is_rolled_back(self) -> bool:
        """Whether a rollback has reached its end, or was killed after it."""
        link = self.store / CURRENT
        return link.is_symlink() and link.readlink().name == self.first.id and not (self.store / ROLLBACK).exists()

    @property
    def has_current(self) -> bool:
        return (self.store / CURRENT).is_symlink()

    def last_step(self) -> str:
        """The step that the log names last."""
        try:
            found = _STEP.findall((self.store / LOG / LOG_FILE).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            return "check"
        return found[-1] if found else "check"


def kill_all(place: Place, first: Bundle, second: Bundle, kills: int, seed: int, durations: dict[str, float]) -> Tally:
    """Kill operations until it was done so often."""
    chance, tally = random.Random(seed), Tally()
    for number in range(1, kills + 1):
        trial = Trial(place, first, second, number)
        for operation in ("install", "update", "rollback"):
            had_one, ended = trial.has_current, None
            for _ in range(TRIES):
                if tally.kills == kills or (operation == "rollback" and trial.is_rolled_back):
                    break
                ended = trial.kill(operation, chance.uniform(0, durations[operation]), tally.kills % 2 == 1)
                if ended is not None:
                    # What the last one started may still be at work, and the next run waits for it.
                    ended = None if _BUSY in ended else ended
                    break
                step = trial.last_step() if operation != "rollback" else "rollback"
                tally.kills += 1
                tally.operations[operation] += 1
                tally.steps[operation if step == operation else f"{operation}: {step}"] += 1
                had_one = had_one or trial.has_current
                problem = trial.verify() if had_one else ""
                if problem:
                    tally.without += 1
                    tally.failures.append({"operation": operation, "step": step, "problem": problem})
            # A rollback that has ended well would go further back.
            problem = (trial.finish(operation) if ended is None else ended) or trial.verify()
            if problem:
                tally.stuck += 1
                tally.failures.append({"operation": operation, "step": "the next run", "problem": problem})
        shutil.rmtree(place.outside / trial.root.name)
        if tally.kills == kills:
            break
    return tally


def time_operations(place: Place, first: Bundle, second: Bundle) -> dict[str, float]:
    """The seconds that each operation takes when it is left alone."""
    trial, durations = Trial(place, first, second, 0), {}
    for operation in trial.commands:
        started = time.perf_counter()
        problem = trial.finish(operation) or trial.verify()
        if problem:
            raise InputError(f"The {operation} fails even when nothing kills it ({problem}); mend that first.")
        durations[operation] = time.perf_counter() - started
    shutil.rmtree(place.outside / trial.root.name)
    return durations


@contextlib.contextmanager
def open_place(chroot: Path | None, emulator: Path | None, python: str, bundles: Sequence[Bundle]) -> Iterator[Place]:
    """A folder with copies of the bundles, removed at the end."""
    base = Path(tempfile.gettempdir()) if chroot is None else chroot / "var" / "tmp"
    with contextlib.ExitStack() as stack:
        outside = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deploy-kills-", dir=base)))
        for bundle in bundles:
            shutil.copytree(bundle.path, outside / f"bundle {bundle.id}")
        if chroot is None:
            yield Place(outside, outside, (), python)
            return
        if emulator is not None:
            stack.enter_context(emulated(chroot, emulator.resolve()))
        work = Path("/") / outside.relative_to(chroot)
        # On one core: threads under emulation wait for each other by spinning.
        core = min(os.sched_getaffinity(0))
        launcher = ("/usr/bin/taskset", "-c", str(core), "/usr/sbin/chroot", str(chroot))
        environment = {"PATH": "/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}
        yield Place(work, outside, launcher, python, environment)


def _run(arguments: argparse.Namespace) -> Result:
    first, second = read_bundle(arguments.bundle), read_bundle(arguments.update)
    if first.manifest.name != second.manifest.name or first.id == second.id:
        raise InputError(f"{second.path} is no update of {first.path}; give two releases of the same name.")
    with open_place(arguments.chroot, arguments.emulator, arguments.python, [first, second]) as place:
        durations = time_operations(place, first, second)
        tally = kill_all(place, first, second, arguments.kills, arguments.seed, durations)
        machine = place.run(
            place.python, "-c", "import platform; print(platform.machine(), platform.python_version())"
        )[1]
    rows = [("killed while", "kills"), *sorted((name, str(count)) for name, count in tally.steps.items())]
    result = {
        "bundles": [first.id, second.id],
        "ran_on": machine.strip(),
        "kills": tally.kills,
        "without_a_working_version": tally.without,
        "next_run_failed": tally.stuck,
        "operations": dict(tally.operations),
        "steps": dict(tally.steps),
        "seconds_left_alone": {name: round(value, 1) for name, value in durations.items()},
        "seed": arguments.seed,
        "failures": tally.failures,
    }
    text = (
        f"{table(rows)}\n\n{tally.kills} kills on {machine.strip()}: {tally.without} times no working version was left, and {tally.stuck} times the next "
        "run did not finish"
    )
    if arguments.save:
        text += f"\n\n{save_result('deploy-kills', result, arguments.name)}"
    failed = tally.without or tally.stuck
    return Result(
        text, result, InputError(f"Not every kill was survived: {json.dumps(tally.failures[0])}.") if failed else None
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "deploy_kills",
        "How often no working version is left after an installation, an update or a rollback was killed.",
        "--bundle bccd-1.0-x86-cpu --update bccd-1.1-x86-cpu",
        name="deploy-kills",
    )
    parser.add_argument("--bundle", type=Path, required=True, metavar="DIR", help="what is installed first")
    parser.add_argument("--update", type=Path, required=True, metavar="DIR", help="a later release of it")
    parser.add_argument("--kills", type=positive, default=100, metavar="N", help="how often (default: 100)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the moments (default: 0)")
    parser.add_argument("--python", default="python3", metavar="P", help="what starts the bundles (default: python3)")
    parser.add_argument(
        "--chroot", type=Path, metavar="DIR", help="the root that all of it happens in (default: this one)"
    )
    parser.add_argument("--emulator", type=Path, metavar="F", help="QEMU, which runs the programs of that root")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write the result file")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
