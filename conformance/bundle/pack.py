"""From run directories to a bundle: of one run, or a submission of several."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conformance import evidence, journal
from conformance.bundle import archive, submission, system
from conformance.errors import EvidenceError
from conformance.evidence import RunDirectory
from conformance.report import dsse, keys, statement
from conformance.report.build import signed_now, this_suite
from conformance.report.statement import SUBMISSION, Statement
from conformance.strictjson import quoted


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
    report = read_report(run)
    _require_unchanged(run, report)
    return archive.write_bundle(output, dict(_members(run, report, "")))


def read_reports(runs: Sequence[Path]) -> dict[str, Statement]:
    """Read the reports of the runs of one submission.

    Args:
        runs: Run directories.

    Returns:
        Their reports by the name of the run, which is that of its directory.

    Raises:
        EvidenceError: A run has no report, or two have the same name.
        SignatureError: A report is malformed.
    """
    reports: dict[str, Statement] = {}
    for run in runs:
        name = run.resolve().name
        if name in reports:
            raise EvidenceError(f"Two runs are called {quoted(name)}; expected different names.", "Rename one folder.")
        reports[name] = read_report(run)
    return reports


def read_report(run: Path) -> Statement:
    """Read the report of a finished run; its signature is the verifier's to check.

    Args:
        run: Run directory.

    Returns:
        The report.

    Raises:
        EvidenceError: The directory has none, or none that is complete.
        SignatureError: It is malformed.
    """
    report = run / evidence.REPORT
    if not report.is_file():
        raise EvidenceError(
            f"{run} holds no {evidence.REPORT}; expected the directory of a finished run.",
            "Name a folder under reports/ that the suite's summary printed.",
        )
    return statement.load(dsse.parse(report.read_bytes()).payload)


def submit(
    runs: Sequence[Path],
    vendor: str,
    given: Mapping[str, object],
    key: Ed25519PrivateKey,
    self_issued: bool,
    output: Path,
) -> tuple[archive.BundleIndex, Statement]:
    """Write a submission: several runs of one system under one signed statement.

    Args:
        runs: Run directories, each with its report.
        vendor: Who submits, as in the lab's policy.
        given: What the vendor states of the system; the evidence tells the rest.
        key: The vendor's private key.
        self_issued: Whether that key is this machine's own.
        output: The bundle to write, .tar or .tar.gz.

    Returns:
        The index of what was written, and the submission's statement.

    Raises:
        EvidenceError: A run has no report or was changed since; two have one name, answer different challenges, or one
            goes on from the other; the system description is incomplete or contradicts the evidence.
        SignatureError: The statement breaks its schema.
        ArchiveError: The bundle cannot be written.
    """
    if not vendor.strip() or not vendor.isprintable():
        raise EvidenceError(f"The vendor's name is {quoted(vendor)}; expected printable text.", "Give it another.")
    reports = read_reports(runs)
    facts = system.complete(given, [report.predicate for report in reports.values()])
    members: dict[str, Path | bytes] = {
        submission.SYSTEM: submission.system_file(facts),
        evidence.SIGNER: keys.public_pem(key.public_key()),
    }
    digests = {name: _sha256(content) for name, content in members.items()}
    for run, (name, report) in zip(runs, reports.items(), strict=True):
        _require_unchanged(run, report)
        prefix = f"{submission.RUNS}{name}/"
        members |= dict(_members(run, report, prefix))
        digests |= {f"{prefix}{file}": digest for file, digest in report.subjects.items()}
        digests[f"{prefix}{evidence.REPORT}"] = _sha256(members[f"{prefix}{evidence.REPORT}"])
        if report.predicate["challenge"] is not None:
            members[evidence.CHALLENGE] = (run / evidence.CHALLENGE).read_bytes()
            digests[evidence.CHALLENGE] = report.subjects[evidence.CHALLENGE]
    _require_last_attempts([run / evidence.JOURNAL for run in runs], list(reports))
    predicate = {
        "suite": this_suite(),
        **submission.describe(vendor, facts, reports),
        "signer": signed_now(self_issued),
    }
    payload = statement.build(predicate, digests, SUBMISSION)
    submitted = submission.load(payload)
    if wrong := submission.contradictions(submitted, reports):  # what no verifier would take is not written
        raise EvidenceError(f"The submission contradicts its runs: {'; '.join(wrong)}.", "Submit them apart.")
    members[submission.STATEMENT] = dsse.sign(payload, statement.PAYLOAD_TYPE, [key])
    return archive.write_bundle(output, members), submitted


def _members(run: Path, report: Statement, prefix: str) -> Iterator[tuple[str, Path | bytes]]:
    yield f"{prefix}{evidence.REPORT}", (run / evidence.REPORT).read_bytes()
    for name in report.subjects:
        yield f"{prefix}{name}", run / name


def _sha256(content: Path | bytes) -> str:
    assert isinstance(content, bytes)
    return hashlib.sha256(content).hexdigest()


def _require_last_attempts(journals: Sequence[Path], names: Sequence[str]) -> None:
    """What an attempt left is in the one that went on from it; by itself it is a run that did not come to its end."""
    for path in journals:
        for attempt in journal.attempts(journal.parse(path.read_bytes()).entries):
            earlier = [one.run for one in attempt.chain() if one.run in names]
            if earlier and attempt.run in names:
                raise EvidenceError(
                    f"{quoted(attempt.run)} goes on from {quoted(earlier[-1])} and holds its evidence; expected the "
                    "last attempt alone.",
                    f"Leave {quoted(earlier[-1])} out.",
                )


def _require_unchanged(run: Path, report: Statement) -> None:
    """Before writing: an older bundle of that name is not given up for one that would be refused."""
    files = RunDirectory(run)
    if faults := sorted(set(files.names()) ^ set(report.subjects)):
        raise EvidenceError(
            f"{run} differs from its report: {', '.join(faults[:5])} was added or removed after signing.",
            "Restore the run directory; a report is never signed again over other evidence.",
        )
    digests = evidence.digests(files)
    if changed := sorted(name for name, digest in digests.items() if report.subjects[name] != digest):
        raise EvidenceError(
            f"{run} differs from its report: {', '.join(changed[:5])} was changed after signing; nothing was written.",
            "Restore the run directory; a report is never signed again over other evidence.",
        )
