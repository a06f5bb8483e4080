"""Tracebacks and signals: how a process of a run ended, told by lines that the logger did not write."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from conformance.internevo.log.messages import text
from conformance.internevo.log.records import EXCEPTION, KILLED, Event

_MAX_TRACEBACK = 120  # lines
_MAX_TEXT = 4 << 20  # characters of all tracebacks; what is raised after them is told without its own
_MAX_TORN = 1024

# What a line has that begins a traceback, goes on with one that was whole, or tells a signal.
MARKS = (
    rb"Traceback \(most|During handling of|The above exception|Signal \d|Received \d|Fatal Python|Killed|Segmentation|"
    rb"Bus error|Aborted"
)

_TRACEBACK = b"Traceback (most recent call last):"
_CHAINED = re.compile(rb"(?:During handling of the above|The above exception was the direct cause)")
_FINAL = re.compile(rb"([A-Za-z_][\w.]{0,160})(?::\s?(.*))?$")
_ERROR_NAME = re.compile(rb"(?:\w{1,80}\.){0,10}\w{0,80}(?:Error|Exception|Iteration|Interrupt|Exit)(?::|$)")
# What the shell says of a process that died, at the beginning of a line.
DEATHS = (b"Killed", b"Segmentation fault", b"Bus error", b"Aborted")
FATAL = b"Fatal Python error: "
_SIGNAL = re.compile(
    rb"Signal \d{1,3} \((?P<name>SIG[A-Z]{2,8})\) received|Received \d{1,3} death signal|%b|^(?:%b)\b"
    % (FATAL, b"|".join(DEATHS))
)


@dataclass
class _Trace:
    line: int
    time: datetime | None
    rank: int | None
    host: str | None = None
    raised_by_train: bool = False
    chained: bool = False
    type: str = ""
    message: str = ""
    lines: list[str] = field(default_factory=list)

    def event(self, room: int) -> Event:
        """The exception, with its traceback where there is room for so many characters."""
        kept = self.lines if room > 0 else []
        if len(kept) > _MAX_TRACEBACK:
            half = _MAX_TRACEBACK // 2
            kept = [*kept[:half], "...", *kept[-half:]]
        return Event(
            kind=EXCEPTION,
            message=self.message,
            line=self.line,
            time=self.time,
            type=self.type or "unknown",
            host=self.host,
            rank=self.rank,
            raised_by_train=self.raised_by_train,
            traceback=tuple(kept),
        )


class Traces:
    """Collects tracebacks, also of several ranks whose lines are interleaved under the launcher's prefixes.

    Args:
        tell: Takes each exception and signal, when it is whole.
    """

    def __init__(self, tell: Callable[[Event], None]) -> None:
        self._tell = tell
        self._room = _MAX_TEXT
        self._open: dict[int, _Trace] = {}
        # Sources whose traceback still lacks its last line.
        self._inside: set[int] = set()
        # Caught exceptions whose own traceback was torn apart by another rank's; the next loose error line is theirs.
        self._torn: list[_Trace] = []

    @property
    def idle(self) -> bool:
        """Whether no traceback is open, so that a line of the logger ends none."""
        return not self._open

    @property
    def waiting(self) -> bool:
        """Whether a line of any text may belong to a traceback; otherwise only a marked one does."""
        return bool(self._inside or self._torn)

    def raised(self, source: int, match: re.Match[bytes], line: int, time: datetime | None) -> None:
        """Take the logger's line that announces an exception.

        Args:
            source: Number of the line's prefix.
            match: Match of RAISED.
            line: Line of the log.
            time: When.
        """
        self.close(source)
        self._open[source] = _Trace(line, time, int(match[2]), text(match[1]), raised_by_train=True)

    def take(self, source: int, piece: bytes, line: int, rank: int | None) -> bool:
        """Take a line that the logger did not write.

        Args:
            source: Number of the line's prefix.
            piece: The line without prefix.
            line: Line of the log.
            rank: Global rank by the prefix.

        Returns:
            Whether the line belongs to a traceback or tells a signal.
        """
        if _TRACEBACK in piece:
            return self._begin(source, line, rank)
        trace = self._open.get(source)
        if trace is not None and source in self._inside:
            self._add(trace, piece)
            if piece[:1] not in (b" ", b"\t", b"") and (match := _FINAL.match(piece)):
                trace.type, trace.message = text(match[1]), text(match[2] or b"")
                self._inside.discard(source)
            return True
        if trace is not None and _CHAINED.match(piece):
            trace.chained = True
            self._add(trace, piece)
            return True
        if self._torn and _ERROR_NAME.match(piece) and (match := _FINAL.match(piece)):
            torn = self._torn.pop(0)
            torn.type, torn.message = text(match[1]), text(match[2] or b"")
            self._end(torn)
            return True
        if match := _SIGNAL.search(piece[:4096]):
            name = match["name"]
            message = text(piece)
            self._tell(Event(KILLED, message, line, type=text(name) if name else message.split(":")[0], rank=rank))
            return True
        return False

    def _begin(self, source: int, line: int, rank: int | None) -> bool:
        trace = self._open.get(source)
        if trace is None or (trace.type and not trace.chained):
            self.close(source)
            trace = self._open[source] = _Trace(line, None, rank)
        self._inside.add(source)
        trace.chained = False
        self._add(trace, _TRACEBACK)
        return True

    @staticmethod
    def _add(trace: _Trace, piece: bytes) -> None:
        # Twice the shown length is enough to show the first and the last half.
        if len(trace.lines) >= 2 * _MAX_TRACEBACK:
            del trace.lines[_MAX_TRACEBACK // 2]
        trace.lines.append(text(piece.rstrip()) if piece[:1] != b" " else "  " + text(piece))

    def close(self, source: int) -> None:
        """End the open traceback of a source: the logger has spoken again.

        Args:
            source: Number of the prefix.
        """
        self._inside.discard(source)
        trace = self._open.pop(source, None)
        if trace is None:
            return
        if trace.type or not trace.raised_by_train or len(self._torn) >= _MAX_TORN:
            self._end(trace)
        else:
            self._torn.append(trace)

    def finish(self) -> None:
        """End every open traceback: the log is over."""
        for source in list(self._open):
            self.close(source)
        for trace in self._torn:
            self._end(trace)
        self._torn.clear()

    def _end(self, trace: _Trace) -> None:
        event = trace.event(self._room)
        self._room -= sum(map(len, event.traceback))
        self._tell(event)
