"""One preflight as an attempt of its reports folder: measured, journalled, redacted, judged and signed, as a run is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from conformance import evidence, journal
from conformance.devices import Device
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.preflight.node import run_on_all_nodes
from conformance.preflight.session import Request
from conformance.redaction import redact_run
from conformance.report.build import write_report

# What the journal calls it: an attempt at a workload it is not.
PREFLIGHT = "preflight"


def attempt(
    device: Device,
    request: Request,
    run: Path,
    reports: Path,
    signing_key: Path | None,
    told: Callable[[str], None] = lambda line: None,
) -> str:
    """Measure on all nodes and leave a signed report in the run directory, on node 0.

    Args:
        device: The device plugin.
        request: What is to be measured.
        run: An empty run directory.
        reports: The reports folder, which holds the journal.
        signing_key: Private key file; None for this machine's own key.
        told: Called with what begins, in words.

    Returns:
        The report's id; empty on a node that another one judges.

    Raises:
        ConformanceError: The nodes could not be started, one of them failed, or the report cannot be signed.
    """
    if request.place.node_rank > 0:
        run_on_all_nodes(device, request, run, told)
        return ""
    attempts = reports / evidence.JOURNAL
    journal.append(attempts, "started", run.name, workload=PREFLIGHT, shapes=request.workload)
    outcome = "failed"
    try:
        run_on_all_nodes(device, request, run, told)
        outcome = "ended"
    except KeyboardInterrupt:
        outcome = "interrupted"
        raise
    finally:
        redact_run(run)
        digest = evidence.attempt_digest(RunDirectory(run))
        journal.append(attempts, "ended", run.name, outcome=outcome, evidence=digest)
        shutil.copyfile(attempts, run / evidence.JOURNAL)
    return write_report(run, judge(RunDirectory(run)), signing_key)[0]
