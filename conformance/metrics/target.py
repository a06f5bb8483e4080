"""When a run may end before its last step: once its loss is below the target and has been for a window's length."""

from __future__ import annotations

import numpy as np

from conformance.metrics.loss import MIN_WINDOW, window_of
from conformance.metrics.statistics import Series, mean_interval


def held(target: float, *series: Series) -> bool:
    """Whether a run may end here. The watch stops a run by it, and the judge accepts its end by it.

    Args:
        target: Loss to be below, in nats/token.
        series: Losses of the run so far, each of shape (n,): the logging rank's, and that over all ranks where logged.

    Returns:
        True where of each the means of the last window and of those that end in it, and the upper 95% bound of the last
        one's, are below.
    """
    return all(_held(losses, target) for losses in series)


def _held(losses: Series, target: float) -> bool:
    size = window_of(len(losses))
    tail = losses[-2 * size :]
    if len(tail) < 2 * max(size, MIN_WINDOW):
        return False
    means = np.convolve(tail, np.full(size, 1 / size), mode="valid")
    interval = mean_interval(tail[-size:])
    return bool((means < target).all()) and interval is not None and interval[1] < target
