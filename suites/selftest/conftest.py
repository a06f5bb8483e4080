"""A real rehearsal's evidence, ready to be judged, signed and attacked."""

import signal

import pytest

from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report
from conformance.selftest.run import end_journal, good_run

# A CI that starts tests in the background may have these ignored, and what is ignored stays so in every child.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


@pytest.fixture(autouse=True)
def no_foreign_configuration(monkeypatch, tmp_path_factory):
    """Tests sign with a key of their own, never with the user's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


@pytest.fixture
def run(tmp_path):
    """A run directory with a real log and everything else as today's suite writes it."""
    return good_run(tmp_path)


@pytest.fixture
def sign(run):
    """Judge and sign the run as it stands, as its maker would."""

    def judge_and_sign(key=None):
        end_journal(run)
        judgement = judge(RunDirectory(run))
        write_report(run, judgement, key)
        return judgement

    return judge_and_sign
