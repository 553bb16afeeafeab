"""How each verb bears being killed or hampered: a table of verbs and circumstances, tried, held and lost.

python -m benchmarks.faults

Each verb runs on small inputs, with small networks, in every circumstance of ``tests/faults/circumstances.py``. What happens at a system call is tried at the
calls of the verb in turn, with nothing there before and over the outputs of an earlier run. It takes hours; with ``--journal`` it goes on where it was ended.
The table is written into ``docs/faults.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency import positive
from benchmarks.machine import RESULTS, save_result
from benchmarks.parser import make_parser
from benchmarks.processes import ROOT
from edge_effdet.artifacts import write_text
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.errors import InputError
from tests.faults.circumstances import CIRCUMSTANCES
from tests.faults.matrix import EARLIER, FRESH, Bench, Try, Unavailable, tries_of
from tests.faults.subjects import SUBJECTS, Subject

PAGE = ROOT / "docs" / "faults.md"

_SHOWN = 400
"""Letters that the page has of one problem."""

Row = Mapping[str, Any]
"""A try and how it went: verb, command, circumstance, start, call, problems."""


class _Enough(Exception):
    """The minutes are over."""


def run_tries(verbs: Sequence[str], kills: int, calls: int, journal: Path, minutes: float) -> list[Row]:
    """Try everything that the journal does not have yet.

    Args:
        verbs: those that are tried; empty for all.
        kills: system calls at which a command is killed, at most, with each start.
        calls: those at which something else happens.
        journal: a line of JSON for each try; what it has is not tried again.
        minutes: after which no more is begun; 0 for never.

    Raises:
        _Enough: the minutes are over.
    """
    rows = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()] if journal.exists() else []
    done, until = {row["name"] for row in rows}, time.monotonic() + 60 * minutes

    def note(row: Row) -> None:
        rows.append(row)
        with journal.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")

    with tempfile.TemporaryDirectory(prefix="faults-") as folder, Bench(Path(folder)) as bench:
        for subject in SUBJECTS:
            # The references are runs too, and are made only where something is left to try.
            finished = f"{subject.name}: all is tried"
            if finished in done or (verbs and subject.verb not in verbs):
                continue
            for tried in _all_tries(bench, subject, kills, calls):
                if minutes and time.monotonic() > until:
                    raise _Enough
                if tried.name not in done:
                    note({"name": tried.name, **_try(bench, tried)})
            note({"name": finished})
    return [row for row in rows if "circumstance" in row]


def _all_tries(bench: Bench, subject: Subject, kills: int, calls: int) -> list[Try]:
    starts = (FRESH, EARLIER) if subject.again else (FRESH,)
    references = {start: bench.reference(subject, start) for start in starts}
    return [
        tried
        for circumstance in CIRCUMSTANCES
        for tried in tries_of(subject, circumstance, references, kills if circumstance.name == "kill" else calls)
    ]


def _try(bench: Bench, tried: Try) -> dict[str, Any]:
    about = {
        "verb": tried.subject.verb,
        "command": tried.subject.name,
        "circumstance": tried.circumstance.name,
        "start": tried.start,
        "call": tried.call,
    }
    try:
        verdict = bench.run(tried)
    except Unavailable as error:
        return {**about, "unavailable": str(error), "problems": []}
    return {**about, "at": verdict.at, "problems": list(verdict.problems)}


def count(rows: Sequence[Row]) -> dict[str, dict[str, list[int]]]:
    """By circumstance and verb: how often it was tried, and how often it held."""
    counts: dict[str, dict[str, list[int]]] = {}
    for row in rows:
        if "unavailable" in row:
            continue
        cell = counts.setdefault(row["circumstance"], {}).setdefault(row["verb"], [0, 0])
        cell[0] += 1
        cell[1] += not row["problems"]
    return counts


def lost_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What did not hold, the same problem of a command in a circumstance once, with how often."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        if row["problems"]:
            key = row["command"], row["circumstance"]
            entry = found.setdefault(
                key,
                {
                    "command": key[0],
                    "circumstance": key[1],
                    "times": 0,
                    "at": row.get("at", ""),
                    "problem": row["problems"][0],
                },
            )
            entry["times"] += 1
    return list(found.values())


def cells(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> list[list[str]]:
    """The table: a row for each circumstance, a column for each verb; "12" where all of 12 tries held, else "11 of 12"."""
    verbs = list(dict.fromkeys(subject.verb for subject in SUBJECTS))
    verbs = [verb for verb in verbs if any(verb in row for row in counts.values())]
    rows = [["", *verbs]]
    for circumstance in CIRCUMSTANCES:
        if circumstance.name not in counts:
            continue
        # In a table of Markdown a bar would begin a cell.
        row = [circumstance.title.replace("|", "\\|")]
        for verb in verbs:
            tried, held = counts[circumstance.name].get(verb, (0, 0))
            row.append("-" if not tried else str(tried) if tried == held else f"{held} of {tried}")
        rows.append(row)
    return rows


def page_text(result: Mapping[str, Any]) -> str:
    """The page of a result file."""
    rows = cells(result["counts"])
    machine = result["machine"]
    lines = [
        "# Faults: how the verbs bear being killed or hampered",
        "",
        f"`{result['command']}` wrote this page on {result['measured_at'][:10]}, on {machine['cores']} cores of {machine['processor']}, with Python "
        f"{machine['python']}, onnxruntime {machine['packages'].get('onnxruntime', '-')} and torch {machine['packages'].get('torch', '-')}.",
        "",
        f"Tried {result['tried']} times; held {result['held']} times; lost {result['tried'] - result['held']} times.",
        "",
        *_EXPLANATION,
        "",
        f"| {' | '.join(rows[0])} |",
        f"|{'---|' * len(rows[0])}",
        *(f"| {' | '.join(row)} |" for row in rows[1:]),
        "",
        "## What was lost",
        "",
    ]
    titles = {circumstance.name: circumstance.title for circumstance in CIRCUMSTANCES}
    if not result["lost"]:
        lines.append("Nothing.")
    for entry in result["lost"]:
        problem = " ".join(entry["problem"].split()).replace("`", "'")
        if len(problem) > _SHOWN:
            problem = f"{problem[:_SHOWN]}…"
        at = f" (`{entry['at']}`)" if entry["at"] else ""
        lines.append(f"- **{entry['command']}**, {titles[entry['circumstance']]}, {entry['times']}x{at}: `{problem}`")
    if result["unavailable"]:
        lines += ["", "## What was not tried here", "", *(f"- {reason}" for reason in result["unavailable"])]
    return "\n".join([*lines, ""])


_EXPLANATION = (
    "A number is how often a verb was tried in a circumstance and held; where it did not hold each time, both numbers are given. It held if all of this is true:",
    "",
    "- the command ended within its time, with the [exit code](architecture.md#exit-codes) that is documented, with one sentence on stderr where that is not 0, "
    "and without a traceback;",
    "- no process of its own went on;",
    "- what it read is byte for byte as it was;",
    "- each file under a final name is whole: it is read to its end, and engines, checkpoints and bundles have the hashes that they name;",
    "- where an earlier run had left outputs, they are there or whole new ones are, an engine always with its own record;",
    "- nothing else was left behind, by a run that was killed at the latest after the next one;",
    "- the next run of the same command, which nothing hampered, ended well.",
    "",
    "The command above says at how many system calls each verb was tried at most. A journal may hold more tries, from runs that asked for more, and fewer, from runs "
    "that were ended; what it holds is what is counted.",
    "",
    "What happens at a system call happens before a call that opens a file for writing, writes, truncates, synchronises, renames, links or removes a file or "
    "a folder, in the command's own folders; calls of native libraries count too (`tests/faults/calls.c`). The networks are small ones with random weights, the "
    "inputs a dozen of drawn pictures, the backends onnxruntime and OpenVINO on the CPU. What a power cut does to a disk is not tried, nor file systems of a "
    "network. Installations on a device are killed by [tests and a benchmark of their own](../benchmarks/README.md).",
)


def _newest() -> Path:
    found = sorted(RESULTS.glob("*/*-faults.json"), key=lambda path: path.name)
    if not found:
        raise InputError(f"There is no result file of this benchmark below {RESULTS}; run it first.")
    return found[-1]


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.page:
        result = json.loads(_newest().read_text(encoding="utf-8"))
        write_text(PAGE, page_text(result))
        return Result(f"{PAGE} is that of {_newest()}", result)
    with tempfile.TemporaryDirectory() as folder:
        journal = arguments.journal or Path(folder) / "journal.jsonl"
        try:
            rows = run_tries(arguments.verbs, arguments.kills, arguments.calls, journal, arguments.minutes)
        except _Enough:
            done = len(journal.read_text(encoding="utf-8").splitlines())
            return Result(
                f"{done} tries are in {journal}; give the command again to go on", {"tries": done, "ended": False}
            )
    counts = count(rows)
    result = {
        "tried": sum(cell[0] for row in counts.values() for cell in row.values()),
        "held": sum(cell[1] for row in counts.values() for cell in row.values()),
        "counts": counts,
        "lost": lost_rows(rows),
        "unavailable": sorted({f"{row['circumstance']}: {row['unavailable']}" for row in rows if "unavailable" in row}),
    }
    text = f"{table(cells(counts))}\n\ntried {result['tried']}, held {result['held']}, lost {result['tried'] - result['held']}"
    if arguments.save:
        path = save_result("faults", result)
        write_text(PAGE, page_text(json.loads(path.read_text(encoding="utf-8"))))
        text += f"\n\n{path}\n{PAGE}"
    return Result(text, {**result, "ended": True})


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("faults", "How each verb bears being killed or hampered.")
    parser.add_argument("--verbs", nargs="+", default=[], metavar="VERB", help="try these alone (default: all)")
    parser.add_argument(
        "--kills", type=positive, default=40, metavar="N",
        help="kill a command at most at so many of its system calls, with each start (default: 40)",
    )  # fmt: skip
    parser.add_argument(
        "--calls", type=positive, default=8, metavar="N",
        help="let something else happen at so many of them at most (default: 8)",
    )  # fmt: skip
    parser.add_argument(
        "--journal", type=Path, metavar="F", help="keep each try in this file, and go on with what it has"
    )
    parser.add_argument(
        "--minutes", type=float, default=0, metavar="N", help="with --journal: begin no more after so long"
    )
    parser.add_argument("--page", action="store_true", help="write the page of the newest result file, and run nothing")
    parser.add_argument(
        "--save", action=argparse.BooleanOptionalAction, default=True, help="write the result file and the page"
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
