"""Are the collectives right, for every type and group that the training uses; how fast; who arrives late."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from conformance.devices import load_device
from conformance.kernels import install
from conformance.preflight.contract import mapped_libraries
from conformance.preflight.probe import Journal, relative_error, sha256_of, time_on_device
from conformance.preflight.worker import Task
from conformance.spec import load_workload
from conformance.spec.model import Model

KIB, MIB = 1 << 10, 1 << 20
SIZES = (32 * KIB, MIB, 32 * MIB, 512 * MIB)
REHEARSAL_SIZES = (32 * KIB, MIB, 4 * MIB)
# What nccl-tests' figures of whole nodes are told for; only among the devices of one node.
LARGEST = 8 << 30
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


# Where InternEvo puts data parallelism outermost, around the pipeline; later versions put the pipeline outermost
# (internlm/core/context/process_group_initializer.py).
DATA_OUTERMOST = ("0.2.2", "v0.2.3dev20240201")


def parallel_groups(
    world: int, tensor: int, pipeline: int, zero1: int = 0, data_outermost: bool = False
) -> dict[str, list[list[int]]]:
    """The process groups of a run, as InternEvo lays ranks out: tensor innermost.

    Args:
        world: Ranks in all.
        tensor: Tensor-parallel size.
        pipeline: Pipeline-parallel size.
        zero1: Size of the group that shares one copy of the optimizer state; 0 for the data-parallel size.
        data_outermost: Whether data parallelism lies around the pipeline, and not inside each of its stages.

    Returns:
        Ranks of each group, by kind; kinds whose groups have one member are left out.
    """
    data = world // tensor // pipeline
    stage_stride, data_stride = (tensor, tensor * pipeline) if data_outermost else (tensor * data, tensor)

    def groups(size: int, stride: int) -> list[list[int]]:
        firsts = (rank for rank in range(world) if rank // stride % size == 0)
        return [list(range(first, first + size * stride, stride)) for first in firsts]

    kinds = {"tensor": groups(tensor, 1), "pipeline": groups(pipeline, stage_stride)}
    if zero1 in (0, data):
        kinds["data and zero1"] = groups(data, data_stride)
    else:
        kinds |= {"data": groups(data, data_stride), "zero1": groups(zero1, data_stride)}
    return {kind: members for kind, members in kinds.items() if len(members[0]) > 1}


def measure(task: Task, journal: Journal) -> None:
    """Measure the collectives.

    Args:
        task: What is planned.
        journal: Gets records "backend", "clock", "collective", "reduction", "kernel" (the loss over a split
            vocabulary), "bandwidth", "group-bandwidth", "link" and "arrival".
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
    journal.over("clocks")
    groups: list[Group] = [Group("world", dist.group.WORLD, list(range(world)))]
    data_outermost = load_workload(task.workload).tag in DATA_OUTERMOST
    for kind, members in parallel_groups(world, task.tensor, task.pipeline, task.zero1, data_outermost).items():
        for ranks in members:
            journal.phase(f"collectives: new_group {kind} {ranks}")
            for is_side in (False, True):
                made = dist.new_group(ranks, backend="gloo" if is_side else None, timeout=GROUP_TIMEOUT)
                if rank in ranks:
                    groups.append(Group(kind, made, ranks, is_side))
    for group in groups:
        _correct(group, rank, task.seed, journal)
    journal.over("correctness")
    libraries = mapped_libraries()
    journal.record(
        "backend",
        backend=dist.get_backend(),
        libraries=sorted(libraries),
        digests={name: sha256_of(path) for name, path in libraries.items()},
        versions=_versions(),
    )
    _reduction(world, journal)
    journal.over("reduction")
    _vocabulary_loss(task, groups, rank, journal)
    _bandwidths(task, rank, world, side, journal)
    _group_bandwidths(task, groups, world, side, journal)
    journal.over("bandwidths")
    _links(task, rank, world, journal)
    journal.over("links")
    _arrivals(rank, world, offset, side, journal)
    journal.phase("collectives: destroy_process_group")
    dist.destroy_process_group()


@dataclass(frozen=True)
class Group:
    """One of the process groups that this rank is in.

    Args:
        kind: What InternEvo uses it for.
        handle: torch's group.
        ranks: Its members.
        side: Whether it is the gloo group that InternEvo makes beside a group of devices, for what lies on the host.
    """

    kind: str
    handle: Any
    ranks: list[int]
    side: bool = False

    @property
    def name(self) -> str:
        """How it is called in records."""
        return f"{self.kind}, gloo side group" if self.side else self.kind


def _versions() -> dict[str, str]:
    """Versions of NVIDIA's libraries as they are loaded; nothing for another vendor's, whose digests tell."""
    versions = {}
    with contextlib.suppress(Exception):
        versions["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    with contextlib.suppress(Exception):
        if cudnn := torch.backends.cudnn.version():
            versions["cuDNN"] = str(cudnn)
    return versions


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


def _correct(group: Group, rank: int, seed: int, journal: Journal) -> None:
    ranks, size, place = group.ranks, len(group.ranks), group.ranks.index(rank)
    where = "cpu" if dist.get_backend(group.handle) == "gloo" else "cuda"
    for dtype in DTYPES:
        given = [contribution(other, ranks, dtype) for other in ranks]
        total = torch.stack([part.double() for part in given]).sum(0)
        mine = given[place].to(where)
        operations = _operations(group.handle, ranks, place, mine, given, total)
        for operation, (run, expected) in operations.items():
            if (dtype == torch.int64 and "AVG" in operation) or (group.side and operation not in ON_THE_HOST):
                continue
            journal.phase(f"collectives: {operation} {dtype} in {group.name} {ranks}")
            told = {"operation": operation, "dtype": str(dtype).removeprefix("torch."), "group": group.name}
            try:
                got = run()
                torch.cuda.synchronize()
            except (RuntimeError, NotImplementedError, ValueError) as fault:
                problem = str(fault).splitlines()[0]
                journal.record("collective", **told, size=size, error="nan", problem=problem)
                continue
            difference = (got.cpu().double() - expected.double()).abs().max() / expected.double().abs().max()
            journal.record("collective", **told, size=size, error=float(difference), problem="")
    journal.phase(f"collectives: random all_reduce in {group.name} {ranks}")
    parts = [torch.randn(ELEMENTS, generator=torch.Generator().manual_seed(seed + other)) for other in ranks]
    dense = parts[place].to(torch.bfloat16).to(where)
    dist.all_reduce(dense, group=group.handle)
    exact = torch.stack([part.to(torch.bfloat16).double() for part in parts]).sum(0)
    error = relative_error(dense.cpu(), exact)["error"]
    told = {"operation": "all_reduce SUM of random numbers", "dtype": "bfloat16", "group": group.name}
    journal.record("collective", **told, size=size, error=error, problem="")


# What gloo did in every version of torch, and all that is asked of a side group; AVG, for one, it learnt late.
ON_THE_HOST = ("all_reduce SUM", "all_reduce MAX", "reduce SUM", "broadcast", "send and recv in a ring")
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

    def at_root(op: Any, expected: Tensor) -> Operation:
        def result() -> Tensor:
            tensor = mine.clone()
            dist.reduce(tensor, ranks[0], op=op, group=group)
            return tensor if place == 0 else expected  # elsewhere the result means nothing

        return result, expected

    operations: dict[str, Operation] = {
        "all_reduce SUM": (reduced(dist.ReduceOp.SUM), total),
        "all_reduce MAX": (reduced(dist.ReduceOp.MAX), torch.stack(given).max(0).values),
        "all_reduce AVG": (reduced(dist.ReduceOp.AVG), total / size),
        "reduce SUM": at_root(dist.ReduceOp.SUM, total),
        # What InternEvo reduces gradients with to the rank that holds their optimizer state.
        "reduce AVG": at_root(dist.ReduceOp.AVG, total / size),
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


def _vocabulary_loss(task: Task, groups: list[Group], rank: int, journal: Journal) -> None:
    """Cross-entropy, its vocabulary split over a tensor-parallel group, or over all ranks where the plan has none."""
    split = next((group for group in groups if group.kind == "tensor" and not group.side), groups[0])
    size, place = len(split.ranks), split.ranks.index(rank)
    journal.phase(f"kernel cross-entropy: vocabulary over {size} ranks")
    loss_type: Any = importlib.import_module("flash_attn.losses.cross_entropy").CrossEntropyLoss
    model = Model(**task.model)  # type: ignore[arg-type]
    tokens, share = min(task.tokens, 1024), model.vocab_size // size
    generator = torch.Generator().manual_seed(task.seed)
    logits = torch.randn(tokens, share * size, generator=generator) * 4
    labels = torch.randint(0, share * size, (tokens,), generator=generator)
    labels[::17] = -100
    mine = slice(place * share, (place + 1) * share)
    leaf = logits[:, mine].contiguous().to("cuda").requires_grad_()
    loss_of = loss_type(reduction="mean", inplace_backward=False, process_group=split.handle, label_smoothing=0)
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
            case=f"vocabulary over {size} ranks",
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
    if not task.rehearsal and world == int(os.environ["LOCAL_WORLD_SIZE"]) > 1:
        room = torch.tensor([int(torch.cuda.mem_get_info()[0])])
        dist.all_reduce(room, op=dist.ReduceOp.MIN, group=side)  # all ranks go the same way
        sizes += [LARGEST] if int(room) > 3 * LARGEST else []
    for size in sizes:
        elements = size // 2 // world * world
        whole = torch.zeros(elements, dtype=torch.bfloat16, device="cuda")
        other = torch.empty_like(whole) if size < LARGEST else whole
        part = torch.empty(elements // world, dtype=torch.bfloat16, device="cuda")
        steps: dict[str, Callable[[], object]] = {
            "all_reduce": lambda whole=whole: dist.all_reduce(whole),  # type: ignore[misc]
            "all_gather_into_tensor": lambda w=whole, p=part: dist.all_gather_into_tensor(w, p),  # type: ignore[misc]
            "reduce_scatter_tensor": lambda w=whole, p=part: dist.reduce_scatter_tensor(p, w),  # type: ignore[misc]
            "broadcast": lambda whole=whole: dist.broadcast(whole, 0),  # type: ignore[misc]
            "all_to_all_single": lambda w=whole, o=other: dist.all_to_all_single(o, w),  # type: ignore[misc]
        }
        for operation, step in list(steps.items())[: 1 if size == LARGEST else None]:
            journal.phase(f"collectives: {operation} of {size} bytes")
            dist.barrier(group=side)
            timing = _timed(step)
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


def _timed(step: Callable[[], object]) -> dict[str, Any]:
    # A fixed number: every rank must make the same calls.
    return time_on_device(lambda number: step(), warmup=2, samples=5, budget_seconds=math.inf)


def _group_bandwidths(task: Task, groups: list[Group], world: int, side: Any, journal: Journal) -> None:
    """The sum in all groups of a kind at the same time, as in training, at the size of the kind's messages."""
    model = Model(**task.model)  # type: ignore[arg-type]
    bucket = REHEARSAL_SIZES[-1] if task.rehearsal else SIZES[-1]
    sizes = {"tensor": task.tokens * model.hidden_size * 2, "data and zero1": bucket, "data": bucket, "zero1": bucket}
    for group in groups:
        if group.side or group.kind not in sizes or len(group.ranks) == world:
            continue
        journal.phase(f"collectives: all_reduce in {group.kind} {group.ranks}")
        message = torch.zeros(sizes[group.kind] // 2, dtype=torch.bfloat16, device="cuda")
        dist.barrier(group=side)
        timing = _timed(lambda message=message, group=group: dist.all_reduce(message, group=group.handle))  # type: ignore[misc]
        algorithm = sizes[group.kind] / timing["seconds"] / 1e9
        journal.record(
            "group-bandwidth",
            operation="all_reduce",
            group=group.kind,
            bytes=sizes[group.kind],
            size=len(group.ranks),
            busbw_gb_per_s=algorithm * bus_factor("all_reduce", len(group.ranks)),
            **timing,
        )


def link_pairs(world: int, per_node: int) -> list[tuple[int, int]]:
    """Who sends to whom, one pair at a time: each rank to the next, and to the same device of the next node.

    Args:
        world: Ranks in all.
        per_node: Ranks of each node.

    Returns:
        Sender and receiver, no pair twice.
    """
    strides = {1, per_node} if world > per_node else {1} if world > 1 else set()
    return list(dict.fromkeys((rank, (rank + stride) % world) for stride in sorted(strides) for rank in range(world)))


def _links(task: Task, rank: int, world: int, journal: Journal) -> None:
    """One pair at a time, so that a slow link has a name."""
    size = REHEARSAL_LINK_BYTES if task.rehearsal else LINK_BYTES
    for sender, receiver in link_pairs(world, int(os.environ["LOCAL_WORLD_SIZE"])):
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
