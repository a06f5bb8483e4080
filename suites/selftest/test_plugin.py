"""The suites as a user calls them, where no accelerator is: refusals, selection, exit codes."""

import hashlib
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance import journal, plugin
from conformance.data.fingerprints import FINGERPRINT
from conformance.devices import detect_device
from conformance.errors import ConformanceError
from conformance.evidence import DATA, JOURNAL, PLAN, REQUEST, RunDirectory, read_json, request_from_json, write_json
from conformance.judgement import plan_of
from conformance.options import _devices_per_node
from conformance.spec import load_workload

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def no_accelerator():
    if detect_device().name != "cpu":
        pytest.skip("these runs would start on this accelerator")


def suite(*args, **variables):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *args]
    environ = os.environ | variables
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120, check=False)


# What stands in for a run and for the measuring, in the suites that a test starts.
STUB = """
import json, os, shutil
from dataclasses import replace
from pathlib import Path

from conformance import pipeline, plugin
from conformance.checks.finding import Verdict
from conformance.errors import LaunchError
from conformance.evidence import RunDirectory
from conformance.judgement import judge
from conformance.launch.supervise import Ending
from conformance.preflight import attempt as preflight

ASKED, FIXTURE = os.environ["ASKED"], Path("fixtures/tiny-preflight-run/environment")


def run_workload(request, site, watch):
    from conformance.selftest.run import good_run

    with (site.reports / "started").open("a") as stream:
        print("started", file=stream)
    if ASKED == "no run":
        raise LaunchError("Port 29500 cannot be used.", "Choose another --master-port.")
    run = good_run(site.reports)
    judgement = replace(judge(RunDirectory(run)), verdict=Verdict[ASKED])
    told = "TOLD_TO_END" in os.environ
    return pipeline.Outcome(run, judgement, Ending(0, False, 0), "0" * 64, "1" * 64, True, told_to_end=told)


def attempt(device, request, run, reports, signing_key, told):
    if ASKED == "no run":
        raise LaunchError("The nodes do not meet.")
    told("measuring")
    shutil.copytree(FIXTURE, run / "environment", dirs_exist_ok=True)
    contract = run / "environment" / "preflight-contract.json"
    value = json.loads(contract.read_text())
    if ASKED == "NOT_CONFORMANT":
        value["processes"][0]["records"][0] |= {"state": "wrong"}
    contract.write_text(json.dumps(value))


def prepare(option, workload):
    if prepared:
        raise LaunchError("The port was taken meanwhile.")
    prepared.append(workload)
    return plugin_prepare(option, workload)


prepared, plugin_prepare = [], plugin.prepare
if ASKED == "taken meanwhile":
    plugin.prepare = prepare
pipeline.run_workload, preflight.attempt = run_workload, attempt
"""


@pytest.fixture
def stubbed(tmp_path):
    """Start a suite whose run or preflight comes to what is asked for; reports go to ``tmp_path``."""
    (tmp_path / "stub_of_the_run.py").write_text(STUB)

    def start(asked, *args, **variables):
        args = ("-p", "stub_of_the_run", "--device", "cpu", "--reports", str(tmp_path), *args)
        return suite(*args, ASKED=asked, PYTHONPATH=str(tmp_path), **variables)

    return start


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ("NOT_CONFORMANT", pytest.ExitCode.TESTS_FAILED),
        ("INCONCLUSIVE", pytest.ExitCode.TESTS_FAILED),
        ("REHEARSAL", pytest.ExitCode.OK),
    ],
)
def test_a_bad_verdict_is_never_green_whichever_check_was_selected(asked, code, stubbed):
    result = stubbed(asked, "suites/perf", "-m", "tiny", "-k", "run-ended")
    assert "1 passed" in result.stdout
    assert asked in result.stdout
    assert result.returncode == code


def test_a_signal_that_waited_for_the_report_is_heeded_after_it(stubbed):
    result = stubbed("REHEARSAL", "suites/perf", "-m", "tiny", TOLD_TO_END="1")
    assert not re.search(r"\d passed", result.stdout)
    assert "conformance bundle" in result.stdout  # the run's summary
    assert result.returncode == pytest.ExitCode.INTERRUPTED


@pytest.mark.parametrize(
    ("asked", "code"), [("NOT_CONFORMANT", pytest.ExitCode.TESTS_FAILED), ("REHEARSAL", pytest.ExitCode.OK)]
)
def test_nor_is_that_of_a_preflight(asked, code, stubbed):
    result = stubbed(asked, "suites/preflight", "-k", "host-clock")
    assert "1 passed" in result.stdout, result.stdout + result.stderr
    assert result.returncode == code


@pytest.mark.parametrize("given", [True, False])
def test_nodes_of_a_preflight_that_share_a_folder_wait_for_no_lock_of_each_other(given, stubbed, tmp_path):
    """One held it and waited for the other to arrive; the other waited for the lock."""
    args = ("--run-dir", str(tmp_path / "run")) if given else ()
    place = ("--nodes", "2", "--devices-per-node", "1", "--node-rank", "1", "--master-addr", "127.0.0.1")
    result = stubbed("REHEARSAL", "suites/preflight", "-k", "host-clock", *place, *args)
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr
    (left,) = [path.name for path in tmp_path.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert re.fullmatch("node1-run" if given else r"node1-\d{8}-\d{6}-preflight", left)


@pytest.mark.parametrize(
    "args", [("suites/perf", "-m", "tiny", "-k", "run-ended"), ("suites/preflight", "-k", "host-clock")], ids=" ".join
)
def test_a_pytest_that_captures_nothing_shows_as_much(args, stubbed):
    result = stubbed("REHEARSAL", *args, "-p", "no:capture")
    assert "1 passed" in result.stdout, result.stdout
    assert result.returncode == pytest.ExitCode.OK


@pytest.mark.parametrize(
    ("asked", "args", "sentence"),
    [
        (
            "no run",
            ("suites/perf", "-m", "tiny", "-k", "floor"),
            "Port 29500 cannot be used. Choose another --master-port.",
        ),
        ("taken meanwhile", ("suites/perf", "-m", "tiny", "-k", "floor"), "The port was taken meanwhile."),
        ("no run", ("suites/preflight", "-k", "host"), "The nodes do not meet."),
    ],
)
def test_why_nothing_was_run_is_told_once_whichever_checks_were_selected(asked, args, sentence, stubbed):
    result = stubbed(asked, *args)
    assert "1 failed" in result.stdout
    assert result.stdout.count(f"\n{sentence}\n") == 1
    assert result.returncode == pytest.ExitCode.TESTS_FAILED


class Accelerator:
    """A plugin that finds so many devices."""

    name = "accelerator"

    def __init__(self, found, why=""):
        self.found, self.why = found, why

    def count(self):
        return self.found()

    def absence(self):
        return self.why()


def refuse():
    raise RuntimeError("driver/library version mismatch")


@pytest.mark.parametrize("asked", [8, None])
@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        (
            Accelerator(lambda: 0, lambda: "there is no driver"),
            "this node shows none (accelerator): there is no driver. `conformance device-check accelerator` tells what",
        ),
        (Accelerator(lambda: 0, refuse), "this node shows none (accelerator). `conformance device-check accelerator`"),
        (Accelerator(refuse), "'accelerator' cannot count its devices: RuntimeError: driver/library version mismatch."),
    ],
    ids=["none", "none, and it cannot say why", "cannot count"],
)
def test_a_plugin_without_devices_is_told_and_no_count_is_made_up(device, sentence, asked):
    with pytest.raises(ConformanceError, match=re.escape(sentence)) as told:
        _devices_per_node(load_workload("llama2-7b-perf"), device, 4, asked)
    assert "--devices-per-node" not in str(told.value)


def test_fewer_devices_than_asked_for_are_counted_once():
    counted = []
    device = Accelerator(lambda: counted.append(1) or 4)
    workload = load_workload("llama2-7b-perf")
    assert _devices_per_node(workload, device, 4, None) == 4
    assert len(counted) == 1
    with pytest.raises(ConformanceError, match=r"needs 4 x 8 .* has 4 .*\. Make the others visible, or begin anew"):
        _devices_per_node(workload, device, 4, 8)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("suites/perf", "-m", "tiny", "--workload", "no-such"), "tiny-perf: no such run heeds --workload."),
        (
            ("suites/perf", "-m", "tiny", "--until-target", "--data", "/no/such"),
            "tiny-perf: no such run heeds --data or --until-target. Leave it out: ",
        ),
        (
            ("suites/perf", "suites/preflight", "-k", "tiny-perf or host-clock", "--run-dir", "run"),
            "--run-dir names one directory; the preflight and tiny-perf need one each.",
        ),
    ],
)
def test_an_option_that_no_selected_test_heeds_is_refused(args, sentence, stubbed, tmp_path):
    result = stubbed("REHEARSAL", *(str(tmp_path / arg) if arg == "run" else arg for arg in args))
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert sentence in result.stderr
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    "args",
    [
        ("suites/preflight", "suites/perf", "-m", "tiny", "--workload", "tiny-perf"),  # -m leaves no preflight
        ("suites/preflight", "suites/perf", "-m", "tiny", "--run-dir", "run"),
    ],
    ids=" ".join,
)
def test_an_option_for_one_suite_may_be_given_to_several(args, stubbed, tmp_path):
    result = stubbed("REHEARSAL", *(str(tmp_path / arg) if arg == "run" else arg for arg in args))
    assert result.returncode == pytest.ExitCode.OK, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--run-dir", "is not empty; expected a new one, so that no evidence is overwritten. Choose another --run-dir"),
        ("--master-port", "on this machine cannot be used for the rendezvous: "),
    ],
)
def test_what_could_not_start_is_refused_before_the_tests(option, sentence, stubbed, tmp_path):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        value = {"--run-dir": ROOT, "--master-port": taken.getsockname()[1]}[option]
        result = stubbed("REHEARSAL", "suites/perf", "-m", "tiny", option, str(value))
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert sentence in result.stderr
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["stub_of_the_run.py"]


@pytest.mark.parametrize("args", [("suites/perf",), ("suites/preflight", "suites/accuracy")], ids=" and ".join)
def test_workers_of_xdist_make_no_runs_of_their_own(args, stubbed, tmp_path):
    result = stubbed("no run", *args, "-m", "tiny", "-n", "2")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    assert "would run tiny-" in error
    assert "Leave out -n, which only suites/preflight takes." in error
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / "started").exists()


def test_workers_of_xdist_may_make_tests_that_only_name_a_workload():
    plugin.pytest_xdist_node_collection_finished(["suites/selftest/test_plan.py::test_rules[tiny-perf-1]", "test_all"])
    with pytest.raises(pytest.UsageError, match="would run tiny-perf on the same devices"):
        plugin.pytest_xdist_node_collection_finished(
            ["suites/perf/test_perf.py::test_performance[tiny-perf-run-ended]"]
        )


@pytest.mark.parametrize(
    "args",
    [("suites/perf", "-m", "tiny", "--run-dir"), ("suites/perf", "-m", "tiny", "--patch"),
     ("suites/preflight", "--run-dir")],
    ids=" ".join,
)  # fmt: skip
def test_a_name_that_no_evidence_could_hold_is_refused_before_anything_starts(args, stubbed, tmp_path):
    result = stubbed("REHEARSAL", *args, str(tmp_path / "lauf-\udce4"))
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"ERROR: {args[-1]} names 'lauf-\\udce4'; expected UTF-8" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not (tmp_path / "started").exists()
    assert not list(tmp_path.glob("lauf*"))


def test_an_official_workload_without_accelerators_is_refused_in_one_sentence():
    result = suite("suites/perf", "-m", "7b", "--nodes", "4")
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    assert errors == [
        "ERROR: llama2-7b-perf needs 4 x 8 accelerators; this machine has none that an installed device plugin can "
        "see. Rehearse on the CPU with -m tiny, or name the vendor's plugin with --device."
    ]


def test_without_a_mark_official_workloads_skip_and_nothing_tested_is_not_green():
    result = suite("suites/perf", "-rs")
    assert "llama2-7b-perf needs 1 x 8 accelerators" in result.stdout
    assert "llama2-70b-perf needs 4 x 8 accelerators" in result.stdout  # the fewest that the planner accepts
    assert "tiny-perf" not in result.stdout
    assert "passed" not in result.stdout
    assert result.returncode == pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--nodes", "2"), "needs to know which node this is"),
        (("--nodes", "2", "--node-rank", "1"), "needs the address of node 0"),
        (("--node-rank", "3", "--master-addr", "n0"), "--node-rank 3 is not the index of one node"),
        (("--nodes", "2", "--launcher", "slurm"), "SLURM_JOB_ID is not set"),
        (("--nodes", "2", "--launcher", "local", "--node-rank", "1", "--master-addr", "n0"), "heeds no --node-rank or"),
    ],
)
def test_a_place_that_is_not_told_is_a_usage_error(args, sentence, tmp_path):
    result = suite("suites/perf", "-m", "tiny", "--device", "cpu", "--run-dir", str(tmp_path / "run"), *args)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert sentence in result.stderr
    assert "source-pinned" not in result.stdout
    assert not (tmp_path / "run").exists()


RESUMABLE = str(ROOT / "fixtures" / "tiny-accuracy-run")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--data", "/nonexistent"), "/nonexistent is no finished data folder"),
        (("--resume", "/nonexistent"), "--resume /nonexistent: there is no such directory"),
        (("--resume", RESUMABLE, "--seed", "7"), "asked for with seed 1024; now it is 7"),
        (("--resume", RESUMABLE, "--set", "total_steps=50"), "A run goes on as it began"),
        (("--resume", RESUMABLE, "--nodes", "2"), "asked for with nodes 1; now it is 2"),
    ],
)
def test_an_accuracy_run_that_cannot_begin_is_one_sentence(args, sentence, tmp_path):
    result = suite("suites/accuracy", "-m", "tiny", "--run-dir", str(tmp_path / "run"), *args)
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert sentence in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output
    assert not list((tmp_path).glob("run/logs/node0/*"))


@pytest.fixture
def interrupted(tmp_path):
    """An attempt that its reports folder's journal shows, and that left no checkpoint."""
    run, data = tmp_path / "reports" / "first", tmp_path / "data"
    shutil.copytree(RESUMABLE, run)
    (data / "train").mkdir(parents=True)
    shutil.copyfile(run / DATA, data / FINGERPRINT)
    (run / "work").mkdir()
    (run / "work/data").symlink_to(data / "train")
    write_json(run, PLAN, plan_of(request_from_json(read_json(RunDirectory(run), REQUEST))).to_json())
    digest = hashlib.sha256((run / PLAN).read_bytes()).hexdigest()
    journal.append(tmp_path / "reports" / JOURNAL, "started", "first", workload="tiny-accuracy", plan=digest)
    return run


def of_other_data(run):
    record = read_json(RunDirectory(run), DATA)
    write_json(run, DATA, {**record, "digest": "0" * 64})


def of_another_build(run):
    """The plan that another build of the suite began with, journalled as it was."""
    write_json(run, PLAN, {**read_json(RunDirectory(run), PLAN), "total_steps": 99})
    digest = hashlib.sha256((run / PLAN).read_bytes()).hexdigest()
    journal.append(run.parent / JOURNAL, "started", "first", workload="tiny-accuracy", plan=digest)


@pytest.mark.parametrize(
    ("reports", "change", "sentence"),
    [
        ("reports", lambda run: None, "has no checkpoint to go on from: none is complete"),
        ("elsewhere", lambda run: None, "elsewhere/journal.jsonl shows no attempt first with the plan that stands in"),
        ("reports", lambda run: (run / PLAN).unlink(), "reports/journal.jsonl shows no attempt first with the plan"),
        ("reports", of_another_build, "began with another plan than this build of the suite makes"),
        ("reports", of_other_data, "trained on the data set 0000000000000000; the one in"),
    ],
    ids=["no checkpoint", "another reports folder", "no plan", "another build", "other data"],
)
def test_a_run_goes_on_where_its_journal_is(reports, change, sentence, interrupted, tmp_path):
    change(interrupted)
    result = suite("suites/accuracy", "-m", "tiny", "--resume", str(interrupted), "--reports", str(tmp_path / reports))
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert sentence in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    assert not [path for path in tmp_path.glob("*/*-tiny-accuracy") if path.is_dir()]


def test_nodes_that_share_a_folder_take_turns_to_prepare_the_rehearsals_corpus(tmp_path):
    command = [sys.executable, "-m", "pytest", "suites/accuracy", "-m", "tiny", "--nodes", "2", "--device", "cpu"]
    command += ["--reports", str(tmp_path)]
    nodes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for _ in range(2)
    ]
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert all("needs to know which node this is" in each for each in said), said  # which is asked for afterwards
    assert len(list(tmp_path.glob("rehearsal-corpus-*/fingerprint.json"))) == 1


@pytest.fixture
def prepared(tmp_path, monkeypatch):
    """Prepare a text as the rehearsal's corpus, from a file of that time; the folder."""
    finish = runpy.run_path(str(ROOT / "suites" / "accuracy" / "conftest.py"))["pytest_collection_finish"]
    corpus = tmp_path / "corpus.jsonl"
    monkeypatch.setitem(finish.__globals__, "CORPUS", corpus)
    tests = [SimpleNamespace(callspec=SimpleNamespace(params={"outcome": "tiny-accuracy"}))]

    def prepare(text, when):
        corpus.write_text(text)
        os.utime(corpus, (when, when))
        option = SimpleNamespace(data=None, resume=None, collectonly=False, reports=tmp_path)
        finish(SimpleNamespace(config=SimpleNamespace(option=option), items=tests))
        assert (option.data / "fingerprint.json").is_file()
        return option.data

    return prepare


@pytest.mark.parametrize("finished", [True, False], ids=["finished", "cut off"])
def test_the_rehearsals_corpus_is_known_by_its_content_and_not_by_its_files_times(finished, prepared):
    """A new checkout, a copy, an image built again: the same bytes with other times."""
    folder = prepared('{"text": "one"}\n', 1_000_000_000)
    if not finished:
        (folder / "fingerprint.json").unlink()
    assert prepared('{"text": "one"}\n', 1_700_000_000) == folder
    assert prepared('{"text": "two"}\n', 1_700_000_000) != folder


def test_the_rehearsals_corpus_is_prepared_on_a_file_system_without_locks_too(prepared, no_locks):
    assert prepared('{"text": "one"}\n', 1_700_000_000)


@pytest.mark.parametrize("args", [("suites/perf", "-m", "tiny"), ("suites/preflight",)], ids=["run", "preflight"])
def test_a_key_of_ones_own_that_cannot_be_made_is_told_before_days_of_training(args, stubbed, tmp_path, monkeypatch):
    (tmp_path / "config").write_text("no folder")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    result = stubbed("REHEARSAL", *args)
    assert result.returncode == pytest.ExitCode.USAGE_ERROR
    assert "local-key.pem cannot be" in result.stderr
    assert not (tmp_path / "started").exists()
    assert not list(tmp_path.glob("*-preflight"))


def test_a_performance_run_is_not_resumed():
    result = suite("suites/perf", "-m", "tiny", "--resume", RESUMABLE)
    assert "tiny-perf writes no checkpoints to resume from" in result.stderr


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("--device", "abacus"), "Unknown device 'abacus'"),
        (("--nodes", "0"), "expected 1 or more"),
        (("--set", "colour=red"), "colour"),
        (("--set", "micro_num=64"), "above the reference's 4"),
        (("--internevo", "/nonexistent"), "/nonexistent"),
        (("--patch", "/nonexistent.diff"), "not one"),
        (("--master-port", "99999"), "99999"),
        (("--signing-key", "/nonexistent.key"), "/nonexistent.key"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_runs(args, sentence, tmp_path):
    result = suite("suites/perf", "-m", "tiny", "--run-dir", str(tmp_path / "run"), *args)
    assert result.returncode != 0
    output = result.stdout + result.stderr
    assert sentence in output
    assert "Traceback" not in output
    assert "INTERNALERROR" not in output
    assert not list((tmp_path).glob("run/logs/node0/*"))
