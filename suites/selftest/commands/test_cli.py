"""The command line itself: exit codes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.cli import main
from conformance.commands import policy

PLAN = [sys.executable, "-m", "conformance.cli", "plan", "llama2-7b-perf", "--nodes", "4", "--devices-per-node", "8"]


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at once"])
@pytest.mark.parametrize("shown", [[], ["--json"]], ids=["lines", "json"])
def test_a_verdict_that_nobody_heard_is_not_good(tmp_path, shown, unbuffered):
    """A refused bundle, printed into a pipe whose reader has left: neither 0 nor a word on stderr."""
    bundle = tmp_path / "x.tar"
    bundle.write_bytes(b"no archive")
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "conformance.cli", "verify", str(bundle), *shown],
            stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, "")


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at the end", "at once"])
def test_a_full_disk_below_standard_output_is_no_judgement(unbuffered):
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            PLAN, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    (told,) = result.stderr.splitlines()
    assert told.startswith("conformance plan: standard output ")
    assert told.endswith(": No space left on device.")
    assert result.returncode == 2


def test_nor_is_one_that_is_closed():
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *PLAN]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    told = "conformance plan: Standard output is closed. Let it lead to a terminal, a file or /dev/null.\n"
    assert (result.returncode, result.stderr) == (2, told)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(13, "Permission denied", "/a/file"), "conformance policy: /a/file: Permission denied."),
        (OSError(5, "Input/output error"), "standard output or a file cannot be used: Input/output error."),
    ],
)
def test_what_the_system_refuses_is_a_sentence(error, told, monkeypatch, capsys):
    assert fail_with(error, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line


def test_a_fault_of_the_suite_is_no_judgement_and_asks_to_be_reported(monkeypatch, capsys):
    assert fail_with(ZeroDivisionError("of \x1b[31m nothing"), monkeypatch) == 2
    first, *_, raised, last = capsys.readouterr().err.splitlines()
    assert first == "Traceback (most recent call last):"
    assert raised.startswith("ZeroDivisionError: of ")
    assert "\x1b" not in raised  # the text may be a foreign file's
    assert last == "conformance policy: nothing was decided. This is a fault of the suite: please report these lines."


def fail_with(error, monkeypatch):
    def run(args):
        raise error

    monkeypatch.setattr(policy, "run", run)
    return main(["policy", "new", "--name", "Lab", "--lab-key", "lab.pub", "--vendor", "V=v.pub", "-o", "policy.json"])
