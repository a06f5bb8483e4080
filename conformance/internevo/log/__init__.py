"""From the text of a training log to its steps, head and events."""

from __future__ import annotations

from itertools import pairwise
from typing import BinaryIO

import numpy as np
import pandas as pd

from conformance.internevo.log.messages import Head
from conformance.internevo.log.parser import LINE, MAX_RUNS, META, SOURCE, TIME, Layout, Parser, Rows
from conformance.internevo.log.records import COLUMNS, Event, LineCounts, LogHead, RunLog

__all__ = ["COLUMNS", "Event", "LineCounts", "LogHead", "RunLog", "parse_log"]


def parse_log(stream: BinaryIO, name: str = "") -> list[RunLog]:
    """Read a training log of any layout that InternEvo has had.

    Time is linear in the size of the log; memory is bounded by its steps and by fixed limits on everything else.

    Args:
        stream: The log's bytes: UTF-8 or GBK, with or without ANSI colours, carriage returns and launchers' prefixes.
        name: Name of the log, for findings.

    Returns:
        One RunLog for each run or resumed segment, in the order of the file; none where nothing in it is InternEvo's.
    """
    parser = Parser()
    parser.read(stream)
    _refuse_cut_rows(parser)
    counts = _counts(parser)
    frame = _frame(parser.rows)
    return _runs(frame, parser, counts, name) if len(frame) or counts.known or counts.refused else []


def _refuse_cut_rows(parser: Parser) -> None:
    """Refuse rows whose fields are only the first ones of a layout that is at least as common: writes cut short."""
    sizes = {layout: rows.count for layout, rows in parser.rows.items()}
    for layout, size in sizes.items():
        if any(o[: len(layout)] == layout and len(o) > len(layout) and sizes[o] >= size for o in sizes):
            parser.counts["steps"] -= size
            for line in parser.rows.pop(layout).matrix[LINE, :size]:
                parser.refuse(int(line), "it was cut off in the middle of a write", b"")
                parser.cut = parser.cut or line >= parser.counts["lines"]


def _frame(layouts: dict[Layout, Rows]) -> pd.DataFrame:
    frames = []
    for layout, rows in layouts.items():
        matrix = rows.matrix[:, : rows.count]
        frame = pd.DataFrame(matrix[META:].T, columns=list(layout), copy=False)
        frame["step"] = frame["step"].astype(np.int64)
        frame.insert(0, "line", matrix[LINE].astype(np.int64))
        times = np.full(rows.count, np.datetime64("NaT", "ms"))
        known = np.isfinite(matrix[TIME])
        times[known] = matrix[TIME][known].astype(np.int64).astype("datetime64[ms]")
        frame.insert(1, "time", times)
        frame["source"] = matrix[SOURCE].astype(np.int64)
        frames.append(frame)
    if not frames:
        empty = {"line": "int64", "time": "datetime64[ms]", "step": "int64", "loss": "float64", "tgs": "float64"}
        return pd.DataFrame(columns=[*empty, "source"]).astype({**empty, "source": "int64"})
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    return (
        frame if frame["line"].is_monotonic_increasing else frame.sort_values("line", ignore_index=True, kind="stable")
    )


def _runs(frame: pd.DataFrame, parser: Parser, counts: LineCounts, name: str) -> list[RunLog]:
    """Cut the file at each head, between the launchers' prefixes, and where the steps start over."""
    heads = parser.heads
    if len(heads) > 1 and "data_parallel" not in heads[0][1] and not (frame["line"] < heads[1][0]).any():
        # What stands before the first head belongs to it.
        heads = [(0, {**heads[0][1], **heads[1][1]}), *heads[2:]]
    ends = [line for line, _ in heads[1:]] + [counts.lines + 1]
    events = sorted(parser.events, key=lambda event: event.line)
    runs = []
    for (start, head), end in zip(heads, ends, strict=True):
        first, last = np.searchsorted(frame["line"].to_numpy(), [start, end])
        pieces = _pieces(frame.iloc[first:last])
        begins = [start, *(int(piece["line"].iloc[0]) for piece in pieces[1:])]
        for piece, begin, stop in zip(pieces, begins, [*begins[1:], end], strict=True):
            told = tuple(event for event in events if begin <= event.line < stop)
            if len(piece) or told or head:
                steps = piece.copy(deep=False)  # a long log has room once
                del steps["source"]
                steps.index = pd.RangeIndex(len(steps))
                runs.append(RunLog(steps, _head(head), told, counts, name))
    return runs


def _pieces(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Part the rows of one head by their prefix and, within one prefix, where the steps fall back."""
    pieces: list[pd.DataFrame] = []
    writers = [frame] if frame["source"].nunique() < 2 else [rows for _, rows in frame.groupby("source", sort=False)]
    for rows in writers:
        # What falls back more often than any real log is left in one piece, for the checks to refuse.
        falls = np.flatnonzero(np.diff(rows["step"].to_numpy()) < 0)[:MAX_RUNS] + 1
        pieces += [rows.iloc[a:b] for a, b in pairwise([0, *falls.tolist(), len(rows)])]
    return pieces or [frame]


def _head(head: Head) -> LogHead:
    hosts = tuple(head.get("hosts", ()))
    return LogHead(**{**head, "hosts": hosts})


def _counts(parser: Parser) -> LineCounts:
    counts = parser.counts
    other = counts["lines"] - counts["steps"] - counts["known"] - counts["refused"]
    return LineCounts(**counts, other=max(0, other), examples=tuple(parser.examples), cut=parser.cut)
