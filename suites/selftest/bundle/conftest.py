"""Runs of one system, ready to be submitted."""

import runpy
import shutil
from pathlib import Path

import pytest

from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report


@pytest.fixture
def stated():
    """What the vendor states of that system."""
    return dict(runpy.run_path(str(Path(__file__).with_name("lab.py")))["STATED"])


@pytest.fixture
def two_runs(run, sign, tmp_path):
    """Two signed runs of one system."""
    other = tmp_path / "second"
    shutil.copytree(run, other)
    sign()
    sign_as_it_is(other)
    return [run, other]


def sign_as_it_is(run):
    write_report(run, judge(RunDirectory(run)), None)
