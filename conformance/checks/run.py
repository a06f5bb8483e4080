"""Was it the run that was planned? Checks on what a run recorded of itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from conformance import journal
from conformance.checks.finding import Finding, Result
from conformance.errors import ConformanceError
from conformance.internevo.config import render_config
from conformance.internevo.patches import PATCHES
from conformance.plan import Plan
from conformance.spec import Workload
from conformance.strictjson import quoted


def ended(record: Mapping[str, Any]) -> Finding:
    """Whether the run ended by itself. Whether it ended well, only the logs can say: a crash exits with 0.

    Args:
        record: environment/run.json.

    Returns:
        The finding of check run-ended.
    """
    outcome = str(record.get("outcome"))
    if outcome == "ended":
        return Finding("run-ended", Result.PASS, "The run ended by itself.", outcome, evidence="environment/run.json")
    told = {
        "interrupted": "The run was interrupted by a signal (Ctrl-C, a scheduler or kill).",
        "stopped": "The run came to a fault; what was seen of it stands in environment/faults.json.",
        "running": "The run has no end: the suite itself was killed.",
        "failed": "The training processes could not be started or watched to their end.",
    }
    return Finding(
        "run-ended",
        Result.FAIL,
        told.get(outcome, f"The run's outcome is {outcome!r}; expected 'ended'."),
        outcome,
        limit="ended",
        evidence="environment/run.json",
        next_step="Run it again, with --resume where it wrote checkpoints; logs/node0/agent.log says what happened.",
    )


def ranks(plan: Plan, records: Mapping[int, Mapping[str, Any]], logs: tuple[str, ...]) -> Finding:
    """Whether every rank of the plan left its record and its log, and no other did.

    Args:
        plan: The plan.
        records: environment/rankR.json by rank.
        logs: Names of the rank logs.

    Returns:
        The finding of check run-ranks.
    """
    expected = set(range(plan.cards))
    logged = {int(name.rsplit("/rank", 1)[1].removesuffix(".log")) for name in logs}
    missing = sorted(expected - (set(records) & logged))
    extra = sorted((set(records) | logged) - expected)
    if len(logs) != len(logged):
        extra.append(-1)
    good = not missing and not extra
    fault = f"missing ranks: {missing or 'none'}; ranks that the plan does not have, or twice: {extra or 'none'}"
    return Finding(
        "run-ranks",
        Result.PASS if good else Result.FAIL,
        f"All {plan.cards} ranks left a record and a log." if good else f"Of {plan.cards} ranks, {fault}.",
        float(len(set(records) & logged)),
        "ranks",
        float(plan.cards),
        "the plan",
        evidence="environment/, logs/",
        next_step="" if good else "logs/node*/agent.log says why a rank did not start.",
    )


def config(plan: Plan, text: str) -> Finding:
    """Whether InternEvo's configuration is what the plan renders.

    Args:
        plan: The plan.
        text: configs/internevo.py.

    Returns:
        The finding of check run-config.
    """
    rendered = render_config(plan)
    if text == rendered:
        message = "InternEvo's configuration is what the plan renders."
        return Finding("run-config", Result.PASS, message, evidence="configs/internevo.py")
    changes = [
        line
        for line in difflib.unified_diff(rendered.splitlines(), text.splitlines(), n=0, lineterm="")
        if line[:1] in "+-" and line[:3] not in ("+++", "---")
    ]
    return Finding(
        "run-config",
        Result.FAIL,
        f"InternEvo's configuration is not what the plan renders; first of {len(changes)} differing lines: "
        f"{ascii(changes[0]) if changes else 'line ends'}.",
        evidence="configs/internevo.py",
        next_step="Change settings with --set only, and run again.",
    )


def source(workload: Workload, record: Mapping[str, Any]) -> Finding:
    """Whether the InternEvo that ran is a published one, unchanged; for an official workload, the pinned one.

    Args:
        workload: The workload.
        record: environment/run.json.

    Returns:
        The finding of check source-pinned.
    """
    told = record.get("internevo")
    told = told if isinstance(told, dict) else {}
    tag, pristine = told.get("tag"), told.get("pristine") is True
    name = f"{told.get('kind')} {told.get('version')}"
    good = pristine and (tag == workload.tag or not workload.official)
    return Finding(
        "source-pinned",
        Result.PASS if good else Result.FAIL,
        f"InternEvo is the published {name}, unchanged."
        if good
        else f"InternEvo is {name}, tag {tag}, {'unchanged' if pristine else 'not the published tree'}; "
        f"expected an unchanged {workload.tag}.",
        str(told.get("tree") or told.get("version")),
        limit=workload.tag,
        limit_source="the workload's spec",
        evidence="environment/run.json",
        next_step="" if good else f"Get it with: conformance internevo get --tag {workload.tag}",
    )


def patches(record: Mapping[str, Any], kept: Mapping[str, str], records: Mapping[int, Mapping[str, Any]]) -> Finding:
    """Whether every change to InternEvo is declared: run-time patches are this suite's, patch files are kept.

    A vendor's patch file leaves the check open: whether it is acceptable, a lab decides.

    Args:
        record: environment/run.json.
        kept: sha256 of the files under patches/, by name.
        records: environment/rankR.json by rank.

    Returns:
        The finding of check patches-declared.
    """
    known = {patch.id: patch.digest for patch in PATCHES}
    foreign = sorted(
        {
            str(applied.get("id"))
            for record in records.values()
            for applied in record.get("patches", [])
            if known.get(str(applied.get("id"))) != applied.get("sha256")
        }
    )
    declared = {str(file.get("name")): str(file.get("sha256")) for file in record.get("patch_files", [])}
    foreign += sorted({f"patches/{name}" for name, _ in declared.items() ^ kept.items()})
    if declared and not foreign:
        return Finding(
            "patches-declared",
            Result.ERROR,
            f"The vendor patched InternEvo with {', '.join(sorted(declared))}; a lab decides on that.",
            evidence="patches/",
            next_step="Run without --patch, or ask the lab to rule on the patch.",
        )
    good = not foreign and bool(records)
    used = sorted({str(p.get("id")) for record in records.values() for p in record.get("patches", [])})
    return Finding(
        "patches-declared",
        Result.PASS if good else Result.FAIL,
        f"Run-time patches, all this suite's own: {', '.join(used) or 'none'}."
        if good
        else f"Changes to InternEvo that are not declared, or with another digest: {', '.join(foreign)}."
        if foreign
        else "No rank recorded which patches it applied.",
        evidence="environment/",
        next_step="" if good else "Run with the unmodified suite; declare a change of your own with --patch.",
    )


def uniform(records: Mapping[int, Mapping[str, Any]]) -> Finding:
    """Whether all ranks ran the same Python, packages and kernels on the same model of device.

    Args:
        records: environment/rankR.json by rank.

    Returns:
        The finding of check run-uniform.
    """
    flat = [
        {name: record.get(name) for name in ("python", "packages", "kernels")}
        | {f"device {name}": record.get("device", {}).get(name) for name in ("plugin", "vendor", "model", "driver")}
        for record in records.values()
    ]
    differing = [name for name in (flat[0] if flat else ()) if len({repr(one[name]) for one in flat}) > 1]
    good = not differing and bool(records)
    return Finding(
        "run-uniform",
        Result.PASS if good else Result.FAIL,
        "All ranks ran the same software on the same model of device."
        if good
        else f"The ranks differ in: {', '.join(differing)}."
        if differing
        else "No rank recorded its software and device.",
        evidence="environment/",
        next_step="" if good else "Install the same image on every node; environment/rank*.json show each rank's.",
    )


# What these say decides the numbers that come out, or has to be the same on every rank of a group.
COMPUTING = ("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "NCCL_ALGO", "NCCL_PROTO", "PYTORCH_JIT")


def computing(record: Mapping[str, Any]) -> Finding:
    """Whether every node set the variables alike that decide what is computed.

    Args:
        record: environment/run.json.

    Returns:
        The finding of check run-computing.
    """
    good = "No node set a variable that decides what is computed otherwise than node 0."
    return _set_alike("run-computing", record, good, lambda name: name in COMPUTING)


def environment(record: Mapping[str, Any]) -> Finding:
    """Whether every node set the other recorded variables alike.

    Args:
        record: environment/run.json.

    Returns:
        The finding of check run-environment.
    """
    good = "No node set another recorded variable otherwise than node 0."
    return _set_alike("run-environment", record, good, lambda name: name not in COMPUTING)


def _set_alike(check: str, record: Mapping[str, Any], good: str, is_meant: Callable[[str], bool]) -> Finding:
    ours = record.get("environment", {})
    faults = [
        f"{name} is {_value(theirs)} on node {node} ({record.get('hosts', {}).get(node, 'unnamed')}), and "
        f"{_value(ours.get(name))} on node 0"
        for node, variables in sorted(record.get("environment_differs", {}).items())
        for name, theirs in sorted(variables.items())
        if is_meant(name)
    ]
    return Finding(
        check,
        Result.FAIL if faults else Result.PASS,
        f"{'; '.join(faults)}." if faults else good,
        float(len(faults)),
        "variables",
        0.0,
        "node 0",
        evidence="environment/run.json",
        next_step="Set the same variables on every node." if faults else "",
    )


def _value(value: str | None) -> str:
    return "not set" if value is None else quoted(value[:100])


def attempts(digests: Sequence[str], entries: Sequence[Mapping[str, Any]], resumable: bool = True) -> Finding:
    """Whether the earlier attempts of a resumed run are those that it went on from by the journal, as they left them.

    Args:
        digests: Digest of each earlier attempt's evidence, the oldest first.
        entries: The journal, whose last attempt is this run.
        resumable: Whether the workload leaves checkpoints to go on from.

    Returns:
        The finding of check run-attempts.
    """
    made = journal.attempts(entries)
    chain = made[-1].chain() if made else ()
    if not digests and not chain:
        return Finding("run-attempts", Result.PASS, "The run was made in one attempt.", 0.0, "faults", 0.0)
    # An attempt whose supervisor was killed too has a start and no end; nobody could quote what it left.
    killed = [one.run for one in chain if one.evidence is None and one.outcome is None]
    pairs = list(zip(digests, chain, strict=False))
    faults = [
        f"segment{number} is not what {quoted(one.run)} left"
        for number, (digest, one) in enumerate(pairs)
        if one.evidence != digest and one.run not in killed
    ]
    if len(digests) != len(chain):
        faults.append(f"the evidence holds {len(digests)} of them (segment0 on), and the journal shows {len(chain)}")
    if not resumable:
        faults.append("this workload leaves no checkpoint to go on from")
    told = f"{len(chain) - len(killed)} of {len(chain)} earlier attempts are as the journal quotes them"
    return Finding(
        "run-attempts",
        Result.FAIL if faults else Result.PASS,
        f"The earlier attempts are not those of the journal: {'; '.join(faults)}."
        if faults
        else f"{told}{f', {len(killed)} were killed before they could be quoted' if killed else ''}.",
        float(len(faults)),
        "faults",
        0.0,
        "the journal",
        evidence="journal.jsonl",
        next_step="Resume the run where it was made, with the reports folder that holds its journal." if faults else "",
    )


def no_steps(error: ConformanceError) -> Finding:
    """The finding for a run whose logs show no training step, or show them in more than one log.

    Args:
        error: What the search for them said.

    Returns:
        The finding of check run-steps.
    """
    return Finding("run-steps", Result.FAIL, error.message, evidence="logs/", next_step=error.next_step)


def steps_found(log: str) -> Finding:
    """The finding for a run whose metrics stand in exactly one log.

    Args:
        log: Its name.

    Returns:
        The finding of check run-steps.
    """
    return Finding("run-steps", Result.PASS, f"The training metrics stand in {log}.", log, evidence=log)
