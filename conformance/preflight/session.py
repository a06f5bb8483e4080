"""One preflight from plan to findings: every task under its time limit, evidence written, everything judged."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from conformance import __version__
from conformance.checks.finding import Finding, Result
from conformance.checks.preflight import Preflight, judge
from conformance.devices import Device
from conformance.devices.vendors import load_vendors
from conformance.evidence import PREFLIGHT as SETUP
from conformance.evidence import write_json
from conformance.launch.launcher import Place
from conformance.launch.torchrun import free_port, require_free_port
from conformance.plan import Plan, Topology, make_plan
from conformance.preflight.contract_run import check_contract
from conformance.preflight.driver import KILL_SECONDS, Measured, Ranks, run_task
from conformance.preflight.meeting import PORT, Meeting, named
from conformance.preflight.worker import KERNEL_HANGS, KERNEL_SECONDS, Task
from conformance.spec import load_workload
from conformance.spec.expected import load_expected

Tasks = dict[str, list[dict[str, Any]]]

FINDINGS = "environment/preflight-findings.json"
REHEARSAL_DEVICES = 2
# Seconds after which whatever a task still runs is ended: several times what it takes on a sound machine.
LIMITS = {"contract": 90, "host": 120, "device": 150, "collectives": 120, "step": 150, "gather": 120}


def longest(task: str) -> float:
    """How long a node may be busy with a task, whatever it meets with.

    Args:
        task: A key of LIMITS.

    Returns:
        Seconds.
    """
    hangs = KERNEL_HANGS * KERNEL_SECONDS if task == "device" else 0.0
    processes = 2 if task == "contract" else 1  # one after the other
    return processes * (LIMITS[task] + KILL_SECONDS) + hangs


@dataclass(frozen=True)
class Request:
    """What is to be measured.

    Args:
        workload: Name of the workload whose plan gives the shapes.
        place: Which of how many nodes this is, and where they meet: two ports from place.port on node 0.
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
        told: Called with what begins, in words.

    Returns:
        One finding for each check; the same stands in the run directory.

    Raises:
        ConformanceError: The workload cannot be planned on these devices, a port is taken, or a node did not arrive.
    """
    if request.nodes > 1 and request.place.node_rank == 0:
        for port in (request.place.port, request.place.port + PORT):
            require_free_port(port)
    meeting = Meeting(request.place, request.seed, told) if request.nodes > 1 else None
    request = dataclasses.replace(request, seed=meeting.seed) if meeting else request
    topology = Topology(request.nodes, request.devices)
    plan = make_plan(load_workload(request.workload), topology, request.overrides, seed=request.seed)
    setup = _setup(device, request, plan)
    write_json(run, SETUP, setup)
    tasks: Tasks = {}
    told("measuring contract")
    rows = check_contract(device, run / "work" / "contract", LIMITS["contract"])
    tasks["contract"] = [
        {"rank": request.place.node_rank, "outcome": "done", "phase": "", "seconds": 0.0, "output": "", "records": rows}
    ]
    _write(run, tasks)
    patience = longest("contract")
    for name, tensor in _tasks(plan):
        task = _task(name, device, request, plan, run)
        task = dataclasses.replace(task, tensor=tensor, out=f"{task.out}-{tensor}")
        ranks = _ranks(request, 1 if name == "host" else request.devices)
        told(f"measuring {name}" + (f" with tensor size {tensor}" if name == "step" else ""))
        if name == "host":
            measured, patience = run_task(task, ranks, LIMITS[name]), patience + longest(name)
        else:
            measured, patience = _together(meeting, task, ranks, LIMITS[name], patience), longest(name)
        tasks.setdefault(name, []).extend(one.to_json() for one in measured)
        _write(run, tasks)
    if meeting is not None:
        told("bringing the results of all nodes together")
        task = _task("gather", device, request, plan, run)
        tasks = _gather(tasks, meeting, task, _ranks(request, 1), patience)
    _write(run, tasks)
    findings = judge(Preflight(setup, tasks, load_expected()))
    write_json(run, FINDINGS, {"findings": [{**dataclasses.asdict(f), "result": f.result.value} for f in findings]})
    return findings


def _ranks(request: Request, local: int) -> Ranks:
    # The same port for each task of several nodes: they meet before it, when nothing of the one before runs any more.
    place = request.place
    port = place.port if request.nodes > 1 else free_port()
    return Ranks(local, request.nodes, place.node_rank, place.address, port)


def _together(
    meeting: Meeting | None, task: Task, ranks: Ranks, limit_seconds: float, patience: float
) -> tuple[Measured, ...]:
    """Measure when every node is here; where one is not, say so for each rank of this node."""
    began = time.monotonic()
    absent = meeting.absent(Path(task.out).name, patience) if meeting else []
    if not absent:
        return run_task(task, ranks, limit_seconds)
    first, waited = ranks.node_rank * ranks.local, time.monotonic() - began
    return tuple(Measured(first + n, "alone", named(absent), waited, (), "") for n in range(ranks.local))


def _write(run: Path, tasks: Tasks) -> None:
    for name, processes in tasks.items():
        write_json(run, f"environment/preflight-{name}.json", {"task": name, "processes": processes})


def _tasks(plan: Plan) -> list[tuple[str, int]]:
    """The tasks in order, each with its tensor-parallel size; a step is made with 1 and, on an even number, with 2."""
    steps = [("step", 1), ("step", 2)] if plan.cards % 2 == 0 else [("step", 1)]
    return [("host", plan.tensor), ("device", plan.tensor), ("collectives", plan.tensor), *steps]


def _setup(device: Device, request: Request, plan: Plan) -> dict[str, Any]:
    vendors = load_vendors()
    return {
        "suite": __version__,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "device": device.name,
        "backend": device.backend,
        "collective_debug": vendors[device.name].debug if device.name in vendors else "",
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


def _gather(tasks: Tasks, meeting: Meeting | None, task: Task, ranks: Ranks, patience: float) -> Tasks:
    """Exchange what every node measured, so that every node judges the whole.

    Where a node is lost, each of the others judges what it has: the ranks that it lacks are told check by check.
    """
    mine = Path(f"{task.out}.given.json")
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text(json.dumps(tasks))
    (gathered,) = _together(meeting, task, ranks, LIMITS["gather"], patience)
    if gathered.outcome != "done":
        return {**tasks, "gather": [gathered.to_json()]}
    merged: Tasks = {name: [] for name in tasks}
    for record in gathered.records:
        for name, processes in record["of_node"].items():
            merged[name] += processes
    return merged


def read_findings(run: Path) -> list[Finding]:
    """Read a preflight's findings back.

    Args:
        run: Run directory.

    Returns:
        The findings.
    """
    document = json.loads((run / FINDINGS).read_text("utf-8"))
    return [Finding(**{**finding, "result": Result(finding["result"])}) for finding in document["findings"]]
