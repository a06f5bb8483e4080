"""The lab's commands, from the challenge to the comparison, as they are typed."""

import csv
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from lab import OFFICIAL, VENDOR, WORKLOAD, Lab, accept_official, edit, end_journal, halve_speed

from conformance import evidence
from conformance.bundle.verify import verify
from conformance.cli import main
from conformance.report import challenge, dsse


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab whose policy holds today, and a run that went after its challenge and before now."""
    lab = Lab(tmp_path)
    now = datetime.now(timezone.utc)
    document = lab.document()
    accept_official(document)
    for name, days in (("issued", -3), ("expires", 30)):
        document[name] = (now + timedelta(days=days)).strftime(challenge.TIME_FORMAT)
    for key in document["keys"]:
        key |= {"valid_from": "2020-01-01T00:00:00Z", "valid_until": "2099-01-01T00:00:00Z"}
    (tmp_path / "policy.json").write_text(json.dumps(document))
    (tmp_path / "spent.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    assert main(["sign", "policy.json", "--type", "policy", "--signing-key", "lab.pem", "-o", "policy.dsse.json"]) == 0
    return lab


def bundle_of(lab, name="x.tar", run_name="first"):
    now = datetime.now(timezone.utc)
    run = lab.run(run_name, lab.challenge(issued=now - timedelta(days=1)))
    tell_time(run, now)
    end_journal(run)
    return lab.bundle(run, name=name)


def tell_time(run, now):
    """Let a run have gone an hour before."""
    moments = {
        "started": (now - timedelta(hours=2)).isoformat(timespec="milliseconds"),
        "ended": (now - timedelta(hours=1)).isoformat(timespec="milliseconds"),
    }
    edit(run / evidence.RUN, lambda record: record.update(moments))


UNDER = ["--policy", "policy.dsse.json", "--spent", "spent.jsonl", "--lab-key", "lab.pem.pub"]


def test_challenge_new_writes_what_a_run_can_answer(lab, capsys):
    command = [
        "challenge",
        "new",
        "--vendor",
        VENDOR,
        "--workload",
        WORKLOAD,
        "--signing-key",
        "lab.pem",
        "-o",
        "c.json",
    ]
    assert main(command) == 0
    read, _ = challenge.read(Path("c.json"))
    assert read.vendor == VENDOR
    assert f"seed     {challenge.seed(read.nonce, WORKLOAD)}  for {WORKLOAD}" in capsys.readouterr().out
    assert main(command) == 2  # what was issued is not overwritten
    assert "File exists" in capsys.readouterr().err
    assert main([*command[:5], "no-such", *command[6:]]) == 2


def test_verify_under_a_policy(lab, capsys):
    bundle_of(lab)
    capsys.readouterr()
    assert main(["verify", "x.tar", *UNDER, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {question["answer"] for question in shown["questions"]} == {"yes"}
    assert set(shown) == {"verdict", "questions", "report_id", "findings"}
    assert set(shown["questions"][0]) == {"id", "question", "answer", "message"}
    assert main(["verify", "x.tar", *UNDER, "--html", "x.html"]) == 0
    assert "REHEARSAL" in Path("x.html").read_text()


def test_verify_without_the_list_is_open_and_exits_with_2(lab, capsys):
    bundle_of(lab)
    assert main(["verify", "x.tar", "--policy", "policy.dsse.json"]) == 2
    assert "only the lab's list" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["--policy", "none.json"], "cannot be read"),
        (["--policy", "policy.json"], "envelope is refused"),
        (["--policy", "policy.dsse.json", "--lab-key", "vendor.pem.pub"], "not by the lab's key"),
        (["--spent", "spent.jsonl"], "say nothing without a policy"),
        (["--policy", "policy.dsse.json", "--spent", "none.jsonl"], "Begin an empty one"),
    ],
    ids=["absent", "unsigned", "of another lab", "without one", "without the list"],
)
def test_what_a_lab_cannot_judge_with(lab, args, reason, capsys):
    bundle_of(lab)
    assert main(["verify", "x.tar", *args]) == 2
    assert reason in capsys.readouterr().err


def test_countersign_states_and_checks(lab, capsys):
    bundle_of(lab)
    sign = ["countersign", "x.tar", *UNDER, "--signing-key", "lab.pem", "-o", "x.vsa.json"]
    assert main(sign) == 0
    statement = json.loads(dsse.parse(Path("x.vsa.json").read_bytes()).payload)
    verified = verify(Path("x.tar"))
    assert statement["predicateType"] == "https://slsa.dev/verification_summary/v1"
    assert statement["subject"][0]["digest"]["sha256"] == verified.report_id
    assert statement["predicate"]["verifiedLevels"] == ["INTERNEVO_REHEARSAL"]
    spent = challenge.read_spent(Path("spent.jsonl"))
    assert spent.nonces == {verified.nonces[0]: verified.report_id}
    assert spent.series == {verified.series[0]: verified.report_id}
    check = ["countersign", "x.tar", "--check", "x.vsa.json", "--lab-key"]
    assert main([*check, "lab.pem.pub"]) == 0
    assert main([*check, "vendor.pem.pub"]) == 2
    other = bundle_of(lab, "y.tar", "other")
    assert main(["countersign", str(other), "--check", "x.vsa.json", "--lab-key", "lab.pem.pub"]) == 2
    assert "is about the report" in capsys.readouterr().err


def test_a_challenge_answered_by_one_report_is_spent_for_another(lab, capsys):
    """The vendor signs the same run again, as another report, after the lab has countersigned the first."""
    bundle_of(lab)
    assert main(["countersign", "x.tar", *UNDER, "--signing-key", "lab.pem", "-o", "x.vsa.json"]) == 0
    assert main(["verify", "x.tar", *UNDER]) == 0
    nonce = verify(Path("x.tar")).nonces[0]
    Path("spent.jsonl").write_text(json.dumps({"nonce": nonce, "report_id": "0" * 64}) + "\n")
    capsys.readouterr()
    assert main(["verify", "x.tar", *UNDER]) == 1
    assert "was spent by the report" in " ".join(capsys.readouterr().out.split())


def test_a_bundle_that_failed_spends_its_challenge_too(lab, capsys):
    """Its log was edited before it was signed: the challenge was answered, and the answer is no good."""
    now = datetime.now(timezone.utc)
    run = lab.run("first", lab.challenge(issued=now - timedelta(days=1)))
    tell_time(run, now)
    log = run / "logs/node0/rank0.log"
    log.write_text(log.read_text().replace("tgs (tokens/gpu/second)=1", "tgs (tokens/gpu/second)=9", 1))
    end_journal(run)
    lab.bundle(run)
    assert main(["countersign", "x.tar", *UNDER, "--signing-key", "lab.pem", "-o", "x.vsa.json"]) == 1
    statement = json.loads(dsse.parse(Path("x.vsa.json").read_bytes()).payload)
    assert statement["predicate"]["verificationResult"] == "FAILED"
    verified = verify(Path("x.tar"))
    assert challenge.read_spent(Path("spent.jsonl")).nonces == {verified.nonces[0]: verified.report_id}
    assert main(["countersign", "x.tar", "--check", "x.vsa.json", "--lab-key", "lab.pem.pub"]) == 1


def test_another_vendors_challenge_is_not_spent_by_who_copies_it(lab, capsys):
    now = datetime.now(timezone.utc)
    run = lab.run("first", lab.challenge("Other Silicon", issued=now - timedelta(days=1)))
    tell_time(run, now)
    end_journal(run)
    lab.bundle(run)
    assert main(["countersign", "x.tar", *UNDER, "--signing-key", "lab.pem", "-o", "x.vsa.json"]) == 1
    assert Path("spent.jsonl").read_text() == ""


def official_of(lab, **run):
    now = datetime.now(timezone.utc)
    made = lab.official(lab.challenge(workloads=(OFFICIAL,), issued=now - timedelta(days=1)), **run)
    tell_time(made, now)
    lab.journal_again(made, OFFICIAL)
    return lab.submission([made], name="x.tar", chain=False)


@pytest.mark.parametrize(
    ("seconds", "verdict", "result", "level", "code"),
    [
        (260.0, "CONFORMANT", "PASSED", "INTERNEVO_CONFORMANT", 0),
        (400.0, "NOT_CONFORMANT", "FAILED", "FAILED", 1),
    ],
    ids=["fast enough", "too slow"],
)
def test_an_official_submission_is_judged_and_countersigned(lab, capsys, seconds, verdict, result, level, code):
    """A whole submission of LLaMA2 7B whose log is synthesised, against the published floor."""
    official_of(lab, seconds=seconds)
    capsys.readouterr()
    assert main(["verify", "x.tar", *UNDER, "--json"]) == code
    shown = json.loads(capsys.readouterr().out)
    assert shown["verdict"] == verdict
    no = {question["id"] for question in shown["questions"] if question["answer"] != "yes"}
    assert no == (set() if code == 0 else {"limits"})
    assert main(["countersign", "x.tar", *UNDER, "--signing-key", "lab.pem", "-o", "x.vsa.json"]) == code
    stated = json.loads(dsse.parse(Path("x.vsa.json").read_bytes()).payload)["predicate"]
    assert (stated["verificationResult"], stated["verifiedLevels"]) == (result, [level])
    capsys.readouterr()
    assert main(["countersign", "x.tar", "--check", "x.vsa.json", "--lab-key", "lab.pem.pub"]) == code
    assert capsys.readouterr().out.startswith(f"{result} {level}: stated ")
    assert main(["compare", "x.tar", *UNDER, "--csv", "c.csv"]) == (0 if code == 0 else 2)


def test_nobody_certifies_himself(lab, capsys):
    """Without a policy any self-made key would do; what would settle it, the answer says."""
    official_of(lab)
    capsys.readouterr()
    assert main(["verify", "x.tar", "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["verdict"] == "INCONCLUSIVE"
    answers = {question["id"]: question for question in shown["questions"]}
    assert {name for name, one in answers.items() if one["answer"] == "open"} == {"runs", "challenge", "trust"}
    assert answers["trust"]["message"].endswith("A lab's policy would settle it: --policy FILE.")
    assert main(["compare", "x.tar"]) == 2


def test_a_vendor_cannot_countersign(lab, capsys):
    bundle_of(lab)
    assert main(["countersign", "x.tar", *UNDER, "--signing-key", "vendor.pem", "-o", "x.vsa.json"]) == 2
    assert "is not a lab key" in capsys.readouterr().err
    assert not Path("x.vsa.json").exists()
    assert Path("spent.jsonl").read_text() == ""


def test_a_changed_bundle_is_not_covered_by_its_countersignature(lab, capsys):
    bundle = bundle_of(lab)
    assert main(["countersign", "x.tar", *UNDER, "--signing-key", "lab.pem", "-o", "x.vsa.json"]) == 0
    data = bytearray(bundle.read_bytes())
    at = data.index(b"tgs (tokens/gpu/second)=") + 24
    data[at] ^= 1
    bundle.write_bytes(data)
    assert main(["countersign", "x.tar", "--check", "x.vsa.json", "--lab-key", "lab.pem.pub"]) == 2
    assert "The bundle is not sound" in capsys.readouterr().err


def test_compare_ranks_what_holds_and_names_what_does_not(lab, capsys):
    bundle_of(lab)
    broken = bundle_of(lab, "broken.tar", "second")
    data = bytearray(broken.read_bytes())
    data[data.index(b"tgs (tokens/gpu/second)=") + 24] ^= 1
    broken.write_bytes(data)
    capsys.readouterr()
    assert main(["compare", "x.tar", "broken.tar", *UNDER, "--csv", "c.csv", "--html", "c.html"]) == 1
    shown = capsys.readouterr().out
    assert "broken.tar is NOT_CONFORMANT and not ranked. files: " in " ".join(shown.split())
    with Path("c.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    verified = verify(Path("x.tar"))
    assert float(row["tgs"]) == verified.predicate["metrics"]["tgs"]["median"]
    assert (row["vendor"], row["verdict"], row["joules_per_token"]) == (VENDOR, "REHEARSAL", "")
    assert "x.tar" in Path("c.html").read_text()
    assert main(["compare", "broken.tar", *UNDER]) == 2


def test_compare_ranks_by_tgs(lab, capsys, monkeypatch):
    """The slow one is named first; at 80 columns no digit of a figure is left out, and no word is broken."""
    monkeypatch.setenv("COLUMNS", "80")
    now = datetime.now(timezone.utc)
    slow = lab.run("slow", lab.challenge(issued=now - timedelta(days=1)))
    tell_time(slow, now)
    halve_speed(slow)
    end_journal(slow)
    lab.bundle(slow, name="slow.tar")
    bundle_of(lab, "fast.tar", "fast")
    from conformance.bundle import compare
    from conformance.report.wording import number

    rows, left_out = compare.compare([Path("slow.tar"), Path("fast.tar")], lab_bench())
    assert not left_out
    assert [row["name"] for row in rows] == ["fast.tar", "slow.tar"]
    assert rows[0]["tgs"] == pytest.approx(2 * rows[1]["tgs"], rel=1e-3)
    capsys.readouterr()
    assert main(["compare", "slow.tar", "fast.tar"]) == 0
    shown = capsys.readouterr().out
    assert all(number(row[figure]) in shown for row in rows for figure in ("tgs", "tflops", "loss"))
    assert all(word in shown for word in (*(row["workload"] for row in rows), "REHEARSAL", "fast.tar", "slow.tar"))
    assert "…" not in shown
    assert "J/token" not in shown  # what no run's evidence tells has no column


def test_the_same_report_twice_is_ranked_once(lab, capsys):
    bundle_of(lab)
    Path("copy.tar").write_bytes(Path("x.tar").read_bytes())
    from conformance.bundle import compare

    rows, left_out = compare.compare([Path("x.tar"), Path("copy.tar")], lab_bench())
    assert [row["name"] for row in rows] == ["x.tar"]
    assert left_out == ["copy.tar is the report of x.tar again and not ranked twice."]


def lab_bench():
    from conformance.bundle.policy import Bench

    return Bench(None, datetime.now(timezone.utc))
