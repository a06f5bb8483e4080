"""Verifying a bundle: nothing in it is trusted, executed or extracted, and every figure is computed again.

Here the archive is read and its facts are gathered; what they are worth, :mod:`conformance.bundle.trust` judges.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from conformance import evidence, journal, strictjson
from conformance.bundle import archive, submission
from conformance.bundle.archive import BundleIndex
from conformance.bundle.facts import Answer, BundleFacts, RunFacts
from conformance.bundle.policy import Bench
from conformance.bundle.trust import QUESTIONS, judge_trust
from conformance.checks.finding import Finding, Verdict
from conformance.errors import ArchiveError, ConformanceError, EvidenceError, SignatureError
from conformance.judgement import MAX_PREFLIGHT_BYTES, Judgement, judge, newest_ceilings
from conformance.report import dsse, keys, statement
from conformance.report.build import build_predicate, finding_json
from conformance.report.statement import Statement

# Two machines may differ in the last bits of a logarithm or a sum; a forgery that small changes no verdict.
RELATIVE_TOLERANCE = 1e-9

MAX_PUBLIC_KEY_BYTES = 4096
# Of a thousand devices a report has half a MiB, else some 25 KiB.
MAX_ENVELOPES_BYTES = 64 << 20
# What JSON may take in memory once it is parsed: at once, and in all. The record of a rank takes 20 KB, those of 4096
# ranks 83 MB; the tasks of a preflight 0.8 MB of two devices. Of several preflights only one's tasks are held at once.
MAX_PARSED_BYTES = 768 << 20
MAX_PARSED_IN_ALL_BYTES = 2 * MAX_PARSED_BYTES
# What is parsed, as its readers find it; the tasks of a preflight by whatever name.
_TASK = re.compile(r"((?:runs/[^/]+/)?environment/(?:ceiling/)?)preflight-.+")
_RECORD = re.compile(
    r"(?:runs/[^/]+/)?(?:environment/.+\.json|configs/request\.json|challenge\.dsse\.json|journal\.jsonl)"
)
# What reading a file that only the suite writes ends in, where somebody edited it; no reader can list its faults.
SPOILED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
# What makes a report's content again, for every version of it.
REBUILDERS = {statement.REPORT: build_predicate}
# A report that differs in more places is another report.
MAX_DIFFERENCES = 20


@dataclass(frozen=True)
class BundleEvidence:
    """The evidence of a run inside a bundle.

    Args:
        index: The bundle's index.
        prefix: Where the run lies in it: "runs/NAME/", or empty.
    """

    index: BundleIndex
    prefix: str = ""

    def names(self) -> tuple[str, ...]:
        """Every file but the report.

        Returns:
            Names relative to the run, sorted.
        """
        return self._names

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(sorted(self._digests))

    def open(self, name: str) -> BinaryIO:
        """Open a file as a stream.

        Args:
            name: One of :meth:`names`.

        Returns:
            The stream.
        """
        return archive.open_member(self.index, self.prefix + name)

    def digests(self) -> Mapping[str, str]:
        """What the one pass over the archive found; no file is hashed for it.

        Returns:
            sha256, hex, by name.
        """
        return self._digests

    @cached_property
    def _digests(self) -> dict[str, str]:
        found = {
            name.removeprefix(self.prefix): member.sha256
            for name, member in self.index.members.items()
            if name.startswith(self.prefix)
        }
        found.pop(evidence.REPORT, None)
        return found

    def small(self, name: str, max_bytes: int = evidence.MAX_JSON_BYTES) -> bytes | None:
        """Read a small file whole.

        Args:
            name: Its name.
            max_bytes: Largest accepted size in bytes.

        Returns:
            Its content; None where there is no such file.
        """
        if self.prefix + name not in self.index.members:
            return None
        return archive.read_member(self.index, self.prefix + name, max_bytes)


@dataclass(frozen=True)
class VerifiedRun:
    """One run of a verified bundle.

    Args:
        name: Its name in a submission; empty where the bundle is of one run.
        report_id: sha256 of its report's payload.
        predicate: The report's content, as claimed.
        rebuilt: The same as its evidence gives it, with findings and verdict as the policy leaves them, and MFU over
            what the bundle's own preflight measured; empty where the evidence is too broken to judge.
        findings: What was found here, as the policy leaves it.
        steps: step, tgs and loss of every logged step, for drawing.
        journal: Entries of its journal, oldest first.
    """

    name: str
    report_id: str
    predicate: Mapping[str, Any]
    rebuilt: Mapping[str, Any]
    findings: tuple[Finding, ...]
    steps: Sequence[Mapping[str, float]]
    journal: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Verification:
    """What verifying a bundle established.

    Args:
        verdict: What may be claimed; NOT_CONFORMANT when any answer is no.
        answers: The questions in order; one that could not be reached is absent.
        report_id: sha256 of the payload that vouches for the bundle; empty when there is none to read.
        predicate: Its content, a report's or a submission's; empty when it was not verified.
        runs: The runs; empty when they were not reached.
        vendor: Name of the vendor by its key; empty without a policy.
        nonces: Nonces of the challenges that the runs answered.
        series: Digests of what the runs logged, as the lab's list of spent challenges keeps them.
    """

    verdict: Verdict
    answers: tuple[Answer, ...]
    report_id: str = ""
    predicate: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[VerifiedRun, ...] = ()
    vendor: str = ""
    nonces: tuple[str, ...] = ()
    series: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object of ``verify --json``.

        Returns:
            Verdict, questions, report id and findings; those of a submission with the name of their run.
        """
        return {
            "verdict": self.verdict.value,
            "questions": [vars(answer) for answer in self.answers],
            "report_id": self.report_id,
            "findings": [
                {**({"run": run.name} if run.name else {}), **finding_json(finding)}
                for run in self.runs
                for finding in run.findings
            ],
        }


class _RefusedError(Exception):
    """A question was answered no, and what comes after it cannot be asked."""


def verify(path: Path, bench: Bench | None = None) -> Verification:
    """Verify a bundle.

    Args:
        path: The bundle.
        bench: Policy, time and spent challenges; None to verify as far as that needs no decision about whom to trust.

    Returns:
        The answers and the verdict.

    Raises:
        ArchiveError: There is no such file, or it cannot be read.
        PolicyError: The policy is not in force.
    """
    bench = bench or Bench(None, datetime.now(timezone.utc))
    if not path.is_file():
        raise ArchiveError(f"There is no bundle {path}.", "Name a file that `conformance bundle` wrote.")
    answers: list[Answer] = []
    try:
        limits = bench.policy.limits if bench.policy else archive.Limits()
        index = _ask(answers, "archive", lambda: _archive(path, limits))
        envelopes = _ask(answers, "", lambda: ("", _envelopes(index)), otherwise="signature")
        own_keys = _ask(answers, "signature", lambda: _signatures(index, envelopes))
        _ask(answers, "", lambda: _require_memory(index, envelopes), otherwise="schema")
        statements = _ask(answers, "schema", lambda: _statements(envelopes))
        _ask(answers, "files", lambda: _files(index, statements))
        facts = _ask(answers, "", lambda: ("", _facts(index, envelopes, statements, own_keys)), otherwise="recomputed")
    except _RefusedError:
        return Verification(Verdict.NOT_CONFORMANT, tuple(answers))
    judged = judge_trust(facts, bench)
    runs = tuple(map(_verified, facts.runs, judged.findings, judged.verdicts))
    told = (*answers, *judged.answers)
    return Verification(
        judged.verdict,
        told,
        facts.report_id,
        facts.predicate,
        runs,
        judged.vendor,
        judged.nonces,
        tuple(sorted({run.series for run in facts.runs if run.series})),
    )


def _verified(run: RunFacts, findings: tuple[Finding, ...], verdict: Verdict) -> VerifiedRun:
    ruled = {"findings": [finding_json(finding) for finding in findings], "verdict": verdict.value}
    rebuilt = {**run.rebuilt, **ruled, "metrics": _over_ceiling(run)} if run.rebuilt else {}
    return VerifiedRun(run.name, run.report_id, run.predicate, rebuilt, findings, run.steps, run.journal)


def _over_ceiling(run: RunFacts) -> Mapping[str, Any]:
    """A run's metrics, with MFU over what a preflight of the bundle measured of its devices, where one did."""
    metrics = run.rebuilt["metrics"]
    if run.ceiling is None or not metrics.get("tflops"):
        return cast("Mapping[str, Any]", metrics)
    (source, ceiling), needed = run.ceiling, metrics["tflops"]
    shares = {
        key: needed[of] and needed[of] / ceiling
        for key, of in (("measured_ceiling", "model"), ("measured_ceiling_causal", "model_causal"))
    }
    return {**metrics, "mfu": {**metrics["mfu"], **shares, "ceiling": source}}


def _ask(answers: list[Answer], name: str, check: Callable[[], tuple[str, Any]], otherwise: str = "") -> Any:
    """Answer a question without which the later ones make no sense; one without a name is told only if it fails."""
    try:
        message, value = check()
    except ConformanceError as error:
        answers.append(Answer(name or otherwise, QUESTIONS[name or otherwise], "no", str(error)))
        raise _RefusedError from error
    if name:
        answers.append(Answer(name, QUESTIONS[name], "yes", message))
    return value


def _archive(path: Path, limits: archive.Limits) -> tuple[str, BundleIndex]:
    index = archive.read_index(path, limits)
    size = sum(member.size for member in index.members.values())
    return f"{len(index.members)} files, {size:,} bytes, nothing else.", index


def _prefixes(index: BundleIndex) -> list[str]:
    """Where the runs lie: at the top of a run's bundle, below runs/NAME/ in a submission."""
    if submission.STATEMENT not in index.members:
        return [""]
    return sorted(
        name.removesuffix(evidence.REPORT)
        for name in index.members
        if name.startswith(submission.RUNS) and name.endswith(f"/{evidence.REPORT}") and name.count("/") == 2
    )


def _envelopes(index: BundleIndex) -> dict[str, bytes]:
    """The bundle's signed envelopes by name, the one that vouches for all the others first."""
    names = [submission.STATEMENT] if submission.STATEMENT in index.members else []
    names += [prefix + evidence.REPORT for prefix in _prefixes(index)]
    size = sum(index.members[name].size for name in names if name in index.members)
    if size > MAX_ENVELOPES_BYTES:
        raise SignatureError(
            f"The {len(names)} signed files have {size:,} bytes; at most {MAX_ENVELOPES_BYTES:,} are read."
        )
    return {name: archive.read_member(index, name, dsse.MAX_ENVELOPE_BYTES) for name in names}


def _signatures(index: BundleIndex, envelopes: Mapping[str, bytes]) -> tuple[str, dict[str, Ed25519PublicKey]]:
    """Check each envelope under the key that stands beside it: that proves that it is whole, not whose it is."""
    own: dict[str, Ed25519PublicKey] = {}
    for name, envelope in envelopes.items():
        signer = name[: name.rfind("/") + 1] + evidence.SIGNER
        public = keys.load_public_key(archive.read_member(index, signer, MAX_PUBLIC_KEY_BYTES))
        own[keys.key_id(public)] = public
        dsse.verify(envelope, {keys.key_id(public): public}, payload_type=statement.PAYLOAD_TYPE)
    return f"Ed25519, {len(envelopes)} signed, by {', '.join(name[:16] for name in sorted(own))}.", own


def _require_memory(index: BundleIndex, envelopes: Mapping[str, bytes]) -> tuple[str, None]:
    """Refuse JSON that would not fit in memory, before any of it is parsed."""
    at_once, in_all = _memory(index, envelopes)
    for size, most, how in ((at_once, MAX_PARSED_BYTES, "at once"), (in_all, MAX_PARSED_IN_ALL_BYTES, "in all")):
        if size > most:
            raise EvidenceError(
                f"The bundle's JSON would take some {size >> 20:,} MiB of memory {how}; at most {most >> 20:,} are "
                "given to it.",
                "Submit fewer runs in one bundle.",
            )
    return "", None


def _memory(index: BundleIndex, envelopes: Mapping[str, bytes]) -> tuple[int, int]:
    """What all JSON that is parsed will take at once, and in all."""
    held = sum(strictjson.memory(dsse.parse(envelope).payload) for envelope in envelopes.values())
    tasks: Counter[str] = Counter()  # by folder: each is let go of before the next is read
    for name, member in index.members.items():
        task, most = _TASK.fullmatch(name), 0
        if task:
            most = MAX_PREFLIGHT_BYTES
        elif _RECORD.fullmatch(name):
            most = journal.MAX_JOURNAL_BYTES if name.endswith(evidence.JOURNAL) else evidence.MAX_JSON_BYTES
        if member.size > most:
            continue  # nobody parses it
        size = strictjson.memory(archive.read_member(index, name, most))
        if task:
            tasks[task[1]] += size
        else:
            held += size
    return held + max(tasks.values(), default=0), held + tasks.total()


def _statements(envelopes: Mapping[str, bytes]) -> tuple[str, dict[str, Statement]]:
    found = {}
    for name, envelope in envelopes.items():
        payload = dsse.parse(envelope).payload
        found[name] = submission.load(payload) if name == submission.STATEMENT else statement.load(payload)
    first = next(iter(found.values()))
    return f"{len(found)} of version 1; report {first.report_id[:16]}.", found


def _files(index: BundleIndex, statements: Mapping[str, Statement]) -> tuple[str, None]:
    for name, signed in statements.items():
        prefix = name[: name.rfind("/") + 1]
        present = {
            file.removeprefix(prefix): member.sha256
            for file, member in index.members.items()
            if file.startswith(prefix) and file != name
        }
        known = signed.subjects
        faults = [
            *(f"{file} was removed" for file in sorted(known.keys() - present.keys())),
            *(f"{file} was added" for file in sorted(present.keys() - known.keys())),
            *(f"{file} was changed" for file in sorted(present) if known.get(file) not in (None, present[file])),
        ]
        if faults:
            raise SignatureError(f"What {name} signs is not what is here: {'; '.join(faults[:5])}.")
    return f"All {len(index.members) - 1} files have the signed SHA-256.", None


# --- facts -----------------------------------------------------------------------------------------------------------


def _facts(
    index: BundleIndex,
    envelopes: Mapping[str, bytes],
    statements: Mapping[str, Statement],
    own_keys: Mapping[str, Ed25519PublicKey],
) -> BundleFacts:
    first = next(iter(statements))
    signed = statements[first]
    evidences = [BundleEvidence(index, prefix) for prefix in _prefixes(index)]
    runs = tuple(_run_facts(files, statements[files.prefix + evidence.REPORT]) for files in evidences)
    preflights = {run.name: files for run, files in zip(runs, evidences, strict=True) if run.kind == "preflight"}
    ceilings = newest_ceilings(preflights, (run.rebuilt.get("devices", ()) for run in runs))
    runs = tuple(replace(run, ceiling=ceiling) for run, ceiling in zip(runs, ceilings, strict=True))
    contradictions: tuple[str, ...] = ()
    if first == submission.STATEMENT:
        reports = {run.name: statements[f"{submission.RUNS}{run.name}/{evidence.REPORT}"] for run in runs}
        contradictions = _contradictions(signed, reports)
    return BundleFacts(
        signed.report_id,
        envelopes[first],
        signed.predicate,
        own_keys,
        runs,
        contradictions,
        submission=first == submission.STATEMENT,
    )


def _contradictions(signed: Statement, reports: Mapping[str, Statement]) -> tuple[str, ...]:
    try:
        return tuple(submission.contradictions(signed, reports))
    except SPOILED as error:
        return (f"it cannot be held against its runs ({_brief(error)})",)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__} {ascii(str(error))[:80]}"


def _run_facts(files: BundleEvidence, signed: Statement) -> RunFacts:
    judgement, rebuilt, differing = _recompute(files, signed)
    attempts, fault = _attempts(files)
    request, data = _fields(files, evidence.REQUEST), _fields(files, evidence.DATA)
    return RunFacts(
        name=files.prefix.removeprefix(submission.RUNS).rstrip("/"),
        report_id=signed.report_id,
        predicate=signed.predicate,
        rebuilt=rebuilt,
        files=signed.subjects,
        findings=judgement.findings if judgement else (),
        differences=differing,
        journal=attempts,
        journal_fault=fault,
        attempt=evidence.attempt_of(files.digests()),
        seed=request["seed"] if type(request.get("seed")) is int else None,
        challenge=files.small(evidence.CHALLENGE),
        data=data["digest"] if isinstance(data.get("digest"), str) else None,
        data_name=judgement.plan.workload.data if judgement else "",
        steps=judgement.steps if judgement else (),
        series=judgement.series if judgement else "",
    )


def _recompute(files: BundleEvidence, signed: Statement) -> tuple[Judgement | None, dict[str, Any], tuple[str, ...]]:
    try:
        judgement = judge(files)
        again = REBUILDERS[signed.form](files, judgement, signed.predicate["signer"])
        # What the report's schema would refuse, nobody could show either; its subjects it has seen.
        statement.build(again, dict(islice(signed.subjects.items(), 1)), signed.form)
    except ConformanceError as error:
        return None, {}, (f"the whole ({error.message})",)
    except SPOILED as error:
        return None, {}, (f"the whole (the evidence cannot be judged: {_brief(error)})",)
    again["suite"] = signed.predicate["suite"]  # which suite that was, a question of its own asks
    return judgement, again, tuple(differences(signed.predicate, again))[:MAX_DIFFERENCES]


def _attempts(files: BundleEvidence) -> tuple[tuple[Mapping[str, Any], ...], str]:
    try:
        return journal.parse(files.small(evidence.JOURNAL, journal.MAX_JOURNAL_BYTES) or b"").entries, ""
    except ConformanceError as error:
        return (), error.message


def _fields(files: BundleEvidence, name: str) -> Mapping[str, Any]:
    """A small JSON object; empty where there is none, or a broken one, which the recomputation tells."""
    try:
        return evidence.read_json(files, name)
    except ConformanceError:
        return {}


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
