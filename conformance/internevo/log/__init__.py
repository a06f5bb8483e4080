"""From the text of a training log to its steps, head and events."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import BinaryIO

import numpy as np

from conformance.internevo.log.messages import Head
from conformance.internevo.log.parser import MAX_EXAMPLES, MAX_RUNS, META, Parser
from conformance.internevo.log.records import COLUMNS, Event, LineCounts, LogHead, Refused, RunLog
from conformance.internevo.log.steps import Column, Steps, stack

# The lines of a run: the first, and the one after its last.
Span = tuple[int, int]

__all__ = ["COLUMNS", "Event", "LineCounts", "LogHead", "Refused", "RunLog", "Steps", "parse_log"]


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
    table = _table(parser)
    runs = [
        (head, _without_cut_rows(piece, parser), span) for head, part in _by_head(table, parser) for piece, span in part
    ]
    counts = _counts(parser)
    if not (len(table) or counts.known or counts.refused):
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


def _table(parser: Parser) -> Steps:
    parts = [rows.steps().fixing("layout", number) for number, rows in enumerate(parser.rows.values())]
    if not parts:
        return Steps.of(dict.fromkeys((*META, "step", "loss", "tgs", "layout"), ()))
    steps = stack(parts)
    lines = steps["line"]
    # Two rows have one line where a write was cut short and the next one follows it there.
    if (np.diff(lines) < 0).any():
        (steps,) = steps.take(np.lexsort((steps["step"], lines)))
    return _without_echoes(steps, parser)


def _without_echoes(steps: Steps, parser: Parser) -> Steps:
    """Leave out rows that only say the row before again, in a line without a time.

    Where some library of the platform gives Python's root logger a handler, each of InternEvo's lines is printed twice.
    """
    timeless = np.isnat(steps["time"])
    later = np.flatnonzero(timeless[1:] & ~timeless[:-1]) + 1
    alike = np.ones(len(later), dtype=np.bool_)
    for name in steps if len(later) else ():
        if name not in ("line", "time"):
            again, first = (steps[name][rows] for rows in (later, later - 1))
            alike &= (again == first) | ((again != again) & (first != first))
    echoes = later[alike]
    parser.counts["steps"] -= len(echoes)
    parser.counts["known"] += len(echoes)
    return steps.take(np.delete(np.arange(len(steps)), echoes))[0] if len(echoes) else steps


def _by_head(steps: Steps, parser: Parser) -> Iterator[tuple[LogHead, list[tuple[Steps, Span]]]]:
    """Cut the file at each head, between the launchers' prefixes, and where the steps start over.

    Yields:
        Each head, with the rows of the runs that stand under it and the lines from which and up to which each stands.
    """
    heads, lines = parser.heads, steps["line"]
    if len(heads) > 1 and "data_parallel" not in heads[0][1] and not (lines < heads[1][0]).any():
        # What stands before the first head belongs to it.
        heads = [(0, {**heads[0][1], **heads[1][1]}), *heads[2:]]
    begins = [line for line, _ in heads]
    spans = list(pairwise([*begins, parser.counts["lines"] + 1]))
    parts = steps.take(*(slice(*np.searchsorted(lines, span)) for span in spans))
    for (_, head), (start, end), part in zip(heads, spans, parts, strict=True):
        pieces = _pieces(part)
        cuts = [start, *(int(piece["line"][0]) for piece in pieces[1:]), end]
        yield _head(head), list(zip(pieces, pairwise(cuts), strict=True))


def _pieces(steps: Steps) -> list[Steps]:
    """Part the rows of one head by their prefix and, within one prefix, where the steps fall back."""
    sources, numbers = steps["source"], steps["step"]
    if not np.diff(sources).any() and not (np.diff(numbers) < 0).any():
        return [steps]
    order, lines = np.argsort(sources, kind="stable"), steps["line"]
    pieces: list[Column] = []
    for rows in np.split(order, np.flatnonzero(np.diff(sources[order])) + 1):
        # What falls back more often than any real log is left in one piece, for the checks to refuse.
        pieces += np.split(rows, np.flatnonzero(np.diff(numbers[rows]) < 0)[:MAX_RUNS] + 1)
    return steps.take(*sorted(pieces, key=lambda rows: int(lines[rows[0]])))


def _without_cut_rows(piece: Steps, parser: Parser) -> Steps:
    """Refuse a run's rows whose fields are only the first ones of a layout as common in it: writes cut short."""
    layouts, own = list(parser.rows), piece["layout"]
    sizes = {layouts[i]: int(n) for i, n in zip(*np.unique(own, return_counts=True), strict=True)}
    bad = np.zeros(len(own), dtype=np.bool_)
    for layout, size in sizes.items():
        if any(o[: len(layout)] == layout and len(o) > len(layout) and sizes[o] >= size for o in sizes):
            bad |= (cut := own == layouts.index(layout))
            parser.counts["steps"] -= size
            for line in piece["line"][cut].tolist():
                parser.refuse(line, "it was cut off in the middle of a write", parser.first_lines.get(line, b""))
                parser.cut = parser.cut or line >= parser.counts["lines"]
    return piece.take(~bad)[0] if bad.any() else piece


def _steps(piece: Steps, parser: Parser) -> Steps:
    """The rows of one run, with the columns that its own lines have."""
    layouts = list(parser.rows)
    known = {"line", "time", "step", "loss", "tgs"}.union(*(layouts[i] for i in np.unique(piece["layout"])))
    return piece.only(known)


def _head(head: Head) -> LogHead:
    hosts = tuple(head.get("hosts", ()))
    return LogHead(**{**head, "hosts": hosts})


def _counts(parser: Parser) -> LineCounts:
    counts = parser.counts
    shown = [example for _, _, example in parser.refusals if example]
    other = counts["lines"] - counts["steps"] - counts["known"] - counts["refused"]
    return LineCounts(**counts, other=max(0, other), examples=tuple(shown[:MAX_EXAMPLES]), cut=parser.cut)
