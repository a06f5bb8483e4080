"""The live line: what it shows of a run, on a terminal and in a log file."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from conformance.launch import progress
from conformance.launch.detect import Fault, NodeView, Step
from conformance.launch.progress import LiveProgress, describe_nodes
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload
from conformance.spec.floors import find_floor, load_floors

UP = NodeView("hostA", 0.5, None, 1)


@pytest.fixture
def plan():
    return make_plan(load_workload("tiny-perf"), Topology(1, 2))


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def any_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def shown(plan, terminal, act):
    stream = Terminal() if terminal else io.StringIO()
    with LiveProgress(Console(file=stream, width=120, highlight=False), "tiny-perf") as live:
        act(live.watch(plan))
    return stream.getvalue()


def test_a_log_file_gets_a_line_now_and_then_and_the_last(plan):
    def act(display):
        for step in range(plan.total_steps):
            display.step(Step(step, 2.5, 1234.5, 2.5))

    lines = shown(plan, False, act).splitlines()
    assert "2 ranks starting" in lines[0]
    assert len(lines) == 2
    assert f"step {plan.total_steps - 1}  loss 2.5000  TGS 1,234" in lines[1]
    assert "left 0 s" in lines[1]


@pytest.mark.parametrize(
    ("terminal", "name", "value"),
    [(True, "TERM", "dumb"), (True, "TERM", "unknown"), (False, "FORCE_COLOR", "1"), (False, "TTY_COMPATIBLE", "1")],
)
def test_what_cannot_draw_in_place_gets_lines(plan, monkeypatch, terminal, name, value):
    monkeypatch.setenv(name, value)
    text = shown(plan, terminal, lambda display: display.step(Step(plan.total_steps - 1, 2.5, 1234.5, 2.5)))
    started, last = text.splitlines()
    assert "2 ranks starting" in started
    assert f"step {plan.total_steps - 1}  loss 2.5000" in last
    assert "\x1b" not in text


def test_a_terminal_gets_one_line_that_vanishes(plan):
    text = shown(plan, True, lambda display: display.step(Step(3, 2.5, 1234.5, 2.5)))
    assert "step 3  loss 2.5000" in text
    assert text.endswith("\x1b[2K") or "\x1b[2K" in text


def test_the_state_of_the_nodes_is_told_when_it_changes(plan):
    def act(display):
        display.nodes({0: UP, 1: UP})
        display.nodes({0: UP, 1: UP})
        display.nodes({0: UP, 1: NodeView("hostB", 9.0, None, 1)})

    lines = shown(plan, False, act).splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("2 nodes up")
    assert lines[2].endswith("1 node up, node 1 (hostB) silent")


def test_one_node_needs_no_word(plan):
    assert "up" not in shown(plan, False, lambda display: display.nodes({0: UP}))


def test_many_nodes_in_trouble_are_counted():
    text = describe_nodes({node: NodeView(f"h{node}", 0.0, 1, 1) for node in range(9)} | {9: UP})
    assert text == (
        "1 node up, node 0 (h0) ended, node 1 (h1) ended, node 2 (h2) ended, node 3 (h3) ended, 5 more in trouble"
    )


def test_nodes_that_have_not_arrived_are_named_while_they_are_awaited(plan):
    def act(display):
        for seconds in range(12):
            display.waiting([2, 3], float(seconds))

    started, *lines = shown(plan, False, act).splitlines()
    assert "2 ranks starting" in started
    assert lines == []  # a log file was told something less than 10 s ago
    assert "waiting for nodes 2, 3 (11 s)" in shown(plan, True, act)


def test_what_follows_the_waiting_is_the_start_of_the_ranks(plan):
    text = shown(plan, True, lambda display: [display.waiting([1], 9.0), display.waiting([], 0.0)])
    assert text.rfind("waiting for node 1") < text.rindex("2 ranks starting")


def test_a_run_that_is_over_has_no_node_in_trouble(plan):
    def act(display):
        display.nodes({0: UP, 1: UP})
        display.nodes({0: replace(UP, exit_code=0), 1: UP})
        display.nodes({0: replace(UP, exit_code=0), 1: replace(UP, exit_code=0)})

    assert "ended" not in shown(plan, False, act)


def test_a_log_file_is_told_of_awaited_nodes_now_and_then(plan, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_SECONDS", 0.0)
    text = shown(plan, False, lambda display: [display.waiting(range(1, 9), 0.5), display.waiting(range(1, 9), 40.0)])
    assert text.splitlines()[1:] == ["tiny-perf: waiting for nodes 1, 2, 3, 4 and 4 more (40 s)"]


def test_a_slow_rank_is_told_in_a_line_that_stays(plan):
    notice = Fault("slow-rank", "Rank 3 keeps the others waiting.", "Compare the hosts.", 1, "hostB", 3, 7, 1.0)
    for terminal in (False, True):
        text = shown(plan, terminal, lambda display: display.notice(notice))
        assert "tiny-perf: Rank 3 keeps the others waiting. Compare the hosts." in text


@pytest.mark.parametrize(
    "error",
    [
        "FileNotFoundError: none of [/data/train/en] exists",
        "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0",
        "KeyError: '[bold]'",
        "KeyError: :bug:",
    ],
)
@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_rank_says_in_brackets_is_shown_as_it_stands(plan, error, terminal):
    fault = Fault("exception", f"Rank 0 raised {error}.", "See its log.", 0, "hostA", 0, 7, 1.0)
    assert f"Rank 0 raised {error}." in shown(plan, terminal, lambda display: display.notice(fault))


@pytest.mark.parametrize("terminal", [False, True])
def test_a_name_in_brackets_is_shown_as_it_stands(plan, terminal):
    views = {0: UP, 1: NodeView("[/b]", 9.0, None, 1)}
    assert "node 1 ([/b]) silent" in shown(plan, terminal, lambda display: display.nodes(views))


def test_what_a_rank_says_commands_no_terminal(plan):
    fault = Fault("exception", "Rank 0 raised E: \x1b[2J\u202e.", "See its log.", 0, "hostA", 0, 7, 1.0)
    assert "E: \ufffd[2J\ufffd." in shown(plan, False, lambda display: display.notice(fault))


def test_a_line_of_a_log_file_stays_one_line(plan):
    def act(display):
        display.step(Step(9, 2.5, 1234.5, 2.5))
        display.nodes({0: UP} | {node: NodeView("a" * 40, 9.0, None, 1) for node in (1, 2, 3)})
        display.notice(Fault("slow-rank", "Rank 3 keeps the others waiting. " * 9, "Compare.", 1, "hostB", 3, 7, 1.0))

    assert len(shown(plan, False, act).splitlines()) == 3


def test_the_floor_stands_beside_the_speed():
    plan = make_plan(load_workload("llama2-7b-perf"), Topology(4, 8))
    floor = find_floor(load_floors(), "llama2-7b-perf", "tgs", None)
    text = shown(plan, True, lambda display: display.step(Step(3, 2.5, 1234.5, 2.5)))
    assert ("(floor " in text) is (floor is not None)


def test_the_target_stands_beside_the_loss():
    plan = make_plan(load_workload("llama2-7b-accuracy"), Topology(8, 8))
    assert "loss 2.5000 (target 1.716)" in shown(plan, True, lambda display: display.step(Step(3, 2.5, 1234.5, 2.5)))
