"""Runs an operation on an installation and kills its own process by SIGKILL at a moment that is named: python -m tests.faults.killed MOMENT WHAT ARGUMENTS…

MOMENT is ``STEP:before``, ``STEP:undone``, ``STEP:done`` or ``STEP:marked``, of a step of the installation, or a number: the file operation of this process,
counted from 1, before which it dies. File operations are those that Python tells its audit hooks of.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from edge_effdet.device import steps
from edge_effdet.device.install import install
from edge_effdet.device.options import InstallOptions, RollbackOptions, UninstallOptions
from edge_effdet.device.rollback import rollback, uninstall

MOMENTS = ("before", "undone", "done", "marked")
_CHANGES = (
    "os.rename",
    "os.mkdir",
    "os.remove",
    "os.rmdir",
    "os.symlink",
    "os.chmod",
    "os.truncate",
    "subprocess.Popen",
)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_step(name: str, moment: str) -> None:
    def run_step(step: steps.Step) -> None:
        parts = [step.undo, step.do, step.mark]
        for index, part in enumerate(parts):
            if step.name == name and MOMENTS[index] == moment:
                die()
            part()
        if step.name == name and moment == MOMENTS[-1]:
            die()

    steps.run_step = run_step


def die_at_operation(number: int, root: Path) -> None:
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        changes = event in _CHANGES or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE
        )
        if changes and (event == "subprocess.Popen" or str(root) in str(arguments)):
            count += 1
            if count == number:
                die()

    sys.addaudithook(hook)


def main(moment: str, what: str, root: Path, *more: str) -> None:
    step, _, when = moment.partition(":")
    if step.isdecimal():
        die_at_operation(int(step), root)
    else:
        die_at_step(step, when)
    if what == "install":
        install(Path(more[0]), InstallOptions(root=root, service="none", keep=int(more[1])))
    elif what == "rollback":
        rollback(None, RollbackOptions(root=root, service="none"))
    else:
        uninstall("cells", UninstallOptions(root=root, purge=True))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
