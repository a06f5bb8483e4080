"""What has to be quick imports little: the command's help, what a lab types, and the collection of the tests."""

import subprocess
import sys
from pathlib import Path

import pytest

from conformance.cli import COMMANDS

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "pandas", "numpy", "jinja2", "jsonschema", "cryptography", "rich", "pytest"}
EXAMPLE = "reports/example/"
POLICY = ("--policy", f"{EXAMPLE}policy.dsse.json", "--lab-key", f"{EXAMPLE}lab.pem.pub")
RUN = """
import sys
from conformance.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("imported", *sorted({name.split(".")[0] for name in sys.modules}))
"""
WITHOUT_TORCH = """
import sys, pytest
sys.modules["torch"] = None  # an import of it now raises
raise SystemExit(pytest.main(["-q", "-rs", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""
COLLECT = """
import sys, pytest
ended = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "suites"])
assert ended == 0, ended
print("imported", *sorted({name.split(".")[0] for name in sys.modules}))
"""


def imported(program, *arguments):
    told = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]
    return set(told.stdout.splitlines()[-1].split()[1:])


def test_the_help_imports_nothing_heavy():
    names = imported(RUN, "--help")
    assert "conformance" in names
    assert not names & HEAVY


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_no_commands_help_imports_torch(command):
    names = imported(RUN, command, "--help")
    assert "conformance" in names
    assert "torch" not in names


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("verify", f"{EXAMPLE}h200-slice.tar", *POLICY),
        ("compare", f"{EXAMPLE}h200-slice.tar", *POLICY[:2]),
        ("analyze", "reference_logs/h200-7b-slice24-v0.2.3.log"),
    ],
    ids=lambda command: command[0],
)
def test_what_a_lab_types_imports_neither_torch_nor_pandas(command):
    names = imported(RUN, *command)
    assert "numpy" in names  # it was judged
    assert not names & {"torch", "pandas"}


@pytest.mark.slow
def test_collecting_the_suites_imports_no_torch():
    names = imported(COLLECT)
    assert "conformance" in names
    assert "torch" not in names


def test_without_torch_the_tests_that_need_it_say_so():
    told = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "suites/selftest/preflight/test_probe.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stdout[-2000:]
    assert "torch is not installed; `make test` installs it" in told.stdout
    assert " passed" not in told.stdout
