"""Statistics for short, autocorrelated series of training steps."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

Series = npt.NDArray[np.float64]

# Standard normal quantile of a two-sided 95% interval.
Z95 = 1.959963984540054
# Makes the median absolute deviation of normal noise its standard deviation.
MAD_TO_SIGMA = 1.4826


def variance_inflation(values: Series) -> float:
    """How much more a mean varies than if its values were independent.

    Args:
        values: The series, shape (n,).

    Returns:
        (1 + r) / (1 - r) of a first-order autoregressive series, r its lag-1 autocorrelation, held in 0..0.99.
    """
    if len(values) < 3:
        return 1.0
    centred = values - values.mean()
    power = float(centred @ centred)
    if power == 0.0 or not math.isfinite(power):
        return 1.0
    r = min(max(float(centred[1:] @ centred[:-1]) / power, 0.0), 0.99)
    return (1 + r) / (1 - r)


def mean_interval(values: Series) -> tuple[float, float] | None:
    """95% interval of the mean.

    Args:
        values: The series, shape (n,).

    Returns:
        Low and high end; None for fewer than 3 values, or one that is undefined.
    """
    if len(values) < 3 or not np.isfinite(values).all():
        return None
    half = Z95 * math.sqrt(float(values.var(ddof=1)) * variance_inflation(values) / len(values))
    mean = float(values.mean())
    return mean - half, mean + half


def median_interval(values: Series) -> tuple[float, float] | None:
    """95% interval of the median, from the order statistics and so for any distribution.

    Args:
        values: The series, shape (n,).

    Returns:
        Low and high end; None for fewer than 6 values, which cannot give 95%.
    """
    n = len(values)
    spread = Z95 * math.sqrt(n * variance_inflation(values))
    low = math.floor((n - spread) / 2)  # rank, from 1
    if low < 1:
        # The two extremes of 6 or more values still enclose the median in 97 of 100 cases.
        if n < 6:
            return None
        low = 1
    ordered = np.sort(values)
    return float(ordered[low - 1]), float(ordered[n - low])


def robust_sigma(values: Series) -> float:
    """Standard deviation as the median absolute deviation gives it, deaf to outliers.

    Args:
        values: The series, shape (n,), n > 0.

    Returns:
        The estimate.
    """
    deviations = values - np.median(values)
    np.abs(deviations, out=deviations)
    return MAD_TO_SIGMA * float(np.median(deviations, overwrite_input=True))


def slope(values: Series) -> float:
    """Least-squares slope.

    Args:
        values: The series, shape (n,).

    Returns:
        Change per position; 0 for fewer than 2 values.
    """
    if len(values) < 2:
        return 0.0
    positions = np.arange(len(values), dtype=np.float64) - (len(values) - 1) / 2
    return float(np.sum(positions * values) / np.sum(positions * positions))


@functools.cache
def student_t(probability: float, freedom: int) -> float:
    """Quantile of Student's t distribution.

    Args:
        probability: One-sided, in 0.5..1.
        freedom: Degrees of freedom, at least 1.

    Returns:
        The t that is exceeded with probability 1 - ``probability``; accurate to 1e-6 of it.
    """
    # With t = sqrt(freedom) tan(a) the density is that of cos(a)^(freedom - 1), which ends at a right angle.
    angles = np.linspace(0, math.pi / 2, 200_001)
    density = np.cos(angles) ** (freedom - 1)
    share = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return math.sqrt(freedom) * math.tan(float(np.interp(2 * probability - 1, share / share[-1], angles)))
