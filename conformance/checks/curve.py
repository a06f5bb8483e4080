"""Does the run learn as the reference runs did? The numerics' fast check, hours before the loss can tell."""

from __future__ import annotations

from conformance.checks.finding import Finding, Result
from conformance.metrics.curve import Comparison, Paired


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
    others, twins = f"{found.runs} runs of other seeds", f"{found.paired.pairs if found.paired else 0} twins"
    # What is nearest to its bound, or farthest beyond it.
    used, value, bound, over = max(
        (each.relative_rms / each.bound, each.relative_rms, each.bound, name)
        for each, name in ((found, others), (found.paired, twins))
        if each is not None
    )
    return Finding(
        "curve-agrees",
        Result.PASS if good else Result.FAIL,
        f"{told}{leaves}. {_pair(found.paired)}",
        value,
        "",
        bound,
        f"one-sided t interval over {over}",
        1 - used,
        next_step="" if good else "Compare kernels, collectives and one training step with `pytest suites/preflight`.",
    )


def _pair(found: Paired | None) -> str:
    if found is None:
        return "No reference run began with its weights: what changes less than a seed does is not seen."
    leaves = "" if found.leaves_at is None else f"; it leaves that run at step {found.leaves_at}"
    return (
        f"Over the first {found.steps} it deviates from the reference run of its seed by {found.relative_rms:.4%} "
        f"(RMS; bound {found.bound:.4%}, by {found.pairs} pairs of runs that differ in rounding); "
        f"a constant deviation of {found.detectable:.4%} would be seen{leaves}."
    )
