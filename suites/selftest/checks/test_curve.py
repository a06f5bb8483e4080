"""The finding about the reference curve."""

import math
from dataclasses import replace

import pytest

from conformance.checks.curve import agrees
from conformance.checks.finding import Result
from conformance.judgement import curve_of, origin_of
from conformance.metrics.curve import Comparison, Paired
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload

GOOD = Comparison("tiny-accuracy", 5, 100, 0.004, 0.01, -0.006, 0.02, 30, None, 0.012, ((0, 10.4, 10.2, 10.6),))


PAIRED = Paired(12, 10, 0.0001, 0.0003, None, 0.0004)


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


def test_a_run_off_the_run_of_its_own_seed_fails_by_that_alone():
    finding = agrees(edited(paired=replace(PAIRED, relative_rms=0.0012, leaves_at=3)))
    assert finding.result is Result.FAIL
    assert "from the reference run of its seed by 0.1200% (RMS; bound 0.0300%" in finding.message
    assert "it leaves that run at step 3" in finding.message
    assert (finding.value, finding.limit, finding.margin) == (0.0012, 0.0003, pytest.approx(-3))


def test_the_nearest_bound_is_the_findings():
    assert agrees(edited(paired=PAIRED)).result is Result.PASS
    assert agrees(edited(paired=PAIRED)).limit == GOOD.bound
    assert agrees(edited(paired=replace(PAIRED, relative_rms=0.00015))).limit == PAIRED.bound


def test_a_run_that_has_no_pair_is_told_what_it_means():
    assert "what changes less than a seed does is not seen" in agrees(GOOD).message


def test_what_a_run_began_with_is_its_generator_and_its_division():
    plan, cpu = make_plan(load_workload("tiny-accuracy"), Topology(1, 2)), {"device": {"generator": "cpu"}}
    run = {"internevo": {"tag": None, "version": "0.2.2"}}
    assert origin_of(plan, run, {0: cpu, 1: cpu}) == "InternEvo 0.2.2, cpu, dp 2 x tp 1 x pp 1, 2 x 1 sequences"
    for unknown in ({}, {0: {}}, {0: cpu, 1: {"device": {}}}, {0: {"device": {"model": "Abacus A1"}}}):
        assert origin_of(plan, run, unknown) == ""
    for unknown in ({}, {"internevo": None}, {"internevo": {"tag": None, "version": None}}):
        assert origin_of(plan, unknown, {0: cpu}) == ""


def test_without_a_curve_it_says_why():
    finding = agrees(None, "There is none.")
    assert (finding.result, finding.message) == (Result.SKIP, "There is none.")


SLICE = {"num_layers": 6, "total_steps": 100}  # what the curve's runs were asked for


@pytest.mark.parametrize(
    ("overrides", "data", "applies"),
    [
        (SLICE, "dummy", True),
        ({**SLICE, "micro_bsz": 1, "micro_num": 8}, "dummy", True),  # the same tokens in each step
        ({"total_steps": 100}, "dummy", False),
        ({"num_layers": 6}, "dummy", False),
        ({**SLICE, "micro_num": 2}, "dummy", False),
        (SLICE, "a" * 64, False),
    ],
)
def test_a_curve_is_for_runs_of_its_own_plan_alone(overrides, data, applies):
    plan = make_plan(load_workload("slice-7b-perf"), Topology(1, 1), overrides)
    curve = curve_of(plan, data)
    assert (curve is not None) is applies
    if curve is not None:
        assert (curve.num_layers, curve.total_steps, curve.tokens_per_step) == (6, 100, 32768)


def test_no_curve_is_that_of_another_workload():
    plan = make_plan(load_workload("tiny-perf"), Topology(1, 2), {"total_steps": 100})
    assert curve_of(plan, "dummy") is None
