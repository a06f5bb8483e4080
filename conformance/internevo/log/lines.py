"""The grammar of one line: prefixes, the logger's header, and the ``key=value`` fields of a line of metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

# Limits that keep hostile input from costing more than its size; a real line of metrics is about 1.2 KB of 45 fields.
MAX_LINE = 1 << 20
MAX_FIELDS = 256
MAX_RECORD = 1 << 14
MAX_PIECES = 256

ANSI = re.compile(rb"\x1b\[[0-9;?]{0,40}[ -/]{0,8}[@-~]")

# What launchers put before a line: torchrun's [default0]: and [rank0]:, and the label of `srun --label`.
PREFIX = re.compile(rb"(?:\[(?:default|(?P<is_rank>rank))?(?P<number>\d{1,5})\]:? ?|(?P<task>\d{1,5}): )")

_STAMP = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
_LEVELS = rb"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL)"
HEADER = re.compile(
    rb"(?P<time>" + _STAMP + rb")[ \t]{1,8}(?P<level>" + _LEVELS + rb") "
    rb"(?P<file>[\w.\-]{1,80}):(?P<code_line>\d{1,7}) in (?P<function>[\w<>.]{1,80}) -- ?"
)
# Where a second line begins inside a line: after a progress bar, a write cut short, or two ranks writing at once.
GLUED = re.compile(
    rb"(?:\[(?:default|rank)?\d{1,5}\]:? ?)?" + _STAMP + rb"[ \t]{1,8}" + _LEVELS + rb" [\w.\-]{1,80}:\d{1,7} in "
)

# What a line has that has a header, or a second line inside, or fields.
MARKS = rb",\d{3}[ \t]{1,8}" + _LEVELS + rb" |metrics --|tflops=|loss="
# The end of a header, and perhaps of the first key's beginning, where wrapping left the fields to the next line.
BARE = re.compile(rb"metrics -- ?\w{0,8}\s{0,4}$")
RECORD_START = re.compile(rb"(?<![^\s,])(?:tflops=|step=\d{1,15}[ ,]+loss=)")

_KEY = rb"[A-Za-z_][\w./\-]{0,79}"
# The look-behind lets a word start a key only at its own beginning, which keeps the search linear.
_FIELD = re.compile(rb"(?<![\w./\-])(" + _KEY + rb")(?: \([^()=]{1,40}\))?=(\{[^{}]{0,4096}\}|[^\s,]{0,200})")
_DICT_ITEM = re.compile(rb"['\"]?([^\s'\":,{}]{1,80})['\"]?: {0,4}([^\s,{}]{1,80})")
_NUMBER = re.compile(rb"[-+.\dainfeE]{1,40}")
_DIGITS = re.compile(rb"\d{1,15}")
# How the second piece of a wrapped line can begin.
_STARTS_FIELD = re.compile(_KEY + rb"(?: \([\w/ ]{1,40}\)?)?(?:=|$)")
_STARTS_IN_KEY = re.compile(rb"[\w./\-]{0,80}(?: \([\w/ ]{1,40}\)?)?(?:=|$)")
_STARTS_UNIT = re.compile(rb"\(tokens/")
_STARTS_IN_UNIT = re.compile(rb"[\w/ ]{0,30}\)?=")
_STARTS_IN_VALUE = re.compile(rb"[-+.\dainfeE]{1,40}(?=[\s,]|$)|\{")
# How the first piece can end.
_ENDS_IN_KEY = re.compile(rb"(?:^|[\s,])[A-Za-z_][\w./\-]{0,79}$")
_ENDS_IN_UNIT = re.compile(rb" \([\w/ ]{0,40}\)?$")
_ENDS_IN_VALUE = re.compile(rb"=[^\s,=]{0,200}$")

# What a line of metrics must have to be one.
REQUIRED = ("step", "loss", "tgs")
# Columns that are added to those of the log; a field of that name gets a name that no field can have.
OWN = ("line", "time", "source", "layout", "segment")


class LineError(ValueError):
    """A line of metrics that cannot be trusted; the text says why."""


@dataclass(frozen=True)
class Field:
    """One number in a line of metrics.

    Args:
        column: Its column in the frame.
        start: Offset of the number in the line.
        end: Offset of its end.
    """

    column: str
    start: int
    end: int


def split_fields(record: bytes, start: int = 0) -> list[Field]:
    """Find every field of a line of metrics.

    Args:
        record: The line.
        start: Where its header ends.

    Returns:
        The fields in the order of the line, the entries of dict values among them as key/entry.

    Raises:
        LineError: The line has no step, loss or tgs, has one twice, or a step that is not a whole number.
    """
    fields = list(islice(_fields(record, start), MAX_FIELDS + 1))
    if len(fields) > MAX_FIELDS:
        raise LineError(f"more than {MAX_FIELDS} fields")
    columns = [field.column for field in fields]
    for column in REQUIRED:
        if columns.count(column) != 1:
            raise LineError(f"{column} stands in it {columns.count(column)} times")
    if len(set(columns)) != len(columns):
        raise LineError("a field stands in it twice")
    step = fields[columns.index("step")]
    if not _DIGITS.fullmatch(record, step.start, step.end):
        raise LineError("its step is not a whole number")
    return fields


def _fields(record: bytes, start: int) -> Iterator[Field]:
    for match in _FIELD.finditer(record, start):
        key = match[1].decode("ascii")
        if not match[2].startswith(b"{"):
            yield Field(f"{key}=" if key in OWN else key, match.start(2), match.end(2))
            continue
        for item in _DICT_ITEM.finditer(record, match.start(2) + 1, match.end(2)):
            yield Field(f"{key}/{item[1].decode('ascii', 'replace')}", item.start(2), item.end(2))


def to_number(text: bytes) -> float:
    """Read a value.

    Args:
        text: Digits, exponent form, nan or inf.

    Returns:
        The number; nan where the text is none, as for a tensor's repr.
    """
    if not _NUMBER.fullmatch(text):
        return float("nan")
    try:
        return float(text)
    except ValueError:
        return float("nan")


def join(record: bytes, piece: bytes) -> bytes | None:
    """Join a wrapped line of metrics with the line after it.

    Args:
        record: The record so far, without its line end.
        piece: The next line, without header.

    Returns:
        Both joined, at the place where the wrapping cut; None where the piece is not part of the record.
    """
    body = piece.strip()
    if not body or len(record) + len(body) > MAX_RECORD:
        return None
    tail = record[-300:]
    if record.rfind(b"{") > record.rfind(b"}"):
        if b"}" in body or b"'" in body or _NUMBER.fullmatch(body):
            return record + (b" " if tail[-1:] in b",:" else b"") + body
        return None
    cut = (
        (_ENDS_IN_KEY.search(tail) and _STARTS_IN_KEY.match(body))
        or (_ENDS_IN_UNIT.search(tail) and _STARTS_IN_UNIT.match(body))
        or (_ENDS_IN_VALUE.search(tail) and _STARTS_IN_VALUE.match(body))
        or (body.startswith(b",") and _STARTS_FIELD.match(body, 1))
    )
    if cut:
        return record + body
    if _STARTS_FIELD.match(body) or _STARTS_UNIT.match(body):
        return record.rstrip() + b" " + body
    return None
