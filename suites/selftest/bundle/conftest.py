"""Runs of one system, ready to be submitted."""

import shutil

import pytest

from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.report.build import write_report

# What no evidence tells.
STATED = {
    "system_name": "bench one",
    "availability": "research",
    "processor": "AMD EPYC",
    "processors_per_node": 1,
    "cores_per_node": 2,
    "memory_gib_per_node": 8.0,
    "storage": "one local disk",
    "accelerator_memory": "none",
    "accelerator_interconnect": "none",
    "driver": "none",
    "firmware": "none",
    "network": "none",
    "network_ports_per_node": "none",
    "topology": "one node",
    "power_watts_per_node": 200,
    "cooling": "air",
    "operating_system": "Debian 12",
}


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
