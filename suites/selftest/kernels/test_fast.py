"""Fused kernels where the platform cannot compile."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.needs("torch")

UNCOMPILED = """
import logging, torch
def refuse(function, **options):
    def fail(*arguments):
        raise RuntimeError("no compiler here")
    return fail
torch.compile = refuse
from conformance.kernels import fast
double = fast.compiled(lambda x: 2 * x)
assert double(3) == 6 and double(4) == 8
print("root handlers:", logging.getLogger().handlers)
"""


def test_a_kernel_that_does_not_compile_runs_as_it_stands_and_leaves_the_log_alone():
    told = subprocess.run([sys.executable, "-c", UNCOMPILED], capture_output=True, text=True, check=True)
    assert "not fused: torch.compile failed: no compiler here" in told.stderr
    # A handler of the root logger would print each of InternEvo's lines twice.
    assert told.stdout.strip() == "root handlers: []"
