"""Accuracy: training on the real data to the target loss; one test for each check of each workload."""

import pytest

from conformance.plugin import checks, require, workloads


@pytest.mark.parametrize("check", checks("accuracy"))
@pytest.mark.parametrize("outcome", workloads("accuracy"), indirect=True)
def test_accuracy(outcome, check):
    require(outcome, check)
