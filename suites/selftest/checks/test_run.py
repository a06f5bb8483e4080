"""Findings on a run's configuration name what was changed and nothing else."""

from conformance.checks.finding import Result
from conformance.checks.run import config
from conformance.internevo.config import render_config
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload

PLAN = make_plan(load_workload("tiny-perf"), Topology(1, 1))


def test_a_changed_line_of_the_configuration_is_told_before_and_after():
    first, *rest = render_config(PLAN).splitlines(keepends=True)
    finding = config(PLAN, "".join(["SEED = 7\n", *rest]))
    assert finding.result is Result.FAIL
    assert f"first of 2 differing lines: {'-' + first.rstrip()!a}." in finding.message


def test_the_configuration_that_the_plan_renders_passes():
    assert config(PLAN, render_config(PLAN)).result is Result.PASS
