"""Energy from device telemetry: the power that devices drew while they were busy, over the whole of a run."""

from __future__ import annotations

import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping

from conformance.errors import EvidenceError
from conformance.launch.samples import Interval, note, of_run, samples, whole_rows
from conformance.launch.slow import BUSY_PERCENT

# A minute of one device at work; less says little about hours.
MIN_SECONDS = 60


def joules_per_token(telemetry: Mapping[str, Iterable[bytes]], tgs: float, uuids: Collection[str] = ()) -> float | None:
    """Energy of the devices for one token: mean power of a busy device over tokens per device and second.

    Hosts, network and cooling are not in it.

    Args:
        telemetry: Each node's telemetry CSV in pieces, by name.
        tgs: Tokens per device and second.
        uuids: The run's devices; none where they are not all known.

    Returns:
        Joules; None where a device was not seen to be busy for MIN_SECONDS, or the telemetry is none of a node's.
    """
    if not tgs > 0:
        return None
    try:
        means = [mean for pieces in telemetry.values() for mean in busy_watts(pieces, uuids).values()]
    except EvidenceError:
        return None
    if not means or any(math.isnan(mean) for mean in means):
        return None
    return sum(means) / len(means) / tgs


def busy_watts(pieces: Iterable[bytes], uuids: Collection[str] = ()) -> dict[str, float]:
    """Mean power of each device while it was busy, each row weighed by the time that it stands for.

    Args:
        pieces: A telemetry CSV in pieces of any size, header first.
        uuids: The run's devices; none where they are not all known.

    Returns:
        W by device; NaN for one that was not seen to be busy for MIN_SECONDS.

    Raises:
        EvidenceError: It names more than MAX_DEVICES devices.
    """
    names: dict[str, str] = {}
    sums: dict[str, tuple[int, float]] = {}
    interval = Interval()
    for row in samples(_lines(pieces)):
        seconds = interval.of(row)
        if seconds and row.watts >= 0 and row.busy_percent >= BUSY_PERCENT:
            note(names, row.device, row.uuid)
            total, joules = sums.get(row.device, (0, 0.0))
            sums[row.device] = (total + seconds, joules + seconds * row.watts)
    means = {name: joules / total if total >= MIN_SECONDS else math.nan for name, (total, joules) in sums.items()}
    return {name: means[name] for name in of_run(names, uuids)}


def _lines(pieces: Iterable[bytes]) -> Iterator[str]:
    for block in whole_rows(pieces):
        yield from io.TextIOWrapper(io.BytesIO(block), "utf-8", "replace")
