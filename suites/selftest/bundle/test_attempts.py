"""Resumed runs and their data before a lab: one run in several attempts, and what pretends to be."""

import re
from dataclasses import replace

import pytest
from lab import ACCURACY, NOW, Lab, answers, edit, end_journal
from lab import accept_accuracy as accept

from conformance import evidence
from conformance.bundle import trust
from conformance.bundle import verify as verifying
from conformance.bundle.archive import read_index
from conformance.bundle.verify import verify
from conformance.checks import data as data_checks
from conformance.checks.finding import Result, Verdict
from conformance.data import Fingerprint


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path)


def answer(verification, question):
    return next((one.answer, one.message) for one in verification.answers if one.id == question)


def judged(lab, change=accept, **resumed):
    run = lab.accuracy(lab.challenge(workloads=(ACCURACY,)), **resumed)
    return verify(lab.bundle(run), None if change is None else lab.bench(change))


def test_a_resumed_run_is_one_attempt_and_its_interruption_is_told(lab):
    verification = judged(lab)
    assert set(answers(verification).values()) == {"yes"}, verification.answers
    assert verification.verdict is Verdict.REHEARSAL
    told = answer(verification, "journal")[1]
    assert "1 attempt of tiny-accuracy, 1 of them here" in told
    assert "It goes on from 'first' (interrupted)." in told


@pytest.mark.parametrize(
    ("resumes", "attempts", "sound"),
    [
        (("first", "other0"), 1, False),  # the evidence holds one earlier attempt, the chain shows two
        (("first", "first"), 2, True),  # gone on from the same checkpoint twice: two draws
        (("nobody",), 2, False),
        (("nobody", "first"), 2, True),  # one that is not here and says that it goes on from a run that never was
    ],
    ids=["a longer chain", "forked", "of nobody", "another one of nobody"],
)
def test_what_says_that_it_goes_on_and_does_not_is_an_attempt(lab, resumes, attempts, sound):
    verification = judged(lab, resumes=resumes)
    reply, told = answer(verification, "journal")
    assert (reply == "no") == (attempts > 1)
    assert f"{attempts} attempt" in told
    assert (answer(verification, "checks")[0] == "yes") == sound


def test_an_end_that_the_suite_does_not_write_is_shown_safely(lab):
    verification = judged(lab, outcome="\x1b[2J fine")
    assert "'first' (ended as '\\x1b[2J fine')" in answer(verification, "journal")[1]


def test_two_performance_runs_are_not_spliced_into_one(lab):
    """The best steps of each: the second is laid beside the first as if it went on from a checkpoint."""
    run = lab.run()
    for folder in ("logs", "environment"):
        for path in [path for path in (run / folder).rglob("*") if path.is_file()]:
            copy = run / folder / "segment0" / path.relative_to(run / folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    end_journal(run)
    verification = verify(lab.bundle(run), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "leaves no checkpoint to go on from" in answer(verification, "checks")[1]


def test_two_performance_runs_are_not_spliced_into_one_log(lab):
    """The head stands in it a second time, and says that the process goes on from a checkpoint."""
    run = lab.run()
    log = run / "logs/node0/rank0.log"
    lines = log.read_text().splitlines(keepends=True)
    half = next(number for number, line in enumerate(lines) if " step=10 " in line)
    head = lines[: next(number for number, line in enumerate(lines) if " step=0 " in line)]
    again = [line.replace("===New Run", "===Resume training from `local:ckpt/10` now; New Run") for line in head]
    log.write_text("".join([*lines[:half], *again, *lines[half:]]))
    end_journal(run)
    verification = verify(lab.bundle(run), lab.bench())
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "holds the steps of 2 processes" in answer(verification, "checks")[1]


def test_a_checkpoint_that_was_made_before_cannot_be_resumed_under_todays_nonce(lab):
    """Only the last attempt answers: the first, of another seed, may have been made at any time."""
    run = lab.accuracy(lab.challenge(workloads=(ACCURACY,)))
    log = run / "logs/segment0/node0/rank0.log"
    text = log.read_text()
    log.write_text(re.sub(r": \d+,( python random)", r": 7,\1", text, count=1))
    assert log.read_text() != text
    lab.journal_accuracy(run)
    verification = verify(lab.bundle(run), lab.bench(accept))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "seed is 7" in answer(verification, "plan")[1]


# --- data that the spec does not pin ---------------------------------------------------------------------------------


def unpinned(lab):
    """Facts of a real accuracy run, as if of an official workload whose spec pins no digest."""
    run = lab.accuracy(lab.challenge(workloads=(ACCURACY,)))
    gathered = {}

    def keep(facts, bench):
        gathered["facts"] = facts
        return trust.judge_trust(facts, bench)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verifying, "judge_trust", keep)
        verify(lab.bundle(run))
    facts = gathered["facts"]
    (one,) = facts.runs
    plan = verifying.judge(verifying.BundleEvidence(read_index(lab.folder / "x.tar"))).plan
    official = replace(plan, workload=replace(plan.workload, official=True))
    found = Fingerprint.from_json(evidence.read_json(evidence.RunDirectory(run), evidence.DATA))
    asked = data_checks.pinned(official, found, None)
    assert asked.result is Result.ERROR
    # A rehearsal has no floors and no curve of its device; an official run that skips a required check stays open.
    findings = tuple(
        asked if f.check == "data-pinned" else replace(f, result=Result.PASS) if f.result is Result.SKIP else f
        for f in one.findings
    )
    claim = {**one.predicate, "workload": {**one.predicate["workload"], "official": True}, "verdict": "INCONCLUSIVE"}
    return replace(facts, predicate=claim, runs=(replace(one, predicate=claim, findings=findings),)), found.digest


PINS = {
    "no policy": (None, "open", Verdict.INCONCLUSIVE),
    "pinned": (lambda digest: {"name": "rehearsal-corpus", "sha256": digest}, "yes", Verdict.CONFORMANT),
    "another digest": (lambda _: {"name": "rehearsal-corpus", "sha256": "0" * 64}, "no", Verdict.NOT_CONFORMANT),
    "as the data of another workload": (
        lambda digest: {"name": "RedPajama-Data-1T-Sample", "sha256": digest},
        "no",
        Verdict.NOT_CONFORMANT,
    ),
}


@pytest.mark.parametrize("pin", PINS)
def test_the_policy_settles_what_the_spec_does_not_pin(lab, pin):
    entry, reply, verdict = PINS[pin]
    facts, digest = unpinned(lab)

    def change(document):
        accept(document)
        document["data"] = [entry(digest)]

    bench = trust.Bench(None, NOW) if entry is None else lab.bench(change)
    judged = trust.judge_trust(facts, bench)
    assert next(one.answer for one in judged.answers if one.id == "data") == reply
    assert judged.verdict is verdict, judged.answers
    found = next(one for one in judged.findings[0] if one.check == "data-pinned")
    assert found.result is {"open": Result.ERROR, "yes": Result.PASS, "no": Result.FAIL}[reply]


@pytest.mark.parametrize(("official", "reply"), [(False, "no"), (True, "yes")], ids=["of a rehearsal", "its own"])
def test_an_official_run_needs_a_preflight_on_official_shapes(lab, official, reply):
    facts, _ = unpinned(lab)
    (run,) = facts.runs
    workload = {**run.predicate["workload"], "official": official}
    claim = {**run.predicate, "kind": "preflight", "workload": workload}
    preflight = replace(run, name="p", predicate=claim, rebuilt={}, attempt="another", findings=())

    def change(document):
        accept(document)
        document["workloads"][-1]["preflights"] = 1

    judged = trust.judge_trust(replace(facts, runs=(run, preflight)), lab.bench(change))
    assert next(one.answer for one in judged.answers if one.id == "runs") == reply


def test_a_pin_of_the_spec_is_not_overruled(lab):
    run = lab.accuracy(lab.challenge(workloads=(ACCURACY,)))
    for path in (run / "environment").rglob("data.json"):
        edit(path, other_data)
    lab.journal_accuracy(run)
    digest = evidence.read_json(evidence.RunDirectory(run), evidence.DATA)["digest"]

    def change(document):
        accept(document)
        document["data"] = [{"name": "rehearsal-corpus", "sha256": digest}]

    verification = verify(lab.bundle(run), lab.bench(change))
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert "data-pinned" in answer(verification, "checks")[1]


def other_data(data):
    found = Fingerprint.from_json(data)
    data.update(replace(found, shards=(replace(found.shards[0], sha256="0" * 64),)).to_json())
