"""The verifier's judgement: facts of a bundle, a policy and the time give answers. Pure; nothing is read here.

Without a policy the questions that need somebody to be trusted stay open. An open question leaves the verdict open
under a policy, and for an official workload always: what could not be shown is not taken for granted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import combinations

from conformance.bundle.attempts import journal_answer
from conformance.bundle.challenged import challenge_answer, nonces
from conformance.bundle.facts import Answer, BundleFacts, Reply, RunFacts, at, count
from conformance.bundle.policy import Bench, Key, Policy
from conformance.checks.finding import Finding, Result, Verdict, verdict
from conformance.checks.throughput import floor_reached
from conformance.checks.timing import utilisation
from conformance.errors import ConformanceError, PolicyError
from conformance.report import dsse, statement
from conformance.report.build import suite_digest
from conformance.report.challenge import time_text
from conformance.spec import load_checks
from conformance.spec.floors import find_floor
from conformance.strictjson import quoted

QUESTIONS = {
    "archive": "Is the archive sound?",
    "signature": "Do the signatures hold?",
    "schema": "Does every statement keep to its schema?",
    "files": "Is every file accounted for?",
    "suite": "Are suite and spec known?",
    "recomputed": "Do the raw logs give the claimed figures?",
    "plan": "Is the plan legal, and was it the one that ran?",
    "source": "Is InternEvo pristine, and every patch accepted?",
    "consistency": "Does the log obey its own algebra?",
    "limits": "Are floors and targets reached?",
    "data": "Is the data set an accepted one?",
    "checks": "Is every required check there, exactly once, and passed?",
    "journal": "Is the journal of attempts whole?",
    "devices": "Were all runs made on the same devices?",
    "runs": "Are all required runs there?",
    "challenge": "Is the challenge fresh, and answered?",
    "trust": "Are the signers trusted, each in its role?",
}
SOURCE_CHECKS = ("source-pinned", "patches-declared")
PLAN_CHECKS = ("run-config", "log-head", "log-elements")
LIMIT_CHECKS = ("tgs-floor", "tflops-floor", "tgs-floor-declared", "loss-defined", "loss-target")
TRAIN_ON_PINNED = "Train on the data set that the policy pins."
OTHER_SUITE = "Verify with the suite that made the report."
# More are one and the same fault.
SHOWN = 3
# Order of gravity.
VERDICTS = (Verdict.NOT_CONFORMANT, Verdict.INCONCLUSIVE, Verdict.REHEARSAL, Verdict.CONFORMANT)


@dataclass(frozen=True)
class Judged:
    """What the judgement came to.

    Args:
        verdict: What may be claimed.
        verdicts: The same for each run on its own.
        answers: Every question's answer, in order.
        findings: For each run its findings, as the policy leaves them.
        vendor: Name of the vendor whose key signed; empty where no policy tells.
        nonces: Nonces of the challenges that the runs answered.
    """

    verdict: Verdict
    verdicts: tuple[Verdict, ...]
    answers: tuple[Answer, ...]
    findings: tuple[tuple[Finding, ...], ...]
    vendor: str
    nonces: tuple[str, ...]


Together = Sequence[tuple[RunFacts, tuple[Finding, ...]]]


def judge_trust(facts: BundleFacts, bench: Bench) -> Judged:
    """Answer every question that comes after the bundle's own soundness.

    Args:
        facts: The bundle.
        bench: What to judge with.

    Returns:
        Answers and verdict.

    Raises:
        PolicyError: The policy is not in force.
    """
    if bench.policy is not None:
        require_in_force(bench.policy, bench.now)
    vendor = _vendor(facts, bench)
    ruled = tuple(_rule(run, vendor, bench) for run in facts.runs)
    findings = tuple(found for found, _ in ruled)
    waived = [sentence for _, sentences in ruled for sentence in sentences]
    together = list(zip(facts.runs, findings, strict=True))
    replies: dict[str, Reply] = {
        "suite": _suite(facts, bench),
        "recomputed": _recomputed(facts),
        "plan": _group(together, lambda check: check in PLAN_CHECKS),
        "source": _group(together, lambda check: check in SOURCE_CHECKS),
        "consistency": _group(together, lambda check: check.startswith("log-") and check not in PLAN_CHECKS),
        "limits": _group(together, lambda check: check in LIMIT_CHECKS, waived),
        "data": _data(facts, bench),
        "checks": _checks(together, waived),
        "journal": journal_answer(facts, bench.policy),
        **({"devices": _devices(facts)} if facts.submission else {}),
        "runs": _runs(facts, bench),
        "challenge": challenge_answer(facts, vendor, bench),
        "trust": _trust(facts, bench),
    }
    answers = tuple(Answer(name, QUESTIONS[name], *replies[name]) for name in replies)
    verdicts = tuple(_run_verdict(run, found) for run, found in together)
    return Judged(_verdict(facts, verdicts, replies, bench), verdicts, answers, findings, vendor, nonces(facts))


def require_in_force(policy: Policy, now: datetime) -> None:
    """Refuse to judge by a policy that does not hold now.

    Args:
        policy: The policy.
        now: The time.

    Raises:
        PolicyError: It holds not yet, or no more, or a key that signed it is revoked.
    """
    if not policy.issued <= now < policy.expires:
        raise PolicyError(
            f"The policy {quoted(policy.name)} holds from {time_text(policy.issued)} to {time_text(policy.expires)}; "
            f"it is {time_text(now)}.",
            "Get the lab's current policy.",
        )


def _verdict(facts: BundleFacts, verdicts: Sequence[Verdict], replies: Mapping[str, Reply], bench: Bench) -> Verdict:
    answers = [answer for answer, _ in replies.values()]
    # A preflight trains nothing, and is at best a rehearsal; beside a training run it can only stand in the way.
    trained = any(run.kind != "preflight" for run in facts.runs)
    found = [
        one
        for run, one in zip(facts.runs, verdicts, strict=True)
        if not (trained and run.kind == "preflight" and one is Verdict.REHEARSAL)
    ]
    if "no" in answers:
        found.append(Verdict.NOT_CONFORMANT)
    certifies = bench.policy is not None or any(_certifies(run) for run in facts.runs)
    if (certifies and "open" in answers) or replies["recomputed"][0] == "open":
        found.append(Verdict.INCONCLUSIVE)
    return min(found, key=VERDICTS.index)


def _run_verdict(run: RunFacts, findings: tuple[Finding, ...]) -> Verdict:
    if findings == run.findings:  # nothing was ruled on; that the claim is what is found, "recomputed" answers
        return Verdict(run.predicate["verdict"])
    decisive = [finding for finding in findings if _is_decisive(finding)]
    return verdict(decisive, _required(run.kind), _certifies(run))


def _certifies(run: RunFacts) -> bool:
    """Whether a run is of the kind that conformance is claimed for; any other is a rehearsal."""
    return run.official and run.kind != "preflight"


def _is_decisive(finding: Finding) -> bool:
    check = load_checks().get(finding.check)
    return check is None or check.severity != "advisory"


def _required(kind: str) -> list[str]:
    return [check.id for check in load_checks().values() if check.severity == "required" and kind in check.applies]


# --- what a policy rules on ------------------------------------------------------------------------------------------


def _rule(run: RunFacts, vendor: str, bench: Bench) -> tuple[tuple[Finding, ...], list[str]]:
    """A run's findings with the policy's floors, patch rulings and waivers; and what was waived."""
    policy, waived = bench.policy, []
    measured = tuple(_by_ceiling(finding, run) for finding in run.findings)
    if policy is None:
        return measured, []
    found = []
    for finding in measured:
        finding = _by_pin(_by_patch_ruling(_by_floor(finding, run, policy), run, policy), run, policy)
        waiver = next(
            (
                one
                for one in policy.waivers
                if (one.check, one.vendor, one.workload) == (finding.check, vendor, run.workload)
                and bench.now < one.expires
            ),
            None,
        )
        if waiver is not None and finding.result is not Result.PASS:
            message = f"{finding.check} is waived until {time_text(waiver.expires)}: {waiver.reason}"
            waived.append(message)
            finding = replace(finding, result=Result.PASS, message=f"{message} ({finding.message})", next_step="")
        found.append(finding)
    return tuple(found), waived


def _by_floor(finding: Finding, run: RunFacts, policy: Policy) -> Finding:
    """Hold a speed against the policy's floor, where it has one, in place of the suite's."""
    metric = finding.check.removesuffix("-floor")
    if finding.check not in ("tgs-floor", "tflops-floor"):
        return finding
    model = next((str(device["model"]) for device in run.predicate["devices"]), None)
    metrics = run.rebuilt.get("metrics", {})
    floor = find_floor(policy.floors, run.workload, metric, model, metrics)
    speed, flops = metrics.get("tgs"), metrics.get("tflops")
    if floor is None or not speed:
        return finding
    value = speed["median"] if metric == "tgs" else (flops or {}).get("recomputed")
    if value is None:
        return finding
    low, high = speed["ci95"] or (None, None)
    half = None if low is None else max(speed["median"] - low, high - speed["median"]) * value / speed["median"]
    return floor_reached(finding.check, value, half, floor)


def _by_ceiling(finding: Finding, run: RunFacts) -> Finding:
    """Hold what the device did against the bundle's own preflight too, whatever preflight the run itself kept."""
    needed = (run.rebuilt.get("metrics", {}).get("tflops") or {}).get("model_causal")
    if finding.check != "log-utilisation" or finding.result is Result.FAIL or run.ceiling is None or needed is None:
        return finding
    return utilisation(needed, None, dict([run.ceiling]))


def _by_patch_ruling(finding: Finding, run: RunFacts, policy: Policy) -> Finding:
    """Settle what the checks leave to the lab: a vendor's own patch files, all declared and kept."""
    if finding.check != "patches-declared" or finding.result is not Result.ERROR:
        return finding
    rulings = {name: policy.patches.get(digest) for name, digest in run.files.items() if name.startswith("patches/")}
    if not rulings or None in rulings.values():
        return finding
    told = "; ".join(f"{name}: {ruling[1]}" for name, ruling in rulings.items() if ruling)
    if all(ruling[0] for ruling in rulings.values() if ruling):
        return replace(finding, result=Result.PASS, message=f"The lab accepted {told}.", next_step="")
    refused = [name for name, ruling in rulings.items() if ruling and not ruling[0]]
    return replace(finding, result=Result.FAIL, message=f"The lab refused {', '.join(refused)}. {told}.")


def _by_pin(finding: Finding, run: RunFacts, policy: Policy) -> Finding:
    """Settle what a spec without a pin leaves to the lab: whether the data are those that the target was set for."""
    if finding.check != "data-pinned" or finding.limit is not None:
        return finding
    told = f"digest {run.data}" if run.data else "no digest"
    if not _is_pinned(run, policy):
        message = f"The data are not {run.data_name} as the policy pins it: {told}."
        return replace(finding, result=Result.FAIL, message=message, next_step=TRAIN_ON_PINNED)
    message = f"The data are {run.data_name} as the policy pins it."
    limit = f"the policy {quoted(policy.name)}"
    return replace(finding, result=Result.PASS, message=message, limit=run.data, limit_source=limit, next_step="")


# --- the questions ---------------------------------------------------------------------------------------------------


def _suite(facts: BundleFacts, bench: Bench) -> Reply:
    here = suite_digest()
    made = {(run.predicate["suite"]["version"], run.predicate["suite"]["tree_digest"]) for run in facts.runs}
    told = ", ".join(f"suite {version}, tree {digest[:16]}" for version, digest in sorted(made))
    if bench.policy is None:
        if {digest for _, digest in made} == {here}:
            return "yes", f"By {told}, as installed here."
        return "open", f"By {told}; judged here by tree {here[:16]}, which may find more or less."
    if strange := sorted(made - bench.policy.suites):
        return "no", f"The policy does not accept suite {strange[0][0]}, tree {strange[0][1]}."
    for run in facts.runs:
        accepted = bench.policy.workloads.get(run.workload)
        if accepted is None and run.kind == "preflight":
            return "no", (
                f"{run.name} measured the shapes of {run.workload}, a workload that the policy does not accept; "
                "measure those of the workload that was run, with --workload."
            )
        if accepted is None:
            return "no", f"The policy does not accept the workload {run.workload}."
        if accepted.digest != run.predicate["workload"]["digest"]:
            return (
                "no",
                f"The policy does not accept this spec of {run.workload}: {run.predicate['workload']['digest']}.",
            )
    return "yes", f"By {told}; suite and spec are those of the policy."


def _recomputed(facts: BundleFacts) -> Reply:
    here = suite_digest()
    bad = [run for run in facts.runs if run.differences]
    if facts.contradictions:
        return "no", f"The submission contradicts its runs: {'; '.join(facts.contradictions[:SHOWN])}."
    if not bad:
        count = sum(len(run.findings) for run in facts.runs)
        return "yes", f"Plan, figures and {count} findings computed again from the raw logs equal the claimed."
    told = "; ".join(f"{at(run)}{fault}" for run in bad for fault in run.differences[:5])
    message = f"Computed again from the raw logs, the report differs at {told}."
    # Another suite may find more or less in an honest log; only the one that made the report can refute it.
    if all(run.predicate["suite"]["tree_digest"] != here for run in bad):
        return "open", f"{message} {OTHER_SUITE}"
    return "no", message


def _group(together: Together, belongs: Callable[[str], bool], waived: Sequence[str] = ()) -> Reply:
    """What a group of checks found, over all runs that make them."""
    bad, unsettled, passed, skipped = [], [], 0, 0
    for run, findings in together:
        for finding in findings:
            if not belongs(finding.check) or not _is_decisive(finding):
                continue
            told = f"{at(run)}{finding.check}: {finding.message}"
            if finding.result is Result.FAIL:
                bad.append(told)
            elif finding.result is Result.ERROR or (finding.result is Result.SKIP and _is_needed(run, finding.check)):
                unsettled.append(told)
            elif finding.result is Result.PASS:
                passed += 1
            else:
                skipped += 1
    if bad or unsettled:
        return "no" if bad else "open", " ".join((bad or unsettled)[:SHOWN])
    apart = f", {skipped} with nothing to check" if skipped else ""
    return "yes", f"{count(passed, 'check')} passed{apart}.{_told(waived)}"


def _is_needed(run: RunFacts, check: str) -> bool:
    """Whether a check that was skipped leaves the verdict open: a rehearsal may skip what it has no limit for."""
    return _certifies(run) and check in _required(run.kind)


def _data(facts: BundleFacts, bench: Bench) -> Reply:
    runs = [run for run in facts.runs if run.kind == "accuracy"]
    if not runs:
        return "yes", "No run depends on a data set."
    if missing := [run for run in runs if run.data is None]:
        return "no", f"{at(missing[0])}The evidence holds no fingerprint of the data that it trained on."
    digests = ", ".join(sorted({run.data for run in runs if run.data is not None}))
    if bench.policy is None:
        return "open", f"Whether {digests} is the data set, only a policy says."
    for run in runs:
        if not _is_pinned(run, bench.policy):
            named = bench.policy.data.get(str(run.data))
            only = f" as {run.data_name}" if named is None else f" as {run.data_name}, only as {quoted(named)}"
            return "no", f"{at(run)}The policy accepts no data set {run.data}{only}."
    return "yes", f"Data set {', '.join(sorted({run.data_name for run in runs}))}: {digests}."


def _is_pinned(run: RunFacts, policy: Policy) -> bool:
    """Whether the policy names the data that a run trained on as those of its workload."""
    return run.data is not None and policy.data.get(run.data) == run.data_name


def _checks(together: Together, waived: Sequence[str]) -> Reply:
    known = load_checks()
    told_above = (PLAN_CHECKS, SOURCE_CHECKS, LIMIT_CHECKS, [name for name in known if name.startswith("log-")])
    for run, findings in together:
        required, claimed = _required(run.kind), Counter(one["check"] for one in run.predicate["findings"])
        found = Counter(finding.check for finding in findings)
        for check in required:
            # A run may show several faults; each is a finding of its own, and fails.
            several = any(f.check == check and f.result is Result.FAIL for f in findings)
            for times, who in ((found[check], "is found here"), (claimed[check], "stands in the report")):
                if times > 1 and not several:
                    return "no", f"{at(run)}The required check {check} {who} {times} times; expected once."
                if not times and _is_due(run, findings):
                    return "no", f"{at(run)}The required check {check} is missing: it {who} not at all."
        if unknown := sorted(found.keys() - known.keys()):
            return "no", f"{at(run)}There is no check {quoted(unknown[0])}."
    return _group(together, lambda check: not any(check in group for group in told_above), waived)


def _is_due(run: RunFacts, findings: Iterable[Finding]) -> bool:
    """Whether all checks must be there: without a training step most have nothing to look at, and run-steps fails."""
    return run.kind != "preflight" and not any(f.check == "run-steps" and f.result is not Result.PASS for f in findings)


def _devices(facts: BundleFacts) -> Reply:
    compared = facts.predicate["devices"]
    if not compared["same"]:
        return "no", f"The runs used different devices: {' '.join(compared['differences'][:SHOWN])}"
    return "yes", f"All {len(facts.runs)} runs were made on one set of devices."


def _runs(facts: BundleFacts, bench: Bench) -> Reply:
    for first, second in combinations(facts.runs, 2):
        alike = (what(first) is not None and what(first) == what(second) for what in (_log, _made))
        if first.attempt == second.attempt or any(alike):
            return "no", f"{first.name} and {second.name} are one and the same run."
    if bench.policy is None:
        return "open", f"{len(facts.runs)} here; how many are required, only a policy says."
    trained = Counter((run.workload, run.official) for run in facts.runs if run.kind != "preflight")
    if not trained:
        return "no", "The bundle holds no training run."
    for (workload, official), number in sorted(trained.items()):
        accepted = bench.policy.workloads.get(workload)
        if accepted is None:
            return "no", f"The policy does not accept the workload {workload}."
        # A preflight on the shapes of a rehearsal says nothing of the benchmark's own.
        preflights = sum(run.kind == "preflight" and (run.official or not official) for run in facts.runs)
        for there, needed, what in (
            (number, accepted.runs, f"runs of {workload}"),
            (preflights, accepted.preflights, f"preflights for {workload}"),
        ):
            if there < needed:
                return "no", f"The bundle holds {there} {what}; the policy requires {needed}."
    named = ", ".join(sorted(workload for workload, _ in trained))
    return "yes", f"{count(len(facts.runs), 'run')}, as the policy requires of {named}."


def _made(run: RunFacts) -> tuple[str, object] | None:
    """Losses, gradient norms and speeds of a run: two may train alike to the last bit, but never in the same times."""
    return (run.series, run.rebuilt.get("metrics", {}).get("tgs")) if run.series else None


def _log(run: RunFacts) -> str | None:
    """Digest of the log that carries a run's metrics: a file added beside it makes no second run."""
    return run.files.get(str(run.rebuilt.get("metrics", {}).get("log")))


# --- who signed ------------------------------------------------------------------------------------------------------


def _signers(facts: BundleFacts, policy: Policy) -> tuple[list[Key], list[str]]:
    """The policy's keys that signed the bundle, and the ids of the others."""
    known = {**facts.own_keys, **policy.public_keys()}
    signed = dsse.verify(facts.envelope, known, payload_type=statement.PAYLOAD_TYPE)
    named = sorted(signed.key_ids & policy.keys.keys())
    return [policy.keys[name] for name in named], sorted((signed.key_ids | signed.unknown_key_ids) - set(named))


def _vendor(facts: BundleFacts, bench: Bench) -> str:
    """Name of the vendor by the key that signed."""
    if bench.policy is None:
        return ""
    try:
        keys, _ = _signers(facts, bench.policy)
    except ConformanceError:
        return ""
    return next((key.name for key in keys if key.role == "vendor"), "")


def _trust(facts: BundleFacts, bench: Bench) -> Reply:
    if bench.policy is None:
        settle = " A lab's policy would settle it: --policy FILE." if any(map(_certifies, facts.runs)) else ""
        return "open", f"No policy was given, so nobody vouches for the key.{settle}"
    try:
        keys, others = _signers(facts, bench.policy)
    except ConformanceError as error:
        return "no", str(error)
    if not keys:
        return "no", f"No key of the policy signed the bundle, only {', '.join(others)}."
    # Also the keys of a submission's runs, where the policy knows them.
    for name in sorted({key.id for key in keys} | (facts.own_keys.keys() & bench.policy.keys.keys())):
        if fault := bench.policy.keys[name].fault(bench.now):
            return "no", fault
    roles = [key.role for key in keys]
    if missing := [role for role in bench.policy.required_roles if role not in roles]:
        return "no", f"The policy requires a signature in the role {missing[0]}; there are: {', '.join(roles)}."
    vendors = sorted({key.name for key in keys if key.role == "vendor"})
    if len(vendors) > 1:
        return "no", f"Keys of several vendors signed: {', '.join(map(quoted, vendors))}."
    known = (bench.policy.keys.get(name) for name in facts.own_keys)
    if foreign := sorted({key.name for key in known if key and key.role == "vendor"} - set(vendors)):
        return "no", f"A run is signed by the key of another vendor: {', '.join(map(quoted, foreign))}."
    if facts.submission and vendors != [facts.predicate["vendor"]]:
        signer = ", ".join(map(quoted, vendors)) or "no vendor"
        return "no", f"The submission is by {quoted(facts.predicate['vendor'])}, and signed by {signer}."
    told = ", ".join(f"{quoted(key.name)} as {key.role} ({key.id[:16]})" for key in keys)
    return "yes", f"Signed by {told}{f'; further keys unknown to the policy: {len(others)}' if others else ''}."


# --- words -----------------------------------------------------------------------------------------------------------


def _told(waived: Sequence[str]) -> str:
    return "".join(f" {sentence}." for sentence in waived)
