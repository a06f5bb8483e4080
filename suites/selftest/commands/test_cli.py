"""The command line itself: exit codes."""

import os
import subprocess
import sys

import pytest


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
