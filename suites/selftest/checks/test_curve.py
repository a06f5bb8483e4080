"""The finding about the reference curve."""

import math

import pytest

from conformance.checks.curve import agrees
from conformance.checks.finding import Result
from conformance.metrics.curve import Comparison

GOOD = Comparison("tiny-accuracy", 5, 100, 0.004, 0.01, -0.006, 0.02, 30, None, 0.012, ((0, 10.4, 10.2, 10.6),))


def edited(**changes):
    return Comparison(**{**vars(GOOD), **changes})


def test_a_run_on_the_curve_passes():
    finding = agrees(GOOD)
    assert finding.result is Result.PASS
    assert finding.margin == pytest.approx(0.6)


@pytest.mark.parametrize(
    "changes",
    [
        {"relative_rms": 0.011},
        {"max_deviation": 0.021, "leaves_at": 30},
        {"max_deviation": -0.021},
        {"relative_rms": math.nan},
        {"max_deviation": math.nan},
    ],
)
def test_a_run_off_the_curve_fails(changes):
    assert agrees(edited(**changes)).result is Result.FAIL


def test_without_a_curve_it_says_why():
    finding = agrees(None, "There is none.")
    assert (finding.result, finding.message) == (Result.SKIP, "There is none.")
