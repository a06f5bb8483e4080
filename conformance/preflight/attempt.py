"""One preflight as an attempt of its reports folder: measured, journalled, redacted, judged and signed, as a run is."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from conformance import evidence, journal
from conformance.claim import claimed
from conformance.devices import Device
from conformance.errors import ConformanceError, LaunchError
from conformance.evidence import RunDirectory
from conformance.launch.node import signals_heeded
from conformance.launch.supervise import Interrupted
from conformance.preflight.node import run_on_all_nodes
from conformance.preflight.session import Request
from conformance.redaction import redact_run
from conformance.report.build import report_on

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
    refused = LaunchError(f"{run} is in use.")
    with claimed(run / "work", refused), contextlib.ExitStack() as afterwards:
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
            why = sys.exc_info()[1]
            afterwards.enter_context(_signals_wait(told))
            _record_end(run, attempts, outcome, str(why) if isinstance(why, ConformanceError) else "")
        return report_on(run, signing_key)[1]


@contextlib.contextmanager
def _signals_wait(told: Callable[[str], None]) -> Iterator[None]:
    """Heed a signal that comes meanwhile at the end: what was measured is signed first."""
    came: list[str] = []

    def heed(signal: str) -> None:
        came.append(signal)
        told(f"{signal} came after the end: it is heeded once the report is signed")

    with signals_heeded(heed):
        yield
    if came:
        raise Interrupted(came[0])


def _record_end(run: Path, attempts: Path, outcome: str, why: str) -> None:
    """Redact what was measured; the journal learns the end in any case, or the attempt would seem to have had none."""
    try:
        redact_run(run)
    except OSError as error:
        raise evidence.unwritable(run, why, error) from error
    finally:
        digest = evidence.attempt_digest(RunDirectory(run))
        journal.append(attempts, "ended", run.name, outcome=outcome, evidence=digest)
    shutil.copyfile(attempts, run / evidence.JOURNAL)
