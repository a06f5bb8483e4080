"""The accuracy rehearsal as a user starts it: it reaches its target, and on a device that trains untruly it does not.

docs/accuracy.md has the figures of these and other faults.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.checks.finding import Result, Verdict
from conformance.evidence import RunDirectory
from conformance.judgement import judge

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch"), pytest.mark.needs("sentencepiece")]

ROOT = Path(__file__).resolve().parents[2]


def rehearse(folder, device, fault="", *options):
    """The exit code, what was printed, and the judgement of the run that resumed the interrupted one."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "suites/accuracy", "-m", "tiny"]
    command += ["--device", device, "--run-dir", str(folder / "run"), "--reports", str(folder / "reports"), *options]
    path = os.pathsep.join([str(ROOT / "suites/selftest/untrue_device"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "FAULT": fault, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    judgement = judge(RunDirectory(folder / "run-resumed"))
    red = {finding.check for finding in judgement.findings if finding.result in (Result.FAIL, Result.ERROR)}
    return done.returncode, done.stdout, judgement, red


def test_an_honest_device_reaches_the_target(tmp_path):
    code, said, judgement, red = rehearse(tmp_path, "cpu")
    assert (code, red, judgement.verdict) == (0, set(), Verdict.REHEARSAL), said
    assert judgement.metrics["segments"] == 2
    assert judgement.metrics["data"]["passes"] > 2


@pytest.mark.long
def test_a_run_stops_at_its_target_when_asked_to(tmp_path):
    """InternEvo ends by its stop file, the attempt before it counts, and the judge accepts the early end."""
    _, said, judgement, red = rehearse(tmp_path, "cpu", "", "--until-target")
    found = {finding.check: finding for finding in judgement.findings}
    assert "below the target for as long as the window" in found["run-complete"].message, said
    assert judgement.metrics["outcome"] == "stopped"
    assert judgement.metrics["last_step"] < 99
    assert judgement.metrics["segments"] == 2
    assert red <= {"loss-target"}, said  # its last step may be above all the same: then it says how many more would do


@pytest.mark.long
@pytest.mark.parametrize("fault", ["rms-norm-of-the-sum", "update-of-a-tenth"])
def test_a_wrong_kernel_or_learning_rate_misses_the_target_and_leaves_the_curve(fault, tmp_path):
    code, said, judgement, red = rehearse(tmp_path, "untrue", fault)
    assert code == pytest.ExitCode.TESTS_FAILED, said
    assert red == {"loss-target", "curve-agrees"}, said  # in all else it is a whole run
    assert judgement.verdict is Verdict.NOT_CONFORMANT
