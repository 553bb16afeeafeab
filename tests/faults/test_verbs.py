"""The verbs, each in some of the circumstances, and whether what tries them finds what is wrong. ``benchmarks/faults.py`` tries all."""

from __future__ import annotations

import pytest

from tests.faults.circumstances import NAMES
from tests.faults.matrix import FRESH, Try, sample_tries
from tests.faults.subjects import Subject

QUICK = 6
"""How many are not left to the slow suite."""

TRIES = sample_tries(seed=18, count=44)


@pytest.mark.parametrize("tried", TRIES[:QUICK], ids=lambda tried: tried.name)
def test_a_verb_holds(tried, hold):
    hold(tried)


@pytest.mark.slow
@pytest.mark.parametrize("tried", TRIES[QUICK:], ids=lambda tried: tried.name)
def test_a_verb_holds_in_more_circumstances(tried, hold):
    hold(tried)


def careless(way: str) -> Subject:
    # A machine may do much else meanwhile; only what never ends is waited for in vain.
    return Subject(way, "careless", way, module="tests.faults.careless", patience=2 if way == "hang" else 30)


@pytest.mark.parametrize(
    ("way", "circumstance", "call", "said"),
    [
        ("write_in_place", "kill", 3, "out/a.json is not whole"),
        ("write_in_place", "full", 3, "out/a.json is not whole"),
        ("leave_something", "stdin", None, "was left behind"),
        ("change_what_is_read", "stdin", None, "in/clip.mp4, which is read, was changed"),
        ("raise_an_error", "stdin", None, "Traceback"),
        ("hang", "stdin", None, "it did not end within 2 s"),
        ("leave_a_process", "stdin", None, "processes went on: sleep 600"),
        ("forget_to_write", "full", 3, "out/a.json is missing"),
    ],
)
def test_what_is_wrong_is_found(bench, way, circumstance, call, said):
    subject = careless(way)
    # It does not end as it should where nothing hampers it either.
    bench.adopt(subject, careless("write_well"))
    assert said in "\n".join(bench.run(Try(subject, NAMES[circumstance], call=call)).problems)


@pytest.mark.parametrize("circumstance", ["kill", "full", "broken", "stdin", "two"])
def test_a_careful_program_holds(bench, hold, circumstance):
    subject = careless("write_well")
    calls = len(bench.reference(subject, FRESH).calls) if NAMES[circumstance].call is not None else 1
    for number in sorted({1, (calls + 1) // 2, calls}):
        hold(Try(subject, NAMES[circumstance], call=number))


def test_calls_of_native_code_are_seen(bench):
    calls = bench.reference(careless("write_by_native_code"), FRESH).calls
    assert {"open out/stream", "write out/stream", "close out/stream", "open out/copy", "write out/copy"} <= set(calls)
    assert {"open out/base.sqlite", "write out/base.sqlite", "fsync out/base.sqlite"} <= set(calls)
