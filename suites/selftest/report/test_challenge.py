"""Challenges: what a lab signs before a run."""

import json
import resource
import subprocess
import sys
from datetime import datetime, timedelta, timezone

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from conformance import strictjson
from conformance.errors import ChallengeError, ConformanceError, EvidenceError
from conformance.report import challenge, dsse

KEY = Ed25519PrivateKey.generate()
NOW = datetime(2026, 11, 23, 12, tzinfo=timezone.utc)


def issue(vendor="ACME", workloads=("tiny-perf",), days=14):
    return challenge.issue(vendor, list(workloads), timedelta(days=days), NOW, KEY)


def test_it_reads_back_as_issued_and_no_two_are_alike():
    first, second = challenge.parse(issue()), challenge.parse(issue())
    assert (first.vendor, first.workloads) == ("ACME", ("tiny-perf",))
    assert (first.issued, first.expires) == (NOW, NOW + timedelta(days=14))
    assert len(bytes.fromhex(first.nonce)) == 32
    assert first.nonce != second.nonce


def test_the_seed_is_a_fixed_function_of_nonce_and_workload():
    """Two labs, and a lab and a vendor, must agree on it for ever."""
    nonce = "00" * 32
    assert challenge.seed(nonce, "tiny-perf") == 1962908497
    assert challenge.seed(nonce, "tiny-perf") != challenge.seed(nonce, "llama2-7b-perf")
    assert challenge.seed(nonce, "tiny-perf") != challenge.seed("01" * 32, "tiny-perf")
    assert all(0 <= challenge.seed(f"{n:064x}", "w") < 2**31 for n in range(200))


@pytest.mark.parametrize(
    ("workload", "when", "reason"),
    [
        ("llama2-7b-perf", NOW, "is for tiny-perf, not for"),
        ("tiny-perf", NOW + timedelta(days=14), "expired 2026-12-07"),
    ],
)
def test_a_run_that_could_not_answer_does_not_start(workload, when, reason):
    with pytest.raises(ChallengeError, match=reason):
        challenge.require_valid(challenge.parse(issue()), workload, when)


def test_a_run_that_can_answer_starts():
    challenge.require_valid(challenge.parse(issue()), "tiny-perf", NOW + timedelta(days=13))


FAULTS = {
    "a short nonce": lambda d: d.update(nonce="00"),
    "a nonce in capitals": lambda d: d.update(nonce="A" * 64),
    "no workload": lambda d: d.update(workloads=[]),
    "a field more": lambda d: d.update(relax=True),
    "a field less": lambda d: d.pop("vendor"),
    "another version": lambda d: d.update(version=2),
    "over before it begins": lambda d: d.update(expires=d["issued"]),
    "a day that does not exist": lambda d: d.update(expires="2026-02-30T00:00:00Z"),
    "a newline after the time": lambda d: d.update(expires=d["expires"] + "\n"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_ones_are_refused(fault):
    document = json.loads(dsse.parse(issue()).payload)
    FAULTS[fault](document)
    with pytest.raises(ConformanceError) as caught:
        challenge.parse(dsse.sign(strictjson.dumps(document), challenge.PAYLOAD_TYPE, [KEY]))
    assert str(caught.value).isprintable()


def test_another_payload_type_is_no_challenge():
    payload = dsse.parse(issue()).payload
    with pytest.raises(ChallengeError, match="of type 'text/plain'"):
        challenge.parse(dsse.sign(payload, "text/plain", [KEY]))


def test_a_file_that_is_absent_or_huge(tmp_path):
    with pytest.raises(ChallengeError, match="cannot be read"):
        challenge.read(tmp_path / "none")
    (tmp_path / "huge").write_bytes(b" " * (challenge.MAX_BYTES + 1))
    with pytest.raises(ChallengeError, match="more than"):
        challenge.read(tmp_path / "huge")


def test_what_a_report_says_of_it():
    envelope = issue()
    said = challenge.answered(envelope)
    assert said == {"nonce": challenge.parse(envelope).nonce, "digest": challenge.parse(envelope).digest}
    assert challenge.answered(None) is None


def test_the_spent_list_grows_and_reads_back(tmp_path):
    path = tmp_path / "spent.jsonl"
    path.touch()
    assert challenge.read_spent(path) == challenge.Spent()
    path.write_text('{"nonce": "of an older suite", "report_id": "0"}')  # no series, and no end of its line
    challenge.spend(path, ["a" * 64], ["s" * 64], "1" * 64)
    challenge.spend(path, ["b" * 64, "c" * 64], ["t" * 64, "u" * 64], "2" * 64)
    challenge.spend(path, ["b" * 64], ["t" * 64], "2" * 64)  # a report that is stated again
    nonces = {"of an older suite": "0", "a" * 64: "1" * 64, "b" * 64: "2" * 64, "c" * 64: "2" * 64}
    assert challenge.read_spent(path) == challenge.Spent(
        nonces, {"s" * 64: "1" * 64, "t" * 64: "2" * 64, "u" * 64: "2" * 64}
    )
    assert len(path.read_bytes().splitlines()) == 4


def test_runs_without_a_challenge_are_known_again_too(tmp_path):
    path = tmp_path / "spent.jsonl"
    path.touch()
    for _ in range(2):  # a report that is stated again adds nothing
        challenge.spend(path, [], ["s" * 64], "1" * 64)
    assert challenge.read_spent(path) == challenge.Spent({}, {"s" * 64: "1" * 64})
    assert len(path.read_bytes().splitlines()) == 1
    with pytest.raises(EvidenceError, match=f"became known meanwhile by the report {'1' * 64}"):
        challenge.spend(path, ["a" * 64], ["s" * 64], "2" * 64)


def test_of_two_reports_that_answer_one_challenge_at_once_the_second_is_refused(tmp_path):
    path = tmp_path / "spent.jsonl"
    path.touch()
    challenge.spend(path, ["a" * 64], [], "1" * 64)
    with pytest.raises(EvidenceError, match=f"spent meanwhile by the report {'1' * 64}"):
        challenge.spend(path, ["b" * 64, "a" * 64], [], "2" * 64)
    assert challenge.read_spent(path).nonces == {"a" * 64: "1" * 64}  # all or nothing


def test_a_challenge_is_spent_on_a_file_system_without_locks_too(tmp_path, no_locks):
    path = tmp_path / "spent.jsonl"
    path.touch()
    challenge.spend(path, ["a" * 64], [], "1" * 64)
    assert challenge.read_spent(path).nonces == {"a" * 64: "1" * 64}


def test_many_who_spend_at_once_wait_for_each_other(tmp_path):
    """Each of several processes spends one challenge of its own, and all of them the same one: one report gets that."""
    path = tmp_path / "spent.jsonl"
    path.touch()
    program = (
        "import sys; from pathlib import Path\n"
        "from conformance.report import challenge; from conformance import errors\n"
        "for number in range(50): challenge.spend(Path(sys.argv[1]), [f'{sys.argv[2]}-{number}'], [], sys.argv[2])\n"
        "try: challenge.spend(Path(sys.argv[1]), ['one'], [], sys.argv[2])\n"
        "except errors.EvidenceError: raise SystemExit(3)"
    )
    started = [subprocess.Popen([sys.executable, "-c", program, str(path), str(who)]) for who in range(4)]
    assert sorted(process.wait(timeout=300) for process in started) == [0, 3, 3, 3]
    assert len(challenge.read_spent(path).nonces) == 4 * 50 + 1


def test_a_disk_that_fills_up_while_a_challenge_is_spent_spoils_no_list(tmp_path):
    path = tmp_path / "spent.jsonl"
    path.touch()
    challenge.spend(path, ["a" * 64], ["s" * 64], "1" * 64)
    before, old = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, old[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(EvidenceError, match="cannot be written: File too large"):
            challenge.spend(path, ["b" * 64], ["t" * 64], "2" * 64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert path.read_bytes() == before
    challenge.spend(path, ["b" * 64], ["t" * 64], "2" * 64)
    assert set(challenge.read_spent(path).nonces) == {"a" * 64, "b" * 64}


def test_an_absent_list_is_not_begun_by_spending(tmp_path):
    with pytest.raises(EvidenceError, match="cannot be written"):
        challenge.spend(tmp_path / "none", ["a" * 64], [], "1" * 64)


SERIES = '{"nonce": "n", "report_id": "1", "series": 5}\n'
ONE, ANOTHER = '{"nonce": "n", "report_id": "1"}\n', '{"nonce": "n", "report_id": "2"}\n'


@pytest.mark.parametrize("text", ["{}\n", "[]\n", '{"nonce": 1, "report_id": "x"}\n', ONE + ANOTHER, SERIES])
def test_a_spoilt_spent_list_is_no_empty_one(tmp_path, text):
    path = tmp_path / "spent.jsonl"
    path.write_text(text)
    with pytest.raises(EvidenceError, match="is not a new nonce"):
        challenge.read_spent(path)


def test_an_absent_spent_list_is_no_empty_one(tmp_path):
    with pytest.raises(EvidenceError, match="Begin an empty one"):
        challenge.read_spent(tmp_path / "none")
