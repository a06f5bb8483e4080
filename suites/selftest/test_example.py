"""The committed submissions of real accelerators hold under their policy, and under no other."""

from datetime import datetime, timezone
from pathlib import Path

import pytest

from conformance.bundle import policy
from conformance.bundle.policy import Bench
from conformance.bundle.verify import verify
from conformance.checks.finding import Verdict
from conformance.report import keys

EXAMPLE = Path(__file__).parents[2] / "reports" / "example"
BUNDLE = EXAMPLE / "h200-slice.tar"
TWO_DEVICES = EXAMPLE / "h200x2-slice.tar"
SEVEN_B = EXAMPLE / "h200x2-7b.tar"


@pytest.fixture
def bench():
    read = policy.read(EXAMPLE / "policy.dsse.json")
    assert read.signed_by == (keys.key_id(keys.load_public_key(EXAMPLE / "lab.pem.pub")),)
    return Bench(read, datetime.now(timezone.utc))


@pytest.mark.parametrize(
    ("bundle", "trained", "verdict"),
    [(BUNDLE, 2, Verdict.REHEARSAL), (TWO_DEVICES, 4, Verdict.REHEARSAL), (SEVEN_B, 1, Verdict.CONFORMANT)],
)
def test_it_holds(bench, bundle, trained, verdict):
    verification = verify(bundle, bench)
    answers = {answer.id: answer.answer for answer in verification.answers}
    # Where this suite finds something else in it than the one that signed it: python reports/example/rebuild.py
    assert set(answers.values()) == {"yes"}, verification.answers
    assert verification.verdict is verdict
    assert sorted(run.predicate["kind"] for run in verification.runs) == ["perf"] * trained + ["preflight"]
    assert {device["model"] for run in verification.runs for device in run.predicate["devices"]} == {"NVIDIA H200"}


def test_a_changed_figure_is_refused(bench, tmp_path):
    data = BUNDLE.read_bytes()
    at = data.index(b"tgs (tokens/gpu/second)=1") + len(b"tgs (tokens/gpu/second)=")
    changed = tmp_path / "faster.tar"
    changed.write_bytes(data[:at] + b"9" + data[at + 1 :])
    verification = verify(changed, bench)
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert {answer.id for answer in verification.answers if answer.answer == "no"} == {"files"}
