"""Runs the commands of ``subjects`` in the circumstances of ``circumstances``, and judges what is left.

What holds is, in each of them: the command ends in time and with an exit code that is right; it complains in one sentence and without a traceback; no process of
its own goes on; what it read is as it was; each file under a final name is whole, and what is there from an earlier run is there still; nothing else is left
behind, of a killed run at the latest after the next one; and the next run, which nothing hampers, ends well.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import file_sha256
from edge_effdet.artifacts.temporary import is_temporary
from tests.faults.circumstances import CIRCUMSTANCES, Circumstance
from tests.faults.launcher import C_LOCALE, Ended, Launcher
from tests.faults.subjects import SUBJECTS, Subject, steady_name
from tests.faults.wholeness import find_damage

FRESH, EARLIER = "fresh", "earlier"
"""What a case starts with: nothing, or the outputs of an earlier run."""

UNICODE = "Bilder äöü 鳥"
"""The folder of a case whose names have letters beyond ASCII."""

ANOTHER_USER = 65534

_ERROR_CODES = (2, 3, 4)
_TROUBLES = ("Traceback (most recent call last)", "Exception ignored in", "Fatal Python error", "terminate called")
_SLACK = 64 * 1024
"""Bytes that a file system needs beside its files."""


@dataclass(frozen=True, slots=True)
class Try:
    """One command in one circumstance.

    Attributes:
        subject, circumstance: which.
        start: ``FRESH`` or ``EARLIER``.
        variant: which of the circumstance's settings or sizes of a disk.
        share: for what happens at a call, which one: 0 for the first, 1 for the last; None for another circumstance.
        call: the number of the call; None to take it by the share.
    """

    subject: Subject
    circumstance: Circumstance
    start: str = FRESH
    variant: int = 0
    share: float | None = None
    call: int | None = None

    @property
    def name(self) -> str:
        """For people."""
        parts = [self.subject.name, self.circumstance.name]
        if self.call is not None:
            parts.append(f"call {self.call}")
        elif self.share is not None:
            parts.append(f"{100 * self.share:.0f} %")
        elif len(self.circumstance.settings) > 1 or self.circumstance.disk:
            parts.append(str(self.variant))
        return ", ".join([*parts, *(["over earlier outputs"] if self.start == EARLIER else [])])


@dataclass(slots=True)
class Reference:
    """What a run does that nothing hampers.

    Attributes:
        calls: the calls that change files, in their order, as ``open /path``.
        before, after: what is in the case before and after it, by the path in it; for files their SHA-256, for folders None.
        contents: the contents of the outputs.
        added: bytes that the case has more afterwards.
    """

    calls: tuple[str, ...]
    before: dict[str, str | None]
    after: dict[str, str | None]
    contents: dict[str, bytes]
    added: int

    @property
    def outputs(self) -> set[str]:
        """The files that are new or changed."""
        return {name for name, digest in self.after.items() if digest and self.before.get(name) != digest}


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a try went.

    Attributes:
        tried: what was tried.
        problems: what is not as it has to be; empty where it held.
        at: the call at which something happened; empty elsewhere.
    """

    tried: Try
    problems: tuple[str, ...]
    at: str = ""


class Unavailable(Exception):
    """This machine does not permit a circumstance."""


class Bench:
    """Cases and references in a folder; a context manager."""

    def __init__(self, folder: Path, inputs: Path | None = None, subjects: Sequence[Subject] = SUBJECTS) -> None:
        """``inputs`` are what ``inputs.write_inputs`` wrote; None to write them when they are needed."""
        self.folder = folder
        self._given, self._subjects = inputs, subjects
        self._opened = contextlib.ExitStack()
        self._launchers: dict[bool, Launcher] = {}
        self._references: dict[tuple[str, str], Reference] = {}
        self._number = 0

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *details: Any) -> None:
        self._opened.close()

    def launcher(self, c_locale: bool = False) -> Launcher:
        """What runs commands, in the locale C.UTF-8 or C."""
        if c_locale not in self._launchers:
            folder = self.folder / ("c locale" if c_locale else "utf-8")
            folder.mkdir(parents=True)
            launcher = Launcher(folder, C_LOCALE if c_locale else None)
            self._launchers[c_locale] = self._opened.enter_context(launcher)
        return self._launchers[c_locale]

    @property
    def inputs(self) -> Path:
        """The inputs of all commands, which no test changes."""
        if self._given is None:
            self._given = self.folder / "inputs"
            self._given.mkdir(parents=True)
            self.launcher().prepare(self._given)
        return self._given

    def reference(self, subject: Subject, start: str) -> Reference:
        """What a run does that nothing hampers. Raises AssertionError where it fails."""
        key = subject.name, start
        if key not in self._references:
            case = self._new_case(subject, start, self.folder / "reference")
            before, size = list_files(case), size_of(case)
            log = self.folder / "reference.log"
            (ended,) = self._run(subject, case, log=log)
            after = list_files(case)
            lines = log.read_text(errors="replace").splitlines()
            calls = tuple(line.partition(" ")[2].replace(f"{case}/", "") for line in lines)
            contents = {name: (case / name).read_bytes() for name in after if (case / name).is_file()}
            reference = Reference(calls, before, after, contents, size_of(case) - size)
            expected = (0,)
            problems = [*_judge_end(ended, expected, subject), *_judge_files(case, subject, reference)]
            missed = [
                name for name in reference.outputs if not subject.is_optional(name) and not _was_seen(name, calls)
            ]
            problems += [f"{name} was written by a call that is not counted" for name in missed]
            assert not problems, f"{subject.name} fails where nothing hampers it: {problems}\n{ended.complained}"
            if start == FRESH:
                # What lies in the folder for temporary files is gone by the time of another run.
                shutil.rmtree(case / "tmp")
                (case / "tmp").mkdir()
                self._template(subject).parent.mkdir(parents=True, exist_ok=True)
                case.rename(self._template(subject))
            else:
                shutil.rmtree(case)
            self._references[key] = reference
        return self._references[key]

    def adopt(self, subject: Subject, other: Subject) -> None:
        """Let a command that has no good run be held against that of another one."""
        self._references[subject.name, FRESH] = self.reference(other, FRESH)

    def run(self, tried: Try) -> Verdict:
        """Run a command in a circumstance, judge what is left, run it again, and judge that. Raises Unavailable."""
        subject, circumstance = tried.subject, tried.circumstance
        require_permitted(circumstance)
        reference = self.reference(subject, FRESH)
        if tried.start == EARLIER:
            reference = self.reference(subject, EARLIER)
        if circumstance.call is not None and not reference.calls:
            raise Unavailable(f"{subject.name} changes no files")
        self._number += 1
        place = self.folder / f"case {self._number}"
        at, calls = "", None
        if circumstance.call is not None:
            number = tried.call or max(1, math.ceil((tried.share or 0) * len(reference.calls)))
            at = reference.calls[number - 1] if number <= len(reference.calls) else ""
            calls = number, circumstance.call.action, circumstance.call.argument
        with self._disk(tried, reference, place) as case:
            problems = self._run_hampered(tried, case, reference, calls)
            remount(case, read_only=False) if circumstance.read_only else None
            problems += self._run_again(tried, case, reference)
        return Verdict(tried, tuple(problems), at)

    def _run_hampered(
        self, tried: Try, case: Path, reference: Reference, calls: tuple[int, int, int] | None
    ) -> list[str]:
        subject, circumstance = tried.subject, tried.circumstance
        if circumstance.foreign:
            os.chown(case / "out", ANOTHER_USER, ANOTHER_USER)
        before = list_files(case)
        settings = dict(circumstance.settings[tried.variant if not circumstance.disk else 0])
        ended = self._run(
            subject, case, calls=calls, at_once=circumstance.at_once, c_locale=circumstance.unicode, **settings
        )
        problems = []
        for each in ended:
            problems += _judge_end(each, circumstance.codes_of(subject), subject, settings)
        if circumstance.at_once > 1 and all(each.code for each in ended):
            problems.append(f"none ended well: {[each.complained[-300:] for each in ended]}")
        complete = any(each.code == 0 for each in ended)
        problems += _judge_inputs(case, before)
        problems += _judge_files(case, subject, reference, complete, leftovers=not circumstance.killed)
        return problems

    def _run_again(self, tried: Try, case: Path, reference: Reference) -> list[str]:
        """What is wrong with the next run, on the same disk with room on it and rights."""
        subject = tried.subject
        if tried.circumstance.foreign:
            os.chown(case / "out", os.geteuid(), os.getegid())
        if tried.circumstance.disk:
            make_room(case)
        before = list_files(case)
        whole = not subject.again and all(name in before for group in subject.together for name in group)
        (ended,) = self._run(subject, case, c_locale=tried.circumstance.unicode)
        # It may be complete already, and such a verb never writes over outputs.
        expected = (0, 2) if whole else (0,)
        problems = [*_judge_end(ended, expected, subject), *_judge_inputs(case, before)]
        problems += _judge_files(case, subject, reference, ended.code == 0, leftovers=True)
        return [f"the next run: {problem}" for problem in problems]

    def _run(self, subject: Subject, case: Path, c_locale: bool = False, **settings: Any) -> list[Ended]:
        launcher = self.launcher(c_locale)
        if subject.verb == "export":
            launcher.trace(self.inputs / "m.safetensors")
        stop = None if subject.stop is None else {"after": subject.stop.after, "seconds": subject.stop.seconds}
        words = subject.words.split()
        return launcher.run(words, case, module=subject.module, patience=subject.patience, stop=stop, **settings)

    def _template(self, subject: Subject) -> Path:
        """The case of a run that nothing hampered."""
        return self.folder / "templates" / re.sub(r"\W+", "-", subject.name)

    def _new_case(self, subject: Subject, start: str, place: Path) -> Path:
        """Make the folder of a case with what it starts with."""
        if start == EARLIER:
            self.reference(subject, FRESH)
            shutil.copytree(self._template(subject), place, symlinks=True)
            return place
        for name in ("home", "tmp", "out"):
            (place / name).mkdir(parents=True)
        shutil.copytree(self.inputs, place / "in")
        return place

    @contextlib.contextmanager
    def _disk(self, tried: Try, reference: Reference, place: Path) -> Iterator[Path]:
        """The case, on a file system of its own where the circumstance is one of the disk."""
        circumstance = tried.circumstance
        case = place / UNICODE if circumstance.unicode else place / "case"
        place.mkdir()
        mounted = bool(circumstance.disk) or circumstance.read_only
        try:
            if mounted:
                case.mkdir()
                mount_memory(case)
            # copytree makes the folder, but one that is mounted is there.
            made = self._new_case(tried.subject, tried.start, place / "made")
            if mounted:
                shutil.copytree(made, case, symlinks=True, dirs_exist_ok=True)
                shutil.rmtree(made)
            else:
                made.rename(case)
            if circumstance.disk:
                left = int(circumstance.disk[tried.variant] * max(reference.added, 0))
                used = shutil.disk_usage(case).used
                remount(case, size=used + left)
            if circumstance.read_only:
                remount(case, read_only=True)
            yield case
        finally:
            if mounted:
                subprocess.run(["umount", "--lazy", case], check=True)
            shutil.rmtree(place)


def mount_memory(place: Path) -> None:
    """Mount a file system in memory. Raises Unavailable."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", place], capture_output=True, text=True)
    if done.returncode:
        raise Unavailable(f"no file system can be mounted here ({done.stderr.strip()})")


def remount(place: Path, size: int = 1 << 30, read_only: bool = False) -> None:
    """Change a file system in memory. A size is rounded up to pages."""
    options = f"remount,size={size},{'ro' if read_only else 'rw'}"
    subprocess.run(["mount", "-o", options, place], check=True, capture_output=True)


def make_room(place: Path) -> None:
    remount(place)


def require_permitted(circumstance: Circumstance) -> None:
    """Raises Unavailable where a circumstance needs root, and this is none."""
    if circumstance.rights and os.geteuid() != 0:
        raise Unavailable("only root can mount file systems and become another user")


def list_files(place: Path) -> dict[str, str | None]:
    """What is in a folder, by the path in it: the SHA-256 of files, None for folders."""
    return {
        steady_name(path.relative_to(place).as_posix()): file_sha256(path) if path.is_file() else None
        for path in sorted(place.rglob("*"))
    }


def size_of(place: Path) -> int:
    """Bytes of the blocks of all files."""
    return sum(512 * path.lstat().st_blocks for path in place.rglob("*"))


def is_input(name: str) -> bool:
    return name.startswith("in/")


def is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.removeprefix("home/.cache").split("/"))


def _was_seen(name: str, calls: Sequence[str]) -> bool:
    """Whether a call named a file, or a folder that it came with."""
    named = {steady_name(call.partition(" ")[2]) for call in calls}
    parts = name.split("/")
    return any("/".join(parts[:count]) in named for count in range(2, len(parts) + 1))


def _judge_end(
    ended: Ended, expected: Sequence[int], subject: Subject, settings: dict[str, Any] | None = None
) -> list[str]:
    """What is wrong with how a command ended."""
    problems, told = [], ended.complained
    if ended.hung:
        return [f"it did not end within {subject.patience:g} s: {told[-500:]}"]
    if ended.code not in expected:
        problems.append(f"exit code {ended.code} and not {' or '.join(map(str, expected))}: {told[-800:]}")
    problems += [f"{trouble!r} on stderr: {told[-1500:]}" for trouble in _TROUBLES if trouble in told]
    if ended.code in _ERROR_CODES and (settings or {}).get("stderr") != "closed":
        sentences = [line for line in told.splitlines() if line.startswith("error: ")]
        if len(sentences) != 1:
            problems.append(f"exit code {ended.code} with {len(sentences)} sentences: {told[-800:]}")
    if ended.left:
        problems.append(f"processes went on: {'; '.join(ended.left)}")
    return problems


def _judge_inputs(case: Path, before: dict[str, str | None]) -> list[str]:
    now = list_files(case)
    return [
        f"{name}, which is read, was {'changed' if name in now else 'removed'}"
        for name, digest in before.items()
        # What a killed run left beside an input may go.
        if is_input(name) and digest and now.get(name) != digest and not is_temporary(Path(name).name)
    ]


def _judge_files(
    case: Path, subject: Subject, reference: Reference, complete: bool = True, leftovers: bool = True
) -> list[str]:
    """What is wrong with the files of a case.

    Args:
        case: its folder.
        subject: what ran.
        reference: a run that nothing hampered.
        complete: whether the run ended well, so that all outputs have to be there.
        leftovers: whether nothing may be there that such a run does not leave.
    """
    problems, now = [], list_files(case)
    outputs = {name for name in reference.outputs if not is_input(name)}
    for name in sorted(now):
        path = case / name
        if is_input(name) or is_hidden(name) or not path.is_file() or subject.is_optional(name):
            continue
        damage = find_damage(path, reference.contents.get(name))
        if damage:
            problems.append(f"{name} is not whole: {damage}")
    for group in subject.together:
        there = [name for name in group if name in now]
        if there and len(there) < len(group):
            problems.append(f"of {', '.join(group)} there is {', '.join(there)} alone")
    required = (
        outputs if complete else {name for name, digest in reference.before.items() if digest and not is_input(name)}
    )
    problems += [
        f"{name} is missing" if complete else f"{name} of the earlier run is gone"
        for name in sorted(required - now.keys())
        if not subject.is_optional(name) and (complete or name not in subject.replaced)
    ]
    if leftovers:
        usual = {name for name in (*reference.before, *reference.after) if not name.startswith("tmp/")}
        problems += [
            f"{name} was left behind"
            for name in sorted(now.keys() - usual)
            if not subject.is_optional(name) or is_hidden(name)
        ]
    return problems


def tries_of(subject: Subject, circumstance: Circumstance, reference: dict[str, Reference], most: int) -> list[Try]:
    """All tries of a command in a circumstance.

    Args:
        subject: the command.
        circumstance: how it is hampered.
        reference: its runs that nothing hampers, by what they start with.
        most: calls at which it is tried, evenly spread over all, with each start.
    """
    if circumstance.only and subject.name not in circumstance.only:
        return []
    starts = [FRESH, EARLIER] if subject.again else [FRESH]
    if circumstance.call is not None:
        found = []
        for start in starts:
            calls = len(reference[start].calls)
            chosen = (
                sorted({round(1 + place * (calls - 1) / max(1, most - 1)) for place in range(most)}) if calls else []
            )
            found += [Try(subject, circumstance, start, call=call) for call in chosen if call <= calls]
        return found
    variants = range(len(circumstance.disk) or len(circumstance.settings))
    if circumstance.disk or circumstance.read_only or circumstance.foreign:
        return [Try(subject, circumstance, start, variant) for start in starts for variant in variants]
    return [Try(subject, circumstance, FRESH, variant) for variant in variants]


def sample_tries(seed: int, count: int) -> list[Try]:
    """Some tries, in which each circumstance and each command comes about equally often."""
    chance = random.Random(seed)
    cells = [
        (subject, circumstance)
        for subject in SUBJECTS
        for circumstance in CIRCUMSTANCES
        if not circumstance.only or subject.name in circumstance.only
    ]
    chance.shuffle(cells)
    seen: dict[str, int] = {}
    chosen = []
    for _ in range(count):
        cell = min(cells, key=lambda each: seen.get(each[0].name, 0) + seen.get(each[1].name, 0))
        cells.remove(cell)
        subject, circumstance = cell
        for name in (subject.name, circumstance.name):
            seen[name] = seen.get(name, 0) + 1
        start = chance.choice([FRESH, EARLIER]) if subject.again else FRESH
        share = chance.random() if circumstance.call is not None else None
        variant = chance.randrange(len(circumstance.disk) or len(circumstance.settings))
        chosen.append(Try(subject, circumstance, start, variant, share))
    return chosen
