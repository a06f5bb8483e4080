"""A run may end once its window has been below the target for a window's length."""

import numpy as np
import pytest

from conformance.metrics.target import held


def losses(above, below):
    return np.concatenate([np.full(above, 3.0), np.full(below, 1.0)])


@pytest.mark.parametrize(
    ("series", "ends"),
    [
        (losses(0, 20), True),
        (losses(0, 19), False),
        # The window of 100 steps must be below on each of the last 101 steps: 200 of them, or it would reach beyond.
        (losses(800, 200), True),
        (losses(800, 100), False),
        (losses(0, 400) + 1.0, False),
        (np.append(losses(0, 400), np.nan), False),
    ],
    ids=["two least windows", "one step less", "two windows", "one window", "at the target", "undefined"],
)
def test_a_window_is_below_for_its_own_length(series, ends):
    assert held(2.0, series) is ends


def test_every_series_must_be_below():
    assert held(2.0, losses(0, 400), losses(0, 400))
    assert not held(2.0, losses(0, 400), losses(0, 400) + 2)


def test_the_upper_bound_of_the_last_window_must_be_below_not_only_its_mean():
    noise = np.random.default_rng(1).normal(0, 0.5, 400)
    noise -= noise.mean()
    assert held(2.0, noise + 1.6)
    assert not held(2.0, noise + 1.95)
