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
def test_a_fault_changes_what_it_names_and_nothing_else(fault):
    trial = try_fault(fault)
    assert trial.red == fault.also | {fault.check}
    assert trial.silent <= fault.silences


def test_every_check_passes_on_something_good_and_has_a_fault_that_turns_it_red_alone():
    alone = {fault.check: fault for fault in FAULTS if not fault.also}
    matrix = run_matrix(list(alone.values()), load_checks())
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


BOTH = Bench("number", lambda _: [1.0], lambda n: [_below(n[0]), replace(_below(n[0]), check="other")])


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
    assert "turned below, other red" in problems(replace(HIGH, bench=BOTH))
    assert "turned below red, expected below, other" in problems(replace(HIGH, also=frozenset({"other"})))


def test_a_check_that_no_fault_turns_red_alone_is_a_problem():
    both = replace(HIGH, bench=BOTH, also=frozenset({"other"}))
    assert problems(both) == "below: no fault turns it red alone."
    assert problems(both, HIGH) == ""


@pytest.mark.parametrize("silent", [Result.ERROR, Result.SKIP, None])
def test_a_fault_for_which_another_check_is_not_made_must_say_so(silent):
    def judge(numbers):
        other = Finding("other", Result.PASS if numbers[0] < 10 else silent, "")
        return [_below(numbers[0]), *([other] if other.result else [])]

    fault = replace(HIGH, bench=Bench("number", lambda _: [1.0], judge))
    assert problems(fault) == "below, too high: changed other too, which it does not name."
    assert problems(replace(fault, silences=frozenset({"other"}))) == ""


@pytest.mark.parametrize("result", [Result.FAIL, Result.ERROR])
def test_something_good_that_is_not_green_is_a_problem(result):
    bad = Bench("number", lambda _: [1.0], lambda _: [Finding("below", result, "it is not")])
    assert "on the good number: it is not" in problems(replace(HIGH, bench=bad))


def test_a_check_that_never_passes_is_a_problem():
    skips = Bench("number", lambda _: [1.0], lambda n: [replace(_below(n[0]), result=Result.SKIP)])
    assert "it never passed" in problems(replace(HIGH, bench=skips))


def shown(capsys):
    return " ".join(capsys.readouterr().out.split())


def test_the_command_prints_the_matrix(monkeypatch, capsys):
    monkeypatch.setattr("conformance.selftest.faults.FAULTS", [HIGH])
    monkeypatch.setattr("conformance.spec.load_checks", lambda: {"below": None})
    assert main(["selftest"]) == 0
    assert "1 checks, 1 green on good evidence, 1 turned red alone by a fault; 1 of 1 faults" in shown(capsys)
    assert main(["selftest", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["problems"] == []
    monkeypatch.setattr("conformance.spec.load_checks", lambda: {"below": None, "above": None})
    assert main(["selftest"]) == 1
    assert "above: no fault is known" in capsys.readouterr().out


def test_an_installed_package_without_the_evidence_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("conformance.selftest.run.FIXTURE", tmp_path / "absent")
    assert main(["selftest"]) == 2
    assert "checkout" in capsys.readouterr().err
