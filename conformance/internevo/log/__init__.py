"""From the text of a training log to its steps, head and events."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from conformance.internevo.log.messages import Head
from conformance.internevo.log.parser import LINE, MAX_EXAMPLES, MAX_RUNS, META, SOURCE, TIME, Layout, Parser, Rows
from conformance.internevo.log.records import COLUMNS, Event, LineCounts, LogHead, Refused, RunLog

# The lines of a run: the first, and the one after its last.
Span = tuple[int, int]

__all__ = ["COLUMNS", "Event", "LineCounts", "LogHead", "Refused", "RunLog", "parse_log"]


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
    frame = _frame(parser)
    runs = [
        (head, _without_cut_rows(piece, parser), span) for head, part in _by_head(frame, parser) for piece, span in part
    ]
    counts = _counts(parser)
    if not (len(frame) or counts.known or counts.refused):
        return []
    events = sorted(parser.events, key=lambda event: event.line)
    refusals = sorted(parser.refusals)
    found = [
        RunLog(
            _steps(piece, parser), head, tuple(_within(span, events)), counts, name, _refused(span, refusals, counts)
        )
        for head, piece, span in runs
    ]
    return [run for run in found if len(run.steps) or run.events or run.head != LogHead()]


def _within(span: Span, events: Sequence[Event]) -> Sequence[Event]:
    first, last = (bisect_left(events, line, key=lambda event: event.line) for line in span)
    return events[first:last]


def _refused(span: Span, refusals: Sequence[tuple[int, int, str]], counts: LineCounts) -> Refused:
    first, last = (bisect_left(refusals, (line,)) for line in span)
    # Where those stand that are too many to be kept, nobody has noted; no run is cleared of them.
    lines = counts.refused - sum(pieces for _, pieces, _ in (*refusals[:first], *refusals[last:]))
    examples = [example for _, _, example in refusals[first:last] if example]
    return Refused(lines, tuple(examples[:MAX_EXAMPLES]), counts.cut and span[1] > counts.lines)


def _frame(parser: Parser) -> pd.DataFrame:
    frames = [_frame_of(rows, layout, number) for number, (layout, rows) in enumerate(parser.rows.items())]
    if not frames:
        return _no_rows()
    frame = frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)
    # Two rows have one line where a write was cut short and the next one follows it there.
    if not frame["line"].is_monotonic_increasing:
        frame = frame.sort_values(["line", "step"], ignore_index=True)
    return _without_echoes(frame, parser)


def _without_echoes(frame: pd.DataFrame, parser: Parser) -> pd.DataFrame:
    """Leave out rows that only say the row before again, in a line without a time.

    Where some library of the platform gives Python's root logger a handler, each of InternEvo's lines is printed twice.
    """
    timeless = frame["time"].isna().to_numpy()
    later = np.flatnonzero(timeless[1:] & ~timeless[:-1]) + 1
    if not len(later):
        return frame
    said = frame.drop(columns=["line", "time"])
    again, first = (said.iloc[rows].to_numpy(np.float64) for rows in (later, later - 1))
    echoes = later[((again == first) | (np.isnan(again) & np.isnan(first))).all(axis=1)]
    parser.counts["steps"] -= len(echoes)
    parser.counts["known"] += len(echoes)
    return frame.drop(index=echoes).reset_index(drop=True) if len(echoes) else frame


def _frame_of(rows: Rows, layout: Layout, number: int) -> pd.DataFrame:
    times = np.full(rows.count, np.datetime64("NaT", "ms"))
    known = np.isfinite(rows.filled(TIME))
    times[known] = rows.filled(TIME)[known].astype(np.int64).astype("datetime64[ms]")
    columns: dict[str, np.ndarray[Any, Any]] = {"line": rows.filled(LINE).astype(np.int64), "time": times}
    columns |= {name: rows.filled(META + place) for place, name in enumerate(layout)}
    columns |= {"step": columns["step"].astype(np.int64), "source": rows.filled(SOURCE).astype(np.int64)}
    columns |= {"layout": np.full(rows.count, number)}
    # A long log has room once; to very many columns apart from one another none can be added quickly.
    return pd.DataFrame(columns, copy=len(columns) > 80)


@cache
def _no_rows() -> pd.DataFrame:
    names = {"line": "int64", "time": "datetime64[ms]", "step": "int64", "loss": "float64", "tgs": "float64"}
    return pd.DataFrame(columns=[*names, "source", "layout"]).astype({**names, "source": "int64", "layout": "int64"})


def _by_head(frame: pd.DataFrame, parser: Parser) -> Iterator[tuple[LogHead, list[tuple[pd.DataFrame, Span]]]]:
    """Cut the file at each head, between the launchers' prefixes, and where the steps start over.

    Yields:
        Each head, with the rows of the runs that stand under it and the lines from which and up to which each stands.
    """
    heads = parser.heads
    if len(heads) > 1 and "data_parallel" not in heads[0][1] and not (frame["line"] < heads[1][0]).any():
        # What stands before the first head belongs to it.
        heads = [(0, {**heads[0][1], **heads[1][1]}), *heads[2:]]
    ends = [line for line, _ in heads[1:]] + [parser.counts["lines"] + 1]
    for (start, head), end in zip(heads, ends, strict=True):
        first, last = np.searchsorted(frame["line"].to_numpy(), [start, end])
        pieces = _pieces(frame.iloc[first:last])
        begins = [start, *(int(piece["line"].iloc[0]) for piece in pieces[1:]), end]
        yield _head(head), list(zip(pieces, pairwise(begins), strict=True))


def _pieces(frame: pd.DataFrame) -> list[pd.DataFrame]:
    """Part the rows of one head by their prefix and, within one prefix, where the steps fall back."""
    pieces: list[pd.DataFrame] = []
    writers = [frame] if frame["source"].nunique() < 2 else [rows for _, rows in frame.groupby("source", sort=False)]
    for rows in writers:
        # What falls back more often than any real log is left in one piece, for the checks to refuse.
        falls = np.flatnonzero(np.diff(rows["step"].to_numpy()) < 0)[:MAX_RUNS] + 1
        pieces += [rows.iloc[a:b] for a, b in pairwise([0, *falls.tolist(), len(rows)])]
    return sorted(pieces, key=lambda piece: int(piece["line"].iloc[0])) if len(pieces) > 1 else pieces or [frame]


def _without_cut_rows(piece: pd.DataFrame, parser: Parser) -> pd.DataFrame:
    """Refuse a run's rows whose fields are only the first ones of a layout as common in it: writes cut short."""
    layouts = list(parser.rows)
    sizes = {layouts[i]: int(n) for i, n in zip(*np.unique(piece["layout"], return_counts=True), strict=True)}
    for layout, size in sizes.items():
        if any(o[: len(layout)] == layout and len(o) > len(layout) and sizes[o] >= size for o in sizes):
            cut = piece["layout"] == layouts.index(layout)
            parser.counts["steps"] -= size
            for line in piece.loc[cut, "line"].tolist():
                parser.refuse(line, "it was cut off in the middle of a write", parser.first_lines.get(line, b""))
                parser.cut = parser.cut or line >= parser.counts["lines"]
            piece = piece[~cut]
    return piece


def _steps(piece: pd.DataFrame, parser: Parser) -> pd.DataFrame:
    """The rows of one run, with the columns that its own lines have."""
    if len(parser.rows) < 2:
        steps = piece.copy(deep=False)
        del steps["source"], steps["layout"]
    else:
        layouts = list(parser.rows)
        known = {"line", "time", "step", "loss", "tgs"}.union(*(layouts[i] for i in piece["layout"].unique()))
        # Whole again: to a frame that many layouts were put together to, no column can be added quickly.
        steps = piece[[column for column in piece if column in known]].copy()
    steps.index = pd.RangeIndex(len(steps))
    return steps


def _head(head: Head) -> LogHead:
    hosts = tuple(head.get("hosts", ()))
    return LogHead(**{**head, "hosts": hosts})


def _counts(parser: Parser) -> LineCounts:
    counts = parser.counts
    shown = [example for _, _, example in parser.refusals if example]
    other = counts["lines"] - counts["steps"] - counts["known"] - counts["refused"]
    return LineCounts(**counts, other=max(0, other), examples=tuple(shown[:MAX_EXAMPLES]), cut=parser.cut)
