"""One compiled pattern for a whole layout of lines, so that most of a log is read in a few calls into C."""

from __future__ import annotations

import csv
import io
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from conformance.internevo.log.lines import Field

_TIME = rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
_TIME_WIDTH = 23
# No value can end earlier than at its last digit: where Python can be told so, a fifth of the time is saved.
_POSSESSIVE = b"+" if sys.version_info >= (3, 11) else b""
_STEP, _VALUE = b"[0-9]{1,15}" + _POSSESSIVE, b"[-+.0-9aefin]{1,40}" + _POSSESSIVE
_EPOCH = np.datetime64("1970-01-01", "D")
_NEWLINE = ord("\n")
_NUMBER_BYTES = b"0123456789+-.aefin"
# All that can stand beside a value becomes a comma, and the line a row of a table; what is in no number goes.
_SEPARATORS = b"= ,{}:"
_TO_TABLE = bytes.maketrans(_SEPARATORS, b"," * len(_SEPARATORS))
_TO_NOTHING = bytes(c for c in range(256) if c != _NEWLINE and c not in _SEPARATORS + _NUMBER_BYTES)

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Template:
    """The layout of a line of metrics: what it says between its values.

    Args:
        pattern: Matches one or more whole lines of this layout.
        columns: Columns of the values.
        cells: Places of the values among the cells of the table that the line becomes.
        commas: Commas of that table's rows.
        time: Offset of the time in the line, where it has one.
        source: Number of the launcher's prefix that such lines carry.
    """

    pattern: re.Pattern[bytes]
    columns: tuple[str, ...]
    cells: tuple[int, ...]
    commas: int
    time: int | None
    source: int


def make_template(line: bytes, fields: Sequence[Field], time: tuple[int, int] | None, source: int) -> Template:
    """Turn a line that was read field by field into a pattern for all lines like it.

    Args:
        line: The line, without its line end.
        fields: Its values, in order.
        time: Offsets of its time, where it has one.
        source: Number of its prefix.

    Returns:
        The template.
    """
    line += b"\n"
    pattern, position = [rb"(?:^"], 0
    spans = [(*time, _TIME)] if time else []
    spans += [(f.start, f.end, _STEP if f.column == "step" else _VALUE) for f in fields]
    for start, end, group in spans:
        pattern += [re.escape(line[position:start]), group]
        position = end
    pattern += [re.escape(line[position:]), b")+"]
    return Template(
        pattern=re.compile(b"".join(pattern), re.M),
        columns=tuple(field.column for field in fields),
        cells=tuple(line[: field.start].translate(_TO_TABLE).count(b",") for field in fields),
        commas=line.translate(_TO_TABLE).count(b","),
        time=time[0] if time else None,
        source=source,
    )


def read_values(template: Template, text: bytes) -> tuple[Matrix, list[Matrix]]:
    """Convert lines of one layout.

    Args:
        template: Their template.
        text: What its pattern matched.

    Returns:
        Times in ms since 1970, shape (lines,), nan where there is none; the values of each column, of the same shape.

    Raises:
        ValueError: A value is no number.
    """
    if not text:
        return np.empty(0), [np.empty(0) for _ in template.columns]
    line_ends = np.flatnonzero(np.frombuffer(text, np.uint8) == _NEWLINE)
    with warnings.catch_warnings():
        # Some versions of pandas call the option superfluous, to others the last digit depends on it.
        warnings.simplefilter("ignore")
        frame = pd.read_csv(
            io.BytesIO(text.translate(_TO_TABLE, _TO_NOTHING)),
            header=None,
            names=range(template.commas + 1),
            usecols=template.cells,
            index_col=False,
            dtype=np.float64,
            quoting=csv.QUOTE_NONE,
            float_precision="round_trip",
            low_memory=False,
        )
    values = [frame[cell].to_numpy() for cell in template.cells]
    if template.time is None:
        return np.full(len(line_ends), np.nan), values
    starts = np.concatenate([[0], line_ends[:-1] + 1]) + template.time
    stamps = np.frombuffer(text, np.uint8)[starts[:, None] + np.arange(_TIME_WIDTH)]
    return _milliseconds(stamps), values


def milliseconds(stamps: Sequence[bytes]) -> Matrix:
    """Read times of the form 2024-03-27 17:03:42,047.

    Args:
        stamps: The texts, 23 bytes each.

    Returns:
        Milliseconds since 1970 on the log's own clock; nan for a date that does not exist.
    """
    return _milliseconds(np.frombuffer(b"".join(stamps), np.uint8).reshape(-1, _TIME_WIDTH))


def _milliseconds(stamps: npt.NDArray[np.uint8]) -> Matrix:
    weights = np.zeros(_TIME_WIDTH)
    weights[[11, 12, 14, 15, 17, 18, 20, 21, 22]] = [36e6, 36e5, 6e5, 6e4, 1e4, 1e3, 100, 10, 1]
    dates, where = np.unique(np.ascontiguousarray(stamps[:, :10]).view("S10").ravel(), return_inverse=True)
    days = np.array([_days(date.decode("ascii")) for date in dates])
    result: Matrix = days[where] * 86_400_000 + ((stamps - np.uint8(ord("0"))) * weights).sum(axis=1)
    return result


def _days(date: str) -> float:
    try:
        return float((np.datetime64(date, "D") - _EPOCH).astype(int))
    except ValueError:
        return float("nan")
