"""docs/vendor.md says what is so: its table is that of checks.toml, its commands and options exist."""

import importlib.util
import re
from pathlib import Path

import pytest

from conformance.cli import COMMANDS
from conformance.redaction import ADDRESS, SECRET, USER
from conformance.spec import load_checks

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = (DOCS / "vendor.md").read_text("utf-8")


@pytest.fixture
def remedies():
    spec = importlib.util.spec_from_file_location("remedies", DOCS / "remedies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_up_to_date(remedies):
    assert remedies.updated(GUIDE) == GUIDE, "Run: python docs/remedies.py"


def test_every_check_stands_in_it_once_with_its_remedy(remedies):
    table = remedies.tables()
    for check in load_checks().values():
        (row,) = (line for line in table.splitlines() if line.startswith(f"| `{check.id}` |"))
        assert check.remedy.replace("|", "\\|") in row
        assert check.owner in row


def test_a_table_that_is_behind_is_noticed(remedies):
    check = next(iter(load_checks()))
    stale = GUIDE.replace(f"`{check}`", "`another`")
    assert remedies.updated(stale) != stale


def test_its_commands_exist():
    named = set(re.findall(r"conformance ([a-z-]+)", GUIDE))
    assert {"bundle", "verify", "keygen", "sign", "device-check", "plan"} <= named
    assert named <= set(COMMANDS)


def test_its_rules_of_redaction_are_the_rules():
    rules = re.findall(r"^\| (\w+) \|.*`\[", GUIDE, re.MULTILINE)
    assert sorted(rules) == sorted((ADDRESS, SECRET, USER))
