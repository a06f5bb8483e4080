"""Every way to claim more than was done, against a lab with a policy: each must be refused with a sentence."""

import hashlib
import json
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from lab import (
    ACCURACY,
    ISSUED,
    NOW,
    STATED,
    VENDOR,
    WORKLOAD,
    Lab,
    accept_accuracy,
    answers,
    attempt,
    edit,
    end_journal,
    members_of,
    refresh,
)

from conformance import evidence, journal
from conformance.bundle import archive, policy
from conformance.bundle.policy import Bench
from conformance.bundle.verify import verify
from conformance.checks.finding import Result, Verdict
from conformance.cli import main
from conformance.errors import JsonError, PolicyError
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report import challenge, dsse, statement
from conformance.report.build import write_report
from conformance.selftest.run import keep_preflight


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One lab with one honest bundle, made once."""
    lab = Lab(tmp_path_factory.mktemp("lab"))
    return lab, lab.bundle()


@pytest.fixture
def honest(made, tmp_path):
    """The same, with a copy of the bundle to spoil."""
    lab, bundle = made
    return lab, Path(shutil.copy(bundle, tmp_path))


def sentence(verification, question):
    (found,) = [answer for answer in verification.answers if answer.id == question]
    assert found.message.isascii()
    assert found.message.isprintable()
    assert len(found.message) < 2000
    return found.answer, found.message


# --- what is accepted ------------------------------------------------------------------------------------------------


def test_an_honest_bundle_answers_every_question_with_yes(honest):
    lab, bundle = honest
    verification = verify(bundle, lab.bench())
    assert set(answers(verification).values()) == {"yes"}
    assert verification.verdict is Verdict.REHEARSAL
    assert verification.vendor == VENDOR
    assert sentence(verification, "plan")[1] == "3 checks passed."
    signed = len(archive.read_index(bundle).members) - 1
    assert sentence(verification, "files")[1] == f"All {signed} files have the signed SHA-256."
    assert list(answers(verification)) == [
        "archive",
        "signature",
        "schema",
        "files",
        "suite",
        "recomputed",
        "plan",
        "source",
        "consistency",
        "limits",
        "data",
        "checks",
        "journal",
        "runs",
        "challenge",
        "trust",
    ]


def test_without_a_policy_what_needs_trust_stays_open(honest):
    _, bundle = honest
    verification = verify(bundle)
    assert {name for name, answer in answers(verification).items() if answer == "open"} == {
        "runs",
        "challenge",
        "trust",
    }
    assert verification.verdict is Verdict.REHEARSAL


# What the fixture's preflight measured of its own host.
TOLD_BY_PREFLIGHT = ("processor", "processors_per_node", "cores_per_node", "memory_gib_per_node", "operating_system")


def second_run(lab, first):
    """Another attempt of the same system, with its own times, and rounded otherwise in one step."""
    run = lab.run("second", (first / evidence.CHALLENGE).read_bytes())
    log = run / "logs/node0/rank0.log"
    moment = re.compile(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d")

    def later(match):
        return str(datetime.fromisoformat(match[0]) + timedelta(seconds=1))

    text = moment.sub(later, log.read_text())
    log.write_text(re.sub(r"(step=3 loss=\d\.\d{4})\d+", r"\g<1>", text, count=1))
    return run


def test_an_honest_submission_of_two_runs(lab):
    first = lab.run("first")
    verification = verify(lab.submission([first, second_run(lab, first)]), lab.bench())
    assert set(answers(verification).values()) == {"yes"}, [a for a in verification.answers if a.answer != "yes"]
    assert "devices" in answers(verification)
    assert verification.verdict is Verdict.REHEARSAL
    assert {finding["run"] for finding in verification.to_json()["findings"]} == {"first", "second"}


def test_a_preflight_counts_as_one_and_is_journalled(lab):
    def require(document):
        document["workloads"][0]["preflights"] = 1

    first = lab.run("first")
    told = {name: value for name, value in STATED.items() if name not in TOLD_BY_PREFLIGHT}
    bundle = lab.submission([first, lab.preflight(first)], chain=False, stated=told)
    verification = verify(bundle, lab.bench(require))
    asked = answers(verification)
    assert {asked[name] for name in ("schema", "files", "recomputed", "journal", "runs", "challenge", "trust")} == {
        "yes"
    }
    assert "1 attempt of preflight, 1 of them here" in sentence(verification, "journal")[1]


def test_a_preflight_on_the_shapes_of_a_workload_that_is_not_accepted_says_which_to_measure(lab):
    told = {name: value for name, value in STATED.items() if name not in TOLD_BY_PREFLIGHT}
    bundle = lab.submission([lab.preflight(lab.run("first"))], chain=False, stated=told)
    other = lab.bench(lambda document: document["workloads"][0].update(name="tiny-accuracy"))
    answer, message = sentence(verify(bundle, other), "suite")
    assert answer == "no"
    assert "measured the shapes of tiny-perf, a workload that the policy does not accept; measure" in message


def add_second_device(told):
    records = told["processes"][0]["records"]
    (first,) = (record for record in records if record["kind"] == "identity")
    records.append({**first, "index": 1})


def of_full_size(tflops):
    """Make a preflight one of full size, of both devices of the run, that reached this in every product."""

    def change(run):
        edit(run / evidence.PREFLIGHT, lambda setup: setup.update(rehearsal=False))
        edit(run / "environment/preflight-host.json", add_second_device)
        path = run / "environment/preflight-device.json"
        path.write_text(re.sub(r'"tflops": [\d.e-]+', f'"tflops": {tflops}', path.read_text()))

    return change


@pytest.mark.parametrize("kept", [None, 1000.0], ids=["the run kept none", "the run kept a forged one"])
@pytest.mark.parametrize(("share", "answer"), [(0.96, "yes"), (0.9, "no")])
def test_a_run_is_held_against_the_bundles_own_preflight(lab, kept, share, answer):
    perf = lab.run("perf")
    if kept is not None:
        keep_preflight(perf, kept)
    needed = judge(RunDirectory(perf)).metrics["tflops"]["model_causal"]
    verification = verify(lab.with_preflight(perf, of_full_size(share * needed)))
    assert answers(verification)["recomputed"] == "yes"
    assert sentence(verification, "consistency")[0] == answer
    (run,) = (run for run in verification.runs if run.name == "perf")
    (found,) = (f for f in run.findings if f.check == "log-utilisation")
    assert (found.result is Result.PASS) is (answer == "yes")
    assert "the GEMM ceiling of preflight" in found.message
    assert run.rebuilt["verdict"] == ("REHEARSAL" if answer == "yes" else "NOT_CONFORMANT")
    mfu = run.rebuilt["metrics"]["mfu"]
    assert (mfu["ceiling"], mfu["measured_ceiling_causal"]) == ("preflight", pytest.approx(1 / share))
    full = judge(RunDirectory(perf)).metrics["tflops"]["model"]
    assert mfu["measured_ceiling"] == pytest.approx(full / (share * needed))


def spent_by(verification):
    """The lab's list after it countersigned a bundle."""
    told = verification.report_id
    return challenge.Spent(dict.fromkeys(verification.nonces, told), dict.fromkeys(verification.series, told))


def test_the_same_bundle_may_be_verified_again_after_its_challenge_was_spent(honest):
    lab, bundle = honest
    first = verify(bundle, lab.bench())
    assert verify(bundle, lab.bench(spent=spent_by(first))).verdict is Verdict.REHEARSAL


# --- attacks on who signed -------------------------------------------------------------------------------------------


def key(number, **changes):
    return lambda document: document["keys"][number].update(changes)


def no_vendor(document):
    del document["keys"][1]


def other_role(document):
    document["keys"][1]["role"] = "operator"


def floor(tgs):
    entry = {
        "workload": WORKLOAD,
        "device": "*",
        "metric": "tgs",
        "value": tgs,
        "unit": "tokens/device/s",
        "source": "the lab",
        "date": "2026-11-01",
        "runs": 3,
        "status": "policy",
    }
    return lambda document: document["floors"].append(entry)


POLICY_ATTACKS = {
    "a key that the policy does not know": (no_vendor, "trust", "No key of the policy signed the bundle"),
    "a revoked key": (key(1, revoked="stolen in May"), "trust", "is revoked: stolen in May"),
    "an expired key": (key(1, valid_until="2026-11-01T00:00:00Z"), "trust", "is valid from 2026-01-01T00:00:00Z to 20"),
    "a key that is not valid yet": (key(1, valid_from="2026-12-01T00:00:00Z"), "trust", "not at 2026-11-24"),
    "a key in another role": (other_role, "trust", "requires a signature in the role vendor; there are: operator"),
    "a missing second role": (
        lambda document: document.update(required_roles=["vendor", "operator"]),
        "trust",
        "requires a signature in the role operator",
    ),
    "another vendor's challenge": (
        key(1, name="Other Silicon"),
        "challenge",
        "was issued to 'Example Silicon'; the bundle is of 'Other Silicon'",
    ),
    "a suite that is not accepted": (
        lambda document: document["suites"][0].update(tree_digest="0" * 64),
        "suite",
        "The policy does not accept suite",
    ),
    "a workload that is not accepted": (
        lambda document: document["workloads"][0].update(name="tiny-accuracy"),
        "suite",
        "does not accept the workload tiny-perf",
    ),
    "a spec that was changed": (
        lambda document: document["workloads"][0].update(digest="0" * 64),
        "suite",
        "does not accept this spec of tiny-perf",
    ),
    "too few runs": (lambda document: document["workloads"][0].update(runs=2), "runs", "1 runs of tiny-perf; the"),
    "no preflight": (
        lambda document: document["workloads"][0].update(preflights=1),
        "runs",
        "0 preflights for tiny-perf; the policy requires 1",
    ),
    "a challenge of a revoked lab key": (
        key(0, revoked="lost"),
        "challenge",
        "is revoked: lost",
    ),
    "a bundle that is too large": (
        lambda document: document["limits"].update(total_bytes=4096),
        "archive",
        "more than the 4096 bytes allowed",
    ),
    "too many files": (lambda document: document["limits"].update(members=3), "archive", "more than the 3 files"),
    "a floor that is not reached": (
        floor(1e9),
        "limits",
        "against a floor of 1e+09",
    ),
}


@pytest.mark.parametrize("attack", POLICY_ATTACKS)
def test_refused_under_the_policy(honest, attack):
    lab, bundle = honest
    change, question, reason = POLICY_ATTACKS[attack]
    document = lab.document()
    document["keys"].append(lab.entry("second", "lab", "Example Lab"))
    change(document)
    verification = verify(bundle, Bench(policy.load(lab.envelope(document, "second")), NOW, challenge.Spent()))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    answer, message = sentence(verification, question)
    assert answer == "no"
    assert reason in message


def test_the_name_of_the_vendor_in_a_submission_is_not_enough(lab):
    bundle = lab.submission([lab.run()], vendor="Other Silicon")
    verification = verify(bundle, lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "by 'Other Silicon', and signed by 'Example Silicon'" in sentence(verification, "trust")[1]


def test_two_keys_of_two_roles_are_two_signatures(honest):
    lab, bundle = honest

    def require(document):
        document["required_roles"] = ["vendor", "operator"]

    index = archive.read_index(bundle)
    members = {name: archive.open_member(index, name).read() for name in index.members}
    members[evidence.REPORT] = dsse.add_signatures(members[evidence.REPORT], [lab.key["operator"]])
    archive.write_bundle(bundle, members)
    assert verify(bundle, lab.bench(require)).verdict is Verdict.REHEARSAL


def test_a_policy_that_is_over_judges_nothing(honest):
    lab, bundle = honest
    with pytest.raises(PolicyError, match="holds from"):
        verify(bundle, lab.bench(now=NOW + timedelta(days=4000)))


# --- attacks on the challenge ----------------------------------------------------------------------------------------


CHALLENGE_ATTACKS = {
    "none": (lambda lab: lab.run(answer=False), "The run answers no challenge, and the policy requires one"),
    "one of another lab": (
        lambda lab: lab.run(envelope=lab.challenge(signer="stranger")),
        "0 of the accepted keys signed",
    ),
    "one that the vendor made": (
        lambda lab: lab.run(envelope=lab.challenge(signer="vendor")),
        "0 of the accepted keys signed",
    ),
    "one of another vendor": (lambda lab: lab.run(envelope=lab.challenge("Other Silicon")), "was issued to 'Other"),
    "one for another workload": (
        lambda lab: lab.run(envelope=lab.challenge(workloads=("llama2-7b-perf",))),
        "is for llama2-7b-perf, not for tiny-perf",
    ),
    "one that had expired": (
        lambda lab: lab.run(envelope=lab.challenge(issued=ISSUED - timedelta(days=9), days=8)),
        "and expired 2026-11-22T12:00:00Z",
    ),
    "one that was issued after the run": (
        lambda lab: lab.run(envelope=lab.challenge(issued=NOW - timedelta(hours=1))),
        "the challenge was issued 2026-11-24T11:00:00Z",
    ),
}


@pytest.mark.parametrize(("seconds", "answer"), [(0, "yes"), (-1, "no")])
def test_a_run_may_begin_when_its_challenge_is_issued_and_not_before(lab, seconds, answer):
    run = lab.run()
    started = json.loads((run / evidence.RUN).read_text())["started"]
    issued = datetime.fromisoformat(started).replace(microsecond=0)
    run = lab.run("second", lab.challenge(issued=issued))
    begun = (issued + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    edit(run / evidence.RUN, lambda record: record.update(started=begun))
    refresh(run)
    assert sentence(verify(lab.bundle(run), lab.bench()), "challenge")[0] == answer


@pytest.mark.parametrize("attack", CHALLENGE_ATTACKS)
def test_a_challenge_that_is_refused(lab, attack):
    make, reason = CHALLENGE_ATTACKS[attack]
    verification = verify(lab.bundle(make(lab)), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    answer, message = sentence(verification, "challenge")
    assert answer == "no"
    assert reason in message


def test_a_log_that_was_made_before_shows_another_seed(lab):
    """The old run gets the new challenge: its seed is another. With the request rewritten, its log's head differs."""
    old, today = lab.run("old"), lab.challenge()
    (old / evidence.CHALLENGE).write_bytes(today)
    refresh(old)
    verification = verify(lab.bundle(old), lab.bench())
    assert "The run's seed is" in sentence(verification, "challenge")[1]
    seed = challenge.seed(challenge.parse(today).nonce, WORKLOAD)
    edit(old / evidence.REQUEST, lambda request: request.update(seed=seed))
    refresh(old)
    verification = verify(lab.bundle(old, name="y.tar"), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert f"expected {seed}" in sentence(verification, "plan")[1]


def edited(lab, old, envelope):
    """An old run for a new challenge: request, log and journal say the new seed throughout."""
    before = json.loads((old / evidence.REQUEST).read_text())["seed"]
    seed = challenge.seed(challenge.parse(envelope).nonce, WORKLOAD)
    (old / evidence.CHALLENGE).write_bytes(envelope)
    edit(old / evidence.REQUEST, lambda request: request.update(seed=seed))
    log = old / "logs/node0/rank0.log"
    log.write_text(log.read_text().replace(str(before), str(seed)))
    refresh(old)
    return old


def test_a_log_whose_seed_was_edited_is_known_again_by_what_it_computed(lab):
    """Nothing inside the bundle shows it; the lab's list of what was answered does."""
    old = lab.run("old")
    first = verify(lab.bundle(old), lab.bench())
    again = lab.bundle(edited(lab, old, lab.challenge()), name="y.tar")
    assert set(answers(verify(again, lab.bench())).values()) == {"yes"}
    verification = verify(again, lab.bench(spent=spent_by(first)))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    told = f"Its losses and gradient norms are those of a run of the report {first.report_id}."
    assert sentence(verification, "challenge") == ("no", told)


def test_it_is_known_again_at_another_vendor_and_without_a_challenge(lab):
    def other_vendor(document):
        document["keys"][1]["name"] = "Other Silicon"

    def none_required(document):
        document["challenge_required"] = False

    old = lab.run("old")
    spent = spent_by(verify(lab.bundle(old), lab.bench()))
    again = lab.bundle(edited(lab, old, lab.challenge("Other Silicon")), name="y.tar")
    assert "are those of a run" in sentence(verify(again, lab.bench(other_vendor, spent=spent)), "challenge")[1]
    (old / evidence.CHALLENGE).unlink()
    refresh(old)
    without = lab.bundle(old, name="z.tar")
    assert "are those of a run" in sentence(verify(without, lab.bench(none_required, spent=spent)), "challenge")[1]


def test_a_preflight_answers_no_challenge_and_spends_none(lab):
    """Another vendor's, laid beside a preflight, would be spent with the bundle."""
    bundle = lab.with_preflight()
    copied = lab.resubmitted(members_of(bundle), "preflight", changed={evidence.CHALLENGE: lab.challenge("Other")})
    assert verify(copied).nonces == verify(bundle).nonces
    assert len(verify(bundle).nonces) == 1


def test_a_spent_challenge_is_refused(honest):
    lab, bundle = honest
    nonce = verify(bundle).nonces[0]
    verification = verify(bundle, lab.bench(spent=challenge.Spent({nonce: "0" * 64})))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert f"{nonce[:16]} was spent by the report 000" in sentence(verification, "challenge")[1]


def test_without_the_list_of_spent_challenges_the_verdict_stays_open(honest):
    lab, bundle = honest
    bench = Bench(lab.bench().policy, NOW, None)
    verification = verify(bundle, bench)
    assert sentence(verification, "challenge")[0] == "open"
    assert verification.verdict is Verdict.INCONCLUSIVE


# --- attacks on the evidence -----------------------------------------------------------------------------------------


def sign_over(lab, bundle, change):
    """The vendor changes its own report and signs that: it holds machine and key."""
    index = archive.read_index(bundle)
    members = {name: archive.open_member(index, name).read() for name in index.members}
    document = json.loads(dsse.parse(members[evidence.REPORT]).payload)
    change(document["predicate"])
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in document["subject"]}
    payload = statement.build(document["predicate"], subjects)
    members[evidence.REPORT] = dsse.sign(payload, statement.PAYLOAD_TYPE, [lab.key["vendor"]])
    archive.write_bundle(bundle, members)


def without(predicate, check):
    predicate["findings"] = [finding for finding in predicate["findings"] if finding["check"] != check]


def finding(predicate, check):
    return next(finding for finding in predicate["findings"] if finding["check"] == check)


REPORT_LIES = {
    "a better figure": lambda p: p["metrics"]["tgs"].update(median=p["metrics"]["tgs"]["median"] * 1.01),
    "a required check left out": lambda p: without(p, "log-tokens"),
    "a required check twice": lambda p: p["findings"].append(finding(p, "log-tokens")),
    "a required check skipped": lambda p: finding(p, "log-tokens").update(result="SKIP"),
    "a failure turned into a pass": lambda p: finding(p, "tgs-floor").update(result="PASS"),
    "a floor lowered": lambda p: finding(p, "tgs-floor").update(limit=1.0, limit_source="published", result="PASS"),
    "a verdict raised": lambda p: p.update(verdict="CONFORMANT"),
    "an official workload": lambda p: p["workload"].update(official=True),
    "another device": lambda p: p["devices"][0].update(model="better"),
    "another patch list": lambda p: p["internevo"].update(patches=[]),
    "another batch": lambda p: p["plan"].update(global_batch_size=1024),
    "another nonce": lambda p: p["challenge"].update(nonce="0" * 64),
    "no challenge": lambda p: p.update(challenge=None),
    "a shorter journal": lambda p: p["journal"].update(entries=1),
    "a redaction unsaid": lambda p: p["redactions"].append({"rule": "host", "file": "logs/x", "count": 1}),
}


@pytest.mark.parametrize("lie", REPORT_LIES)
def test_a_vendor_who_signs_a_lie_is_refuted_by_the_evidence(honest, lie):
    lab, bundle = honest
    sign_over(lab, bundle, REPORT_LIES[lie])
    verification = verify(bundle, lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    answer, message = sentence(verification, "recomputed")
    assert answer == "no"
    assert "the report differs at" in message


def test_a_required_check_twice_is_named_also_where_the_suite_is_another(honest):
    lab, bundle = honest

    def double(predicate):
        predicate["findings"].append(finding(predicate, "log-tokens"))

    sign_over(lab, bundle, double)
    assert "log-tokens stands in the report 2 times" in sentence(verify(bundle, lab.bench()), "checks")[1]
    sign_over(lab, bundle, lambda predicate: without(predicate, "log-tokens"))
    assert "log-tokens is missing: it stands in the report not at all" in sentence(verify(bundle), "checks")[1]


def test_a_floor_inside_the_bundle_is_an_unknown_file_and_changes_nothing(lab):
    """No file of a bundle is read for what must be reached."""
    run = lab.run()
    (run / "configs/floors.toml").write_text("[[floor]]\nvalue = 1.0\n")
    refresh(run)

    verification = verify(lab.bundle(run), lab.bench(floor(1e9)))
    assert sentence(verification, "limits")[0] == "no"


def test_a_config_swapped_for_another(lab):
    run = lab.run()
    config = run / evidence.CONFIG
    config.write_text(config.read_text() + "\nseed = 1\n")
    end_journal(run)
    verification = verify(lab.bundle(run), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "run-config" in sentence(verification, "plan")[1]


# --- attacks on the journal and on several runs ----------------------------------------------------------------------


def failed_first(lab):
    """A run whose journal shows a failed attempt before it."""
    run = lab.run()
    own = (run / evidence.JOURNAL).read_bytes()
    (run / evidence.JOURNAL).unlink()
    attempt(run / evidence.JOURNAL, "failed", outcome="stopped", evidence="0" * 64)
    assert journal.parse(own).entries
    attempt(run / evidence.JOURNAL, run.name, evidence=evidence.attempt_digest(RunDirectory(run)))
    return run


def test_a_failed_attempt_is_told_and_counted(lab):
    bundle = lab.bundle(failed_first(lab))
    assert "2 attempts of tiny-perf, 1 of them here" in sentence(verify(bundle, lab.bench()), "journal")[1]

    def strict(document):
        document["workloads"][0]["max_attempts"] = 1

    verification = verify(bundle, lab.bench(strict))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert (
        "2 attempts of tiny-perf, 1 of them in this bundle; the policy allows 1"
        in (sentence(verification, "journal")[1])
    )


@pytest.mark.parametrize("removed", [slice(0, 2), slice(1, 2), slice(0, 1)], ids=["both lines", "its end", "its start"])
def test_a_failed_attempt_left_out_breaks_the_chain(lab, removed):
    """The report cannot even be written over it; a vendor who patches that out meets the verifier."""
    run = failed_first(lab)
    bundle = lab.bundle(run)
    index = archive.read_index(bundle)
    members = {name: archive.open_member(index, name).read() for name in index.members}
    lines = members[evidence.JOURNAL].splitlines(keepends=True)
    del lines[removed]
    members[evidence.JOURNAL] = b"".join(lines)
    archive.write_bundle(bundle, members)
    verification = verify(bundle, lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "journal.jsonl was changed" in sentence(verification, "files")[1]
    document = json.loads(dsse.parse(members[evidence.REPORT]).payload)
    subjects = {subject["name"]: subject["digest"]["sha256"] for subject in document["subject"]}
    subjects[evidence.JOURNAL] = index_digest(members[evidence.JOURNAL])
    payload = statement.build(document["predicate"], subjects)
    members[evidence.REPORT] = dsse.sign(payload, statement.PAYLOAD_TYPE, [lab.key["vendor"]])
    archive.write_bundle(bundle, members)
    verification = verify(bundle, lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "chain is broken" in sentence(verification, "journal")[1]


def index_digest(data):
    return hashlib.sha256(data).hexdigest()


def test_a_failed_attempt_left_out_of_one_of_two_journals(lab):
    """The chain made anew over the shorter story: the other run's journal tells the longer one."""
    first = failed_first(lab)
    second = second_run(lab, first)
    journal_again = second / evidence.JOURNAL
    journal_again.unlink()
    attempt(journal_again, first.name, evidence=evidence.attempt_digest(RunDirectory(first)))
    attempt(journal_again, second.name, evidence=evidence.attempt_digest(RunDirectory(second)))
    verification = verify(lab.submission([first, second], chain=False), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "The journals of first and second part" in sentence(verification, "journal")[1]


def test_two_runs_from_two_machines(lab):
    first = lab.run("first")
    second = second_run(lab, first)
    for path in (second / "environment").glob("rank*.json"):
        edit(path, lambda record: record.update(host="elsewhere"))
    verification = verify(lab.submission([first, second]), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    answer, message = sentence(verification, "devices")
    assert answer == "no"
    assert "elsewhere" in message


def test_a_copy_that_differs_in_what_is_no_figure_is_no_second_run(lab):
    first = lab.run("first")
    second = Path(shutil.copytree(first, first.with_name("second")))
    log = second / "logs/node0/rank0.log"
    log.write_bytes(b"\n" + log.read_bytes())
    verification = verify(lab.submission([first, second]), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert sentence(verification, "runs") == ("no", "first and second are one and the same run.")


def test_one_run_given_twice_is_one_run(lab):
    first = lab.run("first")
    second = Path(shutil.copytree(first, first.with_name("second")))
    verification = verify(lab.submission([first, second], chain=False), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "first and second are one and the same run" in sentence(verification, "runs")[1]


def test_another_vendors_report_signed_again(lab):
    """Evidence copied from another vendor and signed by one's own good key still carries the other's challenge."""
    run = lab.run(envelope=lab.challenge("Other Silicon"))
    verification = verify(lab.bundle(run), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "was issued to 'Other Silicon'; the bundle is of 'Example Silicon'" in sentence(verification, "challenge")[1]


def test_a_run_taken_out_of_one_submission_and_put_into_another(lab):
    first = lab.run("first")
    bundle = lab.submission([first, second_run(lab, first)])
    index = archive.read_index(bundle)
    members = {name: archive.open_member(index, name).read() for name in index.members}
    archive.write_bundle(bundle, {n: data for n, data in members.items() if not n.startswith("runs/second/")})
    verification = verify(bundle, lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "runs/second/" in sentence(verification, "files")[1]


# --- waivers and rulings ---------------------------------------------------------------------------------------------


def broken_config(lab):
    run = lab.run()
    config = run / evidence.CONFIG
    config.write_text(config.read_text() + "# by hand\n")
    end_journal(run)
    return lab.bundle(run)


def waiver(**changes):
    entry = {
        "check": "run-config",
        "vendor": VENDOR,
        "workload": WORKLOAD,
        "reason": "agreed on 2026-11-20",
        "expires": "2026-12-01T00:00:00Z",
    }
    return lambda document: document["waivers"].append({**entry, **changes})


def test_a_waiver_is_told_with_the_verdict(lab):
    bundle = broken_config(lab)
    assert verify(bundle, lab.bench()).verdict is Verdict.NOT_CONFORMANT
    verification = verify(bundle, lab.bench(waiver()))
    assert verification.verdict is Verdict.REHEARSAL
    found = next(one for run in verification.runs for one in run.findings if one.check == "run-config")
    assert "waived until 2026-12-01T00:00:00Z: agreed on 2026-11-20" in found.message
    assert any("agreed on 2026-11-20" in answer.message for answer in verification.answers)


@pytest.mark.parametrize(
    "change",
    [
        {"expires": "2026-11-23T00:00:00Z"},
        {"vendor": "Other Silicon"},
        {"workload": "llama2-7b-perf"},
        {"check": "log-head"},
    ],
    ids=["expired", "of another vendor", "of another workload", "of another check"],
)
def test_a_waiver_that_does_not_apply(lab, change):
    assert verify(broken_config(lab), lab.bench(waiver(**change))).verdict is Verdict.NOT_CONFORMANT


def patched(lab, change=lambda run: None, names=("own.diff",)):
    run = lab.run()
    change(run)
    (run / "patches").mkdir()
    entries = []
    for name in names:
        (run / "patches" / name).write_text(f"--- a/{name}\n+++ b/{name}\n")
        digest = index_digest((run / "patches" / name).read_bytes())
        entries.append({"name": name, "sha256": digest, "files": [], "reason": "speed"})
    edit(run / evidence.RUN, lambda record: record.update(patch_files=entries))
    end_journal(run)
    return lab.bundle(run), *(entry["sha256"] for entry in entries)


@pytest.mark.parametrize(
    ("ruling", "verdict", "answer"),
    [(None, Verdict.INCONCLUSIVE, "open"), (True, Verdict.REHEARSAL, "yes"), (False, Verdict.NOT_CONFORMANT, "no")],
    ids=["not ruled on", "accepted", "refused"],
)
def test_a_vendors_patch_is_the_labs_to_rule_on(lab, ruling, verdict, answer):
    bundle, digest = patched(lab)

    def rule(document):
        if ruling is not None:
            document["patches"].append({"sha256": digest, "accepted": ruling, "reason": "seen by two people"})

    verification = verify(bundle, lab.bench(rule))
    assert verification.verdict is verdict
    assert sentence(verification, "source")[0] == answer


def test_of_several_patches_those_that_were_refused_are_named(lab):
    bundle, *digests = patched(lab, names=("fast.diff", "own.diff"))
    rulings = [{"sha256": digest, "accepted": digest == digests[1], "reason": "read"} for digest in digests]
    verification = verify(bundle, lab.bench(lambda document: document["patches"].extend(rulings)))
    assert sentence(verification, "source") == (
        "no",
        "patches-declared: The lab refused patches/fast.diff. patches/fast.diff: read; patches/own.diff: read.",
    )


def test_a_ruling_on_a_patch_settles_nothing_else(lab):
    bundle, digest = patched(lab, lambda run: (run / evidence.FAULTS).unlink())
    ruling = {"sha256": digest, "accepted": True, "reason": "seen by two people"}
    verification = verify(bundle, lab.bench(lambda document: document["patches"].append(ruling)))
    assert sentence(verification, "source")[0] == "yes"
    assert sentence(verification, "checks")[0] == "open"
    assert verification.verdict is Verdict.INCONCLUSIVE


def test_a_floor_of_the_policy_decides_where_the_suite_has_none(honest):
    lab, bundle = honest
    verification = verify(bundle, lab.bench(floor(1.0)))
    assert verification.verdict is Verdict.REHEARSAL
    found = next(one for one in verification.runs[0].findings if one.check == "tgs-floor")
    assert found.result.value == "PASS"
    assert found.limit == 1.0
    assert "the lab" in found.limit_source


def test_an_accuracy_run_without_a_fingerprint_of_its_data_is_refused(lab):
    run = lab.accuracy(lab.challenge(workloads=(ACCURACY,)))
    (run / evidence.DATA).unlink()
    lab.journal_accuracy(run)
    verification = verify(lab.bundle(run), lab.bench(accept_accuracy))
    told = "The evidence holds no fingerprint of the data that it trained on."
    assert sentence(verification, "data") == ("no", told)
    assert verification.verdict is Verdict.NOT_CONFORMANT


def test_a_floor_of_the_policy_for_tflops_decides_too(honest):
    lab, bundle = honest

    def tflops(value):
        def change(document):
            floor(value)(document)
            document["floors"][0].update(metric="tflops", unit="TFLOPS/device")

        return change

    for value, result in ((1e-9, "PASS"), (1e9, "FAIL")):
        (run,) = verify(bundle, lab.bench(tflops(value))).runs
        found = next(one for one in run.findings if one.check == "tflops-floor")
        assert (found.result.value, found.limit) == (result, value)


def test_two_faults_of_one_check_are_told_as_faults(lab):
    run = lab.run()
    faults = [{"kind": kind, "message": f"A {kind} came.", "next_step": "Look."} for kind in ("stall", "crash")]
    edit(run / evidence.FAULTS, lambda record: record.update(faults=faults))
    end_journal(run)
    answer, message = sentence(verify(lab.bundle(run), lab.bench()), "checks")
    assert answer == "no"
    assert "A stall came." in message
    assert "A crash came." in message


# --- text that attacks its reader ------------------------------------------------------------------------------------

HOSTILE = "\x1b[2J<script>alert(1)</script>\u202e\u200b[red]"


@pytest.mark.parametrize("place", ["model", "vendor", "host"])
def test_hostile_text_in_a_vendor_string_reaches_neither_terminal_nor_page(lab, place, capsys, tmp_path):
    run = lab.run()
    for path in (run / "environment").glob("rank*.json"):
        edit(path, lambda record: (record if place == "host" else record["device"]).update({place: HOSTILE}))
    end_journal(run)
    bundle = lab.bundle(run)
    assert main(["verify", str(bundle), "--html", str(tmp_path / "x.html")]) in (0, 1)
    assert main(["verify", str(bundle), "--json"]) in (0, 1)
    assert main(["compare", str(bundle), "--csv", str(tmp_path / "x.csv")]) in (0, 1, 2)
    shown = capsys.readouterr()
    page = (tmp_path / "x.html").read_text()
    for text in (shown.out, shown.err, page, (tmp_path / "x.csv").read_text()):
        assert not {"\x1b", "\u202e", "\u200b"} & set(text)
    assert "<script>alert" not in page


def test_write_report_refuses_a_report_that_its_own_schema_does_not_take(lab):
    """A vendor's string may be long or strange, but a report with a number that JSON does not have is never written."""
    run = lab.run()
    judgement = judge(RunDirectory(run))
    broken = type(judgement)(judgement.plan, judgement.findings, {"tgs": float("nan")}, judgement.verdict)
    with pytest.raises(JsonError):
        write_report(run, broken, lab.path["vendor"])
