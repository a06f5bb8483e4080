"""The committed submission of a real accelerator holds under its policy, and under no other."""

from datetime import datetime, timezone
from pathlib import Path

import pytest

from conformance.bundle import policy
from conformance.bundle.policy import Bench
from conformance.bundle.verify import verify
from conformance.checks.finding import Verdict
from conformance.report import keys
from conformance.report.build import suite_digest

EXAMPLE = Path(__file__).parents[2] / "reports" / "example"
BUNDLE = EXAMPLE / "h200-slice.tar"


@pytest.fixture
def bench():
    read = policy.read(EXAMPLE / "policy.dsse.json")
    assert read.signed_by == (keys.key_id(keys.load_public_key(EXAMPLE / "lab.pem.pub")),)
    return Bench(read, datetime.now(timezone.utc))


def test_it_holds(bench):
    verification = verify(BUNDLE, bench)
    answers = {answer.id: answer.answer for answer in verification.answers}
    # A later suite may find more or less in it, which refutes nothing.
    made_here = (run.predicate["suite"]["tree_digest"] == suite_digest() for run in verification.runs)
    if not all(made_here) and answers["recomputed"] == "open":
        answers["recomputed"] = "yes"
    else:
        assert verification.verdict is Verdict.REHEARSAL
    assert set(answers.values()) == {"yes"}, verification.answers
    assert [run.predicate["kind"] for run in verification.runs] == ["preflight", "perf", "perf"]
    assert {device["model"] for run in verification.runs for device in run.predicate["devices"]} == {"NVIDIA H200"}


def test_a_changed_figure_is_refused(bench, tmp_path):
    data = BUNDLE.read_bytes()
    at = data.index(b"tgs (tokens/gpu/second)=1") + len(b"tgs (tokens/gpu/second)=")
    changed = tmp_path / "faster.tar"
    changed.write_bytes(data[:at] + b"9" + data[at + 1 :])
    verification = verify(changed, bench)
    assert verification.verdict is Verdict.NOT_CONFORMANT
    assert {answer.id for answer in verification.answers if answer.answer == "no"} == {"files"}
