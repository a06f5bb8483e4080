"""How a plan may be shrunk when a device ran out of memory, within the benchmark's rules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from conformance.errors import ConformanceError
from conformance.plan import EXTRA_FREEDOMS, Plan, make_plan

# More than this many ways to shrink help nobody at 2 a.m.
MAX_WAYS = 4


def memory_advice(plan: Plan) -> str:
    """Say which settings need less memory and are legal, each with its estimated peak.

    Args:
        plan: The plan that ran out of memory.

    Returns:
        One sentence; empty where no legal setting needs less.
    """
    ways: dict[str, float] = {}
    for change in _changes(plan):
        try:
            smaller = make_plan(plan.workload, plan.topology, {**_kept(plan), **change}, seed=plan.seed)
        except ConformanceError:
            continue
        # A batch below the reference's is legal too, but a last resort that the user takes, not we.
        if smaller.memory.peak < plan.memory.peak and smaller.global_batch_size == plan.global_batch_size:
            ways[" ".join(f"--set {key}={str(value).lower()}" for key, value in change.items())] = smaller.memory.peak
    if not ways:
        return ""
    told = [f"{options} ({_gib(ways[options])})" for options in sorted(ways, key=lambda each: ways[each])[:MAX_WAYS]]
    return f"Legal ways to shrink the estimated peak of {_gib(plan.memory.peak)} a device: {'; or '.join(told)}."


def _gib(size: float) -> str:
    return f"{size:.1f} GiB" if size >= 1 else f"{size:.3f} GiB"  # a rehearsal's is some tens of MiB


def _kept(plan: Plan) -> dict[str, Any]:
    """What stays as it was; micro_num is left to follow the batch."""
    kept: dict[str, Any] = {
        "tensor": plan.tensor,
        "pipeline": plan.pipeline,
        "zero1": plan.zero1,
        "micro_bsz": plan.micro_bsz,
        "checkpoint": plan.checkpoint,
    }
    extra = {"num_layers": plan.model.num_layers, "total_steps": plan.total_steps}
    return kept | {key: extra[key] for key in EXTRA_FREEDOMS if key in plan.workload.free}


def _changes(plan: Plan) -> Iterator[dict[str, Any]]:
    if plan.micro_bsz > 1:
        yield {"micro_bsz": plan.micro_bsz // 2}
    if not plan.checkpoint:
        yield {"checkpoint": True}
    if plan.zero1_size < plan.data_parallel:
        yield {"zero1": -1}
    for tensor in (2 * plan.tensor, 4 * plan.tensor, 8 * plan.tensor):
        yield {"tensor": tensor}
    yield {"pipeline": 2 * plan.pipeline}
