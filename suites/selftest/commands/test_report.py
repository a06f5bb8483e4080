"""``conformance report``: the report of a run that ended without one, and what is refused."""

import json
import re
import shutil
from pathlib import Path

from conformance import evidence, journal
from conformance.bundle.pack import pack
from conformance.bundle.verify import verify
from conformance.checks.finding import Verdict
from conformance.claim import claimed
from conformance.cli import main
from conformance.errors import LaunchError
from conformance.selftest.run import end_journal

PREFLIGHT = Path(__file__).parents[3] / "fixtures/tiny-preflight-run/environment"


def test_it_is_that_of_a_run_that_was_judged_at_its_end(run, tmp_path, capsys):
    end_journal(run)
    assert main(["report", str(run)]) == 0
    said = re.sub(r"[\s│]", "", capsys.readouterr().out)  # a long path is broken where the box ends
    assert "REHEARSAL" in said
    assert f"conformancebundle{run}" in said
    assert (run / "report.html").is_file()
    pack(run, tmp_path / "run.tar")
    verification = verify(tmp_path / "run.tar")
    assert [answer for answer in verification.answers if answer.answer == "no"] == []
    assert verification.verdict is Verdict.REHEARSAL


def test_a_check_that_failed_ends_it_with_1(run):
    record = json.loads((run / evidence.RUN).read_text())
    evidence.write_json(run, evidence.RUN, {**record, "outcome": "interrupted"})
    assert main(["report", str(run)]) == 1
    assert (run / evidence.REPORT).is_file()


def test_a_preflight_has_one_too(tmp_path, capsys):
    run = evidence.create_run_directory(tmp_path / "pre")
    shutil.copytree(PREFLIGHT, run / "environment", dirs_exist_ok=True)
    journal.append(run / evidence.JOURNAL, "started", run.name, workload="preflight")
    assert main(["report", str(run)]) == 0
    assert f"page: {run}/report.html" in capsys.readouterr().out
    assert json.loads((run / evidence.REPORT).read_text())


def refused(run, capsys):
    code = main(["report", str(run)])
    return code, " ".join(capsys.readouterr().err.split())


def test_a_report_that_is_there_is_not_written_again(run, sign, capsys):
    sign()
    written = (run / evidence.REPORT).read_bytes()
    code, said = refused(run, capsys)
    assert (code, "has its report" in said) == (2, True)
    assert (run / evidence.REPORT).read_bytes() == written


def test_a_run_that_goes_on_is_refused(run, capsys):
    with claimed(run / "work", LaunchError("claimed")):
        code, said = refused(run, capsys)
    assert (code, "still goes on" in said) == (2, True)
    assert main(["report", str(run)]) == 0


def test_a_run_that_was_killed_is_refused(run, capsys):
    (run / evidence.JOURNAL).unlink()
    code, said = refused(run, capsys)
    assert (code, "has no end" in said) == (2, True)
    assert not (run / evidence.REPORT).exists()


def test_what_is_no_run_is_refused_and_left_alone(tmp_path, capsys):
    code, said = refused(tmp_path, capsys)
    assert (code, "is no run directory" in said) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_could_not_be_written_is_not_there_and_can_be_written_later(run, monkeypatch, capsys):
    def full(path, data, real=Path.write_bytes):
        if path.name.startswith(evidence.REPORT):
            real(path, data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        return real(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        code, said = refused(run, capsys)
    assert (code, "No space left on device" in said) == (2, True)
    assert main(["report", str(run)]) == 0
