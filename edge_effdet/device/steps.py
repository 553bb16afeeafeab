"""An installation as steps that can be cut off anywhere and go on: what is done is marked, and what was cut off is undone and repeated.

A step is done when its mark says so: a file that is written after everything that the step made is on the disk. The mark holds what the step was
made from, so a step of other inputs is not taken for done. A step that was cut off has no mark, and what it left is removed before it begins again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import logging.handlers
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import json_text, printable
from edge_effdet.device.durable import remove_path, sync_all, sync_folder, write_durably
from edge_effdet.errors import AccuracyGateFailed, BackendUnavailable, EdgeEffDetError, EngineError

logger = logging.getLogger("edge_effdet.device")
output_logger = logging.getLogger("edge_effdet.device.output")
"""What programs print, which goes into the log file and not to the terminal."""

LOG_FILE = "install.log"
_LOG_BYTES, _LOG_FILES = 1 << 20, 3


DONE = "done already"


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step.

    Attributes:
        name: a word, for the log and for the name of its mark.
        what: what it does, for the plan, as in "make the environment".
        is_done: whether there is nothing to do.
        do: does it; returns what there is to say of it, or nothing.
        undo: removes what an attempt that was cut off left; ``do`` begins after that.
        mark: notes that it is done.
        forget: takes the mark away, because an earlier step is repeated whose results this one used.
        idle: what is said where there is nothing to do.
    """

    name: str
    what: str
    is_done: Callable[[], bool]
    do: Callable[[], str | None]
    undo: Callable[[], None] = _nothing
    mark: Callable[[], None] = _nothing
    forget: Callable[[], None] = _nothing
    idle: str = DONE


@dataclass(frozen=True, slots=True)
class Journal:
    """The marks of the steps of one version, a file each in ``folder``."""

    folder: Path

    def step(
        self, name: str, what: str, inputs: Mapping[str, Any], outputs: Sequence[Path], do: Callable[[], str | None]
    ) -> Step:
        """A step with a mark.

        Args:
            name: of the step and of its mark.
            what: what it does.
            inputs: all that its outputs depend on, as JSON has it; the step is repeated where they have changed.
            outputs: the files and folders that it makes. It is repeated where one is missing.
            do: makes them. Nothing of them is there when it begins.
        """
        path = self.folder / f"{name}.json"

        def is_done() -> bool:
            try:
                marked = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return False
            return marked == {"inputs": json.loads(json_text(inputs))} and all(each.exists() for each in outputs)

        def mark() -> None:
            sync_all()
            self.folder.mkdir(exist_ok=True)
            sync_folder(self.folder.parent)
            write_durably(path, json_text({"inputs": inputs}) + "\n")

        def forget() -> None:
            if path.exists():
                path.unlink()
                sync_folder(self.folder)

        def undo() -> None:
            forget()
            for each in outputs:
                remove_path(each)

        return Step(name=name, what=what, is_done=is_done, do=do, undo=undo, mark=mark, forget=forget)


def run_steps(steps: Sequence[Step]) -> tuple[list[str], list[str]]:
    """Do the steps in their order, without those that are done.

    Returns:
        The names of the steps that were done now, and of those that were done before.
    """
    now: list[str] = []
    before: list[str] = []
    for index, step in enumerate(steps):
        if step.is_done():
            logger.info("%s: %s", step.name, step.idle)
            if step.idle == DONE:
                before.append(step.name)
            continue
        logger.info("%s: %s", step.name, step.what)
        for later in steps[index + 1 :]:
            later.forget()
        run_step(step)
        now.append(step.name)
    return now, before


def run_step(step: Step) -> None:
    """Do one step and mark it."""
    step.undo()
    said = step.do()
    step.mark()
    logger.info("%s: %s", step.name, said or "done")


def plan_steps(steps: Sequence[Step]) -> list[str]:
    """What ``run_steps`` would do, a line for each step. Nothing is changed."""
    lines: list[str] = []
    repeated = False
    for step in steps:
        # The mark of a later step goes when an earlier one is repeated; a step without one looks at things that only then change.
        done = step.is_done() and not (repeated and step.forget is not _nothing)
        repeated = repeated or not done
        lines.append(f"{step.name}: {step.idle if done else step.what}")
    return lines


@contextlib.contextmanager
def logging_to(folder: Path) -> Iterator[Path]:
    """Write the log of the block into a file too, with what the programs print that it starts.

    Args:
        folder: of the file. A file of 1 MiB is set aside, and three of them are kept.

    Returns:
        The file.
    """
    path = folder / LOG_FILE
    handler = logging.handlers.RotatingFileHandler(
        path, maxBytes=_LOG_BYTES, backupCount=_LOG_FILES, encoding="utf-8", errors="backslashreplace"
    )
    # A full disk ends a step with a sentence; here it would print a traceback for each line.
    handler.handleError = lambda record: None
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
    levels = logger.level, output_logger.level, output_logger.propagate
    logger.setLevel(logging.INFO)
    output_logger.setLevel(logging.INFO)
    output_logger.propagate = False
    for each in (logger, output_logger):
        each.addHandler(handler)
    try:
        yield path
    finally:
        for each in (logger, output_logger):
            each.removeHandler(handler)
        logger.setLevel(levels[0])
        output_logger.setLevel(levels[1])
        output_logger.propagate = levels[2]
        handler.close()


_ERROR = "error: "
"""What the command line writes before the sentence of an error (``cli.run_verb``)."""


@dataclass(frozen=True, slots=True)
class Finished:
    """How a program ended.

    Attributes:
        code: its exit code; negative for the signal that ended it.
        answer: what it wrote to stdout, where that was asked for.
        lines: the lines of what it printed otherwise.
    """

    code: int
    answer: str
    lines: tuple[str, ...]

    @property
    def complaint(self) -> str | None:
        """The sentence with which a command of ours says why it failed; None where it gave none."""
        return next((line[len(_ERROR) :] for line in reversed(self.lines) if line.startswith(_ERROR)), None)

    def as_error(self, text: str) -> EdgeEffDetError:
        """The error that a command of ours ended with, by its exit code, with this text; an EngineError for other codes."""
        kinds = {kind.exit_code: kind for kind in (AccuracyGateFailed, BackendUnavailable)}
        return kinds.get(self.code, EngineError)(text)


def run_program(
    command: Sequence[str | Path],
    lock: int | None = None,
    environment: Mapping[str, str] | None = None,
    answers: bool = False,
    tell: bool = False,
) -> Finished:
    """Run a program to its end and write what it prints into the log.

    Args:
        command: the program and its arguments.
        lock: the descriptor of ``Store.lock``, which the program then holds too.
        environment: its environment; None for this one.
        answers: whether stdout is an answer for this program and not for the log.
        tell: whether what it prints goes to the terminal too.

    Raises:
        BackendUnavailable: there is no such program, or it may not be run.
    """
    words = [str(each) for each in command]
    # A program of several lines as an argument would fill the log each time.
    output_logger.info("$ %s", printable(" ".join("…" if "\n" in each else each for each in words)))
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if answers else subprocess.STDOUT,
            env=environment,
            text=True,
            encoding="utf-8",
            errors="replace",
            pass_fds=() if lock is None else (lock,),
            preexec_fn=_die_with_parent(os.getpid()),
        )
    except OSError as error:
        raise BackendUnavailable(
            f"{words[0]} cannot be run ({error.strerror}); see whether it is installed."
        ) from error
    answer: list[str] = []
    lines: list[str] = []
    printed, answering = (process.stderr, process.stdout) if answers else (process.stdout, None)
    assert printed is not None
    reader = threading.Thread(target=lambda: answer.append(answering.read() if answering else ""))
    with process:
        try:
            reader.start()
            for line in printed:
                lines.append(line.rstrip("\n"))
                # An error becomes that of this program, which is told once.
                told = tell and not lines[-1].startswith("error: ")
                (logger if told else output_logger).info("%s", printable(lines[-1]))
            reader.join()
            process.wait()
        except BaseException:
            process.kill()
            raise
    return Finished(process.returncode, "".join(answer), tuple(lines))


_PR_SET_PDEATHSIG = 1
"""Of Linux: the signal that a process gets when the one that started it ends, prctl(2)."""


def _die_with_parent(parent: int) -> Callable[[], None] | None:
    """What a child does before it becomes its program, so that it does not outlive an installation that is killed."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def prepare() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        # It may have ended before that.
        if os.getppid() != parent:
            os._exit(1)

    return prepare
