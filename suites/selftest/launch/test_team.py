"""Nodes that join a run over torch's store: all arrive and hand over their logs, or the one that does not is named."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from conformance.errors import LaunchError
from conformance.launch import follow as follow_module
from conformance.launch import team
from conformance.launch.detect import NodeView, Step
from conformance.launch.follow import follow
from conformance.launch.launcher import _free_pair
from conformance.launch.node import signals_raise
from conformance.launch.supervise import Interrupted
from conformance.launch.team import RUN, STOP, STOP_WITH_STACKS, Host, Member

pytestmark = pytest.mark.needs("torch")

REQUEST = {"workload": "tiny-perf"}
JOB = {"run": "run", "lost_node_seconds": 30}


@pytest.fixture
def port():
    return _free_pair()


@pytest.fixture
def runs(tmp_path):
    for side in "ab":
        for folder in ("logs/node1", "environment"):
            (tmp_path / side / folder).mkdir(parents=True)
    return tmp_path / "a", tmp_path / "b"


def in_thread(work):
    """Run ``work`` beside the test; give what waits for its result or error."""
    box = {}

    def target():
        try:
            box["result"] = work()
        except LaunchError as error:
            box["error"] = error

    thread = threading.Thread(target=target, daemon=True)
    thread.start()

    def wait():
        thread.join(30)
        assert not thread.is_alive()
        return box

    return wait


def joined(port, runs):
    host = Host(port, [1], runs[0])

    def join():
        member = Member("127.0.0.1", port, 1, REQUEST, seconds=20)
        member.ready()
        return member

    member = in_thread(join)
    host.gather(REQUEST, lambda hellos: JOB, seconds=20)
    return host, member()["result"]


def test_logs_state_orders_and_verdict_cross(port, runs):
    host, member = joined(port, runs)
    theirs = runs[1] / "logs/node1/rank1.log"
    theirs.write_bytes(b"first\n")
    (runs[1] / "logs/node1/agent.log").touch()
    member.begin(runs[1])
    host.step(Step(4, 2.5, 100.5, 2.5))
    member.tell(NodeView("hostB", 0.0, None, 7, stopped=(1,)))
    while host.views()[1].stopped != (1,):
        pass
    assert (runs[0] / "logs/node1/rank1.log").read_bytes() == b"first\n"
    assert (runs[0] / "logs/node1/agent.log").read_bytes() == b""
    with theirs.open("ab") as stream:
        stream.write(b"x" * (3 << 20))  # more than a message holds
    member.tell(NodeView("hostB", 0.0, 3, 7, interrupted=True))
    stopped = in_thread(lambda: host.stop(with_stacks=True))
    end = time.monotonic() + 20
    while member.order != STOP_WITH_STACKS and time.monotonic() < end:
        time.sleep(0.05)  # a node that has said its last hears no order any more
    assert member.order == STOP_WITH_STACKS
    verdict = in_thread(member.finish)
    stopped()
    assert member.step == Step(4, 2.5, 100.5, 2.5)
    assert (host.views()[1].exit_code, host.views()[1].interrupted) == (3, True)
    assert (runs[0] / "logs/node1/rank1.log").read_bytes() == theirs.read_bytes()
    host.publish({"verdict": "REHEARSAL"})
    assert verdict()["result"] == {"verdict": "REHEARSAL"}


def test_a_node_that_never_arrives_is_named_and_the_others_learn_why(port, runs, display):
    host = Host(port, [1, 2], runs[0])
    member = in_thread(lambda: Member("127.0.0.1", port, 1, REQUEST, seconds=20))
    with pytest.raises(LaunchError, match=r"Node 2 did not arrive within 3 s; arrived: 1 \("):
        host.gather(REQUEST, lambda hellos: JOB, waiting=display.waiting, seconds=3)
    assert "Node 2 did not arrive" in str(member()["error"])
    missing, seconds = display.missing[-1]  # said long before the limit, and named
    assert missing == [2]
    assert seconds > 2


def test_a_node_that_goes_away_before_all_have_arrived_is_named(port, runs):
    host = Host(port, [1, 2], runs[0])
    in_thread(lambda: Member("127.0.0.1", port, 1, None, seconds=20))  # and no more of it
    in_thread(lambda: Member("127.0.0.1", port, 2, None, seconds=20).ready())
    with pytest.raises(LaunchError, match=r"Node 1 did not get ready within 3 s; ready: 2 \([^)]"):
        host.gather(REQUEST, lambda hellos: JOB, seconds=3)


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ({"workload": "other", "seed": 1, "suite": "ab" * 32}, "workload is other there and tiny-perf on node 0"),
        ({"workload": "tiny-perf", "seed": 2, "suite": "ab" * 32}, "seed is 2 there and 1 on node 0"),
        ({"workload": "tiny-perf", "suite": "ab" * 32}, "seed is not set there and 1 on node 0"),
        ({"workload": "tiny-perf", "seed": 1, "suite": "cd" * 32}, f"suite is {'cd' * 20}... there and {'ab' * 20}..."),
    ],
)
def test_a_node_that_was_asked_for_something_else_is_named_with_that_alone(theirs, said, port, runs):
    host = Host(port, [1], runs[0])
    member = in_thread(lambda: Member("127.0.0.1", port, 1, {"request": theirs}, seconds=20))
    ours = {"request": {"workload": "tiny-perf", "seed": 1, "suite": "ab" * 32}}
    with pytest.raises(LaunchError, match=re.escape(said)) as refused:
        host.gather(ours, lambda hellos: JOB, seconds=20)
    assert str(refused.value).count(" there and ") == 1
    assert "called the run off" in str(member()["error"])


def test_a_node_that_cannot_take_part_says_why(port, runs):
    host = Host(port, [1], runs[0])
    member = in_thread(lambda: Member("127.0.0.1", port, 1, None, seconds=20).ready("its disk is read-only"))
    with pytest.raises(LaunchError, match=r"Node 1 .* cannot take part: its disk is read-only"):
        host.gather(REQUEST, lambda hellos: JOB, seconds=20)
    assert "called the run off" in str(member()["error"])


def test_nor_does_any_other_node_keep_a_directory_of_it(port, runs):
    host = Host(port, [1, 2], runs[0])
    in_thread(lambda: Member("127.0.0.1", port, 1, None, seconds=20).ready("its disk is read-only"))
    own = runs[1] / "run"
    member = in_thread(lambda: follow(Member("127.0.0.1", port, 2, None, seconds=20), own, runs[1]))
    job = JOB | {"token": "node 0's", "config": "", "settings": {"device": "cpu", "internevo": None}}
    with pytest.raises(LaunchError, match="its disk is read-only"):
        host.gather(REQUEST, lambda hellos: job, seconds=20)
    assert "called the run off" in str(member()["error"])
    assert not own.exists()


def test_a_node_whose_disk_is_full_says_so_and_is_not_waited_for(port, runs, small_disk):
    disk = small_disk(64 << 10)
    with contextlib.suppress(OSError):
        (disk / "other").write_bytes(b"\0" * (128 << 10))
    host = Host(port, [1], runs[0])
    member = in_thread(lambda: follow(Member("127.0.0.1", port, 1, None, seconds=20), disk / "run", disk))
    job = JOB | {"token": "node 0's", "config": "micro_bsz = 1", "settings": {"device": "cpu", "internevo": None}}
    with pytest.raises(LaunchError, match=r"Node 1 .* cannot be written: No space left on device\. Free space"):
        host.gather(REQUEST, lambda hellos: job, seconds=20)
    assert "No space left on device" in str(member()["error"])


def test_a_node_that_lacks_the_device_plugin_says_so(port, runs):
    host = Host(port, [1], runs[0])
    member = in_thread(lambda: follow(Member("127.0.0.1", port, 1, None, seconds=20), runs[1] / "run", runs[1]))
    job = JOB | {"token": "node 0's", "config": "", "settings": {"device": "abacus", "internevo": None}}
    with pytest.raises(LaunchError, match=r"Node 1 .* cannot take part: Unknown device 'abacus'"):
        host.gather(REQUEST, lambda hellos: job, seconds=20)
    assert "Unknown device 'abacus'" in str(member()["error"])
    assert not (runs[1] / "run").exists()


def test_two_processes_with_the_same_rank_are_refused(port, runs):
    host = Host(port, [1], runs[0])
    first = in_thread(lambda: Member("127.0.0.1", port, 1, REQUEST, seconds=20).ready())
    host_done = in_thread(lambda: host.gather(REQUEST, lambda hellos: JOB, seconds=20))
    first()
    host_done()
    with pytest.raises(LaunchError, match="Another process has arrived as node 1"):
        Member("127.0.0.1", port, 1, REQUEST, seconds=20)


def test_a_node_that_comes_back_early_waits_for_the_run_that_is_to_come(port, runs):
    before = Host(port, [1], runs[0])
    before._store.set("verdict", "{}")
    waited = threading.Event()
    member = in_thread(
        lambda: Member("127.0.0.1", port, 1, REQUEST, seconds=20, waiting=lambda missing, seconds: waited.set())
    )
    assert not waited.wait(2)  # it reaches the store, and does not take it for the next run's
    assert not before._store.check(["hello/1"])
    del before
    host = Host(port, [1], runs[0])
    gathered = in_thread(lambda: host.gather(REQUEST, lambda hellos: JOB, seconds=20))
    member()["result"].ready()
    assert gathered() == {"result": None}


def test_a_starter_that_failed_ends_the_waiting_at_once(port, runs):
    host = Host(port, [1], runs[0])
    with pytest.raises(LaunchError, match=r"Node 1 did not arrive: srun: error; arrived: none\."):
        host.gather(REQUEST, lambda hellos: JOB, lambda: "srun: error", seconds=600)


def test_a_node_0_that_is_not_there_is_a_sentence(port, display):
    with pytest.raises(LaunchError, match=f"port {port} on node 0 .* within 1 s: Connection refused"):
        Member("127.0.0.1", port, 1, REQUEST, seconds=1, waiting=display.waiting)
    missing, seconds = display.missing[-1]  # said meanwhile
    assert list(missing) == [0]
    assert 0 < seconds <= 1


WAITS = """
import sys
from conformance.launch.team import Member
Member("127.0.0.1", int(sys.argv[1]), 1, None, waiting=lambda missing, seconds: print("waiting", flush=True))
"""


@pytest.mark.parametrize("node_0", [False, True], ids=["nobody listens", "others are awaited"])
def test_a_node_that_waits_heeds_ctrl_c(port, runs, node_0):
    host = Host(port, [1, 2], runs[0]) if node_0 else None
    waiting = subprocess.Popen(
        [sys.executable, "-c", WAITS, str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert waiting.stdout.readline() == "waiting\n"
        waiting.send_signal(signal.SIGINT)
        said = waiting.communicate(timeout=60)[1]
    finally:
        waiting.kill()
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "TCPStore.cpp" not in said
    del host


@pytest.mark.parametrize(
    ("order", "told_node_0"), [(RUN, [False, True, "ended", True]), (STOP, [False, "ended", False])]
)
def test_a_signal_ends_a_node_once_and_is_never_lost(order, told_node_0, monkeypatch):
    told = []

    def then_a_signal(what):
        told.append(what)
        os.kill(os.getpid(), signal.SIGTERM)

    view = NodeView("hostB", 0.0, None, 7)
    node = SimpleNamespace(exit_code=None, view=lambda: view, end=lambda: then_a_signal("ended"))
    tell = then_a_signal if order == RUN else told.append
    member = SimpleNamespace(order=order, step=None, tell=lambda view: tell(view.interrupted))
    monkeypatch.setattr(follow_module, "Node", lambda launch: node)
    with signals_raise(Interrupted):
        assert follow_module._train(member, None, None)
    assert told == told_node_0


class Store(dict):
    """torch's store, where a signal comes in while a key is being deleted."""

    def check(self, keys):
        return keys[0] in self

    def delete_key(self, key):
        del self[key]
        raise KeyboardInterrupt


def test_a_signal_between_two_messages_loses_no_later_one(runs, monkeypatch):
    store = Store()
    monkeypatch.setattr(team, "open_store", lambda *asked: store)
    host = Host(0, [1], runs[0])
    for number in range(2):
        store[f"up/1/{number}"] = b'{"name": "logs/node1/rank1.log"}\n' + b"%d" % number
        with pytest.raises(KeyboardInterrupt):
            host.views()
    assert (runs[0] / "logs/node1/rank1.log").read_bytes() == b"01"


def test_what_cannot_be_written_now_is_written_at_the_next_look_and_once(port, runs):
    host, member = joined(port, runs)
    log, (other, *_) = "logs/node1/rank1.log", runs
    (runs[1] / log).write_bytes(b"first\n")
    (other / log).mkdir()  # what stands there instead of a log refuses to be written
    member.begin(runs[1])
    member.tell(NodeView("hostB", 0.0, None, 7))
    refused = 0
    while refused < 3:
        try:
            host.views()
        except IsADirectoryError:
            refused += 1
    (other / log).rmdir()
    (other / log).write_bytes(b"fir")  # as far as a write came that was refused in its middle
    while host.views()[1].free_bytes != 7:
        pass
    assert (other / log).read_bytes() == b"first\n"


def test_what_cannot_be_read_now_is_sent_before_the_end_and_how_long_it_lasts_is_told(port, runs):
    host, member = joined(port, runs)
    log = runs[1] / "logs/node1/rank1.log"
    log.symlink_to("/proc/self/mem")  # reading it is an input/output error
    member.begin(runs[1])
    member.tell(NodeView("hostB", 0.0, 0, 7))
    verdict = in_thread(member.finish)
    while host.views()[1].disk_seconds < 0.5:
        assert not host._gone
    assert host.views()[1].disk_error == "Input/output error"
    (runs[1] / "whole").write_bytes(b"its last words\n")
    (runs[1] / "whole").replace(log)
    host.stop(with_stacks=False)
    assert host.views()[1].disk_error == ""
    assert (runs[0] / "logs/node1/rank1.log").read_bytes() == b"its last words\n"
    host.publish({"verdict": "REHEARSAL"})
    assert verdict()["result"] == {"verdict": "REHEARSAL"}


def test_what_others_leave_among_a_nodes_files_stays_there(port, runs):
    host, member = joined(port, runs)
    (runs[1] / "environment/rank1.json").write_text("{}")
    (runs[1] / "environment/.rank1.json.swp").write_bytes(b"b0VIM")  # an editor's
    (runs[1] / "environment/notes").mkdir()
    (runs[1] / "logs/node1/rank1 (copy).log").touch()
    member.begin(runs[1])
    member.tell(NodeView("hostB", 0.0, None, 7))
    while host.views()[1].free_bytes != 7:
        pass
    assert [path.name for path in (runs[0] / "environment").iterdir()] == ["rank1.json"]
    assert list((runs[0] / "logs/node1").iterdir()) == []
    assert host.views()[1].disk_error == ""


def test_what_ended_the_talk_with_node_0_is_told(port, runs):
    _, member = joined(port, runs)
    member.begin(None)
    member.tell(NodeView(b"not for json", 0.0, None, 7))
    with pytest.raises(LaunchError, match=r"verdict \(TypeError: .* not JSON serializable\); this node"):
        member.finish()


@pytest.mark.parametrize("name", ["../../etc/passwd", "logs/node2/rank1.log", "report.dsse.json", "logs/node1/x.log"])
def test_a_node_may_send_its_own_logs_only(port, runs, name):
    host = Host(port, [1], runs[0])
    with pytest.raises(LaunchError, match="not a log or record of its own"):
        host._take(1, json.dumps({"name": name}).encode() + b"\nx")
