"""What the gate lets pass, and how it decides."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_effdet.artifacts.record import Accuracy, Agreement
from edge_effdet.building.gate import DEFAULT_BUDGET, Budget, judge, parse_budget
from edge_effdet.errors import UsageError

RIGHT = Agreement(
    distance=0.01,
    allowed=0.3,
    from_exact=0.01,
    from_exact_allowed=0.1,
    pictures=8,
    reference="the FP32 graph",
    backend_right=True,
    right=True,
    text="",
)
WRONG = replace(RIGHT, right=False, backend_right=False, text="on 8 pictures its scores differ by 40 %")
FAR = replace(RIGHT, right=False, text="on 8 pictures it is 76 % from FP32")
MEASURED = Accuracy(AP=0.4, AP50=0.8, images=72, split="test", measured_on="engine", data_sha256="ab" * 32)


def measured(drop, interval=None, agreement=None):
    return replace(MEASURED, drop=drop, drop_interval=interval), agreement


def blind(reference, agreement):
    return replace(MEASURED, reference_AP=reference, drop=0.0), agreement


@pytest.mark.parametrize(
    ("given", "budget", "passed", "decided_by"),
    [
        (measured(0.3, (-0.1, 0.7)), Budget(), True, "drop"),
        (measured(-0.3, (-0.8, 0.2)), Budget(), True, "drop"),
        (measured(1.0, (0.5, 1.5)), Budget(), True, "drop"),
        # The whole interval is above the budget.
        (measured(11.95, (10.8, 13.0)), Budget(), False, "interval"),
        (measured(1.4, (1.1, 1.7)), Budget(), False, "interval"),
        # It straddles the budget: so few images cannot tell.
        (measured(1.4, (0.6, 2.2)), Budget(), True, "interval"),
        (measured(1.4, (0.6, 2.2)), Budget(0.5, asked=True), False, "interval"),
        (measured(1.4), Budget(), False, "interval"),
        (measured(1.4, (float("nan"), float("nan"))), Budget(), False, "interval"),
        (measured(12.0, (11.0, 13.0)), Budget(None, asked=True), True, "no limit"),
        (measured(-0.5, (-0.9, -0.2)), Budget(-0.4, asked=True), True, "drop"),
        # So few images cannot tell, and the pictures can.
        (measured(8.0, (-2.0, 18.0), WRONG), Budget(), False, "agreement"),
        (measured(8.0, (-2.0, 18.0), RIGHT), Budget(), True, "interval"),
        # AP that was measured goes before agreement.
        (measured(0.3, (-0.1, 0.7), WRONG), Budget(), True, "drop"),
        ((None, WRONG), Budget(), False, "agreement"),
        ((None, RIGHT), Budget(), True, "agreement"),
        (measured(None, None, WRONG), Budget(), False, "agreement"),
        ((None, WRONG), Budget(None, asked=True), True, "no limit"),
        ((None, None), Budget(), True, "nothing"),
        # Of so low an AP nothing can be lost that the budget does not allow, and what is found is noise.
        (blind(0.0, WRONG), Budget(), True, "nothing"),
        (blind(0.01, RIGHT), Budget(), True, "nothing"),
        (blind(0.0, None), Budget(), True, "nothing"),
        (blind(0.02, WRONG), Budget(), True, "drop"),
        (blind(0.02, WRONG), Budget(50, asked=True), True, "drop"),
        (blind(0.0, WRONG), Budget(-0.5, asked=True), False, "interval"),
        (blind(0.0, WRONG), Budget(None, asked=True), True, "no limit"),
    ],
)
def test_verdict(given, budget, passed, decided_by):
    verdict = judge(*given, budget)
    assert (verdict.passed, verdict.decided_by) == (passed, decided_by)
    assert verdict.max_ap_drop == budget.points
    assert verdict.budget_was == ("asked" if budget.asked else "default")


def test_the_remark_says_how_sure_it_is():
    text = judge(*measured(1.4, (0.6, 2.2)), Budget()).text
    assert "1.40 points of AP (95 %: +0.60 to +2.20), and 1 are allowed" in text and "few images cannot tell" in text
    assert judge(None, WRONG, Budget()).text == WRONG.text
    for agreement, ended in (
        (RIGHT, "and it finds what the FP32 graph finds"),
        (FAR, f"and {FAR.text}"),
        (WRONG, f"and {WRONG.text}"),
    ):
        text = judge(*blind(0.004, agreement), Budget()).text
        assert text.startswith(
            "FP32 itself has an AP of 0.4 on these images, of which no engine can lose more than the budget of 1 ("
        )
        assert text.endswith(ended)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        (None, Budget(DEFAULT_BUDGET, asked=False)),
        ("1.5", Budget(1.5, asked=True)),
        ("-0.5", Budget(-0.5, asked=True)),
        ("none", Budget(None, asked=True)),
        ("None", Budget(None, asked=True)),
        (1.5, Budget(1.5, asked=True)),
    ],
)
def test_budget(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["much", "", "nan", "inf", "1,5"])
def test_a_budget_that_is_no_number_is_refused(text):
    with pytest.raises(UsageError, match="neither a number of points nor none"):
        parse_budget(text)
