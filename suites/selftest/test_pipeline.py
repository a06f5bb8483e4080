"""One node's part in a run of several, as the pipeline starts it."""

import io
import threading
from importlib.util import find_spec

import pytest
from rich.console import Console

from conformance import evidence
from conformance.errors import LaunchError
from conformance.evidence import Request, RunDirectory
from conformance.internevo.source import find_source
from conformance.judgement import judge
from conformance.launch.launcher import _free_pair
from conformance.launch.progress import LiveProgress
from conformance.launch.team import Host
from conformance.pipeline import Site, _asked, _keep_ceiling, _take_over, run_workload
from conformance.redaction import redact_run
from conformance.selftest.run import good_run, keep_preflight

pytestmark = pytest.mark.needs("torch")


def test_a_node_that_does_not_see_node_0s_checkpoints_takes_no_part(tmp_path):
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")
    request, port = Request("tiny-accuracy", 2, 1, {}, 1024), _free_pair()
    (tmp_path / "0").mkdir()
    host = Host(port + 1, [1], tmp_path / "0")
    job = {"run": "run", "token": "of node 0", "config": "", "settings": {"device": "cpu"}, "lost_node_seconds": 30}
    told = []

    def gather():
        with pytest.raises(LaunchError) as refused:
            host.gather(_asked(request, find_source(None, "0.2.2")), lambda hellos: job, seconds=60)
        told.append(str(refused.value))

    node_0 = threading.Thread(target=gather, daemon=True)
    node_0.start()
    own = Site("cpu", None, tmp_path / "1", launcher="torchrun", node_rank=1, master_addr="127.0.0.1", master_port=port)
    with pytest.raises(LaunchError, match=r"is not node 0's run directory: .* file system that all nodes share"):
        run_workload(request, own, LiveProgress(Console(file=io.StringIO()), "node 1").watch)
    node_0.join(60)
    assert "cannot take part" in told[0]
    assert "file system that all nodes share" in told[0]


TELLS = "connect 10.11.12.13 API_TOKEN=hunter2secret\n"


def attempt(path):
    run = evidence.create_run_directory(path)
    (run / "logs/node0").mkdir()
    (run / "logs/node0/rank0.log").write_text(TELLS)
    return run


def test_a_run_keeps_the_newest_preflight_of_its_devices(tmp_path):
    started = {
        "old": "2026-11-24T01",
        "new": "2026-11-24T02",
        "unsigned": "2026-11-24T03",
        "elsewhere": "2026-11-24T04",
    }
    for name, when in started.items():
        (tmp_path / name).mkdir()
        measured = keep_preflight(good_run(tmp_path / name), 2.0)
        for path in (measured / evidence.CEILING).iterdir():
            path.rename(measured / "environment" / path.name)
        evidence.write_json(measured, evidence.PREFLIGHT, {"started": when, "device": "cpu", "rehearsal": False})
        if name != "unsigned":
            (measured / evidence.REPORT).touch()
        measured.rename(tmp_path / f"{name}-preflight")
    host = tmp_path / "elsewhere-preflight/environment/preflight-host.json"
    host.write_text(host.read_text().replace('"vm"', '"another"'))
    (tmp_path / "perf").mkdir()
    run = good_run(tmp_path / "perf")
    _keep_ceiling(tmp_path, run)
    assert judge(RunDirectory(run)).metrics["mfu"]["ceiling"] == "new-preflight"
    kept, measured = run / evidence.CEILING, tmp_path / "new-preflight/environment"
    assert (kept / "preflight-device.json").read_bytes() == (measured / "preflight-device.json").read_bytes()


def test_what_a_killed_attempt_left_is_redacted_when_a_run_goes_on_from_it(tmp_path):
    killed, second, third = (attempt(tmp_path / name) for name in ("killed", "second", "third"))
    _take_over(killed, second)
    redact_run(second)
    logs = [second / "logs/segment0/node0/rank0.log", second / "logs/node0/rank0.log"]
    assert [log.read_text() for log in logs] == ["connect [address-1] API_TOKEN=[secret]\n"] * 2
    assert (second / "environment/segment0/redactions.json").exists()
    assert (killed / "logs/node0/rank0.log").read_text() == TELLS  # its processes may be there yet
    _take_over(second, third)
    assert {log.read_text() for log in third.glob("logs/segment*/node0/rank0.log")} == {logs[0].read_text()}


def test_a_redacted_attempt_is_taken_over_byte_by_byte(tmp_path):
    ended, run = attempt(tmp_path / "ended"), attempt(tmp_path / "run")
    redact_run(ended)
    (ended / "logs/node0/rank0.log").write_text(TELLS)  # what the journal quoted stays, whatever it is
    _take_over(ended, run)
    assert (run / "logs/segment0/node0/rank0.log").read_text() == TELLS


def test_a_refused_resumption_leaves_no_run_directory(tmp_path):
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")
    earlier = attempt(tmp_path / "earlier")
    site = Site("cpu", None, tmp_path, run_dir=tmp_path / "run", resume=earlier)
    with pytest.raises(LaunchError, match="no checkpoint to go on from: none is complete"):
        run_workload(Request("tiny-accuracy", 1, 1, {}, 1024), site, lambda plan: pytest.fail("it began"))
    assert not (tmp_path / "run").exists()
