"""Findings on a run's configuration name what was changed and nothing else."""

import pytest

from conformance.checks.finding import Result
from conformance.checks.run import attempts, config, ranks, source
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


@pytest.mark.parametrize(
    ("workload", "changes", "result"),
    [
        ("llama2-7b-perf", {}, Result.PASS),
        ("llama2-7b-perf", {"tag": "v0.3.1dev20240229"}, Result.FAIL),
        ("llama2-7b-perf", {"pristine": False}, Result.FAIL),
        ("tiny-perf", {"tag": None}, Result.PASS),
        ("tiny-perf", {"tag": None, "pristine": False}, Result.FAIL),
    ],
)
def test_an_official_run_needs_the_pinned_internevo_and_a_rehearsal_any_that_is_unchanged(workload, changes, result):
    workload = load_workload(workload)
    told = {"kind": "checkout", "version": "0.2.3", "tag": "v0.2.3dev20240201", "pristine": True, **changes}
    assert source(workload, {"internevo": told}).result is result


def entries(*runs, resumes=None):
    told = {"workload": "tiny-accuracy", "plan": "p"}
    for number, run in enumerate(runs):
        yield {"event": "started", "run": run, **told} | ({"resumes": runs[number - 1]} if number and resumes else {})
        yield {"event": "ended", "run": run, "outcome": "interrupted", "evidence": run * 64}


@pytest.mark.parametrize(
    ("digests", "journal", "result", "told"),
    [
        ([], [*entries("a")], Result.PASS, "made in one attempt"),
        (["a" * 64], [*entries("a", "b", resumes=True)], Result.PASS, "1 of 1 earlier attempts are as"),
        (
            [],
            [*entries("a", "b", resumes=True)],
            Result.FAIL,
            "holds 0 of them (segment0 on), and the journal shows 1",
        ),
        (
            ["a" * 64],
            [*entries("a", "b")],
            Result.FAIL,
            "holds 1 of them (segment0 on), and the journal shows 0",
        ),
        (["c" * 64], [*entries("a", "b", resumes=True)], Result.FAIL, "segment0 is not what 'a' left"),
    ],
    ids=["one attempt", "resumed", "the earlier one hidden", "one that the journal does not know", "another one"],
)
def test_earlier_attempts_are_those_of_the_journal(digests, journal, result, told):
    finding = attempts(digests, journal)
    assert finding.result is result
    assert told in finding.message


@pytest.mark.parametrize(
    ("records", "logs", "told"),
    [
        ((0, 1), (0,), "missing ranks: [1]; ranks that the plan does not have, or twice: none"),
        ((0, 1, 2), (0, 1), "missing ranks: none; ranks that the plan does not have, or twice: [2]"),
        ((0, 1), (0, 1, 1), "missing ranks: none; ranks that the plan does not have, or twice: [-1]"),
        ((0, 1), (0, 1), ""),
    ],
)
def test_missing_ranks_and_strange_ones_are_told(records, logs, told):
    names = tuple(f"logs/node{number}/rank{rank}.log" for number, rank in enumerate(logs))
    finding = ranks(make_plan(load_workload("tiny-perf"), Topology(1, 2)), {rank: {} for rank in records}, names)
    assert finding.result is (Result.FAIL if told else Result.PASS)
    assert told in finding.message
