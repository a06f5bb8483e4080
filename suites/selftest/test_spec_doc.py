"""docs/spec.md says what the spec and the planner are."""

import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from conformance import plan
from conformance.spec import all_workloads

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "spec.md").read_text("utf-8")


@pytest.fixture
def script():
    return runpy.run_path(str(DOCS / "spec.py"))["page"].__globals__


def test_the_page_is_up_to_date(script):
    assert script["page"]() == PAGE, "Run: python docs/spec.py"


def test_every_rule_of_the_planner_stands_in_it_with_an_answer():
    text = Path(plan.__file__).read_text("utf-8")
    rules = set(re.findall(r'Violation\(\s*(?:rule=)?"([a-z0-9-]+)"', text)) | set(
        re.findall(r'\("(tensor-[a-z-]+)"', text)
    )
    assert len(rules) >= 12
    assert rules == set(re.findall(r"^\| `([a-z0-9-]+)` \| `[a-z0-9-]+` on \d+ x \d+", PAGE, re.MULTILINE))


DEPARTURES = (
    "below the reference's",
    "micro_bsz",
    "parallel size",
    "sharded",
    "checkpointing",
    "layers in",
    "steps in",
)


def test_every_departure_stands_in_it():
    assert Path(plan.__file__).read_text("utf-8").partition("def _disclosures")[2].count("yield") == len(DEPARTURES)
    shown = PAGE.partition("what is disclosed")[2].partition("##")[0]
    assert not [departure for departure in DEPARTURES if departure not in shown]


@pytest.mark.parametrize("field", ["taken", "source"])
def test_a_reading_that_changed_makes_it_old(script, field):
    first, *others = all_workloads()
    changed = replace(first, readings=(replace(first.readings[0], **{field: "otherwise"}), *first.readings[1:]))
    script["all_workloads"] = lambda: (changed, *others)
    assert script["page"]() != PAGE
