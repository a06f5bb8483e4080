"""One compiled pattern for a whole layout of lines, so that most of a log is read in a few calls into C."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from conformance.internevo.log.lines import Field
from conformance.internevo.log.steps import Matrix

_DATE, _CLOCK = rb"\d{4}-\d\d-\d\d", rb" \d\d:\d\d:\d\d,\d{3}"
# No value can end earlier than at its last digit, and no line is given up once it has matched: where Python can be told
# so, a fifth of the time is saved.
_POSSESSIVE = b"+" if sys.version_info >= (3, 11) else b""
_STEP, _VALUE = b"[0-9]{1,15}" + _POSSESSIVE, b"[-+.0-9aefin]{1,40}" + _POSSESSIVE
_EPOCH = np.datetime64("1970-01-01", "D")
_DAY, _CLOCK_UNITS = 86_400_000, (3_600_000, 60_000, 1000, 1)  # ms; hours, minutes, seconds, milliseconds
_NUMBER_BYTES = b"0123456789+-.aefin"
# All that can stand beside a value becomes a comma, and the line a row of a table; what is in no number goes.
_SEPARATORS = b"= ,{}:"
_TO_TABLE = bytes.maketrans(_SEPARATORS, b"," * len(_SEPARATORS))
_TO_NOTHING = bytes(c for c in range(256) if c != ord("\n") and c not in _SEPARATORS + _NUMBER_BYTES)


@dataclass(frozen=True)
class Template:
    """The layout of a line of metrics: what it says between its values.

    Args:
        pattern: Matches one or more whole lines of this layout and of one date.
        mark: What stands in each of them, the longest such text.
        columns: Columns of the values.
        cells: Places of the values among the cells of the table that the line becomes.
        commas: Commas of that table's rows.
        clock: Places of hours, minutes, seconds and milliseconds among those cells, where the line has a time.
        source: Number of the launcher's prefix that such lines carry.
        place: File and function of the code that writes them, and its line there, where they tell.
    """

    pattern: re.Pattern[bytes]
    mark: bytes
    columns: tuple[str, ...]
    cells: tuple[int, ...]
    commas: int
    clock: tuple[int, ...]
    source: int
    place: tuple[str, int] | None


def make_template(
    line: bytes,
    fields: Sequence[Field],
    time: tuple[int, int] | None,
    source: int,
    place: tuple[str, int] | None,
) -> Template:
    """Turn a line that was read field by field into a pattern for all lines like it.

    Args:
        line: The line, without its line end.
        fields: Its values, in order.
        time: Offsets of its time, where it has one.
        source: Number of its prefix.
        place: File and function of the code that wrote it, and its line there.

    Returns:
        The template.
    """
    line += b"\n"
    # What does not change is spelt out for the first line and then referred to: that compares it in one go.
    spans = [(*time, b"(?P<date>%b)%b" % (_DATE, _CLOCK), b"(?P=date)" + _CLOCK)] if time else []
    spans += [(f.start, f.end, *2 * (_STEP if f.column == "step" else _VALUE,)) for f in fields]
    first, further, mark, position = b"", b"", b"", 0
    for number, (start, end, value, next_value) in enumerate([*spans, (len(line), len(line), b"", b"")]):
        between = line[position:start]
        first += b"(?P<g%d>%b)%b" % (number, re.escape(between), value)
        further += b"(?P=g%d)%b" % (number, next_value)
        mark, position = max(mark, between, key=len), end
    return Template(
        pattern=re.compile(b"%b(?:%b)*%b" % (first, further, _POSSESSIVE)),
        mark=mark,
        columns=tuple(field.column for field in fields),
        cells=tuple(_cell(line, field.start) for field in fields),
        commas=_cell(line, len(line)),
        clock=tuple(_cell(line, time[0]) + 1 + unit for unit in range(len(_CLOCK_UNITS))) if time else (),
        source=source,
        place=place,
    )


def _cell(line: bytes, offset: int) -> int:
    """Place of what stands at an offset of a line among the cells of its table."""
    return line[:offset].translate(_TO_TABLE).count(b",")


def find_lines(template: Template, chunk: bytes) -> Iterator[re.Match[bytes]]:
    """Find the lines of a layout.

    Args:
        template: The template.
        chunk: Whole lines.

    Yields:
        A match for each stretch of such lines, no longer than a day.
    """
    end = 0
    while (mark := chunk.find(template.mark, end)) >= 0:
        begin = chunk.rfind(b"\n", end, mark) + 1 or end
        if match := template.pattern.match(chunk, begin):
            yield match
        # A line without line end is the last one, and cut.
        end = match.end() if match else chunk.find(b"\n", mark) + 1 or len(chunk)


def read_values(template: Template, text: bytes) -> tuple[Matrix, Matrix]:
    """Convert lines of one layout.

    Args:
        template: Their template.
        text: What its pattern matched.

    Returns:
        Times in ms since midnight, shape (lines,), nan where there is none; the values, shape (columns, lines).

    Raises:
        ValueError: A value is no number.
    """
    if not text:
        return np.empty(0), np.empty((len(template.columns), 0))
    # NumPy's reader takes two thirds of the time of pandas', and rounds as exactly.
    table = io.BytesIO(text.translate(_TO_TABLE, _TO_NOTHING))
    cells = [*template.clock, *template.cells]
    numbers = np.loadtxt(table, delimiter=",", usecols=cells, comments=None, ndmin=2).T
    clock = numbers[: len(template.clock)]
    return np.array(_CLOCK_UNITS) @ clock if len(clock) else np.full(numbers.shape[1], np.nan), numbers[len(clock) :]


def milliseconds(stamp: bytes) -> float:
    """Read a time of the form 2024-03-27 17:03:42,047.

    Args:
        stamp: The text.

    Returns:
        Milliseconds since 1970 on the log's own clock; nan for a date that does not exist.
    """
    date, *clock = re.split(b"[ :,]", stamp)
    return midnight(date) + sum(int(number) * unit for number, unit in zip(clock, _CLOCK_UNITS, strict=True))


@lru_cache(maxsize=64)
def midnight(date: bytes) -> float:
    """Read a date of the form 2024-03-27.

    Args:
        date: The text.

    Returns:
        Its beginning in milliseconds since 1970; nan for a date that does not exist.
    """
    try:
        return float((np.datetime64(date.decode("ascii"), "D") - _EPOCH).astype(int)) * _DAY
    except ValueError:
        return float("nan")
