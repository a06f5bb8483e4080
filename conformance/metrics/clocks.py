"""Clocks that devices held while they were busy, counted from gigabytes of telemetry."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, chain

import numpy as np
import numpy.typing as npt

from conformance.launch.samples import BUSY, CLOCK, INDEX, MAX_MHZ, column, samples, split
from conformance.launch.slow import BUSY_PERCENT

# What is longer is no row of telemetry.
_MAX_ROW = 1 << 16
_MAX_DIGITS = 9
# A device and its clock are one number: so many times the device, and the clock.
_BESIDE = MAX_MHZ + 1

Clocks = dict[str, Counter[int]]
_Bytes = npt.NDArray[np.uint8]
_Whole = npt.NDArray[np.int64]


class _OddError(Exception):
    """Rows that are not all of the form that a tool prints."""


def busy_clocks(pieces: Iterable[bytes]) -> Clocks:
    """Count the clocks of each device while it was busy, so that days of samples take no memory.

    Args:
        pieces: A telemetry CSV in pieces of any size, header first.

    Returns:
        How often each device held each clock in MHz.
    """
    blocks = _whole_rows(pieces)
    header, _, rest = next(blocks, b"").partition(b"\n")
    names = split(header.decode(errors="replace"))
    places = [column(names, pattern) for pattern in (INDEX, BUSY, CLOCK)]
    counted: Counter[int | tuple[str, int]] = Counter()
    for block in chain([rest], blocks):
        try:
            counted.update(_count_columns(len(names), places, block))
        except _OddError:
            counted.update(_count_rows(header, block))
    found: Clocks = {}
    for pair, count in counted.items():
        device, clock = pair if isinstance(pair, tuple) else (str(pair // _BESIDE), pair % _BESIDE)
        found.setdefault(device, Counter())[clock] += count
    return found


def median_clock(counts: Counter[int]) -> float:
    """The median of clocks that were counted.

    Args:
        counts: How often each was held, once or more in all.

    Returns:
        The median, in MHz.
    """
    clocks = sorted(counts)
    ends = list(accumulate(counts[clock] for clock in clocks))
    middle = ((ends[-1] - 1) // 2, ends[-1] // 2)
    return sum(clocks[bisect_right(ends, place)] for place in middle) / 2


def _whole_rows(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Cut pieces anew, at the ends of rows; the last row of a sampler that was ended may lack its end."""
    carry = b""
    for piece in pieces:
        if b"\r" in piece:
            piece = piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        cut = piece.rfind(b"\n") + 1
        if cut:
            yield b"".join((carry, memoryview(piece)[:cut]))
            carry = b""
        carry = (carry + piece[cut:])[:_MAX_ROW]
    yield carry


def _count_rows(header: bytes, block: bytes) -> Mapping[tuple[str, int], int]:
    rows = samples((header + b"\n" + block).decode(errors="replace").split("\n"))
    return Counter((row.index, row.clock_mhz) for row in rows if row.busy_percent >= BUSY_PERCENT)


def _count_columns(width: int, places: Sequence[int | None], block: bytes) -> Mapping[int, int]:
    """Count what :func:`_count_rows` counts, of all rows at once; thirty times as fast."""
    columns = [at for at in places if at is not None]
    if len(columns) < len(places):
        return {}
    if not block.isascii():
        raise _OddError
    text = np.frombuffer(block, np.uint8)
    row_ends, separators = text == ord("\n"), text == ord(",")
    separators |= row_ends
    ends = np.flatnonzero(separators)
    if not len(ends):
        return {}
    if len(ends) != width * np.count_nonzero(row_ends):
        raise _OddError
    begins = np.concatenate(([0], ends[:-1] + 1)).reshape(-1, width)
    ends = ends.reshape(-1, width)
    if not row_ends[ends[:, -1]].all():
        raise _OddError
    (devices, percents, mhz), whole = _numbers(text, begins[:, columns].T, ends[:, columns].T)
    if not whole[0].all():
        raise _OddError
    used = (percents >= BUSY_PERCENT) & (mhz >= 0) & (mhz <= MAX_MHZ)
    pairs, counts = np.unique(devices[used] * _BESIDE + mhz[used], return_counts=True)
    return dict(zip(pairs.tolist(), counts.tolist(), strict=True))


def _numbers(text: _Bytes, begin: _Whole, end: _Whole) -> tuple[_Whole, npt.NDArray[np.bool_]]:
    """The whole part of the number that begins each cell, -1 for none; whether it is all of the cell."""
    begin = begin + (text[begin] == ord(" "))
    first = text[begin]
    if ((first <= ord(" ")) & (begin < end)).any():
        raise _OddError
    values, length, inside = np.zeros_like(begin), np.zeros_like(begin), np.ones_like(begin, np.bool_)
    for place in range(_MAX_DIGITS):
        digits = text.take(begin + place, mode="clip") - np.uint8(ord("0"))
        inside &= digits < 10
        if not inside.any():
            break
        values = np.where(inside, values * 10 + digits, values)
        length += inside
    plain = (begin + length == end) & ((first != ord("0")) | (length == 1)) & (length > 0)
    return np.where(length > 0, values, -1), plain
