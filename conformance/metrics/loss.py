"""The loss of a run: its trailing window, its last step, its spikes, and when it met a target."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from conformance.internevo.log import Steps
from conformance.metrics.statistics import Series, mean_interval, robust_sigma

WINDOW = 100  # steps
# A short run's window is its last fifth, but at least so many steps, so that it does not reach into the first descent.
MIN_WINDOW = 10
# A spike is above the running median by so many robust standard deviations, and by at least this share of it.
SPIKE_SIGMAS = 6.0
SPIKE_SHARE = 0.1
_SPIKE_SPAN, _SPIKE_LEAST = 51, 5  # steps of the running median, and how many must be defined
_AT_ONCE = 1 << 10  # windows that are sorted at a time


@dataclass(frozen=True)
class Loss:
    """Training loss in nats per token.

    Args:
        last: Loss of the last step, on the logging rank.
        window: Steps in the trailing window.
        window_mean: Mean loss of the trailing window.
        window_ci95: 95% interval of that mean, widened for autocorrelation; None for fewer than 3 steps.
        window_below: Share of the window's steps that are below the target; None without a target.
        slope: Change of the loss per step over the window.
        from_metric: The last ``loss_from_metric``, which is over all data-parallel ranks; None where not logged.
        from_metric_window_mean: Its mean over the window.
        spikes: Steps whose loss jumps out of the running median, the first hundred.
        undefined: Steps whose loss is nan or infinite, the first hundred.
        skipped_batches: Updates skipped for an infinite or undefined gradient.
        first_met: First step from which a full window's mean was below the target; None if never, or without a target.
        held_since: Step since which the window's mean has stayed below it until the end; None likewise.
    """

    last: float
    window: int
    window_mean: float
    window_ci95: tuple[float, float] | None
    window_below: float | None
    slope: float
    from_metric: float | None
    from_metric_window_mean: float | None
    spikes: tuple[int, ...]
    undefined: tuple[int, ...]
    skipped_batches: int | None
    first_met: int | None
    held_since: int | None


def loss_of(steps: Steps, target: float | None = None, window: int = WINDOW) -> Loss | None:
    """Measure the loss of a run.

    Args:
        steps: The steps of one run.
        target: Loss to be below, in nats per token; None where none is demanded.
        window: Steps of the trailing window, in a run of five times as many or more.

    Returns:
        The figures; None for a run without steps.
    """
    if not len(steps):
        return None
    values, numbers = steps["loss"], steps["step"]
    size = window_of(len(values), window)
    tail = values[-size:]
    metric = steps["loss_from_metric"][-size:].copy() if "loss_from_metric" in steps else None
    skipped = steps["inf_nan_skip_batches"][-1] if "inf_nan_skip_batches" in steps else np.nan
    first_met, held_since = _met(values, numbers, target, size)
    return Loss(
        last=float(values[-1]),
        window=size,
        window_mean=float(tail.mean()),
        window_ci95=mean_interval(tail),
        window_below=None if target is None else float(np.mean(tail < target)),
        slope=float(np.polyfit(np.arange(size), tail, 1)[0]) if size > 2 and np.isfinite(tail).all() else 0.0,
        from_metric=None if metric is None else float(metric[-1]),
        from_metric_window_mean=None if metric is None else float(metric.mean()),
        spikes=_spikes(values, numbers),
        undefined=tuple(int(step) for step in numbers[~np.isfinite(values)][:100]),
        skipped_batches=int(skipped) if np.isfinite(skipped) else None,
        first_met=first_met,
        held_since=held_since,
    )


def window_of(count: int, window: int = WINDOW) -> int:
    """Give the length of a run's trailing window.

    Args:
        count: Steps of the run.
        window: The window of a run of five times as many steps or more.

    Returns:
        Steps.
    """
    return min(window, max(MIN_WINDOW, count // 5), count)


def _met(values: Series, numbers: Series, target: float | None, size: int) -> tuple[int | None, int | None]:
    """The step at which the window's mean was first below the target, and the one since which it has been."""
    if target is None or len(values) < size:
        return None, None
    # A window with an undefined loss has no mean and so is not below.
    below = sliding_window_view(_defined(values), size).mean(axis=1) < target
    if not below.any():
        return None, None
    ends = numbers[size - 1 :]
    above = np.flatnonzero(~below)
    since = above[-1] + 1 if len(above) else 0
    return int(ends[np.argmax(below)]), int(ends[since]) if since < len(ends) else None


def _spikes(values: Series, numbers: Series) -> tuple[int, ...]:
    if len(values) < _SPIKE_SPAN:
        return ()
    level = _running_median(values)
    rise = values - level
    sigma = robust_sigma(rise[np.isfinite(rise)])
    return tuple(int(step) for step in numbers[rise > np.maximum(SPIKE_SIGMAS * sigma, SPIKE_SHARE * level)][:100])


def _running_median(values: Series) -> Series:
    """The median of the losses before each, of at least ``_SPIKE_LEAST`` that are defined."""
    before = np.concatenate([np.full(_SPIKE_SPAN, np.nan), _defined(values)[:-1]])
    windows, level = sliding_window_view(before, _SPIKE_SPAN), np.full(len(values), np.nan)
    for begin in range(0, len(values), _AT_ONCE):
        ordered = np.sort(windows[begin : begin + _AT_ONCE], axis=1)  # what is undefined comes last
        count, rows = np.isfinite(ordered).sum(axis=1), np.arange(len(ordered))
        median = (ordered[rows, (count - 1) // 2] + ordered[rows, count // 2]) / 2
        level[begin : begin + _AT_ONCE] = np.where(count < _SPIKE_LEAST, np.nan, median)
    return level


def _defined(values: Series) -> Series:
    return np.where(np.isfinite(values), values, np.nan)
