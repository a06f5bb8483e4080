"""A bundle of a real rehearsal, verified, and attacked by its own maker and by others."""

import json
import re
import subprocess
import sys

import pytest

from conformance import evidence
from conformance.bundle import archive
from conformance.bundle.pack import pack
from conformance.bundle.verify import differences, verify
from conformance.checks.finding import Verdict
from conformance.cli import main
from conformance.errors import EvidenceError
from conformance.report import dsse, keys, statement


@pytest.fixture
def bundle(run, sign, tmp_path):
    sign()
    pack(run, tmp_path / "x.tar")
    return tmp_path / "x.tar"


def rewrite(bundle, change):
    """Write the bundle again with other members, as whoever holds it could."""
    index = archive.read_index(bundle)
    members = {name: archive.open_member(index, name).read() for name in index.members}
    change(members)
    archive.write_bundle(bundle, members)


def sign_again(bundle, change):
    """Change the report's document and sign it with the maker's own key."""

    def change_report(members):
        key = keys.load_or_create_local_key(local_key())[0]
        document = json.loads(dsse.parse(members[evidence.REPORT]).payload)
        change(document)
        subjects = {subject["name"]: subject["digest"]["sha256"] for subject in document["subject"]}
        payload = statement.build(document["predicate"], subjects)
        members[evidence.REPORT] = dsse.sign(payload, statement.PAYLOAD_TYPE, [key])

    rewrite(bundle, change_report)


def refusal(bundle):
    verification = verify(bundle)
    assert verification.verdict is Verdict.NOT_CONFORMANT
    (no,) = [answer for answer in verification.answers if answer.answer == "no"]
    return no


def change_one_digit(members):
    name = "logs/node0/rank0.log"
    text = members[name].decode()
    match = re.search(r"tgs \(tokens/gpu/second\)=(\d)", text)
    at = match.start(1)
    members[name] = (text[:at] + ("1" if text[at] != "1" else "2") + text[at + 1 :]).encode()


def test_an_honest_bundle_verifies(bundle):
    verification = verify(bundle)
    assert verification.verdict is Verdict.REHEARSAL
    assert {answer.id: answer.answer for answer in verification.answers} == {
        "archive": "yes",
        "signature": "yes",
        "schema": "yes",
        "files": "yes",
        "suite": "yes",
        "recomputed": "yes",
        "plan": "yes",
        "source": "yes",
        "consistency": "yes",
        "limits": "yes",
        "data": "yes",
        "checks": "yes",
        "journal": "yes",
        "runs": "open",
        "challenge": "open",
        "trust": "open",
    }


def test_packing_twice_gives_the_same_bytes(run, sign, tmp_path):
    sign()
    pack(run, tmp_path / "a.tar.gz")
    pack(run, tmp_path / "b.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    assert verify(tmp_path / "a.tar.gz").verdict is Verdict.REHEARSAL


def test_one_digit_of_one_tgs_changed_in_the_log(bundle):
    rewrite(bundle, change_one_digit)
    assert refusal(bundle).id == "files"
    assert "logs/node0/rank0.log was changed" in refusal(bundle).message


def test_a_file_removed(bundle):
    rewrite(bundle, lambda members: members.pop("environment/rank1.json"))
    assert "environment/rank1.json was removed" in refusal(bundle).message


def test_a_file_added(bundle):
    rewrite(bundle, lambda members: members.update({"logs/node0/rank2.log": b"more\n"}))
    assert "logs/node0/rank2.log was added" in refusal(bundle).message


def test_a_changed_byte_is_refused_all_over_the_bundle(bundle, tmp_path):
    data = bundle.read_bytes()
    for at in range(0, len(data), max(1, len(data) // 60)):
        changed = bytearray(data)
        changed[at] ^= 0x01
        (tmp_path / "changed.tar").write_bytes(changed)
        assert verify(tmp_path / "changed.tar").verdict is Verdict.NOT_CONFORMANT, f"byte {at}"


def test_a_maker_who_lies_in_the_report_is_refuted_by_the_raw_log(bundle):
    """The signer holds the key and signs a better figure: only computing it again finds that."""

    def lie(document):
        document["predicate"]["metrics"]["tgs"]["median"] *= 1.01

    sign_again(bundle, lie)
    assert refusal(bundle).id == "recomputed"
    assert "report.metrics.tgs.median" in refusal(bundle).message


def relabel_suite(document):
    document["predicate"]["suite"]["tree_digest"] = "0" * 64


@pytest.mark.parametrize(
    ("lie", "verdict"),
    [
        (lambda document: None, Verdict.REHEARSAL),
        (lambda d: d["predicate"]["metrics"].pop("tgs"), Verdict.INCONCLUSIVE),
    ],
    ids=["same findings", "other findings"],
)
def test_a_report_of_another_suite_is_never_refuted_and_never_confirmed_against_its_log(bundle, lie, verdict):
    def other_suite(document):
        relabel_suite(document)
        lie(document)

    sign_again(bundle, other_suite)
    verification = verify(bundle)
    assert verification.verdict is verdict
    assert {a.id: a.answer for a in verification.answers}["suite"] == "open"


def test_a_maker_who_edits_the_log_before_signing_breaks_the_algebra(run, sign, tmp_path):
    log = run / "logs/node0/rank0.log"
    members = {"logs/node0/rank0.log": log.read_bytes()}
    change_one_digit(members)
    log.write_bytes(members["logs/node0/rank0.log"])
    judgement = sign()
    assert judgement.verdict is Verdict.NOT_CONFORMANT
    pack(run, tmp_path / "forged.tar")
    verification = verify(tmp_path / "forged.tar")
    assert verification.verdict is Verdict.NOT_CONFORMANT
    # The bundle is sound and its report says what is so; the run is not.
    assert {answer.id for answer in verification.answers if answer.answer == "no"} == {"consistency"}


def test_a_signature_by_another_key_is_refused(bundle, tmp_path):
    other = keys.generate_key(tmp_path / "other.pem")
    rewrite(bundle, lambda members: members.update({evidence.SIGNER: keys.public_pem(other.public_key())}))
    assert refusal(bundle).id == "signature"


def test_a_journal_without_this_run_is_refused(run, sign, tmp_path):
    from conformance import journal

    judgement = sign()
    assert judgement.verdict is Verdict.REHEARSAL
    # The maker drops the end of this attempt and signs again.
    lines = (run / evidence.JOURNAL).read_bytes().splitlines(keepends=True)
    (run / evidence.JOURNAL).write_bytes(lines[0])
    from conformance.evidence import RunDirectory
    from conformance.judgement import judge
    from conformance.report.build import write_report

    write_report(run, judge(RunDirectory(run)), None)
    pack(run, tmp_path / "x.tar")
    assert journal.parse(lines[0]).entries[0]["event"] == "started"
    assert refusal(tmp_path / "x.tar").id == "journal"


def test_packing_refuses_a_run_that_changed_after_signing(run, sign, tmp_path):
    sign()
    with (run / "logs/node0/rank0.log").open("a") as log:
        log.write("one more line\n")
    (tmp_path / "x.tar").write_text("an older bundle")
    with pytest.raises(EvidenceError, match=r"rank0\.log was changed"):
        pack(run, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_text() == "an older bundle"
    (run / "logs/node0/extra.log").write_text("more\n")
    with pytest.raises(EvidenceError, match=r"extra\.log"):
        pack(run, tmp_path / "x.tar")


def test_packing_refuses_a_folder_without_a_report(tmp_path):
    with pytest.raises(EvidenceError, match="no report"):
        pack(tmp_path, tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("args", "code"),
    [(["{bundle}"], 0), (["{bundle}", "--json"], 0), (["{missing}"], 2)],
    ids=["good", "json", "missing"],
)
def test_exit_codes(bundle, tmp_path, capsys, args, code):
    named = [arg.format(bundle=bundle, missing=tmp_path / "none.tar") for arg in args]
    assert main(["verify", *named]) == code
    output = capsys.readouterr()
    if "--json" in args:
        assert json.loads(output.out)["verdict"] == "REHEARSAL"


def test_a_changed_bundle_exits_with_1(bundle, capsys):
    rewrite(bundle, change_one_digit)
    assert main(["verify", str(bundle)]) == 1
    assert "NOT_CONFORMANT" in capsys.readouterr().out


@pytest.mark.parametrize("shown", [[], ["--json"]], ids=["lines", "json"])
def test_a_page_that_cannot_be_written_does_not_swallow_the_verdict(bundle, tmp_path, capsys, shown):
    assert main(["verify", str(bundle), "--html", str(tmp_path / "none" / "x.html"), *shown]) == 2
    output = capsys.readouterr()
    assert "REHEARSAL" in output.out
    assert "x.html cannot be written: No such file or directory" in output.err


def test_the_lab_needs_no_torch(bundle):
    program = (
        "import sys; sys.modules['torch'] = sys.modules['internlm'] = None\n"  # an import of either now raises
        "from conformance.cli import main\n"
        f"raise SystemExit(main(['verify', {str(bundle)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_differences_forgive_rounding_and_nothing_else():
    value = {"a": [1.0, "x", True, None], "b": {"c": 2}}
    assert list(differences(value, json.loads(json.dumps(value)))) == []
    assert list(differences({"a": 1.0}, {"a": 1.0 + 1e-12})) == []
    for other in (
        {"a": [1.1, "x", True, None], "b": {"c": 2}},
        {"a": [1.0, "x", 1, None], "b": {"c": 2}},
        {"a": [1.0, "x", True], "b": {"c": 2}},
        {"a": [1.0, "x", True, None]},
        {**value, "d": 0},
    ):
        assert list(differences(value, other))


def local_key():
    from conformance.report.build import local_key_path

    return local_key_path()
