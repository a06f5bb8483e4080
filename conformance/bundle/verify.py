"""Verifying a bundle: nothing in it is trusted, executed or extracted, and every figure is computed again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from conformance import __version__, evidence, journal
from conformance.bundle import archive
from conformance.bundle.archive import BundleIndex
from conformance.checks.finding import Verdict
from conformance.errors import ArchiveError, ConformanceError, EvidenceError, SignatureError
from conformance.judgement import judge
from conformance.report import dsse, keys, statement
from conformance.report.build import build_predicate, suite_digest
from conformance.report.statement import Statement

# Two machines may differ in the last bits of a logarithm or a sum; a forgery that small changes no verdict.
RELATIVE_TOLERANCE = 1e-9

MAX_PUBLIC_KEY_BYTES = 4096

RECOMPUTED = "Do the raw logs give the claimed figures?"
OTHER_SUITE = "Verify with the suite that made the report."


@dataclass(frozen=True)
class BundleEvidence:
    """The evidence of a run inside a bundle.

    Args:
        index: The bundle's index.
    """

    index: BundleIndex

    def names(self) -> tuple[str, ...]:
        """Every file but the report.

        Returns:
            Names, sorted.
        """
        return tuple(sorted(name for name in self.index.members if name != evidence.REPORT))

    def open(self, name: str) -> BinaryIO:
        """Open a file as a stream.

        Args:
            name: One of :meth:`names`.

        Returns:
            The stream.
        """
        return archive.open_member(self.index, name)


@dataclass(frozen=True)
class Answer:
    """The answer to one of the verifier's questions.

    Args:
        id: Name of the question.
        question: The question, in words.
        answer: "yes", "no" or "open".
        message: One sentence on why.
    """

    id: str
    question: str
    answer: str
    message: str


@dataclass(frozen=True)
class Verification:
    """What verifying a bundle established.

    Args:
        verdict: What may be claimed; NOT_CONFORMANT when any answer is no.
        answers: The questions in order; one that could not be reached is absent.
        report_id: sha256 of the report's payload; empty when there is none to read.
        predicate: The report's content, as verified; empty when it was not.
    """

    verdict: Verdict
    answers: tuple[Answer, ...]
    report_id: str = ""
    predicate: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object of ``verify --json``.

        Returns:
            Verdict, questions, report id and findings.
        """
        return {
            "verdict": self.verdict.value,
            "questions": [vars(answer) for answer in self.answers],
            "report_id": self.report_id,
            "findings": self.predicate.get("findings", []),
        }


class _RefusedError(Exception):
    """A question was answered no, and what comes after it cannot be asked."""


def verify(path: Path) -> Verification:
    """Verify a bundle as far as that needs no decision about whom to trust.

    Args:
        path: The bundle.

    Returns:
        The answers and the verdict.

    Raises:
        ArchiveError: There is no such file, or it cannot be read.
    """
    if not path.is_file():
        raise ArchiveError(f"There is no bundle {path}.", "Name a file that `conformance bundle` wrote.")
    answers: list[Answer] = []
    try:
        index = _ask(answers, "archive", "Is the archive sound?", lambda: _archive(path))
        signed = _ask(answers, "signature", "Does the signature hold?", lambda: _signature(index))
        _ask(answers, "files", "Is every file accounted for?", lambda: _files(index, signed))
        answers.append(_suite(signed))
        _ask(answers, "recomputed", RECOMPUTED, lambda: _recomputed(index, signed))
        _ask(answers, "journal", "Is the journal of attempts whole?", lambda: _journal(index))
    except _RefusedError:
        if [(answer.id, answer.answer) for answer in answers[-2:]] == [("suite", "open"), ("recomputed", "no")]:
            # Another suite may find more or less in an honest log; only the one that made the report can refute it.
            answers[-1] = Answer("recomputed", RECOMPUTED, "open", f"{answers[-1].message} {OTHER_SUITE}")
            return Verification(Verdict.INCONCLUSIVE, tuple(answers), signed.report_id, signed.predicate)
        return Verification(Verdict.NOT_CONFORMANT, tuple(answers))
    answers.append(
        Answer("trust", "Is the signer trusted?", "open", "No policy was given, so nobody vouches for the key.")
    )
    return Verification(Verdict(signed.predicate["verdict"]), tuple(answers), signed.report_id, signed.predicate)


def _ask(answers: list[Answer], name: str, question: str, check: Callable[[], tuple[str, Any]]) -> Any:
    try:
        message, value = check()
    except ConformanceError as error:
        answers.append(Answer(name, question, "no", str(error)))
        raise _RefusedError from error
    answers.append(Answer(name, question, "yes", message))
    return value


def _archive(path: Path) -> tuple[str, BundleIndex]:
    index = archive.read_index(path)
    size = sum(member.size for member in index.members.values())
    return f"{len(index.members)} files, {size:,} bytes, nothing else.", index


def _signature(index: BundleIndex) -> tuple[str, Statement]:
    # The key comes with the bundle: it proves that one signer vouches for all of it, not who that signer is.
    key = keys.load_public_key(archive.read_member(index, evidence.SIGNER, MAX_PUBLIC_KEY_BYTES))
    envelope = archive.read_member(index, evidence.REPORT, dsse.MAX_ENVELOPE_BYTES)
    name = keys.key_id(key)
    verified = dsse.verify(envelope, {name: key}, payload_type=statement.PAYLOAD_TYPE)
    signed = statement.load(verified.payload)
    issued = "self-issued key" if signed.predicate["signer"]["self_issued"] else "key"
    return f"Ed25519, {issued} {name[:16]}, report {signed.report_id[:16]}.", signed


def _files(index: BundleIndex, signed: Statement) -> tuple[str, None]:
    present = {name: member.sha256 for name, member in index.members.items() if name != evidence.REPORT}
    faults = [
        *(f"{name} was removed" for name in sorted(signed.subjects.keys() - present.keys())),
        *(f"{name} was added" for name in sorted(present.keys() - signed.subjects.keys())),
        *(
            f"{name} was changed"
            for name in sorted(present)
            if signed.subjects.get(name, present[name]) != present[name]
        ),
    ]
    if faults:
        raise SignatureError(f"The bundle is not what was signed: {'; '.join(faults[:5])}.")
    return f"All {len(present)} files have the signed SHA-256.", None


def _suite(signed: Statement) -> Answer:
    claimed = signed.predicate["suite"]
    made = f"suite {claimed['version']}, tree {claimed['tree_digest'][:16]}"
    here = f"suite {__version__}, tree {suite_digest()[:16]}"
    question = "Was the report made by this suite?"
    if (claimed["version"], claimed["tree_digest"]) == (__version__, suite_digest()):
        return Answer("suite", question, "yes", f"By {made}, as installed here.")
    return Answer("suite", question, "open", f"By {made}; judged here by {here}, which may find more or less.")


def _recomputed(index: BundleIndex, signed: Statement) -> tuple[str, None]:
    files = BundleEvidence(index)
    again = build_predicate(files, judge(files), signed.predicate["signer"]["self_issued"])
    again["suite"] = signed.predicate["suite"]  # which suite that was, the question before this one asks
    if faults := list(differences(signed.predicate, again)):
        raise EvidenceError(f"Computed again from the raw logs, the report differs at {'; '.join(faults[:5])}.")
    count = len(again["findings"])
    return f"Plan, figures and {count} findings computed again from the raw logs equal the report's.", None


def _journal(index: BundleIndex) -> tuple[str, None]:
    attempts = journal.parse(archive.read_member(index, evidence.JOURNAL, journal.MAX_JOURNAL_BYTES))
    last = attempts.entries[-1] if attempts.entries else {}
    if last.get("event") != "ended" or last.get("evidence") != evidence.attempt_digest(BundleEvidence(index)):
        raise EvidenceError("The journal's last entry is not the end of this run with this evidence.")
    starts = [entry for entry in attempts.entries if entry.get("event") == "started"]
    same = sum(entry.get("workload") == starts[-1].get("workload") for entry in starts)
    return f"Its chain holds: {len(starts)} started runs, {same} of this workload, this one the last.", None


def differences(claimed: Any, again: Any, place: str = "report") -> Iterator[str]:
    """Where two JSON values differ by more than the rounding of two machines.

    Args:
        claimed: One value.
        again: The other.
        place: Name of the values, for the result.

    Yields:
        A phrase for each difference.
    """
    if isinstance(claimed, dict) and isinstance(again, dict):
        for name in sorted(claimed.keys() | again.keys()):
            if name not in claimed or name not in again:
                yield f"{place}.{name} (only in one)"
            else:
                yield from differences(claimed[name], again[name], f"{place}.{name}")
    elif isinstance(claimed, list) and isinstance(again, list) and len(claimed) == len(again):
        for number, (first, second) in enumerate(zip(claimed, again, strict=True)):
            yield from differences(first, second, f"{place}[{number}]")
    elif isinstance(claimed, float) and isinstance(again, float | int) and not isinstance(again, bool):
        if not math.isclose(claimed, again, rel_tol=RELATIVE_TOLERANCE):
            yield f"{place} (claimed {claimed!r}, computed {again!r})"
    elif type(claimed) is not type(again) or claimed != again:
        yield f"{place} (claimed {ascii(claimed)[:80]}, computed {ascii(again)[:80]})"
