"""``conformance plan``: what a workload becomes on a topology, or every rule that stands against it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.plan import Plan, PlanRefused, Topology
    from conformance.spec import Workload
    from conformance.spec.floors import Floor

# The benchmark's own launch command has 8 processes a node (AIChipBenchmark llm/LLaMa-V2/README.md, 启动命令).
USUAL_DEVICES_PER_NODE = 8

EPILOG = """\
exit codes: 0 legal; 1 not legal, every violation is listed; 2 the question could not be read

examples:
  conformance plan llama2-7b-perf --nodes 4
  conformance plan llama2-70b-perf --nodes 16 --devices-per-node 8 --set checkpoint=true
  conformance plan slice-7b-perf --set num_layers=28 --set micro_bsz=1 --set micro_num=8 --json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments.

    Args:
        parser: The command's parser.
    """
    parser.description = "Resolve a workload on a topology: batch, parallelism, memory, FLOPs, time."
    parser.epilog = EPILOG
    parser.add_argument("workload", metavar="WORKLOAD", help="such as llama2-7b-perf; an unknown name lists them all")
    parser.add_argument("--nodes", type=int, default=1, metavar="N", help="number of nodes (default: 1)")
    parser.add_argument(
        "--devices-per-node", type=int, metavar="N", help="devices on each node (default: what this has)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="tensor, pipeline, zero1, micro_bsz, micro_num or checkpoint in place of the reference's",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(args: argparse.Namespace) -> int:
    """Plan and print.

    Args:
        args: Parsed arguments.

    Returns:
        0 when the plan is legal, 1 when it is not.
    """
    import json

    from conformance.plan import PlanRefused, Topology, make_plan, parse_overrides
    from conformance.spec import load_workload

    workload = load_workload(args.workload)
    per_node, assumed = (
        (args.devices_per_node, "") if args.devices_per_node is not None else _devices_per_node(workload)
    )
    topology = Topology(args.nodes, per_node)
    try:
        plan = make_plan(workload, topology, parse_overrides(args.set))
    except PlanRefused as refused:
        print(json.dumps(refused.to_json(), indent=1) if args.json else _refusal(refused, topology))
        return 1
    floor = _speed_floor(workload)
    if args.json:
        seconds = None if floor is None else plan.seconds_at(floor.value)
        print(json.dumps({**plan.to_json(), "seconds_at_floor": seconds}, indent=1))
    else:
        print(_text(plan, floor, assumed))
    return 0


def _devices_per_node(workload: Workload) -> tuple[int, str]:
    """Count the accelerators here; without any, plan for the usual node, and say so."""
    from conformance.devices import count_devices, detect_device

    device = detect_device()
    if device.name != "cpu":
        return count_devices(device), ""
    count = USUAL_DEVICES_PER_NODE if workload.official else workload.reference.cards
    return count, f"no accelerator here: planned for {count} devices a node, see --devices-per-node"


def _speed_floor(workload: Workload) -> Floor | None:
    """Find the TGS to reach on any device; an accuracy workload borrows it from the performance one of its shape."""
    from conformance.spec import all_workloads
    from conformance.spec.floors import find_floor, load_floors

    names = [other.name for other in all_workloads() if other.kind == "perf" and other.model == workload.model]
    floors = (find_floor(load_floors(), name, "tgs", None) for name in names)
    return next((floor for floor in floors if floor is not None), None)


def _refusal(refused: PlanRefused, topology: Topology) -> str:
    lines = [f"{refused.workload} on {topology.nodes} x {topology.devices_per_node} devices: not legal", ""]
    for violation in refused.violations:
        lines += [f"  {violation.rule}: {violation.message}", f"      rule: {violation.source}"]
    nearest = dict.fromkeys(option for violation in refused.violations for option in violation.nearest)
    lines += ["", "  legal settings nearest to yours:" if nearest else "  no settings are legal on so many devices"]
    lines += [f"    {option}" for option in nearest]
    return "\n".join(lines)


def _text(plan: Plan, floor: Floor | None, assumed: str) -> str:
    flops, memory, reference = plan.flops_per_token, plan.memory, plan.workload.reference
    zero1 = {True: "off", False: f"over {plan.zero1_size} devices"}[plan.zero1_size == 1]
    rows = [
        ("title", plan.workload.title),
        ("InternEvo", f"{plan.workload.tag}, data {plan.workload.data}"),
        ("devices", f"{plan.topology.nodes} nodes x {plan.topology.devices_per_node} = {plan.cards}"),
        ("parallel", f"data {plan.data_parallel}, tensor {plan.tensor}, pipeline {plan.pipeline}, ZeRO-1 {zero1}"),
        (
            "global batch",
            f"micro_bsz {plan.micro_bsz} x micro_num {plan.micro_num} x data {plan.data_parallel} = "
            f"{plan.global_batch_size} sequences (reference {reference.global_batch_size} on {reference.cards} cards)",
        ),
        ("tokens a step", f"{plan.tokens_per_step:,}"),
        ("steps", f"{plan.total_steps:,}"),
        ("parameters", f"{plan.parameters:,}"),
        (
            "FLOPs a token",
            f"{flops.logged:.6e} as InternEvo logs them, {flops.model:.6e} of the model, "
            f"{flops.model_causal:.6e} causal",
        ),
        (
            "memory a device",
            f"estimated peak {memory.peak:.1f} GiB: parameters {memory.parameters:.1f}, "
            f"gradients {memory.gradients:.1f}, optimizer {memory.optimizer:.1f}, "
            f"activations {memory.activations:.1f}, logits {memory.logits:.1f}",
        ),
    ]
    if floor is not None:
        seconds = plan.seconds_at(floor.value)
        time = f"{seconds:,.0f} seconds" if seconds < 3600 else f"{seconds / 3600:,.1f} hours"
        rows.append(("time at the floor", f"{time} of training at TGS {floor.value:g} ({floor.status})"))
    if plan.workload.checkpoint_every is not None:
        from conformance.watch import disk_bytes

        rows.append(("disk", f"{disk_bytes(plan) / 1e9:,.1f} GB free: two checkpoints are kept while one is written"))
    if plan.workload.loss_target is not None:
        rows.append(("loss", f"must come below {plan.workload.loss_target}"))
    rows += [("reading", f"{reading.id}: {reading.taken}") for reading in plan.workload.readings]
    rows += [("disclosed", text) for text in plan.disclosures]
    if assumed:
        rows.append(("note", assumed))
    lines = [f"{plan.workload.name}: legal", ""]
    return "\n".join(lines + [f"  {name:<18}{value}" for name, value in rows])
