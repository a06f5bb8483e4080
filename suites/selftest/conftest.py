"""A real rehearsal's evidence, ready to be judged, signed and attacked."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from conformance import evidence, journal
from conformance.evidence import RunDirectory, request_from_json
from conformance.internevo.config import render_config
from conformance.internevo.patches import PATCHES
from conformance.judgement import judge, plan_of
from conformance.report.build import write_report

FIXTURE = Path(__file__).resolve().parents[2] / "fixtures" / "tiny-perf-run"


@pytest.fixture(autouse=True)
def no_foreign_configuration(monkeypatch, tmp_path_factory):
    """Tests sign with a key of their own, never with the user's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


@pytest.fixture
def run(tmp_path):
    """A run directory with a real log and everything else as today's suite writes it."""
    run = tmp_path / "run"
    shutil.copytree(FIXTURE, run)
    refresh(run)
    return run


def refresh(run):
    """Bring what follows from the spec, and not from the training, up to date; end the journal with this evidence."""
    request = request_from_json(json.loads((run / evidence.REQUEST).read_text()))
    plan = plan_of(replace(request))
    evidence.write_json(run, evidence.PLAN, plan.to_json())
    (run / evidence.CONFIG).write_text(render_config(plan))
    for path in (run / "environment").glob("rank*.json"):
        record = json.loads(path.read_text())
        for applied in record["patches"]:
            applied["sha256"] = next(patch.digest for patch in PATCHES if patch.id == applied["id"])
        path.write_text(json.dumps(record))
    evidence.write_json(run, evidence.FAULTS, {"faults": [], "limits": {}})
    end_journal(run)


def end_journal(run):
    (run / evidence.JOURNAL).unlink(missing_ok=True)
    journal.append(run / evidence.JOURNAL, "started", run.name, workload="tiny-perf", plan="0" * 64)
    journal.append(
        run / evidence.JOURNAL,
        "ended",
        run.name,
        outcome="ended",
        evidence=evidence.attempt_digest(RunDirectory(run)),
    )


@pytest.fixture
def sign(run):
    """Judge and sign the run as it stands, as its maker would."""

    def judge_and_sign(key=None):
        end_journal(run)
        judgement = judge(RunDirectory(run))
        write_report(run, judgement, key)
        return judgement

    return judge_and_sign
