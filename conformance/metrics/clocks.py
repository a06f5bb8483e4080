"""Clocks that devices held while they were busy, and for how long, counted from gigabytes of telemetry."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from conformance.errors import EvidenceError
from conformance.launch.samples import (
    BUSY,
    CLOCK,
    DAY_SECONDS,
    INDEX,
    MAX_CHARACTERS,
    MAX_MHZ,
    MAX_SECONDS,
    TIME,
    TIME_AT,
    TIME_LENGTH,
    UNTOLD,
    UUID,
    Interval,
    column,
    note,
    of_run,
    samples,
    split,
    whole_rows,
)
from conformance.launch.slow import BUSY_PERCENT

# Devices times clocks: 64 devices that each held a thousand.
MAX_CLOCKS = 1 << 16
_MAX_DIGITS = 9
# A device, its clock and for how long are one number: so many times the device and the clock, and the seconds.
_BESIDE = MAX_MHZ + 1
_LASTING = MAX_SECONDS + 1

Clocks = dict[str, Counter[int]]
_Bytes = npt.NDArray[np.uint8]
_Whole = npt.NDArray[np.int64]
_Small = npt.NDArray[np.int32]


class _OddError(Exception):
    """Rows that are not all of the form that a tool prints."""


def busy_clocks(pieces: Iterable[bytes], uuids: Collection[str] = ()) -> Clocks:
    """Count for how long each device held each clock while it was busy.

    What is kept are devices and their clocks: it does not grow with the samples, and is bounded whatever they hold.

    Args:
        pieces: A telemetry CSV in pieces of any size, header first.
        uuids: The run's devices; none where they are not all known.

    Returns:
        Seconds by clock in MHz, by device.

    Raises:
        EvidenceError: It names more than MAX_DEVICES devices, or they held more than MAX_CLOCKS clocks.
    """
    blocks = whole_rows(pieces)
    header, _, rest = next(blocks, b"").partition(b"\n")
    counting = _Counting(header)
    for block in chain([rest], blocks):
        counting.add(block)
    kept = frozenset(of_run(counting.uuids, uuids))
    found: Clocks = {}
    for pair, seconds in counting.held.items():
        device, clock = pair if isinstance(pair, tuple) else (str(pair // _BESIDE), pair % _BESIDE)
        if device in kept:
            found.setdefault(device, Counter())[clock] += seconds
    return found


def median_clock(counts: Counter[int]) -> float:
    """The median of clocks that were counted.

    Args:
        counts: For how many seconds each was held, one or more in all.

    Returns:
        The median, in MHz.
    """
    clocks = sorted(counts)
    ends = list(accumulate(counts[clock] for clock in clocks))
    middle = ((ends[-1] - 1) // 2, ends[-1] // 2)
    return sum(clocks[bisect_right(ends, place)] for place in middle) / 2


@dataclass
class _Counting:
    """What was counted so far of one CSV.

    Args:
        header: Its first line.
        uuids: What names each device that was busy.
        held: Seconds by device and clock, which are one number where the device is one.
        interval: For how long its rows stand.
    """

    header: bytes
    uuids: dict[str, str] = field(default_factory=dict)
    held: Counter[int | tuple[str, int]] = field(default_factory=Counter)
    interval: Interval = field(default_factory=Interval)

    def __post_init__(self) -> None:
        names = split(self.header.decode(errors="replace"))
        self.width = len(names)
        needed = [column(names, pattern) for pattern in (INDEX, BUSY, CLOCK)]
        self.needed = [at for at in needed if at is not None]
        self.speaks = len(self.needed) == len(needed)
        self.uuid, self.time = column(names, UUID), column(names, TIME)

    def add(self, block: bytes) -> None:
        """Count what so many whole rows tell."""
        if not self.speaks:
            return
        try:
            self._add_columns(block)
        except _OddError:
            self._add_rows(block)
        if len(self.held) > MAX_CLOCKS:
            raise EvidenceError(f"The telemetry tells more than {MAX_CLOCKS} clocks of its devices; none has as many.")

    def _add_rows(self, block: bytes) -> None:
        for row in samples(io.TextIOWrapper(io.BytesIO(self.header + b"\n" + block), "utf-8", "replace")):
            seconds = self.interval.of(row)
            if seconds and row.clock_mhz >= 0 and row.busy_percent >= BUSY_PERCENT:
                note(self.uuids, row.device, row.uuid)
                self.held[row.device, row.clock_mhz] += seconds

    def _add_columns(self, block: bytes) -> None:
        """Count what :meth:`_add_rows` counts, of all rows at once; thirty times as fast."""
        if not block.isascii():
            raise _OddError
        text = np.frombuffer(block, np.uint8)
        begins, ends = _cells(text, self.width)
        if not len(ends):
            return
        (devices, percents, mhz), whole = _numbers(text, begins[:, self.needed].T, ends[:, self.needed].T)
        if not whole[0].all():
            raise _OddError
        seconds = self._seconds(text, devices, begins, ends)
        used = np.flatnonzero((percents >= BUSY_PERCENT) & (mhz >= 0) & (mhz <= MAX_MHZ) & (seconds > 0))
        devices, mhz = devices[used].astype(np.int64), mhz[used]
        keys, counts = np.unique((devices * _BESIDE + mhz) * _LASTING + seconds[used], return_counts=True)
        pairs = keys // _LASTING
        firsts = np.flatnonzero(np.diff(pairs, prepend=-1))
        sums = np.add.reduceat(counts * (keys % _LASTING), firsts) if len(firsts) else counts
        pairs = pairs[firsts]
        for device in np.unique(pairs // _BESIDE).tolist():
            if str(device) not in self.uuids:
                row = used[np.argmax(devices == device)]
                uuid = b"" if self.uuid is None else block[begins[row, self.uuid] : ends[row, self.uuid]]
                note(self.uuids, str(device), uuid.decode().strip()[:MAX_CHARACTERS])
        for pair, held in zip(pairs.tolist(), sums.tolist(), strict=True):
            self.held[pair] += held

    def _seconds(self, text: _Bytes, devices: _Small, begins: _Whole, ends: _Whole) -> _Small:
        """For how long each row stands, as :class:`conformance.launch.samples.Interval` has it."""
        interval = self.interval
        if interval.device is None:
            interval.device = str(devices[0])
        own = devices == _number(interval.device)
        rows = np.flatnonzero(own)
        times = np.full(len(rows), UNTOLD, np.int32)
        if self.time is not None:
            times = _times(text, begins[rows, self.time], ends[rows, self.time])
        if not len(rows):
            return np.full_like(devices, interval.seconds)
        before = np.append(np.int32(interval.second), times[:-1])
        gaps = (times - before) % np.int32(DAY_SECONDS)
        gaps = np.where(gaps < DAY_SECONDS // 2, np.minimum(gaps, MAX_SECONDS), 0)
        gaps[(times == UNTOLD) | (before == UNTOLD)] = 1
        seconds: _Small = np.append(np.int32(interval.seconds), gaps)[np.cumsum(own)]
        interval.second, interval.seconds = int(times[-1]), int(gaps[-1])
        return seconds


def _number(device: str) -> int:
    """What stands for a device in columns; UNTOLD for one that no column can hold."""
    plain = len(device) <= _MAX_DIGITS and device.isdecimal() and str(int(device)) == device
    return int(device) if plain else UNTOLD


def _cells(text: _Bytes, width: int) -> tuple[_Whole, _Whole]:
    """Where each cell of each row begins and ends."""
    row_ends, separators = text == ord("\n"), text == ord(",")
    separators |= row_ends
    ends = np.flatnonzero(separators)
    if len(ends) != width * np.count_nonzero(row_ends):
        raise _OddError
    begins = np.concatenate(([0], ends[:-1] + 1))[: len(ends)].reshape(-1, width)
    ends = ends.reshape(-1, width)
    if not row_ends[ends[:, -1]].all():
        raise _OddError
    return begins, ends


def _times(text: _Bytes, begin: _Whole, end: _Whole) -> _Small:
    """Seconds of the day that each cell tells, UNTOLD for none."""
    begin = _unpadded(text, begin, end)[0] + TIME_AT
    if len(text) < TIME_LENGTH:
        return np.full(begin.shape, UNTOLD, np.int32)
    windows = np.ndarray(len(text) - TIME_LENGTH + 1, f"S{TIME_LENGTH}", text, strides=(1,))
    found = windows[np.minimum(begin, len(windows) - 1)].view(np.uint8).reshape(-1, TIME_LENGTH)
    tens, ones = found[:, [0, 3, 6]] - np.uint8(ord("0")), found[:, [1, 4, 7]] - np.uint8(ord("0"))
    told = (begin + TIME_LENGTH <= end) & (found[:, [2, 5]] == ord(":")).all(axis=1)
    told &= ((tens < 10) & (ones < 10)).all(axis=1)
    hours, minutes, seconds = (tens * np.uint8(10) + ones).T
    return np.where(told, hours * np.int32(3600) + minutes * np.int32(60) + seconds, UNTOLD)


def _numbers(text: _Bytes, begin: _Whole, end: _Whole) -> tuple[_Small, npt.NDArray[np.bool_]]:
    """The whole part of the number that begins each cell, UNTOLD for none; whether it is all of the cell."""
    begin, first = _unpadded(text, begin, end)
    digits = first - np.uint8(ord("0"))
    inside = digits < 10
    values, length = np.where(inside, digits, np.int32(0)), inside.astype(np.int8)
    for place in range(1, _MAX_DIGITS):
        digits = text.take(begin + place, mode="clip") - np.uint8(ord("0"))
        inside &= digits < 10
        if not inside.any():
            break
        values = np.where(inside, values * np.int32(10) + digits, values)
        length += inside
    plain = (begin + length == end) & ((first != ord("0")) | (length == 1)) & (length > 0)
    return np.where(length > 0, values, np.int32(UNTOLD)), plain


def _unpadded(text: _Bytes, begin: _Whole, end: _Whole) -> tuple[_Whole, _Bytes]:
    """Where cells begin behind the one blank that a tool prints, and with what."""
    begin = begin + (text.take(begin) == ord(" "))
    first = text.take(begin)
    if ((first <= ord(" ")) & (begin < end)).any():
        raise _OddError
    return begin, first
