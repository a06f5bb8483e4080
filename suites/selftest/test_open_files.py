"""The suite goes to the hard limit of open files by itself, and to nothing beyond it."""

import subprocess
import sys

import pytest

ASK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, int(sys.argv[1])))
import pytest
pytest.main(["-q", "--collect-only", "-p", "conformance.plugin", "-p", "no:cacheprovider", sys.argv[2]])
print("limits", *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("hard", "soft"), [(4096, 4096), (1024, 1024)])
def test_the_soft_limit_follows_the_hard_one(hard, soft, tmp_path):
    told = subprocess.run(
        [sys.executable, "-c", ASK, str(hard), str(tmp_path)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert f"limits {soft} {hard}" in told.stdout
