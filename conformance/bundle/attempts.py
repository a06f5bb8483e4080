"""Is the journal of attempts whole, and how many does it show? Pure, as all of the verifier's judgement."""

from __future__ import annotations

from itertools import pairwise

from conformance import journal
from conformance.bundle.facts import BundleFacts, Reply, RunFacts, at, count
from conformance.bundle.policy import Policy
from conformance.evidence import PLAN
from conformance.strictjson import quoted

# Of the attempts that a run goes on from; the first says the same as the last hundred.
SHOWN = 5


def journal_answer(facts: BundleFacts, policy: Policy | None) -> Reply:
    """Answer the question about the journal.

    Args:
        facts: The bundle.
        policy: How many attempts are allowed; None where nobody says.

    Returns:
        Answer and message.
    """
    own: dict[str, journal.Attempt] = {}
    for run in facts.runs:
        if run.journal_fault:
            return "no", f"{at(run)}{run.journal_fault}"
        last = run.journal[-1] if run.journal else {}
        if last.get("event") != "ended" or last.get("evidence") != run.attempt:
            return "no", f"{at(run)}The journal's last entry is not the end of this run with this evidence."
        ended = [one for one in journal.attempts(run.journal) if one.evidence == run.attempt]
        if not ended or ended[-1].workload != attempted(run):
            return "no", f"{at(run)}The journal does not show the start of this run of {attempted(run)}."
        own[run.name] = ended[-1]
        if run.kind != "preflight" and own[run.name].plan != run.files.get(PLAN):
            return "no", f"{at(run)}The journal shows the start of this run with another plan than {PLAN}."
    by_length = sorted(facts.runs, key=lambda run: len(run.journal))
    for shorter, longer in pairwise(by_length):
        if longer.journal[: len(shorter.journal)] != shorter.journal:
            return "no", (
                f"The journals of {shorter.name} and {longer.name} part: an attempt was left out of one of them, or "
                "they stand in different reports folders."
            )
    gone_on = "".join(_gone_on(run, own[run.name]) for run in facts.runs)
    return _counted(facts, journal.attempts(by_length[-1].journal), policy, gone_on)


def attempted(run: RunFacts) -> str:
    """What the journal calls a run: a preflight measures on the shapes of a workload and is no attempt at it.

    Args:
        run: The run.

    Returns:
        The workload, or preflight.
    """
    return run.kind if run.kind == "preflight" else run.workload


def _counted(facts: BundleFacts, made: tuple[journal.Attempt, ...], policy: Policy | None, gone_on: str) -> Reply:
    told = []
    for workload in sorted({attempted(run) for run in facts.runs}):
        here = [run for run in facts.runs if attempted(run) == workload]
        # Only an accuracy run leaves checkpoints; whatever else says that it went on from one is an attempt.
        resumable = here[0].kind == "accuracy"
        number = sum(one.workload == workload and (one.fresh or not resumable) for one in made)
        allowed = policy.workloads[workload].max_attempts if policy and workload in policy.workloads else None
        if allowed is not None and number > allowed:
            return "no", (
                f"The journal shows {number} attempts of {workload}, {len(here)} of them in this bundle; the policy "
                f"allows {allowed}.{gone_on}"
            )
        told.append(f"{count(number, 'attempt')} of {workload}, {len(here)} of them here")
    unended = sum(one.outcome is None for one in made)
    return "yes", f"Its chain holds: {', '.join(told)}{f'; {unended} never ended' if unended else ''}.{gone_on}"


def _gone_on(run: RunFacts, attempt: journal.Attempt) -> str:
    """How the attempts ended that a run goes on from."""
    chain = attempt.chain()
    told = [f"{quoted(one.run)} ({_outcome(one)})" for one in chain[-SHOWN:]]
    before = f"{len(chain) - SHOWN} more, " if len(chain) > SHOWN else ""
    return f" {at(run)}It goes on from {before}{', '.join(told)}." if chain else ""


def _outcome(attempt: journal.Attempt) -> str:
    known = ("ended", "interrupted", "stopped", "failed")
    if attempt.outcome is None:
        return "never ended"
    return str(attempt.outcome) if attempt.outcome in known else f"ended as {quoted(str(attempt.outcome), 20)}"
