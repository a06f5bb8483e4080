"""One node's part in a run of several, as the pipeline starts it."""

import errno
import io
import json
import os
import re
import shutil
import signal
import threading
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
from rich.console import Console

from conformance import evidence, journal, pipeline
from conformance.checks.finding import Verdict
from conformance.claim import claimed
from conformance.data import prepare, rehearsal_tokenizer
from conformance.errors import ConformanceError, DataError, EvidenceError, LaunchError
from conformance.evidence import Request, RunDirectory
from conformance.internevo.config import CHECKPOINT_FOLDER
from conformance.internevo.source import find_source
from conformance.judgement import judge
from conformance.launch.detect import Fault
from conformance.launch.launcher import _free_pair
from conformance.launch.progress import LiveProgress
from conformance.launch.supervise import Ending, Interrupted
from conformance.launch.team import Host
from conformance.pipeline import Site, _asked, _Job, _keep_ceiling, _take_over, run_workload
from conformance.redaction import redact_run
from conformance.report import build
from conformance.selftest.run import good_run, keep_preflight

pytestmark = pytest.mark.needs("torch")


@pytest.fixture
def met(tmp_path):
    """Let node 1 of a run meet node 0; what each was refused with."""
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")
    request, port = Request("tiny-accuracy", 2, 1, {}, 1024), _free_pair()
    (tmp_path / "0").mkdir()
    job = {"run": "run", "token": "of node 0", "config": "", "settings": {"device": "cpu"}, "lost_node_seconds": 30}

    def meet(patches=(), patches_of_node_0=()):
        host, told = Host(port + 1, [1], tmp_path / "0"), []
        node_0 = _Job(request, None, find_source(None, "0.2.2"), Site("cpu", None, tmp_path, patches_of_node_0), None)

        def gather():
            with pytest.raises(LaunchError) as refused:
                host.gather(_asked(node_0), lambda hellos: job, seconds=60)
            told.append(str(refused.value))

        waiting = threading.Thread(target=gather, daemon=True)
        waiting.start()
        place = {"launcher": "torchrun", "node_rank": 1, "master_addr": "127.0.0.1", "master_port": port}
        own = Site("cpu", None, tmp_path / "1", patches, **place)
        with pytest.raises(LaunchError) as refused:
            run_workload(request, own, LiveProgress(Console(file=io.StringIO()), "node 1").watch)
        waiting.join(60)
        return told[0], str(refused.value)

    return meet


def test_a_node_that_does_not_see_node_0s_checkpoints_takes_no_part(met, tmp_path):
    told, refused = met()
    assert re.search("is not node 0's run directory: .* file system that all nodes share", refused)
    assert "cannot take part" in told
    assert "file system that all nodes share" in told
    assert not (tmp_path / "1/run").exists()  # the same command is given again


@pytest.mark.parametrize("of_node_0", ["+a faster kernel\n", None], ids=["another one", "one more"])
def test_a_node_that_was_started_with_other_patches_is_refused(of_node_0, met, tmp_path):
    """Where nodes share no folder each would train what it was given."""
    patches = []
    for folder, text in (("own", "+another kernel\n"), ("of-node-0", of_node_0)):
        (tmp_path / folder).mkdir()
        if text is not None:
            (tmp_path / folder / "fast.diff").write_text(text)
        patches.append(tuple((tmp_path / folder).iterdir()))
    told, refused = met(*patches)
    digest = "[0-9a-f]{40}[.]{3}"
    theirs = digest if of_node_0 else "not set"
    assert re.search(f"not started as node 0 was: --patch fast.diff is {digest} there and {theirs} on node 0[.]", told)
    assert "called the run off" in refused


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_is_a_sentence(tmp_path, number):
    if find_spec("internlm") is None:
        pytest.skip("InternEvo is not installed; `make test` installs it")

    def prepare(plan):
        raise OSError(number, os.strerror(number))

    with pytest.raises(EvidenceError, match=f"cannot be written: {os.strerror(number)}. Free space or choose"):
        run_workload(Request("tiny-perf", 1, 1, {}, 1024), Site("cpu", None, tmp_path), prepare)


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


PERF = Request("tiny-perf", 1, 2, {}, 1024)


@pytest.fixture
def perf(monkeypatch, tmp_path):
    """A run whose training is what a real one left; its site, and what it said."""
    good = good_run(tmp_path)
    said = []
    display = SimpleNamespace(
        waiting=lambda *told: None,
        nodes=lambda views: None,
        step=lambda step: None,
        notice=lambda fault: said.append(fault.message),
    )
    source = SimpleNamespace(kind="wheel", root=tmp_path)

    def prepare(job, run):
        shutil.copytree(good, run, dirs_exist_ok=True)
        (run / evidence.RUN).unlink()
        (run / evidence.JOURNAL).unlink()
        return source, ()

    monkeypatch.setattr(pipeline, "find_source", lambda *asked: source)
    monkeypatch.setattr(pipeline, "require_pinned", lambda *asked: None)
    monkeypatch.setattr(pipeline, "_prepare", prepare)
    monkeypatch.setattr(
        pipeline, "_describe", lambda source: json.loads((good / evidence.RUN).read_text())["internevo"]
    )
    monkeypatch.setattr(pipeline, "supervise", lambda *told: Ending(0, False, 0))
    site = Site("cpu", None, tmp_path / "reports", run_dir=tmp_path / "reports" / "one")
    return SimpleNamespace(site=site, said=said, make=lambda: run_workload(PERF, site, lambda plan: display))


def then(number, real):
    """What a signal comes in."""

    def called(*told):
        os.kill(os.getpid(), number)
        return real(*told)

    return called


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "place", [(build, "judge"), (build, "write_report"), (pipeline, "redact_run")], ids=lambda place: place[1]
)
def test_a_signal_after_the_training_waits_for_the_report(perf, monkeypatch, place, number):
    monkeypatch.setattr(*place, then(number, getattr(*place)))
    before = signal.getsignal(number)
    outcome = perf.make()
    assert perf.said == [f"{number.name} came after the end of the training: it is heeded once the report is signed."]
    assert outcome.told_to_end
    assert not outcome.ending.interrupted
    assert outcome.judgement.verdict is Verdict.REHEARSAL
    assert (outcome.run / evidence.REPORT).is_file()
    ended = journal.parse((outcome.run / evidence.JOURNAL).read_bytes()).entries[-1]
    assert (ended["event"], ended["outcome"]) == ("ended", "ended")
    assert signal.getsignal(number) is before


def test_a_signal_while_the_training_was_being_ended_is_heeded(perf, monkeypatch):
    monkeypatch.setattr(pipeline, "supervise", lambda *told: Ending(0, False, 0, signal="SIGTERM"))
    outcome = perf.make()
    assert outcome.told_to_end
    assert outcome.judgement.verdict is Verdict.REHEARSAL


@pytest.mark.parametrize("came", [False, True])
def test_a_signal_on_another_node_is_told_apart_from_an_end_on_purpose(perf, monkeypatch, came):
    told = {"findings": [], "metrics": {}, "verdict": "REHEARSAL", "exit_code": 0, "interrupted": True, "host": "a"}
    told |= {"report_id": "0", "key_id": "1", "self_issued": True}
    monkeypatch.setattr(pipeline, "Member", lambda *asked, **options: None)
    monkeypatch.setattr(pipeline, "follow", lambda *asked: (perf.site.reports, told, came))
    site = replace(perf.site, launcher="torchrun", node_rank=1, master_addr="127.0.0.1", master_port=29500)
    outcome = run_workload(replace(PERF, nodes=2), site, lambda plan: SimpleNamespace(waiting=None))
    assert (outcome.ending.interrupted, outcome.told_to_end) == (True, came)


def test_a_signal_before_the_training_ends_the_attempt(perf, monkeypatch):
    monkeypatch.setattr(pipeline, "supervise", then(signal.SIGTERM, pipeline.supervise))
    with pytest.raises(Interrupted, match="SIGTERM"):
        perf.make()
    entries = journal.parse((perf.site.reports / evidence.JOURNAL).read_bytes()).entries
    assert [entry.get("outcome") for entry in entries] == [None, "failed"]


def test_a_run_without_a_signal_was_not_told_to_end(perf):
    assert not perf.make().told_to_end
    assert perf.said == []


def test_what_could_not_begin_leaves_its_directory_free_for_the_same_command(perf, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "MIN_FREE_BYTES", 1 << 60)
        with pytest.raises(LaunchError, match="MiB free"):
            perf.make()
    with monkeypatch.context() as patched:

        def refuse(job, run):
            (run / evidence.PLAN).write_text("{}")
            raise LaunchError("The patch does not apply.")

        patched.setattr(pipeline, "_prepare", refuse)
        with pytest.raises(LaunchError, match="does not apply"):
            perf.make()
    assert not perf.site.run_dir.exists()
    assert perf.make().judgement.verdict is Verdict.REHEARSAL


def test_what_began_is_kept(perf, monkeypatch):
    def fail(*told):
        raise LaunchError("torchrun could not be started.")

    monkeypatch.setattr(pipeline, "supervise", fail)
    with pytest.raises(LaunchError):
        perf.make()
    assert (perf.site.run_dir / evidence.RUN).is_file()
    with pytest.raises(EvidenceError, match="is not empty"):
        perf.make()


def test_while_it_lives_it_counts_as_going_on(perf, monkeypatch):
    def look(run, *told):
        with pytest.raises(ConformanceError, match="taken"), claimed(run / "work", LaunchError("taken")):
            pytest.fail("claimed twice")
        return Ending(0, False, 0)

    monkeypatch.setattr(pipeline, "supervise", look)
    run = perf.make().run
    with claimed(run / "work", LaunchError("taken")):
        pass


ACCURACY = Request("tiny-accuracy", 1, 2, {}, 1024)


def test_a_run_goes_on_only_when_it_no_longer_lives(perf, tmp_path):
    plan = pipeline.plan_of(ACCURACY)
    first, second = attempt(tmp_path / "first"), attempt(tmp_path / "second")
    checkpoints = first / "work" / CHECKPOINT_FOLDER
    (checkpoints / "40").mkdir(parents=True)
    (checkpoints / "40/40.step").touch()
    (second / "work" / CHECKPOINT_FOLDER).symlink_to(checkpoints)

    def site(name, resumed):
        return Site("cpu", None, tmp_path, run_dir=tmp_path / name, resume=resumed)

    with pipeline._run_directory(plan, site("third", second)):
        for resumed in (first, second):  # whichever attempt of the run is named
            refused = pytest.raises(LaunchError, match=r"in \S*/first/\S* are .* still goes on.* remove \S*/lock")
            with refused:
                run_workload(ACCURACY, site("fourth", resumed), lambda plan: pytest.fail("it began"))
    assert not (tmp_path / "fourth").exists()
    with pipeline._run_directory(plan, site("fourth", second)):
        assert (tmp_path / "fourth").is_dir()


def test_a_first_attempt_claims_its_own_checkpoints(tmp_path):
    site = Site("cpu", None, tmp_path, run_dir=tmp_path / "a")
    with pipeline._run_directory(pipeline.plan_of(ACCURACY), site) as run:
        refused = pytest.raises(LaunchError, match="still goes on")
        with refused, pipeline._claimed_checkpoints(run):
            pytest.fail("claimed twice")


def test_a_record_that_was_cut_hides_neither_the_fault_nor_the_report(perf, monkeypatch):
    fault = Fault("full-disk", "The disk of node 0 is full.", "Free space.", 0, "vm", None, 3, 60.0)

    def cut(run, *told):
        (run / "environment/rank1.json").write_text("")
        return Ending(1, False, 0, fault)

    monkeypatch.setattr(pipeline, "supervise", cut)
    found = {finding.check: finding for finding in perf.make().judgement.findings}
    assert fault.message in found["run-faults"].message
    assert (perf.site.run_dir / evidence.REPORT).is_file()


def test_data_that_changed_since_they_were_prepared_are_refused(tmp_path):
    pytest.importorskip("sentencepiece", reason="conformance data needs the extra data")
    text, data = tmp_path / "corpus.txt", tmp_path / "data"
    text.write_text("hello world\n" * 20)
    prepare([text], rehearsal_tokenizer(), data, workers=1)
    plan = pipeline.plan_of(ACCURACY)
    pipeline._link_training_state(
        evidence.create_run_directory(tmp_path / "a"), Site("cpu", None, tmp_path, data=data), plan
    )
    (shard,) = (data / "train").rglob("*.bin")
    changed = bytearray(shard.read_bytes())
    changed[15:16] = b"7"
    shard.write_bytes(changed)
    run = evidence.create_run_directory(tmp_path / "b")
    with pytest.raises(DataError, match=r"not those that were prepared: .* `conformance data check \S*/data` says"):
        pipeline._link_training_state(run, Site("cpu", None, tmp_path, data=data), plan)
    assert not (run / evidence.DATA).exists()
