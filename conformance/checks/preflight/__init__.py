"""Would this cluster train? Judgement of the preflight measurements: pure, from what was written down alone."""

from __future__ import annotations

import dataclasses
import math

from conformance.checks.finding import Finding, Result
from conformance.checks.preflight import collectives, compute, devices, hosts, kernels
from conformance.checks.preflight.collectives import collective_limit
from conformance.checks.preflight.devices import breaks_contract
from conformance.checks.preflight.hosts import cpu_list
from conformance.checks.preflight.kernels import ROUNDINGS
from conformance.checks.preflight.records import (
    EVIDENCE,
    Check,
    Preflight,
    Record,
    Silent,
    Unmeasured,
    faultless,
    number,
    skip,
)

__all__ = [
    "CHECKS",
    "ROUNDINGS",
    "Preflight",
    "breaks_contract",
    "collective_limit",
    "cpu_list",
    "judge",
    "number",
]

# Tasks of one process a node; the others have one a rank.
PER_NODE = ("contract", "host")
ENDINGS = {"timeout": "hung and was ended", "stopped": "was ended with another that died"}


def judge(preflight: Preflight) -> list[Finding]:
    """Make every check.

    Args:
        preflight: What was measured.

    Returns:
        One finding for each check, in the order of CHECKS.
    """
    findings = []
    for check, (task, make) in CHECKS.items():
        try:
            if task and (lost := _unfinished(preflight, task)) and not _complete(preflight, check):
                raise Unmeasured(lost)
            findings.append(_finite(make(check, preflight)))
        except Unmeasured as reason:
            findings.append(_not_made(check, str(reason)))
        except Silent as reason:
            findings.append(skip(check, str(reason)))
        except Exception as error:  # a record that no check expects is no measurement, and hides no other check
            findings.append(_not_made(check, f"a record is malformed ({type(error).__name__}: {error})"))
    return findings


def _finite(finding: Finding) -> Finding:
    """The same with what is no number told as a word: nan stands in no JSON."""
    value, margin = finding.value, finding.margin
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    return dataclasses.replace(
        finding, value=value, margin=margin if margin is not None and math.isfinite(margin) else None
    )


def _not_made(check: str, reason: str) -> Finding:
    return Finding(check, Result.ERROR, f"Not measured: {reason}.", evidence=EVIDENCE, next_step="Fix that and repeat.")


def _unfinished(preflight: Preflight, task: str) -> str:
    processes = preflight.tasks.get(task, ())
    if not processes:
        return f"the task {task!r} left nothing"
    expected = preflight.setup["nodes" if task in PER_NODE else "ranks"]
    seen = {process["rank"] for process in processes}
    absent = [f"rank {rank} left nothing" for rank in range(expected) if rank not in seen]
    lost = [_ending(process) for process in processes if process["outcome"] != "done"]
    return "; ".join(lost + absent)


def _complete(preflight: Preflight, check: str) -> bool:
    """Whether a check can be made although its task did not end well.

    Its own part was over on every rank; or a kernel hung or could not run on one, which nothing after it makes undone.
    """
    if any(check == f"kernel-{record['kernel']}" for _, record in preflight.records("kernel-error")):
        return True
    part = PARTS.get(check, "")
    over = {process["rank"] for process, record in preflight.records("over") if record["part"] == part}
    return over >= set(range(preflight.setup["ranks"]))


def _ending(process: Record) -> str:
    rank, seconds = f"rank {process['rank']}", f"after {process['seconds']:.0f} s"
    if process["outcome"] == "alone":
        return f"{rank} was left without {process['phase']} {seconds}"
    how = ENDINGS.get(process["outcome"], "died")
    if how == ENDINGS["timeout"] and ": waiting for " in process["phase"]:
        how = "waited for another and was ended"
    last = [line for line in process["output"].splitlines() if line.strip()][-1:]
    told = f": {last[0].strip()}" if last and process["outcome"] == "failed" else ""
    return f"{rank} {how} {seconds} in {process['phase']!r}{told}"


def _ended(check: str, preflight: Preflight) -> Finding:
    lost = [
        f"{task}: {_ending(process)}"
        for task, processes in preflight.tasks.items()
        for process in processes
        if process["outcome"] != "done"
    ]
    seconds = sum(max(p["seconds"] for p in processes) for processes in preflight.tasks.values() if processes)
    good = f"All measuring processes ended by themselves, {seconds:.0f} s in all"
    variable = preflight.setup.get("collective_debug") if lost else None
    told = [*lost, f"with {variable} set the collective library tells more"] if variable else lost
    return faultless(check, told, good, "processes", "this suite: a time limit for each task", value=float(len(lost)))


KERNELS = ("attention", "rotary", "rms-norm", "linear", "cross-entropy", "embedding", "adamw", "grad-norm", "scatter")
# Check -> the task whose processes must have ended well, and the function that makes it.
CHECKS: dict[str, tuple[str, Check]] = {
    "preflight-ended": ("", _ended),
    "device-contract": ("contract", devices.contract),
    "device-identity": ("host", devices.identity),
    "device-health": ("host", devices.healthy),
    "device-busy": ("host", devices.busy),
    "device-bus": ("host", devices.bus),
    "host-limits": ("host", hosts.limits),
    "host-shm": ("host", hosts.shm),
    "host-disk": ("host", hosts.disk),
    "host-memory": ("host", hosts.memory),
    "host-numa": ("host", hosts.numa),
    "host-frequency": ("host", hosts.frequency),
    "host-rdma": ("host", hosts.rdma),
    "host-software": ("host", hosts.software),
    "host-clock": ("collectives", hosts.clock),
    "gemm-correct": ("device", compute.gemm_correct),
    "gemm-speed": ("device", compute.gemm_speed),
    "copy-speed": ("device", compute.copy_speed),
    "speed-even": ("device", compute.even),
    "device-capacity": ("device", devices.capacity),
    **{f"kernel-{name}": ("device", kernels.kernel) for name in KERNELS},
    "kernel-determinism": ("device", kernels.determinism),
    "shim-numerics": ("collectives", collectives.shim),
    "collective-correct": ("collectives", collectives.collective_correct),
    "collective-speed": ("collectives", collectives.collective_speed),
    "link-even": ("collectives", collectives.links),
    "arrival-even": ("collectives", collectives.arrivals),
    "training-step": ("step", kernels.step),
}
# Check -> the part of its task, as the measuring process tells that it is over, after which the check can be made.
PARTS = {
    "host-clock": "clocks",
    **dict.fromkeys(("gemm-correct", "gemm-speed", "copy-speed", "speed-even"), "compute"),
    **{f"kernel-{name}": f"kernel {name}" for name in KERNELS},
    "device-capacity": "capacity",
    "collective-correct": "correctness",
    "shim-numerics": "reduction",
    "collective-speed": "bandwidths",
    "link-even": "links",
}
