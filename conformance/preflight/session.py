"""One preflight from plan to findings: every task under its time limit, evidence written, everything judged."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from conformance import __version__
from conformance.checks.finding import Finding, Result
from conformance.checks.preflight import Preflight, judge
from conformance.devices import Device
from conformance.evidence import PREFLIGHT as SETUP
from conformance.evidence import write_json
from conformance.launch.launcher import Place
from conformance.launch.torchrun import free_port
from conformance.plan import Plan, Topology, make_plan
from conformance.preflight.contract_run import check_contract
from conformance.preflight.driver import Measured, Ranks, run_task
from conformance.preflight.worker import Task
from conformance.spec import load_workload
from conformance.spec.expected import load_expected

Tasks = dict[str, list[dict[str, Any]]]

FINDINGS = "environment/preflight-findings.json"
REHEARSAL_DEVICES = 2
SEED_PORT, GATHER_PORT = 8, 9
# Seconds after which whatever a task still runs is ended: several times what it takes on a sound machine.
LIMITS = {"contract": 90, "host": 120, "device": 150, "collectives": 120, "step": 150, "gather": 120}


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Args:
        workload: Name of the workload whose plan gives the shapes.
        place: Which of how many nodes this is, and where they meet: ten ports from place.port on node 0.
        devices: Devices of each node.
        seed: Seed of all random inputs.
        internevo: Root of an InternEvo checkout; None for the installed wheel.
        overrides: Sizes that were chosen with --set.
    """

    workload: str
    place: Place
    devices: int
    seed: int
    internevo: Path | None
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.place.nodes


def default_workload(device: Device, cards: int) -> str:
    """The workload whose shapes are measured where none was named.

    Args:
        device: The device.
        cards: Devices in all.

    Returns:
        The rehearsal on a CPU; the slice on one accelerator; else the 7B performance run.
    """
    if device.backend == "gloo":
        return "tiny-perf"
    return "slice-7b-perf" if cards == 1 else "llama2-7b-perf"


def run_preflight(
    device: Device, request: Request, run: Path, told: Callable[[str], None] = lambda line: None
) -> list[Finding]:
    """Measure and judge.

    Args:
        device: The device plugin.
        request: What is to be measured.
        run: An empty run directory with the folders "environment" and "work".
        told: Called with the name of each task as it begins.

    Returns:
        One finding for each check; the same stands in the run directory.

    Raises:
        ConformanceError: The workload cannot be planned on these devices.
    """
    topology = Topology(request.nodes, request.devices)
    plan = make_plan(load_workload(request.workload), topology, request.overrides, seed=request.seed)
    place = request.place
    ranks = Ranks(request.devices, request.nodes, place.node_rank, place.address, place.port)
    setup = _setup(device, request, plan)
    write_json(run, SETUP, setup)
    tasks: Tasks = {}
    told("contract")
    rows = check_contract(device, run / "work" / "contract", LIMITS["contract"])
    tasks["contract"] = [
        {"rank": ranks.node_rank, "outcome": "done", "phase": "", "seconds": 0.0, "output": "", "records": rows}
    ]
    _write(run, tasks)
    for number, (name, tensor) in enumerate(_tasks(plan)):
        told(name)
        task = _task(name, device, request, plan, run)
        task = dataclasses.replace(task, tensor=tensor, out=f"{task.out}-{tensor}")
        here = dataclasses.replace(
            ranks,
            local=1 if name == "host" else request.devices,
            port=place.port + number if request.nodes > 1 else free_port(),
        )
        tasks.setdefault(name, []).extend(one.to_json() for one in run_task(task, here, LIMITS[name]))
        _write(run, tasks)
    if request.nodes > 1:
        told("gather")
        tasks = _gather(
            tasks,
            _task("gather", device, request, plan, run),
            dataclasses.replace(ranks, local=1, port=place.port + GATHER_PORT),
        )
    _write(run, tasks)
    findings = judge(Preflight(setup, tasks, load_expected()))
    write_json(run, FINDINGS, {"findings": [{**dataclasses.asdict(f), "result": f.result.value} for f in findings]})
    return findings


def with_seed_of_node_0(device: Device, request: Request, run: Path) -> Request:
    """Take node 0's seed on every node: those that are started one by one draw a fresh one each.

    Args:
        device: The device plugin.
        request: What is to be measured on this node.
        run: As for `run_preflight`.

    Returns:
        The same with that seed; with its own where the nodes do not meet, which the next meeting tells.
    """
    place = request.place
    plan = make_plan(load_workload(request.workload), Topology(request.nodes, request.devices), request.overrides)
    task = dataclasses.replace(_task("gather", device, request, plan, run), out=str((run / "work" / "seed").resolve()))
    ranks = Ranks(1, request.nodes, place.node_rank, place.address, place.port + SEED_PORT)
    met = _exchange({"seed": request.seed}, task, ranks)
    return dataclasses.replace(request, seed=met.records[0]["of_node"]["seed"]) if met.outcome == "done" else request


def _write(run: Path, tasks: Tasks) -> None:
    for name, processes in tasks.items():
        write_json(run, f"environment/preflight-{name}.json", {"task": name, "processes": processes})


def _tasks(plan: Plan) -> list[tuple[str, int]]:
    """The tasks in order, each with its tensor-parallel size; a step is made with 1 and, on an even number, with 2."""
    steps = [("step", 1), ("step", 2)] if plan.cards % 2 == 0 else [("step", 1)]
    return [("host", plan.tensor), ("device", plan.tensor), ("collectives", plan.tensor), *steps]


def _setup(device: Device, request: Request, plan: Plan) -> dict[str, Any]:
    return {
        "suite": __version__,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "device": device.name,
        "backend": device.backend,
        "nodes": request.nodes,
        "ranks": request.nodes * request.devices,
        "rehearsal": device.backend == "gloo",
        "seed": request.seed,
        "workload": request.workload,
        "overrides": dict(request.overrides),
        "plan": plan.to_json(),
    }


def _task(name: str, device: Device, request: Request, plan: Plan, run: Path) -> Task:
    return Task(
        name=name,
        device=device.name,
        out=str((run / "work" / name).resolve()),
        seed=request.seed,
        rehearsal=device.backend == "gloo",
        model=dataclasses.asdict(plan.model),
        tokens=plan.micro_bsz * plan.model.seq_len,
        tensor=plan.tensor,
        pipeline=plan.pipeline,
        zero1=plan.zero1_size,
        # fp32 master and Adam's two moments.
        optimizer_elements=int(plan.memory.optimizer * (1 << 30) / 12),
        capacity_gib=plan.memory.peak,
        devices=request.devices,
        workload=request.workload,
        internevo=None if request.internevo is None else str(request.internevo.resolve()),
    )


def _gather(tasks: Tasks, task: Task, ranks: Ranks) -> Tasks:
    """Exchange what every node measured, so that every node judges the whole.

    Where a node is lost, each of the others judges what it has: the ranks that it lacks are told check by check.
    """
    gathered = _exchange(tasks, task, ranks)
    if gathered.outcome != "done":
        return {**tasks, "gather": [gathered.to_json()]}
    merged: Tasks = {name: [] for name in tasks}
    for record in gathered.records:
        for name, processes in record["of_node"].items():
            merged[name] += processes
    return merged


def _exchange(value: Mapping[str, Any], task: Task, ranks: Ranks) -> Measured:
    """Give a value to all nodes; what each of them gave stands in the records, in their order."""
    mine = Path(f"{task.out}.given.json")
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(json.dumps(value))
    (met,) = run_task(task, ranks, LIMITS["gather"])
    return met


def read_findings(run: Path) -> list[Finding]:
    """Read a preflight's findings back.

    Args:
        run: Run directory.

    Returns:
        The findings.
    """
    document = json.loads((run / FINDINGS).read_text("utf-8"))
    return [Finding(**{**finding, "result": Result(finding["result"])}) for finding in document["findings"]]
