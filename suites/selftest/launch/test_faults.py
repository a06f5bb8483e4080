"""Faults injected into real trainings under a real torchrun: each is detected, named and cleaned up.

With ``-s`` a table of what was injected, what was said, and how long that took is printed at the end.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from conformance.launch.detect import Detector, Limits
from conformance.launch.node import Launch
from conformance.launch.supervise import supervise
from conformance.launch.torchrun import environment, free_port

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

HERE = Path(__file__).parent
# On a loaded machine a step of 0.2 s takes seconds: only the test of a stall has a short limit for it.
LIMITS = Limits(
    start_seconds=240,
    stall_factor=10,
    stall_floor_seconds=60,
    lost_node_seconds=8,
    min_free_bytes=4 << 20,
    slow_samples=8,
)
STEPS = 400


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path)


def make_run(path):
    for folder in ("work", "logs/node0", "logs/node1", "environment"):
        (path / folder).mkdir(parents=True)
    return path


def rank_process(run, rank):
    program = f"allreduce_rank.py {run} "
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if program in " ".join(process.cmdline()) and process.environ().get("RANK") == str(rank):
                return process
    raise AssertionError(f"rank {rank} does not run")


def wait_for_step(run, step):
    log = run / "logs/node0/rank0.log"
    end = time.monotonic() + 240
    while time.monotonic() < end:
        if log.exists() and f"step={step} " in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"step {step} never came")


@pytest.fixture
def train(display, left_over):
    """Train with two ranks, do harm after step 3; how the run ended, and the clock's reading when harm was done."""

    def start(run, inject, *raises, limits=LIMITS):
        program = [str(HERE / "allreduce_rank.py"), str(run), str(STEPS), "0.2", *map(str, raises)]
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
        harmed = []

        def harm():
            wait_for_step(run, 3)
            harmed.append(time.monotonic())
            inject()

        thread = threading.Thread(target=harm, daemon=True)
        thread.start()
        detector = Detector(2, STEPS, limits, time.monotonic())
        ending = supervise(run, Launch([*command, *program], environment(run), run, 0), detector, display)
        thread.join()
        assert left_over(run) == []
        assert ending.fault is not None
        return ending, harmed[0] - detector.started

    return start


def test_a_rank_is_killed(run, train, table):
    ending, harmed = train(run, lambda: rank_process(run, 1).kill())
    table.append(("SIGKILL of rank 1", ending.fault.seconds - harmed, ending.fault.message))
    assert (ending.fault.kind, ending.fault.rank) == ("rank-died", 1)
    assert "SIGKILL" in ending.fault.message
    assert ending.fault.last_step >= 3


def test_a_rank_is_stopped(run, train, table):
    limits = replace(LIMITS, stall_floor_seconds=6)
    ending, harmed = train(run, lambda: rank_process(run, 1).send_signal(signal.SIGSTOP), limits=limits)
    table.append(("SIGSTOP of rank 1", ending.fault.seconds - harmed, ending.fault.message))
    assert (ending.fault.kind, ending.fault.rank) == ("stall", 1)
    assert "SIGSTOP" in ending.fault.message
    assert "rank 0 in all_reduce" in ending.fault.message  # the others wait for it


def test_a_rank_hangs_in_its_own_code(run, train, table, monkeypatch):
    monkeypatch.setenv("HANG", "1")
    ending, harmed = train(run, lambda: None, limits=replace(LIMITS, stall_floor_seconds=6))
    table.append(("rank 1 hangs after step 5, in a sleep", ending.fault.seconds - harmed, ending.fault.message))
    assert (ending.fault.kind, ending.fault.node, ending.fault.rank) == ("stall", 0, 1)
    assert ending.fault.host
    assert "is held up in hang (allreduce_rank.py:" in ending.fault.message


def test_an_exception_is_swallowed(run, train, table):
    ending, harmed = train(run, lambda: None, 1, 8)
    table.append(
        ("exception in rank 1 at step 8, caught as InternEvo does", ending.fault.seconds - harmed, ending.fault.message)
    )
    assert (ending.fault.kind, ending.fault.rank) == ("exception", 1)
    assert "StopIteration" in ending.fault.message
    assert ending.fault.last_step == 7


def test_a_slow_rank_is_named_while_the_run_goes_on(run, train, display, table, monkeypatch):
    monkeypatch.setenv("WORK", "40")  # ranks that only sleep would all seem to wait

    def slow_down():
        rank, end = rank_process(run, 1), time.monotonic() + 60
        while not display.notices and time.monotonic() < end:
            rank.suspend()
            time.sleep(0.3)
            rank.resume()
            time.sleep(0.1)
        rank.kill()  # the run itself would go on

    ending, harmed = train(run, slow_down)
    notice = ending.notices[0]
    table.append(("rank 1 held up three quarters of the time", notice.seconds - harmed, notice.message))
    assert (*ending.notices, ending.fault) == tuple(display.notices)  # each is told at once
    assert (notice.kind, notice.rank, notice.node) == ("slow-rank", 1, 0)
    assert notice.host in notice.message
    assert notice.last_step >= 3
    assert ending.fault.kind == "rank-died"  # what ended the run is told beside it


def test_the_disk_fills_up(small_disk, train, table):
    disk = small_disk(32 << 20)
    run = make_run(disk / "run")

    def fill():
        with contextlib.suppress(OSError), (disk / "other").open("wb") as stream:
            while True:
                stream.write(b"\0" * (1 << 20))

    ending, harmed = train(run, fill)
    table.append(("disk of the run directory filled", ending.fault.seconds - harmed, ending.fault.message))
    assert ending.fault.kind == "full-disk"
    assert ending.fault.host


@pytest.fixture
def link(real_parts):
    """Two network namespaces joined by a cable: their names, the address of the first, and what cuts the cable."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        real_parts("only root, with iproute2, may make network namespaces")
    names = [f"conf{os.getpid()}{end}" for end in "ab"]

    def ip(*words, check=True):
        return subprocess.run(["ip", *words], check=check, capture_output=True, text=True)

    if ip("netns", "add", names[0], check=False).returncode:
        real_parts("network namespaces cannot be made here")
    try:
        ip("netns", "add", names[1])
        ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
        for name, address in zip(names, ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            ip("link", "set", name, "netns", name)
            ip("-n", name, "addr", "add", address, "dev", name)
            ip("-n", name, "link", "set", name, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names, "10.77.0.1", lambda: ip("-n", names[1], "link", "set", names[1], "down")
    finally:
        for name in names:
            ip("netns", "del", name, check=False)


def start_node(namespace, *arguments):
    enter = ["ip", "netns", "exec", namespace] if namespace else []
    command = [*enter, sys.executable, str(HERE / "two_nodes.py"), *map(str, arguments)]
    environ = os.environ | {"GLOO_SOCKET_IFNAME": namespace} if namespace else None
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ)


def test_two_nodes_end_well_and_the_logs_arrive_without_a_shared_folder(tmp_path, left_over):
    run, port = make_run(tmp_path / "a" / "run"), free_port()
    host = start_node("", "host", "127.0.0.1", port, run, 6, 60)
    member = start_node("", "member", "127.0.0.1", port, tmp_path / "b" / "run", 6)
    ending = json.loads(host.communicate(timeout=120)[0])
    assert (ending["exit_code"], ending["fault"]) == (0, None)
    assert json.loads(member.communicate(timeout=30)[0]) == {"told": "all"}
    theirs = tmp_path / "b" / "run"
    assert (run / "logs/node1/rank1.log").read_bytes() == (theirs / "logs/node1/rank1.log").read_bytes()
    assert (run / "environment/telemetry-node1.csv").read_text().startswith("timestamp, index")
    assert not (theirs / "logs/node0").exists()
    assert left_over(run, theirs) == []


def test_a_node_is_preempted(tmp_path, table, left_over):
    run, theirs, port = make_run(tmp_path / "a" / "run"), tmp_path / "b" / "run", free_port()
    host = start_node("", "host", "127.0.0.1", port, run, STEPS, 60)
    member = start_node("", "member", "127.0.0.1", port, theirs, STEPS)
    wait_for_step(run, 15)  # node 1 hears of steps once a second
    harmed = time.monotonic()
    member.send_signal(signal.SIGTERM)
    out, err = host.communicate(timeout=120)
    ended = time.monotonic() - harmed
    ending = json.loads(out)
    fault = ending["fault"]
    table.append(("SIGTERM to the suite on node 1", ended, fault["message"] + " [to the end of node 0's processes]"))
    assert (fault["kind"], fault["node"], fault["rank"]) == ("node-ended", 1, None), err
    assert "was told to end by a signal" in fault["message"]
    assert ending["interrupted"]
    out, err = member.communicate(timeout=60)
    assert json.loads(out) == {"told": "all"}
    assert re.search(r"node 1: step \d+  loss", err)  # it showed the steps that node 0 told
    assert left_over(run, theirs) == []


def test_a_link_is_cut(link, tmp_path, table, left_over):
    (first, second), address, cut = link
    run, theirs, port = make_run(tmp_path / "a" / "run"), tmp_path / "b" / "run", 29500
    host = start_node(first, "host", address, port, run, STEPS, 8)
    member = start_node(second, "member", address, port, theirs, STEPS)
    wait_for_step(run, 3)
    harmed = time.monotonic()
    cut()
    out, err = host.communicate(timeout=120)
    ended = time.monotonic() - harmed
    fault = json.loads(out)["fault"]
    table.append(
        ("link of node 1 cut (network namespaces)", ended, fault["message"] + " [to the end of node 0's processes]")
    )
    assert (fault["kind"], fault["node"]) == ("lost-node", 1), err
    assert fault["last_step"] >= 3
    _, err = member.communicate(timeout=60)
    assert member.returncode == 2
    assert "Node 0 has gone" in err
    assert left_over(run, theirs) == []
