"""Faults are named from log bytes, node views and a clock alone; each has the run without it beside it."""

import math
import signal
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conformance.launch.advice import memory_advice
from conformance.launch.detect import NAN_STEPS, SETTLE_SECONDS, Detector, Limits, NodeView, Step, limits_for
from conformance.plan import Topology, make_plan
from conformance.spec import load_workload

LIMITS = Limits(start_seconds=100, stall_factor=10, stall_floor_seconds=20, lost_node_seconds=30, min_free_bytes=1000)
FINE = NodeView("hostA", 0.0, None, 10_000)
RANK0, RANK1, AGENT = "logs/node0/rank0.log", "logs/node0/rank1.log", "logs/node0/agent.log"


def line(step, loss="2.5"):
    return (
        f"2026-01-01 00:00:00,000\tINFO t.py:1 in f -- tflops=1.0 step={step} loss={loss} "
        "tgs (tokens/gpu/second)=100.5 tgs/last_tgs_1=100.5 \n"
    ).encode()


def raised(error, rank=0):
    return (
        f"2026-01-01 00:00:01,000\tERROR train.py:9 in <module> -- Raise exception from hostA with rank id: {rank}\n"
        f'Traceback (most recent call last):\n  File "t.py", line 1, in f\n    g()\n{error}\n'
    ).encode()


def failed(exit_code, local_rank, pid=77):
    return (
        f"E1123 20:31:38.8 12 torch/distributed/elastic/multiprocessing/api.py:984] failed (exitcode: {exit_code}) "
        f"local_rank: {local_rank} (pid: {pid}) of binary: python\n"
    ).encode()


@pytest.fixture
def detector():
    """A run of two ranks on a node, two steps in, one a second."""
    made = Detector(2, 100, LIMITS, started=0.0, memory_advice="--set micro_bsz=1")
    for step in range(3):
        made.feed(RANK0, line(step), now=10.0 + step)
    return made


def after_settling(detector, nodes=None, now=12.0):
    nodes = nodes or {0: FINE}
    assert detector.look(now, nodes) is None  # another rank may have been first
    return detector.look(now + SETTLE_SECONDS, nodes)


def test_all_is_well(detector):
    assert detector.look(13.0, {0: FINE}) is None


def test_a_rank_killed_by_a_signal(detector):
    detector.feed(AGENT, failed(-9, 1), now=12.0)
    fault = after_settling(detector)
    assert (fault.kind, fault.node, fault.host, fault.rank, fault.last_step) == ("rank-died", 0, "hostA", 1, 2)
    assert "SIGKILL" in fault.message
    assert "last good step: 2" in fault.message


def test_the_rank_that_was_killed_is_named_before_those_that_lost_it(detector):
    detector.feed(RANK0, raised("RuntimeError: Connection closed by peer [127.0.0.1]:4"), now=12.0)
    detector.feed(AGENT, failed(-9, 1), now=14.0)
    detector.feed(AGENT, failed(-15, 0), now=14.0)
    fault = after_settling(detector)
    assert (fault.kind, fault.rank) == ("rank-died", 1)
    assert "1 other rank after it" in fault.message


def test_an_exception_is_named_before_a_peer_that_aborted_for_want_of_it(detector):
    detector.feed(AGENT, failed(-6, 0), now=12.0)
    detector.feed(RANK1, raised("StopIteration", rank=1), now=12.1)
    fault = after_settling(detector)
    assert (fault.kind, fault.rank) == ("exception", 1)
    assert "1 other rank after it" in fault.message


def test_a_rank_that_aborted_is_named_before_those_that_lost_it(detector):
    detector.feed(RANK0, raised("RuntimeError: Connection closed by peer [127.0.0.1]:4"), now=12.0)
    detector.feed(AGENT, failed(-6, 1), now=12.1)
    fault = after_settling(detector)
    assert (fault.kind, fault.rank) == ("rank-died", 1)
    assert "SIGABRT" in fault.message


def test_an_exception_is_named_before_the_connection_errors_that_follow(detector):
    detector.feed(RANK0, raised("RuntimeError: Connection reset by peer"), now=12.0)
    detector.feed(RANK1, raised("StopIteration", rank=1), now=12.1)
    fault = after_settling(detector)
    assert (fault.kind, fault.rank) == ("exception", 1)
    assert "StopIteration" in fault.message
    assert "exit code 0" in fault.message


def test_out_of_memory_comes_with_ways_to_shrink(detector):
    detector.feed(RANK0, raised("RuntimeError: Connection closed by peer"), now=12.0)
    detector.feed(
        RANK1, raised("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 27.00 GiB.", 1), now=12.5
    )
    fault = after_settling(detector)
    assert (fault.kind, fault.rank, fault.next_step) == ("out-of-memory", 1, "--set micro_bsz=1")


@pytest.mark.parametrize(
    "error",
    ["MemoryError", "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."],
)
def test_a_host_without_memory(detector, error):
    detector.feed(RANK0, raised(error), now=12.0)
    assert after_settling(detector).kind == "out-of-memory"


def test_out_of_memory_that_was_not_caught(detector):
    detector.feed(
        RANK1, b"Traceback (most recent call last):\n  x\ntorch.OutOfMemoryError: NPU out of memory.\n", now=12
    )
    detector.feed(AGENT, failed(1, 1), now=12.5)
    assert after_settling(detector, now=12.5).kind == "out-of-memory"


@pytest.mark.parametrize("error", ["[Errno 28] No space left on device", "[Errno 122] Disk quota exceeded"])
def test_a_disk_that_a_rank_found_full(detector, error):
    detector.feed(RANK0, raised(f"OSError: {error}"), now=12.0)
    fault = after_settling(detector)
    assert (fault.kind, fault.rank) == ("full-disk", 0)


def test_a_disk_that_is_about_to_be_full(detector):
    assert detector.look(13.0, {0: NodeView("hostA", 0.0, None, 1000)}) is None
    fault = detector.look(13.0, {0: NodeView("hostA", 0.0, None, 999)})
    assert (fault.kind, fault.host) == ("full-disk", "hostA")


def test_a_file_system_that_has_failed_as_long_as_a_node_may_be_silent(detector):
    failing = NodeView("hostB", 0.0, None, 10_000, disk_seconds=29.9, disk_error="Stale file handle")
    assert detector.look(13.0, {0: FINE, 1: failing}) is None
    fault = detector.look(13.2, {0: FINE, 1: replace(failing, disk_seconds=30.1)})
    assert (fault.kind, fault.node, fault.host) == ("disk-error", 1, "hostB")
    assert "has failed for 30 s: Stale file handle; last good step: 2." in fault.message


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_stays_no_number(detector, loss):
    for step in range(3, 3 + NAN_STEPS - 1):
        detector.feed(RANK0, line(step, loss), now=13.0)
    assert detector.look(13.0, {0: FINE}) is None
    detector.feed(RANK0, line(9, loss), now=14.0)
    fault = detector.look(14.0, {0: FINE})
    assert (fault.kind, fault.node, fault.host, fault.rank) == ("nan-loss", 0, "hostA", 0)


SKIPPED = b"2026-01-01 00:00:00,000\tWARNING hybrid_zero_optim.py:768 in _step -- %s occurs, please check it.\n"


def test_gradients_that_stay_no_numbers_leave_no_line_of_metrics(detector):
    for step in range(NAN_STEPS - 1):
        detector.feed(RANK0, SKIPPED % b"Nan grad norm", now=13.0 + step)
    assert detector.look(15.0, {0: FINE}) is None
    detector.feed(RANK0, line(3) + SKIPPED % b"Nan grad norm", now=15.0)  # one good step begins the count again
    assert detector.look(15.0, {0: FINE}) is None
    detector.feed(RANK0, (NAN_STEPS - 1) * (SKIPPED % b"Nan grad norm"), now=16.0)
    fault = detector.look(16.0, {0: FINE})
    assert (fault.kind, fault.last_step) == ("nan-loss", 3)
    assert "3 steps in a row" in fault.message


def test_a_loss_scale_that_is_sought_is_neither_a_nan_nor_a_stall(detector):
    for second in range(13, 60):
        detector.feed(RANK0, SKIPPED % b"Overflow", now=float(second))
        assert detector.look(float(second), {0: FINE}) is None
    assert detector.look(59.0 + LIMITS.stall_floor_seconds, {0: FINE}).kind == "stall"


def test_one_overflow_is_no_fault(detector):
    for step in range(3, 30):
        detector.feed(RANK0, line(step, "nan" if step % NAN_STEPS == 0 else "2.5"), now=13.0 + step / 10)
    assert detector.look(17.0, {0: FINE}) is None


@pytest.mark.parametrize(("step_seconds", "limit"), [(1.0, 20.0), (3.0, 30.0)])
def test_a_stall_is_k_times_the_median_step_or_the_floor(step_seconds, limit):
    detector = Detector(2, 100, LIMITS, started=0.0)
    for step in range(5):
        detector.feed(RANK0, line(step), now=step * step_seconds)
    last = 4 * step_seconds
    assert detector.look(last + limit - 0.1, {0: FINE}) is None
    fault = detector.look(last + limit, {0: FINE})
    assert (fault.kind, fault.last_step) == ("stall", 4)
    assert f"limit {limit:.0f} s" in fault.message


@pytest.mark.parametrize("nodes", [4, 16])
def test_the_official_70b_run_at_a_fifth_of_its_floor_is_no_stall(nodes):
    plan = make_plan(load_workload("llama2-70b-perf"), Topology(nodes, 8))
    step_seconds = plan.tokens_per_step / (plan.cards * 72.0)
    detector = Detector(8, plan.total_steps, limits_for(plan), started=0.0)
    views = {node: NodeView(f"h{node}", 0.0, None, 1 << 40) for node in range(nodes)}
    now = 60.0
    for step in range(4):
        now += step_seconds - 0.1
        assert detector.look(now, views) is None
        now += 0.1
        detector.feed(RANK0, line(step), now)


def test_a_second_step_that_never_comes_is_a_stall():
    detector = Detector(2, 100, LIMITS, started=0.0)
    detector.feed(RANK0, line(0), now=50.0)
    assert detector.look(149.9, {0: FINE}) is None  # no step time is known; 10 times nothing is no limit
    fault = detector.look(150.0, {0: FINE})
    assert (fault.kind, fault.last_step) == ("stall", 0)
    assert "before a step time is known" in fault.message


def test_a_loss_scale_that_is_sought_at_the_start_is_no_stall():
    detector = Detector(2, 100, LIMITS, started=0.0)
    detector.feed(RANK0, SKIPPED % b"Overflow", now=90.0)
    assert detector.look(150.0, {0: FINE}) is None
    assert detector.look(190.0, {0: FINE}).kind == "stall"


def test_the_start_has_a_limit_of_its_own():
    detector = Detector(2, 100, LIMITS, started=0.0)
    assert detector.look(99.9, {0: FINE}) is None
    fault = detector.look(100.0, {0: FINE})
    assert (fault.kind, fault.last_step) == ("stall", None)
    assert "before the first step" in fault.message


def test_a_stopped_rank_is_named_when_the_run_stands_still(detector):
    nodes = {0: FINE, 1: NodeView("hostB", 0.0, None, 10_000, stopped=(3,))}
    assert detector.look(13.0, nodes) is None
    fault = detector.look(32.0, nodes)
    assert (fault.kind, fault.node, fault.host, fault.rank) == ("stall", 1, "hostB", 3)


def test_processes_that_do_not_end_are_a_stall():
    detector = Detector(1, 3, LIMITS, started=0.0)
    for step in range(3):
        detector.feed(RANK0, line(step), now=float(step))
    fault = detector.look(22.0, {0: FINE})
    assert fault.kind == "stall"
    assert "did not end" in fault.message


def test_a_lost_node_is_named_before_the_stall_that_follows(detector):
    nodes = {0: FINE, 1: NodeView("hostB", 29.9, None, 10_000)}
    assert detector.look(13.0, nodes) is None
    fault = detector.look(45.0, {0: FINE, 1: NodeView("hostB", 32.0, None, 10_000)})
    assert (fault.kind, fault.node, fault.host) == ("lost-node", 1, "hostB")
    assert "32 s" in fault.message


def test_a_node_that_has_ended_well_is_not_lost_while_another_still_ends(detector):
    nodes = {0: FINE, 1: NodeView("hostB", 31.0, 0, 10_000)}
    assert detector.look(13.0, nodes) is None
    assert detector.look(45.0, nodes).kind == "stall"  # what has not ended is still waited for no longer than that


def test_a_torchrun_that_fails_by_itself(detector):
    detector.feed(AGENT, b"Traceback (most recent call last):\n  x\nRuntimeError: address already in use\n", now=12.0)
    fault = detector.look(12.0, {0: NodeView("hostA", 0.0, 1, 10_000)})
    assert fault.kind == "node-ended"
    assert "address already in use" in fault.message


LOST_ITS_PEER = raised("RuntimeError: Connection closed by peer [10.0.0.2]:4")
UP = NodeView("hostB", 0.5, None, 10_000)


@pytest.mark.parametrize(
    ("view", "kind", "said"),
    [
        (replace(UP, exit_code=1), "node-ended", "torchrun on hostB (node 1) ended with exit code 1"),
        (replace(UP, exit_code=-9), "node-ended", "torchrun on hostB (node 1) was killed by SIGKILL"),
        (replace(UP, silent_seconds=6.0), "lost-node", "hostB (node 1) has not been heard of for 6 s"),
        (replace(UP, exit_code=-15, interrupted=True), "node-ended", "hostB (node 1) was told to end by a signal"),
    ],
    ids=["ended", "killed", "silent", "interrupted"],
)
def test_a_node_that_went_is_named_and_not_the_rank_that_lost_it(detector, view, kind, said):
    detector.feed(RANK0, LOST_ITS_PEER, now=12.0)
    detector.look(12.0, {0: FINE, 1: UP})
    fault = detector.look(12.0 + SETTLE_SECONDS, {0: FINE, 1: view})
    assert (fault.kind, fault.node, fault.host, fault.rank) == (kind, 1, "hostB", None)
    assert fault.message.startswith(said)


def test_a_rank_with_a_cause_of_its_own_is_named_before_a_node_that_ended(detector):
    detector.feed(RANK0, raised("RuntimeError: the loader's file is gone"), now=12.0)
    fault = after_settling(detector, {0: FINE, 1: replace(UP, exit_code=1)})
    assert (fault.kind, fault.rank) == ("exception", 0)


def test_a_connection_that_broke_between_nodes_that_live_is_the_ranks(detector):
    detector.feed(RANK0, LOST_ITS_PEER, now=12.0)
    fault = after_settling(detector, {0: FINE, 1: UP})
    assert (fault.kind, fault.rank) == ("exception", 0)


def test_a_rank_that_was_ended_by_sigterm_is_named_before_those_that_lost_it(detector):
    detector.feed(RANK0, LOST_ITS_PEER, now=12.0)
    detector.feed(AGENT, failed(-15, 1), now=12.0)
    fault = after_settling(detector)
    assert (fault.kind, fault.rank) == ("rank-died", 1)


def test_a_run_that_ended_well_has_no_fault(detector):
    assert detector.look(500.0, {0: NodeView("hostA", 0.0, 0, 10_000)}) is None


def test_a_rank_of_another_node_is_numbered_and_placed():
    detector = Detector(8, 100, LIMITS, started=0.0)
    detector.feed("logs/node2/agent.log", failed(-signal.SIGSEGV, 5), now=1.0)
    nodes = {2: NodeView("hostC", 0.0, 1, 10_000), 0: NodeView("hostA", 0.0, 1, 10_000)}
    fault = detector.look(1.0, nodes)
    assert (fault.rank, fault.node, fault.host) == (21, 2, "hostC")
    assert "SIGSEGV" in fault.message


WAITS = b'Current thread 0x0 (most recent call first):\n  File "/x/torch/distributed/c10d.py", line 7 in all_reduce\n'
HANGS = b'Current thread 0x0 (most recent call first):\n  File "/x/vendor/kernel.py", line 9 in launch\n'


@pytest.mark.parametrize("last", [2, 99])
def test_a_rank_that_hangs_in_its_own_code_is_named_by_its_stack(detector, last):
    detector.feed(RANK0, line(last), now=12.5)
    nodes = {0: FINE, 1: NodeView("hostB", 0.0, None, 10_000)}
    fault = detector.look(500.0, nodes)
    assert (fault.kind, fault.rank) == ("stall", None)
    for rank, stack in enumerate([WAITS, WAITS, HANGS, WAITS]):
        detector.feed(f"logs/node{rank // 2}/rank{rank}.log", stack, now=500.0)
    fault = detector.explained(fault, nodes)
    assert (fault.node, fault.host, fault.rank) == (1, "hostB", 2)
    assert "Rank 2 on hostB (node 1) is held up in launch (kernel.py:9) while the others wait." in fault.message
    assert fault.message.endswith("Stacks: ranks 0, 1, 3 in all_reduce (c10d.py:7); rank 2 in launch (kernel.py:9).")


def test_a_rank_that_works_while_the_others_wait_is_named_without_a_stack(detector):
    nodes = {0: NodeView("hostA", 0.0, None, 10_000, waiting=(0,), working=(1,))}
    fault = detector.explained(detector.look(500.0, nodes), nodes)
    assert (fault.node, fault.host, fault.rank) == (0, "hostA", 1)


def test_ranks_that_all_wait_in_the_same_place_are_not_blamed(detector):
    nodes = {0: NodeView("hostA", 0.0, None, 10_000, waiting=(0, 1))}
    for log in (RANK0, RANK1):
        detector.feed(log, WAITS, now=500.0)
    fault = detector.explained(detector.look(500.0, nodes), nodes)
    assert (fault.kind, fault.rank, fault.host) == ("stall", None, "")


def test_a_lost_nodes_fault_gets_the_stacks_and_keeps_its_node(detector):
    nodes = {0: FINE, 1: NodeView("hostB", 40.0, None, 10_000)}
    fault = detector.look(13.0, nodes)
    detector.feed(RANK0, WAITS, now=14.0)
    detector.feed(RANK1, HANGS, now=14.0)
    fault = detector.explained(fault, nodes)
    assert (fault.kind, fault.node, fault.rank) == ("lost-node", 1, None)
    assert "rank 1 in launch" in fault.message


@given(st.lists(st.integers(1, 200), max_size=40))
def test_steps_do_not_depend_on_how_the_bytes_were_cut(cuts):
    text = b"noise\n" + b"".join(line(step) for step in range(8)) + b"cut off step=9 loss=1"
    detector = Detector(1, 100, LIMITS, started=0.0)
    seen, at = [], 0
    for cut in [*cuts, len(text)]:
        seen += detector.feed(RANK0, text[at : at + cut], now=1.0)
        at += cut
    assert seen == [Step(step, 2.5, 100.5, 2.5) for step in range(8)]


def test_a_step_has_the_loss_over_all_ranks_where_the_line_has_it():
    detector = Detector(1, 100, LIMITS, started=0.0)
    with_mean = line(0).replace(b" \n", b" acc/en=0.1 loss_from_metric=2.25 loss/en=2.75 \n")
    undefined = line(1).replace(b" \n", b" loss_from_metric=nan \n")
    first, second, third = detector.feed(RANK0, with_mean + undefined + line(2), now=1.0)
    assert (first.loss, first.mean_loss) == (2.5, 2.25)
    assert (second.loss, math.isnan(second.mean_loss)) == (2.5, True)
    assert third.mean_loss == 2.5  # the next line's is not taken for it


@given(st.binary(max_size=300))
def test_no_bytes_break_it(data):
    detector = Detector(1, 100, LIMITS, started=0.0)
    for name in (RANK0, AGENT):
        detector.feed(name, data + b"\n", now=1.0)
    detector.look(1.0, {0: FINE})
    detector.look(50.0, {0: FINE})


def test_the_advice_keeps_the_batch_and_needs_less():
    plan = make_plan(load_workload("llama2-7b-perf"), Topology(4, 8))
    advice = memory_advice(plan)
    assert "--set tensor=2" in advice
    assert "--set checkpoint=true" in advice
    smaller = make_plan(plan.workload, plan.topology, {"tensor": 2})
    assert smaller.global_batch_size == plan.global_batch_size
    assert f"--set tensor=2 ({smaller.memory.peak:.1f} GiB)" in advice


def test_a_run_that_writes_checkpoints_may_stand_still_while_one_is_written_or_read():
    plan = make_plan(load_workload("llama2-70b-accuracy"), Topology(8, 8))
    without, small, real = (limits_for(plan, size) for size in (0, 1 << 30, plan.parameters * 14))
    assert without.stall_floor_seconds == 120
    assert small.stall_floor_seconds >= 900
    slow = plan.parameters * 14 / 250e6  # at 250 MB/s
    assert real.stall_floor_seconds > slow > 3600
    assert real.start_seconds > 1800 + slow
