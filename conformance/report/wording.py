"""Words and numbers that the terminal and the page share."""

from __future__ import annotations

from conformance.checks.finding import Verdict

VERDICT_MEANINGS = {
    Verdict.CONFORMANT: "every required check passed",
    Verdict.REHEARSAL: "every required check passed, on a workload that is not official; it certifies nothing",
    Verdict.INCONCLUSIVE: "a required check could not be decided",
    Verdict.NOT_CONFORMANT: "a check failed",
}


def number(value: float | None, digits: int | None = None) -> str:
    """A figure for people: four significant digits, thousands separated.

    Args:
        value: The figure; None when there is none.
        digits: Digits after the point, instead.

    Returns:
        The text.
    """
    if value is None:
        return "-"
    if digits is not None:
        return f"{value:,.{digits}f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
