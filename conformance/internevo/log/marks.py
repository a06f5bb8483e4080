"""Finds the few lines that say something among the many that say nothing."""

from __future__ import annotations

import re

import numpy as np

from conformance.internevo.log import lines as grammar
from conformance.internevo.log import traces
from conformance.internevo.log.messages import KNOWN

# While a traceback is open, every line of the logger says something too: it ends it.
OPEN = re.compile(grammar.MARKS + b"|" + traces.MARKS)

# Otherwise a line that says something has one of these. A pattern is only looked for in a chunk that has one of its
# texts, for most chatter has none of them.
IDLE: tuple[tuple[tuple[bytes, ...], re.Pattern[bytes]], ...] = (
    ((b"s=",), re.compile(rb"=(?<=loss=|lops=)")),
    # Nearly always a blank follows; to try both for every line takes twice the time.
    ((b"--",), re.compile(rb"--(?:(?! )(?:%b)| (?:%b|(?<=metrics -- ))|(?<=metrics --))" % (KNOWN, KNOWN))),
    ((b"(m", b"(S"), re.compile(rb"\((?:most recent call last\):|SIG)")),
    ((b"Re",), re.compile(rb"R(?=eceived \d)")),
    *(((text,), re.compile(rb"%b(?=%b)" % (text[:1], text[1:]))) for text in (traces.FATAL, *traces.DEATHS)),
)


class Marks:
    """The marked lines of a chunk, in order; each pattern goes over it once, however many there are.

    Args:
        chunk: Whole lines.
    """

    def __init__(self, chunk: bytes) -> None:
        self._chunk = chunk
        # Where each pattern is found next.
        self._next = [-1 if any(_has(chunk, text) for text in texts) else len(chunk) for texts, _ in IDLE]

    def line(self, begin: int, idle: bool) -> int:
        """Find the next marked line.

        Args:
            begin: Where a line begins.
            idle: Whether no traceback is open.

        Returns:
            Where the marked line begins, that one or a later; the chunk's length where there is none.
        """
        if not idle:
            found = OPEN.search(self._chunk, begin)
            return self._line_of(found.start(), begin) if found else len(self._chunk)
        for number, (_, pattern) in enumerate(IDLE):
            if self._next[number] < begin:
                match = pattern.search(self._chunk, begin)
                self._next[number] = match.start() if match else len(self._chunk)
        mark = min(self._next)
        return self._line_of(mark, begin) if mark < len(self._chunk) else mark

    def _line_of(self, mark: int, begin: int) -> int:
        return max(begin, self._chunk.rfind(b"\n", begin, mark) + 1)


def _has(chunk: bytes, text: bytes) -> bool:
    """Whether a text stands in a chunk."""
    if len(chunk) < 1 << 14:
        return text in chunk
    # Comparing all bytes with two takes a quarter of the time of a search.
    if not all(_has_pair(chunk, pair) for pair in (text[:2], text[2:4]) if pair):
        return False
    return len(text) == 2 or text in chunk


def _has_pair(chunk: bytes, pair: bytes) -> bool:
    """Whether two bytes stand in a chunk, one after the other."""
    if pair[:1] not in chunk:
        return False
    # Words of two bytes each, from the first byte and from the second.
    words = (np.frombuffer(chunk, "<u2", (len(chunk) - at) // 2, at) for at in (0, 1))
    return any((each == int.from_bytes(pair, "little")).any() for each in words)


def line_ends(chunk: bytes, begin: int, end: int) -> int:
    """Count lines.

    Args:
        chunk: Whole lines.
        begin: Where the first begins.
        end: Where the last ends.

    Returns:
        How many.
    """
    if end - begin < 1 << 14:
        return chunk.count(b"\n", begin, end)
    # Comparing many bytes at once is five times as fast.
    return int(np.count_nonzero(np.frombuffer(chunk, np.uint8, end - begin, begin) == ord("\n")))
