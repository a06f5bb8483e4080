"""What the measuring itself promises: poisoned memory, true fp32 references, and no more of gloo than it can."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from conformance.spec import load_workload

pytestmark = pytest.mark.needs("torch")


@pytest.fixture(autouse=True)
def imported(monkeypatch):
    """Importing torch takes seconds, which collecting the tests need not wait for."""
    global torch, dist, collectives, kernels, Journal
    import torch
    import torch.distributed as dist

    from conformance.preflight import collectives, kernels
    from conformance.preflight.probe import Journal

    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: None)


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines() if '"kind"' in line]


def measured_case(tmp_path, monkeypatch, run, expected):
    monkeypatch.setattr(kernels, "time_on_device", lambda *args, **kwargs: {"seconds": 1.0})
    case = kernels.Case("linear", "plain", "torch", "float32", run, expected)
    kernels._measure_case(case, SimpleNamespace(seed=1, rehearsal=True), Journal(tmp_path / "journal"))
    return next(record for record in records(tmp_path / "journal") if record["kind"] == "kernel")


def test_a_row_that_a_kernel_leaves_unwritten_is_seen_although_the_right_one_lay_there(tmp_path, monkeypatch):
    right = torch.arange(1.0, 65.0).reshape(16, 4)
    memory = right.clone()  # what the allocator hands out again and again

    def run():
        memory[:5], memory[6:] = right[:5], right[6:]
        return {"out": memory.clone()}

    handed_out = []

    def poison(*shapes, dtype):
        handed_out.append((shapes, dtype))
        memory.fill_(float("nan"))

    monkeypatch.setattr(kernels, "poison", poison)
    record = measured_case(tmp_path, monkeypatch, run, lambda: {"out": right})
    assert handed_out == [(((16, 4),), torch.float32)]
    assert record["not_finite"] == 4
    assert record["error"] == "nan"


@pytest.mark.parametrize("hung", [0, 2], ids=["raises", "not measured"])
def test_a_kernel_that_raises_or_is_left_out_is_told_and_hides_no_other(hung, tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("no such kernel\nand more")

    monkeypatch.setattr(kernels, "install", list)
    monkeypatch.setenv("RANK", "0")
    parts = ("attention", "rotary", "rms_norm", "linear", "cross_entropy", "embedding", "adamw", "grad_norm", "scatter")
    for name in parts:
        monkeypatch.setattr(kernels, f"_{name}", broken)
    journal = Journal(tmp_path / "journal")
    for kernel in range(hung):
        journal.record("kernel-error", part=f"kernel {kernel}", kernel=f"{kernel}", hung=True)
    model = asdict(load_workload("tiny-perf").model)
    kernels.measure(SimpleNamespace(model=model, seed=1, kernel_seconds=9.0), journal)
    told = [record for record in records(tmp_path / "journal")[hung:] if record.get("kind") == "kernel-error"]
    problem = "not measured, because 0 and 1 hung" if hung else "RuntimeError: no such kernel"
    assert [record["problem"] for record in told] == [problem] * 9


def test_a_reference_multiplies_in_fp32_whatever_was_chosen_before(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "poison", lambda *shapes, dtype: None)
    before = torch.get_float32_matmul_precision()
    seen = []

    def expected():
        seen.append(torch.get_float32_matmul_precision())
        return {"out": torch.ones(2, 2)}

    torch.set_float32_matmul_precision("high")
    try:
        measured_case(tmp_path, monkeypatch, lambda: {"out": torch.ones(2, 2)}, expected)
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen == ["highest"]


@pytest.fixture
def one_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_a_side_group_is_asked_for_what_gloo_always_could_and_devices_for_what_internevo_calls(
    one_rank, tmp_path, monkeypatch
):
    all_reduce = dist.all_reduce

    def without_avg(tensor, op=dist.ReduceOp.SUM, group=None):
        if op == dist.ReduceOp.AVG:
            raise RuntimeError("Cannot use ReduceOp.AVG with Gloo")
        return all_reduce(tensor, op=op, group=group)

    def reduce(tensor, root, op=dist.ReduceOp.SUM, group=None):
        if op == dist.ReduceOp.AVG:
            tensor.mul_(2)  # as if it were a sum of two

    monkeypatch.setattr(dist, "all_reduce", without_avg)
    monkeypatch.setattr(dist, "reduce", reduce)
    told = {}
    for side in (True, False):
        path = tmp_path / str(side)
        collectives._correct(collectives.Group("data", one_rank, [0], side), 0, 1, Journal(path))
        told[side] = records(path)
    assert {record["problem"] for record in told[True]} == {""}
    assert {record["operation"] for record in told[True]} >= {"all_reduce SUM", "reduce SUM", "broadcast"}
    assert not any("AVG" in r["operation"] or "scatter" in r["operation"] for r in told[True])
    wrong = {
        r["operation"] for r in told[False] if r["problem"] or (r["error"] != 0 and "random" not in r["operation"])
    }
    assert wrong >= {"all_reduce AVG", "reduce AVG"}
