"""How fast one device multiplies and copies, whether its products are right, and how much it holds."""

from __future__ import annotations

import os
import threading
from typing import Any

from conformance.devices import Device
from conformance.preflight.probe import CACHE_BYTES, Journal, exact_products, relative_error, time_on_device
from conformance.preflight.worker import Task
from conformance.spec import load_workload
from conformance.spec.model import Model

GIB = 1 << 30
SQUARE = 8192
REHEARSAL_SQUARE = 1024
# Read and written together; long enough that starting the copy costs less than 1%.
COPY_BYTES = 8 * GIB
REHEARSAL_COPY_BYTES = 64 << 20
SAMPLES = 20
WARMUP = 3
OFFICIAL = ("llama2-7b-perf", "llama2-70b-perf")
# Operand pairs that are taken in turn, so that no product finds its inputs in a cache.
ROTATION = 3

Shape = tuple[str, int, int, int]


def gemm_shapes(model: Model, tokens: int, tensor: int, rehearsal: bool) -> list[Shape]:
    """The matrix products of one layer and of the head, on one device: the plan's, and the official workloads'.

    Args:
        model: The planned model.
        tokens: Tokens of a micro batch.
        tensor: Tensor-parallel size.
        rehearsal: Whether a CPU measures, and the square product is the small one and the plan's shapes are all.

    Returns:
        Name, rows, columns and inner size of each product, no sizes twice where more than the plan's are measured; the
        square one first.
    """
    side = REHEARSAL_SQUARE if rehearsal else SQUARE
    shapes = [("square", side, side, side), *_layer(model, tokens, tensor)]
    if rehearsal:
        return shapes
    # Of these spec/expected.toml knows figures.
    shapes += [("square-4096", 4096, 4096, 4096), ("key-value-4096", 4096, 1024, 4096)]
    for workload in map(load_workload, OFFICIAL):
        reference, official = workload.reference, workload.model
        own = _layer(official, reference.micro_bsz * official.seq_len, reference.tensor)
        measured = {shape[1:] for shape in shapes}
        shapes += [(f"{workload.mark}-{shape[0]}", *shape[1:]) for shape in own if shape[1:] not in measured]
    return shapes


def _layer(model: Model, tokens: int, tensor: int) -> list[Shape]:
    h = model.hidden_size
    return [
        ("query", tokens, h // tensor, h),
        ("key-value", tokens, 2 * model.kv_size // tensor, h),
        ("attention-out", tokens, h, h // tensor),
        ("mlp-up", tokens, model.ffn_size // tensor, h),
        ("mlp-down", tokens, h, model.ffn_size // tensor),
        ("head", tokens, model.vocab_size // tensor, h),
    ]


def measure(task: Task, journal: Journal, setting: str) -> None:
    """Time products and a copy on this process's device.

    Args:
        task: What is planned.
        journal: Gets a record "gemm" for each shape and a record "copy".
        setting: "alone" or "together": whether the other devices of the node work too.
    """
    import torch

    # Every rank multiplies numbers of its own.
    seed = task.seed + int(os.environ["RANK"])
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    flush = None if task.rehearsal else torch.empty(CACHE_BYTES, dtype=torch.uint8, device="cuda")
    shapes = gemm_shapes(Model(**task.model), task.tokens, task.tensor, task.rehearsal)  # type: ignore[arg-type]
    # Together, the square product alone is enough to see who falls behind.
    for shape in shapes if setting == "alone" else shapes[:1]:
        journal.phase(f"compute {setting}: gemm {shape[0]}")
        journal.record("gemm", setting=setting, **_gemm(shape, flush, task.rehearsal))
    journal.phase(f"compute {setting}: copy")
    journal.record("copy", setting=setting, **_copy(REHEARSAL_COPY_BYTES if task.rehearsal else COPY_BYTES))


def _gemm(shape: Shape, flush: Any, rehearsal: bool) -> dict[str, Any]:
    import torch

    name, m, n, k = shape
    pairs = [
        (
            torch.randn(m, k, device="cuda", dtype=torch.bfloat16),
            torch.randn(k, n, device="cuda", dtype=torch.bfloat16),
        )
        for _ in range(ROTATION)
    ]
    result = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)

    def multiply(number: int) -> None:
        torch.mm(*pairs[number % ROTATION], out=result)

    timing = time_on_device(
        multiply, warmup=WARMUP, samples=SAMPLES, flush=flush, budget_seconds=0.1 if rehearsal else 1.0
    )
    result.fill_(float("nan"))
    multiply(0)
    return {
        "name": name,
        "shape": [m, n, k],
        "tflops": 2 * m * n * k / timing["seconds"] / 1e12,
        **timing,
        **_product_error(*pairs[0], result),
    }


def _product_error(a: Any, b: Any, c: Any) -> dict[str, Any]:
    """Freivalds' check of the whole product, and some elements against the host's processor in fp64."""
    import torch

    exact_products()
    signs = torch.randint(0, 2, (b.shape[1], 1), device="cuda").float() * 2 - 1
    whole = relative_error(c.float() @ signs, a.float() @ (b.float() @ signs))
    rows = torch.randint(0, a.shape[0], (16,)).tolist()
    columns = torch.randint(0, b.shape[1], (64,)).tolist()
    exact = a[rows].cpu().double() @ b[:, columns].cpu().double()
    sample = relative_error(c[rows][:, columns].cpu(), exact)
    return {
        "error": sample["error"],
        "whole_error": whole["error"],
        "not_finite": int((~torch.isfinite(c)).sum()),
    }


def _copy(size: int) -> dict[str, Any]:
    import torch

    source = torch.randint(0, 256, (size // 2,), dtype=torch.uint8, device="cuda")
    target = torch.zeros_like(source)
    timing = time_on_device(lambda number: target.copy_(source), warmup=WARMUP, samples=SAMPLES, budget_seconds=1.0)
    # Read and written both count.
    return {
        "bytes": size,
        "gb_per_s": size / timing["seconds"] / 1e9,
        **timing,
        "intact": bool(torch.equal(source, target)),
    }


def loaded_health(task: Task, journal: Journal, device: Device, index: int) -> None:
    """Ask for a device's health while it multiplies: at rest nothing is throttled, and a link may be slowed on purpose.

    Args:
        task: What is planned.
        journal: Gets a record "loaded-health", where the plugin tells anything.
        device: The plugin.
        index: The device.
    """
    import torch

    journal.phase("compute: health at work")
    answers: list[dict[str, str]] = []

    def ask() -> None:
        try:
            answers.append(device.health(index))
        except Exception as error:  # a third party's code: told, and no other measurement is lost for it
            answers.append({"problem": f"{type(error).__name__}: {error}"})

    asking = threading.Thread(target=ask, daemon=True)
    side = REHEARSAL_SQUARE if task.rehearsal else SQUARE
    x = torch.randn(side, side, device="cuda").to(torch.bfloat16)
    asking.start()
    while asking.is_alive():
        torch.mm(x, x)
        torch.cuda.synchronize()
    if answers[0]:
        journal.record("loaded-health", **answers[0])


def capacity(task: Task, journal: Journal) -> None:
    """Allocate what the plan needs, block by block, and read it back.

    Args:
        task: What is planned.
        journal: Gets a record "capacity".
    """
    import torch

    journal.phase("compute: capacity")
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    block = min(GIB, max(1 << 20, int(task.capacity_gib * GIB / 8)))
    blocks: list[Any] = []
    intact, problem = True, ""
    try:
        while len(blocks) * block < task.capacity_gib * GIB:
            number = len(blocks) % 251 + 1
            blocks.append(torch.full((block,), number, dtype=torch.uint8, device="cuda"))
        intact = all(bool((held == i % 251 + 1).all()) for i, held in enumerate(blocks))
    except RuntimeError as error:  # out of memory, whatever the vendor calls it
        problem = str(error).splitlines()[0]
    journal.record(
        "capacity",
        needed_gib=task.capacity_gib,
        held_gib=len(blocks) * block / GIB,
        free_gib=free / GIB,
        total_gib=total / GIB,
        intact=intact,
        problem=problem,
    )
    del blocks
    torch.cuda.empty_cache()
    journal.over("capacity")
