"""A real rehearsal's evidence, ready to be judged, signed and attacked."""

import errno
import fcntl
import os
import signal
import subprocess
from importlib.util import find_spec

import pytest

from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report
from conformance.selftest.run import end_journal, good_run

# A CI that starts tests in the background may have these ignored, and what is ignored stays so in every child.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_runtest_setup(item):
    """Skip where a module is not installed. A test file asks by a mark, for importing torch takes seconds."""
    for mark in item.iter_markers("needs"):
        if find_spec(mark.args[0]) is None:
            pytest.skip(f"{mark.args[0]} is not installed; `make test` installs it")


def missing(reason):
    """Skip a test that needs more than this machine has, or fail it where CI says that all of it is there."""
    if os.environ.get("CONFORMANCE_REAL_PARTS") == "required":
        pytest.fail(f"{reason}; CONFORMANCE_REAL_PARTS=required", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def real_parts():
    """What a test says that needs more than this machine has."""
    return missing


@pytest.fixture(autouse=True)
def no_foreign_configuration(monkeypatch, tmp_path_factory):
    """Tests sign with a key of their own, never with the user's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))


@pytest.fixture
def no_locks(monkeypatch):
    """No file can be locked, as on Lustre that was mounted without ``-o flock``."""

    def unknown(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", unknown)


@pytest.fixture
def small_disk(tmp_path_factory):
    """Mount a disk of so many bytes; its place."""
    mounted = []

    def mount(size):
        place = tmp_path_factory.mktemp("disk")
        if os.geteuid() != 0:
            missing("only root may mount a small disk")
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
        if done.returncode:
            missing(f"no small disk can be mounted here: {done.stderr.decode().strip()}")
        mounted.append(place)
        return place

    yield mount
    for place in mounted:
        subprocess.run(["umount", place], check=True)


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
