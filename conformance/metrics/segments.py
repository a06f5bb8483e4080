"""A run that was resumed: its segments found among logs, its steps put together, its events placed among them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from conformance.internevo.log import Event, RunLog, Steps
from conformance.internevo.log.steps import Column, stack
from conformance.metrics.facts import SHAPE_TOLERANCE, flops_per_token_logged, head_model

# Steps that two segments made: the earlier's and the later's, of equal length.
Overlap = tuple[Steps, Steps]


# A log goes on with one of so many runs before it: runs side by side, not all those that a long file may hold.
_LOOK_BACK = 16


@dataclass
class _Run:
    """A run being put together; ``made`` is its last segment with steps, ``reached`` the last step of all."""

    segments: list[RunLog]
    made: RunLog | None = None
    reached: int = -1

    def add(self, log: RunLog) -> None:
        self.segments.append(log)
        if len(log.steps):
            self.made, self.reached = log, max(self.reached, int(log.steps["step"][-1]))

    def goes_on_with(self, log: RunLog) -> bool:
        if self.made is None or not _alike(self.made, log):
            return False
        resumed = log.head.resumed_from is not None
        if not len(log.steps):
            return resumed  # it ended before its first step
        told = resumed or log.head.empty or log.head is self.made.head
        return told and 0 < int(log.steps["step"][0]) <= self.reached + 1


def join(logs: Sequence[RunLog]) -> list[list[RunLog]]:
    """Put each log that goes on where an earlier one stopped with that one.

    It does so where its head says that it resumed, or where it has no head of its own, and trains the same shape.

    Args:
        logs: Runs and segments, in the order of time.

    Returns:
        The segments of each run.
    """
    runs: list[_Run] = []
    for log in logs:
        before = next((run for run in reversed(runs[-_LOOK_BACK:]) if run.goes_on_with(log)), None)
        if before is None:
            runs.append(before := _Run([]))
        before.add(log)
    return [run.segments for run in runs]


def share_out(runs: Sequence[Sequence[RunLog]], events: Iterable[Event]) -> list[tuple[Event, ...]]:
    """Give each event of another rank's log to the run that was under way.

    Args:
        runs: The segments of each run.
        events: The events.

    Returns:
        The events of each run: of those that had begun before, the one that began last. What tells no time stands with
        the last run, and what came before them all with the first.
    """
    begun = [min((time for log in run if (time := _begun(log)) is not None), default=None) for run in runs]
    shares: list[list[Event]] = [[] for _ in runs]
    for event in events if runs else ():
        before = [
            (begin, place)
            for place, begin in enumerate(begun)
            if begin is not None and event.time is not None and begin <= event.time
        ]
        timed = event.time is not None and any(begun)
        shares[max(before)[1] if before else 0 if timed else -1].append(event)
    return [tuple(share) for share in shares]


def _begun(log: RunLog) -> datetime | None:
    """When a log's ranks had found one another; where it does not tell, when its first step was logged."""
    times = log.steps["time"]
    known = times[~np.isnat(times)]
    return log.head.begun or (known[0].item() if len(known) else None)


def _alike(a: RunLog, b: RunLog) -> bool:
    """Whether two logs can be of one shape, by their heads or by what they count for a token."""
    models = head_model(a.head), head_model(b.head)
    if None not in models:
        return models[0] == models[1]
    counted = [flops_per_token_logged(log.steps) for log in (a, b)]
    return counted[0] is None or counted[1] is None or abs(counted[0] / counted[1] - 1) <= SHAPE_TOLERANCE


def merge(segments: Sequence[RunLog]) -> tuple[Steps, tuple[Overlap, ...]]:
    """Put the steps of all segments together.

    Args:
        segments: The segments of one run, in the order of time.

    Returns:
        Each step once, from the later segment where two made it, with a column ``segment``; and what two made.
    """
    kept = [segments[0].steps.fixing("segment", 0)]
    overlaps: list[Overlap] = []
    for number, segment in enumerate(segments[1:], 1):
        if not len(segment.steps):
            continue
        later = segment.steps.fixing("segment", number)
        again: list[Steps] = []
        begin = later["step"][0]
        while kept and kept[-1]["step"].max(initial=-1) >= begin:
            end = kept.pop()
            before = end["step"] < begin
            left, twice = end.take(before, ~before)
            again.insert(0, twice)
            if len(left):
                kept.append(left)
        if again:
            earlier = stack(again)
            both = np.intersect1d(earlier["step"], later["step"])
            overlaps.append((_only(earlier, both), _only(later, both)))
        kept.append(later)
    return stack(kept), tuple(overlaps)


def _only(steps: Steps, numbers: Column) -> Steps:
    """The first row of each of these steps, which are all there."""
    found, first = np.unique(steps["step"], return_index=True)
    return steps.take(np.sort(first[np.isin(found, numbers)]))[0]


@dataclass(frozen=True)
class _Placed:
    """A segment's lines, times and steps, in order, to be searched."""

    lines: np.ndarray[tuple[int], np.dtype[np.int64]]
    times: np.ndarray[tuple[int], np.dtype[np.int64]]
    steps: np.ndarray[tuple[int], np.dtype[np.int64]]


class Clock:
    """Tells after which step an event came: by its line in its own log, by the time in another rank's.

    Args:
        segments: The segments of one run.
    """

    def __init__(self, segments: Sequence[RunLog]) -> None:
        self._own = {id(event): number for number, segment in enumerate(segments) for event in segment.events}
        self._placed = [_place(segment.steps) for segment in segments]

    def after_step(self, event: Event) -> int | None:
        """Give the last step logged before an event.

        Args:
            event: One of the segments' own, or another rank's.

        Returns:
            The step; None before the first, or where nothing tells.
        """
        number = self._own.get(id(event))
        placed = self._placed[-1 if number is None else number]
        if number is not None:
            count = bisect_left(placed.lines, event.line)
        elif event.time is not None:
            count = int(np.searchsorted(placed.times, np.datetime64(event.time, "ms").astype(np.int64), "right"))
        else:
            return None
        return int(placed.steps[count - 1]) if count else None


def _place(steps: Steps) -> _Placed:
    times = steps["time"]
    numbers = np.where(np.isnat(times), np.iinfo(np.int64).max, times.astype(np.int64))
    # The least of what follows is in order even where a clock ran backwards, and finds the same last line.
    numbers = np.minimum.accumulate(numbers[::-1])[::-1]
    return _Placed(steps["line"], numbers, steps["step"])
