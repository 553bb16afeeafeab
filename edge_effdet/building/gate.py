"""The accuracy gate: whether an engine may lose the AP that it loses, decided by how surely that is known."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edge_effdet.artifacts.record import Accuracy, Agreement, Verdict
from edge_effdet.errors import UsageError

DEFAULT_BUDGET = 1.0
"""Points of AP that may be lost where nothing else is said."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be lost.

    Attributes:
        points: of AP; None for no limit.
        asked: whether the user said so, or it is the default.
    """

    points: float | None = DEFAULT_BUDGET
    asked: bool = False


def parse_budget(text: str | float | None) -> Budget:
    """``1.5`` or ``none``, or None for the default; a number is one.

    Raises:
        UsageError: it is neither.
    """
    if text is None:
        return Budget()
    if isinstance(text, str) and text.strip().lower() == "none":
        return Budget(None, asked=True)
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not math.isfinite(points):
        raise UsageError(f"`max_ap_drop` {text} is neither a number of points nor none; write 1.0, for example.")
    return Budget(points, asked=True)


def judge(
    accuracy: Accuracy | None, agreement: Agreement | None, budget: Budget, tried_before: tuple[str, ...] = ()
) -> Verdict:
    """Judge what was measured of an engine.

    A drop within the budget passes. One above it fails where its whole interval (95 %) is above it too. Where the interval straddles
    the budget, these images cannot tell, and the engine passes with a remark, unless its backend does not compute its own graph. Where FP32's
    own AP is within the budget and the default one, an engine without any right box would pass: there is nothing to judge, and the text says
    so. Where no AP was measured, the engine's agreement with its graph and with FP32 decides: that needs no labels.

    Args:
        accuracy: the AP before and after, where labelled images were given.
        agreement: whether the engine finds what its graph finds, where it runs here.
        budget: what may be lost.
        tried_before: what did not pass before this engine was built, for the record.
    """
    drop = None if accuracy is None else accuracy.drop
    interval = None if accuracy is None else accuracy.drop_interval
    limit = budget.points

    def verdict(passed: bool, decided_by: str, text: str) -> Verdict:
        return Verdict(
            passed=passed,
            decided_by=decided_by,
            max_ap_drop=limit,
            budget_was="asked" if budget.asked else "default",
            text=text,
            tried_before=tried_before,
        )

    measured = "no AP was measured against FP32"
    if drop is not None:
        measured = f"it {'loses' if drop >= 0 else 'gains'} {abs(drop):.2f} points of AP"
    if limit is None:
        return verdict(True, "no limit", f"{measured}, and a budget of none lets any engine pass")
    if (
        accuracy is not None
        and accuracy.reference_AP is not None
        and 100 * accuracy.reference_AP <= min(limit, DEFAULT_BUDGET)
    ):
        told = (
            f"FP32 itself has an AP of {100 * accuracy.reference_AP:.1f} on these images, of which no engine can lose more than the budget of {limit:g} "
            "(see whether their labels are of what the detector was trained for)"
        )
        if agreement is not None:
            # It decides nothing: what a detector that has learned next to nothing finds is noise, which another precision or backend changes as well.
            told += f", and {f'it finds what {agreement.reference} finds' if agreement.right else agreement.text}"
        return verdict(True, "nothing", told)
    if drop is not None and drop > limit:
        low, high = interval or (drop, drop)
        known = f"{drop:.2f} points of AP (95 %: {low:+.2f} to {high:+.2f}), and {limit:g} are allowed"
        if not low <= limit:
            return verdict(False, "interval", f"it loses {known}")
        # So few images cannot tell, and pictures without labels can: the backend computes something else.
        if agreement is not None and not agreement.backend_right:
            return verdict(False, "agreement", f"it loses {known}, and {agreement.text}")
        return verdict(
            True,
            "interval",
            f"it loses {known}: so few images cannot tell whether that is too much, so judge it on more labelled images",
        )
    if drop is not None:
        return verdict(True, "drop", f"{measured}, and {limit:g} are allowed")
    if agreement is not None and not agreement.right:
        return verdict(False, "agreement", agreement.text)
    if agreement is not None:
        return verdict(True, "agreement", f"{measured}, and it finds what {agreement.reference} finds")
    return verdict(True, "nothing", f"{measured}, so nothing was judged")
