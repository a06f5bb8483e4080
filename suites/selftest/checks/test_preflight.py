"""Judgement of preflight measurements; that every fault turns its own check red, selftest/test_selftest.py shows."""

from __future__ import annotations

import pytest

from conformance.checks.finding import Result
from conformance.checks.preflight import CHECKS, Preflight, collective_limit, cpu_list, judge, number
from conformance.selftest.cluster import find, hang, sound_cluster
from conformance.spec import load_checks

TASKS = ("contract", "host", "device", "collectives", "step")


def test_a_sound_cluster_passes_every_check():
    findings = judge(sound_cluster())
    assert [f.check for f in findings] == list(CHECKS)
    assert {f.check: f.message for f in findings if f.result is not Result.PASS} == {}


def test_every_check_of_a_preflight_is_described():
    assert set(CHECKS) == {c.id for c in load_checks().values() if "preflight" in c.applies}


@pytest.mark.parametrize("task", TASKS)
def test_what_was_not_measured_is_an_error_and_never_a_pass(task):
    preflight = sound_cluster()
    preflight.tasks[task] = []
    findings = {finding.check: finding for finding in judge(preflight)}
    for check, (needs, _) in CHECKS.items():
        if needs == task:
            assert findings[check].result is Result.ERROR, findings[check]


@pytest.mark.parametrize("task", TASKS)
def test_a_rank_that_left_nothing_is_missed(task):
    preflight = sound_cluster()
    preflight.tasks[task][:] = [one for one in preflight.tasks[task] if one["rank"] != 1]
    errors = {finding.check for finding in judge(preflight) if finding.result is Result.ERROR}
    assert errors >= {check for check, (needs, _) in CHECKS.items() if needs == task}


def test_a_device_that_tells_nothing_among_others_that_do_is_an_error():
    preflight = sound_cluster()
    health = find(preflight, "host", "health", 1)
    for name in set(health) - {"kind", "index"}:
        del health[name]
    findings = {finding.check: finding.result for finding in judge(preflight)}
    for check in ("device-health", "device-busy", "device-bus"):
        assert findings[check] is Result.ERROR


def test_what_a_tool_does_not_tell_is_no_breach_of_contract():
    preflight = sound_cluster()
    for process_of_node in preflight.tasks["contract"]:
        process_of_node["records"].append({"kind": "contract", "aspect": "smi", "state": "missing", "detail": ""})
    contract = judge(preflight)[1]
    assert contract.result is Result.PASS
    assert "not told: smi" in contract.message


def test_a_hang_is_named_by_rank_and_phase():
    preflight = sound_cluster()
    hang(preflight)
    ended = judge(preflight)[0]
    assert "rank 3 hung" in ended.message
    assert "collectives: broadcast" in ended.message


def test_ranks_that_share_a_processor_are_not_compared():
    preflight = sound_cluster()
    shared = Preflight({**preflight.setup, "backend": "gloo"}, preflight.tasks, ())
    skipped = {finding.check for finding in judge(shared) if finding.result is Result.SKIP}
    assert skipped == {"speed-even", "link-even", "arrival-even", "gemm-speed", "copy-speed"}


def test_limits_of_collectives_come_from_the_dtype():
    exact = {"operation": "all_reduce SUM", "dtype": "bfloat16", "size": 8}
    assert collective_limit(exact) == 0
    assert collective_limit({**exact, "operation": "all_reduce AVG"}) == 2 * 2.0**-9
    random = {**exact, "operation": "all_reduce SUM of random numbers"}
    # Small enough to see that one of many ranks was left out, whose share of a random sum is 1 / sqrt(ranks).
    for size in (2, 8):
        assert collective_limit({**random, "size": size}) < 1 / size**0.5


def test_numbers_and_cpu_lists_are_read_as_written():
    assert number("inf") == float("inf")
    assert number("nan") != number("nan")
    assert number(None) != number(None)
    assert list(cpu_list("0-2,8")) == [0, 1, 2, 8]
    assert list(cpu_list("")) == []
