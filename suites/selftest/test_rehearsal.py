"""The rehearsal as a user starts it, interrupted and struck: clean evidence, a sentence, no process left.

A rehearsal that is left alone is `make rehearsal`, which CI runs beside these tests.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conformance import journal
from conformance.launch.torchrun import RUN_MARK

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def rehearsal(tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "suites/perf", "-m", "tiny"]
    command += ["--run-dir", str(tmp_path / "run"), "--reports", str(tmp_path), "--device", "cpu"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    yield process, tmp_path / "run"
    process.kill()


def workers(run):
    """The training processes of a run, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            environ = process.environ()
            mine = environ.get(RUN_MARK, "").startswith(f"{run}:") and "RANK" in environ
            if mine and process.status() != psutil.STATUS_ZOMBIE:
                found.setdefault(int(environ["RANK"]), process)
        except psutil.Error:
            continue
    return found


def wait_for_training(run):
    """Until InternEvo itself is at work on both ranks."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        logs = [run / "logs/node0" / f"rank{rank}.log" for rank in range(2)]
        if all(log.exists() and log.stat().st_size for log in logs) and set(workers(run)) == {0, 1}:
            return workers(run)
        time.sleep(0.2)
    raise AssertionError("the ranks did not start within 120 s")


def test_ctrl_c_leaves_clean_evidence(rehearsal):
    process, run = rehearsal
    wait_for_training(run)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert workers(run) == {}
    assert json.loads((run / "environment/run.json").read_text())["outcome"] == "interrupted"
    assert [entry["event"] for entry in journal.parse((run / "journal.jsonl").read_bytes()).entries] == [
        "started",
        "ended",
    ]
    assert "NOT_CONFORMANT" in output
    assert "The run was interrupted" in output
    assert (run / "report.dsse.json").exists()
    assert "Traceback" not in output


def test_a_rank_killed_by_a_signal_fails_the_run(rehearsal):
    process, run = rehearsal
    os.kill(wait_for_training(run)[1].pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == pytest.ExitCode.TESTS_FAILED
    assert workers(run) == {}
    assert "NOT_CONFORMANT" in output
    assert "Rank 1 on" in output
    assert "was killed by SIGKILL" in output
    assert "Traceback" not in output
