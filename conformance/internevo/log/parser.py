"""Reads a log of any layout: templates for the bulk of it, line by line for the rest."""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from conformance.internevo.log import lines as grammar
from conformance.internevo.log.lines import LineError
from conformance.internevo.log.marks import Marks, line_ends
from conformance.internevo.log.messages import IN_PRELUDE, RAISED, STARTS_RUN, Head, read_message, text
from conformance.internevo.log.records import Event
from conformance.internevo.log.steps import Matrix, Rows
from conformance.internevo.log.template import (
    Template,
    find_lines,
    make_template,
    midnight,
    milliseconds,
    read_values,
)
from conformance.internevo.log.traces import Traces

CHUNK = 1 << 19

# Limits that keep hostile input from costing more memory than its size.
_MAX_TEMPLATES = 8
_MAX_COLUMNS = 256
_MAX_LAYOUTS = 256
_MAX_EVENTS = 1000  # of one kind, the first ones and as many of the last
MAX_RUNS = 200
_MAX_SOURCES = 1024
_MAX_CODE_LINES = 200
MAX_EXAMPLES = 5
_MAX_REFUSALS = 10_000
_LOOSE_ROWS = 4096

Layout = tuple[str, ...]
# The first columns of the rows; the values follow.
META = ("line", "time", "source")


@dataclass
class _Record:
    """A line of metrics that the next line may continue."""

    text: bytes
    body: int  # where the header ends
    time: tuple[int, int] | None  # offsets of the time
    source: int
    line: int
    cut: bool  # whether it ends without a line end
    place: tuple[str, int] | None  # file and function of the code that wrote it, and its line there
    pieces: int = 1

    @property
    def bare(self) -> bool:
        """Whether it has no field as yet."""
        return b"=" not in self.text[self.body :]

    def awaits(self, piece: bytes) -> bool:
        """Whether a line that could begin a record carries what this one still lacks."""
        return self.bare or (b"step=" not in self.text[self.body :] and b"tflops=" not in piece)

    def join(self, piece: bytes, source: int, cut: bool) -> bool:
        """Add the next line if it belongs to the record; a piece that was cut, or follows one, does not."""
        if self.source != source or self.cut or self.pieces >= grammar.MAX_PIECES:
            return False
        joined = grammar.join(self.text, piece)
        if joined is None:
            return False
        self.text, self.cut = joined, cut
        self.pieces += 1
        return True


class Parser:
    """Takes a log in chunks of whole lines and collects rows, heads and events.

    Attributes:
        rows: The rows of each layout.
        heads: For each run found, the line of its beginning and what its head says.
        events: What the log tells besides, in no order.
        counts: Lines by what became of them: lines, steps, known, refused; and events that were dropped.
        refusals: The first refused lines: number, pieces, and of some the text with the reason.
        first_lines: Beginning of the first line of each layout, by its number.
        cut: Whether the file ends in the middle of a line of metrics.
    """

    def __init__(self) -> None:
        self.rows: dict[Layout, Rows] = {}
        self.heads: list[tuple[int, Head]] = [(0, {})]
        self.events: list[Event] = []
        self.counts = {"lines": 0, "steps": 0, "known": 0, "refused": 0, "events_dropped": 0}
        self.refusals: list[tuple[int, int, str]] = []
        self.first_lines: dict[int, bytes] = {}
        self.cut = False
        self._prelude: Head = {}
        self._traces = Traces(self._tell)
        self._told: dict[tuple[str, bool], tuple[list[Event], deque[Event]]] = {}
        self._templates: list[Template] = []
        self._columns: set[str] = set()
        self._examples_of: Counter[int] = Counter()
        self._sources: dict[bytes, int] = {}
        self._record: _Record | None = None
        self._loose: dict[Layout, list[tuple[int, float, int, list[float]]]] = {}
        self._loose_rows = 0
        self._expected_line = 1

    def read(self, stream: BinaryIO) -> None:
        """Read a whole log.

        Args:
            stream: The log.
        """
        line = 1
        for chunk in _whole_lines(stream):
            if b"\x1b" in chunk:
                chunk = grammar.ANSI.sub(b"", chunk)
            if b"\r" in chunk:
                chunk = chunk.replace(b"\r\n", b"\n")
            line = self._scan(chunk, line, 0)
        self.counts["lines"] = line - 1
        self._close_record()
        self._settle()
        self._traces.finish()
        self.events = [event for first, last in self._told.values() for event in (*first, *last)]
        self.heads[-1] = (self.heads[-1][0], {**self._prelude, **self.heads[-1][1]})

    def refuse(self, line: int, reason: str, example: bytes, pieces: int = 1) -> None:
        """Count a line of metrics that cannot be trusted.

        Args:
            line: Its number.
            reason: Why.
            example: What stands in it.
            pieces: Lines that it was wrapped over.
        """
        self.counts["refused"] += pieces
        if len(self.refusals) < _MAX_REFUSALS:
            run = len(self.heads)
            self._examples_of[run] += 1
            shown = self._examples_of[run] <= MAX_EXAMPLES
            told = f"line {line}: {reason}: {text(example[:160])}" if shown else ""
            self.refusals.append((line, pieces, told))

    def _scan(self, chunk: bytes, line: int, depth: int) -> int:
        """Read whole lines: those that the template at ``depth`` matches by it, the rest by the templates after it.

        Args:
            chunk: The lines.
            line: Number of the first.
            depth: Index of the template; past the last one they are read one by one.

        Returns:
            Number of the line after them.
        """
        if not chunk:
            return line
        if depth >= len(self._templates):
            return self._read_lines(chunk, line)
        template = self._templates[depth]
        found = list(find_lines(template, chunk))
        spans = [match.span() for match in found]
        whole = spans == [(0, len(chunk))]
        try:
            times, values = read_values(template, chunk if whole else b"".join([chunk[a:b] for a, b in spans]))
        except ValueError:  # the letters and signs of numbers, but no number
            return self._scan(chunk, line, depth + 1)
        lines = np.empty(len(times))
        done = row = 0
        if self._is_quiet(chunk, spans):
            self._note(template.place)
            lines, rows_of = _number_rows(chunk, line, spans)
            if template.clock:
                times += np.repeat([midnight(match["date"]) for match in found], rows_of)
            done, line, row = spans[-1][1], int(lines[-1]) + 1, len(times)
        for match, (begin, end) in () if row else zip(found, spans, strict=True):
            line = self._scan(chunk[done:begin], line, depth + 1)
            # A line of metrics ends what stands before it.
            self._close_record()
            self._traces.close(template.source)
            self._note(template.place)
            rows = slice(row, row + (len(times) if len(found) == 1 else chunk.count(b"\n", begin, end)))
            lines[rows] = np.arange(line, line + rows.stop - row)
            if template.clock:
                times[rows] += midnight(match["date"])
            done, line, row = end, line + rows.stop - row, rows.stop
        if found:
            # What was read one by one comes before: rows that lie in order need not be sorted.
            self._settle()
            self._add(template.columns, lines, times, np.full(row, template.source), values)
            self.counts["steps"] += row
        return self._scan(chunk[done:], line, depth + 1)

    def _is_quiet(self, chunk: bytes, spans: Sequence[tuple[int, int]]) -> bool:
        """Whether nothing is pending, and nothing between the lines found says anything; one look for all."""
        if len(spans) < 2 or self._record is not None or self._traces.waiting or not self._traces.idle:
            return False
        ends = [0, *(end for _, end in spans)]
        gaps = b"".join([chunk[end:begin] for end, (begin, _) in zip(ends, spans, strict=False)])
        return Marks(gaps).line(0, idle=True) == len(gaps)

    def _read_lines(self, chunk: bytes, line: int) -> int:
        if line != self._expected_line:
            self._close_record()
        templates, begin, marks = len(self._templates), 0, Marks(chunk)
        while begin < len(chunk):
            if self._record is None and not self._traces.waiting:
                # Nothing is pending: on to the next line that says something.
                marked = marks.line(begin, idle=self._traces.idle)
                line += line_ends(chunk, begin, marked)
                begin = marked
                if begin == len(chunk):
                    line += not chunk.endswith(b"\n")
                    break
            end = chunk.find(b"\n", begin)
            self._read_line(chunk[begin : end if end >= 0 else None], line, cut=end < 0)
            begin, line = end + 1 or len(chunk), line + 1
            if len(self._templates) > templates:
                # A layout was found: the rest of the chunk may be full of it.
                self._expected_line = line
                return self._scan(chunk[begin:], line, 0)
        self._expected_line = line
        return line

    def _read_line(self, line: bytes, number: int, cut: bool) -> None:
        for part in line[: grammar.MAX_LINE].split(b"\r"):
            start, rank = _skip_prefixes(part)
            glued = [m.start() for m in grammar.GLUED.finditer(part, start + 1)] if b"," in part else []
            if not glued:
                self._read_piece(part, start, rank, number, cut)
                continue
            for begin, end in zip([0, *glued], [*glued, len(part)], strict=True):
                piece = part[begin:end]
                self._read_piece(piece, *_skip_prefixes(piece), number, cut or end < len(part))

    def _read_piece(self, piece: bytes, start: int, rank: int | None, line: int, cut: bool) -> None:
        source = self._source(piece[:start])
        header = grammar.HEADER.match(piece, start)
        body = header.end() if header else start
        record = self._record
        if header is None and record is not None and record.awaits(piece) and record.join(piece[start:], source, cut):
            return
        if grammar.RECORD_START.search(piece, body, body + 200) or grammar.BARE.search(piece[-80:]):
            self._close_record()
            self._traces.close(source)
            place = _place(header) if header else None
            self._note(place)
            self._record = _Record(piece, body, header.span("time") if header else None, source, line, cut, place)
        elif header:
            self._close_record()
            self._read_message(header, piece[body:], line, source)
        elif self._record is None or not self._record.join(piece[start:], source, cut):
            self._close_record()
            if piece and self._traces.take(source, piece[start:], line, rank):
                self.counts["known"] += 1

    def _source(self, prefix: bytes) -> int:
        if prefix not in self._sources and len(self._sources) >= _MAX_SOURCES:
            return 0
        return self._sources.setdefault(prefix, len(self._sources))

    def _read_message(self, header: re.Match[bytes], message: bytes, line: int, source: int) -> None:
        time = _datetime(header["time"])
        if raised := RAISED.match(message):
            self._traces.raised(source, raised, line, time)
            self.counts["known"] += 1
            return
        self._traces.close(source)
        if STARTS_RUN.match(message) and len(self.heads) < MAX_RUNS:
            self.heads.append((line, {**self._prelude, "begun": time}))
            self._prelude = {}
        head = self._prelude if IN_PRELUDE.match(message) else self.heads[-1][1]
        known, told = read_message(head, message)
        if known:
            self.counts["known"] += 1
            self._note(_place(header))
        if told is not None:
            self._tell(Event(told[0], text(message), line, time, value=told[1]))

    def _note(self, place: tuple[str, int] | None) -> None:
        code_lines = self.heads[-1][1].setdefault("code_lines", {})
        if place is not None and len(code_lines) < _MAX_CODE_LINES:
            code_lines[place[0]] = place[1]

    def _tell(self, event: Event) -> None:
        # What train.py caught has ended a training; no flood of other tracebacks may hide it.
        key = event.kind, event.raised_by_train
        first, last = self._told.setdefault(key, ([], deque(maxlen=_MAX_EVENTS)))
        if len(first) < _MAX_EVENTS:
            first.append(event)
            return
        self.counts["events_dropped"] += len(last) == _MAX_EVENTS
        last.append(event)

    def _close_record(self) -> None:
        """Turn the pending line of metrics, now known to be whole, into a row."""
        record, self._record = self._record, None
        if record is None or record.bare:
            return
        try:
            fields, values = _values(record)
            layout = tuple(field.column for field in fields)
            if layout not in self._loose and len(self._loose) + len(self.rows) >= _MAX_LAYOUTS:
                raise LineError(f"the log has more than {_MAX_LAYOUTS} layouts")
            if len(self._columns | set(layout)) > _MAX_COLUMNS:
                raise LineError(f"the log has more than {_MAX_COLUMNS} different fields")
        except LineError as refusal:
            self.cut = self.cut or record.cut
            self.refuse(record.line, str(refusal), record.text[record.body :], record.pieces)
            return
        if layout not in self._loose and layout not in self.rows:
            self.first_lines[record.line] = record.text[record.body :][:160]
        self._columns.update(layout)
        self.counts["steps"] += record.pieces
        time = milliseconds(record.text[slice(*record.time)]) if record.time else np.nan
        self._loose.setdefault(layout, []).append((record.line, time, record.source, values))
        self._loose_rows += 1
        if self._loose_rows >= _LOOSE_ROWS:
            self._settle()
        if record.pieces == 1 and not record.cut and len(self._templates) < _MAX_TEMPLATES:
            template = make_template(record.text, fields, record.time, record.source, record.place)
            if template.pattern.match(record.text + b"\n") and template not in self._templates:
                self._templates.insert(0, template)

    def _add(self, layout: Layout, lines: Matrix, times: Matrix, sources: Matrix, values: Matrix) -> None:
        rows = self.rows.setdefault(layout, Rows((*META, *layout)))
        rows.add(np.vstack([lines, times, sources, values]))

    def _settle(self) -> None:
        """Move the rows that were read one by one to the matrices."""
        for layout, rows in self._loose.items():
            lines, times, sources, values = (np.array(column, dtype=np.float64) for column in zip(*rows, strict=True))
            self._add(layout, lines, times, sources, values.T)
        self._loose.clear()
        self._loose_rows = 0


def _number_rows(chunk: bytes, line: int, spans: Sequence[tuple[int, int]]) -> tuple[Matrix, npt.NDArray[np.intp]]:
    """Number the lines that a template found in a chunk, all at once; how many each match has."""
    ends = np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n"))
    before, after = np.searchsorted(ends, np.array(spans).T)
    rows = after - before
    skipped = before - np.cumsum(rows) + rows  # lines before each match that no match has
    return line + np.repeat(skipped, rows) + np.arange(rows.sum(), dtype=np.float64), rows


def _values(record: _Record) -> tuple[list[grammar.Field], list[float]]:
    fields = grammar.split_fields(record.text, record.body)
    values = [grammar.to_number(record.text[field.start : field.end]) for field in fields]
    if record.cut and not record.text[-1:].isspace():
        # Its last number may have lost digits.
        if fields[-1].column in grammar.REQUIRED:
            raise LineError("it was cut off in the middle of a write")
        values[-1] = float("nan")
    return fields, values


def _place(header: re.Match[bytes]) -> tuple[str, int]:
    return f"{text(header['file'])} {text(header['function'])}", int(header["code_line"])


def _skip_prefixes(piece: bytes) -> tuple[int, int | None]:
    """Where the text begins after the launchers' prefixes, and the global rank that they name."""
    start, rank = 0, None
    while start < 64 and (prefix := grammar.PREFIX.match(piece, start)):
        start = prefix.end()
        number = prefix["task"] or (prefix["number"] if prefix["is_rank"] else None)
        rank = int(number) if number else rank
    return start, rank


def _datetime(stamp: bytes) -> datetime | None:
    try:
        return datetime.fromisoformat(stamp.decode("ascii").replace(",", "."))
    except ValueError:  # a date that does not exist
        return None


def _whole_lines(stream: BinaryIO) -> Iterator[bytes]:
    """Yield a stream in chunks that end with a line, the last one excepted; a line beyond MAX_LINE loses its end."""
    carry, skipping = b"", False
    while block := stream.read(CHUNK):
        if skipping:
            end = block.find(b"\n")
            if end < 0:
                continue
            block, skipping = block[end:], False
        cut = block.rfind(b"\n") + 1
        if cut:
            # One copy: at this speed each costs some percent.
            yield b"".join((carry, memoryview(block)[:cut]))
            carry = b""
        carry += block[cut:]
        if len(carry) > grammar.MAX_LINE:
            carry, skipping = carry[: grammar.MAX_LINE], True
    if carry:
        yield carry
