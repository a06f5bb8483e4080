"""Faults injected into real InternEvo runs, started as a user starts them: detected, named, judged, cleaned up."""

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.needs("torch")]

ROOT = Path(__file__).parents[3]
PLUGIN = Path(__file__).parent / "striking_device"
SECRETS = {"NCCL_API_TOKEN": "tell-nobody-1", "AWS_SECRET_ACCESS_KEY": "tell-nobody-2"}


@pytest.fixture
def struck(tmp_path, left_over, table):
    """Make a run whose training is struck; its directory, its one fault, and what was printed."""
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")

    def start(strike, ranks, injected):
        run = tmp_path / "run"
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "suites/perf", "-m", "tiny"]
        command += ["--device", "striking", "--devices-per-node", str(ranks), "--run-dir", str(run)]
        path = os.pathsep.join([str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])])
        environ = os.environ | SECRETS | {"PYTHONPATH": path, "STRIKE": strike, "STRIKE_RANK": str(ranks - 1)}
        done = subprocess.run(
            [*command, "--reports", str(tmp_path)], cwd=ROOT, env=environ, capture_output=True, text=True, timeout=300
        )
        seen = json.loads((run / "environment/faults.json").read_text()) if run.exists() else {}
        assert len(seen.get("faults", [])) == 1, done.stdout[-3000:]
        (fault,) = seen["faults"]
        begun = datetime.fromisoformat(json.loads((run / "environment/run.json").read_text())["started"]).timestamp()
        late = begun + fault["seconds"] - json.loads((run / "work/struck.json").read_text())["time"]
        table.append((f"InternEvo: {injected}", late, f"{fault['message']} {fault['next_step']}"))
        assert done.returncode == pytest.ExitCode.TESTS_FAILED
        assert "NOT_CONFORMANT" in done.stdout
        assert "Traceback" not in done.stdout
        assert (run / "report.dsse.json").exists()
        assert left_over(run) == []
        return run, fault, done.stdout

    return start


def test_out_of_memory_comes_with_legal_ways_to_shrink(struck):
    _, fault, said = struck("oom", 2, "an allocation in rank 1 that the allocator refuses")
    assert (fault["kind"], fault["rank"], fault["node"]) == ("out-of-memory", 1, 0)
    assert "--set tensor=2" in fault["next_step"]
    assert fault["message"] in " ".join(said.split())


def test_a_loss_that_is_no_number(struck):
    _, fault, _ = struck("nan", 1, "activations that are not numbers")
    assert fault["kind"] == "nan-loss"
    # A fast rank may have logged one more when the supervisor looks.
    in_a_row = re.search(r"(\d+) steps in a row", fault["message"])
    assert in_a_row is not None
    assert int(in_a_row[1]) >= 3
    assert fault["last_step"] is not None


def test_an_exception_that_internevo_swallows_and_no_secret_in_the_evidence(struck):
    run, fault, _ = struck("raise", 2, "StopIteration in rank 1, swallowed")
    assert (fault["kind"], fault["rank"]) == ("exception", 1)
    assert "StopIteration" in fault["message"]
    assert fault["host"] in fault["message"]
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if b"tell-nobody" in path.read_bytes()] == []
