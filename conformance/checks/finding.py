"""What one check found, and the verdict over many: values only, no I/O."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Result(str, Enum):
    """The four results of a check; ERROR means that the check could not be made."""

    PASS = "PASS"
    FAIL = "FAIL"
    ERROR = "ERROR"
    SKIP = "SKIP"


class Verdict(str, Enum):
    """What may be claimed for a run as a whole."""

    CONFORMANT = "CONFORMANT"
    NOT_CONFORMANT = "NOT_CONFORMANT"
    INCONCLUSIVE = "INCONCLUSIVE"
    REHEARSAL = "REHEARSAL"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Args:
        check: Id of the check, as in spec/checks.toml.
        result: PASS, FAIL, ERROR or SKIP.
        message: One sentence for the engineer: measured, needed, where.
        value: The measured value, in ``unit``; None when there is none.
        unit: Unit of ``value`` and ``limit``; empty for a dimensionless value.
        limit: What the value was held against.
        limit_source: Where the limit comes from.
        margin: (value - limit) / limit, signed so that a positive margin is good.
        evidence: Run-directory path of the file that the value was read from.
        next_step: What to do about a result that is not PASS.
    """

    check: str
    result: Result
    message: str
    value: float | str | None = None
    unit: str = ""
    limit: float | str | None = None
    limit_source: str = ""
    margin: float | None = None
    evidence: str = ""
    next_step: str = ""


def verdict(findings: Iterable[Finding], required: Iterable[str], official: bool) -> Verdict:
    """Judge a run from its findings.

    A required check that is absent, SKIP or ERROR leaves the verdict open; nothing tested is never conformant. Only a
    rehearsal may skip a required check, for what it has no limit for: it certifies nothing.

    Args:
        findings: Every finding of the run.
        required: Ids of the checks that conformance rests on.
        official: Whether the workload is one of the benchmark's own; a rehearsal is never conformant.

    Returns:
        The verdict; a FAIL outweighs everything, also in a rehearsal.
    """
    by_check: dict[str, list[Finding]] = {}
    for finding in findings:
        by_check.setdefault(finding.check, []).append(finding)
    results = {f.result for group in by_check.values() for f in group}
    if Result.FAIL in results:
        return Verdict.NOT_CONFORMANT
    required_ids = set(required)
    good = {Result.PASS} if official else {Result.PASS, Result.SKIP}
    settled = (
        bool(required_ids)
        and Result.PASS in results
        and all(check in by_check and all(f.result in good for f in by_check[check]) for check in required_ids)
    )
    if not settled or Result.ERROR in results:
        return Verdict.INCONCLUSIVE
    return Verdict.CONFORMANT if official else Verdict.REHEARSAL
