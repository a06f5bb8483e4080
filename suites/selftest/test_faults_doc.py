"""docs/faults.md lists the faults that `conformance selftest` injects."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def page():
    return runpy.run_path(str(DOCS / "faults.py"))["page"]


def test_the_table_is_up_to_date(page):
    assert page() == (DOCS / "faults.md").read_text("utf-8"), "Run: python docs/faults.py"


def test_a_fault_that_is_not_told_is_noticed(page):
    told = page()
    page.__globals__["FAULTS"] = page.__globals__["FAULTS"][1:]
    assert page() != told
