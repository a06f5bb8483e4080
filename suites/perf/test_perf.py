"""Performance: 20 steps on dummy data through InternEvo; one test for each check of each workload."""

import pytest

from conformance.plugin import checks, require, workloads


@pytest.mark.parametrize("check", checks("perf"))
@pytest.mark.parametrize("outcome", workloads("perf"), indirect=True)
def test_performance(outcome, check):
    require(outcome, check)
