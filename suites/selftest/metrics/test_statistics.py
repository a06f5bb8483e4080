"""Intervals hold what they promise, also for series whose steps depend on each other."""

import numpy as np
import pytest

from conformance.metrics.statistics import (
    mean_interval,
    median_interval,
    robust_sigma,
    slope,
    student_t,
    variance_inflation,
)


def series(n, correlation, random):
    """A first-order autoregressive series around 100."""
    values = np.empty(n)
    values[0] = random.normal()
    for i in range(1, n):
        values[i] = correlation * values[i - 1] + np.sqrt(1 - correlation**2) * random.normal()
    return values + 100


@pytest.mark.parametrize("interval", [mean_interval, median_interval])
@pytest.mark.parametrize(("n", "correlation"), [(19, 0.0), (19, 0.3), (200, 0.0), (200, 0.5)])
def test_intervals_cover_the_truth_19_times_in_20(interval, n, correlation):
    random = np.random.default_rng(1)
    inside = sum(low <= 100 <= high for low, high in (interval(series(n, correlation, random)) for _ in range(600)))
    # Estimating the correlation from 19 steps costs some coverage, and the promise is rounded accordingly.
    assert inside / 600 > (0.94 if correlation == 0 else 0.88)


@pytest.mark.parametrize(
    ("interval", "n", "correlation", "share"),
    [(median_interval, 19, 0.5, 0.96), (median_interval, 19, 0.8, 0.88), (mean_interval, 100, 0.8, 0.88)],
)
def test_how_far_short_strong_dependence_falls_is_as_the_documents_say(interval, n, correlation, share):
    random = np.random.default_rng(4)
    inside = sum(low <= 100 <= high for low, high in (interval(series(n, correlation, random)) for _ in range(1000)))
    assert inside / 1000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("n", range(6))
def test_too_few_values_have_no_median_interval(n):
    assert median_interval(np.arange(float(n))) is None


def test_six_values_have_their_extremes():
    assert median_interval(np.array([3.0, 1.0, 2.0, 6.0, 5.0, 4.0])) == (1.0, 6.0)


def test_correlation_widens_and_alternation_does_not():
    random = np.random.default_rng(2)
    assert variance_inflation(series(5000, 0.5, random)) == pytest.approx(3, rel=0.2)
    assert variance_inflation(np.array([1.0, 2.0] * 20)) == 1
    assert variance_inflation(np.ones(9)) == 1
    assert variance_inflation(np.array([1.0, 2.0])) == 1


def test_sigma_is_deaf_to_outliers_and_slope_is_a_slope():
    values = np.random.default_rng(3).normal(10, 2, 1001)
    values[:50] = 1e6
    assert robust_sigma(values) == pytest.approx(2, rel=0.15)
    assert slope(np.arange(10) * 0.5 + 3) == pytest.approx(0.5)
    assert slope(np.ones(1)) == 0
    assert slope(np.array([1.0, 3.0])) == 2


@pytest.mark.parametrize(
    ("probability", "freedom", "t"),
    [
        (0.5, 3, 0.0),
        (0.500002, 1, 6.283185e-6),  # of one degree of freedom it is tan(pi (p - 1/2))
        (0.75, 1, 1.0),
        (0.95, 4, 2.131847),
        (0.975, 10, 2.228139),
        (0.995, 30, 2.749996),
    ],
)
def test_quantiles_of_students_t_are_those_of_printed_tables(probability, freedom, t):
    assert student_t(probability, freedom) == pytest.approx(t, rel=1e-6)


@pytest.mark.parametrize(("n", "low", "high"), [(6, 1, 6), (10, 1, 10), (20, 5, 16), (30, 9, 22), (100, 40, 61)])
def test_the_median_lies_between_these_ranks(n, low, high):
    """(n - 1.96 sqrt(n)) / 2, rounded down, from either end: the binomial's normal approximation."""
    ordered = np.arange(1.0, n + 1)
    # Low and high values in turn: no positive autocorrelation, which would widen the interval.
    turned = np.ravel(np.column_stack([ordered[: n // 2], ordered[n // 2 :][::-1]]))
    assert median_interval(turned) == (low, high)


def test_three_values_are_enough_for_the_interval_of_a_mean_and_two_are_not():
    low, high = mean_interval(np.array([1.0, 3.0, 2.0]))
    assert (low + high) / 2 == pytest.approx(2.0)
    assert high - low == pytest.approx(2 * 1.959964 / 3**0.5, rel=1e-6)
    assert mean_interval(np.array([1.0, 3.0])) is None
