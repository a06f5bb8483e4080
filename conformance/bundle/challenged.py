"""Is the lab's challenge fresh, and did the runs answer it? Pure, as all of the verifier's judgement."""

from __future__ import annotations

import contextlib

from conformance.bundle.facts import BundleFacts, Reply, RunFacts, at
from conformance.bundle.policy import LAB, Bench, Policy
from conformance.checks.data import moment
from conformance.errors import ConformanceError
from conformance.report import challenge as challenges
from conformance.report import dsse
from conformance.report.challenge import time_text
from conformance.strictjson import quoted


def challenge_answer(facts: BundleFacts, vendor: str, bench: Bench) -> Reply:
    """Answer the question about the challenge.

    Args:
        facts: The bundle.
        vendor: Name of the vendor whose key signed.
        bench: What to judge with.

    Returns:
        Answer and message.
    """
    trained = _trained(facts)
    without = [run for run in trained if run.challenge is None]
    policy = bench.policy
    if without and policy is not None and policy.challenge_required:
        return "no", f"{at(without[0])}The run answers no challenge, and the policy requires one."
    if bench.spent is not None:
        for run in trained:
            known = bench.spent.series.get(run.series, facts.report_id)
            if known != facts.report_id:
                return "no", f"{at(run)}Its losses and gradient norms are those of a run of the report {known}."
    answering = [run for run in trained if run.challenge is not None]
    if not answering:
        return ("open", "The run answers no challenge.") if policy is None else ("yes", "The policy requires none.")
    for run in answering:
        try:
            fault = _challenge_fault(run, run.challenge or b"", vendor, bench)
        except ConformanceError as error:
            fault = str(error)
        if fault:
            return "no", f"{at(run)}{fault}"
    if policy is None:
        return "open", "The seed is the challenge's; whether a lab issued it, and it is fresh, only a policy says."
    if bench.spent is None:
        return "open", "The lab's own, in time and answered; whether it was spent, only the lab's list tells: --spent."
    for nonce in nonces(facts):
        if bench.spent.nonces.get(nonce, facts.report_id) != facts.report_id:
            return "no", f"The challenge {nonce[:16]} was spent by the report {bench.spent.nonces[nonce]}."
    return "yes", "The lab's own, for this vendor, in time, answered by its seed, and not spent."


def nonces(facts: BundleFacts) -> tuple[str, ...]:
    """The nonces that the trained runs' own files carry, whatever the reports say; a preflight answers none.

    Args:
        facts: The bundle.

    Returns:
        Each once, sorted.
    """
    found = set()
    for run in _trained(facts):
        with contextlib.suppress(ConformanceError):  # a malformed one is refused as an answer
            found |= {challenges.parse(run.challenge).nonce} if run.challenge is not None else set()
    return tuple(sorted(found))


def _trained(facts: BundleFacts) -> list[RunFacts]:
    return [run for run in facts.runs if run.kind != "preflight"]


def _challenge_fault(run: RunFacts, envelope: bytes, vendor: str, bench: Bench) -> str:
    """What is wrong with a run's answer; empty where nothing is."""
    challenge = challenges.parse(envelope)
    if run.workload not in challenge.workloads:
        return f"The challenge is for {', '.join(challenge.workloads)}, not for {run.workload}."
    wanted = challenges.seed(challenge.nonce, run.workload)
    if run.seed != wanted:
        return f"The run's seed is {run.seed}; the challenge's is {wanted}."
    environment = run.predicate["environment"]
    started, ended = moment(environment.get("started")), moment(environment.get("ended"))
    if started is None or ended is None:
        return "The run does not tell when it started and ended."
    if started < challenge.issued or ended > challenge.expires:
        held = f"the challenge was issued {time_text(challenge.issued)} and expired {time_text(challenge.expires)}"
        return f"The run went from {time_text(started)} to {time_text(ended)}; {held}."
    if ended > bench.now:
        return f"The run ended {time_text(ended)}, which is still to come."
    return "" if bench.policy is None else _issuer_fault(challenge, envelope, vendor, bench.policy)


def _issuer_fault(challenge: challenges.Challenge, envelope: bytes, vendor: str, policy: Policy) -> str:
    signed = dsse.verify(envelope, policy.public_keys(LAB), payload_type=challenges.PAYLOAD_TYPE)
    for name in sorted(signed.key_ids):
        if fault := policy.keys[name].fault(challenge.issued):
            return fault
    if challenge.vendor != vendor:
        return f"The challenge was issued to {quoted(challenge.vendor)}; the bundle is of {quoted(vendor)}."
    return ""
