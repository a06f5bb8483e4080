"""The rows of a telemetry CSV, whatever vendor's tool printed them: device, load and clock; values in, values out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# No index and no uuid is longer.
MAX_CHARACTERS = 64
# No device clock is beyond this; what claims so would fill a verifier's memory.
MAX_MHZ = 100_000
# nvidia-smi's names; a vendor's tool prints the same, or its samples are kept and not compared.
INDEX, UUID, BUSY, CLOCK = r"index\b", r"uuid\b", r"utilization\.gpu\b", r"clocks\.(?:current\.)?sm\b"


@dataclass(frozen=True)
class Sample:
    """One device at one moment.

    Args:
        index: The device, as the tool counts on its node.
        busy_percent: Share of the last second in which something ran on it.
        clock_mhz: Its clock.
        uuid: What names it everywhere; empty where the tool does not tell.
    """

    index: str
    busy_percent: float
    clock_mhz: int
    uuid: str = ""


def split(line: str) -> list[str]:
    """The cells of a row.

    Args:
        line: One line of the CSV.

    Returns:
        Its cells, without the blanks around them.
    """
    return [cell.strip() for cell in line.split(",")]


def column(header: list[str], pattern: str) -> int | None:
    """Where a column stands.

    Args:
        header: Cells of the first line.
        pattern: Regular expression of the start of its name.

    Returns:
        Its place; None where there is none.
    """
    return next((at for at, cell in enumerate(header) if re.match(pattern, cell)), None)


def samples(lines: Iterable[str]) -> Iterator[Sample]:
    """Read a telemetry CSV.

    Args:
        lines: Header first.

    Yields:
        Each row that tells device, load and clock; rows that are cut off or say [N/A] are left out.
    """
    rows = iter(lines)
    header = split(next(rows, ""))
    index, uuid, busy, clock = (column(header, pattern) for pattern in (INDEX, UUID, BUSY, CLOCK))
    if index is None or busy is None or clock is None:
        return
    for row in rows:
        cells = split(row)
        if len(cells) != len(header):  # the last line of a sampler that was ended
            continue
        percent, mhz = _leading_number(cells[busy]), _leading_number(cells[clock])
        if percent is not None and mhz is not None and mhz <= MAX_MHZ:
            name = "" if uuid is None else cells[uuid][:MAX_CHARACTERS]
            yield Sample(cells[index][:MAX_CHARACTERS], percent, int(mhz), name)


def _leading_number(cell: str) -> float | None:
    match = re.match(r"\d{1,9}(?:\.\d{1,9})?", cell)
    return float(match[0]) if match else None
