"""The suite itself is killed, or its terminal closed: no torchrun, rank, sampler or agent outlives it, on any node."""

import fcntl
import json
import os
import pty
import subprocess
import sys
import termios
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

ROOT = Path(__file__).parents[3]


@pytest.fixture
def command(tmp_path):
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")
    suite = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "suites/perf", "-m", "tiny"]
    return [*suite, "--device", "cpu", "--reports", str(tmp_path), "--run-dir", str(tmp_path / "run")]


def wait_for_ranks(count, found, seconds=120):
    """Until so many ranks run; the roles that then carry the run's mark."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        variables = []
        for process in found():
            try:
                variables.append(process.environ())
            except psutil.Error:
                continue
        if len({each["RANK"] for each in variables if "RANK" in each}) == count:
            return {each["CONFORMANCE_RUN"].partition(":")[2] for each in variables}
        time.sleep(0.1)
    raise AssertionError(f"{count} ranks did not start within {seconds} s")


def speaks_of(run):
    """Processes that were started for this run, by their command line: guards carry no mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(run) in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_a_killed_suite_leaves_no_process_on_either_node(command, tmp_path, left_over, table):
    run = tmp_path / "run"
    options = ["--launcher", "local", "--nodes", "2", "--devices-per-node", "1"]
    suite = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        roles = wait_for_ranks(2, lambda: left_over(run))
    finally:
        suite.kill()
        begun = time.monotonic()
        suite.wait()
    assert roles == {"0", "1", "0:telemetry", "1:telemetry", "agents"}
    while (left := left_over(run) + speaks_of(run)) and time.monotonic() - begun < 60:
        time.sleep(0.1)
    assert left == []
    table.append(("SIGKILL of pytest, two nodes here", time.monotonic() - begun, "nothing: until no process was left"))


def test_a_closed_terminal_ends_the_run_in_order(command, tmp_path, left_over, table):
    run = tmp_path / "run"
    ours, theirs = pty.openpty()
    suite = subprocess.Popen(
        [*command, "--devices-per-node", "1"],
        cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    shown, closing = [], threading.Event()

    def read():
        while not closing.is_set():
            try:
                shown.append(os.read(ours, 4096))
            except OSError:
                return

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        wait_for_ranks(1, lambda: left_over(run))
        closing.set()
        reader.join(30)  # the live line moves, so a read returns soon
        os.close(ours)
        begun = time.monotonic()
        suite.wait(90)
    finally:
        suite.kill()
    table.append(("the terminal closed (SIGHUP)", time.monotonic() - begun, "the report: interrupted [to the end]"))
    assert b"1 rank starting" in b"".join(shown)
    assert json.loads((run / "environment/run.json").read_text())["outcome"] == "interrupted"
    assert (run / "report.dsse.json").exists()
    assert left_over(run) + speaks_of(run) == []


MEASURE = """
import sys
from conformance.preflight.driver import Ranks, run_task
from conformance.preflight.worker import Task
from conformance.spec import load_workload
model = vars(load_workload("tiny-perf").model)
task = Task("device", "cpu", sys.argv[1], seed=1, rehearsal=True, model=model, tokens=256, tensor=1, pipeline=1,
            capacity_gib=0.05, devices=2, workload="tiny-perf")
run_task(task, Ranks(2, port=29500), 600)
"""


def test_a_killed_preflight_leaves_no_measuring_process(tmp_path, left_over):
    out = tmp_path / "device"
    suite = subprocess.Popen([sys.executable, "-c", MEASURE, str(out)], cwd=ROOT)
    try:
        wait_for_ranks(2, lambda: left_over(out))
    finally:
        suite.kill()
        begun = time.monotonic()
        suite.wait()
    while (left := left_over(out) + speaks_of(out)) and time.monotonic() - begun < 60:
        time.sleep(0.1)
    assert left == []
