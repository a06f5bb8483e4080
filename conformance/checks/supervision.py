"""Checks on what the supervisor saw while a run went on, which the logs alone cannot tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conformance.checks.finding import Finding, Result

FAULTS = "environment/faults.json"


def faults(record: Mapping[str, Any] | None) -> list[Finding]:
    """One finding for each fault that was seen, or one that there was none.

    Args:
        record: environment/faults.json; None where the run left none.

    Returns:
        The findings of check run-faults.
    """
    seen = None if record is None else record.get("faults")
    if not isinstance(seen, list) or not all(isinstance(fault, dict) for fault in seen):
        message = "Nothing tells how the run was watched: the suite was killed before its end, or the file was removed."
        return [Finding("run-faults", Result.ERROR, message, evidence=FAULTS, next_step="Run it again.")]
    if not seen:
        return [
            Finding("run-faults", Result.PASS, "Nothing was seen to go wrong.", 0.0, "faults", 0.0, evidence=FAULTS)
        ]
    return [
        Finding(
            "run-faults",
            Result.FAIL,
            str(fault.get("message")),
            str(fault.get("kind")),
            limit="none",
            evidence=FAULTS,
            next_step=str(fault.get("next_step")),
        )
        for fault in seen
    ]
