"""The processes that measure: ended at their limit, with what they started, and nothing they told is lost."""

import os
import time

import psutil
import pytest

from conformance.preflight import driver
from conformance.preflight.driver import Ranks, run_task
from conformance.preflight.worker import Task


@pytest.fixture
def task(tmp_path):
    return Task("none", "cpu", str(tmp_path / "task"), 0, True, {}, 0, 1, 1, 0.0)


def program(monkeypatch, tmp_path, text):
    """Let the processes run this program in place of the worker."""
    script = tmp_path / "program.sh"
    script.write_text(text)
    real = driver.subprocess.Popen

    def popen(command, *args, **kwargs):
        # What else is started meanwhile (platform asks `uname`) is let be.
        stands_in = "conformance.preflight.worker" in command
        return real(["bash", str(script)] if stands_in else command, *args, **kwargs)

    monkeypatch.setattr(driver.subprocess, "Popen", popen)


def lives(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_hanging_process_is_killed_with_its_children(task, monkeypatch, tmp_path):
    program(
        monkeypatch,
        tmp_path,
        'echo \'{"phase": "first", "at": 1}\' > task.rank$RANK.jsonl; trap "" TERM; sleep 300 & echo $! > child; wait',
    )
    (one,) = run_task(task, Ranks(1), 10.0)
    assert (one.outcome, one.phase) == ("timeout", "first")
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 30  # the kernel ends a killed orphan in its own time
    while lives(child) and time.monotonic() < end:
        time.sleep(0.05)
    assert not lives(child)


def test_what_is_over_the_limit_of_its_phase_begins_anew(task, monkeypatch, tmp_path):
    program(
        monkeypatch,
        tmp_path,
        """[ -f again ] && { echo '{"phase": "done"}' >> task.rank0.jsonl; exit 0; }; touch again
        echo '{"phase": "kernel", "at": 1, "seconds": 5, "otherwise": {"kind": "kernel-error"}}' > task.rank0.jsonl
        sleep 300""",
    )
    (one,) = run_task(task, Ranks(1), 60.0)
    assert (one.outcome, one.records) == ("done", ({"kind": "kernel-error"},))


def test_the_time_that_several_processes_need_for_what_hung_is_not_added_up(task, monkeypatch, tmp_path):
    program(
        monkeypatch,
        tmp_path,
        """[ -f again$RANK ] && sleep 300; touch again$RANK; sleep $RANK
        echo '{"phase": "k", "at": 1, "seconds": 4, "otherwise": {"kind": "kernel-error"}}' > task.rank$RANK.jsonl
        sleep 300""",
    )
    both = run_task(task, Ranks(2), 4.0)
    assert [one.outcome for one in both] == ["timeout", "timeout"]
    assert {one.records[0]["kind"] for one in both} == {"kernel-error"}
    assert all(one.seconds < 11 for one in both)


def test_a_figure_that_took_its_time_is_no_phase_over_its_limit(task, monkeypatch, tmp_path):
    program(
        monkeypatch,
        tmp_path,
        """echo '{"kind": "bandwidth", "seconds": 0.1}' > task.rank0.jsonl; sleep 3
        echo '{"phase": "done"}' >> task.rank0.jsonl""",
    )
    (one,) = run_task(task, Ranks(1), 60.0)
    assert (one.outcome, one.records) == ("done", ({"kind": "bandwidth", "seconds": 0.1},))


def test_a_process_that_fails_ends_the_others_soon(task, monkeypatch, tmp_path):
    program(monkeypatch, tmp_path, "[ $RANK = 1 ] && { echo broken; exit 3; }; sleep 300")
    first, second = run_task(task, Ranks(2), 600.0)
    assert first.seconds < 600
    assert first.outcome == "stopped"
    assert second.outcome == "failed"
    assert second.output == "broken"


def test_an_exit_code_of_0_without_the_last_phase_is_no_success(task, monkeypatch, tmp_path):
    program(
        monkeypatch,
        tmp_path,
        'echo \'{"kind": "clock", "offset_s": 0}\' > task.rank0.jsonl; printf \'{"ki\' >> task.rank0.jsonl',
    )
    (one,) = run_task(task, Ranks(1), 20.0)
    assert one.outcome == "failed"
    assert one.records == ({"kind": "clock", "offset_s": 0},)


def test_ranks_of_a_second_node():
    ranks = Ranks(4, nodes=2, node_rank=1, address="node-a", port=29500)
    variables = ranks.environment(3)
    assert ranks.world == 8
    assert variables["RANK"] == "7"
    assert variables["MASTER_ADDR"] == "node-a"
    assert "RANK" not in os.environ
