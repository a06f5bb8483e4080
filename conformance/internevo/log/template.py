"""One compiled pattern for a whole layout of lines, so that most of a log is read in a few calls into C."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from conformance.internevo.log.lines import MAX_STEP, Field

_TIME = rb"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3})"
_EPOCH = np.datetime64("1970-01-01", "D")

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Template:
    """The layout of a line of metrics: what it says between its values.

    Args:
        pattern: Matches one whole line of this layout; a group for the time, if any, and one for each value.
        columns: Columns of the values.
        has_time: Whether the first group is the time.
        source: Number of the launcher's prefix that such lines carry.
    """

    pattern: re.Pattern[bytes]
    columns: tuple[str, ...]
    has_time: bool
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
    pattern, position = [rb"^"], 0
    spans = [(time[0], time[1], _TIME)] if time else []
    # "Anything but the byte that ends it" is the fastest group there is; the bound keeps a value from being sought
    # through the rest of the file. What it lets through that is no number, the conversion refuses.
    spans += [(f.start, f.end, b"([^%s]{1,40})" % re.escape(line[f.end : f.end + 1])) for f in fields]
    for start, end, group in spans:
        pattern += [re.escape(line[position:start]), group]
        position = end
    pattern.append(re.escape(line[position:]))
    return Template(re.compile(b"".join(pattern), re.M), tuple(f.column for f in fields), time is not None, source)


def read_values(template: Template, parts: list[bytes]) -> tuple[Matrix, Matrix]:
    """Convert what a template's pattern split a stretch of lines into.

    Args:
        template: The template.
        parts: What ``pattern.split`` gave: for each match what stands before it and then its groups; last, the rest.

    Returns:
        Times in ms since 1970, shape (lines,), nan where there is none; values, shape (columns, lines).

    Raises:
        ValueError: A value is no number.
    """
    width = template.pattern.groups + 1
    count = len(parts) // width
    cells = parts.copy()
    cells[0::width] = [b"", *[b"\n"] * (count - 1), b""]
    times = np.full(count, np.nan)
    if template.has_time:
        times = milliseconds(parts[1::width])
        cells[1::width] = [b""] * count
    table = b",".join(cells)
    if table.count(b",") != len(cells) - 1 or table.count(b"\n") != count - 1:
        raise ValueError("a value holds a separator")
    with warnings.catch_warnings():
        # Some versions of pandas call the option superfluous, to others the last digit depends on it.
        warnings.simplefilter("ignore")
        frame = pd.read_csv(
            io.BytesIO(table),
            header=None,
            names=range(width + 1),
            index_col=False,
            dtype=np.float64,
            quoting=csv.QUOTE_NONE,
            float_precision="round_trip",
            low_memory=False,
        )
    # The first column is what stood before the match, the last one the line end.
    values = frame.to_numpy()[:, 2 if template.has_time else 1 : width].T
    steps = values[template.columns.index("step")]
    if values.shape[1] != count or not np.all((steps >= 0) & (steps <= MAX_STEP) & (steps == np.floor(steps))):
        raise ValueError("a step is not a whole number")
    return times, values


def milliseconds(stamps: Sequence[bytes]) -> Matrix:
    """Read times of the form 2024-03-27 17:03:42,047.

    Args:
        stamps: The texts, 23 bytes each.

    Returns:
        Milliseconds since 1970 on the log's own clock; nan for a date that does not exist.
    """
    texts = np.array(stamps, dtype="S23")
    digits = texts.view(np.uint8).reshape(-1, 23) - np.uint8(ord("0"))
    weights = np.zeros(23)
    weights[[11, 12, 14, 15, 17, 18, 20, 21, 22]] = [36e6, 36e5, 6e5, 6e4, 1e4, 1e3, 100, 10, 1]
    dates, where = np.unique(texts.astype("S10"), return_inverse=True)
    days = np.array([_days(date.decode("ascii")) for date in dates])
    result: Matrix = days[where] * 86_400_000 + digits @ weights
    return result


def _days(date: str) -> float:
    try:
        return float((np.datetime64(date, "D") - _EPOCH).astype(int))
    except ValueError:
        return float("nan")
