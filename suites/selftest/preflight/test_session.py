"""A whole preflight: what it leaves behind, and how several nodes bring their results together."""

from __future__ import annotations

import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from threading import Event
from types import SimpleNamespace

import psutil
import pytest

from conformance.checks.finding import Result
from conformance.checks.preflight import CHECKS, Preflight, judge
from conformance.devices.cpu import CpuDevice
from conformance.errors import ConformanceError, LaunchError
from conformance.evidence import RunDirectory, create_run_directory, read_json
from conformance.launch.launcher import Place
from conformance.launch.team import open_store
from conformance.launch.torchrun import free_port
from conformance.preflight import meeting, node, session
from conformance.preflight.driver import Measured, Ranks
from conformance.preflight.session import read_findings
from conformance.preflight.worker import Task
from conformance.selftest.cluster import sound_cluster
from conformance.spec import load_checks
from conformance.spec.expected import load_expected

ROOT = Path(__file__).parents[3]
NODE_VARIABLES = ("NODE_RANK", "GROUP_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID")


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--nodes", "2"), "needs to know which node this is"),
        (("--nodes", "2", "--node-rank", "0"), "needs the address of node 0"),
        (("--nodes", "2", "--launcher", "slurm"), "needs an allocation"),
        (("--workload", "llama-3"), "There is no workload named 'llama-3'"),
        (("--devices-per-node", "5", "--device", "cuda"), "5 device(s) were asked for"),
        (("--device", "cpu", "--set", "tensor=3"), "tiny-perf cannot run like this: "),
        (("--nodes", "0"), "expected 1 or more"),
        (("--device", "cpu", "--internevo", "nowhere"), "nowhere is not a folder; expected the root of an InternEvo"),
        (("--device", "cpu", "--signing-key", "nowhere"), "The key nowhere cannot be read: "),
        (("--patch", "mine.diff", "--until-target"), "heeds no --patch or --until-target"),
        (("--device", "cpu", "--reports", "README.md"), "README.md cannot be written to: File exists."),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_sentence(args, told, tmp_path):
    command = [sys.executable, "-m", "pytest", "suites/preflight", "-q", "-p", "no:cacheprovider", *args]
    environment = {name: value for name, value in os.environ.items() if name not in NODE_VARIABLES}
    result = subprocess.run(
        [*command, "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert told in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


def test_expected_figures_have_sources():
    for figure in load_expected():
        assert set(figure) == {"device", "measurement", "value", "unit", "source"}
        assert figure["value"] > 0


@pytest.mark.slow
def test_every_node_gets_what_all_nodes_measured(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    port = free_port()

    def on_node(rank):
        out = tmp_path / f"node{rank}" / "gather"
        task = Task("gather", "cpu", str(out), 0, True, {}, 0, 1, 1, 0.0)
        mine = {"host": [{"rank": rank, "records": [{"kind": "host", "host": f"node-{rank}"}]}]}
        return session._gather(mine, None, task, Ranks(1, 2, rank, "127.0.0.1", port), 0.0)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(on_node, range(2))
    assert first == second
    assert [one["rank"] for one in first["host"]] == [0, 1]


@pytest.mark.slow
def test_a_node_whose_neighbour_is_lost_judges_what_it_has(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    monkeypatch.setitem(session.LIMITS, "gather", 5)
    task = Task("gather", "cpu", str(tmp_path / "gather"), 0, True, {}, 0, 1, 1, 0.0)
    cluster = sound_cluster()
    mine = {name: [one for one in of if one["rank"] == 0] for name, of in cluster.tasks.items()}
    kept = session._gather(mine, None, task, Ranks(1, 2, 0, "127.0.0.1", free_port()), 0.0)
    findings = {finding.check: finding for finding in judge(Preflight(cluster.setup, kept))}
    assert {name: kept[name] for name in mine} == mine
    assert findings["preflight-ended"].result is Result.FAIL
    assert "gather: rank 0 hung" in findings["preflight-ended"].message
    assert findings["host-memory"].result is Result.ERROR
    assert "rank 1 left nothing" in findings["host-memory"].message


def test_what_was_measured_is_on_the_disk_before_the_next_task_begins(tmp_path, monkeypatch):
    def run_task(task, ranks, limit):
        if task.name == "device":
            raise RuntimeError("the node is lost")
        return (Measured(0, "done", "done", 1.0, ({"kind": "host"},), ""),)

    monkeypatch.setattr(session, "run_task", run_task)
    monkeypatch.setattr(session, "check_contract", lambda *args: [{"kind": "contract", "aspect": "count"}])
    run = create_run_directory(tmp_path / "run")
    request = session.Request("tiny-perf", Place("torchrun", 1, 0, "127.0.0.1", 29500), 2, 7, None, {"tensor": 2})
    with pytest.raises(RuntimeError, match="the node is lost"):
        session.run_preflight(CpuDevice(), request, run)
    files = RunDirectory(run)
    assert read_json(files, "environment/preflight-host.json")["processes"][0]["records"] == [{"kind": "host"}]
    assert read_json(files, "environment/preflight-contract.json")["processes"][0]["records"][0]["aspect"] == "count"
    setup = read_json(files, session.SETUP)
    assert setup["overrides"] == {"tensor": 2}
    assert setup["plan"]["tensor_parallel"] == 2


@pytest.mark.parametrize("judged", [True, False])
def test_what_node_0_measured_is_kept_when_another_node_crashes(tmp_path, monkeypatch, judged):
    run = create_run_directory(tmp_path / "run")

    def crash(commands, folder, told):
        first = create_run_directory(run / "work" / "node0")
        (first / "environment/preflight-host.json").write_text("{}")
        if judged:
            (first / session.FINDINGS).write_text('{"findings": []}')
        raise ConformanceError("A node's preflight failed: exit codes [0, 1].")

    monkeypatch.setattr(node, "_run", crash)
    request = session.Request("tiny-perf", Place("local", 2, 0, "127.0.0.1", 29500), 1, 7, None)
    if judged:
        assert node.run_on_all_nodes(CpuDevice(), request, run) == []
    else:
        with pytest.raises(ConformanceError, match="exit codes"):
            node.run_on_all_nodes(CpuDevice(), request, run)
    assert (run / "environment/preflight-host.json").read_text() == "{}"


def test_what_node_0_is_at_is_told_and_no_node_outlives_the_suite(tmp_path):
    seen = []

    def told(what):
        seen.append(what)
        raise KeyboardInterrupt

    script = f"trap '' TERM; echo $$ > {tmp_path}/pid; echo -n measuring > {tmp_path}/doing.txt; sleep 300"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(node, "END_SECONDS", 0.5)
        node._run([["bash", "-c", script]], tmp_path, told)
    assert seen == ["measuring"]
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.parametrize(
    ("prints", "told"),
    [
        ("echo node 1: Node 0 ended.; echo srun: error: task 1 exited", "failed: node 1: Node 0 ended. See "),
        ("echo ImportError: no torch", "failed: ImportError: no torch See "),
        (":", "failed: exit codes [2]. See "),
    ],
)
def test_why_a_node_failed_is_told(tmp_path, prints, told):
    with pytest.raises(ConformanceError) as failed:
        node._run([["bash", "-c", f"{prints}; exit 2"]], tmp_path, lambda what: None)
    assert told in str(failed.value)


def test_a_taken_port_is_refused_before_anything_is_measured(tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        request = session.Request("tiny-perf", Place("torchrun", 2, 0, "127.0.0.1", port - meeting.PORT), 1, 7, None)
        with pytest.raises(LaunchError, match=f"^Port {port} on this machine cannot be used"):
            session.run_preflight(CpuDevice(), request, create_run_directory(tmp_path / "run"))


@pytest.mark.parametrize(
    ("environ", "says", "host"),
    [
        ({"SLURMD_NODENAME": "n7"}, "exit 1", os.uname().nodename),
        ({"SLURM_JOB_NODELIST": "n[7-8]"}, 'echo "$3" | grep -q "n.7-8." && printf "n7\\nn8\\n"', "n7"),
        ({}, "exit 1", None),
    ],
)
def test_nodes_of_an_allocation_meet_on_its_first(environ, says, host, tmp_path, monkeypatch):
    for name in ("SLURMD_NODENAME", "SLURM_JOB_NODELIST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\n{says}\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    if host is not None:
        assert node._first_host() == host
    else:
        with pytest.raises(LaunchError, match="does not tell the allocation's first node"):
            node._first_host()


def suite_file(name):
    """A file of the suite itself, as a module."""
    spec = spec_from_file_location(f"preflight_{name}", ROOT / f"suites/preflight/{name}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def suite():
    return suite_file("conftest")


HOLD = "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True)"


def test_a_worker_that_was_killed_keeps_no_other_waiting(suite, tmp_path, monkeypatch):
    claim = tmp_path / "run.claim"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD}; time.sleep(1000)", str(claim)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    monkeypatch.setattr(suite, "WAIT_SECONDS", 0.5)
    with (
        pytest.raises(pytest.fail.Exception, match="of waiting for the measuring worker"),
        suite._turn(tmp_path / "run"),
    ):
        pass
    monkeypatch.setattr(suite, "WAIT_SECONDS", 120)
    holder.kill()
    holder.wait()
    with suite._turn(tmp_path / "run"):
        assert claim.exists()
    assert not claim.exists()


def test_without_locks_one_worker_measures_and_several_are_refused(suite, tmp_path, monkeypatch, no_locks):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # these tests may have workers of their own
    with suite._turn(tmp_path / "run"):
        pass
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    with pytest.raises(pytest.fail.Exception, match=r"knows none\. Leave out -n, or"), suite._turn(tmp_path / "run"):
        pytest.fail("measured without a turn")


def test_whatever_stops_the_measuring_worker_is_told_to_the_others(suite, tmp_path, monkeypatch):
    def measure(config, run):
        raise IndexError("smi printed nothing")

    monkeypatch.setattr(suite, "_measure", measure)
    assert suite._measure_once(None, tmp_path / "run") == "IndexError: smi printed nothing"
    assert (tmp_path / "run" / suite.ERROR).read_text() == "IndexError: smi printed nothing"


def test_why_nothing_was_measured_is_said_once_and_leaves_no_check_passed():
    test, checks = suite_file("test_preflight").test_preflight, list(load_checks().values())
    with pytest.raises(pytest.fail.Exception, match="no key"):
        test("no key", checks[0])
    with pytest.raises(pytest.skip.Exception, match="could not be made"):
        test("no key", checks[1])


def test_a_run_that_a_killed_worker_began_is_not_gone_on_with(suite, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "_measure", lambda config, run: pytest.fail("measured into another's run"))
    create_run_directory(tmp_path / "run")
    assert "was ended" in suite._measure_once(None, tmp_path / "run")


def test_a_seed_is_fresh_unless_it_was_given(suite):
    fresh, given = (SimpleNamespace(option=SimpleNamespace(seed=seed)) for seed in (None, 1024))
    assert len({suite._seed(fresh) for _ in range(3)}) == 3
    assert suite._seed(given) == 1024


def meet(nodes, on_node, seconds=30.0):
    """Let nodes meet in this process, each in a thread, and give what each makes of the meeting."""
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    port = free_port()
    held = []  # node 0's store has to last until every node has looked

    def start(rank):
        place = Place("torchrun", nodes, rank, "127.0.0.1", port - meeting.PORT)
        held.append(met := meeting.Meeting(place, 7 + rank, lambda line: None, seconds))
        return on_node(rank, met)

    with ThreadPoolExecutor(nodes) as pool:
        return list(pool.map(start, range(nodes)))


def test_the_seed_of_node_0_counts_on_every_node():
    assert meet(2, lambda rank, met: met.seed) == [7, 7]


def test_a_node_that_comes_in_time_is_waited_for_and_one_that_does_not_is_named_by_all_for_good():
    given_up = Event()

    def on_node(rank, met):
        if rank == 2:
            time.sleep(1.0)
        first = met.absent("first", 30.0)
        if rank == 2:
            given_up.wait(30.0)
        second = met.absent("second", 0.5)
        given_up.set()
        return met, first, second, met.absent("third", 30.0)

    told = [absent for _, *absent in meet(3, on_node)]
    assert told == [[[], [2], [2]], [[], [2], [2]], [[], [0, 1], [0, 1]]]


def test_a_node_that_never_arrives_is_named():
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    place = Place("torchrun", 2, 0, "127.0.0.1", free_port() - meeting.PORT)
    with pytest.raises(LaunchError, match=r"^Node 1 did not arrive within 1 s"):
        meeting.Meeting(place, 7, lambda line: None, 1.0)


def arrive(port):
    """Arrive as node 1 of two."""
    meeting.Meeting(Place("torchrun", 2, 1, "127.0.0.1", port - meeting.PORT), 7, lambda line: None, 30.0)


def test_a_node_that_still_looks_when_node_0_ends_says_so_and_not_that_it_did_not_arrive():
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    port = free_port()
    store = open_store("localhost", port, True, 30.0)
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(arrive, port)
        store.get("start/1")
        del store
        with pytest.raises(LaunchError, match=r"^Node 0 ended while the nodes met\. Look there"):
            late.result(60.0)


def test_a_node_that_the_others_have_given_up_blames_none_of_them():
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    port = free_port()
    store = open_store("localhost", port, True, 30.0)
    store.set("lost", "[1]")
    with pytest.raises(LaunchError, match=r"^Node 1 arrived after the others had given up waiting for it\."):
        arrive(port)


def test_what_is_measured_together_is_not_begun_without_a_node_and_every_rank_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "run_task", lambda *args: pytest.fail("begun alone"))
    task = Task("step", "cpu", str(tmp_path / "step-2"), 0, True, {}, 0, 2, 1, 0.0)
    asked = []
    met = SimpleNamespace(absent=lambda what, seconds: asked.append((what, seconds)) or [2, 3])
    alone = session._together(met, task, Ranks(2, 4, 1), 150, 160.0)
    assert asked == [("step-2", 160.0)]
    assert [(one.rank, one.outcome, one.phase) for one in alone] == [(n, "alone", "nodes 2, 3") for n in (2, 3)]


def test_no_node_waits_shorter_than_the_others_may_legally_take(tmp_path, monkeypatch):
    waited = {}

    def together(met, task, ranks, limit, patience):
        waited[Path(task.out).name] = patience
        return (Measured(0, "done", "done", 1.0, (), ""),)

    monkeypatch.setattr(session, "_together", together)
    monkeypatch.setattr(session, "run_task", lambda *args: ())
    monkeypatch.setattr(session, "check_contract", lambda *args: [])
    monkeypatch.setattr(session, "Meeting", lambda place, seed, told: SimpleNamespace(seed=seed))
    request = session.Request("tiny-perf", Place("torchrun", 2, 0, "127.0.0.1", 29500), 1, 7, None)
    session.run_preflight(CpuDevice(), request, create_run_directory(tmp_path / "run"))
    assert waited == {
        "device-1": 2 * 100 + 130,
        "collectives-1": 160 + 2 * 30,
        "step-1": 130,
        "step-2": 160,
        "gather": 160,
    }


@pytest.mark.slow
@pytest.mark.long
def test_two_nodes_that_are_started_one_by_one_share_their_checks_over_workers(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if name not in NODE_VARIABLES}
    command = [sys.executable, "-m", "pytest", "suites/preflight", "-q", "-p", "no:cacheprovider", "--device", "cpu"]
    command += ["--nodes", "2", "--devices-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    runs = [tmp_path / "run", tmp_path / "node1-run"]  # both are asked for the first, in a folder that they share

    def on_node(rank):
        own = ["--node-rank", str(rank), "--run-dir", str(runs[0]), "--reports", str(tmp_path)]
        own += ["-n", "2"] if rank == 0 else []
        return subprocess.run(
            [*command, *own], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=580, check=False
        )

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(on_node, range(2)))
    for result in results:
        assert result.returncode == 0, result.stdout + result.stderr
    first, second = map(read_findings, runs)
    assert first == second
    assert [finding.check for finding in first] == list(CHECKS)
    assert next(f for f in first if f.check == "host-clock").result is Result.PASS
    seeds = [read_json(RunDirectory(run), session.SETUP)["seed"] for run in runs]
    assert seeds[0] == seeds[1] != 1024


@pytest.mark.slow
@pytest.mark.long
def test_two_nodes_of_this_machine_pass_as_one_cluster_and_leave_their_evidence(tmp_path):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pytest", "suites/preflight", "-q", "-p", "no:cacheprovider", "--device", "cpu"]
    command += ["--nodes", "2", "--devices-per-node", "1", "--launcher", "local", "--run-dir", str(run), "--seed", "5"]
    command += ["--reports", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400, check=False)
    assert result.returncode == 0, result.stdout
    assert "preflight: measuring collectives" in result.stderr
    assert "2 x cpu on 2 node(s), the shapes of tiny-perf, small ones: this is a rehearsal" in " ".join(
        result.stdout.split()
    )
    files = RunDirectory(run)
    assert read_json(files, session.SETUP)["seed"] == 5
    assert [finding.check for finding in read_findings(run)] == list(CHECKS)
    hosts = read_json(files, "environment/preflight-host.json")["processes"]
    assert [process["rank"] for process in hosts] == [0, 1]
    steps = read_json(files, "environment/preflight-step.json")["processes"]
    assert {record["tensor"] for process in steps for record in process["records"]} == {1, 2}
    page = (run / "report.html").read_text()
    assert "training-step" in page
    assert "http" not in page.split("</style>")[1]

    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == pytest.ExitCode.USAGE_ERROR
    assert "is not empty" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_preflight_is_journalled_and_leaves_no_process(tmp_path, number):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    run = tmp_path / "run"
    command = [sys.executable, "-m", "pytest", "suites/preflight", "-q", "-p", "no:cacheprovider", "--device", "cpu"]
    command += ["--nodes", "2", "--devices-per-node", "1", "--launcher", "local", "--run-dir", str(run)]
    suite = subprocess.Popen(
        [*command, "--reports", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    told = ""
    while "measuring host" not in told:
        told += suite.stderr.readline()
        assert suite.poll() is None, told
    suite.send_signal(number)
    shown, _ = suite.communicate(timeout=60)
    assert suite.returncode == pytest.ExitCode.INTERRUPTED, shown
    assert json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[-1])["outcome"] == "interrupted"
    end = time.monotonic() + 30
    while (left := [p for p in psutil.process_iter(["cmdline"]) if str(run) in str(p.info["cmdline"])]) and (
        time.monotonic() < end
    ):
        time.sleep(0.1)
    assert left == []


@pytest.mark.slow
def test_srun_starts_a_preflight_on_every_node(tmp_path, real_parts):
    pytest.importorskip("torch", reason="torch is not installed; `make test` installs it")
    slurm = runpy.run_path(str(ROOT / "suites/selftest/launch/slurm_cluster.py"))
    absent = slurm["absent_programs"]()
    if os.geteuid() != 0 or absent:
        real_parts(f"needs root and Slurm (apt-get install slurm-wlm munge); absent: {', '.join(absent) or 'root'}")
    run, folder, output = tmp_path / "run", tmp_path / "slurm", tmp_path / "output"
    folder.mkdir()
    command = [sys.executable, "-m", "pytest", "suites/preflight", "-q", "-p", "no:cacheprovider", "--device", "cpu"]
    command += ["--nodes", "2", "--devices-per-node", "1", "--run-dir", str(run), "--reports", str(tmp_path)]
    command += ["--master-port", str(free_port())]  # jobs of other clusters on this machine have the same number
    with slurm["cluster"](folder) as environ:
        subprocess.run(
            ["sbatch", "--wait", "--nodes=2", f"--output={output}", f"--wrap={shlex.join(command)}"],
            cwd=ROOT,
            env=environ,
            timeout=580,
            check=False,
        )
    told = output.read_text()
    assert "2 x cpu on 2 node(s)" in told, told
    assert "failed" not in told
    assert [finding.check for finding in read_findings(run)] == list(CHECKS)
    hosts = read_json(RunDirectory(run), "environment/preflight-host.json")["processes"]
    assert [process["rank"] for process in hosts] == [0, 1]
