"""Preflight, performance and accuracy of one system, from the vendor's bundle to the lab's comparison, as typed."""

import csv
import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from lab import ACCURACY, STATED, VENDOR, WORKLOAD, Lab, accept_accuracy, end_journal, halve_speed

from conformance.bundle import archive
from conformance.bundle.compare import compare
from conformance.bundle.policy import Bench
from conformance.bundle.verify import verify
from conformance.cli import main
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report import challenge, dsse
from conformance.report.build import write_report

# What the preflight measures of its own host.
MEASURED = ("processor", "processors_per_node", "cores_per_node", "memory_gib_per_node", "operating_system")
UNDER = ["--policy", "policy.dsse.json", "--lab-key", "lab.pem.pub", "--spent", "spent.jsonl"]


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab whose policy wants all three of a system, each once."""
    lab = Lab(tmp_path)
    document = lab.document()
    accept_accuracy(document)
    for accepted in document["workloads"]:
        accepted |= {"runs": 1, "preflights": 1, "max_attempts": 1}
    now = datetime.now(timezone.utc)
    for name, days in (("issued", -3), ("expires", 30)):
        document[name] = (now + timedelta(days=days)).strftime(challenge.TIME_FORMAT)
    for key in document["keys"]:
        key |= {"valid_from": "2020-01-01T00:00:00Z", "valid_until": "2099-01-01T00:00:00Z"}
    Path(tmp_path / "policy.json").write_text(json.dumps(document))
    Path(tmp_path / "spent.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")  # a terminal wide enough for a name on one line
    assert main(["sign", "policy.json", "--type", "policy", "--signing-key", "lab.pem", "-o", "policy.dsse.json"]) == 0
    return lab


def submitted(lab, system, change=lambda run: None):
    """The three rehearsals of one system in one reports folder, bundled by the command."""
    envelope = lab.challenge(workloads=(WORKLOAD, ACCURACY))
    lab.folder = lab.folder / system
    lab.folder.mkdir()
    perf = lab.run("perf", envelope)
    change(perf)
    end_journal(perf)
    accuracy = lab.accuracy(envelope, after=perf)
    runs = [perf, accuracy, lab.preflight(accuracy)]
    for run in runs:
        write_report(run, judge(RunDirectory(run)), lab.path["vendor"])
    stated = {name: value for name, value in STATED.items() if name not in MEASURED} | {"system_name": system}
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in stated.items()]
    Path(f"{system}.toml").write_text("".join(lines))
    lab.folder = lab.folder.parent
    command = ["bundle", *map(str, runs), "--vendor", VENDOR, "--system", f"{system}.toml"]
    assert main([*command, "--signing-key", "vendor.pem", "-o", f"{system}.tar"]) == 0
    return Path(f"{system}.tar")


def test_three_rehearsals_are_verified_countersigned_and_compared(lab, capsys):
    submitted(lab, "quick")
    submitted(lab, "slow", halve_speed)
    capsys.readouterr()
    assert main(["verify", "quick.tar", *UNDER, "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert {one["id"]: one["answer"] for one in shown["questions"] if one["answer"] != "yes"} == {}
    assert shown["verdict"] == "REHEARSAL"
    assert {finding["run"] for finding in shown["findings"]} == {"perf", "accuracy", "preflight"}
    assert main(["countersign", "quick.tar", *UNDER, "--signing-key", "lab.pem", "-o", "quick.vsa.json"]) == 0
    assert main(["countersign", "quick.tar", "--check", "quick.vsa.json", "--lab-key", "lab.pem.pub"]) == 0
    capsys.readouterr()
    # Both systems are made of one log, which the lab's list knows again.
    assert main(["compare", "slow.tar", "quick.tar", *UNDER]) == 1
    assert "slow.tar is NOT_CONFORMANT and not ranked. challenge: " in capsys.readouterr().out
    # The slower one is named first, and ranked last.
    Path("empty.jsonl").touch()
    command = ["compare", "slow.tar", "quick.tar", *UNDER[:-1], "empty.jsonl", "--csv", "c.csv", "--html", "c.html"]
    assert main(command) == 0, capsys.readouterr().out
    with Path("c.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows if row["workload"] == WORKLOAD] == ["quick / perf", "slow / perf"]
    quick, slow = (float(row["tgs"]) for row in rows if row["workload"] == WORKLOAD)
    assert quick == pytest.approx(2 * slow, rel=1e-3)
    assert {(row["mfu"], row["ceiling"]) for row in rows} == {("", "")}  # a rehearsal's products are too small for one
    page = Path("c.html").read_text()
    assert page.index("quick / perf") < page.index("slow / perf")
    shown = capsys.readouterr().out
    assert shown.index("quick / perf") < shown.index("slow / perf")


def test_hours_to_target_are_steps_until_it_was_met_at_the_median_speed(lab):
    bundle = submitted(lab, "one")
    verification = verify(bundle)
    rows, _ = compare([bundle], Bench(None, datetime.now(timezone.utc)))
    hours = {row["workload"]: row["hours_to_target"] for row in rows}
    assert hours[WORKLOAD] is None  # no target
    (run,) = (run for run in verification.runs if run.predicate["kind"] == "accuracy")
    metrics = run.predicate["metrics"]
    # 4 sequences of 256 tokens a step on 2 devices.
    per_device = (metrics["loss"]["held_since"] + 1) * 4 * 256 / 2
    assert hours[ACCURACY] == pytest.approx(per_device / metrics["tgs"]["median"] / 3600)


def test_energy_per_token_is_power_over_tgs(lab):
    def measure(run):
        rows = [f"{index}, 98 %, 1980 MHz, {watts} W" for _ in range(120) for index, watts in ((0, 300.0), (1, 500.0))]
        head = "index, utilization.gpu [%], clocks.current.sm [MHz], power.draw [W]"
        (run / "environment/telemetry-node0.csv").write_text("\n".join([head, *rows]) + "\n")

    rows, _ = compare([submitted(lab, "one", measure)], Bench(None, datetime.now(timezone.utc)))
    (row,) = (row for row in rows if row["workload"] == WORKLOAD)
    assert row["joules_per_token"] == pytest.approx(400.0 / row["tgs"])


@pytest.mark.parametrize("under", [UNDER, []], ids=["under a policy", "without one"])
def test_no_byte_of_the_vendors_statement_can_be_changed(lab, under, capsys):
    bundle = submitted(lab, "one")
    assert main(["verify", "one.tar", *under]) == 0
    member = archive.read_index(bundle).members["submission.dsse.json"]
    data = bundle.read_bytes()
    for at in range(member.offset, member.offset + member.size, member.size // 40):
        changed = bytearray(data)
        changed[at] ^= 0x01
        Path("changed.tar").write_bytes(changed)
        capsys.readouterr()
        assert main(["verify", "changed.tar", *under]) == 1, f"byte {at - member.offset}"
        assert "NOT_CONFORMANT" in capsys.readouterr().out


def test_another_name_for_the_vendor_is_refused_without_a_policy(lab, capsys):
    """The name alone, with everything else as signed; and signed again by a key that is not the one inside."""
    bundle = submitted(lab, "one")
    index = archive.read_index(bundle)
    members = {name: archive.open_member(index, name).read() for name in index.members}
    signed = dsse.parse(members["submission.dsse.json"])
    payload = signed.payload.replace(VENDOR.encode(), b"Other Silicon")
    assert payload != signed.payload
    kept = replace(signed, payload=payload)
    again = dsse.sign(payload, signed.payload_type, [lab.key["stranger"]])
    for envelope in (dsse._dump(kept), again):
        archive.write_bundle(Path("other.tar"), {**members, "submission.dsse.json": envelope})
        capsys.readouterr()
        assert main(["verify", "other.tar"]) == 1
        shown = capsys.readouterr().out
        assert "no  Do the signatures hold?" in shown
