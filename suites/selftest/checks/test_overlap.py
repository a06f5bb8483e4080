"""Steps that a resumed run made twice: the same data give the same loss but for rounding, other data do not."""

import numpy as np
import pytest

from conformance.checks.finding import Result
from conformance.checks.identity import overlap
from conformance.checks.subject import Subject
from conformance.internevo.log import LogHead, Steps
from conformance.metrics.facts import Facts

RNG = np.random.default_rng(7)
STEPS = np.arange(100, 150)


def making(losses, mean=None):
    return Steps.of(
        {"step": STEPS[: len(losses)], "loss": losses, "loss_from_metric": losses if mean is None else mean}
    )


def found(first, second):
    steps = making(first)
    return overlap(Subject(steps, LogHead(), Facts(sources={}), overlaps=((steps, making(second)),)))


# A loss of 2 with a noise of 1% between steps, as a global batch of millions of tokens gives it.
LEVEL = 2 + RNG.normal(0, 0.02, 50)


@pytest.mark.parametrize("rounding", [0.0, 1e-4, 1e-3])
def test_the_same_data_agree_but_for_rounding(rounding):
    assert found(LEVEL, LEVEL + RNG.normal(0, rounding * 2, 50)).result is Result.PASS


def test_another_order_of_the_data_is_seen_within_five_percent():
    finding = found(LEVEL, 2 + RNG.normal(0, 0.02, 50))
    assert finding.result is Result.FAIL
    assert "first of them 100" in finding.message


def test_a_quiet_loss_is_not_refused_for_rounding():
    assert found(np.full(50, 2.0), np.full(50, 2.0001)).result is Result.PASS


def test_too_few_steps_are_held_to_the_wide_bound_alone():
    assert found(LEVEL[:5], LEVEL[:5] * 1.04).result is Result.PASS
    assert found(LEVEL[:5], LEVEL[:5] * 1.06).result is Result.FAIL


def test_the_loss_over_all_ranks_shows_other_data_where_the_logging_ranks_own_is_the_same():
    steps, again = making(LEVEL), making(LEVEL, 2 + RNG.normal(0, 0.02, 50))
    finding = overlap(Subject(steps, LogHead(), Facts(sources={}), overlaps=((steps, again),)))
    assert finding.result is Result.FAIL


@pytest.mark.parametrize(("share", "result"), [(0.45, Result.PASS), (0.55, Result.FAIL)])
def test_half_the_noise_between_steps_is_the_most_that_a_loss_may_be_off(share, result):
    """The noise of a step, which shows in the difference of two as the root of two of it."""
    steps = np.arange(1000)
    level = 2 + RNG.normal(0, 0.02, len(steps))
    first, second = (
        Steps.of({"step": steps, "loss": losses, "loss_from_metric": losses})
        for losses in (level, level + share * 0.02)
    )
    assert overlap(Subject(first, LogHead(), Facts(sources={}), overlaps=((first, second),))).result is result
