"""What a verifier establishes of a bundle before it judges: values only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from conformance.checks.finding import Finding

Reply = tuple[str, str]  # answer and message


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
class RunFacts:
    """One run of a bundle; all its files are those that were signed.

    Args:
        name: Its name in a submission; empty where the bundle is of one run.
        report_id: sha256 of its report's payload.
        predicate: What its report claims.
        rebuilt: The same, made again here from the evidence; empty where that is too broken to judge.
        files: sha256 of every file that its report vouches for, by name.
        findings: What every check found here.
        differences: Where the report differs from what is found here; one phrase each.
        journal: Entries of its journal, oldest first; empty where its chain is broken.
        journal_fault: What is wrong with the chain, or empty.
        attempt: The digest of the evidence that the journal's last entry has to quote.
        seed: The seed that was asked for; None where it cannot be told.
        challenge: challenge.dsse.json; None where the run answers no challenge.
        data: Digest of the data set that it trained on; None where its evidence tells of none.
        data_name: Name of the data set that the workload has to train on; empty where the evidence tells no workload.
        steps: step, tgs and loss of every logged step, for drawing.
        series: Digest of the logged losses and gradient norms; empty where no step was logged.
        ceiling: The bundle's newest preflight of its devices, and the TFLOPS that it measured; None without one.
    """

    name: str
    report_id: str
    predicate: Mapping[str, Any]
    rebuilt: Mapping[str, Any]
    files: Mapping[str, str]
    findings: tuple[Finding, ...]
    differences: tuple[str, ...]
    journal: tuple[Mapping[str, Any], ...]
    journal_fault: str
    attempt: str
    seed: int | None
    challenge: bytes | None
    data: str | None
    data_name: str
    steps: Sequence[Mapping[str, float]] = ()
    series: str = ""
    ceiling: tuple[str, float] | None = None

    @property
    def kind(self) -> str:
        """Kind of the run: perf, accuracy or preflight."""
        return str(self.predicate["kind"])

    @property
    def workload(self) -> str:
        """Name of the workload."""
        return str(self.predicate["workload"]["name"])

    @property
    def official(self) -> bool:
        """Whether the workload is one of the benchmark's own."""
        return bool(self.predicate["workload"]["official"])


@dataclass(frozen=True)
class BundleFacts:
    """A bundle whose archive is sound, whose files are those that were signed, and whose own signatures hold.

    Args:
        report_id: sha256 of the payload that vouches for all of it.
        envelope: That payload, signed.
        predicate: Its predicate: a report's, or a submission's.
        own_keys: Keys that the bundle itself brings, by key id.
        runs: Its runs.
        contradictions: Where a submission says something else than its runs' reports.
        submission: Whether it is a submission.
    """

    report_id: str
    envelope: bytes
    predicate: Mapping[str, Any]
    own_keys: Mapping[str, Ed25519PublicKey]
    runs: tuple[RunFacts, ...]
    contradictions: tuple[str, ...] = ()
    submission: bool = False


def at(run: RunFacts) -> str:
    """Where a message is about.

    Args:
        run: The run.

    Returns:
        Its name and a colon; empty where the bundle is of one run.
    """
    return f"{run.name}: " if run.name else ""


def count(number: int, noun: str) -> str:
    """A number of things, in words.

    Args:
        number: How many.
        noun: Of what, in the singular.

    Returns:
        Such as "2 runs" or "no runs".
    """
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
