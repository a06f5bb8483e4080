"""From a run directory to a bundle."""

from __future__ import annotations

from pathlib import Path

from conformance import evidence
from conformance.bundle import archive
from conformance.errors import EvidenceError
from conformance.evidence import RunDirectory
from conformance.report import dsse, statement


def pack(run: Path, output: Path) -> archive.BundleIndex:
    """Write the bundle of one run: its report and exactly the files that the report vouches for.

    Args:
        run: Run directory with a report.
        output: The bundle to write, .tar or .tar.gz.

    Returns:
        The index of what was written.

    Raises:
        EvidenceError: The run has no report, or a file was changed, added or removed since it was signed.
        ArchiveError: The bundle cannot be written.
    """
    report = run / evidence.REPORT
    if not report.is_file():
        raise EvidenceError(
            f"{run} holds no {evidence.REPORT}; expected the directory of a finished run.",
            "Name a folder under reports/ that the suite's summary printed.",
        )
    envelope = report.read_bytes()
    signed = statement.load(dsse.parse(envelope).payload).subjects
    files = RunDirectory(run)
    present = set(files.names())
    if faults := sorted(present ^ set(signed)):
        raise EvidenceError(
            f"{run} differs from its report: {', '.join(faults[:5])} was added or removed after signing.",
            "Restore the run directory; a report is never signed again over other evidence.",
        )
    # Before writing: an older bundle of that name is not given up for one that would be refused.
    if changed := sorted(name for name, digest in evidence.digests(files).items() if signed[name] != digest):
        raise EvidenceError(
            f"{run} differs from its report: {', '.join(changed[:5])} was changed after signing; nothing was written.",
            "Restore the run directory; a report is never signed again over other evidence.",
        )
    members: dict[str, Path | bytes] = {name: run / name for name in present}
    return archive.write_bundle(output, {evidence.REPORT: envelope, **members})
