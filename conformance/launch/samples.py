"""The rows of a telemetry CSV, whatever vendor's tool printed them; values in, values out."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from conformance.errors import EvidenceError

# No index and no uuid is longer.
MAX_CHARACTERS = 64
# No device clock is beyond this; what claims so would fill a verifier's memory.
MAX_MHZ = 100_000
# No device draws more; what claims so is no measurement.
MAX_WATTS = 100_000.0
# No node has as many; each takes some memory.
MAX_DEVICES = 1024
# What is longer is no row of telemetry.
MAX_ROW = 1 << 16
# The most that one row stands for. Of a long run a row a minute is kept; what was in a longer gap nobody saw.
MAX_SECONDS = 60
# What a row does not tell of a number that is none below zero.
UNTOLD = -1
DAY_SECONDS = 24 * 3600
# nvidia-smi's names; a vendor's tool prints the same, or its samples are kept and not compared.
INDEX, UUID, BUSY, CLOCK = r"index\b", r"uuid\b", r"utilization\.gpu\b", r"clocks\.(?:current\.)?sm\b"
POWER, TIME = r"power\.draw(?:\.\w+)? \[W\]", r"timestamp\b"
# A time of the day stands behind a date: 2026/01/31 23:59:59.123, or with - and T.
TIME_AT, TIME_LENGTH = 11, 8
_TIME = re.compile(r"([0-9]{2}):([0-9]{2}):([0-9]{2})")
_NUMBER = re.compile(r"\s*([0-9]{1,9}(?:\.[0-9]{1,9})?)")
Key = TypeVar("Key", bound=Hashable)


class Sample(NamedTuple):
    """One device at one moment; a tuple, because there may be millions, and a dataclass takes three times as long.

    Args:
        device: Its index, as the tool counts on its node.
        busy_percent: Share of the last second in which something ran on it; UNTOLD where it does not tell, as below.
        clock_mhz: Its clock.
        uuid: What names it everywhere; empty where the tool does not tell.
        watts: The power that it drew.
        second: Of the day, by the tool's clock.
    """

    device: str
    busy_percent: float
    clock_mhz: int
    uuid: str = ""
    watts: float = UNTOLD
    second: int = UNTOLD


@dataclass
class Interval:
    """For how long the rows of one CSV stand: as long as lies between the last two rows of its first device.

    A tool tells of all devices at a time, and of long runs fewer rows are kept than of short ones.

    Args:
        device: The device of the first row; None before it.
        second: Of the day, of that device's last row.
        seconds: Between that row and the one before it, from 0 to MAX_SECONDS; 1 where one is missing or tells no time.
    """

    device: str | None = None
    second: int = UNTOLD
    seconds: int = 1

    def of(self, row: Sample) -> int:
        """Tell for how long a row stands.

        Args:
            row: The next one.

        Returns:
            Seconds.
        """
        if self.device is None:
            self.device = row.device
        if row.device == self.device:
            self.seconds = 1
            if UNTOLD not in (row.second, self.second):
                gap = (row.second - self.second) % DAY_SECONDS
                # A clock that was set back tells nothing of the time between.
                self.seconds = min(gap, MAX_SECONDS) if gap < DAY_SECONDS // 2 else 0
            self.second = row.second
        return self.seconds


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


def whole_rows(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut a CSV anew, at the ends of rows; the last row of a sampler that was ended may lack its end.

    Args:
        pieces: The file in pieces of any size.

    Yields:
        Rows, each with a line feed at its end; of one that is longer than MAX_ROW the end is left out.
    """
    carry = b""
    for piece in pieces:
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield b"".join((carry, memoryview(piece)[:cut]))
            carry = b""
        carry = (carry + piece[cut:])[:MAX_ROW]
    yield carry


def samples(lines: Iterable[str]) -> Iterator[Sample]:
    """Read a telemetry CSV.

    Args:
        lines: Header first.

    Yields:
        Each row that is whole, of a tool that tells device and load.
    """
    rows = iter(lines)
    header = split(next(rows, ""))
    index, busy = column(header, INDEX), column(header, BUSY)
    if index is None or busy is None:
        return
    uuid, clock, power, time = (column(header, pattern) for pattern in (UUID, CLOCK, POWER, TIME))
    for row in rows:
        cells = row.split(",")
        if len(cells) != len(header):  # the last line of a sampler that was ended
            continue
        mhz = UNTOLD if clock is None else _leading_number(cells[clock])
        watts = UNTOLD if power is None else _leading_number(cells[power])
        yield Sample(
            cells[index].strip()[:MAX_CHARACTERS],
            _leading_number(cells[busy]),
            int(mhz) if mhz <= MAX_MHZ else UNTOLD,
            "" if uuid is None else cells[uuid].strip()[:MAX_CHARACTERS],
            watts if watts <= MAX_WATTS else UNTOLD,
            UNTOLD if time is None else _second(cells[time].strip()),
        )


def note(uuids: dict[str, str], index: str, uuid: str) -> None:
    """Note a device that was busy, once.

    Args:
        uuids: What names each device that was, which grows here.
        index: The device.
        uuid: What names it.

    Raises:
        EvidenceError: They are more than MAX_DEVICES.
    """
    if index not in uuids:
        uuids[index] = uuid
        if len(uuids) > MAX_DEVICES:
            raise EvidenceError(f"The telemetry names more than {MAX_DEVICES} devices; no node has as many.")


def uuids_of(devices: Iterable[object]) -> frozenset[str]:
    """What a run's devices are known by.

    Args:
        devices: What each rank tells of its device.

    Returns:
        Their uuids; empty where one of them tells none.
    """
    told = [device.get("uuid") if isinstance(device, dict) else None for device in devices]
    known = [one for one in told if isinstance(one, str) and one]
    return frozenset(known if len(known) == len(told) else ())


def of_run(shown: Mapping[Key, str], known: Collection[str]) -> list[Key]:
    """Choose the devices that take part in a run: a node may have others, which another job keeps busy.

    Args:
        shown: The uuid of each device that a node's telemetry shows.
        known: Those of the run's devices; none where they are not all known.

    Returns:
        The run's devices, in their order; all, where none is known.
    """
    return [key for key, uuid in shown.items() if uuid in known] or list(shown)


def _leading_number(cell: str) -> float:
    match = _NUMBER.match(cell)
    return float(match[1]) if match else UNTOLD


def _second(cell: str) -> int:
    match = _TIME.match(cell, TIME_AT)
    return UNTOLD if match is None else (int(match[1]) * 60 + int(match[2])) * 60 + int(match[3])
