"""The tests' end of ``server.py``: starts it, and runs commands by it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""Python takes UTF-8 in the locale C unless it is told not to; other locales without UTF-8 are like this one for it."""

_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PATH": os.defpath}


_LEAKS = "nanobind: leaked"
"""What a library of torch says at the end of a fork, in which ``gc.freeze`` keeps what the server imported; in a process of its own it does not."""


class NoCompiler(Exception):
    """There is no C compiler, which makes the library that counts system calls."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative for a signal.
        hung: whether it took too long and was killed.
        printed, complained: what it wrote on stdout and stderr; empty where these led elsewhere.
        left: the command lines of processes that it left behind.
    """

    code: int
    hung: bool
    printed: str
    complained: str
    left: tuple[str, ...]


def compile_calls(folder: Path) -> Path:
    """The library of ``calls.c``. Raises NoCompiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoCompiler("there is no C compiler here, which makes what counts system calls (apt install gcc)")
    library = folder / "calls.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "calls.c", "-ldl"], check=True)
    return library


class Launcher:
    """A server, which is started by the first request; a context manager."""

    def __init__(self, folder: Path, locale: Mapping[str, str] | None = None) -> None:
        """Compile the library into ``folder``, where the outputs of commands are kept for a while too. ``locale`` is in the server's environment."""
        self._folder, self._locale = folder, dict(locale or {"LC_ALL": "C.UTF-8"})
        self._library = compile_calls(folder)
        self._process: subprocess.Popen[str] | None = None
        self._traced: set[str] = set()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            assert self._process.stdin is not None and self._process.stdout is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()
            self._process.wait()
            self._process.stdout.close()

    def prepare(self, folder: Path) -> None:
        """Write the inputs of the verbs into an empty folder."""
        answer = self._ask({"prepare": str(folder)})
        if answer["code"]:
            raise RuntimeError(f"the inputs could not be made: {self._complaints()}")

    def trace(self, checkpoint: Path) -> None:
        """Trace a checkpoint's network in the server, for exports of it later."""
        if str(checkpoint) not in self._traced:
            self._traced.add(str(checkpoint))
            self._ask({"trace": str(checkpoint)})

    def run(
        self,
        words: Sequence[str],
        place: Path,
        *,
        at_once: int = 1,
        module: str = "edge_effdet.__main__",
        patience: float = 60.0,
        environment: Mapping[str, str] | None = None,
        without: Sequence[str] = (),
        log: Path | None = None,
        calls: tuple[int, int, int] | None = None,
        stop: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> list[Ended]:
        """Run a command, or the same one several times at once.

        Args:
            words: of the command, without the program.
            place: the case: the working folder, with ``home`` and ``tmp`` in it.
            at_once: how many.
            module: whose ``main`` is run.
            patience: seconds after which it is killed.
            environment: changes of the environment.
            without: variables that are not in it.
            log: where each call that changes a file is written to.
            calls: at which call what happens, as ``calls_arm`` takes it: number, action, argument.
            stop: what ends a command that would run for ever, as ``subjects.Stop`` has it.
            settings: see ``server.become``.
        """
        kept = {
            **_ENVIRONMENT,
            **self._locale,
            "HOME": str(place / "home"),
            "TMPDIR": str(place / "tmp"),
            **(environment or {}),
        }
        outputs = [(self._folder / f"stdout {number}", self._folder / f"stderr {number}") for number in range(at_once)]
        for each in (path for pair in outputs for path in pair):
            each.write_bytes(b"")
        counting = None
        if calls is not None or log is not None:
            number, action, argument = calls or (0, 0, 0)
            counting = {"number": number, "action": action, "argument": argument, "log": str(log or "")}
        usual = {
            "stdin": os.devnull,
            "shm": "",
            "drop_rights": False,
            "stranger": False,
            "fresh": False,
            "limits": {},
            **settings,
            "words": list(words),
            "cwd": str(place),
            "module": module,
            "patience": patience,
            "environment": {name: value for name, value in kept.items() if name not in without},
            "calls": counting,
            "stop": stop,
            "aside": str(self._folder / "dev"),
        }
        runs = [{"stdout": str(out), "stderr": str(err), **usual} for out, err in outputs]
        answer = self._ask({"runs": runs})
        shutil.rmtree(self._folder / "dev", ignore_errors=True)
        texts = [tuple(path.read_text(encoding="utf-8", errors="replace") for path in pair) for pair in outputs]
        return [
            Ended(each["code"], each["hung"], printed, complained.partition(_LEAKS)[0], tuple(answer["left"]))
            for each, (printed, complained) in zip(answer["runs"], texts, strict=True)
        ]

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._process is None:
            self._process = self._start()
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the server ended: {self._complaints()}")
        return json.loads(line)

    def _start(self) -> subprocess.Popen[str]:
        home = self._folder / "home"
        home.mkdir(exist_ok=True)
        environment = {**_ENVIRONMENT, **self._locale, "HOME": str(home), "LD_PRELOAD": str(self._library)}
        with (self._folder / "server.log").open("w") as complaints:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.server", str(self._library)],
                cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, text=True,
            )  # fmt: skip
        assert process.stdout is not None
        if not process.stdout.readline():
            raise RuntimeError(f"the server did not start: {self._complaints()}")
        return process

    def _complaints(self) -> str:
        return (self._folder / "server.log").read_text(errors="replace")[-2000:]
