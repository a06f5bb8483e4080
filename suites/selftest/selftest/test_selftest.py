"""Every check can fail: for each there is a fault that turns it red, and something good on which it is green."""

import json
from dataclasses import replace

import pytest

from conformance.checks.finding import Finding, Result
from conformance.cli import main
from conformance.selftest.bench import Bench, Fault, run_matrix, to_json, try_fault
from conformance.selftest.faults import FAULTS
from conformance.spec import load_checks


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.check}: {fault.name}")
def test_a_fault_turns_its_own_check_red_and_no_other_than_it_names(fault):
    trial = try_fault(fault)
    assert fault.check in trial.red
    assert trial.red <= fault.also | {fault.check}


def test_every_check_has_a_fault_and_passes_on_something_good():
    one_each = {fault.check: fault for fault in FAULTS}
    matrix = run_matrix(list(one_each.values()), load_checks())
    assert matrix.problems == ()
    assert matrix.green == set(load_checks())


def test_faults_have_names_of_their_own():
    names = [(fault.check, fault.name) for fault in FAULTS]
    assert len(set(names)) == len(names)


# A suite of one check, which holds a number below 10, to hold the proof itself against.
BELOW = Bench("number", lambda _: [1.0], lambda numbers: [_below(numbers[0])])
HIGH = Fault("below", "too high", BELOW, lambda numbers: numbers.__setitem__(0, 11.0))


def _below(number):
    return Finding("below", Result.PASS if number < 10 else Result.FAIL, f"{number}")


def problems(*faults, checks=("below",)):
    return " ".join(run_matrix(faults, checks).problems)


def test_a_sound_suite_has_no_problem():
    matrix = run_matrix([HIGH], ["below"])
    assert matrix.problems == ()
    assert to_json(matrix)["faults"][0]["red"] == ["below"]


def test_a_check_without_a_fault_is_a_problem():
    assert "above: no fault is known" in problems(HIGH, checks=("below", "above"))


def test_a_fault_of_a_check_that_does_not_exist_is_a_problem():
    assert "below: there is no such check" in problems(HIGH, checks=())


def test_a_fault_that_nothing_sees_is_a_problem():
    assert "turned nothing red" in problems(replace(HIGH, inject=lambda numbers: numbers.append(11.0)))


def test_a_fault_that_another_check_sees_too_must_say_so():
    both = Bench("number", lambda _: [1.0], lambda n: [_below(n[0]), replace(_below(n[0]), check="other")])
    assert "turned below, other red" in problems(replace(HIGH, bench=both))
    assert problems(replace(HIGH, bench=both, also=frozenset({"other"}))) == ""


@pytest.mark.parametrize("result", [Result.FAIL, Result.ERROR])
def test_something_good_that_is_not_green_is_a_problem(result):
    bad = Bench("number", lambda _: [1.0], lambda _: [Finding("below", result, "it is not")])
    assert "on the good number: it is not" in problems(replace(HIGH, bench=bad))


def test_a_check_that_never_passes_is_a_problem():
    skips = Bench("number", lambda _: [1.0], lambda n: [replace(_below(n[0]), result=Result.SKIP)])
    assert "it never passed" in problems(replace(HIGH, bench=skips))


def test_the_command_prints_the_matrix(monkeypatch, capsys):
    monkeypatch.setattr("conformance.selftest.faults.FAULTS", [HIGH])
    monkeypatch.setattr("conformance.spec.load_checks", lambda: {"below": None})
    assert main(["selftest"]) == 0
    assert "1 checks, 1 green" in capsys.readouterr().out
    assert main(["selftest", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    monkeypatch.setattr("conformance.spec.load_checks", lambda: {"below": None, "above": None})
    assert main(["selftest"]) == 1
    assert "above: no fault is known" in capsys.readouterr().out


def test_an_installed_package_without_the_evidence_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("conformance.selftest.run.FIXTURE", tmp_path / "absent")
    assert main(["selftest"]) == 2
    assert "checkout" in capsys.readouterr().err
