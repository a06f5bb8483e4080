"""The loss by its window, its last step, its spikes, and the step at which it met the target."""

import numpy as np
import pytest

from conformance.internevo.log import Steps
from conformance.metrics import loss as module
from conformance.metrics.loss import loss_of


def frame(loss, **columns):
    return Steps.of({"step": np.arange(len(loss)), "loss": loss, **columns})


def noisy(n, level=1.7, sigma=0.02, seed=0):
    return np.random.default_rng(seed).normal(level, sigma, n)


def test_the_trailing_window():
    values = np.concatenate([np.linspace(10, 2, 900), noisy(100)])
    found = loss_of(frame(values, loss_from_metric=values + 0.01, inf_nan_skip_batches=np.full(1000, 3.0)))
    assert found.window == 100
    assert found.window_mean == pytest.approx(values[-100:].mean())
    assert found.window_ci95[0] < found.window_mean < found.window_ci95[1]
    assert found.last == values[-1]
    assert found.from_metric == pytest.approx(values[-1] + 0.01)
    assert found.from_metric_window_mean == pytest.approx(found.window_mean + 0.01)
    assert found.skipped_batches == 3


@pytest.mark.parametrize(("steps", "window"), [(1, 1), (8, 8), (12, 10), (60, 12), (499, 99), (500, 100), (5000, 100)])
def test_a_short_runs_window_does_not_reach_into_the_descent(steps, window):
    assert loss_of(frame([1.0] * steps)).window == window


def test_when_the_target_was_met_and_since_when_it_held():
    values = np.concatenate([np.full(500, 3.0), np.full(150, 1.0), np.full(150, 3.0), np.full(200, 1.0)])
    found = loss_of(frame(values), target=2.0)
    # The window of 100 steps is half below after 51 of them.
    assert found.first_met == 500 + 50
    assert found.held_since == 800 + 50
    assert loss_of(frame(np.full(600, 3.0)), target=2.0).first_met is None
    assert loss_of(frame(values[:700]), target=2.0).held_since is None
    assert loss_of(frame(values)).first_met is None
    assert loss_of(frame(np.full(10, 1.0)), target=2.0).first_met == 9  # a run of one window


def test_spikes_are_named_and_the_first_descent_is_none():
    values = 10 * np.exp(-np.arange(600) / 60) + noisy(600)
    assert loss_of(frame(values)).spikes == ()
    values[[300, 301, 450]] += 0.5
    assert loss_of(frame(values)).spikes == (300, 301, 450)


def test_undefined_losses_are_named_and_never_below_a_target():
    values = noisy(300)
    values[290] = np.nan
    found = loss_of(frame(values), target=2.0)
    assert found.undefined == (290,)
    assert found.held_since is None
    assert np.isnan(found.window_mean)
    assert found.slope == 0.0


def test_a_loss_at_the_target_is_not_below_it():
    found = loss_of(frame([2.0] * 100), target=2.0)
    assert (found.window_below, found.first_met, found.held_since) == (0.0, None, None)


def test_a_run_without_steps_has_no_loss():
    assert loss_of(frame([])) is None


def test_spikes_are_found_among_undefined_losses():
    values = noisy(600)
    values[100:152] = np.nan  # a whole window, and so the first losses after it have none before them
    values[[200, 203]] = [np.inf, -np.inf]
    values[[155, 300]] += 0.5
    found = loss_of(frame(values))
    assert found.spikes == (200, 300)
    assert found.undefined == (*range(100, 152), 200, 203)


def test_the_level_before_a_loss_is_the_median_of_what_is_defined():
    values = noisy(300)
    values[[5, 6, 77, 78, 79, 120]] = [np.nan, np.inf, -np.inf, np.nan, np.nan, np.nan]
    for count in (7, 20, 51, 120, 300):
        before = [values[max(0, at - module._SPIKE_SPAN) : at] for at in range(count)]
        defined = [window[np.isfinite(window)] for window in before]
        level = [np.median(window) if len(window) >= module._SPIKE_LEAST else np.nan for window in defined]
        np.testing.assert_array_equal(module._running_median(values[:count]), level)


def test_a_window_with_an_infinite_loss_is_not_below():
    values = np.concatenate([np.full(500, 3.0), np.full(200, 1.0)])
    values[650] = -np.inf
    found = loss_of(frame(values), target=2.0)
    assert (found.first_met, found.held_since) == (500 + 50, None)
