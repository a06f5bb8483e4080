"""Checks on what the supervisor saw while a run went on, which the logs alone cannot tell."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from conformance.checks.finding import Finding, Result
from conformance.errors import EvidenceError
from conformance.evidence import FAULTS
from conformance.launch.slow import EVEN_SHARE
from conformance.metrics.clocks import busy_clocks, median_clock

# A slow moment at the start is no slow device.
MIN_SECONDS = 60


def faults(record: Mapping[str, Any] | None) -> list[Finding]:
    """One finding for each fault that was seen, or one that there was none.

    Args:
        record: environment/faults.json; None where the run left none.

    Returns:
        The findings of check run-faults.
    """
    seen = _listed(record, "faults")
    if seen is None:
        message = "Nothing tells how the run was watched: the suite was killed before its end, or the file was removed."
        return [Finding("run-faults", Result.ERROR, message, evidence=FAULTS, next_step="Run it again.")]
    return _findings("run-faults", seen, "Nothing was seen to go wrong.")


def pace(record: Mapping[str, Any] | None) -> list[Finding]:
    """One finding for each rank that was told to be slower than the rest, or one that there was none.

    Args:
        record: environment/faults.json; None where the run left none.

    Returns:
        The findings of check run-pace; none where nobody looked.
    """
    seen = _listed(record, "notices")
    return [] if seen is None else _findings("run-pace", seen, "No rank was seen to keep the others waiting.")


def _listed(record: Mapping[str, Any] | None, key: str) -> list[dict[str, Any]] | None:
    seen = None if record is None else record.get(key)
    return seen if isinstance(seen, list) and all(isinstance(one, dict) for one in seen) else None


def _findings(check: str, seen: list[dict[str, Any]], good: str) -> list[Finding]:
    if not seen:
        return [Finding(check, Result.PASS, good, 0.0, "faults", 0.0, evidence=FAULTS)]
    return [
        Finding(
            check,
            Result.FAIL,
            str(fault.get("message")),
            str(fault.get("kind")),
            limit="none",
            evidence=FAULTS,
            next_step=str(fault.get("next_step")),
        )
        for fault in seen
    ]


def even(telemetry: Mapping[str, Iterable[bytes]], uuids: Collection[str] = ()) -> Finding:
    """Whether every device of the run held about the same clock while it was busy.

    Args:
        telemetry: Each environment/telemetry-nodeN.csv in pieces, by name.
        uuids: The run's devices; none where they are not all known.

    Returns:
        The finding of check run-clocks; SKIP where fewer than two devices told their clocks for a minute, ERROR where
        the telemetry is of more devices than a node has.
    """
    clocks: dict[str, float] = {}
    for name, pieces in telemetry.items():
        node = name.rsplit("-node", 1)[-1].removesuffix(".csv")
        try:
            counted = busy_clocks(pieces, uuids)
        except EvidenceError as error:
            told = f"{name} is not counted. {error.message}"
            return Finding(
                "run-clocks", Result.ERROR, told, evidence=name, next_step="Leave it as the tool printed it."
            )
        for index, counts in counted.items():
            if sum(counts.values()) >= MIN_SECONDS:
                clocks[f"device {index} of node {node}"] = median_clock(counts)
    if len(clocks) < 2:
        return Finding("run-clocks", Result.SKIP, "Fewer than two devices told their clocks for a minute.")
    slowest = min(clocks, key=lambda device: clocks[device])
    others = statistics.median(clock for device, clock in clocks.items() if device != slowest)
    limit = EVEN_SHARE * others
    good = clocks[slowest] >= limit
    return Finding(
        "run-clocks",
        Result.PASS if good else Result.FAIL,
        f"The slowest of {len(clocks)} devices, {slowest}, held {clocks[slowest]:.0f} MHz in the median while busy; "
        f"the others {others:.0f} MHz.",
        clocks[slowest],
        "MHz",
        limit,
        f"{EVEN_SHARE:g} of the median of the other devices",
        clocks[slowest] / limit - 1 if limit else None,
        "environment/",
        "" if good else "Look for heat, a power cap or another process on that device.",
    )
