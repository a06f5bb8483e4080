"""Energy from device telemetry: the power that devices drew while they were busy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from conformance.launch.samples import BUSY, INDEX, column, split
from conformance.launch.slow import BUSY_PERCENT

POWER = r"power\.draw(?:\.\w+)? \[W\]"
# A minute of one device at work; less says little about hours.
MIN_SAMPLES = 60
# No device draws more; what claims so is no measurement.
MAX_WATTS = 100_000.0


def joules_per_token(telemetry: Mapping[str, Iterable[str]], tgs: float) -> float | None:
    """Energy of the devices for one token: mean power of a busy device over tokens per device and second.

    Hosts, network and cooling are not in it.

    Args:
        telemetry: Lines of each node's telemetry CSV, header first, by name.
        tgs: Tokens per device and second.

    Returns:
        Joules; None where fewer than MIN_SAMPLES samples of each device tell its power.
    """
    means = [mean for lines in telemetry.values() for mean in busy_watts(lines).values()]
    if not means or any(math.isnan(mean) for mean in means) or not tgs > 0:
        return None
    return sum(means) / len(means) / tgs


def busy_watts(lines: Iterable[str]) -> dict[str, float]:
    """Mean power of each device while it was busy.

    Args:
        lines: A telemetry CSV, header first.

    Returns:
        W by device; NaN for one with too few samples.
    """
    rows = iter(lines)
    header = split(next(rows, ""))
    index, busy, power = (column(header, pattern) for pattern in (INDEX, BUSY, POWER))
    if index is None or busy is None or power is None:
        return {}
    sums: dict[str, tuple[int, float]] = {}
    for row in rows:
        cells = split(row)
        if len(cells) != len(header):  # the last line of a sampler that was ended
            continue
        share, watts = _number(cells[busy]), _number(cells[power])
        if share is not None and share >= BUSY_PERCENT and watts is not None and watts <= MAX_WATTS:
            count, total = sums.get(cells[index][:20], (0, 0.0))
            sums[cells[index][:20]] = (count + 1, total + watts)
    return {name: total / count if count >= MIN_SAMPLES else math.nan for name, (count, total) in sums.items()}


def _number(cell: str) -> float | None:
    match = re.match(r"\d{1,9}(?:\.\d{1,9})?", cell)
    return float(match[0]) if match else None
