"""Does the run learn as the reference runs did? The numerics' fast check, hours before the loss can tell."""

from __future__ import annotations

from conformance.checks.finding import Finding, Result
from conformance.metrics.curve import Comparison


def agrees(found: Comparison | None, why_not: str = "") -> Finding:
    """Whether the first steps' loss lies on the reference curve.

    Args:
        found: The comparison; None where there is no curve to compare with.
        why_not: Why there is none.

    Returns:
        The finding of check curve-agrees.
    """
    if found is None:
        return Finding("curve-agrees", Result.SKIP, why_not)
    good = found.agrees
    told = (
        f"Over the first {found.steps} steps the loss deviates from the curve of {found.runs} reference runs by "
        f"{found.relative_rms:.2%} (RMS; bound {found.bound:.2%}), at most by {found.max_deviation:+.2%} from step "
        f"{found.at_step} on (bound {found.max_bound:.2%}); a constant one of {found.detectable:.2%} would be seen"
    )
    leaves = "" if found.leaves_at is None else f"; it leaves the curve at step {found.leaves_at}"
    return Finding(
        "curve-agrees",
        Result.PASS if good else Result.FAIL,
        f"{told}{leaves}.",
        found.relative_rms,
        "",
        found.bound,
        f"one-sided t interval over {found.runs} runs of other seeds",
        1 - found.relative_rms / found.bound,
        next_step="" if good else "Compare kernels, collectives and one training step with `pytest suites/preflight`.",
    )
