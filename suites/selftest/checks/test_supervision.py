"""What the supervisor saw becomes findings; a run that was not watched to its end is no pass."""

import pytest

from conformance.checks.finding import Result
from conformance.checks.supervision import faults

FAULT = {"kind": "stall", "message": "The run stands still.", "next_step": "Look at the stacks."}


def test_no_fault_passes():
    (finding,) = faults({"faults": []})
    assert (finding.check, finding.result) == ("run-faults", Result.PASS)


def test_each_fault_is_a_failure_in_its_own_words():
    (finding,) = faults({"faults": [FAULT]})
    assert finding.result is Result.FAIL
    assert (finding.message, finding.next_step, finding.value) == (FAULT["message"], FAULT["next_step"], "stall")


@pytest.mark.parametrize("record", [None, {}, {"faults": None}, {"faults": ["stall"]}])
def test_a_run_that_nobody_watched_is_not_green(record):
    (finding,) = faults(record)
    assert finding.result is Result.ERROR
