"""Rows for pictures are made of columns, and read like a list of them."""

import numpy as np

from conformance.internevo.log import Steps
from conformance.metrics.drawn import DrawnSteps


def test_rows_tell_what_each_step_logged():
    steps = Steps.of({"step": [0, 1, 3], "tgs": [5.0, 6.0, 7.0], "loss": [3.0, np.inf, 1.0], "lr": [0.0, 0.0, 0.0]})
    rows = DrawnSteps(steps, np.array([3.5, 2.5]))
    expected = [
        {"step": 0, "tgs": 5.0, "loss": 3.0, "mean_loss": 3.5},
        {"step": 1, "tgs": 6.0, "loss": np.inf, "mean_loss": 2.5},
        {"step": 3, "tgs": 7.0, "loss": 1.0},  # behind a missing step no mean is known
    ]
    assert (list(rows), len(rows), rows[-1], rows[-2:]) == (expected, 3, expected[-1], expected[-2:])
    assert type(rows[0]["step"]) is int


def test_a_run_without_steps_has_no_rows():
    assert not DrawnSteps(Steps.of({"step": [], "tgs": [], "loss": []}), np.array([]))
