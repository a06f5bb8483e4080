"""The loss gate: window and last step must agree, and where they do not, it says what would settle it."""

import re

import numpy as np
import pytest

from conformance.checks.finding import Result
from conformance.checks.loss import defined, target_reached
from conformance.internevo.log import Steps
from conformance.metrics.loss import loss_of

TARGET = 1.716


def judge(values, target=TARGET):
    steps = Steps.of({"step": np.arange(len(values)), "loss": values})
    return target_reached(loss_of(steps, target), target, "the benchmark")


def judge_ranks(one, every):
    """Judge the loss of one rank beside the loss over all ranks."""
    steps = Steps.of({"step": np.arange(len(one)), "loss": one, "loss_from_metric": every})
    return target_reached(loss_of(steps, TARGET), TARGET, "the benchmark")


def noisy(level, sigma=0.02, n=1000, last=None):
    values = np.random.default_rng(5).normal(level, sigma, n)
    values[-1] = level if last is None else last
    return values


def test_below_by_both_passes():
    finding = judge(noisy(1.6))
    assert finding.result is Result.PASS
    assert finding.margin > 0
    assert finding.limit == TARGET


@pytest.mark.parametrize("level", [1.716, 1.8, 3.0])
def test_above_by_both_fails(level):
    finding = judge(noisy(level + 0.01, sigma=0.001))
    assert finding.result is Result.FAIL
    assert finding.margin < 0


def further(finding):
    assert finding.result is Result.ERROR
    assert "inconclusive" in finding.message
    steps, word = re.search(r"(\d+) further (steps?)\b", finding.message).groups()
    assert (word == "step") == (steps == "1")
    return int(steps)


def test_a_lucky_last_step_does_not_pass():
    assert further(judge(noisy(1.8, last=1.70))) > 0
    flat = 1.8 + 0.01 * (-1.0) ** np.arange(1000)
    flat[-1] = 1.715
    finding = judge(flat)
    assert further(finding) == 1
    assert "the window is above and the last step is not" in finding.message


def test_an_unlucky_last_step_does_not_fail():
    # Nearly every step is below, so the next one will be.
    assert further(judge(noisy(1.6, last=1.75))) == 1


def test_a_falling_curve_says_when_it_gets_there():
    values = 2.0 - 0.001 * np.arange(300)
    values[-1] = 1.715
    steps = further(judge(values + np.random.default_rng(0).normal(0, 0.003, 300) * (np.arange(300) < 299)))
    assert 10 < steps < 60


def test_a_window_within_its_noise_wants_more_steps():
    finding = judge(noisy(1.715, sigma=0.05, last=1.70))
    assert further(finding) > 100
    assert "within its noise" in finding.message


def test_so_many_more_steps_bring_the_noise_of_the_window_below_its_gap():
    values = noisy(1.715, sigma=0.05, last=1.70)
    low, high = loss_of(Steps.of({"step": np.arange(1000), "loss": values})).window_ci95
    gap, half = abs((low + high) / 2 - TARGET), (high - low) / 2
    assert further(judge(values)) == np.ceil(100 * ((half / gap) ** 2 - 1))


@pytest.mark.parametrize("values", [[1.0], [1.0, 1.1]])
def test_too_few_steps_pass_nothing(values):
    assert judge(values).result is Result.ERROR


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_undefined_loss_neither_passes_nor_hides(bad):
    values = noisy(1.6)
    values[-3] = bad
    assert judge(values).result is not Result.PASS
    steps = Steps.of({"step": np.arange(1000), "loss": values})
    assert defined(loss_of(steps)).result is Result.FAIL
    assert defined(loss_of(*steps.take(slice(900)))).result is Result.PASS
    values[-1] = bad
    assert judge(values).result is not Result.PASS


def test_one_rank_below_passes_only_with_all_ranks_below():
    assert judge_ranks(noisy(1.6), noisy(1.6)).result is Result.PASS
    forged = judge_ranks(noisy(1.6), noisy(1.8))
    assert forged.result is Result.ERROR
    assert "the mean over all ranks is not below it, and no number of further steps" in forged.message
    falling = noisy(1.9 - 0.0003 * np.arange(1000), sigma=0.001, last=1.6)
    assert 50 < further(judge_ranks(falling, falling + 0.12)) < 80
