"""The supervisor on real processes: it follows steps, ends everything on a signal, and leaves nothing behind."""

import os
import signal
import sys
import textwrap
import threading
import time

import psutil
import pytest

from conformance.errors import LaunchError
from conformance.launch.supervise import Step, StepFollower, supervise
from conformance.launch.torchrun import RUN_MARK, environment, recorded, require_free_port

LINE = (
    "2026-01-01 00:00:00,000\tINFO t.py:1 in f -- tflops=1.0 step={step} loss=2.5 tgs (tokens/gpu/second)=100.5 x=1 \n"
)


@pytest.fixture
def run(tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "logs").mkdir()
    return tmp_path


def python(program):
    return [sys.executable, "-c", textwrap.dedent(program)]


def marked(run):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK) == str(run) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_steps_are_reported_and_the_exit_code_is_kept(run):
    log = run / "logs" / "node0" / "rank0.log"
    program = f"""
        import pathlib, time
        log = pathlib.Path({str(log)!r})
        for step in range(3):
            with log.open("a") as f: f.write({LINE!r}.format(step=step))
            time.sleep(0.2)
        raise SystemExit(7)
    """
    seen = []
    ending = supervise(python(program), environment(run), run, 0, seen.append)
    assert [step.step for step in seen] == [0, 1, 2]
    assert seen[0] == Step(0, 2.5, 100.5)
    assert (ending.exit_code, ending.interrupted, ending.left_over) == (7, False, 0)


def test_a_half_written_line_waits_for_its_end(run):
    log = run / "logs" / "node0" / "rank0.log"
    log.parent.mkdir()
    follower = StepFollower(run / "logs")
    line = LINE.format(step=4)
    log.write_text(line[:-20])
    assert follower.new_steps() == []
    log.write_text(line)
    assert [step.step for step in follower.new_steps()] == [4]
    assert follower.new_steps() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_its_grandchildren(run, number):
    # Grandchildren in sessions of their own, deaf to SIGTERM, as a hung rank is: only the mark finds them.
    program = """
        import subprocess, sys, time
        deaf = "import signal,time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
        start = lambda: subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
        children = [start(), start()]
        for child in children: child.stdout.readline()
        open("ready", "w").close()
        time.sleep(600)
    """

    def interrupt():
        while not (run / "work" / "ready").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt, daemon=True).start()
    before = signal.getsignal(number)
    ending = supervise(python(program), environment(run), run, 0, lambda step: None)
    assert ending.interrupted
    assert ending.left_over == 2
    assert marked(run) == []
    assert signal.getsignal(number) is before


def test_a_launcher_that_cannot_start_is_a_sentence(run):
    with pytest.raises(LaunchError, match="could not be started"):
        supervise(["/nonexistent/torchrun"], environment(run), run, 0, lambda step: None)


def test_a_port_in_use_is_a_sentence():
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(LaunchError, match=str(taken.getsockname()[1])):
            require_free_port(taken.getsockname()[1])


def test_secrets_stay_out_of_the_recorded_environment():
    variables = {"NCCL_DEBUG": "INFO", "AWS_SECRET_ACCESS_KEY": "s", "OMP_NUM_THREADS": "4", "GITHUB_TOKEN": "t"}
    assert recorded(variables) == {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4"}
