"""One run from request to signed report: plan, launch, evidence, judgement, report."""

from __future__ import annotations

import errno
import shutil
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from conformance import evidence, journal
from conformance.errors import EvidenceError, LaunchError
from conformance.evidence import Request, RunDirectory
from conformance.internevo.config import render_config
from conformance.internevo.source import Source, find_source
from conformance.internevo.worker import Settings
from conformance.judgement import Judgement, judge, plan_of
from conformance.launch import torchrun
from conformance.launch.supervise import Ending, Step, supervise
from conformance.plan import Plan
from conformance.report.build import write_report

# A performance run leaves some MiB of logs; far less than this free is a disk that will be full before the end.
MIN_FREE_BYTES = 256 << 20


@dataclass(frozen=True)
class Site:
    """Where and with what a run is made.

    Args:
        device: Name of the device plugin.
        internevo: Root of an InternEvo checkout; None for the installed wheel.
        reports: The reports folder, which holds run directories and the journal.
        run_dir: This run's directory; None to make one in ``reports``.
        signing_key: Private key file; None for this machine's own key.
        master_port: Rendezvous port; None to find a free one.
    """

    device: str
    internevo: Path | None
    reports: Path
    run_dir: Path | None = None
    signing_key: Path | None = None
    master_port: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of one run.

    Args:
        run: Its directory, with report and evidence.
        judgement: Findings, metrics and verdict.
        ending: How the launcher ended.
        report_id: sha256 of the report's payload.
        key_id: Id of the key that signed it.
        self_issued: Whether that key is this machine's own, vouched for by nobody.
    """

    run: Path
    judgement: Judgement
    ending: Ending
    report_id: str
    key_id: str
    self_issued: bool


def run_workload(request: Request, site: Site, watch: Callable[[Plan], Callable[[Step], None]]) -> Outcome:
    """Make a run and report on it.

    Args:
        request: What to run.
        site: Where and with what.
        watch: Called with the plan when the run starts; gives what to call for each step.

    Returns:
        The outcome, also of a run that failed or was interrupted.

    Raises:
        ConformanceError: The run could not be started, or its evidence not be written.
    """
    plan = plan_of(request)
    source = find_source(site.internevo, plan.workload.tag)
    port = torchrun.free_port() if site.master_port is None else site.master_port
    torchrun.require_free_port(port)
    run = evidence.create_run_directory(site.run_dir or _new_run_name(site.reports, request.workload))
    try:
        _require_space(run)
        ending = _train(request, plan, source, site, run, port, watch(plan))
        judgement = judge(RunDirectory(run))
        report_id, key_id, self_issued = write_report(run, judgement, site.signing_key)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise EvidenceError(
            f"The disk that holds {run} is full; what was written until then is kept there.",
            "Free space or choose another --run-dir, and run again.",
        ) from error
    return Outcome(run, judgement, ending, report_id, key_id, self_issued)


def _train(
    request: Request, plan: Plan, source: Source, site: Site, run: Path, port: int, on_step: Callable[[Step], None]
) -> Ending:
    rendezvous = torchrun.Rendezvous("127.0.0.1", port, 0)
    evidence.write_json(run, evidence.REQUEST, request.to_json())
    evidence.write_json(run, evidence.PLAN, plan.to_json())
    (run / evidence.CONFIG).write_text(render_config(plan), encoding="utf-8")
    Settings(site.device, str(source.root) if source.kind == "checkout" else None).write(run)
    command = torchrun.command(
        run,
        nodes=request.nodes,
        devices_per_node=request.devices_per_node,
        rendezvous=rendezvous,
        config=f"../{evidence.CONFIG}",
        seed=request.seed,
    )
    variables = torchrun.environment(run)
    record: dict[str, Any] = {
        "command": [Path(command[0]).name, *("RUN" if part == str(run) else part for part in command[1:])],
        "environment": torchrun.recorded(variables),
        "host": socket.gethostname(),
        "internevo": _describe(source),
        "started": _now(),
        "outcome": "running",
    }
    evidence.write_json(run, evidence.RUN, record)
    attempts = site.reports / evidence.JOURNAL
    files = RunDirectory(run)
    plan_digest = evidence.digests(files)[evidence.PLAN]
    journal.append(attempts, "started", run.name, workload=request.workload, plan=plan_digest)
    outcome, ending = "failed", None
    try:
        ending = supervise(command, variables, run, 0, on_step)
        outcome = "interrupted" if ending.interrupted else "ended"
    finally:
        # Also when starting failed: an attempt that left no entry would be an attempt hidden.
        record |= {"ended": _now(), "outcome": outcome, "exit_code": None if ending is None else ending.exit_code}
        evidence.write_json(run, evidence.RUN, record)
        journal.append(attempts, "ended", run.name, outcome=outcome, evidence=evidence.attempt_digest(files))
        shutil.copyfile(attempts, run / evidence.JOURNAL)
    return ending


def _describe(source: Source) -> dict[str, Any]:
    """The source as evidence: what it is, not where it lies on this machine."""
    fields = asdict(source)
    del fields["root"]
    return fields


def _new_run_name(reports: Path, workload: str) -> Path:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return reports / f"{stamp}-{workload}"


def _require_space(run: Path) -> None:
    free = shutil.disk_usage(run).free
    if free < MIN_FREE_BYTES:
        raise LaunchError(
            f"The disk that holds {run} has {free >> 20} MiB free; a run needs at least {MIN_FREE_BYTES >> 20} MiB.",
            "Free space or choose another --run-dir.",
        )


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
