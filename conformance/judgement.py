"""From evidence to findings and a verdict: the one function that the vendor's run and the lab's verifier share."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from conformance import evidence
from conformance.analysis import Limits, RunAnalysis, analyze_logs
from conformance.checks import run as run_checks
from conformance.checks import supervision
from conformance.checks.finding import Finding, Result, Verdict, verdict
from conformance.errors import EvidenceError
from conformance.evidence import Evidence, Request, request_from_json
from conformance.internevo.log import parse_log
from conformance.plan import Plan, Topology, make_plan
from conformance.spec import load_checks, load_workload


@dataclass(frozen=True)
class Judgement:
    """What one run's evidence says.

    Args:
        plan: The plan, made again from the request.
        findings: Every check's finding.
        metrics: Figures recomputed from the raw log, as ``analyze --json`` gives them for one run.
        verdict: What may be claimed.
        steps: step, tgs and loss of every logged step, for drawing.
    """

    plan: Plan
    findings: tuple[Finding, ...]
    metrics: Mapping[str, Any]
    verdict: Verdict
    steps: Sequence[Mapping[str, float]] = ()


# The columns that a report draws.
DRAWN = ("step", "tgs", "loss")


def plan_of(request: Request) -> Plan:
    """Plan a request.

    Args:
        request: What was asked for.

    Returns:
        The plan.

    Raises:
        ConformanceError: The workload is unknown or the request breaks the benchmark's rules.
    """
    return make_plan(
        load_workload(request.workload),
        Topology(request.nodes, request.devices_per_node),
        request.overrides,
        seed=request.seed,
    )


def judge(files: Evidence) -> Judgement:
    """Judge a run from nothing but its evidence and the spec.

    Args:
        files: The run's evidence.

    Returns:
        The judgement.

    Raises:
        ConformanceError: The evidence is too broken to say which plan it claims to follow.
    """
    plan = plan_of(request_from_json(evidence.read_json(files, evidence.REQUEST)))
    record = evidence.read_json(files, evidence.RUN)
    ranks = {
        int(name.removeprefix("environment/rank").removesuffix(".json")): evidence.read_json(files, name)
        for name in files.names()
        if name.startswith("environment/rank") and name.endswith(".json")
    }
    with files.open(evidence.CONFIG) as stream:
        config = stream.read(evidence.MAX_JSON_BYTES).decode(errors="replace")
    logs = rank_logs(files)
    findings = [
        run_checks.ended(record),
        run_checks.ranks(plan, ranks, logs),
        run_checks.config(plan, config),
        run_checks.source(plan.workload, record),
        run_checks.patches(record, kept_patches(files), ranks),
        run_checks.uniform(ranks),
        *supervision.faults(_optional(files, evidence.FAULTS)),
        _even(files),
    ]
    metrics: dict[str, Any] = {}
    steps: list[dict[str, float]] = []
    try:
        name, analysed = analyse_logs(files, plan, logs, Limits(device=_model(ranks)))
    except EvidenceError as error:
        findings.append(run_checks.no_steps(error))
    else:
        findings.append(run_checks.steps_found(name))
        findings += analysed.findings
        metrics = {**analysed.to_json(), "log": name}
        del metrics["findings"]  # they stand beside the metrics, with those of the other checks
        steps = [dict(zip(DRAWN, row, strict=True)) for row in analysed.steps[list(DRAWN)].itertuples(index=False)]
    checks = load_checks()
    required = [
        check.id for check in checks.values() if check.severity == "required" and plan.workload.kind in check.applies
    ]
    # What is advisory is reported with its own result, and decides nothing.
    decisive = [found for found in findings if checks[found.check].severity == "required"]
    return Judgement(plan, tuple(findings), metrics, verdict(decisive, required, plan.workload.official), steps)


def kept_patches(files: Evidence) -> dict[str, str]:
    """The vendor's patch files among the evidence.

    Args:
        files: The run's evidence.

    Returns:
        sha256, hex, by file name.
    """
    kept = {}
    for name in files.names():
        if name.startswith("patches/"):
            with files.open(name) as stream:
                kept[name.removeprefix("patches/")] = hashlib.sha256(stream.read()).hexdigest()
    return kept


def _even(files: Evidence) -> Finding:
    names = [name for name in files.names() if name.startswith("environment/telemetry-node")]
    with contextlib.ExitStack() as stack:
        lines = {name: io.TextIOWrapper(stack.enter_context(files.open(name)), errors="replace") for name in names}
        return supervision.even(lines)


def _optional(files: Evidence, name: str) -> dict[str, Any] | None:
    return evidence.read_json(files, name) if name in files.names() else None


def rank_logs(files: Evidence) -> tuple[str, ...]:
    """Names of the logs that ranks wrote.

    Args:
        files: The run's evidence.

    Returns:
        Names such as logs/node0/rank0.log.
    """
    return tuple(n for n in files.names() if n.startswith("logs/node") and n.rsplit("/", 1)[-1].startswith("rank"))


def _model(ranks: Mapping[int, Mapping[str, Any]]) -> str | None:
    """The model of the devices, by which their floors are found; all ranks have the same, or run-uniform fails."""
    return next((str(record["device"]["model"]) for record in ranks.values() if "model" in record["device"]), None)


def analyse_logs(files: Evidence, plan: Plan, logs: tuple[str, ...], limits: Limits) -> tuple[str, RunAnalysis]:
    """Find the log that carries the training metrics and analyse it.

    Args:
        files: The run's evidence.
        plan: What the run should have done.
        logs: Names of the rank logs.
        limits: What the figures are held against, besides the plan.

    Returns:
        The log's name and its analysis, with the exceptions of all the other ranks' logs in it.

    Raises:
        EvidenceError: No log, or more than one, shows training steps; or one shows several runs.
    """
    parsed = {}
    for name in logs:
        with files.open(name) as stream:
            parsed[name] = parse_log(stream)
    speaking = [name for name, runs in parsed.items() if any(len(run.steps) for run in runs)]
    if len(speaking) > 1:
        raise EvidenceError(f"The training metrics stand in {len(speaking)} logs: {', '.join(speaking)}; expected one.")
    # Without any step the first rank's log still tells which exception came first.
    chosen = speaking[0] if speaking else next((name for name in logs if parsed[name]), "")
    others = [event for name, runs in parsed.items() if name != chosen for run in runs for event in run.exceptions]
    runs = analyze_logs(parsed.get(chosen, []), plan=plan, limits=limits, others=others)
    if len(runs) != 1 or not speaking:
        told = next((f.message for run in runs for f in run.findings if f.result is not Result.PASS), "")
        found = f"{len(runs)} runs stand in {chosen}; expected one." if speaking else "No log shows a training step."
        raise EvidenceError(f"{found} {told}".strip(), f"Read the end of {chosen or 'logs/node0/agent.log'}.")
    return chosen, runs[0]
