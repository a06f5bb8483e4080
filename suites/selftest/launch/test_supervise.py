"""The supervisor on real processes: it follows steps, ends everything on a signal or a fault, leaves nothing behind."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.errors import LaunchError
from conformance.launch import supervise as supervise_module
from conformance.launch.detect import Detector, Limits, NodeView, Step
from conformance.launch.node import Launch, LogReader, Node, _waits, signals_heeded, signals_held, signals_raise
from conformance.launch.supervise import Interrupted, supervise
from conformance.launch.torchrun import differing, environment, recorded, require_free_port

LINE = (
    "2026-01-01 00:00:00,000\tINFO t.py:1 in f -- tflops=1.0 step={step} loss=2.5 tgs (tokens/gpu/second)=100.5 x=1 \n"
)
# On a loaded machine a step of 0.2 s takes seconds: only the tests of a stall have a short limit for it.
LIMITS = Limits(start_seconds=240, stall_factor=4, stall_floor_seconds=60, lost_node_seconds=60, min_free_bytes=1)
STALL = replace(LIMITS, stall_floor_seconds=4)
# Several looks of the supervisor take so many, or no step time would be known yet and the start's limit hold.
STEPS = 20

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


@pytest.fixture
def watch(run, display):
    def start(program, limits=LIMITS, total_steps=100):
        detector = Detector(1, total_steps, limits, time.monotonic())
        with signals_raise(Interrupted):
            return supervise(run, Launch(python(program), environment(run), run, 0), detector, display)

    return start


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


def test_steps_are_reported_and_the_exit_code_is_kept(run, watch, display):
    ending = watch(rank_program(run, 3, "raise SystemExit(7)"))
    assert [step.step for step in display.steps] == [0, 1, 2]
    assert display.steps[0] == Step(0, 2.5, 100.5, 2.5)
    assert display.views[0].exit_code == 7
    assert (ending.exit_code, ending.interrupted, ending.left_over) == (7, False, 0)
    assert ending.fault.kind == "node-ended"


def test_a_run_that_ends_well_has_no_fault(run, watch):
    ending = watch(rank_program(run, 3), total_steps=3)
    assert (ending.exit_code, ending.fault) == (0, None)


# The suite as it shows a run to whoever reads its output, and what came of the run, on stderr.
SUITE = """
import sys, time
from pathlib import Path
from rich.console import Console
from conformance.launch import progress
from conformance.launch.detect import Detector, Limits
from conformance.launch.node import Launch, signals_raise
from conformance.launch.supervise import Interrupted, supervise
from conformance.launch.torchrun import environment

run, program = Path(sys.argv[1]), sys.argv[2]
progress.PLAIN_INTERVAL_SECONDS = 0.0
launch = Launch([sys.executable, "-c", program], environment(run), run, 0)
with signals_raise(Interrupted), progress.LiveProgress(Console(), "tiny-perf") as display:
    ending = supervise(run, launch, Detector(1, 100, Limits(), time.monotonic()), display)
print(ending.exit_code, ending.interrupted, ending.fault, file=sys.stderr)
"""
LOGS = """
import time
from pathlib import Path
with open("../logs/node0/rank0.log", "a", buffering=1) as log:
    for step in range(3):
        log.write({line!r}.format(step=step))
        while not Path("go").exists():
            time.sleep(0.02)
        time.sleep(0.6)
    {then}
"""


@pytest.mark.parametrize(
    ("interrupt", "then", "came"),
    [(False, "", "0 False None"), (True, "time.sleep(600)", "-15 True None")],
    ids=["| head", "| tee, and Ctrl-C"],
)
def test_a_reader_of_the_output_who_goes_away_ends_no_run(run, interrupt, then, came):
    program = LOGS.format(line=LINE, then=then)
    suite = subprocess.Popen(
        [sys.executable, "-c", SUITE, str(run), program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert "step 0" in suite.stdout.readline()
        suite.stdout.close()
        if interrupt:
            suite.send_signal(signal.SIGINT)
        (run / "work/go").touch()
        suite.wait(60)
        assert suite.stderr.read().splitlines() == [came]
    finally:
        suite.kill()
        suite.stderr.close()


def test_a_full_disk_behind_the_output_is_not_the_runs(run):
    (run / "work/go").touch()
    command = [sys.executable, "-c", SUITE, str(run), LOGS.format(line=LINE, then="")]
    with Path("/dev/full").open("w") as full:
        suite = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert suite.stderr.splitlines()[0] == "0 False None"


def test_what_is_read_is_read_once(run):
    log = run / "logs" / "node0" / "rank0.log"
    reader = LogReader(run / "logs")
    log.write_bytes(b"one")
    assert list(reader.new_bytes()) == [("logs/node0/rank0.log", b"one")]
    log.write_bytes(b"one, two")
    assert list(reader.new_bytes()) == [("logs/node0/rank0.log", b", two")]
    assert list(reader.new_bytes()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_run_and_its_grandchildren(run, number, watch, display, left_over):
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
    ending = watch(program)
    assert (ending.interrupted, ending.signal) == (True, number.name)
    assert ending.left_over == 2
    assert ending.fault is None
    (said,) = display.notices  # at once: ending it takes a while
    assert said.message == f"The run was told to end by {number.name}; before the first step."
    assert left_over(run) == []
    assert signal.getsignal(number) is before


def test_no_further_signal_breaks_what_the_first_one_began():
    with pytest.raises(Interrupted, match="SIGTERM"), signals_raise(Interrupted):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)  # the report is being written


def test_the_first_signal_that_was_held_back_comes_afterwards():
    came = []
    with signals_heeded(came.append):
        with signals_held():
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
            assert came == []
        assert came == ["SIGTERM"]
        with signals_held():  # what follows the first is ignored here too
            os.kill(os.getpid(), signal.SIGINT)
    assert came == ["SIGTERM"]


def test_no_signal_breaks_the_last_look_at_a_run_that_ended_well_and_none_is_lost(run, watch, display, monkeypatch):
    ended, end, read = [], supervise_module._end, supervise_module._read

    def done(*asked):
        ended.append(True)
        return end(*asked)

    def look(*asked):
        if ended:
            os.kill(os.getpid(), signal.SIGTERM)
        read(*asked)

    monkeypatch.setattr(supervise_module, "_end", done)
    monkeypatch.setattr(supervise_module, "_read", look)
    ending = watch("pass")
    assert (ending.interrupted, ending.signal) == (False, "SIGTERM")
    assert display.notices[-1].message.startswith("SIGTERM came after the end of the training: it is heeded once")


def test_a_signal_while_a_fault_is_told_is_not_lost(run, watch, display, monkeypatch):
    def notice(fault):
        display.notices.append(fault)
        if fault.kind == "node-ended":
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(display, "notice", notice)
    ending = watch("raise SystemExit(7)")
    assert (ending.fault.kind, ending.interrupted, ending.signal) == ("node-ended", False, "SIGTERM")
    assert [one.kind for one in display.notices] == ["node-ended", "interrupted"]


def test_ctrl_c_does_not_break_the_end_of_a_run_that_a_fault_ended(run, watch, display, left_over):
    deaf = "import signal; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
    program = rank_program(run, STEPS, deaf).replace("raise SystemExit(child.wait())", "import signal, time; " + deaf)

    def interrupt():
        while not display.notices:  # the fault is told, and the run is being ended: 10 s for who is deaf to SIGTERM
            time.sleep(0.05)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    ending = watch(program, STALL)
    assert (ending.fault.kind, ending.interrupted, ending.signal) == ("stall", False, "SIGINT")
    assert [one.kind for one in display.notices] == ["stall", "interrupted"]
    assert left_over(run) == []


def test_a_hung_rank_is_ended_within_the_limit_with_its_stack(run, watch, left_over):
    begun = time.monotonic()
    ending = watch(rank_program(run, STEPS, "def wait_for_nothing():\n    time.sleep(600)\nwait_for_nothing()"), STALL)
    took = time.monotonic() - begun
    assert ending.fault.kind == "stall"
    assert ending.fault.last_step == STEPS - 1
    assert "limit 4 s" in ending.fault.message
    assert "rank 0 in wait_for_nothing" in ending.fault.message
    assert "most recent call first" in (run / "logs/node0/rank0.log").read_text()
    assert took < 60
    assert left_over(run) == []


def test_a_stopped_rank_is_named(run, watch, left_over):
    def stop():
        log = run / "logs/node0/rank0.log"
        # Several looks of the supervisor later, or no step time is known yet and the start's limit holds.
        while not log.exists() or "step=30 " not in log.read_text():
            time.sleep(0.05)
        os.kill(int((run / "work/rank.pid").read_text()), signal.SIGSTOP)

    threading.Thread(target=stop, daemon=True).start()
    ending = watch(rank_program(run, 600), STALL)
    assert ending.fault.kind == "stall"
    assert ending.fault.rank == 0
    assert "SIGSTOP" in ending.fault.message
    assert left_over(run) == []


def test_what_works_and_what_waits_is_seen_from_outside():
    waiting, working = (
        subprocess.Popen(python(f"print(1, flush=True)\n{then}"), stdout=subprocess.PIPE)
        for then in ("import time; time.sleep(60)", "while True: pass")
    )
    try:
        for process in (waiting, working):
            process.stdout.readline()
        time.sleep(0.2)
        assert _waits(waiting.pid)
        assert not _waits(working.pid)
        waiting.send_signal(signal.SIGSTOP)
        time.sleep(0.2)
        assert not _waits(waiting.pid)  # it waits for nobody: the others wait for it
    finally:
        for process in (waiting, working):
            process.kill()
            process.communicate()


def test_a_child_that_has_no_rank_yet_is_none_of_the_ranks(run):
    # As torchrun's own between fork and exec, where a script set LOCAL_RANK alone.
    program = """
        import os, subprocess, sys, time
        variables = {**os.environ, "LOCAL_RANK": "0"}
        variables.pop("RANK", None)
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=variables)
        open("ready", "w").close()
        time.sleep(600)
    """
    node = Node(Launch(python(program), environment(run), run, 0))
    try:
        while not (run / "work" / "ready").exists():
            time.sleep(0.05)
        view = node.view()
        assert (view.waiting, view.working) == ((), ())
    finally:
        node.end()


def test_a_run_that_never_steps_is_ended_at_the_limit_of_the_start(run, watch, left_over):
    ending = watch(rank_program(run, 0, "time.sleep(600)"), limits=replace(LIMITS, start_seconds=2))
    assert ending.fault.kind == "stall"
    assert ending.fault.last_step is None
    assert "for the start" in ending.fault.message
    assert left_over(run) == []


def test_an_exception_that_is_swallowed_ends_the_run(run, watch):
    # As InternEvo's train.py: the exception is logged, the process goes on or ends with 0.
    then = """
log.write("2026-01-01 00:00:01,000\\tERROR train.py:9 in <module> -- Raise exception from h with rank id: 0\\n")
log.write("Traceback (most recent call last):\\n  File \\"t.py\\", line 1, in f\\nStopIteration\\n")
"""
    ending = watch(rank_program(run, 3, then))
    assert ending.exit_code == 0
    assert ending.fault.kind == "exception"
    assert "StopIteration" in ending.fault.message
    assert "exit code 0" in ending.fault.message
    assert (ending.fault.rank, ending.fault.last_step) == (0, 2)


def test_a_disk_that_fills_up_ends_the_run_before_it_is_full(run, watch, left_over):
    too_much = 1 << 60
    ending = watch(rank_program(run, 600), limits=replace(LIMITS, min_free_bytes=too_much))
    assert ending.fault.kind == "full-disk"
    assert "MiB free" in ending.fault.message
    assert left_over(run) == []


class Others:
    """The other nodes of a run, whose words node 0 cannot write down; on the fourth look all have ended."""

    def __init__(self, number, until):
        self.number, self.until, self.looks = number, until, 0

    def views(self):
        self.looks += 1
        if self.looks <= self.until:
            raise OSError(self.number, os.strerror(self.number))
        return {1: NodeView("hostB", 0.0, 0 if self.looks > 3 else None, 1 << 40)}

    def step(self, step):
        pass

    def stop(self, with_stacks):
        pass


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, "full-disk", "(node 0) is full: No space left on device"),
        (errno.EDQUOT, "full-disk", "(node 0) is full: Disk quota exceeded"),
        (errno.ESTALE, "disk-error", "(node 0) has failed for 1 s: Stale file handle"),
        (errno.EIO, "disk-error", "(node 0) has failed for 1 s: Input/output error"),
    ],
)
def test_a_file_system_that_refuses_to_work_is_named(run, display, number, kind, said):
    limits = replace(LIMITS, lost_node_seconds=0.8)
    ending = supervise(run, None, Detector(1, 20, limits, time.monotonic()), display, Others(number, 99))
    assert (ending.fault.kind, ending.fault.node) == (kind, 0)
    assert said in ending.fault.message
    assert display.notices == [ending.fault]


def test_what_a_file_system_refuses_for_a_moment_is_bridged(run, display):
    ending = supervise(run, None, Detector(1, 20, LIMITS, time.monotonic()), display, Others(errno.ESTALE, 2))
    assert (ending.fault, ending.exit_code, display.notices) == (None, 0, [])


def test_a_log_that_cannot_be_read_for_a_moment_is_read_after_it(run, watch, display):
    log, whole = run / "logs/node0/rank0.log", run / "work/whole"
    log.symlink_to("/proc/self/mem")  # reading it is an input/output error
    whole.write_text("".join(LINE.format(step=step) for step in range(3)))
    (run / "logs/node0/agent.log").write_text("one word\n")

    def mend():
        time.sleep(1.2)
        whole.replace(log)

    threading.Thread(target=mend, daemon=True).start()
    ending = watch("pass", total_steps=3)  # it has ended long before its log can be read
    assert [step.step for step in display.steps] == [0, 1, 2]
    assert (ending.exit_code, ending.fault) == (0, None)


def test_a_log_that_cannot_be_read_at_all_is_named(run, watch, display, left_over):
    (run / "logs/node0/rank0.log").symlink_to("/proc/self/mem")
    ending = watch("import time; time.sleep(600)", replace(LIMITS, lost_node_seconds=1))
    assert ending.fault.kind == "disk-error"
    assert "Input/output error" in ending.fault.message
    assert display.notices == [ending.fault]
    assert left_over(run) == []


def test_a_run_directory_that_is_gone_for_a_moment_keeps_its_free_space(run, tmp_path):
    launch = Launch(python("import time; time.sleep(600)"), environment(run), run, 0)
    node = Node(launch)
    try:
        before, _ = node.view(), run.rename(tmp_path.with_name("away"))
        away = node.view()
        tmp_path.with_name("away").rename(run)
        assert (away.free_bytes, away.disk_error) == (before.free_bytes, "No such file or directory")
        assert (node.view().disk_error, node.view().disk_seconds) == ("", 0.0)
    finally:
        node.end()


def test_a_launcher_that_cannot_start_is_a_sentence(run, display):
    with pytest.raises(LaunchError, match="could not be started"):
        supervise(
            run,
            Launch(["/nonexistent/torchrun"], environment(run), run, 0),
            Detector(1, 1, LIMITS, time.monotonic()),
            display,
        )


def test_a_port_in_use_is_a_sentence():
    import socket

    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        with pytest.raises(LaunchError, match=str(taken.getsockname()[1])):
            require_free_port(taken.getsockname()[1])


def test_what_is_set_otherwise_on_another_node_is_told_and_its_place_is_not():
    ours = recorded({"RANK": "0", "NCCL_IB_HCA": "mlx5_0", "UCX_TLS": "rc", "NVIDIA_TF32_OVERRIDE": "0", "HOME": "/a"})
    theirs = recorded({"RANK": "1", "NCCL_IB_HCA": "mlx5_0", "LD_PRELOAD": "x.so", "NVIDIA_TF32_OVERRIDE": "1"})
    assert differing(ours, theirs) == {"LD_PRELOAD": "x.so", "NVIDIA_TF32_OVERRIDE": "1", "UCX_TLS": None}
    assert differing(ours, ours) == {}


def test_which_devices_a_node_was_given_is_its_own():
    theirs = recorded({"CUDA_VISIBLE_DEVICES": "1", "ROCR_VISIBLE_DEVICES": "0", "CUDA_LAUNCH_BLOCKING": "1"})
    assert differing({"CUDA_VISIBLE_DEVICES": "0"}, theirs) == {"CUDA_LAUNCH_BLOCKING": "1"}


def test_secrets_stay_out_of_the_recorded_environment():
    kept = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "4", "RANK": "0"}
    secret = {"AWS_SECRET_ACCESS_KEY": "s", "GITHUB_TOKEN": "t", "PATH": "/home/me", "HTTPS_PROXY": "http://me:pw@x"}
    # A name of an allowed family that says itself what it holds.
    secret |= {"TORCH_HUB_TOKEN": "s", "NCCL_PLUGIN_PASSWORD": "s", "MLU_LICENSE_KEY": "s", "CUDA_credential": "s"}
    assert recorded(kept | secret) == kept
