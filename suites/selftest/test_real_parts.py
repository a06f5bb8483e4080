"""What is missing skips a test on a user's machine, and fails it where CI says that all parts are there."""

import pytest


def test_a_missing_part_is_a_skip_or_a_failure(real_parts, monkeypatch):
    monkeypatch.delenv("CONFORMANCE_REAL_PARTS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Slurm here"):
        real_parts("no Slurm here")
    monkeypatch.setenv("CONFORMANCE_REAL_PARTS", "required")
    with pytest.raises(pytest.fail.Exception, match="no Slurm here"):
        real_parts("no Slurm here")
