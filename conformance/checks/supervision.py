"""Checks on what the supervisor saw while a run went on, which the logs alone cannot tell."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from conformance.checks.finding import Finding, Result
from conformance.evidence import FAULTS

# A device that holds less than this share of the others' clock slows every rank down: they wait for it in each step.
EVEN_SHARE = 0.9
# A device that waits for data shows its idle clock; only a busy one tells how fast it is.
BUSY_PERCENT = 50.0
# A minute of samples; a slow moment at the start is no slow device.
MIN_SAMPLES = 60
MAX_MHZ = 100_000
CLOCK = re.compile(r"clocks\.(?:current\.)?sm\b")


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


def even(telemetry: Mapping[str, Iterable[str]]) -> Finding:
    """Whether every device held about the same clock while it was busy.

    Args:
        telemetry: Lines of each environment/telemetry-nodeN.csv, header first, by name.

    Returns:
        The finding of check run-clocks; SKIP where fewer than two devices told their clocks for a minute.
    """
    clocks: dict[str, float] = {}
    for name, lines in telemetry.items():
        node = name.rsplit("-node", 1)[-1].removesuffix(".csv")
        for index, counts in _busy_clocks(lines).items():
            if sum(counts.values()) >= MIN_SAMPLES:
                clocks[f"device {index} of node {node}"] = float(statistics.median(counts.elements()))
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


def _busy_clocks(lines: Iterable[str]) -> dict[str, Counter[int]]:
    """Clocks in MHz of each device while it was busy, counted, so that days of samples take no memory."""
    rows = iter(lines)
    header = [cell.strip() for cell in next(rows, "").split(",")]
    places = {
        what: next((at for at, cell in enumerate(header) if re.match(pattern, cell)), None)
        for what, pattern in (("index", r"index\b"), ("busy", r"utilization\.gpu\b"), ("clock", CLOCK.pattern))
    }
    index, busy, clock = places["index"], places["busy"], places["clock"]
    found: dict[str, Counter[int]] = {}
    if index is None or busy is None or clock is None:
        return found
    for row in rows:
        cells = [cell.strip() for cell in row.split(",")]
        if len(cells) != len(header):  # the last line of a sampler that was ended
            continue
        percent, mhz = _leading_number(cells[busy]), _leading_number(cells[clock])
        if percent is not None and percent >= BUSY_PERCENT and mhz is not None and mhz <= MAX_MHZ:
            found.setdefault(cells[index][:20], Counter())[int(mhz)] += 1
    return found


def _leading_number(cell: str) -> float | None:
    match = re.match(r"\d{1,9}(?:\.\d{1,9})?", cell)
    return float(match[0]) if match else None
