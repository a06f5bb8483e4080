"""Are the collectives right, for every type and group that the training uses; how fast; who arrives late."""

from __future__ import annotations

import importlib
import math
import os
import statistics
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conformance.devices import load_device
from conformance.kernels import install
from conformance.preflight.contract import collective_libraries
from conformance.preflight.probe import Journal, relative_error, time_on_device
from conformance.preflight.worker import Task
from conformance.spec.model import Model

KIB, MIB = 1 << 10, 1 << 20
SIZES = (32 * KIB, MIB, 32 * MIB, 512 * MIB)
REHEARSAL_SIZES = (32 * KIB, MIB, 4 * MIB)
LINK_BYTES, REHEARSAL_LINK_BYTES = 128 * MIB, 4 * MIB
DTYPES = (torch.bfloat16, torch.float32, torch.int64)
# Largest whole number that one rank contributes: two of them still add exactly in the dtype. bf16's are scaled beyond
# fp16's range, and fp32's and int64's need more bits than bf16 or fp32 has: a silent downcast changes them.
WHOLE = {torch.bfloat16: 61, torch.float32: (1 << 22) - 3, torch.int64: (1 << 40) - 87}
SCALE = {torch.bfloat16: 1 << 17, torch.float32: 1, torch.int64: 1}
ELEMENTS = 4096
CLOCK_ROUNDS = 12
ARRIVAL_ROUNDS = 7
GROUP_TIMEOUT = timedelta(minutes=10)


def parallel_groups(world: int, tensor: int, pipeline: int) -> dict[str, list[list[int]]]:
    """The process groups of a run, as InternEvo lays ranks out: tensor innermost, pipeline outermost.

    Args:
        world: Ranks in all.
        tensor: Tensor-parallel size.
        pipeline: Pipeline-parallel size.

    Returns:
        Ranks of each group, by kind; kinds whose groups have one member are left out.
    """
    stage = world // pipeline
    groups = {
        "tensor": [list(range(start, start + tensor)) for start in range(0, world, tensor)],
        "data and zero1": [
            list(range(first + offset, first + stage, tensor))
            for first in range(0, world, stage)
            for offset in range(tensor)
        ],
        "pipeline": [list(range(first, world, stage)) for first in range(stage)],
    }
    return {kind: members for kind, members in groups.items() if len(members[0]) > 1}


def measure(task: Task, journal: Journal) -> None:
    """Measure the collectives.

    Args:
        task: What is planned.
        journal: Gets records "backend", "clock", "collective", "reduction", "bandwidth", "link" and "arrival".
    """
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    journal.phase("collectives: activate")
    load_device(task.device).activate()
    install()
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    journal.phase("collectives: init_process_group")
    dist.init_process_group(backend="nccl", timeout=GROUP_TIMEOUT)
    side = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT)
    journal.phase("collectives: clocks")
    offset = _clock(rank, world, side, journal)
    groups: list[tuple[str, Any, list[int]]] = [("world", dist.group.WORLD, list(range(world)))]
    for kind, members in parallel_groups(world, task.tensor, task.pipeline).items():
        for ranks in members:
            journal.phase(f"collectives: new_group {kind} {ranks}")
            for backend in (None, "gloo"):
                group = dist.new_group(ranks, backend=backend, timeout=GROUP_TIMEOUT)
                if rank in ranks:
                    groups.append((kind if backend is None else f"{kind}, gloo side group", group, ranks))
    for name, group, ranks in groups:
        _correct(name, group, ranks, rank, task.seed, journal)
    journal.record("backend", backend=dist.get_backend(), libraries=collective_libraries())
    _reduction(world, journal)
    _vocabulary_loss(task, rank, world, journal)
    _bandwidths(task, rank, world, side, journal)
    _links(task, rank, world, journal)
    _arrivals(rank, world, offset, side, journal)
    journal.phase("collectives: destroy_process_group")
    dist.destroy_process_group()


def _clock(rank: int, world: int, side: Any, journal: Journal) -> float:
    """Offset of this rank's clock from rank 0's: the middle of the quickest of some round trips."""
    offsets = [0.0] * world
    for other in range(1, world):
        best = math.inf
        for _ in range(CLOCK_ROUNDS):
            message = torch.zeros(1, dtype=torch.float64)
            if rank == 0:
                sent = time.time()
                dist.send(message, other, group=side)
                dist.recv(message, other, group=side)
                back = time.time()
                if back - sent < best:
                    best, offsets[other] = back - sent, float(message) - (sent + back) / 2
            elif rank == other:
                dist.recv(message, 0, group=side)
                dist.send(message.fill_(time.time()), 0, group=side)
    told = torch.tensor(offsets, dtype=torch.float64)
    dist.broadcast(told, 0, group=side)
    mine = float(told[rank])
    journal.record("clock", offset_s=mine)
    return mine


# --- correctness ---


def contribution(rank: int, ranks: list[int], dtype: torch.dtype, elements: int = ELEMENTS) -> Tensor:
    """What one rank gives: whole numbers, and in each element only two ranks give any, so that every sum is exact.

    Args:
        rank: The giving rank.
        ranks: All ranks of the group.
        dtype: A key of WHOLE.
        elements: How many.

    Returns:
        (elements), on the CPU.
    """
    place, size = ranks.index(rank), len(ranks)
    index = torch.arange(elements, dtype=torch.int64)
    value = 1 + (index * 7919 + (place + 1) * 104729) * 31 % WHOLE[dtype]
    gives = (index % size == place) | ((index + 1) % size == place)
    return (torch.where(gives, value, torch.zeros_like(value)) * SCALE[dtype]).to(dtype)


def _correct(name: str, group: Any, ranks: list[int], rank: int, seed: int, journal: Journal) -> None:
    size, place = len(ranks), ranks.index(rank)
    gloo = dist.get_backend(group) == "gloo"
    where = "cpu" if gloo else "cuda"
    for dtype in DTYPES:
        given = [contribution(other, ranks, dtype) for other in ranks]
        total = torch.stack([part.double() for part in given]).sum(0)
        mine = given[place].to(where)
        operations = _operations(group, ranks, place, mine, given, total)
        for operation, (run, expected) in operations.items():
            if dtype == torch.int64 and "AVG" in operation:
                continue
            journal.phase(f"collectives: {operation} {dtype} in {name} {ranks}")
            told = {"operation": operation, "dtype": str(dtype).removeprefix("torch."), "group": name, "size": size}
            try:
                got = run()
                torch.cuda.synchronize()
            except (RuntimeError, NotImplementedError, ValueError) as fault:
                journal.record("collective", **told, error="nan", problem=str(fault).splitlines()[0])
                continue
            difference = (got.cpu().double() - expected.double()).abs().max() / expected.double().abs().max()
            journal.record("collective", **told, error=float(difference), problem="")
    journal.phase(f"collectives: random all_reduce in {name} {ranks}")
    parts = [torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(seed + other)) for other in ranks]
    dense = parts[place].to(torch.bfloat16).to(where)
    dist.all_reduce(dense, group=group)
    exact = torch.stack([part.to(torch.bfloat16).double() for part in parts]).sum(0)
    error = relative_error(dense.cpu(), exact)["error"]
    told = {"operation": "all_reduce SUM of random numbers", "dtype": "bfloat16", "group": name, "size": size}
    journal.record("collective", **told, error=error, problem="")


Operation = tuple[Callable[[], Tensor], Tensor]


def _operations(
    group: Any, ranks: list[int], place: int, mine: Tensor, given: list[Tensor], total: Tensor
) -> dict[str, Operation]:
    """Every collective with its expected result; outputs begin as what no right result holds."""
    size, share = len(ranks), ELEMENTS // len(ranks)
    cut = slice(place * share, (place + 1) * share)
    whole = torch.full((share * size,), -7, dtype=mine.dtype, device=mine.device)
    even = mine[: share * size]  # what divides over the ranks

    def after(run: Callable[[Tensor], object], start: Tensor) -> Callable[[], Tensor]:
        def result() -> Tensor:
            tensor = start.clone()
            run(tensor)
            return tensor

        return result

    def reduced(op: Any) -> Callable[[], Tensor]:
        return after(lambda tensor: dist.all_reduce(tensor, op=op, group=group), mine)

    def scattered(op: Any) -> Callable[[], Tensor]:
        return after(lambda out: dist.reduce_scatter_tensor(out, even.clone(), op=op, group=group), whole[:share])

    def at_root() -> Tensor:
        tensor = mine.clone()
        dist.reduce(tensor, ranks[0], group=group)
        return tensor if place == 0 else total  # elsewhere the result means nothing

    operations: dict[str, Operation] = {
        "all_reduce SUM": (reduced(dist.ReduceOp.SUM), total),
        "all_reduce MAX": (reduced(dist.ReduceOp.MAX), torch.stack(given).max(0).values),
        "all_reduce AVG": (reduced(dist.ReduceOp.AVG), total / size),
        "reduce SUM": (at_root, total),
        "broadcast": (after(lambda tensor: dist.broadcast(tensor, ranks[-1], group=group), mine), given[-1]),
        "all_gather_into_tensor": (
            after(lambda out: dist.all_gather_into_tensor(out, mine[:share].clone(), group=group), whole),
            torch.cat([part[:share] for part in given]),
        ),
        "reduce_scatter_tensor SUM": (scattered(dist.ReduceOp.SUM), total[cut]),
        "reduce_scatter_tensor AVG": (scattered(dist.ReduceOp.AVG), total[cut] / size),
        "all_to_all_single": (
            after(lambda out: dist.all_to_all_single(out, even.clone(), group=group), whole),
            torch.cat([part[cut] for part in given]),
        ),
    }
    if size > 1:
        next_rank, last = ranks[(place + 1) % size], ranks[place - 1]
        operations["send and recv in a ring"] = (lambda: _ring(mine, next_rank, last, group), given[place - 1])
    return operations


def _ring(mine: Tensor, receiver: int, sender: int, group: Any) -> Tensor:
    result = torch.full_like(mine, -7)
    send, receive = dist.P2POp(dist.isend, mine, receiver, group), dist.P2POp(dist.irecv, result, sender, group)
    for request in dist.batch_isend_irecv([send, receive]):
        request.wait()
    return result


def _reduction(world: int, journal: Journal) -> None:
    """Which way AVG goes: a sum of bf16 numbers that fit alone overflows before it is divided."""
    journal.phase("collectives: what AVG really does")
    large = torch.full((8,), 3e38 / max(1, world / 2), dtype=torch.bfloat16, device="cuda")
    many = torch.full((8,), 3e38, dtype=torch.bfloat16, device="cuda")
    dist.all_reduce(large, op=dist.ReduceOp.AVG)
    dist.all_reduce(many, op=dist.ReduceOp.AVG)
    order = "scales before it sums" if bool(torch.isfinite(many).all()) else "sums, then divides"
    precise = torch.tensor([1.0 + 2.0**-40], dtype=torch.float64, device="cuda")
    dist.all_reduce(precise)
    kept = bool(float(precise) / world - 1 > 2.0**-41)
    journal.record(
        "reduction",
        avg=order,
        avg_of_large=float(large[0]),
        float64="kept" if kept else "computed in less than float64",
    )


def _vocabulary_loss(task: Task, rank: int, world: int, journal: Journal) -> None:
    """Cross-entropy with the vocabulary split over all ranks, as tensor parallelism splits it."""
    journal.phase("kernel cross-entropy: vocabulary over all ranks")
    loss_type: Any = importlib.import_module("flash_attn.losses.cross_entropy").CrossEntropyLoss
    model = Model(**task.model)  # type: ignore[arg-type]
    tokens, share = min(task.tokens, 1024), model.vocab_size // world
    generator = torch.Generator().manual_seed(task.seed)
    logits = torch.randn(tokens, share * world, generator=generator) * 4
    labels = torch.randint(0, share * world, (tokens,), generator=generator)
    labels[::17] = -100
    mine = slice(rank * share, (rank + 1) * share)
    leaf = logits[:, mine].contiguous().to("cuda").requires_grad_()
    loss_of = loss_type(reduction="mean", inplace_backward=False, process_group=dist.group.WORLD, label_smoothing=0)
    loss = loss_of(leaf, labels.to("cuda"))
    (gradient,) = torch.autograd.grad(loss, leaf)
    whole = logits.double().requires_grad_()
    exact = torch.nn.functional.cross_entropy(whole, labels)
    (exact_gradient,) = torch.autograd.grad(exact, whole)
    results = {
        "loss": (loss.detach().cpu().reshape(1), exact.detach().reshape(1)),
        "dlogits": (gradient.cpu(), exact_gradient[:, mine]),
    }
    for name, (got, expected) in results.items():
        journal.record(
            "kernel",
            kernel="cross-entropy",
            case=f"vocabulary over {world} ranks",
            result=name,
            provider=loss_type.__module__,
            dtype="float32",
            shape=list(got.shape),
            seed=task.seed,
            same_twice=True,
            **relative_error(got, expected),
        )


# --- speed ---


def bus_factor(operation: str, size: int) -> float:
    """From algorithm to bus bandwidth (nccl-tests, PERFORMANCE.md), with the total size as the message.

    Args:
        operation: Name of the collective.
        size: Ranks.

    Returns:
        What to multiply the algorithm bandwidth by.
    """
    if operation == "all_reduce":
        return 2 * (size - 1) / size
    if operation in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"):
        return (size - 1) / size
    return 1.0


def _bandwidths(task: Task, rank: int, world: int, side: Any, journal: Journal) -> None:
    model = Model(**task.model)  # type: ignore[arg-type]
    # What a tensor-parallel layer sends: the activations of a micro batch.
    message = task.tokens * model.hidden_size * 2
    sizes = sorted({*(REHEARSAL_SIZES if task.rehearsal else SIZES), message})
    for size in sizes:
        elements = size // 2 // world * world
        whole = torch.zeros(elements, dtype=torch.bfloat16, device="cuda")
        other, part = torch.empty_like(whole), torch.empty(elements // world, dtype=torch.bfloat16, device="cuda")
        steps: dict[str, Callable[[], object]] = {
            "all_reduce": lambda whole=whole: dist.all_reduce(whole),  # type: ignore[misc]
            "all_gather_into_tensor": lambda w=whole, p=part: dist.all_gather_into_tensor(w, p),  # type: ignore[misc]
            "reduce_scatter_tensor": lambda w=whole, p=part: dist.reduce_scatter_tensor(p, w),  # type: ignore[misc]
            "broadcast": lambda whole=whole: dist.broadcast(whole, 0),  # type: ignore[misc]
            "all_to_all_single": lambda w=whole, o=other: dist.all_to_all_single(o, w),  # type: ignore[misc]
        }
        for operation, step in steps.items():
            journal.phase(f"collectives: {operation} of {size} bytes")
            dist.barrier(group=side)
            # A fixed number: every rank must make the same calls.
            timing = time_on_device(
                lambda number, step=step: step(),  # type: ignore[misc]
                warmup=2,
                samples=5,
                budget_seconds=math.inf,
            )
            slowest = torch.tensor([timing["seconds"]], dtype=torch.float64)
            dist.all_reduce(slowest, op=dist.ReduceOp.MAX, group=side)
            algorithm = elements * 2 / float(slowest) / 1e9
            journal.record(
                "bandwidth",
                operation=operation,
                bytes=elements * 2,
                size=world,
                seconds=float(slowest),
                own_seconds=timing["seconds"],
                spread=timing["spread"],
                algbw_gb_per_s=algorithm,
                busbw_gb_per_s=algorithm * bus_factor(operation, world),
            )


def _links(task: Task, rank: int, world: int, journal: Journal) -> None:
    """Each rank to the next, one pair at a time, so that a slow link has a name."""
    size = REHEARSAL_LINK_BYTES if task.rehearsal else LINK_BYTES
    for sender in range(world if world > 1 else 0):
        receiver = (sender + 1) % world
        journal.phase(f"collectives: link {sender} to {receiver}")
        if rank in (sender, receiver):
            block = torch.ones(size, dtype=torch.uint8, device="cuda")

            def step(number: int, sender: int = sender, receiver: int = receiver, block: Tensor = block) -> None:
                if rank == sender:
                    dist.send(block, receiver)
                else:
                    dist.recv(block, sender)

            timing = time_on_device(step, warmup=2, samples=5, budget_seconds=math.inf)
            if rank == receiver:
                speed = size / timing["seconds"] / 1e9
                journal.record("link", sender=sender, receiver=receiver, bytes=size, gb_per_s=speed, **timing)
        dist.barrier()


def _arrivals(rank: int, world: int, offset: float, side: Any, journal: Journal) -> None:
    """How late each rank comes to a barrier after the same work."""
    journal.phase("collectives: arrivals")
    x = torch.randn(1024, 1024, device="cuda").to(torch.bfloat16)
    late, work = [], []
    for _ in range(ARRIVAL_ROUNDS):
        torch.cuda.synchronize()
        dist.barrier(group=side)
        began = time.perf_counter()
        for _ in range(4):
            torch.mm(x, x)
        torch.cuda.synchronize()
        work.append(time.perf_counter() - began)
        times = torch.zeros(world, dtype=torch.float64)
        times[rank] = time.time() - offset
        dist.all_reduce(times, group=side)
        late.append(float(times[rank] - times.min()))
    journal.record("arrival", late_seconds=statistics.median(late), work_seconds=statistics.median(work))
