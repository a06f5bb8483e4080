"""Runs of one system, ready to be submitted."""

import shutil

import pytest
from lab import STATED

from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report


@pytest.fixture
def stated():
    """What the vendor states of that system."""
    return dict(STATED)


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
