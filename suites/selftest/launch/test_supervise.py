"""The supervisor on real processes: it follows steps, ends everything on a signal or a fault, leaves nothing behind."""

import os
import signal
import sys
import textwrap
import threading
import time
from dataclasses import replace

import psutil
import pytest

from conformance.errors import LaunchError
from conformance.launch.detect import Detector, Limits, Step
from conformance.launch.node import Launch, LogReader
from conformance.launch.supervise import supervise
from conformance.launch.torchrun import RUN_MARK, environment, recorded, require_free_port

LINE = (
    "2026-01-01 00:00:00,000\tINFO t.py:1 in f -- tflops=1.0 step={step} loss=2.5 tgs (tokens/gpu/second)=100.5 x=1 \n"
)
QUICK = Limits(start_seconds=90, stall_factor=4, stall_floor_seconds=2, lost_node_seconds=3, min_free_bytes=1)

# A rank as torchrun would start it: it logs steps where the worker does, and gives its stack on request.
RANK = """
import faulthandler, os, signal, sys, time
log = open({log!r}, "a", buffering=1)
faulthandler.register(signal.SIGUSR1, file=log)
for step in range({steps}):
    log.write({line!r}.format(step=step))
    time.sleep({pause})
{then}
"""


@pytest.fixture
def run(tmp_path):
    for folder in ("work", "logs/node0"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def python(program):
    return [sys.executable, "-c", textwrap.dedent(program)]


def watch(run, program, on_step=lambda step: None, limits=QUICK, total_steps=100):
    detector = Detector(1, total_steps, limits, time.monotonic())
    return supervise(run, Launch(python(program), environment(run), run, 0), detector, on_step)


def rank_program(run, steps, then="", pause=0.2):
    """A launcher with one rank as its child, as torchrun is to its workers."""
    rank = RANK.format(log=str(run / "logs/node0/rank0.log"), steps=steps, line=LINE, then=then, pause=pause)
    variables = {"RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    return f"""
        import os, subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", {rank!r}], env=os.environ | {variables!r})
        open("rank.pid", "w").write(str(child.pid))
        raise SystemExit(child.wait())
    """


def marked(run):
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_MARK, "").startswith(str(run)) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_steps_are_reported_and_the_exit_code_is_kept(run):
    seen = []
    ending = watch(run, rank_program(run, 3, "raise SystemExit(7)"), seen.append)
    assert [step.step for step in seen] == [0, 1, 2]
    assert seen[0] == Step(0, 2.5, 100.5)
    assert (ending.exit_code, ending.interrupted, ending.left_over) == (7, False, 0)
    assert ending.fault.kind == "node-ended"


def test_a_run_that_ends_well_has_no_fault(run):
    ending = watch(run, rank_program(run, 3), total_steps=3)
    assert (ending.exit_code, ending.fault) == (0, None)


def test_what_is_read_is_read_once(run):
    log = run / "logs" / "node0" / "rank0.log"
    reader = LogReader(run / "logs")
    log.write_bytes(b"one")
    assert list(reader.new_bytes()) == [("logs/node0/rank0.log", b"one")]
    log.write_bytes(b"one, two")
    assert list(reader.new_bytes()) == [("logs/node0/rank0.log", b", two")]
    assert list(reader.new_bytes()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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
    ending = watch(run, program)
    assert ending.interrupted
    assert ending.left_over == 2
    assert marked(run) == []
    assert signal.getsignal(number) is before


def test_a_hung_rank_is_ended_within_the_limit_with_its_stack(run):
    begun = time.monotonic()
    ending = watch(run, rank_program(run, 4, "def wait_for_nothing():\n    time.sleep(600)\nwait_for_nothing()"))
    took = time.monotonic() - begun
    assert ending.fault.kind == "stall"
    assert ending.fault.last_step == 3
    assert "limit 2 s" in ending.fault.message
    assert "rank 0 in wait_for_nothing" in ending.fault.message
    assert "most recent call first" in (run / "logs/node0/rank0.log").read_text()
    assert took < 60
    assert marked(run) == []


def test_a_stopped_rank_is_named(run):
    def stop():
        log = run / "logs/node0/rank0.log"
        while not log.exists() or "step=2 " not in log.read_text():
            time.sleep(0.05)
        os.kill(int((run / "work/rank.pid").read_text()), signal.SIGSTOP)

    threading.Thread(target=stop, daemon=True).start()
    ending = watch(run, rank_program(run, 600))
    assert ending.fault.kind == "stall"
    assert ending.fault.rank == 0
    assert "SIGSTOP" in ending.fault.message
    assert marked(run) == []


def test_a_run_that_never_steps_is_ended_at_the_limit_of_the_start(run):
    ending = watch(run, rank_program(run, 0, "time.sleep(600)"), limits=replace(QUICK, start_seconds=2))
    assert ending.fault.kind == "stall"
    assert ending.fault.last_step is None
    assert "for the start" in ending.fault.message
    assert marked(run) == []


def test_an_exception_that_is_swallowed_ends_the_run(run):
    # As InternEvo's train.py: the exception is logged, the process goes on or ends with 0.
    then = """
log.write("2026-01-01 00:00:01,000\\tERROR train.py:9 in <module> -- Raise exception from h with rank id: 0\\n")
log.write("Traceback (most recent call last):\\n  File \\"t.py\\", line 1, in f\\nStopIteration\\n")
"""
    ending = watch(run, rank_program(run, 3, then))
    assert ending.exit_code == 0
    assert ending.fault.kind == "exception"
    assert "StopIteration" in ending.fault.message
    assert "exit code 0" in ending.fault.message
    assert (ending.fault.rank, ending.fault.last_step) == (0, 2)


def test_a_disk_that_fills_up_ends_the_run_before_it_is_full(run):
    too_much = 1 << 60
    ending = watch(run, rank_program(run, 600), limits=replace(QUICK, min_free_bytes=too_much))
    assert ending.fault.kind == "full-disk"
    assert "MiB free" in ending.fault.message
    assert marked(run) == []


def test_a_launcher_that_cannot_start_is_a_sentence(run):
    with pytest.raises(LaunchError, match="could not be started"):
        supervise(
            run,
            Launch(["/nonexistent/torchrun"], environment(run), run, 0),
            Detector(1, 1, QUICK, time.monotonic()),
            lambda step: None,
        )


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
